package fleet_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
	"hearth/internal/fleet"
	"hearth/internal/fleet/storetest"
)

func TestTimesOfAPartitionAreChecked(t *testing.T) {
	for name, tc := range map[string]struct {
		cfg  fleet.Config
		says string
	}{
		"defaults":                             {fleet.Config{}, ""},
		"never":                                {fleet.Config{FenceAfter: -1}, ""},
		"short, as for a test":                 {fleet.Config{FenceAfter: 10 * time.Second, PlaceAfter: 13 * time.Second}, ""},
		"placed before the fence":              {fleet.Config{FenceAfter: time.Minute, PlaceAfter: time.Minute}, "fleet.placeAfter 1m0s: it must be at least fleet.fenceAfter and 5s more, 1m5s"},
		"placed too soon after the fence":      {fleet.Config{FenceAfter: time.Minute, PlaceAfter: 64 * time.Second}, "fleet.placeAfter"},
		"fenced while claims still go to it":   {fleet.Config{FenceAfter: 5 * time.Second}, "fleet.fenceAfter 5s is below fleet.lostAfter 10s"},
		"a fence that only fits the heartbeat": {fleet.Config{Heartbeat: 100 * time.Millisecond, FenceAfter: time.Second}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			f, err := fleet.New(slog.New(slog.DiscardHandler), storetest.NewMemory(), nil, tc.cfg, fleet.NewMetrics(prometheus.NewRegistry()))
			if tc.says == "" {
				if err != nil {
					t.Fatal(err)
				}
				if name == "defaults" && f.FenceAfter() != 5*time.Minute || name == "never" && f.FenceAfter() != 0 {
					t.Errorf("agents are told %s", f.FenceAfter())
				}
				return
			}
			if !errors.Is(err, env.ErrInvalid) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("error = %v, want %q", err, tc.says)
			}
		})
	}
}

func TestEnvironmentsOfASilentNodeFailAfterPlaceAfterAndAreBelievedAgain(t *testing.T) {
	inBubble(t, []string{"a", "b"}, func(w *peers) {
		t := w.t
		id := w.claim("k")
		a := w.nodes["a"]
		a.disconnect()
		time.Sleep(15 * time.Second)
		if w.happened(fleet.NodeSilent) != 1 {
			t.Errorf("events = %v", w.told())
		}
		time.Sleep(5*time.Minute + 40*time.Second)
		if r := w.record(id); r.GetPhase() != hearthv1.Phase_PHASE_RUNNING {
			t.Errorf("before PlaceAfter: %v", r)
		}
		a.fence()
		time.Sleep(10 * time.Second)
		r := w.record(id)
		if r.GetPhase() != hearthv1.Phase_PHASE_FAILED || r.GetMessage() != "node a silent for 6m0s: no durable snapshot" {
			t.Errorf("after PlaceAfter: %v", r)
		}
		if w.happened(fleet.Failed) != 1 {
			t.Errorf("events = %v", w.told())
		}
		time.Sleep(time.Hour)
		a.connect()
		if len(a.books().stale) != 0 {
			t.Errorf("stale = %v", a.books().stale)
		}
		time.Sleep(5 * time.Second) // its next inventory is a minute away
		if r := w.record(id); r.GetPhase() != hearthv1.Phase_PHASE_RUNNING || r.GetGeneration() != 1 || w.where()[id] != "a/1 running;" {
			t.Errorf("then: %v, at %v", r, w.where())
		}
		if w.happened(fleet.Fenced) != 1 {
			t.Errorf("events = %v", w.told())
		}
	})
}

func TestANewControllerWaitsItsWholePlaceAfter(t *testing.T) {
	inBubble(t, []string{"a"}, func(w *peers) {
		t := w.t
		id := w.claim("k")
		w.nodes["a"].disconnect()
		time.Sleep(5*time.Minute + 50*time.Second)
		if err := w.store.Close(); err != nil { // what was posted is written
			t.Fatal(err)
		}
		w.restart()
		time.Sleep(5*time.Minute + 55*time.Second)
		if r := w.record(id); r.GetPhase() == hearthv1.Phase_PHASE_FAILED {
			t.Errorf("too soon: %v", r)
		}
		time.Sleep(10 * time.Second)
		if r := w.record(id); r.GetPhase() != hearthv1.Phase_PHASE_FAILED {
			t.Errorf("record = %v", r)
		}
	})
}

func TestNothingFailsWhereNodesNeverFence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newPeers(t, fleet.Config{FenceAfter: -1}, "a")
		defer w.close()
		id := w.claim("k")
		w.nodes["a"].disconnect()
		time.Sleep(time.Hour)
		if r := w.record(id); r.GetPhase() != hearthv1.Phase_PHASE_RUNNING {
			t.Errorf("record = %v", r)
		}
	})
}

