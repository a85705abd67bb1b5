package warm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"hearth/internal/env"
)

// A claim that finds no ready slot stands in the node's line. Claims are served in
// the order in which they came, by what comes first: a slot that was prepared for
// the pool, or a turn to have one made, of which the node makes only so many at
// once, since each runs the container runtime beside everything else. While slots
// of the class are being prepared for its pool, as many claims wait for those: they
// have begun, and will be there sooner than another one. A claim that nothing can
// serve is refused at once.
//
// So while claims for ready slots of a class stand in line, its pool is empty. The
// line is in no journal: a claim whose caller goes away while it waits, or whose
// agent dies, leaves nothing.

// How a claim was served.
const (
	ServedWarm   = "warm"   // from a slot that was ready
	ServedQueued = "queued" // from one that became ready while it waited
	ServedCold   = "cold"   // from one that was made for it
)

// Labels of how a wait in the line ended.
const (
	waitSlot     = "slot"     // a ready slot
	waitTurn     = "cold"     // a turn to have one made
	waitExpired  = "expired"  // the class's time, or the caller's, was over
	waitCanceled = "canceled" // the caller went away
	waitRefused  = "refused"  // nothing could serve it any more
)

// queuePhase is the name of the wait among a claim's phases.
const queuePhase = "queue"

// waiter is a claim in the line.
type waiter struct {
	claim *Claim
	began time.Time
	// served is closed when one of the others was set.
	served chan struct{}
	slot   *slot      // ready and in no pool any more; Node.claiming counts the claim
	turn   *env.Class // of which a slot may be made now; Node.starting counts it until over
	over   bool
	boot   env.Resources // what it is to be made with
	base   *slot         // created, to make it of; nil is none: Node.reserved counts it
	err    error         // why it is refused
}

func (w *waiter) isServed() bool { return w.slot != nil || w.turn != nil || w.err != nil }

// pooled reports whether a ready slot would do. A restore needs one of its own.
func (w *waiter) pooled() bool { return w.claim.Snapshot == "" && w.claim.made == nil }

// standInLine waits until the claim gets a ready slot, or its turn to have one made.
// The caller holds mu, which is released meanwhile.
func (n *Node) standInLine(ctx context.Context, class *env.Class, c *Claim) (*waiter, error) {
	w := &waiter{claim: c, began: time.Now(), served: make(chan struct{})}
	n.line = append(n.line, w)
	n.serveLocked()
	patience := n.patience(class, c)
	if !w.isServed() {
		if w.err = n.mayWaitLocked(class, patience); w.err != nil {
			n.leaveLocked(w)
		}
	}
	if w.isServed() {
		if w.err != nil {
			n.metrics.waits.WithLabelValues(waitRefused).Observe(0)
		}
		return w, w.err
	}
	n.mu.Unlock()
	n.poke() // what holds the pools back may just have ended
	timer := time.NewTimer(patience)
	select {
	case <-w.served:
	case <-ctx.Done():
	case <-timer.C:
	}
	timer.Stop()
	n.mu.Lock()
	n.poke() // what yields to those who wait may go on
	return w, n.waitedLocked(ctx, w)
}

// patience is how long a claim may stand in line. An environment that goes on here
// is held elsewhere meanwhile, and waits as long as a slot may take.
func (n *Node) patience(class *env.Class, c *Claim) time.Duration {
	if c.goesOn() {
		return max(n.cfg.PrepareTimeout, class.Warm.Wait)
	}
	return class.Warm.Wait
}

// mayWaitLocked refuses a claim that stands in line already and must not. The
// caller holds mu.
func (n *Node) mayWaitLocked(class *env.Class, patience time.Duration) error {
	switch {
	case n.gate.shut:
		return errHandsOver
	case patience <= 0:
		return fmt.Errorf("%w: class %s has no ready slot, claims of it do not wait (warm.wait), and %d slots are being made for claims, as many as may at once (claims.coldStarts); claim again, or let them wait",
			env.ErrExhausted, class.Name, n.starting)
	case len(n.line) > n.cfg.Queue:
		return fmt.Errorf("%w: class %s has no ready slot, and %d claims wait on this node already, as many as may (claims.queue); claim again later or on another node, or keep more slots ready (warm.slots)",
			env.ErrExhausted, class.Name, len(n.line)-1)
	}
	return nil
}

// waitedLocked ends a wait. What was given to a claim whose caller has gone is
// given to the next. The caller holds mu.
func (n *Node) waitedLocked(ctx context.Context, w *waiter) error {
	waited := max(time.Since(w.began), 1) // that it waited is told from that it did not
	w.claim.waited = waited
	outcome, err := waitSlot, w.err
	switch {
	case w.err != nil:
		outcome = waitRefused
	case ctx.Err() != nil:
		n.giveBackLocked(w)
		outcome, err = waitCanceled, ctx.Err()
		if errors.Is(err, context.DeadlineExceeded) {
			outcome, err = waitExpired, fmt.Errorf("%w: %w", n.inVainLocked(w, waited), err)
		}
	case w.turn != nil:
		outcome = waitTurn
	case w.slot == nil:
		n.leaveLocked(w)
		outcome, err = waitExpired, n.inVainLocked(w, waited)
	}
	n.metrics.waits.WithLabelValues(outcome).Observe(waited.Seconds())
	return err
}

// inVainLocked says that a claim waited for nothing, how things stand, and what
// would help. The caller holds mu.
func (n *Node) inVainLocked(w *waiter, waited time.Duration) error {
	making, why := 0, ""
	if p := n.pools[w.claim.Class]; p != nil {
		making = p.making
		if p.message != "" {
			why = "; the last preparation for the pool failed: " + p.message
		}
	}
	return fmt.Errorf("%w: class %s had no slot for %s; %d more claims wait on this node, %d slots of the class are being prepared and %d made for claims; keep more ready (warm.slots), wait longer (warm.wait), or make more at once (claims.coldStarts)%s",
		env.ErrExhausted, w.claim.Class, waited.Round(time.Millisecond), len(n.line), making, n.starting, why)
}

