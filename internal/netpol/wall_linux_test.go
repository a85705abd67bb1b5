package netpol

import (
	"net/netip"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"hearth/internal/env"
)

// proxy makes a table that rewrites 93.184.215.14 to target, as a service proxy
// does, or with none takes it away.
func proxy(t testing.TB, target netip.Addr) {
	t.Helper()
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "kube"})
	c.DelTable(table)
	if target.IsValid() {
		c.AddTable(table)
		chain := c.AddChain(&nftables.Chain{Table: table, Name: "p", Type: nftables.ChainTypeNAT,
			Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest})
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			destination(), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{93, 184, 215, 14}},
			&expr.Immediate{Register: 1, Data: target.AsSlice()},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(nftables.TableFamilyIPv4), RegAddrMin: 1, RegAddrMax: 1},
		}})
	}
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
}

// A service proxy rewrites a public-looking address after tc has judged it.
func TestKernelSecondWallStopsWhatNATRewrote(t *testing.T) {
	s := newSite(t, nil)
	s.echoWorld(t, "7")
	echoUDP(t, nil, "192.0.2.2:7")
	neighbour := s.guest(t)
	echoUDP(t, neighbour.NS, neighbour.Address.String()+":7")
	if err := s.OpenForTest(neighbour.slot); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { proxy(t, netip.Addr{}) })
	for name, tc := range map[string]struct{ target, counter string }{
		"to a pod":       {"10.1.2.3", wallDNAT},
		"to metadata":    {"169.254.169.254", wallDNAT},
		"to the node":    {"192.0.2.2", wallDNAT},
		"to a neighbour": {neighbour.Address.String(), wallDNAT},
	} {
		t.Run(name, func(t *testing.T) {
			proxy(t, netip.MustParseAddr(tc.target))
			g := s.guest(t)
			g.unlock(t, internet, nil)
			before, err := s.wall.counters()
			if err != nil {
				t.Fatal(err)
			}
			g.refusedBy(t, map[env.Reason]uint64{}, func() { g.send(t, 3, "93.184.215.14:7") }) // tc cannot know
			after, err := s.wall.counters()
			if err != nil {
				t.Fatal(err)
			}
			if d := after[tc.counter] - before[tc.counter]; d != 3 {
				t.Errorf("second wall counted %d of 3: %v", d, after)
			}
			if err := s.OpenForTest(g.slot); err != nil {
				t.Fatal(err)
			}
			if !g.answered("93.184.215.14:7") {
				t.Errorf("control: %s does not answer with both walls open", tc.target)
			}
		})
	}
}

func TestKernelSweepBuildsAFlushedWallAnew(t *testing.T) {
	s := newSite(t, nil)
	s.echoWorld(t, "7")
	g := s.guest(t)
	g.unlock(t, internet, nil)
	if err := s.wall.remove(); err != nil { // as `nft flush ruleset` would
		t.Fatal(err)
	}
	if whole, err := s.wall.standing(); err != nil || whole {
		t.Fatalf("standing = %v, %v after a flush", whole, err)
	}
	if err := s.Sweep(t.Context(), func(env.SlotID) bool { return true }); err != nil {
		t.Fatal(err)
	}
	if whole, err := s.wall.standing(); err != nil || !whole {
		t.Fatalf("standing = %v, %v after a sweep", whole, err)
	}
	if !g.answered("8.8.8.8:7") {
		t.Error("NAT does not work after the sweep")
	}
}
