package netpol

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"hearth/bpf"
	"hearth/internal/env"
)

// skbContext is the head of struct __sk_buff (linux/bpf.h), up to ifindex.
type skbContext struct {
	_       [10]uint32
	IfIndex uint32
	_       [5]uint32
}

const (
	passed  = 0xffffffff // TC_ACT_UNSPEC
	refused = 2          // TC_ACT_SHOT
)

// judgeFrame runs one program over one packet, without sending it.
func (g *guest) judgeFrame(t testing.TB, prog *ebpf.Program, b []byte) uint32 {
	t.Helper()
	ret, err := prog.Run(&ebpf.RunOptions{Data: b, Context: skbContext{IfIndex: g.ifindex()}})
	if err != nil {
		t.Fatalf("run %s: %v", prog, err)
	}
	return ret
}

// base is an ordinary datagram of the environment to 8.8.8.8:53.
func (g *guest) base() *frame {
	g.inner.mu.Lock()
	defer g.inner.mu.Unlock()
	return &frame{dstMAC: g.inner.hostMAC, srcMAC: g.inner.mac, etherType: 0x0800, version: 4,
		src: g.Address, dst: netip.MustParseAddr("8.8.8.8"), protocol: 17, id: 7, l4: udp(40000, 53, "question")}
}

// reply turns a frame around.
func reply(f *frame) *frame {
	f.src, f.dst = f.dst, f.src
	f.srcMAC, f.dstMAC = f.dstMAC, f.srcMAC
	return f
}

func to(addr string) func(*frame) { return func(f *frame) { f.dst = netip.MustParseAddr(addr) } }

