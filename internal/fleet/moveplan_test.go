package fleet

import (
	"fmt"
	"math/rand/v2"
	"testing"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
)

func TestStepsOfAMove(t *testing.T) {
	at, next := Placement{"s", 1}, Placement{"t", 2}
	still, moving, back := Placement{}, next, Placement{"s", 2}
	// Up is a drained node and a target that report.
	up := func(next Placement, m moveMemory) moveState {
		return moveState{at: at, next: next, movable: true, leave: true, sourceUp: true, targetUp: true, moveMemory: m}
	}
	but := func(s moveState, edit func(*moveState)) moveState { edit(&s); return s }
	own := moveMemory{own: true}
	for name, tc := range map[string]struct {
		have moveState
		want moveStep
	}{
		"a drained node's environment begins to move":   {up(still, moveMemory{}), moveBegin},
		"one that is not drained stays":                 {but(up(still, moveMemory{}), func(s *moveState) { s.leave = false }), moveRest},
		"one that cannot move stays":                    {but(up(still, moveMemory{}), func(s *moveState) { s.movable = false }), moveRest},
		"one of a silent node cannot begin":             {but(up(still, moveMemory{}), func(s *moveState) { s.sourceUp = false }), moveRest},
		"one without a target stays for now":            {up(still, moveMemory{stay: true}), moveRest},
		"what has ended does not move":                  {but(up(moving, moveMemory{}), func(s *moveState) { s.ended = true }), moveRest},
		"its source holds it first":                     {up(moving, own), moveHold},
		"a source that is silent is waited for":         {but(up(moving, own), func(s *moveState) { s.sourceUp = false }), moveWait},
		"a target that went silent before it was asked": {but(up(moving, own), func(s *moveState) { s.targetUp = false }), moveBegin},
		"held, the target claims it":                    {up(moving, moveMemory{own: true, held: true}), moveClaim},
		"claimed, it has arrived":                       {up(moving, moveMemory{own: true, held: true, claimed: true, there: true}), moveArrive},
		"a paused one is paused there first": {but(up(moving, moveMemory{own: true, held: true, claimed: true, there: true}),
			func(s *moveState) { s.paused = true }), movePause},
		"and arrives then": {but(up(moving, moveMemory{own: true, held: true, claimed: true, there: true, asleep: true}),
			func(s *moveState) { s.paused = true }), moveArrive},
		"a claim without an answer: look":        {up(moving, moveMemory{own: true, held: true, claimed: true}), moveLook},
		"not there: the same claim again":        {up(moving, moveMemory{own: true, held: true, claimed: true, looked: true}), moveClaim},
		"its target is silent: wait":             {but(up(moving, moveMemory{own: true, held: true, claimed: true}), func(s *moveState) { s.targetUp = false }), moveWait},
		"silent until it has fenced: back":       {but(up(moving, moveMemory{own: true, held: true, claimed: true}), func(s *moveState) { s.targetUp, s.targetLost = false, true }), moveBack},
		"refused: it must say that it has none":  {up(moving, moveMemory{own: true, held: true, claimed: true, known: true, refused: true}), moveRevoke},
		"it has none: another target":            {up(moving, moveMemory{own: true, held: true, claimed: true, known: true, refused: true, gone: true}), moveBegin},
		"and no other is left: back":             {up(moving, moveMemory{own: true, held: true, claimed: true, known: true, refused: true, gone: true, stay: true}), moveBack},
		"the source cannot: back, nobody asked":  {up(moving, moveMemory{own: true, stay: true}), moveBack},
		"drained no more, nobody asked: back":    {but(up(moving, moveMemory{own: true, held: true}), func(s *moveState) { s.leave = false }), moveBack},
		"drained no more, and asked: look first": {but(up(moving, moveMemory{own: true, held: true, claimed: true}), func(s *moveState) { s.leave = false }), moveLook},
		"drained no more, and it is there":       {but(up(moving, moveMemory{own: true, held: true, claimed: true, there: true}), func(s *moveState) { s.leave = false }), moveArrive},
		"drained no more, not there, under way perhaps": {but(up(moving, moveMemory{own: true, held: true, claimed: true, looked: true}),
			func(s *moveState) { s.leave = false }), moveWait},
		"drained no more, not there, long ago": {but(up(moving, moveMemory{own: true, held: true, claimed: true, looked: true}),
			func(s *moveState) { s.leave, s.quiet = false, true }), moveRevoke},

		"after a crash: look at the target first": {up(moving, moveMemory{}), moveLook},
		"after a crash, it is there":              {up(moving, moveMemory{there: true}), moveArrive},
		"after a crash, it is not: hold again":    {up(moving, moveMemory{looked: true}), moveHold},
		"after a crash, held again":               {up(moving, moveMemory{looked: true, held: true}), moveClaim},
		"after a crash, the source has nothing":   {up(moving, moveMemory{looked: true, stay: true}), moveWait},
		"after a crash, another's key":            {up(moving, moveMemory{looked: true, held: true, claimed: true, refused: true}), moveWait},
		"after a crash, another's key, long ago":  {but(up(moving, moveMemory{looked: true, held: true, claimed: true, refused: true}), func(s *moveState) { s.quiet = true }), moveRevoke},

		"going back, the source resumes":    {up(back, moveMemory{}), moveResume},
		"going back to a silent source":     {but(up(back, moveMemory{}), func(s *moveState) { s.sourceUp = false }), moveWait},
		"resumed, it is settled":            {up(back, moveMemory{resumed: true}), moveSettle},
		"after a crash it still goes back":  {up(back, moveMemory{}), moveResume},
		"after a move that came to nothing": {up(Placement{"", 2}, moveMemory{}), moveBegin},
	} {
		t.Run(name, func(t *testing.T) {
			if got := tc.have.step(); got != tc.want {
				t.Errorf("%s, want %s", got, tc.want)
			}
		})
	}
}

