package fleet

import (
	"context"
	"errors"
	"fmt"
	"time"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
	"hearth/internal/placement"
)

// Bounds of the moves that are under way at once. Each freezes an environment and
// copies its files.
const (
	movesPerNode = 4 // away from a node, and to a node
	movesAtOnce  = 256
	maxMoveWait  = time.Minute // between two tries of the same
)

// move is one that this controller has taken up. Fleet.mu guards it, but for what
// belongs to its round.
type move struct {
	running bool
	why     string        // it does not get on; empty if it does
	wait    time.Duration // after the last round that came to nothing
	after   time.Time     // the next one

	// Of the round, which has one goroutine.
	memory  moveMemory
	begun   time.Time
	asked   time.Time // of the last claim
	held    *hearthv1.NodeSnapshotResponse
	found   *hearthv1.Environment // at the target
	exclude map[string]string     // targets that will not do, with why
	booked  *placement.Decision   // counted as on its way
}

// moving reports whether the environment is on its way to another node, or back.
func (r *Record) moving() bool { return r.Next.Node != "" }

// placement is the current one.
func (r *Record) placement() Placement {
	return Placement{r.Environment.GetNode(), r.Generation()}
}

// nextGeneration is one that no node was ever meant to have.
func (r *Record) nextGeneration() env.Generation {
	g := max(r.Generation(), r.Next.Generation)
	for _, p := range r.Stale {
		g = max(g, p.Generation)
	}
	return g + 1
}

// takeMoves lists the moves to go on with now, and notes them as under way: those
// that were begun, and those that leave a node which is drained.
func (f *Fleet) takeMoves(now time.Time) map[env.ID]*move {
	f.mu.Lock()
	defer f.mu.Unlock()
	wanted := f.wantedMoves()
	total, from := 0, map[string]int{}
	for id, m := range f.moves {
		switch r := f.records[id]; {
		case m.running:
			total++
			if r != nil {
				from[r.Environment.GetNode()]++
			}
		case r == nil || !wanted[id]:
			delete(f.moves, id)
		}
	}
	out := map[env.ID]*move{}
	for id := range wanted {
		m, node := f.moves[id], f.records[id].Environment.GetNode()
		if m != nil && (m.running || now.Before(m.after)) || total >= movesAtOnce || from[node] >= movesPerNode {
			continue
		}
		if m == nil {
			m = &move{}
			f.moves[id] = m
		}
		m.running = true
		total++
		from[node]++
		out[id] = m
	}
	return out
}

// wantedMoves are the environments that move, and that are to. The caller holds mu.
func (f *Fleet) wantedMoves() map[env.ID]bool {
	wanted := map[env.ID]bool{}
	for id := range f.census.moving {
		wanted[id] = true
	}
	for node, w := range f.wishes {
		if !w.Drain || !f.up(node) {
			continue
		}
		for id := range f.census.byNode[node] {
			if f.records[id].stays() == "" {
				wanted[id] = true
			}
		}
	}
	return wanted
}

// retryMoves lets what waited for a node go on at once: it is back. The caller
// holds mu.
func (f *Fleet) retryMoves(node string) {
	for id, m := range f.moves {
		if r := f.records[id]; r != nil && (r.Next.Node == node || r.Environment.GetNode() == node) {
			m.wait, m.after = 0, time.Time{}
		}
	}
}

// move goes on with one move until it rests or has to wait.
func (f *Fleet) move(ctx context.Context, id env.ID, m *move) {
	defer f.poke()
	if m.begun.IsZero() {
		m.begun = time.Now()
	}
	m.memory.looked = false // what the target said in an earlier round is old
	for ctx.Err() == nil {
		st, r := f.moveState(id, m)
		s := st.step()
		if s == moveRest || s == moveWait {
			f.moveRests(id, m, s, f.waitingFor(r))
			return
		}
		before := m.memory
		err := f.moveOn(ctx, m, r, s)
		if err != nil && m.memory == before {
			f.log.Info("move waits", "environment", id, "step", string(s), "from", r.Environment.GetNode(), "to", r.Next.Node, "reason", err)
			f.moveRests(id, m, moveWait, fmt.Sprintf("%s: %.*s", s, maxReason, err))
			return
		}
	}
	f.moveRests(id, m, moveWait, "this controller ends")
}

