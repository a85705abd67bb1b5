package netpol

import (
	"errors"
	"testing"
	"time"

	"hearth/internal/env"
	"hearth/internal/kerneltest"
)

func TestKernelPacketsCountsWhatPassesBothWays(t *testing.T) {
	kerneltest.Require(t, kerneltest.BPF(), kerneltest.UserNS())
	kerneltest.NoLeaks(t)
	s := openSite(t, testConfig(t), world(t))
	s.echoWorld(t, "7")
	g := s.guest(t)
	count := func() uint64 {
		t.Helper()
		n, err := s.Packets(g.slot)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	stop := g.probe(t, "8.8.8.8:7")
	time.Sleep(50 * time.Millisecond)
	if stop() == 0 || count() != 0 {
		t.Errorf("%d packets of a locked island passed", count())
	}
	g.unlock(t, internet, nil)
	stop = g.probe(t, "8.8.8.8:7")
	time.Sleep(50 * time.Millisecond)
	sent := stop()
	c := g.counters(t)
	if got := count(); sent == 0 || c.AllowedIn == 0 || got < c.Allowed+c.AllowedIn {
		t.Errorf("%d packets passed; %d were sent, %d and %d counted", got, sent, c.Allowed, c.AllowedIn)
	}
	if _, err := s.Packets("s-00000000000000000000000000"); !errors.Is(err, env.ErrNotFound) {
		t.Errorf("of no island: %v", err)
	}
}

func BenchmarkKernelPackets(b *testing.B) {
	kerneltest.Require(b, kerneltest.BPF(), kerneltest.UserNS())
	s := openSite(b, testConfig(b), world(b))
	g := s.guest(b)
	for b.Loop() {
		if _, err := s.Packets(g.slot); err != nil {
			b.Fatal(err)
		}
	}
}