// The times of the model, in ticks. A claim whose caller is gone ends within
// claimEnds; its outcome counts as known after quietAfter. A node fences itself
// after fenceTicks alone, and counts as fenced after placeTicks.
const (
	claimEnds  = 6
	quietAfter = 8
	fenceTicks = 12
	placeTicks = 16
)

type modelNode struct {
	gen    env.Generation // of what is there; 0 is nothing
	held   bool
	fenced bool

	up    bool // the controller and it reach each other
	alone int  // ticks since it was answered
	heard int  // when the controller heard of it
	back  int  // when a partition ends

	claim map[env.Generation]*modelClaim // under way, by generation
	known map[env.Generation]int         // the snapshot that a claim that ended well was for
	memo  map[env.Generation]int         // what a hold was answered
}

type modelClaim struct{ ends, snapshot int }

func (n *modelNode) runs() bool { return n.gen != 0 && !n.held && !n.fenced }

// model is a controller and three nodes with everything going wrong at random.
type model struct {
	t         *testing.T
	r         *rand.Rand
	seed      uint64
	calm      bool // nothing goes wrong any more
	now       int
	nodes     map[string]*modelNode
	record    *Record
	memory    moveMemory
	asked     int
	started   int
	exclude   map[string]bool
	leave     bool
	snapshots int
	held      int // the snapshot that the source answered
	log       []modelNote
	counts    map[string]int
}

func newModel(t *testing.T, seed uint64) *model {
	t.Helper()
	m := &model{t: t, seed: seed, r: rand.New(rand.NewPCG(seed, 7)), leave: true, exclude: map[string]bool{}, nodes: map[string]*modelNode{}, counts: map[string]int{}}
	for _, name := range []string{"a", "b", "c"} {
		m.nodes[name] = &modelNode{up: true, claim: map[env.Generation]*modelClaim{}, known: map[env.Generation]int{}, memo: map[env.Generation]int{}}
	}
	m.nodes["a"].gen = 1
	m.record = &Record{Environment: &hearthv1.Environment{Id: "e", Node: "a", Generation: 1, Phase: hearthv1.Phase_PHASE_RUNNING}}
	return m
}

// modelNote is a line for people, put into words only if it is needed.
type modelNote struct {
	now    int
	format string
	args   []any
}

func (m *model) note(format string, args ...any) {
	m.log = append(m.log, modelNote{m.now, format, args})
}

// tell shows the last lines.
func (m *model) tell() {
	for _, l := range m.log[max(0, len(m.log)-60):] {
		m.t.Logf("%3d "+l.format, append([]any{l.now}, l.args...)...)
	}
}

func (m *model) chance(oneIn int) bool { return !m.calm && m.r.IntN(oneIn) == 0 }

func (m *model) check() {
	var running []string
	for name, n := range m.nodes {
		if n.runs() {
			running = append(running, fmt.Sprintf("%s/%d", name, n.gen))
		}
	}
	if len(running) > 1 {
		m.tell()
		m.t.Fatalf("seed %d: two generations run: %v", m.seed, running)
	}
}

