package placement

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hearth/internal/env"
)

func someNode(name string, ready, used, slots int) Node {
	return Node{Name: name, SlotsMax: slots, SlotsUsed: used, Pools: []Pool{{Class: "small", Ready: ready, Memory: 100}}}
}

func TestDecide(t *testing.T) {
	silent := someNode("a", 5, 5, 10)
	silent.Unplaceable = "silent for 40s"
	noMemory := someNode("a", 0, 1, 10)
	noMemory.MemoryMax, noMemory.MemoryUsed = 1000, 950
	large := someNode("b", 0, 1, 10)
	large.MemoryMax, large.MemoryUsed = 1000, 700
	tight := someNode("c", 1, 1, 10)
	tight.MemoryMax, tight.MemoryUsed = 1000, 950
	cases := map[string]struct {
		nodes []Node
		req   Request
		node  string
		warm  bool
		err   error
		says  string
	}{
		"a warm slot wins over a fuller node":  {nodes: []Node{someNode("a", 0, 9, 10), someNode("b", 1, 1, 10)}, node: "b", warm: true, says: "b: warm slot"},
		"the fuller node wins among warm ones": {nodes: []Node{someNode("a", 1, 2, 10), someNode("b", 1, 8, 10)}, node: "b", warm: true},
		"the lower name wins a tie":            {nodes: []Node{someNode("b", 1, 2, 10), someNode("a", 1, 2, 10)}, node: "a", warm: true},
		"a restore packs, warm or not":         {nodes: []Node{someNode("a", 3, 3, 10), someNode("b", 0, 5, 10)}, req: Request{Cold: true}, node: "b"},
		"a full node still has its warm slots": {nodes: []Node{someNode("a", 1, 10, 10)}, node: "a", warm: true},
		"a full node takes no cold claim":      {nodes: []Node{someNode("a", 0, 10, 10)}, err: env.ErrExhausted, says: "1 no free slot"},
		"memory counts for cold claims":        {nodes: []Node{noMemory}, err: env.ErrExhausted, says: "1 no free memory"},
		"a silent node is left out":            {nodes: []Node{silent, someNode("b", 0, 0, 10)}, node: "b", says: "a: silent for 40s"},
		"an excluded node is left out, with why": {nodes: []Node{someNode("a", 1, 1, 10)}, req: Request{Exclude: map[string]string{"a": "refused: full"}},
			err: env.ErrExhausted, says: "1 excluded (a: refused: full)"},
		"only the snapshot's node will do":           {nodes: []Node{someNode("a", 0, 9, 10), someNode("b", 0, 0, 10)}, req: Request{Only: "b", Cold: true}, node: "b", says: "a: not where the snapshot is"},
		"more memory than its class needs room":      {nodes: []Node{noMemory, large}, req: Request{Memory: 300}, node: "b", says: "a: no free memory"},
		"a warm slot needs room for the rest only":   {nodes: []Node{tight}, req: Request{Memory: 150}, node: "c", warm: true},
		"a warm slot without room for the rest":      {nodes: []Node{tight}, req: Request{Memory: 151}, err: env.ErrExhausted, says: "1 no free memory"},
		"less memory than its class is made with it": {nodes: []Node{noMemory}, req: Request{Memory: 40}, err: env.ErrExhausted, says: "1 no free memory"},
		"less memory than its class fits a warm one": {nodes: []Node{tight}, req: Request{Memory: 40}, node: "c", warm: true},
		"no slot, whatever the memory":               {nodes: []Node{someNode("a", 0, 10, 10)}, req: Request{Memory: 1}, err: env.ErrExhausted, says: "1 no free slot"},
		"an unknown class is not found":              {nodes: []Node{someNode("a", 1, 1, 10)}, req: Request{Class: "huge"}, err: env.ErrNotFound, says: `class "huge": no node of 1 has it`},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			x := NewIndex()
			for _, n := range tc.nodes {
				x.Set(n)
			}
			if tc.req.Class == "" {
				tc.req.Class = "small"
			}
			d, err := x.Decide(tc.req)
			if !errors.Is(err, tc.err) {
				t.Fatalf("error = %v, want %v", err, tc.err)
			}
			if d.Node != tc.node || d.Warm != tc.warm {
				t.Errorf("decided %q warm=%v, want %q warm=%v", d.Node, d.Warm, tc.node, tc.warm)
			}
			if all := fmt.Sprint(d.Reasons, err); !strings.Contains(all, tc.says) {
				t.Errorf("reasons = %s, want %q in them", all, tc.says)
			}
		})
	}
}

