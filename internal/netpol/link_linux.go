package netpol

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"hearth/internal/env"
)

const (
	insideLink = "eth0"
	maxLink    = unix.IFNAMSIZ - 1
)

var linkHash = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// linkName is the host's end of a slot's link: prefix and a hash.
func (c Config) linkName(slot env.SlotID) string {
	sum := sha256.Sum256([]byte(c.Instance + "/" + string(slot)))
	return (c.LinkPrefix + linkHash.EncodeToString(sum[:]))[:maxLink]
}

// linkAlias tells an operator, and a sweep, whose link it is.
func (c Config) linkAlias(slot env.SlotID) string { return c.aliasPrefix() + string(slot) }
func (c Config) aliasPrefix() string              { return "hearth:" + c.Instance + ":" }

// slotOfAlias is the inverse of linkAlias.
func (c Config) slotOfAlias(alias string) (env.SlotID, bool) {
	rest, ok := strings.CutPrefix(alias, c.aliasPrefix())
	if !ok {
		return "", false
	}
	slot, err := env.ParseSlotID(rest)
	return slot, err == nil
}

// randomMAC is a unicast, locally administered address (IEEE 802, 8.2).
func randomMAC() net.HardwareAddr {
	mac := make(net.HardwareAddr, 6)
	_, _ = rand.Read(mac) // never fails
	mac[0] = mac[0]&^1 | 2
	return mac
}

// veth makes the pair, both ends down: the host's here, the other in nsFD.
func veth(name, alias string, mtu int, nsFD int) (*netlink.Veth, error) {
	link := &netlink.Veth{
		LinkAttrs:        netlink.LinkAttrs{Name: name, MTU: mtu, HardwareAddr: randomMAC(), TxQLen: -1},
		PeerName:         insideLink,
		PeerHardwareAddr: randomMAC(),
		PeerNamespace:    netlink.NsFd(nsFD),
		PeerMTU:          uint32(mtu),
	}
	if err := netlink.LinkAdd(link); err != nil {
		if errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf("%w: link %s", env.ErrExists, name)
		}
		return nil, fmt.Errorf("add link %s: %w", name, err)
	}
	made, err := netlink.LinkByName(name)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("find link %s: %w", name, err), delLink(name))
	}
	link.Index = made.Attrs().Index
	if err := netlink.LinkSetAlias(made, alias); err != nil {
		return nil, errors.Join(fmt.Errorf("name link %s: %w", name, err), delLink(name))
	}
	return link, nil
}

// delLink removes the host's end and so both; an absent link is what is wanted.
func delLink(name string) error {
	link, err := netlink.LinkByName(name)
	if _, absent := errors.AsType[netlink.LinkNotFoundError](err); absent {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete link %s: %w", name, err)
	}
	return nil
}

// raiseHost brings the host's end up, with the route and the permanent
// neighbour that make ARP needless. IPv6 goes first: a raised link would speak.
func raiseHost(link *netlink.Veth, addr netip.Addr) error {
	name := link.Name
	settings := [][2]string{
		{"ipv4/conf/" + name + "/forwarding", "1"},
		{"ipv4/conf/" + name + "/rp_filter", "1"}, // strict: what comes in must be routed out there
		{"ipv4/conf/" + name + "/route_localnet", "0"},
		{"ipv4/conf/" + name + "/accept_redirects", "0"},
		{"ipv4/conf/" + name + "/send_redirects", "0"},
		{"ipv4/conf/" + name + "/accept_source_route", "0"},
	}
	if err := quietIPv6(name); err != nil {
		return err
	}
	for _, s := range settings {
		if err := setSysctl(s[0], s[1]); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("raise link %s: %w", name, err)
	}
	if err := netlink.RouteReplace(&netlink.Route{LinkIndex: link.Index, Dst: hostNet(addr), Scope: netlink.SCOPE_LINK}); err != nil {
		return fmt.Errorf("route %s to %s: %w", addr, name, err)
	}
	return permanent(nil, link.Index, addr, link.PeerHardwareAddr)
}

