package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Part is one part of a daemon. Every function is optional.
type Part struct {
	Name string
	// Start returns when the part can be used. Its context ends with the group's.
	Start func(ctx context.Context) error
	// Run is the part's work. It begins after Start in a goroutine of the
	// group and goes on until its context ends. Returning earlier, with or
	// without an error, ends the group.
	Run func(ctx context.Context) error
	// Retire lets go of what a successor needs; Run and Stop come as ever
	// afterwards. A part without it is stopped when the group retires.
	Retire func(ctx context.Context) error
	// Stop undoes Start. It is called while Run still goes on, so that a part
	// can finish what it is at; Run's context ends when Stop has returned.
	Stop func(ctx context.Context) error
	// Check says why the part cannot do its work now. It must not block.
	Check func() error
}

// Group holds parts in order. Add them before Run.
type Group struct {
	log         *slog.Logger
	stopTimeout time.Duration
	parts       []Part
	retirements chan retirement
	ended       chan struct{} // closed when Run returns

	mu    sync.Mutex // guards state
	state state
}

// retirement is a call of Retire, carried out by Run.
type retirement struct {
	then func() error
	done chan error
}

type state string

const (
	stateStarting state = "starting"
	stateRunning  state = "running"
	stateRetired  state = "handed over"
	stateStopping state = "stopping"
)

// ErrEnded is returned by Run when a part's Run returned nil before it was told to.
var ErrEnded = errors.New("ended unasked")

// NewGroup makes an empty group. All stops together take at most stopTimeout.
func NewGroup(log *slog.Logger, stopTimeout time.Duration) *Group {
	return &Group{
		log: log, stopTimeout: stopTimeout, state: stateStarting,
		retirements: make(chan retirement), ended: make(chan struct{}),
	}
}

// Add appends a part. Parts that others need come first.
func (g *Group) Add(p Part) { g.parts = append(g.parts, p) }

// Ready is nil while every part is started, none stops and every Check passes.
func (g *Group) Ready() error {
	g.mu.Lock()
	s := g.state
	g.mu.Unlock()
	if s != stateRunning {
		return errors.New(string(s))
	}
	for _, p := range g.parts {
		if p.Check == nil {
			continue
		}
		if err := p.Check(); err != nil {
			return fmt.Errorf("%s: %w", p.Name, err)
		}
	}
	return nil
}

// running is a part whose Run goes on.
type running struct {
	part   Part
	cancel context.CancelFunc
	done   chan struct{} // closed when Run has returned; nil if there is no Run
	told   atomic.Bool   // to end, which Stop may bring about before cancel does
}

// failure is the end of one part's Run.
type failure struct {
	name string
	err  error
}

// Run starts the parts, waits until ctx ends or a part fails, and stops the
// parts in reverse. It returns the first failure joined with those of
// stopping; nil after an orderly stop. It is called once.
func (g *Group) Run(ctx context.Context) error {
	defer close(g.ended)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failures := make(chan failure, len(g.parts))
	var up []*running
	var first error
	for _, p := range g.parts {
		r, err := g.start(ctx, p, failures)
		if err != nil {
			first = fmt.Errorf("start %s: %w", p.Name, err)
			break
		}
		up = append(up, r)
	}
	if first == nil {
		g.set(stateRunning)
		g.log.Info("all parts started", "parts", len(up))
		up, first = g.wait(ctx, up, failures)
	}
	g.set(stateStopping)
	if first != nil {
		g.log.Error("part failed", "error", first)
	}
	return errors.Join(first, g.stop(ctx, up))
}

// wait returns what is still up when it is time to stop, and why it is if that
// is a failure.
func (g *Group) wait(ctx context.Context, up []*running, failures <-chan failure) ([]*running, error) {
	for {
		select {
		case <-ctx.Done():
			g.log.Info("stopping", "cause", context.Cause(ctx))
			return up, nil
		case f := <-failures:
			return up, fmt.Errorf("run %s: %w", f.name, f.err)
		case r := <-g.retirements:
			g.set(stateRetired)
			var err error
			if up, err = g.retire(ctx, up); err == nil {
				err = r.then()
			}
			r.done <- err
			if err != nil {
				return up, fmt.Errorf("retire: %w", err)
			}
		}
	}
}

// Retire stops every part that does not know how to retire and retires the
// others, in reverse, then calls then. Afterwards the group is not ready, and
// goes on until its context ends. A failure ends the group: what was let go
// cannot be taken back. It must not be called by the Run of a part that does
// not retire, which it waits for.
func (g *Group) Retire(then func() error) error {
	r := retirement{then: then, done: make(chan error, 1)}
	select {
	case g.retirements <- r:
	case <-g.ended:
		return ErrEnded
	}
	return <-r.done
}

// retire returns the parts that linger, in order. All share one deadline.
func (g *Group) retire(ctx context.Context, up []*running) ([]*running, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), g.stopTimeout)
	defer cancel()
	var errs []error
	var left []*running
	for i := len(up) - 1; i >= 0; i-- {
		r := up[i]
		if r.part.Retire == nil {
			if err := r.stop(ctx); err != nil {
				errs = append(errs, fmt.Errorf("stop %s: %w", r.part.Name, err))
			}
			continue
		}
		left = append(left, r)
		if err := r.part.Retire(ctx); err != nil {
			errs = append(errs, fmt.Errorf("retire %s: %w", r.part.Name, err))
		}
	}
	slices.Reverse(left)
	return left, errors.Join(errs...)
}

func (g *Group) start(ctx context.Context, p Part, failures chan<- failure) (*running, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	begun := time.Now()
	if p.Start != nil {
		if err := p.Start(ctx); err != nil {
			return nil, err
		}
	}
	// Run must outlive ctx: it ends when its turn to stop has come.
	runCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	r := &running{part: p, cancel: cancel}
	if p.Run != nil {
		r.done = make(chan struct{})
		go func() {
			defer close(r.done)
			err := p.Run(runCtx)
			if r.told.Load() {
				return
			}
			if err == nil {
				err = ErrEnded
			}
			failures <- failure{p.Name, err}
		}()
	}
	g.log.Debug("part started", "part", p.Name, "took", time.Since(begun))
	return r, nil
}

// stop ends the parts in reverse under one deadline of its own.
func (g *Group) stop(ctx context.Context, up []*running) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), g.stopTimeout)
	defer cancel()
	var errs []error
	for i := len(up) - 1; i >= 0; i-- {
		if err := up[i].stop(ctx); err != nil {
			errs = append(errs, fmt.Errorf("stop %s: %w", up[i].part.Name, err))
		}
		g.log.Debug("part stopped", "part", up[i].part.Name)
	}
	return errors.Join(errs...)
}

func (r *running) stop(ctx context.Context) error {
	r.told.Store(true)
	var err error
	if r.part.Stop != nil {
		err = r.part.Stop(ctx)
	}
	r.cancel()
	if r.done == nil {
		return err
	}
	select {
	case <-r.done:
		return err
	case <-ctx.Done():
		return errors.Join(err, fmt.Errorf("still running at the deadline: %w", ctx.Err()))
	}
}

func (g *Group) set(s state) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.state = s
}
