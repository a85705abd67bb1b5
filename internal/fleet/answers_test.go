package fleet_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/fleet"
)

func boundedWorld(t *testing.T, cfg fleet.Config) (*world, *fleet.Session) {
	t.Helper()
	w := newWorld(t)
	w.cfg = cfg
	w.restart()
	return w, w.report()
}

func keysKept(t *testing.T, w *world) map[string]bool {
	t.Helper()
	st, err := w.store.Load()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]bool{}
	for _, a := range st.Answers {
		out[a.Key] = true
	}
	return out
}

func TestTheOldestAnswersAreForgottenBeyondTheBound(t *testing.T) {
	for name, cfg := range map[string]fleet.Config{
		"by number": {MaxAnswers: 10},
		// An answer of these claims counts about 600 bytes.
		"by size": {MaxAnswerBytes: 10 * 650},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, s := boundedWorld(t, cfg)
				defer func() { w.stop() }()
				room := &hearthv1.Heartbeat{Pools: []*hearthv1.Pool{{Class: "small", Ready: 5}}, Room: &hearthv1.Room{SlotsMax: 10}}
				for i := range 700 { // more than one batch
					if err := s.Heartbeat(room); err != nil {
						t.Fatal(err)
					}
					if _, err := w.claim(fmt.Sprintf("k%03d", i)); err != nil {
						t.Fatal(err)
					}
					time.Sleep(time.Microsecond)
				}
				time.Sleep(3 * time.Second)
				synctest.Wait()
				kept := keysKept(t, w)
				if len(kept) < 8 || len(kept) > 12 || !kept["k699"] || !kept["k692"] {
					t.Fatalf("kept %d: %v", len(kept), kept)
				}
				before := len(w.node.claims)
				if _, err := w.claim("k699"); err != nil || len(w.node.claims) != before {
					t.Errorf("a kept key claimed again: %v", err)
				}
				// The rest is over in its time, and a restart knows the same.
				w.restart()
				w.report(running(w)...)
				if _, err := w.claim("k699"); err != nil || len(w.node.claims) != before {
					t.Errorf("after a restart: a kept key claimed again: %v", err)
				}
				time.Sleep(24*time.Hour + 5*time.Second)
				synctest.Wait()
				if kept := keysKept(t, w); len(kept) != 0 {
					t.Errorf("kept after a day: %v", kept)
				}
			})
		})
	}
}

func TestAnswersEndInTheirOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := boundedWorld(t, fleet.Config{})
		defer func() { w.stop() }()
		for i := range 3 {
			if _, err := w.claim(fmt.Sprint(i)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Hour)
			if i == 1 {
				w.restart()
			}
			w.report(running(w)...)
		}
		for left := 3; left >= 0; left-- {
			kept := keysKept(t, w)
			for i := range 3 {
				if kept[fmt.Sprint(i)] != (i >= 3-left) {
					t.Errorf("%d left to come: kept %v", left, kept)
				}
			}
			if left == 3 {
				time.Sleep(20 * time.Hour)
			}
			time.Sleep(time.Hour + 2*time.Second)
			synctest.Wait()
		}
	})
}

func running(w *world) []*hearthv1.Environment {
	var out []*hearthv1.Environment
	for _, c := range w.node.claims {
		out = append(out, c.GetEnvironment())
	}
	return out
}
