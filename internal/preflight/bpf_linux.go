package preflight

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

const bpfMend = "run as root with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN; boot Linux 6.1 or newer"

// returnZero is the least program.
func returnZero() asm.Instructions {
	return asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}
}

func haveBTF() result {
	_, err := btf.LoadKernelSpec()
	return orMissing(err, "boot a kernel with CONFIG_DEBUG_INFO_BTF (/sys/kernel/btf/vmlinux)")
}

func haveRingBuffer() result { return orMissing(features.HaveMapType(ebpf.RingBuf), bpfMend) }
func haveLPM() result        { return orMissing(features.HaveMapType(ebpf.LPMTrie), bpfMend) }

// traced loads and attaches a program that does nothing to a BTF tracepoint.
func traced(tracepoint string) error {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.Tracing, AttachType: ebpf.AttachTraceRawTp, AttachTo: tracepoint,
		Instructions: returnZero(), License: "GPL",
	})
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	defer func() { _ = prog.Close() }()
	l, err := link.AttachTracing(link.TracingOptions{Program: prog, AttachType: ebpf.AttachTraceRawTp})
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	return l.Close()
}

func haveTracing() result { return orMissing(traced("sched_process_exec"), bpfMend) }

func haveFPUTracepoint() result {
	return orDegraded(traced("x86_fpu_regs_deactivated"), "x86 only: without it RandomX mining is found by its traffic alone")
}

func haveLSM() result {
	const mend = "boot with lsm=…,bpf and without lockdown; detection then also refuses, not only records"
	active, _ := os.ReadFile("/sys/kernel/security/lsm")
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.LSM, AttachType: ebpf.AttachLSMMac, AttachTo: "file_open",
		Instructions: returnZero(), License: "GPL",
	})
	if err != nil {
		return orDegraded(err, mend)
	}
	_ = prog.Close()
	if len(active) > 0 && !strings.Contains(string(active), "bpf") {
		return orDegraded(fmt.Errorf("programs load, but the active modules are %s", active), mend)
	}
	return yes("")
}

// haveTC attaches a program to the loopback of a namespace of its own: tcx
// first, clsact where that is unknown.
func haveTC() result {
	var tcx error
	err := inNamespace(unix.CLONE_NEWNET, func() error {
		prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, Instructions: returnZero(), License: "GPL"})
		if err != nil {
			return fmt.Errorf("load: %w", err)
		}
		defer func() { _ = prog.Close() }()
		l, err := link.AttachTCX(link.TCXOptions{Interface: loopback, Program: prog, Attach: ebpf.AttachTCXIngress})
		if err == nil {
			return l.Close()
		}
		tcx = err
		return addClsact(loopback)
	})
	switch {
	case err != nil:
		return no(errors.Join(tcx, err), bpfMend)
	case tcx != nil:
		return result{state: Degraded, tier: "clsact", detail: "no tcx: " + tcx.Error(), mend: "boot Linux 6.6 or newer for attachments that no other program can replace"}
	default:
		return result{state: OK, tier: "tcx"}
	}
}

func haveBPFFS(dir string) result {
	if fsMagic(dir) == unix.BPF_FS_MAGIC {
		return yes(dir)
	}
	return no(fmt.Errorf("%s is no bpffs", dir), "mount -t bpf bpf "+dir)
}

func haveTraceFS() result {
	const dir = "/sys/kernel/tracing"
	if fsMagic(dir) == unix.TRACEFS_MAGIC {
		return yes(dir)
	}
	return orDegraded(fmt.Errorf("%s is no tracefs: tracepoints without BTF are not seen", dir), "mount -t tracefs tracefs "+dir)
}