// moveState gathers what is known. The record is nil if there is none any more.
func (f *Fleet) moveState(id env.ID, m *move) (moveState, *Record) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now, r := time.Now(), f.records[id]
	if r == nil {
		return moveState{ended: true}, nil
	}
	open := m.asked
	if !m.memory.own {
		open = later(open, f.started)
	}
	st := moveState{
		at: r.placement(), next: r.Next, ended: r.Ended,
		movable:    !r.Ephemeral && movablePhase(r.Environment.GetPhase(), r.moving()),
		paused:     r.Phase() == env.PhasePaused && !r.idle(),
		leave:      f.wishes[r.Environment.GetNode()].Drain,
		sourceUp:   f.up(r.Environment.GetNode()),
		targetUp:   f.up(r.Next.Node),
		targetLost: r.moving() && f.fenced(r.Next.Node, now),
		quiet:      now.Sub(open) >= f.cfg.AttemptTimeout,
		moveMemory: m.memory,
	}
	if !st.asked() && f.wishes[r.Next.Node].unplaceable() != "" {
		st.targetUp = false // another one, while there is time
	}
	return st, r
}

// waitingFor says what a move waits for that cannot go on.
func (f *Fleet) waitingFor(r *Record) string {
	if r == nil || !r.moving() {
		return ""
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, node := range []string{r.Environment.GetNode(), r.Next.Node} {
		if !f.up(node) {
			return fmt.Sprintf("waiting for node %s", node)
		}
	}
	return fmt.Sprintf("waiting until node %s can have nothing under way", r.Next.Node)
}

// moveRests ends a round.
func (f *Fleet) moveRests(id env.ID, m *move, s moveStep, why string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.unbook(m, placement.Unknown)
	m.running = false
	if s == moveRest && !m.memory.stay {
		delete(f.moves, id)
		return
	}
	if s == moveRest { // it stays for now, and the next round begins anew
		m.memory, m.held, m.found, m.exclude, m.begun = moveMemory{}, nil, nil, nil, time.Time{}
	} else {
		m.why = why
	}
	m.wait = min(max(2*m.wait, f.cfg.Heartbeat), maxMoveWait)
	m.after = time.Now().Add(m.wait)
}

// unbook ends what is counted at the target. The caller holds mu.
func (f *Fleet) unbook(m *move, o placement.Outcome) {
	if m.booked != nil {
		f.index.End(*m.booked, o)
		m.booked = nil
	}
}

// moveOn carries out one step.
func (f *Fleet) moveOn(ctx context.Context, m *move, r *Record, s moveStep) error {
	switch s {
	case moveBegin:
		return f.moveBegin(m, r)
	case moveArrive:
		return f.moveArrive(m, r)
	case moveBack:
		return f.moveBack(m, r)
	case moveSettle:
		return f.moveSettle(m, r)
	}
	err := f.moveAsk(ctx, m, r, s)
	a := answerTo(s, err)
	m.memory.learn(s, a)
	f.log.Debug("move step", "environment", r.ID(), "step", string(s), "answer", string(a), "from", r.Environment.GetNode(), "to", r.Next.Node, "error", err)
	if err != nil {
		f.mu.Lock()
		m.why = fmt.Sprintf("%s: %.*s", s, maxReason, err)
		if m.memory.refused {
			f.unbook(m, placement.Unknown)
			m.avoid(r.Next.Node, m.why)
		}
		f.mu.Unlock()
	}
	return err
}

func (m *move) avoid(node, why string) {
	if m.exclude == nil {
		m.exclude = map[string]string{}
	}
	m.exclude[node] = why
}

// moveBegin chooses a target and stores it, with a generation of its own.
func (f *Fleet) moveBegin(m *move, r *Record) error {
	d, err := f.moveTarget(m, r)
	if err != nil {
		m.memory.stay = true
		f.mu.Lock()
		m.why = err.Error()
		first := m.wait == 0
		f.mu.Unlock()
		if first && !r.moving() {
			f.moveCameToNothing(r, m.why)
		}
		return err
	}
	next, err := f.moveStore("move-begin", r, func(now *Record) {
		now.Next = Placement{d.Node, now.nextGeneration()}
		now.Environment.Message = fmt.Sprintf("moving from node %s to node %s", r.Environment.GetNode(), d.Node)
	})
	if err != nil {
		return err
	}
	m.memory, m.held, m.found = moveMemory{own: true}, nil, nil
	f.log.Info("environment moves", "environment", r.ID(), "from", r.Environment.GetNode(), "to", d.Node, "generation", next.Next.Generation)
	f.happened(Moving, next, fmt.Sprintf("to node %s", d.Node))
	return nil
}

// moveTarget decides and counts it as on its way.
func (f *Fleet) moveTarget(m *move, r *Record) (placement.Decision, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.unbook(m, placement.Unknown)
	exclude := map[string]string{r.Environment.GetNode(): "it is there"}
	for node, why := range m.exclude {
		exclude[node] = why
	}
	for _, p := range r.Stale {
		exclude[p.Node] = "may still hold an earlier generation"
	}
	to := map[string]int{}
	for _, other := range f.moves {
		if other.booked != nil {
			if to[other.booked.Node]++; to[other.booked.Node] >= movesPerNode {
				exclude[other.booked.Node] = fmt.Sprintf("takes %d environments now", movesPerNode)
			}
		}
	}
	d, err := f.index.Decide(placement.Request{Class: r.Environment.GetClass(), Cold: true, Memory: int64(r.Environment.GetResources().GetMemoryBytes()), Exclude: exclude})
	if err != nil {
		return d, err
	}
	f.index.Begin(d)
	m.booked = &d
	return d, nil
}

// errMoveOvertaken: something else was decided about the environment meanwhile.
var errMoveOvertaken = errors.New("it was released or changed meanwhile")

// moveStore stores a step, if the record is what it was decided for.
func (f *Fleet) moveStore(op string, was *Record, edit func(*Record)) (*Record, error) {
	return f.update(op, was.ID(), func(r *Record) (bool, error) {
		if r.Ended || r.Next != was.Next || r.placement() != was.placement() {
			return false, errMoveOvertaken
		}
		edit(r)
		return true, nil
	})
}

// moveArrive stores that the target has it: the source's is stale from now on.
func (f *Fleet) moveArrive(m *move, r *Record) error {
	from, to := r.placement(), r.Next
	now, err := f.moveStore("move-arrive", r, func(now *Record) {
		now.makeStale()
		now.Environment.Node, now.Environment.Generation = to.Node, uint64(to.Generation)
		now.Next = Placement{}
		now.Environment = now.merged(m.found)
	})
	if err != nil {
		return err
	}
	f.mu.Lock()
	f.unbook(m, placement.Claimed)
	f.mu.Unlock()
	took := time.Since(m.begun)
	f.metrics.moved("moved", took)
	f.log.Info("environment moved", "environment", r.ID(), "from", from.Node, "to", to.Node, "generation", to.Generation, "took", took)
	f.happened(Moved, now, fmt.Sprintf("from node %s", from.Node))
	return nil
}

// moveBack stores that it stays. What the target may have is stale, unless it has
// said that it has nothing.
func (f *Fleet) moveBack(m *move, r *Record) error {
	asked := !m.memory.own || m.memory.claimed
	_, err := f.moveStore("move-back", r, func(now *Record) {
		if asked && !m.memory.gone {
			now.addStale(now.Next)
		}
		now.Next.Node = now.Environment.GetNode()
		now.Environment.Message = ""
	})
	if err == nil {
		f.mu.Lock()
		f.unbook(m, placement.Unknown)
		f.mu.Unlock()
	}
	return err
}

// moveSettle stores that it does not move any more.
func (f *Fleet) moveSettle(m *move, r *Record) error {
	now, err := f.moveStore("move-settle", r, func(now *Record) {
		now.Next.Node, now.Environment.Message = "", ""
	})
	if err != nil {
		return err
	}
	f.mu.Lock()
	why := m.why
	m.memory = moveMemory{stay: true}
	f.mu.Unlock()
	f.moveCameToNothing(now, why)
	return nil
}

func (f *Fleet) moveCameToNothing(r *Record, why string) {
	if why == "" {
		why = "its node is not drained any more"
	}
	f.metrics.moved("failed", 0)
	f.log.Warn("environment not moved", "environment", r.ID(), "node", r.Environment.GetNode(), "reason", why)
	f.happened(MoveFailed, r, why)
}