// world lets time pass at the nodes.
func (m *model) world() {
	m.now++
	if m.chance(60) {
		m.leave = !m.leave
		m.note("leave=%v", m.leave)
	}
	for _, name := range []string{"a", "b", "c"} {
		n := m.nodes[name]
		for gen, c := range n.claim {
			if m.now < c.ends {
				continue
			}
			delete(n.claim, gen)
			if n.gen == 0 && m.r.IntN(2) == 0 {
				n.made(gen, c.snapshot)
				m.note("%s: a claim of %d ends well", name, gen)
				m.check()
			}
		}
		switch {
		case n.up && m.chance(40):
			n.up, n.back = false, m.now+m.r.IntN(40)
			m.note("%s: alone until %d", name, n.back)
		case !n.up && (m.now >= n.back || m.calm):
			n.up = true
			m.note("%s: back", name)
			m.inventory(name, n)
		}
		switch {
		case n.up && m.chance(100):
			clear(n.memo)
			m.note("%s: agent restarts", name)
		case n.up && m.chance(400):
			*n = modelNode{up: true, claim: map[env.Generation]*modelClaim{}, known: map[env.Generation]int{}, memo: map[env.Generation]int{}}
			m.note("%s: node boots", name)
		}
		if n.up {
			n.alone, n.heard = 0, m.now
			if m.r.IntN(10) == 0 {
				m.inventory(name, n)
			}
		} else if n.alone++; n.alone >= fenceTicks && !n.fenced {
			n.fenced = true
			m.note("%s: fences", name)
		}
	}
	m.check()
}

func (n *modelNode) made(gen env.Generation, snapshot int) {
	n.gen, n.held = gen, false
	n.known[gen] = snapshot
}

// inventory is judged by the real rules. The node thaws what is not stale.
func (m *model) inventory(name string, n *modelNode) {
	fenced := n.fenced
	n.fenced = false
	if n.gen == 0 {
		return
	}
	e := &hearthv1.Environment{Id: "e", Generation: uint64(n.gen), Phase: hearthv1.Phase_PHASE_RUNNING}
	switch judge(name, e, m.record, false) {
	case adopt:
		m.tell()
		m.t.Fatalf("seed %d: adopted %s/%d over %v, next %v", m.seed, name, n.gen, m.record.placement(), m.record.Next)
	case release:
		m.record = m.record.clone()
		m.record.addStale(Placement{name, n.gen})
		n.fenced = fenced
	}
	m.check()
}

func (m *model) sweep() {
	for _, p := range m.record.Stale {
		n := m.nodes[p.Node]
		if !n.up || m.chance(3) {
			continue
		}
		if n.gen != 0 && n.gen <= p.Generation {
			n.gen, n.held, n.fenced = 0, false, false
			m.note("%s: stale %d released", p.Node, p.Generation)
		}
		m.record = m.record.clone()
		m.record.dropStale(p)
	}
}

func (m *model) state() moveState {
	r := m.record
	source, target := m.nodes[r.Environment.GetNode()], m.nodes[r.Next.Node]
	open := m.asked
	if !m.memory.own {
		open = max(open, m.started)
	}
	st := moveState{
		at: r.placement(), next: r.Next, movable: true, leave: m.leave,
		sourceUp: source.up, quiet: m.now-open >= quietAfter, moveMemory: m.memory,
	}
	if target != nil {
		st.targetUp = target.up
		st.targetLost = m.now-max(target.heard, m.started) >= placeTicks
	}
	return st
}

// controller takes steps until it waits, or dies.
func (m *model) controller() {
	m.memory.looked = false
	for range 20 {
		if m.chance(25) {
			m.note("controller dies")
			m.counts["crash"]++
			m.memory, m.asked, m.started, m.held = moveMemory{}, 0, m.now, 0
			clear(m.exclude)
			return
		}
		before := m.memory
		st := m.state()
		s := st.step()
		if s == moveRest {
			m.memory = moveMemory{}
			clear(m.exclude)
			return
		}
		if s == moveWait {
			return
		}
		r := *m.record
		a := m.do(s)
		m.counts[string(s)]++
		m.note("%s at %v next %v: %s", s, r.placement(), r.Next, a)
		m.check()
		if s != moveBegin && s != moveArrive && s != moveBack && s != moveSettle {
			m.memory.learn(s, a)
			if m.memory.refused {
				m.exclude[r.Next.Node] = true
			}
		}
		if m.memory == before && a == moveOpen {
			return
		}
	}
}

// do carries a step out. A call may be lost before or after the node has acted.
func (m *model) do(s moveStep) moveAnswer {
	r := m.record
	source, target := m.nodes[r.Environment.GetNode()], m.nodes[r.Next.Node]
	switch s {
	case moveBegin, moveArrive, moveBack, moveSettle:
		if m.chance(10) {
			return moveOpen // the store does not answer, and has stored nothing
		}
		m.store(s)
		return moveDone
	}
	n := target
	if s == moveHold || s == moveResume {
		n = source
	}
	if !n.up || m.chance(8) {
		if s == moveClaim {
			m.asked = m.now
		}
		return moveOpen
	}
	a := m.act(s, n)
	if m.chance(8) {
		a = moveOpen
	}
	return a
}

