package kerneltest

import (
	"errors"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

// BPF is loading a classifier program.
func BPF() Feature {
	return Feature{"bpf", func() string {
		p, err := nothing()
		if err != nil {
			return reason(err)
		}
		return reason(p.Close())
	}}
}

// TCX is attaching by link, which Linux has since 6.6.
func TCX() Feature {
	return Feature{"tcx", func() string {
		p, err := nothing()
		if err != nil {
			return reason(err)
		}
		defer p.Close()
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return reason(err)
		}
		l, err := link.AttachTCX(link.TCXOptions{Interface: lo.Attrs().Index, Program: p, Attach: ebpf.AttachTCXIngress})
		if errors.Is(err, ebpf.ErrNotSupported) {
			return "needs Linux 6.6"
		}
		if err != nil {
			return reason(err)
		}
		return reason(l.Close())
	}}
}

// UserNS is making user namespaces.
func UserNS() Feature {
	return Feature{"userns", func() string {
		b, err := os.ReadFile("/proc/sys/user/max_user_namespaces")
		if err != nil || string(b) == "0\n" {
			return "user.max_user_namespaces is 0"
		}
		return ""
	}}
}

func nothing() (*ebpf.Program, error) {
	return ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:         ebpf.SchedCLS,
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()},
		License:      "GPL",
	})
}

func reason(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