// giveBackLocked takes a waiter out of the line, or back what it was given. The
// caller holds mu.
func (n *Node) giveBackLocked(w *waiter) {
	switch {
	case w.slot != nil:
		n.claiming--
		n.returnLocked(w.slot)
	case w.base != nil:
		n.starting--
		n.returnCreatedLocked(w.base)
	case w.turn != nil:
		n.starting--
		n.reserved--
	default:
		n.leaveLocked(w)
		return
	}
	n.changedLocked()
}

// leaveLocked takes a waiter out of the line. The caller holds mu.
func (n *Node) leaveLocked(w *waiter) {
	n.line = slices.DeleteFunc(n.line, func(other *waiter) bool { return other == w })
}

// fetchAhead gets what the claim restores onto this node, before its turn comes,
// since that may take long. Its place is kept meanwhile, unless that is a created
// slot's. The caller holds mu, which is released meanwhile.
func (n *Node) fetchAhead(ctx context.Context, class *env.Class, c *Claim) error {
	boot, err := bootOf(class, c.Limits)
	if err != nil || c.Fetch == nil {
		return err
	}
	kept := n.roomLocked() > 0
	if !kept && n.createdLocked(class, boot) == nil {
		return n.noRoom()
	}
	if kept {
		n.reserved++
	}
	n.mu.Unlock()
	err = n.fetch(ctx, c)
	n.mu.Lock()
	if kept {
		n.reserved--
		n.changedLocked()
	}
	return err
}

// changedLocked is called whenever a slot came free, was prepared or was not, or a
// turn ended: it serves the line, and lets the controller be told. The caller
// holds mu.
func (n *Node) changedLocked() {
	n.serveLocked()
	n.tell()
}

// serveLocked gives those who stand in line what there is, in their order. The
// caller holds mu.
func (n *Node) serveLocked() {
	if len(n.line) == 0 {
		return
	}
	coming := make(map[string]int, len(n.pools))
	for name, p := range n.pools {
		coming[name] = p.making
	}
	removing := n.removesLocked()
	stay := make([]*waiter, 0, len(n.line))
	for _, w := range n.line {
		n.turnLocked(w, coming, removing)
		if w.isServed() {
			close(w.served)
		} else {
			stay = append(stay, w)
		}
	}
	n.line = stay
}

// turnLocked serves one waiter, if it can. Coming are the slots that are being
// prepared and for which nobody before it waits. The caller holds mu.
func (n *Node) turnLocked(w *waiter, coming map[string]int, removing bool) {
	class := n.classes[w.claim.Class]
	if class == nil {
		w.err = fmt.Errorf("%w: class %q was taken off this node while the claim waited", env.ErrNotFound, w.claim.Class)
		return
	}
	if w.pooled() {
		if s := n.popReady(class); s != nil {
			if w.err = n.askLocked(s, w.claim); w.err == nil {
				w.slot = s
				n.claiming++
			}
			return
		}
		if coming[class.Name] > 0 && class.Warm.Wait > 0 {
			coming[class.Name]--
			return
		}
	}
	n.startLocked(w, class, removing)
}

// startLocked gives a waiter its turn to have a slot made, if there is a place. The
// caller holds mu.
func (n *Node) startLocked(w *waiter, class *env.Class, removing bool) {
	var err error
	if w.boot, err = bootOf(class, w.claim.Limits); err != nil { // the class has changed
		w.err = err
		return
	}
	base := n.createdLocked(class, w.boot)
	full := base == nil && n.roomLocked() <= 0
	switch {
	case full && !removing:
		w.err = n.noRoom()
	case full, n.starting >= n.cfg.ColdStarts:
	case base != nil:
		n.takeLocked(base)
		w.turn, w.base = class, base
		n.starting++
	default:
		w.turn = class
		n.starting++
		n.reserved++
	}
}

// slowStart is when a slot that is made for a claim waits for its services more than
// for the node. Its turn is over then, or a class that never becomes ready would keep
// all others waiting.
const slowStart = 5 * time.Second

// endTurnLocked lets the next claim have a slot made. Only the first call for a
// waiter does anything. The caller holds mu.
func (n *Node) endTurnLocked(w *waiter) {
	if !w.over {
		w.over = true
		n.starting--
		n.changedLocked()
		n.poke() // what yields to it may go on
	}
}

// removesLocked reports whether a slot is being removed, so that there will be
// room. The caller holds mu.
func (n *Node) removesLocked() bool {
	for _, s := range n.slots {
		if s.doomed {
			return true
		}
	}
	return false
}

func (n *Node) noRoom() error {
	return fmt.Errorf("%w: all %d slots of this node are in use; release environments or raise limits.slots", env.ErrExhausted, n.cfg.MaxSlots)
}

// dissolveLocked refuses all who stand in line. The caller holds mu.
func (n *Node) dissolveLocked(why error) {
	for _, w := range n.line {
		w.err = why
		close(w.served)
	}
	n.line = nil
}

// waitingLocked counts those in line by class. The caller holds mu.
func (n *Node) waitingLocked() map[string]int {
	out := map[string]int{}
	for _, w := range n.line {
		out[w.claim.Class]++
	}
	return out
}

// Changed has an element when the pools or the room of this node have changed since
// it was last received from. It has one receiver.
func (n *Node) Changed() <-chan struct{} { return n.news }

// tell lets the receiver of Changed know.
func (n *Node) tell() {
	select {
	case n.news <- struct{}{}:
	default:
	}
}
