package warm

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"hearth/internal/env"
)

func created(slots, created int) *env.Class {
	c := demoClass(slots)
	c.Warm.Created = created
	return c
}

// createdOf are the created slots of the only pool.
func createdOf(n *Node) (ids []env.SlotID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, s := range n.pools["demo"].created {
		ids = append(ids, s.id)
	}
	return ids
}

func TestCreatedSlotsHaveNoProcessAndNothingMounted(t *testing.T) {
	inBubble(t, created(1, 2), func(b *bench, n *Node) {
		t := b.t
		if got := n.Pools()[0]; got.Ready != 1 || got.Created != 2 {
			t.Fatalf("pool = %+v", got)
		}
		if got := b.world.count("create"); got != 1 {
			t.Errorf("%d containers were made, one slot is ready", got)
		}
		left := b.world.leftovers()
		if left["processes"] != 1 || left["islands"] != 3 || left["cgroups"] != 3 || left["watched"] != 3 {
			t.Errorf("exists: %v", left)
		}
		if room := n.Room(); room.SlotsUsed != 3 || room.MemoryReserved != 3<<20 {
			t.Errorf("room = %+v", room)
		}
		for _, id := range createdOf(n) {
			if b.world.island(id) != "locked" {
				t.Errorf("island of %s is %q", id, b.world.island(id))
			}
			if got, err := n.Inspect(string(id)); err != nil || got.Phase != env.SlotCreated || got.PID != 0 {
				t.Errorf("inspect = %+v, %v", got, err)
			}
		}
		gone := createdOf(n)[0]
		if err := n.Quarantine(t.Context(), gone, "as any slot that nobody has claimed"); err != nil || b.world.island(gone) != "" {
			t.Errorf("quarantine = %v, island %q", err, b.world.island(gone))
		}
	})
}

func TestRestoresForksColdClaimsAndRefillUseCreatedSlots(t *testing.T) {
	for name, test := range map[string]struct {
		class *env.Class
		claim func(b *bench, n *Node) Environment
	}{
		"a cold claim": {created(0, 1), func(b *bench, n *Node) Environment { return b.claimed(n, Claim{}) }},
		"a restore": {created(0, 1), func(b *bench, n *Node) Environment {
			id := env.NewID()
			return b.claimed(n, Claim{ID: id, Snapshot: env.SnapshotID(id) + "/1", Fetch: &FetchFrom{Node: "n2", Address: "n2:7401"}})
		}},
		"a fork": {created(0, 1), func(b *bench, n *Node) Environment {
			parent := b.claimed(n, Claim{})
			time.Sleep(time.Second) // another is created
			b.world.forget()
			_, children, err := n.Fork(b.t.Context(), parent.ID, []Claim{{}})
			if err != nil {
				b.t.Fatal(err)
			}
			return children[0].Environment
		}},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, test.class, func(b *bench, n *Node) {
				before := createdOf(n)
				if name == "a fork" {
					before = nil // its parent took the first
				}
				b.world.forget()
				e := test.claim(b, n)
				if before != nil && !slices.Contains(before, e.Slot) {
					b.t.Errorf("slot %s was made anew beside %v", e.Slot, before)
				}
				if e.Served != ServedCold || !b.world.lives(e.PID) || b.world.island(e.Slot) != "open" {
					b.t.Errorf("environment = %+v", e)
				}
				calls := strings.Join(b.world.told(), " ")
				restored, made := strings.Index(calls, "restore"), strings.Index(calls, "create")
				if name != "a cold claim" && (restored < 0 || restored > made) {
					b.t.Errorf("files were restored after the container was made: %s", calls)
				}
				if i := strings.Index(calls, "island"); i >= 0 && i < made {
					b.t.Errorf("an island was made on the way: %s", calls)
				}
				time.Sleep(time.Second)
				synctest.Wait()
				if got := n.Pools()[0]; got.Created != 1 {
					b.t.Errorf("pool = %+v, the created slot was to be replaced", got)
				}
			})
		})
	}
}