func TestAReleaseOfWhatItsNodeFroze(t *testing.T) {
	inBubble(t, []string{"a"}, func(w *peers) {
		t := w.t
		id := w.claim("k")
		a := w.nodes["a"]
		a.fence()
		a.w.fleet.Connect("a", "a:1") // the older stream ends
		s := w.fleet.Connect("a", "a:1")
		if _, err := s.Inventory(a.inventory()); err != nil {
			t.Fatal(err)
		}
		if r := w.record(id); r.GetPhase() != hearthv1.Phase_PHASE_FENCED {
			t.Errorf("record = %v", r)
		}
		if _, err := w.fleet.Release(context.Background(), alice, "r", id, false); err != nil {
			t.Error(err)
		}
		if got := w.where(); len(got) != 0 {
			t.Errorf("left: %v", got)
		}
	})
}

func TestTheAnswerToAnInventoryNamesWhatIsStale(t *testing.T) {
	inBubble(t, []string{"a", "b"}, func(w *peers) {
		t := w.t
		ended, moved, kept := w.claim("1"), w.claim("2"), w.claim("3")
		a := w.nodes["a"]
		a.disconnect()
		a.onCall("Release", always(errCut), nil)
		if _, err := w.fleet.Release(context.Background(), alice, "r", ended, false); err != nil {
			t.Fatal(err)
		}
		// Another node shows a later generation of the second.
		w.set(func() {
			w.nodes["b"].envs[moved] = &peerEnv{Environment: &hearthv1.Environment{Id: moved, Class: "small", Tenant: "alice", Generation: 2, Phase: hearthv1.Phase_PHASE_PAUSED}}
		})
		w.nodes["b"].connect()
		a.fence()
		w.nodes["a"].connect()
		want := []string{ended, moved}
		if ended > moved {
			want = []string{moved, ended}
		}
		if !cmp.Equal(a.books().stale, want) {
			t.Errorf("stale = %v, want %v; kept is %s", a.books().stale, want, kept)
		}
		if got := w.where()[kept]; got != "a/1 running;" {
			t.Errorf("kept is at %q", got)
		}
	})
}

// The API server does not answer for minutes: inventories are answered all the
// same, so that no node fences itself.
func TestAStoreThatHangsDelaysNoNodesAnswer(t *testing.T) {
	inBubble(t, []string{"a"}, func(w *peers) {
		t := w.t
		var hangs atomic.Bool
		hangs.Store(true)
		w.store.Fault = func(string) error {
			if hangs.Load() {
				time.Sleep(30 * time.Second)
				return fmt.Errorf("%w: the API server does not answer", env.ErrUnavailable)
			}
			return nil
		}
		a := w.nodes["a"]
		w.set(func() {
			for range 30 { // unknown: to be stored
				id := string(env.NewID())
				a.envs[id] = &peerEnv{Environment: &hearthv1.Environment{Id: id, Class: "small", Tenant: "alice", Generation: 1, Phase: hearthv1.Phase_PHASE_RUNNING}}
			}
		})
		begun := time.Now()
		a.connect()
		if took := time.Since(begun); took > 6*time.Second {
			t.Errorf("the inventory was answered after %s", took)
		}
		time.Sleep(3 * time.Minute)
		if n := w.fleet.Nodes()[0]; !n.Ready {
			t.Errorf("node = %+v", n)
		}
		hangs.Store(false)
		time.Sleep(3 * time.Minute)
		if got := len(w.fleet.List(alice, "", "")); got != 30 {
			t.Errorf("%d adopted", got)
		}
	})
}

func TestANodeThatIsGoneForLongIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newPeers(t, fleet.Config{KeepAnswers: 30 * time.Minute}, "a", "b")
		defer w.close()
		id := w.claim("k")
		w.nodes["a"].disconnect()
		w.nodes["b"].disconnect()
		time.Sleep(15 * time.Minute)
		if n := w.fleet.Nodes(); len(n) != 2 {
			t.Errorf("too soon: %+v", n)
		}
		time.Sleep(30 * time.Minute)
		if n := w.fleet.Nodes(); len(n) != 0 {
			t.Errorf("nodes = %+v", n)
		}
		w.nodes["a"].connect() // with what it had
		if r := w.record(id); r.GetNode() != "a" || r.GetPhase() != hearthv1.Phase_PHASE_RUNNING {
			t.Errorf("record = %v", r)
		}
	})
}
