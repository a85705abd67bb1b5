package fleet_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

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

// remembered reports whether the fleet answers the key without asking the node.
func remembered(t *testing.T, w *world, key string) bool {
	t.Helper()
	before := w.node.calls
	if _, err := w.claim(key); err != nil {
		t.Fatal(err)
	}
	return w.node.calls == before
}

func TestTheOldestAnswersAreForgottenBeyondTheBound(t *testing.T) {
	for name, cfg := range map[string]fleet.Config{
		"by number": {MaxAnswers: 10},
		// An answer of these claims counts about 550 bytes.
		"by size": {MaxAnswerBytes: 10 * 600},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, s := boundedWorld(t, cfg)
				defer func() { w.stop() }()
				room := &hearthv1.Heartbeat{Pools: []*hearthv1.Pool{{Class: "small", Ready: 5}}, Room: &hearthv1.Room{SlotsMax: 10}}
				first := map[string]*hearthv1.ClaimResponse{}
				for i := range 700 { // more than one batch
					if err := s.Heartbeat(room); err != nil {
						t.Fatal(err)
					}
					key := fmt.Sprintf("k%03d", i)
					var err error
					if first[key], err = w.claim(key); err != nil {
						t.Fatal(err)
					}
					time.Sleep(time.Microsecond)
				}
				time.Sleep(3 * time.Second)
				synctest.Wait()
				for i := 699; i > 691; i-- {
					if !remembered(t, w, fmt.Sprintf("k%03d", i)) {
						t.Errorf("k%03d is forgotten", i)
					}
				}
				for _, key := range []string{"k685", "k000"} {
					if remembered(t, w, key) {
						t.Errorf("%s is remembered", key)
					}
					// What is forgotten is asked for again, and answered as before.
					again, err := w.claim(key)
					if err != nil || again.GetEnvironment().GetId() != first[key].GetEnvironment().GetId() ||
						again.GetAccess().GetToken() != first[key].GetAccess().GetToken() {
						t.Errorf("%s: %v, %v; want %v", key, again, err, first[key])
					}
				}
				if len(w.node.claims) != 700 {
					t.Errorf("the node made %d environments", len(w.node.claims))
				}
			})
		})
	}
}

func TestAnAnswerIsRememberedForADay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := boundedWorld(t, fleet.Config{})
		defer func() { w.stop() }()
		first, err := w.claim("k")
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(23 * time.Hour)
		if !remembered(t, w, "k") {
			t.Error("forgotten after 23 hours")
		}
		again, err := w.claim("k")
		if diff := cmp.Diff(first, again, protocmp.Transform()); err != nil || diff != "" {
			t.Errorf("%v: %s", err, diff)
		}
		time.Sleep(2 * time.Hour)
		w.report(running(w)...)
		if remembered(t, w, "k") {
			t.Error("remembered after 25 hours")
		}
	})
}

func running(w *world) []*hearthv1.Environment {
	w.node.claim.Lock()
	defer w.node.claim.Unlock()
	var out []*hearthv1.Environment
	for _, c := range w.node.claims {
		out = append(out, c.GetEnvironment())
	}
	return out
}