func TestClaimsInFlightSpread(t *testing.T) {
	x := NewIndex()
	for _, n := range []string{"a", "b", "c"} {
		x.Set(someNode(n, 2, 2, 10))
	}
	got := map[string]int{}
	for range 6 {
		d, err := x.Decide(Request{Class: "small"})
		if err != nil || !d.Warm {
			t.Fatal(d, err)
		}
		x.Begin(d)
		got[d.Node]++
	}
	if diff := cmp.Diff(map[string]int{"a": 2, "b": 2, "c": 2}, got); diff != "" {
		t.Error(diff)
	}
	if d, err := x.Decide(Request{Class: "small"}); err != nil || d.Warm {
		t.Errorf("the seventh claim got %v, %v; every slot is spoken for", d, err)
	}
}

func TestOutcomesCorrectTheIndexUntilTheNextReport(t *testing.T) {
	x := NewIndex()
	x.Set(someNode("a", 1, 10, 10))
	d, err := x.Decide(Request{Class: "small"})
	if err != nil {
		t.Fatal(err)
	}
	x.Begin(d)
	x.End(d, Claimed)
	if _, err := x.Decide(Request{Class: "small"}); !errors.Is(err, env.ErrExhausted) {
		t.Errorf("the slot was given twice: %v", err)
	}
	x.Set(someNode("a", 1, 10, 10))
	x.Begin(d)
	x.End(d, Refused)
	if _, err := x.Decide(Request{Class: "small"}); !errors.Is(err, env.ErrExhausted) {
		t.Errorf("a node that refused was asked again: %v", err)
	}
	x.Set(someNode("a", 1, 10, 10))
	x.Begin(d)
	x.End(d, Unknown)
	if d, err := x.Decide(Request{Class: "small"}); err != nil || !d.Warm {
		t.Errorf("after an unknown outcome the report's word counts: %v, %v", d, err)
	}
}

// A report may be made before a claim that is answered after it, or after it: then
// both tell of the same claim.
func TestAClaimThatAReportOvertookKeepsNobodyOut(t *testing.T) {
	cases := map[string]struct {
		told Node // after the claim has begun, before it has ended
		req  Request
		err  error
	}{
		"the report has the claim":                        {told: someNode("a", 1, 10, 10)},
		"nothing of the pool is left by either":           {told: someNode("a", 0, 10, 10)},
		"the memory of a restore":                         {told: Node{Name: "a", SlotsMax: 20, MemoryMax: 1000, MemoryUsed: 1000, Pools: []Pool{{Class: "small", Memory: 100}}}, req: Request{Cold: true}},
		"a node that takes nothing is not asked for that": {told: Node{Name: "a", Unplaceable: "draining", Pools: []Pool{{Class: "small", Ready: 1}}}, err: env.ErrExhausted},
	}
	for name, tc := range cases {
		for _, ended := range []bool{true, false} { // whether its answer has come
			t.Run(fmt.Sprintf("%s, answered %v", name, ended), func(t *testing.T) {
				x := NewIndex()
				x.Set(someNode("a", 2, 10, 10))
				first, err := x.Decide(Request{Class: "small"})
				if err != nil {
					t.Fatal(err)
				}
				x.Begin(first)
				x.Set(tc.told)
				if ended {
					x.End(first, Claimed)
				}
				tc.req.Class = "small"
				second, err := x.Decide(tc.req)
				if !errors.Is(err, tc.err) {
					t.Fatalf("error = %v, want %v", err, tc.err)
				}
				if tc.err != nil {
					return
				}
				x.Begin(second)
				x.End(second, Refused)
				if _, err := x.Decide(tc.req); !errors.Is(err, env.ErrExhausted) {
					t.Errorf("after a refusal: %v", err)
				}
				if !ended {
					x.End(first, Claimed)
				}
				x.Set(tc.told)
				x.Set(someNode("a", 0, 10, 10))
				if _, err := x.Decide(tc.req); !errors.Is(err, env.ErrExhausted) {
					t.Errorf("after a report that no claim overlaps: %v", err)
				}
			})
		}
	}
}