func TestRefillRaisesACreatedSlotAndThenMakesAnother(t *testing.T) {
	inBubble(t, created(1, 1), func(b *bench, n *Node) {
		t := b.t
		before := createdOf(n)
		b.claimed(n, Claim{})
		time.Sleep(time.Second)
		synctest.Wait()
		if got := poolOf(n); !slices.Equal(got, before) {
			t.Errorf("ready are %v, created was %v", got, before)
		}
		if got := n.Pools()[0]; got.Ready != 1 || got.Created != 1 {
			t.Errorf("pool = %+v", got)
		}
	})
}

func TestAFullNodeServesRestoresFromItsCreatedSlots(t *testing.T) {
	inBubble(t, created(3, 3), func(b *bench, n *Node) {
		t := b.t
		if room := n.Room(); room.SlotsUsed != room.SlotsMax {
			t.Fatalf("room = %+v", room)
		}
		for i := range 3 {
			id := env.NewID()
			b.claimed(n, Claim{ID: id, Snapshot: env.SnapshotID(id) + "/1", Fetch: &FetchFrom{Node: "n2", Address: "n2:7401"}})
			if got := n.Pools()[0]; got.Created != 2-i || got.Ready != 3 {
				t.Errorf("pool = %+v", got)
			}
		}
		id := env.NewID()
		if _, err := n.Claim(t.Context(), Claim{Class: "demo", ID: id, Snapshot: env.SnapshotID(id) + "/1", Fetch: &FetchFrom{Node: "n2"}}); !errors.Is(err, env.ErrExhausted) {
			t.Errorf("without a created slot: %v", err)
		}
	})
}

func TestAClaimWithLimitsAboveItsClassGetsASlotOfItsOwn(t *testing.T) {
	inBubble(t, created(0, 1), func(b *bench, n *Node) {
		before := createdOf(n)
		e := b.claimed(n, Claim{Limits: env.Limits{MemoryBytes: 32 << 20}})
		if slices.Contains(before, e.Slot) || !slices.Equal(createdOf(n), before) {
			b.t.Errorf("slot %s, created were %v and are %v", e.Slot, before, createdOf(n))
		}
	})
}