// furnish sets up the inside: lo, eth0, the default route, ping sockets.
func furnish(ns *os.File, link *netlink.Veth, addr, gateway netip.Addr, ids env.IDRange) error {
	if err := inNetNS(ns, func() error {
		// The file takes ids as the writer sees them, so the range's, not 0.
		return errors.Join(quietIPv6("all"), quietIPv6("default"), quietIPv6(insideLink),
			setSysctl("ipv4/ping_group_range", fmt.Sprintf("%d %d", ids.Base, ids.Base+ids.Size-1)))
	}); err != nil {
		return err
	}
	h, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink in the island: %w", err)
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo in the island: %w", err)
	}
	eth, err := h.LinkByName(insideLink)
	if err != nil {
		return fmt.Errorf("find %s in the island: %w", insideLink, err)
	}
	index := eth.Attrs().Index
	steps := []func() error{
		func() error { return h.LinkSetUp(lo) },
		func() error { return h.AddrAdd(eth, &netlink.Addr{IPNet: hostNet(addr)}) },
		func() error { return h.LinkSetUp(eth) },
		func() error {
			return h.RouteAdd(&netlink.Route{LinkIndex: index, Dst: hostNet(gateway), Scope: netlink.SCOPE_LINK, Src: addr.AsSlice()})
		},
		func() error {
			return h.RouteAdd(&netlink.Route{LinkIndex: index, Gw: gateway.AsSlice(), Flags: int(netlink.FLAG_ONLINK), Src: addr.AsSlice()})
		},
		func() error { return permanent(h, index, gateway, link.HardwareAddr) },
	}
	for i, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("set up the island of %s, step %d: %w", addr, i+1, err)
		}
	}
	return nil
}

// awaitUp waits until both ends carry packets, which the kernel decides a little
// after they were raised; a packet before that would be lost, not judged.
func awaitUp(ctx context.Context, ns *os.File, link *netlink.Veth) error {
	inside, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink in the island: %w", err)
	}
	defer inside.Close()
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	for {
		here, err := netlink.LinkByIndex(link.Index)
		if err != nil {
			return fmt.Errorf("find link %s: %w", link.Name, err)
		}
		there, err := inside.LinkByName(insideLink)
		if err != nil {
			return fmt.Errorf("find %s in the island: %w", insideLink, err)
		}
		if here.Attrs().OperState == netlink.OperUp && there.Attrs().OperState == netlink.OperUp {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for link %s to carry packets: %w", link.Name, ctx.Err())
		case <-time.After(200 * time.Microsecond):
		}
	}
}

// permanent pins a neighbour, in the handle's namespace or this one.
func permanent(h *netlink.Handle, index int, addr netip.Addr, mac net.HardwareAddr) error {
	set := netlink.NeighSet
	if h != nil {
		set = h.NeighSet
	}
	n := &netlink.Neigh{LinkIndex: index, Family: unix.AF_INET, State: netlink.NUD_PERMANENT, IP: addr.AsSlice(), HardwareAddr: mac}
	if err := set(n); err != nil {
		return fmt.Errorf("pin neighbour %s: %w", addr, err)
	}
	return nil
}

func hostNet(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(32, 32)}
}

// inNetNS runs f in a network namespace, on a thread that comes back. To throw
// the thread away would not do: it may be the main one, which Go keeps for ever,
// and with it the namespace.
func inNetNS(ns *os.File, f func() error) error {
	done := make(chan error)
	go func() { done <- visit(ns, f) }()
	return <-done
}

// visit is inNetNS on the goroutine's own thread. If that cannot come back, it
// stays locked and ends with its goroutine.
func visit(ns *os.File, f func() error) error {
	runtime.LockOSThread()
	own, err := os.Open("/proc/thread-self/ns/net")
	if err == nil {
		defer own.Close()
		err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
	}
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace: %w", err)
	}
	err = f()
	if back := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, fmt.Errorf("leave network namespace: %w", back))
	}
	runtime.UnlockOSThread()
	return err
}
