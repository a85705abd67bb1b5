package netpol

import (
	"testing"

	"github.com/cilium/ebpf"

	"hearth/internal/env"
)

// BenchmarkKernelVerdict is the cost of a packet in the program, run over and
// over by the kernel (BPF_PROG_TEST_RUN).
func BenchmarkKernelVerdict(b *testing.B) {
	s := newSite(b, nil)
	g := s.guest(b)
	g.unlock(b, internet, nil)
	ping := g.base()
	ping.protocol, ping.l4 = 6, tcp(40000, 443, 1, tcpAck, "")
	private := g.base()
	to("10.0.0.1")(private)
	back := reply(g.base())
	back.protocol, back.l4 = 6, tcp(443, 40000, 1, tcpAck, "")
	for _, c := range []struct {
		name string
		prog *ebpf.Program
		f    *frame
	}{{"established-out", s.kernel.IslandOut, ping}, {"established-in", s.kernel.IslandIn, back}, {"refused-private", s.kernel.IslandOut, private}} {
		b.Run(c.name, func(b *testing.B) {
			const repeat = 200_000
			opts := &ebpf.RunOptions{Data: c.f.bytes(), Context: skbContext{IfIndex: g.ifindex()}, Repeat: repeat}
			runs := 0
			for b.Loop() {
				if _, err := c.prog.Run(opts); err != nil {
					b.Fatal(err)
				}
				runs += repeat
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(runs), "ns/packet")
		})
	}
}

// BenchmarkKernelUnlock is a claim's share: both policies are prepared.
func BenchmarkKernelUnlock(b *testing.B) {
	s := newSite(b, nil)
	g := s.guest(b)
	claim := env.EgressPolicy{Mode: env.EgressInternet, Deny: []env.EgressRule{{CIDR: mustPrefix("8.8.0.0/16")}}}
	if err := s.Prepare(internet, claim); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := s.Unlock(g.slot, internet, &claim); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkKernelCreateDestroy is an island's making and taking down.
func BenchmarkKernelCreateDestroy(b *testing.B) {
	s := newSite(b, nil)
	for b.Loop() {
		slot := env.NewSlotID()
		if _, err := s.connected(b.Context(), slot); err != nil {
			b.Fatal(err)
		}
		if err := s.Destroy(b.Context(), slot); err != nil {
			b.Fatal(err)
		}
	}
}
