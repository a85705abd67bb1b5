package netpol

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"github.com/cilium/ebpf/ringbuf"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"hearth/bpf"
	"hearth/internal/env"
)

func itoa(n int) string { return strconv.Itoa(n) }

func mustPrefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// raw sends frames by a packet socket, past everything of the guest's kernel.
func (g *guest) raw(t testing.TB, frames ...[]byte) {
	t.Helper()
	g.Do(t, func() error {
		eth, err := net.InterfaceByName(insideLink)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for _, f := range frames {
			if err := unix.Sendto(fd, f, 0, &unix.SockaddrLinklayer{Ifindex: eth.Index, Protocol: 0x0008}); err != nil {
				return err
			}
		}
		return nil
	})
}

func TestKernelIslandJudgesFramesOfPacketSockets(t *testing.T) {
	s := newSite(t, nil)
	g := s.guest(t)
	g.unlock(t, internet, nil)
	for reason, edit := range map[env.Reason]func(*frame){
		env.ReasonSpoof:     func(f *frame) { f.src = netip.MustParseAddr("8.8.4.4") },
		env.ReasonMetadata:  to("169.254.169.254"),
		env.ReasonProtocol:  func(f *frame) { f.protocol = 47 },
		env.ReasonFragment:  func(f *frame) { f.frag = 185 },
		env.ReasonOption:    func(f *frame) { f.options = []byte{148, 4, 0, 0} },
		env.ReasonMulticast: to("224.0.0.251"),
		env.ReasonICMP:      func(f *frame) { f.protocol, f.l4 = 1, icmp(13, 0, 0, "") },
	} {
		f := g.base()
		edit(f)
		g.refusedBy(t, map[env.Reason]uint64{reason: 2}, func() { g.raw(t, f.bytes(), f.bytes()) })
	}
	// A tagged frame reaches the program untagged, with the tag beside it.
	tagged := g.base().bytes()
	tagged = append(tagged[:12:12], append([]byte{0x81, 0, 0, 5}, tagged[12:]...)...)
	arp := g.base()
	arp.etherType = 0x0806
	v6 := g.base()
	v6.etherType, v6.version = 0x86dd, 6
	g.refusedBy(t, map[env.Reason]uint64{env.ReasonEtherType: 3}, func() { g.raw(t, tagged, arp.bytes(), v6.bytes()) })
	g.refusedBy(t, map[env.Reason]uint64{}, func() { g.raw(t, g.base().bytes()) }) // control: the same frame unedited passes
	if c := g.counters(t); c.Allowed != 1 {
		t.Errorf("%d packets passed, want the control alone", c.Allowed)
	}
}

func TestKernelFloodOfNewFlowsHurtsOnlyItsOwnIsland(t *testing.T) {
	s := newSite(t, func(c *Config) { c.NewFlowRate = 10 })
	s.echoWorld(t, "7")
	flooder, other := s.guest(t), s.guest(t)
	flooder.unlock(t, internet, nil)
	other.unlock(t, internet, nil)
	f := flooder.base()
	var frames [][]byte
	for i := range uint16(500) {
		f.l4 = udp(1000+i, 7, "x")
		frames = append(frames, f.bytes())
	}
	flooder.raw(t, frames...)
	if c := flooder.counters(t); c.Drops[env.ReasonQuota] < 400 || c.Drops[env.ReasonQuota]+c.Allowed != 500 {
		t.Errorf("flooder: %+v", c)
	}
	if !other.answered("8.8.8.8:7") {
		t.Error("the neighbour of a flooder is shut out")
	}
}

func TestKernelFirstPayloadOfBothDirectionsIsCaptured(t *testing.T) {
	s := newSite(t, nil)
	echoTCP(t, s.world, "8.8.8.8:3333")
	g := s.guest(t)
	g.unlock(t, internet, nil)
	r, err := ringbuf.NewReader(s.PayloadMap())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if !g.connects("8.8.8.8:3333") {
		t.Fatal("8.8.8.8:3333 does not answer")
	}
	got := map[uint8]bpf.IslandPayloadEvent{}
	r.SetDeadline(time.Now().Add(time.Second))
	for len(got) < 2 {
		rec, err := r.Read()
		if err != nil {
			t.Fatalf("after %d directions: %v", len(got), err)
		}
		var e bpf.IslandPayloadEvent
		if err := binary.Read(bytes.NewReader(rec.RawSample), binary.NativeEndian, &e); err != nil {
			t.Fatal(err)
		}
		got[e.Direction] = e
	}
	for way, e := range got {
		if string(e.Data[:e.Len]) != "hello" || e.HasIsn != 1 || e.Seq != e.Isn || e.NetId != uint32(g.NetID) ||
			wordAddr(e.LocalAddr) != g.Address || wordAddr(e.RemoteAddr).String() != "8.8.8.8" || hostPort(e.RemotePort) != 3333 || e.WireLen != 5 {
			t.Errorf("direction %d: %+v", way, e)
		}
	}
	if c := g.counters(t); c.Payloads != 2 || c.PayloadsShed+c.PayloadsLost != 0 {
		t.Errorf("counted %d sent, %d shed, %d lost; want 2 sent", c.Payloads, c.PayloadsShed, c.PayloadsLost)
	}
}