// Whoever is sure to have room goes before one that may have.
func TestANodeThatMayHaveRoomIsTheLast(t *testing.T) {
	x := NewIndex()
	x.Set(someNode("a", 1, 10, 10))
	first, err := x.Decide(Request{Class: "small"})
	if err != nil {
		t.Fatal(err)
	}
	x.Begin(first)
	x.Set(someNode("a", 0, 10, 10))
	x.End(first, Claimed)
	x.Set(someNode("b", 0, 0, 10))
	if d, err := x.Decide(Request{Class: "small"}); err != nil || d.Node != "b" {
		t.Errorf("decided %+v, %v; b has room for sure", d, err)
	}
}

func TestANodeThatLosesItsClassIsForgottenForIt(t *testing.T) {
	x := NewIndex()
	x.Set(someNode("a", 1, 1, 10))
	x.Set(Node{Name: "a", SlotsMax: 10, Pools: []Pool{{Class: "other"}}})
	if _, err := x.Decide(Request{Class: "small"}); !errors.Is(err, env.ErrNotFound) {
		t.Error(err)
	}
	x.Remove("a")
	if x.Len() != 0 || len(x.classes) != 0 {
		t.Errorf("left: %v", x.classes)
	}
}

func randomNodes(r *rand.Rand, n int) []Node {
	nodes := make([]Node, n)
	for i := range nodes {
		slots := 1 + r.IntN(40)
		nodes[i] = someNode(fmt.Sprintf("node-%05d", i), r.IntN(3), r.IntN(slots+1), slots)
		nodes[i].MemoryMax, nodes[i].MemoryUsed = 4000, int64(r.IntN(4001))
		if r.IntN(10) == 0 {
			nodes[i].Unplaceable = "silent"
		}
	}
	return nodes
}

func TestDecisionsDoNotDependOnOrderAndNeverBreakAFilter(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		nodes := randomNodes(r, 1+r.IntN(60))
		req := Request{Class: "small", Cold: r.IntN(4) == 0, Exclude: map[string]string{nodes[r.IntN(len(nodes))].Name: "tried"}}
		x, y := NewIndex(), NewIndex()
		byName := map[string]Node{}
		for _, n := range nodes {
			x.Set(n)
			byName[n.Name] = n
		}
		r.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
		for _, n := range nodes {
			y.Set(n)
		}
		a, errA := x.Decide(req)
		b, errB := y.Decide(req)
		if diff := cmp.Diff(a, b); diff != "" || fmt.Sprint(errA) != fmt.Sprint(errB) {
			t.Fatalf("seed %d: order matters: %s\n%v\n%v", seed, diff, errA, errB)
		}
		fits := func(n Node) bool {
			warm := !req.Cold && n.Pools[0].Ready > 0
			room := n.SlotsUsed < n.SlotsMax && n.MemoryUsed+100 <= n.MemoryMax
			return n.Unplaceable == "" && req.Exclude[n.Name] == "" && (warm || room)
		}
		any := false
		for _, n := range nodes {
			any = any || fits(n)
		}
		if any != (errA == nil) {
			t.Fatalf("seed %d: a node fits: %v, error: %v", seed, any, errA)
		}
		if errA == nil && !fits(byName[a.Node]) {
			t.Fatalf("seed %d: %s does not fit", seed, a.Node)
		}
	}
}

