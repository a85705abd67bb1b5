package ctrd

import (
	"slices"
	"syscall"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// refusedSyscalls are taken out of containerd's default profile, wherever a
// version of it may allow them: large kernel surface that no guest needs, and
// socketcall; see noSocketcall.
var refusedSyscalls = []string{
	"io_uring_setup", "io_uring_enter", "io_uring_register",
	"keyctl", "add_key", "request_key",
	"bpf", "userfaultfd", "perf_event_open",
	"socketcall",
}

// socketFamilies that may be opened: AF_UNIX, AF_INET, AF_INET6, AF_NETLINK
// (include/linux/socket.h). So no AF_PACKET, AF_VSOCK, AF_ALG, AF_XDP, AF_RDS,
// AF_TIPC, AF_KEY and the rest.
var socketFamilies = []uint64{1, 2, 10, 16}

// pairFamilies are the families of which a connected pair may be made: AF_UNIX.
// No other that may be opened can do it, but the kernel makes both sockets
// before it asks the family (__sys_socketpair in net/socket.c), and loads the
// module of one that is not there (__sock_create).
var pairFamilies = []uint64{1}

// seccompProfile is containerd's default, narrowed. The default depends on the
// spec's capabilities: without SYS_ADMIN there is no mount, unshare, setns and
// no clone of namespaces.
func seccompProfile(spec *specs.Spec) *specs.LinuxSeccomp {
	p := seccomp.DefaultProfile(spec)
	// x32 is a second system call table that nothing uses.
	p.Architectures = slices.DeleteFunc(p.Architectures, func(a specs.Arch) bool { return a == specs.ArchX32 })
	refused := append([]string{"socket", "socketpair", "fallocate"}, refusedSyscalls...)
	kept := make([]specs.LinuxSyscall, 0, len(p.Syscalls)+len(socketFamilies)+len(pairFamilies))
	for _, rule := range p.Syscalls {
		rule.Names = slices.DeleteFunc(slices.Clone(rule.Names), func(n string) bool {
			return rule.Action == specs.ActAllow && slices.Contains(refused, n)
		})
		if len(rule.Names) > 0 {
			kept = append(kept, rule)
		}
	}
	for _, family := range socketFamilies {
		kept = append(kept, allowFamily("socket", family))
	}
	for _, family := range pairFamilies {
		kept = append(kept, allowFamily("socketpair", family))
	}
	kept = append(kept, noReservation()...)
	p.Syscalls = append(kept, noSocketcall())
	return p
}

// Modes of fallocate that give space back (include/uapi/linux/falloc.h).
const (
	fallocPunchHole     = 0x02
	fallocCollapseRange = 0x08
)

// noReservation refuses to take space on a disk without writing it: that is done
// in an instant, faster than whoever watches the disk can stop it. What gives
// space back is allowed. EOPNOTSUPP is what filesystems without reservations
// say, and programs and libcs write instead.
func noReservation() []specs.LinuxSyscall {
	errno := uint(syscall.EOPNOTSUPP)
	rule := func(action specs.LinuxSeccompAction, errno *uint, mask, value uint64) specs.LinuxSyscall {
		return specs.LinuxSyscall{
			Names: []string{"fallocate"}, Action: action, ErrnoRet: errno,
			Args: []specs.LinuxSeccompArg{{Index: 1, Value: mask, ValueTwo: value, Op: specs.OpMaskedEqual}},
		}
	}
	return []specs.LinuxSyscall{
		rule(specs.ActAllow, nil, fallocPunchHole, fallocPunchHole),
		rule(specs.ActAllow, nil, fallocCollapseRange, fallocCollapseRange),
		rule(specs.ActErrno, &errno, fallocPunchHole|fallocCollapseRange, 0),
	}
}

// noSocketcall refuses the call by which a 32-bit program would get round the
// socket families, since its arguments are behind a pointer. To leave it out
// refuses nothing: libseccomp takes a rule for socket as one for socketcall too,
// of every family (abi_rule_add in its src/arch-x86.c). A rule without a
// condition wins over those. ENOSYS tells a libc to use the direct calls.
func noSocketcall() specs.LinuxSyscall {
	errno := uint(syscall.ENOSYS)
	return specs.LinuxSyscall{Names: []string{"socketcall"}, Action: specs.ActErrno, ErrnoRet: &errno}
}

func allowFamily(call string, family uint64) specs.LinuxSyscall {
	return specs.LinuxSyscall{
		Names:  []string{call},
		Action: specs.ActAllow,
		Args:   []specs.LinuxSeccompArg{{Index: 0, Value: family, Op: specs.OpEqualTo}},
	}
}
