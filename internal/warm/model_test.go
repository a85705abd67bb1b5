package warm

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"hearth/internal/env"
)

// model is one random life of a node: claims, one by one and many at once, callers
// who go away, forks, upgrades, releases, other classes, dead and sick slots, calls that take
// their time or fail, a journal that cannot be written, pressure and restarts, in any
// order and at once.
type model struct {
	t    *testing.T
	rng  *rand.Rand // the test's own goroutine's
	b    *bench
	node *Node
	stop func()

	classes map[string]*env.Class
	// allowed and created are the most slots, ready and created, that a class's pool
	// may have: what is asked now, or was until lately.
	allowed, created map[string]int
	live             []env.ID // answered claims, not released
	rev              int
	pressed          string
	// disturbed is when something last kept checks from running, or changed
	// what they are.
	disturbed time.Time

	mu    sync.Mutex // guards all below
	chaos float64    // how likely a call fails
	sick  map[env.SlotID]time.Time
	dice  *rand.Rand
}

// modelSlots is more than the classes ever ask for together, and few enough that
// claims meet the limit.
const modelSlots = 6

// modelStarts and modelQueue are so few that claims meet them, too.
const modelStarts, modelQueue = 2, 3

func TestPoolsKeepTheirBoundsWhateverHappensAndFillAgain(t *testing.T) {
	requireChown(t)
	seeds := uint64(40)
	if testing.Short() {
		seeds = 8
	}
	for seed := range seeds {
		synctest.Test(t, func(t *testing.T) {
			m := newModel(t, seed)
			for range 120 {
				m.act()
				m.verify()
			}
			m.calm()
			if t.Failed() {
				t.Fatalf("seed %d", seed)
			}
		})
	}
}

func newModel(t *testing.T, seed uint64) *model {
	t.Helper()
	m := &model{
		t: t, b: newBench(t), rng: rand.New(rand.NewPCG(seed, 7)), dice: rand.New(rand.NewPCG(seed, 8)),
		classes: map[string]*env.Class{}, allowed: map[string]int{}, created: map[string]int{}, sick: map[env.SlotID]time.Time{},
	}
	m.b.fault = func(op string) error {
		if op == opJournal+":write" && m.roll(0.5) {
			return errors.New("disk full")
		}
		return nil
	}
	m.b.world.failWith(m.call)
	m.b.world.sick = m.isSick
	m.b.starts, m.b.queue = modelStarts, modelQueue
	for _, name := range []string{"a", "b"} {
		m.change(name)
	}
	m.open()
	return m
}

// call is what every call on the node's parts goes through.
func (m *model) call(name string) error {
	m.mu.Lock()
	lag := time.Duration(m.dice.IntN(40)) * time.Millisecond
	m.mu.Unlock()
	time.Sleep(lag)
	if name == "create" {
		m.bounds()
	}
	// What only looks at a restart must work, or the agent rightly does not start.
	if name != "list" && name != "open" && m.roll(1) {
		return fmt.Errorf("injected into %s", name)
	}
	return nil
}

// roll reports whether to fail now, at a part of the likelihood of the moment.
func (m *model) roll(part float64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.dice.Float64() < m.chaos*part
}

func (m *model) isSick(slot env.SlotID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, sick := m.sick[slot]
	return sick
}

func (m *model) setChaos(p float64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.chaos = p
}

// bounds are those of the whole node, at the moment of a container's making.
func (m *model) bounds() {
	if got := m.b.world.leftovers()["containers"]; got > modelSlots {
		m.t.Errorf("%d containers, the node has %d places", got, modelSlots)
	}
}

// open starts an agent.
func (m *model) open() {
	list := make([]*env.Class, 0, len(m.classes))
	for _, c := range m.classes {
		list = append(list, c)
	}
	m.node = m.b.open(list...)
	m.stop = runNode(m.t, m.node)
}

func (m *model) restart() {
	m.stop()
	if err := m.node.Close(); err != nil {
		m.t.Errorf("close: %v", err)
	}
	m.disturbed = time.Now()
	m.setChaos(0) // of a start only what it finds is of interest
	m.open()
}

// change makes another revision, size or policy of a class.
func (m *model) change(name string) {
	m.rev++
	c := &env.Class{
		Name: name, Revision: fmt.Sprint("r", m.rev), Image: "busybox", Resources: env.Resources{MemoryBytes: 1 << 20},
		Warm: env.WarmPolicy{Slots: m.rng.IntN(3)},
	}
	if old := m.classes[name]; old != nil && m.rng.IntN(3) == 0 {
		c.Revision = old.Revision
	}
	if m.rng.IntN(2) == 0 {
		c.Warm.CheckEvery = time.Duration(1+m.rng.IntN(60)) * time.Second
	}
	if m.rng.IntN(3) == 0 {
		c.Warm.MaxAge = time.Duration(1+m.rng.IntN(10)) * time.Minute
	}
	if m.rng.IntN(3) == 0 {
		c.Warm.RollEvery = time.Duration(1+m.rng.IntN(60)) * time.Second
	}
	c.Warm.Deflate = m.rng.IntN(2) == 0
	if m.rng.IntN(3) != 0 {
		c.Warm.Wait = time.Duration(1+m.rng.IntN(3000)) * time.Millisecond
	}
	m.classes[name] = c
	c.Warm.Created = m.rng.IntN(2)
	m.allowed[name] = max(m.allowed[name], c.Warm.Slots)
	m.created[name] = max(m.created[name], c.Warm.Created)
}

