package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"hearth/internal/env"
)

// Annotations of the lease, by which agents find the controller that leads.
const (
	AnnotationAddress = "hearth.run/address" // host:port of its API
	AnnotationCA      = "hearth.run/ca"      // PEM of the authority
)

// Candidate is a controller that may lead.
type Candidate struct {
	Namespace string
	// Lease is the name of the lease; 8 times Renew without a renewal it is free.
	Lease string
	// Holder is this process, never that of two at a time.
	Holder string
	// Pod in Namespace gets the label by which the Service finds the leader. Empty
	// outside of pods.
	Pod     string
	Address string // see AnnotationAddress
	CA      []byte // see AnnotationCA
	// Renew is the interval of renewals. Default 1.5 s.
	Renew time.Duration
}

func (c Candidate) renew() time.Duration {
	if c.Renew == 0 {
		return 1500 * time.Millisecond
	}
	return c.Renew
}

// life is how long a lease is held without a renewal.
func (c Candidate) life() time.Duration { return 8 * c.renew() }

// Leadership is the time in which this process leads.
type Leadership struct {
	life    time.Duration // of the lease
	lost    atomic.Bool
	renewed atomic.Pointer[time.Time] // when the last renewal that succeeded was sent; nil once the lease is given back
	serves  chan struct{}
	once    sync.Once
}

// Lost tells that another controller was seen to lead. It never becomes false
// again.
func (l *Leadership) Lost() bool { return l.lost.Load() }

// Sure tells that no other controller can lead: the lease was renewed less than its
// life ago. It becomes false while the API server does not answer, and true again.
// Both clocks count: one of them stands still while a machine sleeps.
func (l *Leadership) Sure() bool {
	at := l.renewed.Load()
	if at == nil || l.Lost() {
		return false
	}
	now := time.Now()
	return now.Sub(*at) < l.life && now.Round(0).Sub(at.Round(0)) < l.life
}

// mayWrite refuses what a leader decides while another one may lead: what it wrote
// on its return, before it saw the other's lease, would undo what that one decided.
// A client by which nobody leads may always write.
func (c *Client) mayWrite() error {
	switch l := c.leadership.Load(); {
	case l == nil || l.Sure():
		return nil
	case l.Lost():
		return fmt.Errorf("%w: another controller leads", env.ErrSuperseded)
	default:
		return fmt.Errorf("%w: the lease was not renewed for its whole life, so that another controller may lead by now; try again when the Kubernetes API server answers, and if it does, see that the lease of deploy/controller is there", env.ErrUnavailable)
	}
}

// Serving lets callers find this process: the API is served.
func (l *Leadership) Serving() { l.once.Do(func() { close(l.serves) }) }

// Lead waits until this process leads, calls act, and gives the leadership back
// when act has returned. It returns act's error; nil if ctx ended before.
//
// While the API server does not answer the leader goes on: whether another one
// leads by then, which could see what this one does not, the nodes know by the
// epoch. Only a Store of this client writes nothing until the lease is renewed: see
// Leadership.Sure. If it answers and another one holds the lease, act's context ends and
// Lead returns env.ErrSuperseded.
func (c *Client) Lead(ctx context.Context, log *slog.Logger, me Candidate, act func(context.Context, *Leadership) error) error {
	e := &election{c: c, log: log, me: me, seen: sighting{}}
	lease, err := e.acquire(ctx)
	if err != nil || lease == nil {
		return err
	}
	l := &Leadership{life: me.life(), serves: make(chan struct{})}
	sent := e.sent
	l.renewed.Store(&sent)
	c.leadership.Store(l)
	acting, cancel := context.WithCancel(ctx)
	defer cancel()
	var renewing sync.WaitGroup
	stop := make(chan struct{})
	renewing.Go(func() { e.keep(stop, lease, l, cancel) })
	err = act(acting, l)
	close(stop)
	renewing.Wait()
	if l.Lost() {
		return errors.Join(fmt.Errorf("%w: another controller holds the lease %s/%s; this one ends, to stand by anew", env.ErrSuperseded, me.Namespace, me.Lease), err)
	}
	l.renewed.Store(nil)
	e.release()
	return err
}

// election is one process's part in it. One goroutine at a time uses it.
type election struct {
	c        *Client
	log      *slog.Logger
	me       Candidate
	seen     sighting
	degraded bool
	labelled labelState
	sent     time.Time // the last writing of the lease
}

// sighting is since when, by the own clock, a lease has been as it is. Clocks of
// two machines are never compared.
type sighting struct {
	version string
	at      time.Time
}

// standing is what a lease means to a candidate.
type standing string

const (
	mine standing = "mine" // held by this very process, or by the one before in this pod
	free standing = "free"
	held standing = "held"
)

