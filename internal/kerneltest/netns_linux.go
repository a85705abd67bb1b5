package kerneltest

import (
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A NS is a network namespace of a test.
type NS struct{ file *os.File }

// Netns makes an empty network namespace that goes with the test.
func Netns(t testing.TB) *NS {
	t.Helper()
	ns := &NS{}
	if err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		ns.file = f
		return err
	}); err != nil {
		t.Fatalf("make network namespace: %v", err)
	}
	t.Cleanup(func() { _ = ns.file.Close() })
	ns.Do(t, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	return ns
}

// FromFile is a namespace that something else owns; the file is duplicated.
func FromFile(t testing.TB, f *os.File) *NS {
	t.Helper()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("duplicate namespace: %v", err)
	}
	ns := &NS{os.NewFile(uintptr(fd), f.Name())}
	t.Cleanup(func() { _ = ns.file.Close() })
	return ns
}

// File is the namespace's descriptor.
func (n *NS) File() *os.File { return n.file }

// Try runs f inside, on a thread of its own, and gives its error. Sockets that
// f makes stay inside wherever they are used later.
func (n *NS) Try(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return f()
	})
}

// Do is Try that fails the test.
func (n *NS) Do(t testing.TB, f func() error) {
	t.Helper()
	if err := n.Try(f); err != nil {
		t.Fatalf("in network namespace: %v", err)
	}
}

// onThread runs f on a thread that ends with it, so that nothing else inherits
// its namespace.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}

// Internet makes a namespace that has every given address and is the default
// route of this one, over a veth with 192.0.2.2 on this side and 192.0.2.1 on
// the other. Nothing can leave it.
func Internet(t testing.TB, addrs ...netip.Addr) *NS {
	t.Helper()
	world := Netns(t)
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "uplink", MTU: 1500, TxQLen: -1}, PeerName: "world", PeerNamespace: netlink.NsFd(world.file.Fd())}
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatalf("add uplink: %v", err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(link) })
	world.Do(t, func() error {
		peer, err := netlink.LinkByName("world")
		if err != nil {
			return err
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		for _, a := range addrs {
			if err := netlink.AddrAdd(lo, &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(32, 32)}}); err != nil {
				return err
			}
		}
		if err := netlink.AddrAdd(peer, uplinkAddr(1)); err != nil {
			return err
		}
		return netlink.LinkSetUp(peer)
	})
	if err := netlink.AddrAdd(link, uplinkAddr(2)); err != nil {
		t.Fatalf("address uplink: %v", err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		t.Fatalf("raise uplink: %v", err)
	}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Index, Gw: net.IPv4(192, 0, 2, 1)}); err != nil {
		t.Fatalf("route by uplink: %v", err)
	}
	return world
}

// uplinkAddr is 192.0.2.last/24.
func uplinkAddr(last byte) *netlink.Addr {
	return &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(192, 0, 2, last).To4(), Mask: net.CIDRMask(24, 32)}}
}
