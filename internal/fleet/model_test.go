package fleet_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"strings"
	"sync"
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

// model is a fleet whose controller dies again and again, whose store is slow and
// fails, and whose nodes lose answers, in a synctest bubble. Its callers repeat what
// was not answered and nothing else.
type model struct {
	t     *testing.T
	disk  *storetest.Memory
	nodes map[string]*modelNode

	mu      sync.Mutex // guards all below
	rand    *rand.Rand
	life    *life
	calm    bool // nothing fails any more
	wrongly []string
	history []string // of all, told if something is wrong
}

func (m *model) trace(format string, args ...any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.history = append(m.history, time.Now().Format("04:05.000 ")+fmt.Sprintf(format, args...))
}

// life is one controller from its start to its death.
type life struct {
	*model
	fleet *fleet.Fleet
	ctx   context.Context
	end   context.CancelFunc
	done  chan struct{}

	mu     sync.Mutex // guards all below
	dead   bool
	atWork map[env.ID]bool // records with a Save under way
}

func (m *model) chance(percent int) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return !m.calm && m.rand.IntN(100) < percent
}

func (m *model) pause(most time.Duration) {
	m.mu.Lock()
	d := time.Duration(m.rand.Int64N(int64(most)))
	m.mu.Unlock()
	time.Sleep(d)
}

func (m *model) wrong(format string, args ...any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.wrongly = append(m.wrongly, fmt.Sprintf(format, args...))
}

func (m *model) now() *life {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.life
}

func (m *model) start() {
	l := &life{model: m, atWork: map[env.ID]bool{}, done: make(chan struct{})}
	f, err := fleet.New(slog.New(slog.DiscardHandler), l, l.dial, fleet.Config{SnapshotTimeout: time.Minute}, fleet.NewMetrics(prometheus.NewRegistry()))
	if err != nil {
		m.t.Fatal(err)
	}
	l.fleet = f
	l.ctx, l.end = context.WithCancel(context.Background())
	go func() { defer close(l.done); _ = f.Run(l.ctx) }()
	for _, n := range m.nodes {
		go n.report(l)
	}
	m.mu.Lock()
	m.life = l
	m.mu.Unlock()
}

// kill ends the controller as SIGKILL does: what it does from now on has no effect.
func (m *model) kill() {
	l := m.now()
	l.mu.Lock()
	l.dead = true
	m.disk.Crash()
	m.trace("the controller dies")
	l.mu.Unlock()
	l.end()
}

func (l *life) isDead() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dead
}

var errDead = fmt.Errorf("%w: the controller is dead", env.ErrUnavailable)

func (l *life) NextEpoch() (uint64, error) { return l.disk.NextEpoch() }
func (l *life) Load() (fleet.State, error) { return l.disk.Load() }
func (l *life) Close() error               { return nil }
func (l *life) enter(id env.ID) (free bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	free = !l.atWork[id]
	l.atWork[id] = true
	return free
}

func (l *life) Save(c fleet.Change) (err error) {
	id := c.ID()
	defer func() { l.trace("save %s %s: %v", c.Op, line(c), err) }()
	if !l.enter(id) {
		l.wrong("%s: two writes of %s at the same time", c.Op, id)
	}
	defer func() { l.mu.Lock(); defer l.mu.Unlock(); delete(l.atWork, id) }()
	l.pause(20 * time.Millisecond)
	if l.chance(5) {
		return errors.New("no space left")
	}
	lost := l.chance(5)
	if !lost || l.chance(50) {
		l.mu.Lock()
		err = errDead
		if !l.dead {
			err = l.disk.Save(c)
		}
		l.mu.Unlock()
		if err != nil {
			return err
		}
	}
	if lost {
		return fmt.Errorf("%w: the store timed out", env.ErrUnavailable)
	}
	return nil
}

// line is a change in one line.
func line(c fleet.Change) string {
	if c.Record == nil {
		return string(c.ID()) + " deleted"
	}
	e := c.Record.Environment
	return fmt.Sprintf("%s %s/%d %s, stale %v, ended %t %s", e.GetId(), e.GetNode(), e.GetGeneration(), e.GetPhase(), c.Record.Stale, c.Record.Ended, e.GetMessage())
}

func (l *life) Post(c fleet.Change) {
	l.trace("post %s %s", c.Op, line(c))
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.atWork[c.ID()] {
		go l.wrong("%s: a post of %s during its save", c.Op, c.ID())
	}
	if !l.dead {
		l.disk.Post(c)
	}
}

// call repeats what was not answered. A key that the fleet has ended is given up:
// over is then true.
func (m *model) call(what string, do func(*fleet.Fleet) error) (over bool) {
	for range 500 {
		l := m.now()
		err := do(l.fleet)
		switch {
		case l.isDead(): // its answer reached nobody
		case err == nil:
			m.trace("%s is answered", what)
			return false
		case errors.Is(err, env.ErrNotFound) && strings.HasSuffix(what, "release"):
			return false // it was ephemeral, and the answer to the release before was lost
		case errors.Is(err, env.ErrState) && strings.HasSuffix(what, "fork"):
			return true // an inventory showed children that their node then took back
		case errors.Is(err, env.ErrState), errors.Is(err, env.ErrNotFound):
			m.wrong("%s: %v", what, err)
			return true
		}
		time.Sleep(200 * time.Millisecond)
	}
	m.wrong("%s: not within 500 tries", what)
	return true
}

