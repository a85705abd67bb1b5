package warm

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"hearth/internal/env"
)

func TestRefillSaysWhatItWaitsFor(t *testing.T) {
	class := &env.Class{Name: "a", Revision: "2", Warm: env.WarmPolicy{Slots: 2, RollEvery: time.Minute}}
	old := readySlot{id: "x", revision: "1", made: noon, proven: noon}
	fresh := readySlot{id: "y", revision: "2", made: noon, proven: noon}
	for name, c := range map[string]struct {
		pool  poolView
		node  nodeView
		waits string // "" is that a slot is prepared
		until time.Time
	}{
		"nothing":               {poolView{fits: true}, nodeView{room: 1}, "", time.Time{}},
		"room":                  {poolView{fits: true}, nodeView{}, "every slot of the node", time.Time{}},
		"memory":                {poolView{}, nodeView{room: 1}, "limits.memory", time.Time{}},
		"a claim":               {poolView{fits: true}, nodeView{room: 1, hush: "claims are under way"}, "claims are under way", time.Time{}},
		"a failure":             {poolView{fits: true, retryAt: noon.Add(9), message: "no image"}, nodeView{room: 1}, "no image", noon.Add(9)},
		"a failure in the past": {poolView{fits: true, retryAt: noon, message: "no image"}, nodeView{room: 1}, "", time.Time{}},
		"pressure": {poolView{fits: true, ready: []readySlot{fresh}}, nodeView{room: 1, pressed: "busy", pressedTill: noon.Add(9)},
			"busy", noon.Add(9)},
		"pressure, and long since the last": {poolView{fits: true, ready: []readySlot{fresh}}, nodeView{room: 1, pressed: "busy", pressedTill: noon},
			"", time.Time{}},
		"pressure, and nothing is ready": {poolView{fits: true}, nodeView{room: 1, pressed: "busy", pressedTill: noon.Add(9)}, "", time.Time{}},
		"the rate of a roll": {poolView{fits: true, rolled: noon.Add(-time.Second), ready: []readySlot{old, fresh}}, nodeView{room: 1},
			"warm.rollEvery", noon.Add(59 * time.Second)},
		"the rate of a roll, over":         {poolView{fits: true, rolled: noon.Add(-time.Minute), ready: []readySlot{old, fresh}}, nodeView{room: 1}, "", time.Time{}},
		"no rate where a slot is missing":  {poolView{fits: true, rolled: noon.Add(-time.Second), ready: []readySlot{old}}, nodeView{room: 1}, "", time.Time{}},
		"no rate for the first of a class": {poolView{fits: true, ready: []readySlot{old, old}}, nodeView{room: 1}, "", time.Time{}},
	} {
		t.Run(name, func(t *testing.T) {
			c.pool.class, c.node.now = class, noon
			act := next([]poolView{c.pool}, c.node)
			if (act.prepare != nil) != (c.waits == "") || !strings.Contains(act.waits["a"], c.waits) || !act.until.Equal(c.until) {
				t.Errorf("next = %+v, want to wait for %q until %v", act, c.waits, c.until)
			}
		})
	}
}

func TestTheOldestProofIsCheckedFirstAndOnlyInPeace(t *testing.T) {
	a := &env.Class{Name: "a", Revision: "1", Warm: env.WarmPolicy{Slots: 3, CheckEvery: time.Hour}}
	never := &env.Class{Name: "b", Revision: "1", Warm: env.WarmPolicy{Slots: 1}}
	slot := func(id string, proven time.Time) readySlot {
		return readySlot{id: env.SlotID(id), revision: "1", made: noon.Add(-24 * time.Hour), proven: proven}
	}
	ago := func(d time.Duration) time.Time { return noon.Add(-d) }
	for name, c := range map[string]struct {
		slots []readySlot
		node  nodeView
		want  env.SlotID
		until time.Time
	}{
		"none is due":               {[]readySlot{slot("x", ago(59*time.Minute)), slot("y", noon), slot("z", noon)}, nodeView{}, "", noon.Add(time.Minute)},
		"the oldest":                {[]readySlot{slot("x", ago(2*time.Hour)), slot("y", ago(3*time.Hour)), slot("z", noon)}, nodeView{}, "y", time.Time{}},
		"a clock that was set back": {[]readySlot{slot("x", noon.Add(time.Hour)), slot("y", noon), slot("z", noon)}, nodeView{}, "x", time.Time{}},
		"another is checked":        {[]readySlot{slot("x", ago(2*time.Hour)), {id: "y", revision: "1", checked: true}, slot("z", noon)}, nodeView{checking: true}, "", noon.Add(time.Hour)},
		"claims first":              {[]readySlot{slot("x", ago(2*time.Hour)), slot("y", noon), slot("z", noon)}, nodeView{hush: "claims"}, "", noon.Add(time.Hour)},
		"a busy node":               {[]readySlot{slot("x", ago(2*time.Hour)), slot("y", noon), slot("z", noon)}, nodeView{pressed: "busy"}, "", noon.Add(pressedPause)},
		"a slot is missing":         {[]readySlot{slot("x", ago(2*time.Hour)), slot("y", noon)}, nodeView{room: 1}, "", time.Time{}},
	} {
		t.Run(name, func(t *testing.T) {
			c.node.now = noon
			act := next([]poolView{{class: a, ready: c.slots, fits: true}, {class: never, ready: []readySlot{slot("n", ago(99*time.Hour))}}}, c.node)
			if act.check != c.want {
				t.Errorf("next = %+v, want to check %q", act, c.want)
			}
			if act.check == "" && act.prepare == nil && !act.until.Equal(c.until) {
				t.Errorf("until = %v, want %v", act.until, c.until)
			}
		})
	}
}