func TestKernelPayloadFlooderLosesItsOwnRecordsAndTheyAreCounted(t *testing.T) {
	s := newSite(t, func(c *Config) { c.PayloadRate = 10; c.NewFlowRate = 1 << 20; c.FlowQuota = 1000 })
	flooder, other := s.guest(t), s.guest(t)
	flooder.unlock(t, internet, nil)
	other.unlock(t, internet, nil)
	f := flooder.base()
	for i := range uint16(300) {
		f.l4 = udp(1000+i, 7, "x")
		flooder.judgeFrame(t, s.kernel.IslandOut, f.bytes())
	}
	other.judgeFrame(t, s.kernel.IslandOut, other.base().bytes())
	c := flooder.counters(t)
	if c.Payloads+c.PayloadsShed != 300 || c.PayloadsShed < 250 || c.PayloadsLost != 0 {
		t.Errorf("flooder: %d sent, %d shed, %d lost of 300", c.Payloads, c.PayloadsShed, c.PayloadsLost)
	}
	if c := other.counters(t); c.Payloads != 1 || c.PayloadsShed != 0 {
		t.Errorf("its neighbour: %+v", c)
	}
}

func TestKernelResolverServesOpenIslandsAndStripsPrivateAnswers(t *testing.T) {
	s := newSite(t, func(c *Config) { c.Resolvers = []netip.AddrPort{netip.MustParseAddrPort("9.9.9.9:53")} })
	var pc net.PacketConn
	s.world.Do(t, func() (err error) { pc, err = net.ListenPacket("udp4", "9.9.9.9:53"); return err })
	up := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		m.Answer = []dns.RR{record(t, q.Question[0].Name+" 60 IN A 93.184.215.14"), record(t, q.Question[0].Name+" 60 IN A 10.1.2.3")}
		_ = w.WriteMsg(m)
	})}
	upDone := make(chan struct{})
	go func() { defer close(upDone); _ = up.ActivateAndServe() }()
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	names, err := s.ListenDNS(ctx)
	if err != nil {
		t.Fatal(err)
	}
	go func() { served <- names.Serve(ctx) }()
	defer func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("ServeDNS: %v", err)
		}
		_ = up.Shutdown()
		<-upDone
	}()
	g := s.guest(t)
	g.unlock(t, internet, nil)
	ask := func(g *guest, network string) (m *dns.Msg, err error) {
		err = g.Try(func() error {
			c, err := net.DialTimeout(network, netip.AddrPortFrom(s.cfg.gateway(), 53).String(), time.Second)
			if err != nil {
				return err
			}
			conn := &dns.Conn{Conn: c}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(time.Second))
			if err := conn.WriteMsg(question("x.test.", dns.TypeA)); err != nil {
				return err
			}
			m, err = conn.ReadMsg()
			return err
		})
		return m, err
	}
	time.Sleep(50 * time.Millisecond) // until both sockets listen
	for _, network := range []string{"udp4", "tcp4"} {
		m, err := ask(g, network)
		if err != nil || len(m.Answer) != 1 || m.Answer[0].(*dns.A).A.String() != "93.184.215.14" {
			t.Errorf("%s: %v, %v; want the public address alone", network, m, err)
		}
	}
	mute := s.guest(t)
	mute.unlock(t, internet, &env.EgressPolicy{Mode: env.EgressNone})
	mute.refusedBy(t, map[env.Reason]uint64{env.ReasonPolicy: 1}, func() {
		if m, err := ask(mute, "udp4"); err == nil {
			t.Errorf("mode none was answered: %v", m)
		}
	})
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(s.Collector())
	if _, err := reg.Gather(); err != nil {
		t.Errorf("metrics: %v", err)
	}
}