func BenchmarkDecide10000Nodes(b *testing.B) {
	x := NewIndex()
	for _, n := range randomNodes(rand.New(rand.NewPCG(1, 1)), 10_000) {
		x.Set(n)
	}
	req := Request{Class: "small"}
	b.ReportAllocs()
	before := cpu()
	for b.Loop() {
		d, err := x.Decide(req)
		if err != nil {
			b.Fatal(err)
		}
		x.Begin(d)
		x.End(d, Unknown)
	}
	b.ReportMetric(float64(cpu()-before)/float64(b.N), "cpu-ns/op")
}

// cpu is the processor time that this process has used: on a shared machine it
// says more than the clock.
func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func TestClaimsWithMemoryOfTheirOwnAreBookedByIt(t *testing.T) {
	x := NewIndex()
	n := someNode("a", 1, 1, 10)
	n.MemoryMax, n.MemoryUsed = 1000, 100
	x.Set(n)
	for i, want := range []int64{400, 900} { // warm: 100 less 100 more 400; cold: 500 more
		d, err := x.Decide(Request{Class: "small", Memory: []int64{400, 500}[i]})
		if err != nil || d.Warm != (i == 0) {
			t.Fatalf("claim %d: %+v, %v", i, d, err)
		}
		x.Begin(d)
		x.End(d, Claimed)
		if got := x.nodes["a"].MemoryUsed; got != want {
			t.Errorf("after claim %d %d bytes are used, want %d", i, got, want)
		}
	}
	if _, err := x.Decide(Request{Class: "small", Memory: 101}); !errors.Is(err, env.ErrExhausted) {
		t.Errorf("beyond the node's memory: %v", err)
	}
}

func preparing(name string, slots, waiting int) Node {
	n := someNode(name, 0, 10, 10)
	n.Pools[0].Preparing, n.Pools[0].Waiting = slots, waiting
	return n
}

func TestASlotThatIsBeingPreparedIsBetterThanNothing(t *testing.T) {
	for name, tc := range map[string]struct {
		nodes []Node
		req   Request
		node  string // "" is none
		soon  bool
	}{
		"on a full node":                    {nodes: []Node{preparing("a", 1, 0)}, node: "a", soon: true},
		"unless another claim waits for it": {nodes: []Node{preparing("a", 1, 1)}},
		"the one with fewer who wait":       {nodes: []Node{preparing("a", 3, 2), preparing("b", 2, 1)}, node: "b", soon: true},
		"room is better":                    {nodes: []Node{preparing("a", 1, 0), someNode("b", 0, 1, 10)}, node: "b"},
		"room where fewer wait is better": {nodes: []Node{
			{Name: "a", SlotsMax: 10, SlotsUsed: 8, Pools: []Pool{{Class: "small", Waiting: 4}}}, someNode("b", 0, 1, 10),
		}, node: "b"},
		"a restore has no use for it":          {nodes: []Node{preparing("a", 1, 0)}, req: Request{Cold: true}},
		"nor a claim with memory of its own":   {nodes: []Node{preparing("a", 1, 0)}, req: Request{Memory: 200}},
		"nor one that was refused there":       {nodes: []Node{preparing("a", 1, 0)}, req: Request{Exclude: map[string]string{"a": "refused"}}},
		"nor one that wants another node only": {nodes: []Node{preparing("a", 1, 0), someNode("b", 0, 10, 10)}, req: Request{Only: "b"}},
	} {
		t.Run(name, func(t *testing.T) {
			x := NewIndex()
			for _, n := range tc.nodes {
				x.Set(n)
			}
			tc.req.Class = "small"
			d, err := x.Decide(tc.req)
			if (err == nil) != (tc.node != "") || err != nil && !errors.Is(err, env.ErrExhausted) {
				t.Fatal(d, err)
			}
			if d.Node != tc.node || d.Soon != tc.soon || d.Warm {
				t.Errorf("decided %+v, want %q soon=%v", d, tc.node, tc.soon)
			}
		})
	}
}