func TestReadySlotsGoBeforeCreatedOnes(t *testing.T) {
	inBubble(t, created(2, 3), func(b *bench, n *Node) {
		t := b.t
		for range 4 { // of six places; the pool takes the rest
			b.claimed(n, Claim{})
			time.Sleep(time.Second)
			synctest.Wait()
		}
		if got := n.Pools()[0]; got.Ready != 2 || got.Created != 0 {
			t.Errorf("pool = %+v, want the last places ready", got)
		}
		other := demoClass(1)
		other.Name, other.Revision = "other", "r9"
		if err := n.SetClasses(t.Context(), []*env.Class{created(0, 2), other}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if got := n.Pools(); got[0].Created != 1 || got[1].Ready != 1 {
			t.Errorf("pools = %+v, want the other class ready and one place created", got)
		}
	})
}

func TestAChangedClassReplacesItsCreatedSlots(t *testing.T) {
	inBubble(t, created(1, 2), func(b *bench, n *Node) {
		t := b.t
		before := createdOf(n)
		next := created(1, 2)
		next.Revision = "r2"
		next.Warm.RollEvery = time.Hour                                        // is for ready ones
		for _, classes := range [][]*env.Class{{next}, {created(1, 1)}, nil} { // another revision, fewer, none
			what := fmt.Sprint(len(classes), " classes")
			if err := n.SetClasses(t.Context(), classes); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			synctest.Wait()
			if len(classes) == 0 {
				if left := b.world.leftovers()["islands"]; left != 0 {
					t.Errorf("%s: %d islands are left", what, left)
				}
				continue
			}
			want := classes[0].Warm.Created
			if got := createdOf(n); len(got) != want {
				t.Errorf("%s: created are %v, want %d", what, got, want)
			}
			for _, id := range createdOf(n) {
				if classes[0].Revision == "r2" && slices.Contains(before, id) {
					t.Errorf("%s: %s is of the old class", what, id)
				}
			}
		}
	})
}

// The namespaces of a created slot end with the agent.
func TestARestartRemovesCreatedSlotsAndMakesOthers(t *testing.T) {
	inBubble(t, created(1, 2), func(b *bench, n *Node) {
		t := b.t
		ready, before := poolOf(n), createdOf(n)
		again := b.open(created(1, 2)) // the first one was killed
		stop := runNode(t, again)
		time.Sleep(time.Second)
		synctest.Wait()
		if got := poolOf(again); !slices.Equal(got, ready) {
			t.Errorf("ready are %v, were %v", got, ready)
		}
		after := createdOf(again)
		for _, id := range after {
			if slices.Contains(before, id) {
				t.Errorf("%s was taken back", id)
			}
		}
		if left := b.world.leftovers(); len(after) != 2 || left["containers"] != 3 || left["islands"] != 3 || left["cgroups"] != 3 || left["bound"] != 3 {
			t.Errorf("created are %v, exists %v", after, left)
		}
		stop()
		if err := again.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestACreatedSlotThatCannotBeRaisedLeavesNothing(t *testing.T) {
	for _, fault := range []string{"restore", "create", "open", "identity-open", "start", "ready", "freeze"} {
		t.Run(fault, func(t *testing.T) {
			inBubble(t, created(0, 1), func(b *bench, n *Node) {
				t := b.t
				b.world.failWith(func(call string) error {
					if call == fault {
						return fmt.Errorf("injected into %s", call)
					}
					return nil
				})
				id := env.NewID()
				c := Claim{Class: "demo", ID: id, Snapshot: env.SnapshotID(id) + "/1", Fetch: &FetchFrom{Node: "n2", Address: "n2:7401"}}
				if _, err := n.Claim(t.Context(), c); err == nil {
					t.Fatal("claim succeeded")
				}
				time.Sleep(time.Second)
				synctest.Wait()
				left := b.world.leftovers()
				if got := n.Pools()[0]; got.Created != 1 || left["containers"] != 1 || left["islands"] != 1 || left["cgroups"] != 1 || left["processes"] != 0 {
					t.Errorf("pool = %+v, exists %v", got, left)
				}
				n.nobodyWaits(t)
			})
		})
	}
}

func TestACreatedSlotThatCannotBeLaidOutIsTriedAgainLater(t *testing.T) {
	requireChown(t)
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.world.failWith(func(call string) error {
			if call == "island" {
				return errors.New("no more links")
			}
			return nil
		})
		n := b.open(created(0, 1))
		stop := runNode(t, n)
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := n.Pools()[0]; got.Created != 0 || !strings.Contains(got.Message, "no more links") || b.world.leftovers()["containers"] != 0 {
			t.Errorf("pool = %+v, exists %v", got, b.world.leftovers())
		}
		if tries := b.world.count("island"); tries < 3 || tries > 12 {
			t.Errorf("tried %d times in a minute", tries)
		}
		b.world.failWith(nil)
		time.Sleep(retryMost)
		synctest.Wait()
		if got := n.Pools()[0]; got.Created != 1 || got.Message != "" {
			t.Errorf("pool = %+v", got)
		}
		stop()
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestACreatedSlotWhoseNamespacesAreGoneIsReplacedAndCounted(t *testing.T) {
	inBubble(t, created(0, 2), func(b *bench, n *Node) {
		t := b.t
		gone := createdOf(n)
		b.world.mu.Lock()
		for _, id := range gone {
			b.world.unheld[id] = true
		}
		b.world.mu.Unlock()
		if e := b.claimed(n, Claim{}); slices.Contains(gone, e.Slot) {
			t.Errorf("a claim got slot %s, whose namespaces are gone", e.Slot)
		}
		time.Sleep(idleCheck)
		synctest.Wait()
		if got := testutil.ToFloat64(n.metrics.dead.WithLabelValues("demo", deadNamespaces)); got != 2 {
			t.Errorf("%v dead slots were counted, want 2", got)
		}
		if left := b.world.leftovers()["islands"]; n.Pools()[0].Created != 2 || left != 3 {
			t.Errorf("pool = %+v, %d islands", n.Pools()[0], left)
		}
	})
}
