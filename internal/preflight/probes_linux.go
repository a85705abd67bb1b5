package preflight

import "context"

// probes is every probe in the report's order.
func probes(in Input) []probe {
	pure := func(f func() result) func(context.Context) result {
		return func(context.Context) result { return f() }
	}
	ps := []probe{
		{"kernel", "version", true, pure(kernelVersion)},
		{"kernel", "openat2", true, pure(haveOpenat2)},
		{"kernel", "pidfd", true, pure(havePidfd)},
		{"kernel", "user namespaces", true, pure(func() result { return haveUserNamespaces(in) })},
		{"kernel", "seccomp filters", true, pure(haveSeccomp)},
		{"kernel", "pressure (PSI)", false, pure(havePSI)},
		{"kernel", "swap", false, pure(haveSwap)},
		{"kernel", "open files", false, pure(openFiles)},
		{"cgroup", "layout", true, pure(func() result { return cgroupLayout(in.CgroupMount) })},
		{"cgroup", "freeze", true, pure(func() result { return cgroupFreeze(in.CgroupMount) })},
		{"cgroup", "kill", true, pure(func() result { return cgroupFile(in.CgroupMount, "cgroup.kill", "Linux 5.14") })},
		{"cgroup", "controllers", true, pure(func() result { return cgroupControllers(in.CgroupMount) })},
		{"cgroup", "memory.reclaim", false, pure(func() result { return cgroupReclaim(in.CgroupMount) })},
		{"cgroup", "dynamic changes", false, pure(func() result { return cgroupDynamic(in.CgroupMount) })},
		{"cgroup", "cpu burst", false, pure(func() result {
			return cgroupLimit(in.CgroupMount, "cpu", "cpu.max.burst", "cpu.cfs_burst_us", "Linux 5.14")
		})},
		{"cgroup", "memory.high", false, pure(func() result { return cgroupLimit(in.CgroupMount, "memory", "memory.high", "", "") })},
		{"cgroup", "swap limit", false, pure(func() result {
			return cgroupLimit(in.CgroupMount, "memory", "memory.swap.max", "", "a kernel with swap")
		})},
		{"cgroup", "io limits", false, pure(func() result { return cgroupIO(in.CgroupMount, in.StateDir) })},
		{"bpf", "BTF", true, pure(haveBTF)},
		{"bpf", "ring buffer", true, pure(haveRingBuffer)},
		{"bpf", "LPM trie", true, pure(haveLPM)},
		{"bpf", "tp_btf", true, pure(haveTracing)},
		{"bpf", "FPU tracepoint", false, pure(haveFPUTracepoint)},
		{"bpf", "traffic control", true, pure(haveTC)},
		{"bpf", "LSM", false, pure(haveLSM)},
		{"bpf", "bpffs", true, pure(func() result { return haveBPFFS(in.BPFDir) })},
		{"bpf", "tracefs", false, pure(haveTraceFS)},
		{"network", "veth", true, pure(haveVeth)},
		{"network", "nftables masquerade", true, pure(haveMasquerade)},
		{"network", "IPv4 forwarding", false, pure(haveForwarding)},
		{"filesystem", "overlay", true, pure(func() result { return haveOverlay(in.StateDir) })},
		{"filesystem", "idmapped overlay", true, pure(func() result { return haveIDMappedOverlay(in.StateDir) })},
		{"filesystem", "noswap tmpfs", false, pure(haveNoSwap)},
	}
	if in.CgroupTree != nil {
		ps = append(ps, probe{"cgroup", "tree", false, func(ctx context.Context) result { return cgroupTree(ctx, in.CgroupTree) }})
	}
	if in.StateDir != "" {
		ps = append(ps,
			probe{"filesystem", "state directory", true, pure(func() result { return stateDirectory(in.StateDir) })},
			probe{"filesystem", "reflink", false, pure(func() result { return haveReflink(in.StateDir) })},
			probe{"filesystem", "project quota", false, pure(func() result { return haveProjectQuota(in.StateDir) })})
	}
	if in.RunDir != "" {
		ps = append(ps, probe{"filesystem", "run directory", false, pure(func() result { return runDirectory(in.RunDir) })})
	}
	return append(ps, programProbes(in)...)
}
