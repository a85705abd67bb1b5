// Package env imports what it may not.
package env

import _ "golang.org/x/net/idna"