func TestAChangedClassRollsAtItsRate(t *testing.T) {
	for name, slots := range map[string]int{"beside the old ones": 3, "on a full node": 6} {
		t.Run(name, func(t *testing.T) {
			class := demoClass(slots)
			inBubble(t, class, func(b *bench, n *Node) {
				t := b.t
				next := revised(slots, "r2")
				next.Warm.RollEvery = time.Minute
				if err := n.SetClasses(t.Context(), []*env.Class{next}); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
				for i := range slots {
					synctest.Wait()
					ready := readyOf(n, "demo")
					if ready["r2"] != i+1 || ready["r1"]+ready["r2"] != slots {
						t.Fatalf("after %d minutes: ready = %v", i, ready)
					}
					if message := n.Pools()[0].Message; i+1 < slots && !strings.Contains(message, "warm.rollEvery") {
						t.Errorf("message = %q", message)
					}
					time.Sleep(time.Minute)
				}
				if message := n.Pools()[0].Message; message != "" {
					t.Errorf("message of a full pool = %q", message)
				}
			})
		})
	}
}

func TestABusyNodeRefillsSlowlyAndAnEmptyPoolAtOnce(t *testing.T) {
	requireChown(t)
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.world.press("the node's tasks wait for cpu")
		n := b.open(demoClass(3))
		defer n.Close()
		stop := runNode(t, n)
		defer stop()
		for i := range 3 {
			synctest.Wait()
			if got := n.Pools()[0]; got.Ready != i+1 || i < 2 && !strings.Contains(got.Message, "wait for cpu") {
				t.Errorf("after %d pauses: pool = %+v", i, got)
			}
			time.Sleep(pressedPause)
		}
	})
}

func TestAFailedPreparationIsToldUntilOneSucceeds(t *testing.T) {
	requireChown(t)
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.world.failWith(func(call string) error {
			if call == "image" {
				return errors.New("image is not on this node")
			}
			return nil
		})
		n := b.open(demoClass(1))
		defer n.Close()
		stop := runNode(t, n)
		defer stop()
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := n.Pools()[0]; got.Ready != 0 || !strings.Contains(got.Message, "image is not on this node") {
			t.Errorf("pool = %+v", got)
		}
		b.world.failWith(nil)
		time.Sleep(retryMost)
		synctest.Wait()
		if got := n.Pools()[0]; got.Ready != 1 || got.Message != "" {
			t.Errorf("pool = %+v", got)
		}
	})
}

func TestSlotsThatAgeAreReplacedBeforeTheyEnd(t *testing.T) {
	for name, slots := range map[string]int{"beside the old ones": 3, "on a full node": 6} {
		t.Run(name, func(t *testing.T) {
			class := demoClass(slots)
			class.Warm.MaxAge = 10 * time.Minute
			class.Warm.RollEvery = time.Hour // is for changes of the class
			inBubble(t, class, func(b *bench, n *Node) {
				least := slots
				if slots == 6 {
					least-- // the old one goes first
				}
				for range 60 * 60 {
					time.Sleep(time.Second)
					synctest.Wait()
					if got := n.Pools()[0]; got.Ready < least {
						b.t.Fatalf("pool = %+v, want at least %d at any time", got, least)
					}
				}
				if made := b.world.count("create"); made < 5*slots || made > 9*slots {
					b.t.Errorf("%d slots were made in an hour", made)
				}
			})
		})
	}
}
