package kube

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/v1alpha1"
	"hearth/internal/env"
	"hearth/internal/fleet"
)

// stored plays with a store whose API server is not real.
func stored(t *testing.T, play func(*testing.T, *fakeAPI, *Store)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		a := newFakeAPI()
		s := a.store(t, a.client(t))
		play(t, a, s)
		a.set(nil)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestNothingIsSavedIntoAnObjectThatWasSeenGone(t *testing.T) {
	stored(t, func(t *testing.T, a *fakeAPI, s *Store) {
		t.Helper()
		o := a.put("team", "mine", nil)
		r := recordFor(o, nil)
		save(t, s, r)
		a.vanish("team/mine")
		s.Gone(r.ID(), refOf(o))
		next := recordFor(o, func(r *fleet.Record) { r.Environment.Node, r.Environment.Generation = "n2", 2 })
		if err := s.Save(fleet.Change{Op: "test", Record: next}); !errors.Is(err, env.ErrNotFound) {
			t.Errorf("a placement that nothing holds: %v", err)
		}
		release(next)
		save(t, s, next) // of what has ended there is nothing to hold
	})
}

func TestASaveWhileTheRecordIsForgottenIsHeld(t *testing.T) {
	for name, forget := range map[string]func(*Store, env.ID){
		"behind":     func(s *Store, id env.ID) { s.Post(fleet.Change{Op: "test", DeleteRecord: id}) },
		"waited for": func(s *Store, id env.ID) { go func() { _ = s.Save(fleet.Change{Op: "test", DeleteRecord: id}) }() },
	} {
		t.Run(name, func(t *testing.T) {
			a := newFakeAPI()
			s := a.store(t, a.client(t))
			r := recordAt("n1", 1, nil)
			save(t, s, r)
			deleting, goOn := make(chan struct{}), make(chan struct{})
			a.set(func(r *http.Request, _ string) error {
				if r.Method == http.MethodDelete {
					close(deleting)
					<-goOn
				}
				return nil
			})
			forget(s, r.ID())
			<-deleting
			saved := make(chan error)
			go func() { saved <- s.Save(fleet.Change{Op: "test", Record: r}) }()
			time.Sleep(50 * time.Millisecond) // it waits for the deletion, as a rule
			close(goOn)
			if err := <-saved; err != nil {
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if a.get(objectName(r)) == nil {
				t.Error("it was said to be saved, and no object holds it")
			}
		})
	}
}

func TestWhatIsPostedWhileTheRecordIsForgottenCanBeSaved(t *testing.T) {
	a := newFakeAPI()
	s := a.store(t, a.client(t))
	r := recordAt("n1", 1, nil)
	save(t, s, r)
	first := a.get(objectName(r)).UID
	deleting, goOn := make(chan struct{}), make(chan struct{})
	a.set(func(r *http.Request, _ string) error {
		if r.Method == http.MethodDelete {
			close(deleting)
			<-goOn
		}
		return nil
	})
	s.Post(fleet.Change{Op: "test", DeleteRecord: r.ID()})
	<-deleting
	s.Post(fleet.Change{Op: "test", Record: r})
	close(goOn)
	save(t, s, r)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	o := a.get(objectName(r))
	if o == nil || o.UID == first {
		t.Errorf("object = %v", o)
	}
}

func TestAnEndThatWasNotWrittenIsNotWaitedForAtTheClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newFakeAPI()
		s := a.store(t, a.client(t))
		var all []*fleet.Record
		for range 400 {
			r := recordAt("n1", 1, nil)
			save(t, s, r)
			all = append(all, r)
		}
		time.Sleep(time.Minute)
		a.set(hangs)
		for _, r := range all {
			next := *r
			next.Environment = &hearthv1.Environment{Id: string(r.ID()), Tenant: "team", Class: "small", Node: "n1", Generation: 1, Phase: hearthv1.Phase_PHASE_PAUSED}
			s.Post(fleet.Change{Op: "test", Record: &next})
		}
		time.Sleep(30 * time.Second)
		if got := testutil.ToFloat64(s.metrics.behind); got != 400 {
			t.Errorf("400 objects do not say what is known, and %v are counted", got)
		}
		begun := time.Now()
		if err := s.Close(); !errors.Is(err, env.ErrUnavailable) {
			t.Errorf("closed with %v", err)
		}
		if took := time.Since(begun); took > 3*behindTimeout {
			t.Errorf("took %s", took)
		}
	})
}