// standingOf is a pure function of the lease and of how long it has been so.
func standingOf(me string, lease *coordinationv1.Lease, unchanged time.Duration) standing {
	holder, life := "", time.Duration(0)
	if lease.Spec.HolderIdentity != nil {
		holder = *lease.Spec.HolderIdentity
	}
	if s := lease.Spec.LeaseDurationSeconds; s != nil {
		life = time.Duration(*s) * time.Second
	}
	switch {
	case holder == me:
		return mine
	case holder == "", unchanged > life:
		return free
	default:
		return held
	}
}

// acquire polls until the lease is this process's; nil if ctx ended before.
func (e *election) acquire(ctx context.Context) (*coordinationv1.Lease, error) {
	e.log.Info("standing by", "lease", e.me.Lease, "holder", e.me.Holder)
	for ctx.Err() == nil {
		lease, err := e.try(ctx)
		switch {
		case lease != nil:
			e.log.Info("leading", "lease", e.me.Lease, "transitions", transitions(lease))
			return lease, nil
		case errors.Is(err, env.ErrDenied), errors.Is(err, env.ErrInvalid):
			return nil, err
		}
		e.note(err)
		e.label(ctx, false)
		select {
		case <-ctx.Done():
		case <-time.After(e.me.renew() / 2):
		}
	}
	return nil, nil
}

// note logs when the API server ceases to answer and when it answers again.
func (e *election) note(err error) {
	if (err != nil) == e.degraded {
		return
	}
	e.degraded = err != nil
	if err != nil {
		e.log.Warn("lease not reachable", "lease", e.me.Lease, "error", err)
	} else {
		e.log.Info("lease reachable again", "lease", e.me.Lease)
	}
}

// try takes the lease if it is free; nil without an error if another one has it.
func (e *election) try(ctx context.Context) (*coordinationv1.Lease, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	lease, err := e.read(ctx)
	if apierrors.IsNotFound(err) {
		return e.written(e.create(ctx))
	}
	if err != nil {
		// While the API server does not answer no leader can renew: the wait begins
		// anew, so that the one that led leads on.
		e.seen = sighting{}
		return nil, failed("read lease "+e.me.Lease, err)
	}
	if lease.ResourceVersion != e.seen.version {
		e.seen = sighting{lease.ResourceVersion, time.Now()}
	}
	if standingOf(e.me.Holder, lease, time.Since(e.seen.at)) == held {
		return nil, nil
	}
	return e.written(e.write(ctx, e.taken(lease)))
}

// written is nil without an error if another candidate was faster.
func (e *election) written(lease *coordinationv1.Lease, err error) (*coordinationv1.Lease, error) {
	if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) {
		return nil, nil
	}
	if err != nil {
		return nil, failed("take lease "+e.me.Lease, err)
	}
	return lease, nil
}

// keep renews until stop is closed, and ends the leadership if another holder is
// seen.
func (e *election) keep(stop <-chan struct{}, lease *coordinationv1.Lease, l *Leadership, end context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	tick := time.NewTicker(e.me.renew())
	defer tick.Stop()
	serving, serves := false, l.serves
	for {
		select {
		case <-stop:
			return
		case <-serves:
			serving, serves = true, nil
		case <-tick.C:
			next, err := e.renew(ctx, lease)
			if errors.Is(err, env.ErrSuperseded) {
				e.log.Error("leadership lost", "error", err)
				l.lost.Store(true)
				e.label(ctx, false)
				end()
				return
			}
			e.note(err)
			if err == nil {
				lease = next
				sent := e.sent
				l.renewed.Store(&sent)
			}
		}
		if serving {
			e.label(ctx, true)
		}
	}
}

// renew says that this process goes on. Env.ErrSuperseded is that another one has
// the lease; any other error leaves open whether.
func (e *election) renew(ctx context.Context, lease *coordinationv1.Lease) (*coordinationv1.Lease, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*e.me.renew())
	defer cancel()
	next, err := e.write(ctx, e.renewed(lease))
	switch {
	case err == nil:
		return next, nil
	case apierrors.IsNotFound(err):
		if next, err = e.create(ctx); err == nil {
			return next, nil
		}
		if !apierrors.IsAlreadyExists(err) {
			return nil, failed("renew lease "+e.me.Lease, err)
		}
	case !apierrors.IsConflict(err):
		return nil, failed("renew lease "+e.me.Lease, err)
	}
	now, err := e.read(ctx)
	if err != nil {
		return nil, failed("read lease "+e.me.Lease, err)
	}
	if holder := now.Spec.HolderIdentity; holder != nil && *holder != e.me.Holder && *holder != "" {
		return nil, fmt.Errorf("%w: lease %s is held by %s", env.ErrSuperseded, e.me.Lease, *holder)
	}
	next, err = e.write(ctx, e.renewed(now))
	if err != nil {
		return nil, failed("renew lease "+e.me.Lease, err)
	}
	return next, nil
}
