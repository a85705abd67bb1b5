package netpol

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// Questions at a steady pace, while one resolver follows the other on the port,
// again and again: each gets its answer, though nobody asks twice.
func TestKernelResolverHandsItsPortOverWithoutLosingAQuestion(t *testing.T) {
	s := newSite(t, func(c *Config) { c.Resolvers = []netip.AddrPort{netip.MustParseAddrPort("9.9.9.9:53")} })
	var pc net.PacketConn
	s.world.Do(t, func() (err error) { pc, err = net.ListenPacket("udp4", "9.9.9.9:53"); return err })
	up := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		time.Sleep(50 * time.Millisecond) // so that questions are under way at each change
		m := new(dns.Msg).SetReply(q)
		m.Answer = []dns.RR{record(t, q.Question[0].Name+" 60 IN A 93.184.215.14")}
		_ = w.WriteMsg(m)
	})}
	upDone := make(chan struct{})
	go func() { defer close(upDone); _ = up.ActivateAndServe() }()
	defer func() { _ = up.Shutdown(); <-upDone }()

	serve := func() (stop func()) {
		ctx, cancel := context.WithCancel(t.Context())
		names, err := s.ListenDNS(ctx)
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan error, 1)
		go func() { served <- names.Serve(ctx) }()
		return func() {
			cancel()
			if err := <-served; err != nil {
				t.Errorf("serve: %v", err)
			}
		}
	}
	stop := serve()
	g := s.guest(t)
	g.unlock(t, internet, nil)
	asking, enough := context.WithCancel(t.Context())
	var asked, slowest atomic.Int64
	var askers sync.WaitGroup
	for range 12 {
		askers.Go(func() {
			for ; asking.Err() == nil; asked.Add(1) {
				took, err := askOnce(g, s.cfg.gateway())
				if err != nil {
					t.Errorf("a question: %v", err)
				}
				if old := slowest.Load(); int64(took) > old {
					slowest.CompareAndSwap(old, int64(took))
				}
			}
		})
	}
	for range 10 {
		time.Sleep(100 * time.Millisecond)
		next := serve()
		time.Sleep(20 * time.Millisecond) // both answer
		stop()
		stop = next
	}
	enough()
	askers.Wait()
	t.Logf("%d questions over 10 changes, the slowest took about %s", asked.Load(), time.Duration(slowest.Load()))
	stop()
}

// askOnce asks from inside by a socket of its own, so that the kernel chooses
// among the resolver's anew.
func askOnce(g *guest, gateway netip.Addr) (took time.Duration, err error) {
	err = g.Try(func() error {
		c, err := net.DialTimeout("udp4", netip.AddrPortFrom(gateway, 53).String(), time.Second)
		if err != nil {
			return err
		}
		conn := &dns.Conn{Conn: c}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second)) // a lost one is never answered
		begun := time.Now()
		if err := conn.WriteMsg(question("x.test.", dns.TypeA)); err != nil {
			return err
		}
		_, err = conn.ReadMsg()
		took = time.Since(begun)
		return err
	})
	return took, err
}