// One row for each way out that somebody has tried.
func TestKernelVerdictsOfWhatTheEnvironmentSends(t *testing.T) {
	s := newSite(t, nil)
	neighbour := s.guest(t)
	for _, row := range []struct {
		name string
		edit func(*frame)
		want env.Reason // "" is allowed
	}{
		{"ordinary UDP", func(*frame) {}, ""},
		{"ordinary TCP", func(f *frame) { f.protocol, f.l4 = 6, tcp(40000, 443, 1, tcpSyn, "") }, ""},
		{"TCP Fast Open", func(f *frame) { f.protocol, f.l4 = 6, tcp(40000, 443, 1, tcpSyn, "data") }, ""},
		{"ping", func(f *frame) { f.protocol, f.l4 = 1, icmp(8, 0, 9, strings.Repeat("x", 56)) }, ""},
		{"padding behind the packet", func(f *frame) { f.trail = make([]byte, 20) }, ""},
		{"the resolver", func(f *frame) { f.dst = s.cfg.gateway() }, ""},
		{"the resolver by TCP", func(f *frame) { f.dst, f.protocol, f.l4 = s.cfg.gateway(), 6, tcp(1, 53, 1, tcpSyn, "") }, ""},

		{"metadata", to("169.254.169.254"), env.ReasonMetadata},
		{"metadata of containers", to("169.254.170.2"), env.ReasonMetadata},
		{"metadata of pods", to("169.254.170.23"), env.ReasonMetadata},
		{"Azure's platform", to("168.63.129.16"), env.ReasonMetadata},
		{"Alibaba's metadata, inside the pool", to("100.100.100.200"), env.ReasonMetadata},
		{"Oracle's metadata", to("192.0.0.192"), env.ReasonMetadata},
		{"10/8", to("10.0.0.1"), env.ReasonPrivate},
		{"172.16/12, last", to("172.31.255.255"), env.ReasonPrivate},
		{"behind 172.16/12", to("172.32.0.0"), ""},
		{"192.168/16", to("192.168.0.1"), env.ReasonPrivate},
		{"shared address space", to("100.64.0.1"), env.ReasonPrivate},
		{"link-local", to("169.254.1.1"), env.ReasonSpecial},
		{"this network", to("0.1.2.3"), env.ReasonSpecial},
		{"loopback", to("127.0.0.1"), env.ReasonSpecial},
		{"6to4 relay", to("192.88.99.1"), env.ReasonSpecial},
		{"reserved", to("240.0.0.1"), env.ReasonSpecial},
		{"neighbour", func(f *frame) { f.dst = neighbour.Address }, env.ReasonNeighbour},
		{"address of the pool that nobody has", to("100.111.255.254"), env.ReasonNeighbour},
		{"node by its uplink", to("192.0.2.2"), env.ReasonNode},
		{"broadcast of the node's network", to("192.0.2.255"), env.ReasonNode},
		{"gateway, another port", func(f *frame) { f.dst, f.l4 = s.cfg.gateway(), udp(1, 54, "") }, env.ReasonNode},
		{"gateway, ping", func(f *frame) { f.dst, f.protocol, f.l4 = s.cfg.gateway(), 1, icmp(8, 0, 1, "") }, env.ReasonNode},
		{"itself", func(f *frame) { f.dst = f.src }, env.ReasonNeighbour},
		{"multicast", to("224.0.0.251"), env.ReasonMulticast},
		{"limited broadcast", to("255.255.255.255"), env.ReasonMulticast},
		{"broadcast frame with a public address", func(f *frame) { f.dstMAC = [6]byte{255, 255, 255, 255, 255, 255} }, env.ReasonMulticast},
		{"multicast frame with a public address", func(f *frame) { f.dstMAC = [6]byte{1, 0, 0x5e, 0, 0, 1} }, env.ReasonMulticast},

		{"another source address", func(f *frame) { f.src = netip.MustParseAddr("8.8.4.4") }, env.ReasonSpoof},
		{"a neighbour's address", func(f *frame) { f.src = neighbour.Address }, env.ReasonSpoof},
		{"another source MAC", func(f *frame) { f.srcMAC[5] ^= 1 }, env.ReasonSpoof},
		{"another destination MAC", func(f *frame) { f.dstMAC[5] ^= 1 }, env.ReasonSpoof},

		{"ARP", func(f *frame) { f.etherType = 0x0806 }, env.ReasonEtherType},
		{"IPv6", func(f *frame) { f.etherType, f.version, f.trail = 0x86dd, 6, make([]byte, 40) }, env.ReasonEtherType},
		{"VLAN", func(f *frame) { f.etherType = 0x8100 }, env.ReasonEtherType},
		{"QinQ", func(f *frame) { f.etherType = 0x88a8 }, env.ReasonEtherType},
		{"PPPoE", func(f *frame) { f.etherType = 0x8864 }, env.ReasonEtherType},
		{"MPLS", func(f *frame) { f.etherType = 0x8847 }, env.ReasonEtherType},
		{"LLC", func(f *frame) { f.etherType = 60 }, env.ReasonEtherType},

		{"SCTP", func(f *frame) { f.protocol = 132 }, env.ReasonProtocol},
		{"DCCP", func(f *frame) { f.protocol = 33 }, env.ReasonProtocol},
		{"UDP-Lite", func(f *frame) { f.protocol = 136 }, env.ReasonProtocol},
		{"GRE", func(f *frame) { f.protocol = 47 }, env.ReasonProtocol},
		{"IP in IP", func(f *frame) { f.protocol = 4 }, env.ReasonProtocol},
		{"IPv6 in IP (6to4, ISATAP)", func(f *frame) { f.protocol = 41 }, env.ReasonProtocol},
		{"ESP", func(f *frame) { f.protocol = 50 }, env.ReasonProtocol},
		{"IGMP", func(f *frame) { f.protocol = 2 }, env.ReasonProtocol},
		{"IPv6 header under IPv4's ethertype", func(f *frame) { f.version = 6 }, env.ReasonProtocol},
		{"length beyond the frame", func(f *frame) { f.length = 1500 }, env.ReasonProtocol},
		{"length below the header", func(f *frame) { f.length = 10 }, env.ReasonProtocol},
		{"UDP without a header", func(f *frame) { f.l4 = f.l4[:6] }, env.ReasonProtocol},
		{"UDP longer than its packet", func(f *frame) { f.l4[5] = 200 }, env.ReasonProtocol},
		{"TCP header longer than its packet", func(f *frame) { f.protocol, f.l4 = 6, tcp(1, 443, 1, tcpSyn, ""); f.l4[12] = 15 << 4 }, env.ReasonProtocol},
		{"TCP header shorter than one", func(f *frame) { f.protocol, f.l4 = 6, tcp(1, 443, 1, tcpSyn, ""); f.l4[12] = 4 << 4 }, env.ReasonProtocol},

		{"loose source route", func(f *frame) { f.options = []byte{131, 7, 4, 10, 0, 0, 1, 0} }, env.ReasonOption},
		{"record route", func(f *frame) { f.options = []byte{7, 7, 4, 0, 0, 0, 0, 0} }, env.ReasonOption},
		{"router alert", func(f *frame) { f.options = []byte{148, 4, 0, 0} }, env.ReasonOption},
		{"reserved flag", func(f *frame) { f.frag = 0x8000 }, env.ReasonOption},

		{"later fragment without a first", func(f *frame) { f.id, f.frag = 99, 185 }, env.ReasonFragment},
		{"tiny first fragment", func(f *frame) { f.protocol, f.frag, f.l4 = 6, 0x2000, tcp(1, 443, 1, tcpSyn, "")[:8] }, env.ReasonFragment},
		{"fragment over the ports", func(f *frame) { f.frag = 1 }, env.ReasonFragment},
		{"ping of death", func(f *frame) { f.frag = 8190; f.l4 = make([]byte, 1400) }, env.ReasonFragment},

		{"ping too large", func(f *frame) { f.protocol, f.l4 = 1, icmp(8, 0, 9, strings.Repeat("x", 200)) }, env.ReasonICMP},
		{"echo reply unasked", func(f *frame) { f.protocol, f.l4 = 1, icmp(0, 0, 9, "") }, env.ReasonICMP},
		{"ICMP unreachable as a tunnel", func(f *frame) { f.protocol, f.l4 = 1, icmp(3, 3, 0, strings.Repeat("x", 28)) }, env.ReasonICMP},
		{"ICMP redirect", func(f *frame) { f.protocol, f.l4 = 1, icmp(5, 1, 0, strings.Repeat("x", 28)) }, env.ReasonICMP},
		{"ICMP timestamp", func(f *frame) { f.protocol, f.l4 = 1, icmp(13, 0, 0, strings.Repeat("x", 12)) }, env.ReasonICMP},
		{"ping in fragments", func(f *frame) { f.protocol, f.frag, f.l4 = 1, 0x2000, icmp(8, 0, 9, "") }, env.ReasonICMP},
	} {
		t.Run(row.name, func(t *testing.T) {
			g := s.guest(t)
			g.unlock(t, internet, nil)
			f := g.base()
			row.edit(f)
			want, ret := map[env.Reason]uint64{}, uint32(passed)
			if row.want != "" {
				want[row.want], ret = 1, refused
			}
			g.refusedBy(t, want, func() {
				if got := g.judgeFrame(t, s.kernel.IslandOut, f.bytes()); got != ret {
					t.Errorf("returned %#x, want %#x", got, ret)
				}
			})
			if err := s.Destroy(t.Context(), g.slot); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestKernelVerdictsOfWhatIsSentToTheEnvironment(t *testing.T) {
	s := newSite(t, nil)
	g := s.guest(t)
	g.unlock(t, internet, nil)
	sent := g.base()
	if g.judgeFrame(t, s.kernel.IslandOut, sent.bytes()) != passed {
		t.Fatal("the question was refused")
	}
	about := func(f *frame) string { return string(f.bytes()[14 : 14+28]) }
	for _, row := range []struct {
		name string
		edit func(*frame)
		want env.Reason
	}{
		{"the answer", func(f *frame) { f.l4 = udp(53, 40000, "answer") }, ""},
		{"from another port", func(f *frame) { f.l4 = udp(54, 40000, "answer") }, env.ReasonPolicy},
		{"to another port", func(f *frame) { f.l4 = udp(53, 40001, "answer") }, env.ReasonPolicy},
		{"from another host", func(f *frame) { f.src = netip.MustParseAddr("8.8.4.4"); f.l4 = udp(53, 40000, "") }, env.ReasonPolicy},
		{"to another address", func(f *frame) { f.dst = netip.MustParseAddr("100.96.0.77") }, env.ReasonSpoof},
		{"a connection from outside", func(f *frame) { f.protocol, f.l4 = 6, tcp(53, 40000, 1, tcpSyn, "") }, env.ReasonPolicy},
		{"a ping from outside", func(f *frame) { f.protocol, f.l4 = 1, icmp(8, 0, 1, "") }, env.ReasonICMP},
		{"an error about the question", func(f *frame) {
			f.src, f.protocol, f.l4 = netip.MustParseAddr("10.9.9.9"), 1, icmp(3, 1, 0, about(sent))
		}, ""},
		{"an error about what was never sent", func(f *frame) {
			other := *sent
			other.l4 = udp(1, 2, "")
			f.protocol, f.l4 = 1, icmp(3, 1, 0, about(&other))
		}, env.ReasonPolicy},
		{"an error about another's packet", func(f *frame) {
			other := *sent
			other.src = netip.MustParseAddr("8.8.4.4")
			f.protocol, f.l4 = 1, icmp(3, 1, 0, about(&other))
		}, env.ReasonICMP},
		{"a redirect", func(f *frame) { f.protocol, f.l4 = 1, icmp(5, 1, 0, about(sent)) }, env.ReasonICMP},
		{"ARP", func(f *frame) { f.etherType = 0x0806 }, env.ReasonEtherType},
		{"IPv6", func(f *frame) { f.etherType, f.trail = 0x86dd, make([]byte, 40) }, env.ReasonEtherType},
		{"later fragment without a first", func(f *frame) { f.frag = 185 }, env.ReasonFragment},
	} {
		t.Run(row.name, func(t *testing.T) {
			f := reply(g.base())
			row.edit(f)
			before, _ := s.Counters(g.slot)
			ret := g.judgeFrame(t, s.kernel.IslandIn, f.bytes())
			after, _ := s.Counters(g.slot)
			if row.want == "" {
				if ret != passed || after.AllowedIn != before.AllowedIn+1 {
					t.Errorf("returned %#x, refusals %v: want it allowed", ret, after.DropsIn)
				}
				return
			}
			if ret != refused || after.DropsIn[row.want] != before.DropsIn[row.want]+1 {
				t.Errorf("returned %#x, refusals %v: want one more of %s", ret, after.DropsIn, row.want)
			}
		})
	}
}

func TestKernelFragmentsFollowTheirAcceptedFirst(t *testing.T) {
	s := newSite(t, nil)
	g := s.guest(t)
	g.unlock(t, internet, nil)
	first := g.base()
	first.frag, first.l4 = 0x2000, append(udp(40000, 53, ""), make([]byte, 1000)...)
	first.l4[4], first.l4[5] = 8, 0 // the datagram is longer than its first fragment
	later := g.base()
	later.frag, later.l4 = 126, make([]byte, 500)
	if g.judgeFrame(t, s.kernel.IslandOut, first.bytes()) != passed || g.judgeFrame(t, s.kernel.IslandOut, later.bytes()) != passed {
		t.Errorf("a whole datagram in fragments was refused: %+v", g.counters(t))
	}
	// A policy edit holds for the rest of a datagram too.
	none := env.EgressPolicy{Mode: env.EgressNone}
	if err := s.SetPolicy(g.slot, none, nil); err != nil {
		t.Fatal(err)
	}
	g.refusedBy(t, map[env.Reason]uint64{env.ReasonPolicy: 1}, func() { g.judgeFrame(t, s.kernel.IslandOut, later.bytes()) })
}

func TestKernelLinkWithoutARecordIsShut(t *testing.T) {
	s := newSite(t, nil)
	g := s.guest(t)
	g.unlock(t, internet, nil)
	f := g.base().bytes()
	var rec bpf.IslandIsland
	if err := s.kernel.Islands.Lookup(g.ifindex(), &rec); err != nil {
		t.Fatal(err)
	}
	for name, lose := range map[string]func() error{
		"policy entries": func() error {
			rec.ClassPolicy, rec.ClaimPolicy = 4_000_000_000, 4_000_000_000
			return s.kernel.Islands.Update(g.ifindex(), rec, ebpf.UpdateLock)
		},
		"record": func() error { return s.kernel.Islands.Delete(g.ifindex()) },
	} {
		if err := lose(); err != nil {
			t.Fatal(err)
		}
		if got := g.judgeFrame(t, s.kernel.IslandOut, f); got != refused {
			t.Errorf("without %s the program returned %#x", name, got)
		}
	}
	if n, err := s.strays(); err != nil || n == 0 {
		t.Errorf("strays = %d, %v: want them counted", n, err)
	}
}
