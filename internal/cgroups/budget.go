package cgroups

import "math"

// Budget bounds what all slots use together. Zero leaves a bound as it is.
type Budget struct {
	MemoryBytes int64
	// CPUMillis is the share that the slots get beside others when the node is
	// busy. It is no limit: what nobody else wants is theirs.
	CPUMillis int64
	PIDs      int64
}

// sharesOf are those of cgroup v1, as Kubernetes gives them to a pod that
// requests so much.
func sharesOf(millis int64) int64 { return min(max(millis*1024/1000, 2), 262144) }

// weightOf is what container runtimes make of the same request in cgroup v2
// (opencontainers/cgroups, ConvertCPUSharesToCgroupV2Value), so that our tree
// and the pods beside it are measured alike.
func weightOf(millis int64) int64 {
	shares := sharesOf(millis)
	switch {
	case shares <= 2:
		return 1
	case shares >= 262144:
		return 10_000
	}
	l := math.Log2(float64(shares))
	return int64(math.Ceil(math.Pow(10, (l*l+125*l)/612-7.0/34)))
}
