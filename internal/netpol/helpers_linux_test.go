package netpol

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hearth/internal/env"
	"hearth/internal/kerneltest"
)

func TestMain(m *testing.M) { kerneltest.Main(m) }

const testInstance = "test"

func testConfig(t testing.TB) Config {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := Default()
	c.Instance, c.LinkPrefix, c.InitPath = testInstance, "tst", self
	c.PinDir = "/sys/fs/bpf/" + testInstance
	c.MaxIslands, c.FlowQuota, c.PayloadBytes = 64, 1024, 1<<20
	c.UnsafeAllowOpen = true
	c.DNSTimeout = time.Second
	return c
}

// worldAddrs are what the simulated internet answers for: public addresses and
// every kind of address that must be refused, so that refusals are not mere
// silence.
var worldAddrs = []string{
	"8.8.8.8", "1.1.1.1", "9.9.9.9", "93.184.215.14", "169.254.169.254", "169.254.170.2", "168.63.129.16",
	"100.100.100.200", "10.1.2.3", "172.16.5.5", "192.168.7.7", "100.64.9.9", "203.0.113.9", "198.18.0.9", "240.1.1.1",
}

func world(t testing.TB) *kerneltest.NS {
	t.Helper()
	var addrs []netip.Addr
	for _, a := range worldAddrs {
		addrs = append(addrs, netip.MustParseAddr(a))
	}
	return kerneltest.Internet(t, addrs...)
}

// A site is a node with a simulated internet.
type site struct {
	*Manager
	world *kerneltest.NS
}

func newSite(t testing.TB, edit func(*Config)) *site {
	t.Helper()
	kerneltest.Require(t, kerneltest.BPF(), kerneltest.UserNS())
	kerneltest.NoLeaks(t)
	w := world(t)
	cfg := testConfig(t)
	if edit != nil {
		edit(&cfg)
	}
	return openSite(t, cfg, w)
}

// openSite opens a Manager; what the site then has is cleaned up.
func openSite(t testing.TB, cfg Config, w *kerneltest.NS) *site {
	t.Helper()
	m, err := Open(cfg, quiet())
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	s := &site{m, w}
	t.Cleanup(func() {
		_, err := Remove(context.WithoutCancel(t.Context()), s.cfg, quiet())
		if err := errors.Join(s.Close(), err); err != nil {
			t.Errorf("Cleanup: %v", err)
		}
	})
	return s
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// A guest is an environment's end of an island.
type guest struct {
	*kerneltest.NS
	*Island
	slot env.SlotID
	m    *Manager
}

var testIDs = env.IDRange{Base: 1 << 30, Size: env.IDRangeSize}

// connected makes a whole island.
func (m *Manager) connected(ctx context.Context, slot env.SlotID) (*Island, error) {
	is, err := m.Create(ctx, slot, testIDs)
	if err != nil {
		return nil, err
	}
	return is, m.Connect(ctx, slot)
}

func (g *guest) ifindex() uint32 { return uint32(g.Record().IfIndex) }

func (s *site) guest(t testing.TB) *guest {
	t.Helper()
	slot := env.NewSlotID()
	is, err := s.connected(t.Context(), slot)
	if err != nil {
		t.Fatal(err)
	}
	return &guest{kerneltest.FromFile(t, is.NetNSFile()), is, slot, s.Manager}
}

var internet = env.EgressPolicy{Mode: env.EgressInternet}

func (g *guest) unlock(t testing.TB, class env.EgressPolicy, claim *env.EgressPolicy) {
	t.Helper()
	if err := g.m.Unlock(g.slot, class, claim); err != nil {
		t.Fatalf("Unlock: %v", err)
	}
}

func (g *guest) counters(t testing.TB) Counters {
	t.Helper()
	c, err := g.m.Counters(g.slot)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// refusedBy runs f and wants exactly these refusals on the way out.
func (g *guest) refusedBy(t testing.TB, want map[env.Reason]uint64, f func()) {
	t.Helper()
	before := g.counters(t)
	f()
	after := g.counters(t)
	got := map[env.Reason]uint64{}
	for r, n := range after.Drops {
		if d := n - before.Drops[r]; d != 0 {
			got[r] = d
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("refusals (-want +got):\n%s", diff)
	}
}

// send sends n datagrams to addr:port from inside.
func (g *guest) send(t testing.TB, n int, to string) {
	t.Helper()
	g.Do(t, func() error {
		c, err := net.Dial("udp4", to)
		if err != nil {
			return err
		}
		defer c.Close()
		for range n {
			_, _ = c.Write([]byte("probe")) // an ICMP error of an earlier one is no matter
		}
		return nil
	})
}

// echoWorld answers datagrams at each of the world's addresses; a socket bound
// to none of them would answer from another.
func (s *site) echoWorld(t testing.TB, port string) {
	t.Helper()
	for _, a := range worldAddrs {
		echoUDP(t, s.world, a+":"+port)
	}
}

// echoUDP answers every datagram in a namespace (nil is the node's) until the
// test ends.
func echoUDP(t testing.TB, ns *kerneltest.NS, addr string) {
	t.Helper()
	var pc net.PacketConn
	listen := func() (err error) {
		pc, err = net.ListenPacket("udp4", addr)
		return err
	}
	in(t, ns, listen)
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 65536)
		for {
			n, from, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = pc.WriteTo(b[:n], from)
		}
	}()
	t.Cleanup(func() { _ = pc.Close(); <-done })
}

// echoTCP does the same for connections.
func echoTCP(t testing.TB, ns *kerneltest.NS, addr string) {
	t.Helper()
	var l net.Listener
	in(t, ns, func() (err error) {
		l, err = net.Listen("tcp4", addr)
		return err
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(10 * time.Second))
				_, _ = io.Copy(c, struct{ io.Reader }{c}) // not by splice, whose pipes the runtime keeps
			}()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
}

func in(t testing.TB, ns *kerneltest.NS, f func() error) {
	t.Helper()
	if ns != nil {
		ns.Do(t, f)
		return
	}
	if err := f(); err != nil {
		t.Fatal(err)
	}
}

// answered reports whether a datagram to the address comes back.
func (g *guest) answered(to string) bool {
	return g.Try(func() error {
		c, err := net.Dial("udp4", to)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(300 * time.Millisecond))
		if _, err := c.Write([]byte("hello")); err != nil {
			return err
		}
		_, err = c.Read(make([]byte, 16))
		return err
	}) == nil
}

// connects reports whether TCP reaches the address and echoes.
func (g *guest) connects(to string) bool {
	return g.Try(func() error {
		c, err := net.DialTimeout("tcp4", to, 500*time.Millisecond)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(time.Second))
		if _, err := c.Write([]byte("hello")); err != nil {
			return err
		}
		_, err = io.ReadFull(c, make([]byte, 5))
		return err
	}) == nil
}