// live is one caller's session: a claim, sometimes a fork, and mostly a release.
// It returns what it was told that it has.
func (m *model) live(name string) []string {
	ctx := context.Background()
	class := "small"
	m.mu.Lock()
	if m.rand.IntN(3) == 0 {
		class = "brief"
	}
	forks, releases := m.rand.IntN(3) == 0, m.rand.IntN(2) == 0
	m.mu.Unlock()
	var own []string
	if m.call(name+" claim", func(f *fleet.Fleet) error {
		got, err := f.Claim(ctx, alice, name, &hearthv1.ClaimSpec{Class: class})
		own = []string{got.GetEnvironment().GetId()}
		return err
	}) {
		return nil
	}
	m.pause(5 * time.Second)
	if forks {
		var children []string
		over := m.call(name+" fork", func(f *fleet.Fleet) error {
			got, err := f.Fork(ctx, alice, &hearthv1.ForkRequest{IdempotencyKey: name + "f", Environment: own[0], Count: 2})
			children = nil
			for _, c := range got.GetChildren() {
				children = append(children, c.GetEnvironment().GetId())
			}
			return err
		})
		if over {
			children = nil
		} else if len(children) != 2 {
			m.wrong("%s has %d children", name, len(children))
		}
		own = append(own, children...)
	}
	m.pause(5 * time.Second)
	m.trace("%s has %v", name, own)
	m.call(name+" claim again", func(f *fleet.Fleet) error {
		got, err := f.Claim(ctx, alice, name, &hearthv1.ClaimSpec{Class: class})
		if err == nil && got.GetEnvironment().GetId() != own[0] {
			m.wrong("%s was answered %s, and then %s", name, own[0], got.GetEnvironment().GetId())
		}
		return err
	})
	if releases {
		m.call(name+" release", func(f *fleet.Fleet) error {
			_, err := f.Release(ctx, alice, name+"r", own[0], false)
			return err
		})
		own = own[1:]
	}
	return own
}

func TestModelNothingIsLostOrLeftThoughControllersDieAndStoresFail(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { modelRun(t, seed) })
		})
	}
}

func modelRun(t *testing.T, seed uint64) {
	t.Helper()
	m := &model{t: t, disk: storetest.NewMemory(), rand: rand.New(rand.NewPCG(seed, 1)), nodes: map[string]*modelNode{}}
	for _, name := range []string{"a", "b"} {
		m.nodes[name] = &modelNode{m: m, name: name, envs: map[string]*hearthv1.Environment{}, keys: map[string]string{}, forks: map[string]*hearthv1.NodeForkResponse{}}
	}
	m.start()
	over := make(chan struct{})
	var deaths sync.WaitGroup
	deaths.Go(func() {
		for {
			select {
			case <-over:
				return
			case <-time.After(8 * time.Second):
			}
			old := m.now()
			m.kill()
			m.pause(2 * time.Second)
			m.start()
			<-old.done
		}
	})
	var wg sync.WaitGroup
	var mu sync.Mutex // guards want
	want := map[string]bool{}
	for i := range 20 {
		wg.Go(func() {
			m.pause(20 * time.Second)
			own := m.live(fmt.Sprintf("c%d", i))
			mu.Lock()
			defer mu.Unlock()
			for _, id := range own {
				want[id] = true
			}
		})
	}
	wg.Wait()
	close(over)
	deaths.Wait()
	m.mu.Lock()
	m.calm = true
	m.mu.Unlock()
	time.Sleep(30 * time.Minute) // abandoned claims, stale placements
	m.judge(want)
	m.kill()
	<-m.now().done
	time.Sleep(time.Minute) // reports end
}

// judge compares what callers were told that they have with what the nodes run and
// what the controller shows.
func (m *model) judge(want map[string]bool) {
	m.t.Helper()
	for _, w := range m.wrongly {
		m.t.Error(w)
	}
	runs, shown := map[string]bool{}, map[string]bool{}
	for _, n := range m.nodes {
		n.mu.Lock()
		for id := range maps.Keys(n.envs) {
			if runs[id] {
				m.t.Errorf("%s runs twice", id)
			}
			runs[id] = true
		}
		n.mu.Unlock()
	}
	for _, e := range m.now().fleet.List(fleet.Principal{Admin: true}, "", "") {
		if e.GetPhase() == hearthv1.Phase_PHASE_RUNNING {
			shown[e.GetId()] = true
		}
	}
	for _, h := range m.history {
		for _, all := range []map[string]bool{want, runs, shown} {
			for id := range all {
				if (!want[id] || !runs[id] || !shown[id]) && strings.Contains(h, id) {
					m.t.Log(h)
				}
			}
		}
		if strings.Contains(h, "dies") && (len(want) != len(runs) || len(want) != len(shown)) {
			m.t.Log(h)
		}
	}
	if diff := cmp.Diff(want, runs); diff != "" {
		m.t.Errorf("what callers have and what runs (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want, shown); diff != "" {
		m.t.Errorf("what callers have and what is shown (-want +got):\n%s", diff)
	}
}
