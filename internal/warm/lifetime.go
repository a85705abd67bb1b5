package warm

import (
	"context"
	"fmt"
	"time"

	"hearth/internal/env"
)

// An environment's end is decided by CLOCK_BOOTTIME: no setting of the wall
// clock brings it nearer or puts it off, and the time that a machine sleeps
// counts. The same end by the wall clock is kept for people, and for what a reboot
// leaves of an environment.

// Bounds of a time to live.
const (
	minTimeToLive = time.Second
	maxTimeToLive = 10 * 365 * 24 * time.Hour // far from where durations overflow
)

// Lifetime is where an environment stands in its life, in lengths, since the
// clocks of nodes differ.
type Lifetime struct {
	Lived      time.Duration  // since its claim
	Left       *time.Duration // nil is for ever
	TimeToLive time.Duration  // as asked for, from the claim; 0 is what the class says
}

// Extension sets when an environment ends. The first field that is set counts.
type Extension struct {
	By        time.Duration  // from now
	Until     time.Time      // by this node's wall clock
	FromClaim *time.Duration // replaces what the claim asked for; 0 is what the class says
}

// defaultTime is the time to live of a claim that asks for none; 0 is for ever.
func defaultTime(l env.Lifetime) time.Duration {
	if l.TimeToLive == 0 {
		return l.MaxTimeToLive
	}
	return l.TimeToLive
}

// mostAhead is how far ahead an end may be set; 0 is no bound.
func mostAhead(l env.Lifetime) time.Duration {
	if l.MaxTimeToLive == 0 {
		return l.TimeToLive
	}
	return l.MaxTimeToLive
}

// checkAhead refuses an end that is nearer or further ahead than it may be.
func checkAhead(class *env.Class, left time.Duration) error {
	most := mostAhead(class.Lifetime)
	switch {
	case left < minTimeToLive:
		return fmt.Errorf("%w: an end in %s: at least %s ahead; release the environment to end it now", env.ErrInvalid, left.Round(time.Millisecond), minTimeToLive)
	case most > 0 && left > most:
		return fmt.Errorf("%w: an end in %s: class %s allows %s (lifetime.maxTimeToLive)", env.ErrInvalid, left.Round(time.Second), class.Name, most)
	case left > maxTimeToLive:
		return fmt.Errorf("%w: an end in %s: at most %s ahead", env.ErrInvalid, left, maxTimeToLive)
	}
	return nil
}

// checkLifetime refuses a claim that wants to live longer than its class allows.
// What goes on from another node was allowed there.
func checkLifetime(c *Claim, class *env.Class) error {
	if c.TimeToLive == 0 || c.Lifetime != nil {
		return nil
	}
	return checkAhead(class, c.TimeToLive)
}

// moment is one time by both clocks.
type moment struct {
	boot time.Duration // CLOCK_BOOTTIME
	wall time.Time
}

func (n *Node) moment() moment { return moment{n.now(), time.Now()} }

// begin sets when the environment of a claim began and ends.
func (e *envState) begin(c *Claim, class *env.Class, now moment) {
	e.Begun, e.TimeToLive = now.boot, c.TimeToLive
	if l := c.Lifetime; l != nil {
		e.Begun, e.Claimed, e.TimeToLive = now.boot-l.Lived, now.wall.Add(-l.Lived), l.TimeToLive
		if l.Left != nil {
			e.endIn(*l.Left, now)
		}
		return
	}
	ttl := c.TimeToLive
	if ttl == 0 {
		ttl = defaultTime(class.Lifetime)
	}
	if ttl > 0 {
		e.endIn(ttl, now)
	}
}

// endIn sets the end.
func (e *envState) endIn(left time.Duration, now moment) {
	e.Ends = max(now.boot+max(left, 0), 1)
	e.Expires = now.wall.Add(left).UTC().Truncate(time.Second)
}

// lived is how long ago it was claimed. Records of older agents say that by the
// wall clock only.
func (e *envState) lived(now moment) time.Duration {
	if e.Begun == 0 {
		return max(now.wall.Sub(e.Claimed), 0)
	}
	return max(now.boot-e.Begun, 0)
}

// lifetime is for the node that takes the environment over.
func (e *envState) lifetime(now moment) *Lifetime {
	l := &Lifetime{Lived: e.lived(now), TimeToLive: e.TimeToLive}
	if e.Ends != 0 {
		left := max(e.Ends-now.boot, 0)
		l.Left = &left
	}
	return l
}

// extend sets the end anew, within what the class allows.
func (e *envState) extend(x Extension, class *env.Class, now moment) error {
	left := x.By
	switch {
	case x.By != 0:
	case !x.Until.IsZero():
		left = x.Until.Sub(now.wall)
	case x.FromClaim != nil:
		return e.liveFor(*x.FromClaim, class, now)
	}
	if err := checkAhead(class, left); err != nil {
		return err
	}
	e.endIn(left, now)
	return nil
}

// liveFor sets the end by a time to live from the claim.
func (e *envState) liveFor(asked time.Duration, class *env.Class, now moment) error {
	ttl := asked
	if ttl == 0 {
		ttl = defaultTime(class.Lifetime)
	}
	if ttl == 0 {
		e.TimeToLive, e.Ends, e.Expires = 0, 0, time.Time{}
		return nil
	}
	left := ttl - e.lived(now)
	// One that has passed is an end like any other.
	if err := checkAhead(class, max(left, minTimeToLive)); err != nil {
		return err
	}
	e.TimeToLive = asked
	e.endIn(left, now)
	return nil
}

// mortal reports whether the environment may be released because its time has
// come. One that is held or fenced may run elsewhere, or is about to: a snapshot
// of it here could be a second one of the same number. A quarantined one is
// evidence. All of these wait for whoever ends that state.
func (e *envState) mortal() bool {
	return e.Ends != 0 && e.Held == "" && (e.obedient() || e.Phase == env.PhaseFailed)
}

// Extend sets when an environment ends. An extension that was answered holds
// over a crash of the agent and of the node's kernel.
func (n *Node) Extend(ctx context.Context, id env.ID, x Extension) (Environment, error) {
	if x == (Extension{}) {
		return Environment{}, fmt.Errorf("%w: say for how long or until when environment %s shall live", env.ErrInvalid, id)
	}
	ctx, end, err := n.begin(ctx)
	if err != nil {
		return Environment{}, err
	}
	defer end()
	s, done, err := n.hold(ctx, id)
	if err != nil {
		return Environment{}, hurried(ctx, err)
	}
	defer done()
	err = n.changeIf(s, func(st *slotState) error {
		if st.Env.Held != "" {
			return fmt.Errorf("%w: environment %s is %s", env.ErrUnavailable, id, heldMessage)
		}
		return st.Env.extend(x, s.class, n.moment())
	})
	if err == nil {
		err = n.journal.Sync(opJournal)
	}
	if err != nil {
		return Environment{}, fmt.Errorf("extend environment %s: %w", id, err)
	}
	return n.viewOf(s), nil
}