func (m *model) act(s moveStep, n *modelNode) moveAnswer {
	r := m.record
	next := r.Next.Generation
	switch s {
	case moveHold:
		if snapshot, ok := n.memo[next]; ok {
			m.held = snapshot
			return moveDone
		}
		if n.gen != r.Generation() || m.chance(10) {
			return moveFailed
		}
		m.snapshots++
		n.held, n.memo[next], m.held = true, m.snapshots, m.snapshots
		return moveDone
	case moveLook:
		if n.gen == next {
			return moveDone
		}
		return moveAbsent
	case moveClaim:
		m.asked = m.now
		return m.actClaim(n, next)
	case moveRevoke:
		if n.gen == 0 {
			return moveAbsent
		}
		if n.gen <= next {
			n.gen, n.fenced = 0, false
		}
		return moveDone
	case moveResume:
		if n.gen != r.Generation() {
			return moveAbsent
		}
		n.held = false
		return moveDone
	}
	panic(s)
}

// actClaim is a node's rule: claims of one key and request come one after the
// other, and another request with the key is refused at once.
func (m *model) actClaim(n *modelNode, next env.Generation) moveAnswer {
	if c := n.claim[next]; c != nil {
		if c.snapshot != m.held {
			return moveBadKey
		}
		delete(n.claim, next) // waits for it
		if m.r.IntN(2) == 0 {
			return moveFailed
		}
		n.made(next, c.snapshot)
		return moveDone
	}
	switch snapshot, done := n.known[next]; {
	case done && snapshot != m.held:
		return moveBadKey
	case done && n.gen == next:
		return moveDone
	case done:
		return moveFailed // it was released
	case n.gen != 0:
		return moveOpen // an earlier one is there
	case m.chance(6):
		return moveFailed
	case m.chance(4): // the caller goes away, and it goes on
		n.claim[next] = &modelClaim{m.now + 1 + m.r.IntN(claimEnds), m.held}
		return moveOpen
	}
	n.made(next, m.held)
	return moveDone
}

func (m *model) store(s moveStep) {
	r := m.record.clone()
	switch s {
	case moveBegin:
		target := ""
		for _, name := range []string{"a", "b", "c"} {
			if n := m.nodes[name]; n.up && name != r.Environment.GetNode() && !m.exclude[name] && !r.isStale(name) {
				target = name
			}
		}
		if target == "" {
			m.memory.stay = true
			return
		}
		r.Next = Placement{target, r.nextGeneration()}
		m.memory, m.held = moveMemory{own: true}, 0
	case moveArrive:
		r.makeStale()
		r.Environment.Node, r.Environment.Generation, r.Next = r.Next.Node, uint64(r.Next.Generation), Placement{}
	case moveBack:
		if (!m.memory.own || m.memory.claimed) && !m.memory.gone {
			r.addStale(r.Next)
		}
		r.Next.Node = r.Environment.GetNode()
	case moveSettle:
		r.Next.Node = ""
		m.memory = moveMemory{stay: true}
	}
	m.record = r
}

// TestNoTwoGenerationsRunWhateverFails checks the steps and the rules of
// reconciliation together. In the end everything works again, and the environment
// runs somewhere, unless its node has lost it.
func TestNoTwoGenerationsRunWhateverFails(t *testing.T) {
	counts := map[string]int{}
	for seed := range uint64(300) {
		m := newModel(t, seed)
		for range 250 {
			m.world()
			m.controller()
			m.sweep()
		}
		m.calm, m.leave = true, false
		for range 120 {
			m.world()
			m.controller()
			m.sweep()
		}
		n := m.nodes[m.record.Environment.GetNode()]
		if m.record.moving() || (n.gen != 0 && (!n.runs() || n.gen != m.record.Generation())) {
			m.tell()
			t.Fatalf("seed %d: in the end the record says %v, next %v; its node has %+v", seed, m.record.placement(), m.record.Next, n)
		}
		for k, v := range m.counts {
			counts[k] += v
		}
	}
	for _, s := range []moveStep{moveBegin, moveHold, moveLook, moveClaim, moveArrive, moveRevoke, moveBack, moveResume, moveSettle, "crash"} {
		if counts[string(s)] < 50 {
			t.Errorf("step %s was taken %d times only: the model does not reach it", s, counts[string(s)])
		}
	}
	t.Logf("steps: %v", counts)
}
