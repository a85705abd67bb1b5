package warm

import (
	"context"
	"slices"
	"strings"
	"time"

	"hearth/internal/env"
)

// What a node did by itself, in a word; see Environment.Reason.
const (
	reasonIdle    = "idle"
	reasonExpired = "expired"
)

const (
	idleMessage    = "it did nothing; it goes on when it is used"
	expiredMessage = "its time to live ended"
)

// An environment that was released because its time came is remembered for a
// while, so that whoever asks, and a controller that was away, learns why it is
// gone.
const (
	epitaphAge = time.Hour
	epitaphs   = 1024
)

// due lists the environments whose time has come.
func (n *Node) due() []*slot {
	now := n.now()
	return n.environments(func(s *slot) bool {
		e := s.state.Env
		return e.mortal() && e.Ends <= now
	})
}

// expire releases an environment if its time has still come once nothing else
// is under way. Its class says whether a snapshot is taken first, without which
// it is kept.
func (n *Node) expire(ctx context.Context, s *slot) error {
	ctx, end, err := n.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	id := n.stateOf(s).Env.ID
	_, done, err := n.hold(ctx, id)
	if err != nil {
		return hurried(ctx, err)
	}
	defer done()
	st := n.stateOf(s)
	if !st.Env.mortal() || st.Env.Ends > n.now() {
		return nil
	}
	snap, err := n.releaseHeld(ctx, s, keepAsClassSays, expired)
	if err != nil {
		return hurried(ctx, err)
	}
	n.log.Info("environment expired", "environment", id, "slot", s.id, "snapshot", snap.ID)
	n.metrics.expired.WithLabelValues(st.Class).Inc()
	return nil
}

// expired makes a release one whose reason is the time.
func expired(e *envState, snap env.SnapshotID) {
	e.Message, e.Expired = expiredMessage, time.Now().UTC()
	if snap != "" {
		e.Message += "; its files are in snapshot " + string(snap)
	}
}

// buryEnvironment remembers a released environment whose record says why. The caller holds
// mu.
func (n *Node) buryEnvironment(st slotState) {
	if st.Env == nil || st.Env.Expired.IsZero() {
		return
	}
	now := time.Now()
	n.past = slices.DeleteFunc(n.past, func(p slotState) bool {
		return now.Sub(p.Env.Expired) > epitaphAge || p.Env.ID == st.Env.ID
	})
	n.past = append(n.past, st)
	if over := len(n.past) - epitaphs; over > 0 {
		n.past = slices.Delete(n.past, 0, over)
	}
}

// Past lists the environments that were released here a short while ago because
// their time came, by id.
func (n *Node) Past() []Environment {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []Environment
	for _, st := range n.past {
		if n.envs[st.Env.ID] == nil && time.Since(st.Env.Expired) <= epitaphAge {
			out = append(out, newSlot(st.ID, gone(st.Class)).view(st))
		}
	}
	slices.SortFunc(out, func(a, b Environment) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return out
}

// pastOf finds one of Past.
func (n *Node) pastOf(id env.ID) (Environment, bool) {
	for _, e := range n.Past() {
		if e.ID == id {
			return e, true
		}
	}
	return Environment{}, false
}