func TestWhatIsWrittenIsNotCounted(t *testing.T) {
	stored(t, func(t *testing.T, a *fakeAPI, s *Store) {
		t.Helper()
		r := recordAt("n1", 1, nil)
		save(t, s, r)
		running := recordAt("n1", 1, func(n *fleet.Record) {
			n.Environment.Id, n.Environment.Phase = string(r.ID()), hearthv1.Phase_PHASE_RUNNING
		})
		s.Post(fleet.Change{Op: "test", Record: running})
		time.Sleep(time.Minute)
		if got := testutil.ToFloat64(s.metrics.behind); got != 0 || a.get(objectName(r)).Status.Phase != "running" {
			t.Errorf("%v are counted, the object is %s", got, a.get(objectName(r)).Status.Phase)
		}
	})
}

func TestWhoeverRaisesAGenerationCannotKeepTheEnvironment(t *testing.T) {
	for name, theirs := range map[string]bool{"of the API": false, "of an object": true} {
		t.Run(name, func(t *testing.T) {
			stored(t, func(t *testing.T, a *fakeAPI, s *Store) {
				t.Helper()
				r := recordAt("n1", 1, nil)
				if theirs {
					r = recordFor(a.put("team", "mine", nil), nil)
				}
				object := objectName(r)
				if theirs {
					object = "team/mine"
				}
				save(t, s, r)
				a.edit(object, func(o *v1alpha1.Environment) { o.Spec.Placement.Generation = 1 << 40 })
				news := *r
				news.Environment = cloneWith(r, hearthv1.Phase_PHASE_QUARANTINED)
				s.Post(fleet.Change{Op: "test", Record: &news})
				time.Sleep(time.Minute) // the store has seen what was done
				if got := a.get(object).Status.Phase; got != "quarantined" {
					t.Errorf("the object is %s", got)
				}
				// It says the news though no placement can be written any more.
				again := news
				again.Environment = cloneWith(&news, hearthv1.Phase_PHASE_PAUSED)
				s.Post(fleet.Change{Op: "test", Record: &again})
				time.Sleep(time.Minute)
				if got := a.get(object).Status.Phase; got != "paused" {
					t.Errorf("the object is %s", got)
				}
				moved := news
				moved.Environment = cloneWith(&news, hearthv1.Phase_PHASE_RUNNING)
				moved.Environment.Node, moved.Environment.Generation = "n2", 2
				if err := s.Save(fleet.Change{Op: "test", Record: &moved}); !errors.Is(err, env.ErrInvalid) {
					t.Errorf("a placement that the object does not take: %v", err)
				}
				end := news
				end.Environment = cloneWith(&news, hearthv1.Phase_PHASE_RELEASED)
				release(&end)
				save(t, s, &end)
				if o := a.get(object); o == nil || o.DeletionTimestamp == nil {
					t.Fatal("its end is not written")
				}
				over := end
				over.Stale = nil
				s.Post(fleet.Change{Op: "test", Record: &over})
				time.Sleep(time.Minute)
				if a.get(object) != nil {
					t.Error("the object stays though no node has it")
				}
			})
		})
	}
}

func cloneWith(r *fleet.Record, p hearthv1.Phase) *hearthv1.Environment {
	e := r.Environment
	return &hearthv1.Environment{Id: e.GetId(), Class: e.GetClass(), Tenant: e.GetTenant(), Node: e.GetNode(), Generation: e.GetGeneration(), Phase: p}
}

