package netpol

import (
	"testing"

	"hearth/internal/env"
)

func TestKernelIslandIsLockedUntilUnlockAndReachesTheInternetThen(t *testing.T) {
	s := newSite(t, nil)
	echoUDP(t, s.world, "8.8.8.8:7")
	echoTCP(t, s.world, "8.8.8.8:7")
	g := s.guest(t)
	g.refusedBy(t, map[env.Reason]uint64{env.ReasonLocked: 3}, func() { g.send(t, 3, "8.8.8.8:7") })
	g.unlock(t, internet, nil)
	if !g.answered("8.8.8.8:7") {
		t.Errorf("unlocked, yet 8.8.8.8:7 does not answer: %+v", g.counters(t))
	}
	other := s.guest(t) // the end of its connection may come after the lock
	other.unlock(t, internet, nil)
	if !other.connects("8.8.8.8:7") {
		t.Errorf("unlocked, yet nothing connects to 8.8.8.8:7: %+v", other.counters(t))
	}
	if err := s.Lock(g.slot); err != nil {
		t.Fatal(err)
	}
	g.refusedBy(t, map[env.Reason]uint64{env.ReasonLocked: 2}, func() { g.send(t, 2, "8.8.8.8:7") })
}

// Each refused destination really answers: the same client reaches it once the
// test switch has opened the island.
func TestKernelIslandRefusesEveryForbiddenDestination(t *testing.T) {
	s := newSite(t, nil)
	s.echoWorld(t, "7")
	echoUDP(t, nil, "192.0.2.2:7")
	echoUDP(t, nil, s.cfg.gateway().String()+":7")
	neighbour := s.guest(t)
	echoUDP(t, neighbour.NS, "0.0.0.0:7")
	if err := s.OpenForTest(neighbour.slot); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		to     string
		reason env.Reason
	}{
		"metadata of most clouds":  {"169.254.169.254:7", env.ReasonMetadata},
		"metadata of containers":   {"169.254.170.2:7", env.ReasonMetadata},
		"metadata in public space": {"168.63.129.16:7", env.ReasonMetadata},
		"metadata in shared space": {"100.100.100.200:7", env.ReasonMetadata},
		"private 10/8":             {"10.1.2.3:7", env.ReasonPrivate},
		"private 172.16/12":        {"172.16.5.5:7", env.ReasonPrivate},
		"private 192.168/16":       {"192.168.7.7:7", env.ReasonPrivate},
		"carrier-grade NAT":        {"100.64.9.9:7", env.ReasonPrivate},
		"documentation":            {"203.0.113.9:7", env.ReasonSpecial},
		"benchmarking":             {"198.18.0.9:7", env.ReasonSpecial},
		"the node by its uplink":   {"192.0.2.2:7", env.ReasonNode},
		"the node by the gateway":  {s.cfg.gateway().String() + ":7", env.ReasonNode},
		"a neighbour":              {neighbour.Address.String() + ":7", env.ReasonNeighbour},
	} {
		t.Run(name, func(t *testing.T) {
			g := s.guest(t)
			g.unlock(t, internet, nil)
			g.refusedBy(t, map[env.Reason]uint64{tc.reason: 3}, func() { g.send(t, 3, tc.to) })
			if err := s.OpenForTest(g.slot); err != nil {
				t.Fatal(err)
			}
			if !g.answered(tc.to) {
				t.Errorf("control: %s does not answer with judgement off", tc.to)
			}
			g.unlock(t, internet, nil)
			g.refusedBy(t, map[env.Reason]uint64{tc.reason: 1}, func() { g.answered(tc.to) })
		})
	}
}