func (m *model) act() {
	ctx := m.t.Context()
	if !m.quiet() {
		defer func() { m.disturbed = time.Now() }()
	}
	switch m.rng.IntN(18) {
	case 0, 1, 2:
		m.claim()
	case 3, 4:
		if len(m.live) > 0 {
			i := m.rng.IntN(len(m.live))
			_, err := m.node.Release(ctx, m.live[i], 0, false)
			// One that failed in the middle is completed by the node.
			if _, gone := m.node.Get(m.live[i]); err == nil || errors.Is(gone, env.ErrNotFound) {
				m.live = append(m.live[:i:i], m.live[i+1:]...)
			}
		}
	case 5:
		m.disturbed = time.Now()
		m.change([]string{"a", "b"}[m.rng.IntN(2)])
		if err := m.node.SetClasses(ctx, []*env.Class{m.classes["a"], m.classes["b"]}); err != nil {
			m.t.Errorf("set classes: %v", err)
		}
	case 6, 10:
		m.harm()
	case 7:
		m.setChaos([]float64{0, 0, 0.02, 0.2}[m.rng.IntN(4)])
	case 8:
		m.pressed = []string{"", "", "busy"}[m.rng.IntN(3)]
		m.b.world.press(m.pressed)
	case 9:
		if m.rng.IntN(3) == 0 {
			m.restart()
		}
	case 11, 12, 13:
		m.burst()
	case 14:
		m.fork()
	case 15:
		m.upgrade()
	default:
		time.Sleep(time.Duration(m.rng.IntN(60_000)) * time.Millisecond)
	}
}

// claim claims, and looks at what it got.
func (m *model) claim() {
	name := []string{"a", "b"}[m.rng.IntN(2)]
	a, err := m.node.Claim(m.t.Context(), Claim{Class: name, WarmOnly: m.rng.IntN(2) == 0})
	if err != nil {
		return
	}
	e := a.Environment
	m.live = append(m.live, e.ID)
	if !m.b.world.lives(e.PID) {
		m.t.Errorf("claim got slot %s, whose init is dead", e.Slot)
	}
	if m.b.world.maySwap(e.Slot) {
		m.t.Errorf("claim got slot %s, whose secrets may be swapped out", e.Slot)
	}
	m.mu.Lock()
	since, sick := m.sick[e.Slot]
	m.mu.Unlock()
	if since.Before(m.disturbed) {
		since = m.disturbed
	}
	// What waits for its turn takes a moment.
	if every := m.classes[name].Warm.CheckEvery; sick && every > 0 && m.quiet() && time.Since(since) > every+5*time.Second {
		m.t.Errorf("claim got slot %s, which is not ready since %s, checked every %s", e.Slot, time.Since(since), every)
	}
}

// burst claims several at once, and some of the callers go away. What it gets is not
// looked at closer.
func (m *model) burst() {
	m.disturbed = time.Now()
	var callers sync.WaitGroup
	got := make(chan env.ID, 8)
	for range 1 + m.rng.IntN(cap(got)) {
		ctx, cancel := context.WithCancel(m.t.Context())
		if m.rng.IntN(3) == 0 {
			time.AfterFunc(time.Duration(m.rng.IntN(1000))*time.Millisecond, cancel)
		}
		c := Claim{Class: []string{"a", "b"}[m.rng.IntN(2)], WarmOnly: m.rng.IntN(8) == 0}
		callers.Go(func() {
			defer cancel()
			if a, err := m.node.Claim(ctx, c); err == nil {
				got <- a.Environment.ID
			}
		})
	}
	for range 3 {
		time.Sleep(time.Duration(m.rng.IntN(200)) * time.Millisecond)
		m.verify()
	}
	callers.Wait()
	close(got)
	for id := range got {
		m.live = append(m.live, id)
	}
	m.node.nobodyWaits(m.t)
}

// fork makes a copy of an environment, which is a restore.
func (m *model) fork() {
	if len(m.live) == 0 {
		return
	}
	_, children, err := m.node.Fork(m.t.Context(), m.live[m.rng.IntN(len(m.live))], []Claim{{}})
	for _, a := range children {
		if err != nil || a.Environment.Served != ServedCold {
			m.t.Errorf("fork = %+v, %v", a.Environment, err)
		}
		m.live = append(m.live, a.Environment.ID)
	}
}