func TestACreatedSlotIsRoomForARestore(t *testing.T) {
	full := someNode("a", 0, 10, 10)
	full.MemoryMax, full.MemoryUsed, full.Pools[0].Created = 1000, 1000, 1
	for name, tc := range map[string]struct {
		req Request
		ok  bool
	}{
		"of the class":              {Request{Cold: true}, true},
		"with the class's memory":   {Request{Cold: true, Memory: 100}, true},
		"with less, made with that": {Request{Cold: true, Memory: 40}, true},
		"with more":                 {Request{Cold: true, Memory: 101}, false},
		"and for a cold claim":      {Request{}, true},
	} {
		t.Run(name, func(t *testing.T) {
			x := NewIndex()
			x.Set(full)
			tc.req.Class = "small"
			d, err := x.Decide(tc.req)
			if (err == nil) != tc.ok {
				t.Fatal(d, err)
			}
			x.Begin(d)
			if d, err := x.Decide(tc.req); err == nil {
				t.Errorf("it was given twice: %+v", d)
			}
		})
	}
}

func TestOneClaimIsSentForEachSlotThatIsBeingPrepared(t *testing.T) {
	for name, tc := range map[string]struct {
		o    Outcome
		more bool // a further claim is sent after it ended so
	}{
		"claimed":              {Claimed, false},
		"refused":              {Refused, false},
		"nobody knows, so far": {Unknown, true},
	} {
		t.Run(name, func(t *testing.T) {
			x := NewIndex()
			x.Set(preparing("a", 1, 0))
			d, err := x.Decide(Request{Class: "small"})
			if err != nil || !d.Soon || !strings.Contains(d.Reasons[0], "a slot is being prepared") {
				t.Fatal(d, err)
			}
			x.Begin(d)
			if d, err := x.Decide(Request{Class: "small"}); err == nil {
				t.Fatalf("a second claim went for the same slot: %+v", d)
			}
			x.End(d, tc.o)
			if d, err := x.Decide(Request{Class: "small"}); (err == nil) != tc.more {
				t.Errorf("afterwards: %+v, %v", d, err)
			}
			x.Set(preparing("a", 1, 0))
			if d, err := x.Decide(Request{Class: "small"}); err != nil || !d.Soon {
				t.Errorf("after the next report: %+v, %v", d, err)
			}
		})
	}
}

func TestAReleaseMakesRoomUntilTheNextReport(t *testing.T) {
	x := NewIndex()
	full := someNode("a", 0, 10, 10)
	full.MemoryMax, full.MemoryUsed = 1000, 1000
	x.Set(full)
	if d, err := x.Decide(Request{Class: "small"}); err == nil {
		t.Fatal(d)
	}
	x.Freed("a", "small", 0)
	d, err := x.Decide(Request{Class: "small"})
	if err != nil || d.Warm || d.Soon {
		t.Fatal(d, err)
	}
	x.Begin(d)
	if d, err := x.Decide(Request{Class: "small"}); err == nil {
		t.Errorf("the room of one release was given twice: %+v", d)
	}
	x.End(d, Claimed)
	if d, err := x.Decide(Request{Class: "small"}); err == nil {
		t.Errorf("the room is taken: %+v", d)
	}
	x.Freed("a", "gone", 50) // of a class that the node does not have any more
	if d, err := x.Decide(Request{Class: "small"}); err == nil {
		t.Errorf("50 bytes are not enough: %+v", d)
	}
	x.Freed("unknown", "small", 1)
}
