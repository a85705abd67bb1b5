// Package kerneltest is for tests that need root and a kernel: it says whether
// this machine can run them, gives them network namespaces without a route out,
// and fails them if they leave something behind. It is imported by tests only.
//
// A package whose tests send packets calls Main from its TestMain: the whole
// test binary then runs in network and mount namespaces of its own, with a
// private bpffs, so that any goroutine may do kernel work.
package kerneltest