// upgrade moves an environment to its class's newest revision, now or not at all.
func (m *model) upgrade() {
	if len(m.live) == 0 {
		return
	}
	m.disturbed = time.Now()
	id := m.live[m.rng.IntN(len(m.live))]
	before, err := m.node.Get(id)
	if err != nil {
		m.t.Errorf("environment %s: %v", id, err)
		return
	}
	_, err = m.node.Upgrade(m.t.Context(), id, "", KeepAll)
	after, gone := m.node.Get(id)
	newest := m.classes[before.Class].Revision
	if gone != nil || after.Revision != before.Revision && after.Revision != newest || err == nil && after.Revision != newest {
		m.t.Errorf("upgrade of %+v to %s: %v; now %+v, %v", before, newest, err, after, gone)
	}
	if err == nil && !m.b.world.lives(after.PID) {
		m.t.Errorf("upgrade ended with %+v, whose init is dead", after)
	}
}

// quiet reports whether nothing keeps checks from running now.
func (m *model) quiet() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.chaos == 0 && m.pressed == ""
}

// harm kills or spoils a ready slot, or what holds a created one's namespaces.
func (m *model) harm() {
	m.node.mu.Lock()
	defer m.node.mu.Unlock()
	for _, p := range m.node.pools {
		for _, s := range p.created {
			if m.rng.IntN(4) == 0 {
				m.b.world.mu.Lock()
				m.b.world.unheld[s.id] = true
				m.b.world.mu.Unlock()
				return
			}
		}
		for _, s := range p.ready {
			switch m.rng.IntN(3) {
			case 0:
				m.b.world.die(s.init.PID())
				return
			case 1:
				m.mu.Lock()
				m.sick[s.id] = time.Now()
				m.mu.Unlock()
				return
			}
		}
	}
}

// verify holds what must be true at every moment.
func (m *model) verify() {
	m.bounds()
	n := m.node
	n.mu.Lock()
	defer n.mu.Unlock()
	making := 0
	for name, p := range n.pools {
		making += p.making + p.laying
		if have := len(p.created) + p.laying; have > m.created[name] {
			m.t.Errorf("class %s has %d slots created or being laid out, at most %d were asked for", name, have, m.created[name])
		}
		have := len(p.ready) + p.making
		if n.checksLocked(name) {
			have++
		}
		if most := m.allowed[name] + 1; have > most { // one more while it rolls
			m.t.Errorf("class %s has %d slots ready, in a check or being made, at most %d were asked for", name, have, most-1)
		}
	}
	if n.starting > modelStarts || len(n.line) > modelQueue || n.reserved > n.starting+making {
		m.t.Errorf("%d slots are made for claims, %d claims wait, %d places are reserved", n.starting, len(n.line), n.reserved)
	}
	for _, w := range n.line {
		if p := n.pools[w.claim.Class]; w.pooled() && p != nil && len(p.ready) > 0 {
			m.t.Errorf("a claim of class %s waits beside %d ready slots", w.claim.Class, len(p.ready))
		}
	}
	if making > 1 {
		m.t.Errorf("%d slots are being made for pools at once", making)
	}
	if len(n.slots)+n.reserved > modelSlots {
		m.t.Errorf("%d slots and %d reservations, the node has %d places", len(n.slots), n.reserved, modelSlots)
	}
}

// calm lets everything work again: what was answered is there, the pools fill,
// and after the last release nothing else exists.
func (m *model) calm() {
	m.setChaos(0)
	m.b.world.press("")
	for _, name := range []string{"a", "b"} { // or one may just be replaced when we look
		c := *m.classes[name]
		c.Warm.MaxAge = 0
		m.classes[name] = &c
	}
	if err := m.node.SetClasses(m.t.Context(), []*env.Class{m.classes["a"], m.classes["b"]}); err != nil {
		m.t.Errorf("set classes: %v", err)
	}
	m.mu.Lock()
	clear(m.sick)
	m.mu.Unlock()
	time.Sleep(10 * time.Minute)
	for _, id := range m.live {
		if _, err := m.node.Get(id); err != nil {
			m.t.Errorf("environment %s was answered and is gone: %v", id, err)
		}
		if _, err := m.node.Release(m.t.Context(), id, 0, false); err != nil {
			m.t.Errorf("release: %v", err)
		}
	}
	time.Sleep(10 * time.Minute)
	synctest.Wait()
	want, created := 0, 0
	for _, p := range m.node.Pools() {
		c := m.classes[p.Class]
		want += c.Warm.Slots
		created += c.Warm.Created
		if p.Created != c.Warm.Created {
			m.t.Errorf("pool = %+v, want %d created", p, c.Warm.Created)
		}
		if p.Ready != c.Warm.Slots || readyOf(m.node, p.Class)[c.Revision] < p.Ready-1 {
			m.t.Errorf("pool = %+v with %v, want %d of revision %s", p, readyOf(m.node, p.Class), c.Warm.Slots, c.Revision)
		}
	}
	m.stop()
	m.node.work.Wait()
	if left := m.b.world.leftovers(); left["processes"] != want ||
		left["containers"] != want+created || left["cgroups"] != want+created || left["islands"] != want+created {
		m.t.Errorf("left = %v, want those of %d ready and %d created slots", left, want, created)
	}
	if err := m.node.Close(); err != nil {
		m.t.Errorf("close: %v", err)
	}
}
