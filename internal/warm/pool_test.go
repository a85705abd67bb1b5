package warm

import (
	"math/rand/v2"
	"testing"
	"time"

	"hearth/internal/env"
)

var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func TestNextChoosesTheMostUsefulAction(t *testing.T) {
	a := &env.Class{Name: "a", Revision: "2", Warm: env.WarmPolicy{Slots: 2, MaxAge: time.Hour}}
	b := &env.Class{Name: "b", Revision: "1", Warm: env.WarmPolicy{Slots: 4}}
	fresh := func(id string) readySlot { return readySlot{id: env.SlotID(id), revision: "2", made: noon} }
	old := func(id string) readySlot { return readySlot{id: env.SlotID(id), revision: "1", made: noon} }
	for name, test := range map[string]struct {
		pools   []poolView
		room    int
		prepare *env.Class
		retire  env.SlotID
		until   time.Time
	}{
		"nothing lacks":                {[]poolView{{fits: true, class: a, ready: []readySlot{fresh("x"), fresh("y")}}}, 9, nil, "", noon.Add(54 * time.Minute)},
		"the emptiest pool first":      {[]poolView{{fits: true, class: a, ready: []readySlot{fresh("x")}}, {fits: true, class: b}}, 9, b, "", time.Time{}},
		"one being made counts":        {[]poolView{{fits: true, class: a, preparing: 2}}, 9, nil, "", time.Time{}},
		"no memory":                    {[]poolView{{class: b}}, 9, nil, "", time.Time{}},
		"no room":                      {[]poolView{{fits: true, class: b}}, 0, nil, "", time.Time{}},
		"back-off":                     {[]poolView{{fits: true, class: b, failures: 1, retryAt: noon.Add(time.Second)}}, 9, nil, "", noon.Add(time.Second)},
		"an old revision stays useful": {[]poolView{{fits: true, class: a, ready: []readySlot{old("x"), fresh("y")}}}, 9, a, "", time.Time{}},
		"until the new one is full":    {[]poolView{{fits: true, class: a, ready: []readySlot{old("x"), fresh("y"), fresh("z")}}}, 9, nil, "x", time.Time{}},
		"surplus is retired":           {[]poolView{{fits: true, class: a, ready: []readySlot{fresh("x"), fresh("y"), fresh("z")}}}, 9, nil, "x", time.Time{}},
		"an expired slot is retired": {[]poolView{{fits: true, class: a, ready: []readySlot{
			{id: "x", revision: "2", made: noon.Add(-2 * time.Hour)}}}}, 9, nil, "x", time.Time{}},
	} {
		t.Run(name, func(t *testing.T) {
			got := next(test.pools, nodeView{room: test.room, now: noon})
			if got.prepare != test.prepare || got.retire != test.retire {
				t.Errorf("next = %+v, want prepare %v retire %q", got, test.prepare, test.retire)
			}
			if got.prepare == nil && got.retire == "" && !got.until.Equal(test.until) {
				t.Errorf("until = %v, want %v", got.until, test.until)
			}
		})
	}
}

// Whatever fails, is claimed or changes, there are never more slots than asked
// for, and with success the pools fill.
func TestPoolsNeverHoldMoreThanWanted(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 1))
		class := &env.Class{Name: "a", Revision: "1", Warm: env.WarmPolicy{Slots: 1 + rng.IntN(4)}}
		p := poolView{class: class, fits: true}
		now, made := noon, 0
		for range 300 {
			now = now.Add(time.Duration(rng.IntN(2000)) * time.Millisecond)
			act := next([]poolView{p}, nodeView{room: 100, now: now})
			switch {
			case act.retire != "":
				for i, s := range p.ready {
					if s.id == act.retire {
						p.ready = append(p.ready[:i:i], p.ready[i+1:]...)
						break
					}
				}
			case act.prepare != nil && rng.IntN(3) == 0:
				p.failures++
				p.retryAt = now.Add(retryDelay(p.failures))
			case act.prepare != nil:
				made++
				p.failures = 0
				p.ready = append(p.ready, readySlot{id: env.SlotID(rune(made)), revision: class.Revision, made: now})
			}
			if len(p.ready) > 0 && rng.IntN(5) == 0 {
				p.ready = p.ready[1:] // claimed
			}
			if len(p.ready) > class.Warm.Slots {
				t.Fatalf("seed %d: %d ready slots, %d wanted", seed, len(p.ready), class.Warm.Slots)
			}
		}
		if made == 0 {
			t.Fatalf("seed %d: nothing was ever prepared", seed)
		}
	}
}

func TestRetryDelayIsBounded(t *testing.T) {
	for failures, want := range map[int]time.Duration{0: retryFirst, 1: retryFirst, 2: 2 * retryFirst, 60: retryMost} {
		if got := retryDelay(failures); got != want {
			t.Errorf("retryDelay(%d) = %v, want %v", failures, got, want)
		}
	}
}

func TestIDRangesNeverOverlap(t *testing.T) {
	r := newIDRanges(1<<20, 3)
	seen := map[uint32]bool{}
	for range 3 {
		ids, err := r.take()
		if err != nil || seen[ids.Base] || ids.Base < 1<<20 {
			t.Fatalf("take = %+v %v", ids, err)
		}
		seen[ids.Base] = true
	}
	if _, err := r.take(); err == nil {
		t.Error("a fourth block of three")
	}
	freed := env.IDRange{Base: 1<<20 + env.IDRangeSize, Size: env.IDRangeSize}
	r.put(freed)
	if got, err := r.take(); err != nil || got != freed {
		t.Errorf("take after put = %+v %v, want %+v", got, err, freed)
	}
	r.put(env.IDRange{Base: 1, Size: env.IDRangeSize}) // of another configuration: no effect, no panic
}
