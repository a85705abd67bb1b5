package detect

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// playRole is the child's main.
func playRole(role string, args []string) int {
	var err error
	switch role {
	case "connect":
		err = playConnect(args)
	case "execs":
		err = playExecs(args)
	case "exit":
	default:
		err = fmt.Errorf("no role %q", role)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// playConnect brings up the loopback of its own namespace, connects to itself
// as often as asked, prints "local remote" of the last connection and keeps it
// until stdin ends. With "dual" the socket is an IPv6 one.
func playConnect(args []string) error {
	times, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	if err := loopbackUp(); err != nil {
		return err
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	var last *os.File
	var peer net.Conn
	var local string
	for range times {
		if last != nil {
			_, _ = last.Close(), peer.Close() // in this order: the listener's port stays free
		}
		if last, local, err = dial(l.Addr().(*net.TCPAddr).Port, len(args) > 1 && args[1] == "dual"); err != nil {
			return err
		}
		if peer, err = l.Accept(); err != nil {
			return err
		}
	}
	fmt.Println(local, l.Addr())
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

func dial(port int, dual bool) (*os.File, string, error) {
	family, to := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}})
	if dual {
		a := unix.SockaddrInet6{Port: port}
		mapped := netip.MustParseAddr("::ffff:127.0.0.1").As16()
		a.Addr = mapped
		family, to = unix.AF_INET6, &a
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, "", err
	}
	f := os.NewFile(uintptr(fd), "connection")
	if err := unix.Connect(fd, to); err != nil {
		return f, "", err
	}
	from, err := unix.Getsockname(fd)
	if err != nil {
		return f, "", err
	}
	switch a := from.(type) {
	case *unix.SockaddrInet4:
		return f, netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)).String(), nil
	case *unix.SockaddrInet6:
		return f, netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port)).String(), nil
	}
	return f, "", fmt.Errorf("address of %T", from)
}

// playExecs runs a copy of the test binary as often as asked, which ends at once.
func playExecs(args []string) error {
	times, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	for range times {
		cmd := exec.Command(args[1], args[2:]...)
		cmd.Env = append(os.Environ(), "DETECT_TEST_ROLE=exit")
		if err := cmd.Run(); err != nil {
			return err
		}
	}
	return nil
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var req struct {
		name  [unix.IFNAMSIZ]byte
		flags uint16
		_     [22]byte
	}
	copy(req.name[:], "lo")
	req.flags = unix.IFF_UP
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCSIFFLAGS, uintptr(unsafe.Pointer(&req))); e != 0 {
		return e
	}
	return nil
}

// slotCgroup makes a cgroup like a slot's, with a container's below it.
type slotCgroup struct {
	dir string // of the slot
	id  uint64
	ctr *os.File
}

func newSlotCgroup(t *testing.T) *slotCgroup {
	t.Helper()
	dir, err := os.MkdirTemp(cgroup2(t), "hearth-detect-test-")
	if err != nil {
		t.Fatalf("make cgroup: %v", err)
	}
	inner := filepath.Join(dir, "ctr")
	if err := os.Mkdir(inner, 0o755); err != nil {
		t.Fatalf("make cgroup: %v", err)
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		t.Fatalf("stat cgroup: %v", err)
	}
	f, err := os.Open(inner)
	if err != nil {
		t.Fatalf("open cgroup: %v", err)
	}
	c := &slotCgroup{dir: dir, id: st.Ino, ctr: f}
	t.Cleanup(func() { c.remove(t) })
	return c
}

func (c *slotCgroup) remove(t *testing.T) {
	t.Helper()
	_ = c.ctr.Close()
	_ = os.WriteFile(filepath.Join(c.dir, "cgroup.kill"), []byte("1"), 0)
	_ = os.WriteFile(filepath.Join(c.dir, "cgroup.freeze"), []byte("0"), 0)
	for _, dir := range []string{filepath.Join(c.dir, "ctr"), c.dir} {
		var err error
		for range 200 {
			if err = os.Remove(dir); err == nil || os.IsNotExist(err) {
				err = nil
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if err != nil {
			t.Errorf("remove cgroup %s: %v", dir, err)
		}
	}
}

func (c *slotCgroup) freeze() error {
	return os.WriteFile(filepath.Join(c.dir, "cgroup.freeze"), []byte("1"), 0)
}

func (c *slotCgroup) frozen() bool {
	b, err := os.ReadFile(filepath.Join(c.dir, "cgroup.events"))
	return err == nil && bytes.Contains(b, []byte("frozen 1"))
}

// cgroup2 is where the unified hierarchy is mounted.
func cgroup2(t *testing.T) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "cgroup2" {
			return f[1]
		}
	}
	t.Fatal("cgroup2 is not mounted")
	return ""
}

// child is the test binary playing a role.
type child struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// copyOfSelf puts the test binary under a name of its own.
func copyOfSelf(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	// A link keeps the file's pages, which an emulator has translated already.
	if original, err := os.Executable(); err == nil && os.Link(original, path) == nil {
		return path
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, self, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// start runs a role from a copy of the test binary with the given name, in a
// network namespace of its own; in a cgroup from its first instruction if c is
// set.
func start(t *testing.T, c *slotCgroup, name, role string, args ...string) *child {
	t.Helper()
	cmd := exec.Command(copyOfSelf(t, name), args...)
	cmd.Env = append(os.Environ(), "DETECT_TEST_ROLE="+role)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if c != nil {
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(c.ctr.Fd())
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start child: %v", err)
	}
	ch := &child{cmd: cmd, in: in, out: bufio.NewReader(out)}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return ch
}

// addresses reads what playConnect prints.
func (c *child) addresses(t *testing.T) (local, remote netip.AddrPort) {
	t.Helper()
	line, err := c.out.ReadString('\n')
	if err != nil {
		t.Fatalf("read from child: %v", err)
	}
	f := strings.Fields(line)
	return netip.MustParseAddrPort(f[0]), netip.MustParseAddrPort(f[1])
}
