// Nodeagent uses a library that belongs to an adapter.
package main

import _ "k8s.io/client-go/rest"

func main() {}
