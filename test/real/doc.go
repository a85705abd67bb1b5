// Package real tests what people do in environments: they install packages,
// start databases, commit, compile and serve, as root of a Debian image, after a
// warm claim. An agent with a containerd of its own plays on a stage without a
// route out; the internet there has the package mirror at its real address, and
// what it is asked for is fetched by the test outside.
package real