func TestAnEnvironmentWhoseNameWasTakenGetsAnother(t *testing.T) {
	stored(t, func(t *testing.T, a *fakeAPI, s *Store) {
		t.Helper()
		r := recordAt("n1", 3, nil)
		// Its object lost its seal while no controller led: it is somebody's own now.
		a.put("team", string(r.ID()), func(o *v1alpha1.Environment) { o.Spec.Placement = &v1alpha1.Placement{NodeName: "n1", Generation: 3} })
		for range 2 { // the second as if the first had been cut off
			save(t, s, r)
			if n := a.names(); len(n) != 2 || !strings.HasPrefix(n[1], objectName(r)+"-") {
				t.Fatalf("objects %v", n)
			}
			if o := a.get(a.names()[1]); testSeal.idOf(o) != r.ID() || testSeal.recordOf(o).Generation() != 3 {
				t.Errorf("it reads as %v", testSeal.recordOf(o))
			}
			s.remove(r.ID(), s.entry(r.ID()))
		}
		save(t, s, r)
		save(t, s, &fleet.Record{Environment: cloneWith(r, hearthv1.Phase_PHASE_RELEASED), Ended: true})
		if n := a.names(); len(n) != 1 || n[0] != objectName(r) {
			t.Errorf("after its end there are %v", n)
		}
	})
}

func TestAConflictIsTriedAgain(t *testing.T) {
	stored(t, func(t *testing.T, a *fakeAPI, s *Store) {
		t.Helper()
		o := a.put("team", "mine", nil)
		a.set(func(r *http.Request, _ string) error {
			if r.Method == http.MethodPatch {
				a.edit("team/mine", func(o *v1alpha1.Environment) { o.UID = "another" })
			}
			return nil
		})
		// Another object of that name is no conflict.
		if err := s.Save(fleet.Change{Op: "test", Record: recordFor(o, nil)}); !errors.Is(err, env.ErrNotFound) {
			t.Errorf("another object: %v", err)
		}
	})
	if err := failed("x", conflict()); !errors.Is(err, env.ErrUnavailable) || errors.Is(err, env.ErrState) {
		t.Errorf("two writers: %v", err)
	}
}

func TestALeaderThatCouldNotRenewWritesNothing(t *testing.T) {
	stored(t, func(t *testing.T, a *fakeAPI, s *Store) {
		t.Helper()
		l := &Leadership{life: 12 * time.Second}
		renew := func() { now := time.Now(); l.renewed.Store(&now) }
		renew()
		s.c.leadership.Store(l)
		r := recordAt("n1", 1, nil)
		save(t, s, r)
		time.Sleep(12 * time.Second)
		o := a.get(objectName(r))
		a.take()
		paused := &fleet.Record{Environment: cloneWith(r, hearthv1.Phase_PHASE_PAUSED)}
		s.Post(fleet.Change{Op: "test", Record: paused})
		for what, err := range map[string]error{
			"save":   s.Save(fleet.Change{Op: "test", Record: recordAt("n1", 1, nil)}),
			"forget": s.Save(fleet.Change{Op: "test", DeleteRecord: r.ID()}),
			"orphan": s.Orphan(t.Context(), o),
			"let go": s.LetGo(t.Context(), o),
		} {
			if !errors.Is(err, env.ErrUnavailable) {
				t.Errorf("%s: %v", what, err)
			}
		}
		time.Sleep(time.Minute)
		if n := a.take(); len(n) != 0 {
			t.Errorf("while another controller may lead: %v", n)
		}
		renew()
		time.Sleep(maxBackoff)
		renew()
		if got := a.get(objectName(r)).Status.Phase; got != "paused" {
			t.Errorf("after the renewal the object is %s", got)
		}
		l.lost.Store(true)
		if err := s.Save(fleet.Change{Op: "test", Record: r}); !errors.Is(err, env.ErrSuperseded) {
			t.Errorf("save of one that lost: %v", err)
		}
		s.c.leadership.Store(nil)
	})
}

func TestAnObjectSaysWhyNothingRunsForIt(t *testing.T) {
	stored(t, func(t *testing.T, a *fakeAPI, s *Store) {
		t.Helper()
		o := a.put("team", "mine", nil)
		s.Refuse(o, "no room")
		time.Sleep(time.Second)
		if c := conditionOf(a.get("team/mine").Status.Conditions, v1alpha1.ConditionReady); c == nil || c.Status != metav1.ConditionFalse || c.Message != "no room" {
			t.Errorf("condition = %+v", c)
		}
		a.vanish("team/mine")
		s.Gone(s.idOf(o), refOf(o))
		time.Sleep(time.Second)
		if s.entry(s.idOf(o)) != nil {
			t.Error("what is gone is kept in memory")
		}
	})
}
