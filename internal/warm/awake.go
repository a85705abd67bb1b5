package warm

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"hearth/internal/env"
)

// idle reports whether the environment was paused because it did nothing, so
// that it goes on by itself.
func (e *envState) idle() bool {
	return e.Idle && e.Phase == env.PhasePaused && e.Held == ""
}

// Use keeps an environment from being paused for doing nothing until done is
// called, and lets one go on that was. One that its owner has paused stays so:
// env.ErrState. Of callers that come together one thaws.
func (n *Node) Use(ctx context.Context, id env.ID) (done func(), err error) {
	s, err := n.find(id)
	if err != nil {
		return nil, err
	}
	// It is counted before the phase is looked at, and pauseIdle does it the other
	// way round: one of them sees the other.
	n.use(s, 1)
	done = sync.OnceFunc(func() { n.use(s, -1) })
	e := n.stateOf(s).Env
	if e.idle() {
		err = n.wakeUp(ctx, s)
	} else if e.Phase != env.PhaseRunning {
		err = asleep(e)
	}
	if err != nil {
		done()
		return nil, err
	}
	return done, nil
}

func (n *Node) use(s *slot, by int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	s.users += by
	s.used = n.now()
}

// asleep refuses to use what does not run.
func asleep(e *envState) error {
	if e.Phase == env.PhasePaused && e.Held == "" {
		return fmt.Errorf("%w: environment %s is paused: resume it first", env.ErrState, e.ID)
	}
	return fmt.Errorf("%w: environment %s is %s: %s", env.ErrState, e.ID, e.Phase, e.Message)
}

// wakeUp lets an idle environment go on. Who comes second finds it running.
func (n *Node) wakeUp(ctx context.Context, s *slot) error {
	start := time.Now()
	ctx, end, err := n.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	held, done, err := n.hold(ctx, n.stateOf(s).Env.ID)
	if err != nil {
		return hurried(ctx, err)
	}
	defer done()
	switch {
	case held != s: // the caller uses what is gone
		return fmt.Errorf("%w: environment %s was upgraded meanwhile: try again", env.ErrUnavailable, n.stateOf(s).Env.ID)
	case n.stateOf(s).Env.Phase == env.PhaseRunning:
		return nil
	}
	// A disk that is full must not keep it asleep: after a restart it is idle
	// again, and goes on at the next use.
	if err := n.force(s, func(e *envState) error {
		if !e.idle() {
			return asleep(e)
		}
		e.Phase, e.Message, e.Idle = env.PhaseRunning, "", false
		return nil
	}); err != nil {
		return err
	}
	if err := n.settle(ctx, s); err != nil {
		return hurried(ctx, fmt.Errorf("resume idle environment: %w", err))
	}
	n.metrics.woken.WithLabelValues(s.class.Name).Inc()
	n.metrics.wakeSeconds.Observe(time.Since(start).Seconds())
	return nil
}

// errInUse: somebody uses it, or something else is done with it.
var errInUse = errors.New("it is in use")

// pauseIdle pauses an environment that did nothing. If somebody comes to use it
// meanwhile, it runs on.
func (n *Node) pauseIdle(ctx context.Context, s *slot) error {
	ctx, end, err := n.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	select {
	case s.op <- struct{}{}:
	default:
		return errInUse
	}
	defer func() { <-s.op }()
	if n.inUse(s) {
		return errInUse
	}
	err = n.changeIf(s, func(st *slotState) error {
		if st.Env.Phase != env.PhaseRunning {
			return refusal(st.Env)
		}
		st.Env.Phase, st.Env.Message, st.Env.Idle = env.PhasePaused, idleMessage, true
		return nil
	})
	if err != nil {
		return err
	}
	if n.inUse(s) {
		err = errInUse
	} else {
		err = n.settle(ctx, s)
	}
	if err != nil {
		return errors.Join(err, n.unpause(context.WithoutCancel(ctx), s))
	}
	n.metrics.idled.WithLabelValues(s.class.Name).Inc()
	return nil
}

// inUse reports whether somebody uses the environment, or it is gone.
func (n *Node) inUse(s *slot) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return s.users > 0 || s.doomed || s.state.Env == nil || n.envs[s.state.Env.ID] != s
}

// unpause undoes a pause for idleness that did not come about.
func (n *Node) unpause(ctx context.Context, s *slot) error {
	err := n.force(s, func(e *envState) error {
		if !e.idle() {
			return errInUse // something else came first
		}
		e.Phase, e.Message, e.Idle = env.PhaseRunning, "", false
		return nil
	})
	if errors.Is(err, errInUse) {
		err = nil
	}
	return errors.Join(err, n.settle(ctx, s))
}
