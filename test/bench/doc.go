// Package bench measures what a caller waits for, and beside it what the same
// containerd takes for the same image and specification, in one run: machines
// differ, ratios less so. It is benchmarks only, and needs root; without -bench
// it does nothing.
//
// It sets a stage of its own (test/stage) and runs inside it. Percentiles are
// of single calls, one at a time. No benchmark fails for being slow.
package bench
