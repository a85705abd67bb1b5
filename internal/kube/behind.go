package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/client-go/util/workqueue"

	"hearth/api/v1alpha1"
	"hearth/internal/env"
	"hearth/internal/fleet"
)

// What is observed is written behind: a queue of ids, each in it once however
// often it was posted, with back-off for those that could not be written.

const (
	behindWorkers = 4
	behindTimeout = 5 * time.Second
	minBackoff    = 50 * time.Millisecond
	maxBackoff    = 15 * time.Second
	// ownDelay lets the status of what the API made wait for what follows soon.
	// Objects that somebody else made are waited for by somebody.
	ownDelay = time.Second
)

// behind is what writes behind.
type behind struct {
	s       *Store
	queue   workqueue.TypedRateLimitingInterface[env.ID]
	workers sync.WaitGroup
	silent  atomic.Bool // the API server did not answer the last time
	ending  atomic.Bool // what is queued stays

	mu   sync.Mutex        // guards all below
	late map[env.ID]uint64 // what is to be written, and which adding of it was the last
	adds uint64
}

func newBehind(s *Store) *behind {
	b := &behind{s: s, queue: newQueue[env.ID](), late: map[env.ID]uint64{}}
	for range behindWorkers {
		b.workers.Go(b.work)
	}
	return b
}

func newQueue[T comparable]() workqueue.TypedRateLimitingInterface[T] {
	return workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[T](minBackoff, maxBackoff))
}

// add never blocks.
func (b *behind) add(id env.ID, after time.Duration) {
	b.mu.Lock()
	b.adds++
	b.late[id] = b.adds
	b.mu.Unlock()
	b.queue.AddAfter(id, after)
}

// added is the last adding of id.
func (b *behind) added(id env.ID) uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.late[id]
}

// written notes that all up to that adding has been, and counts what has not.
func (b *behind) written(id env.ID, upTo uint64, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err == nil && b.late[id] == upTo {
		delete(b.late, id)
	}
	b.s.metrics.behind.Set(float64(len(b.late)))
}

func (b *behind) work() {
	for {
		id, over := b.queue.Get()
		if over {
			return
		}
		if b.ending.Load() {
			b.queue.Done(id)
			continue
		}
		upTo := b.added(id)
		ctx, cancel := context.WithTimeout(context.Background(), behindTimeout)
		err := b.s.settle(ctx, id)
		cancel()
		b.note(id, err)
		if err != nil {
			b.queue.AddRateLimited(id)
		} else {
			b.queue.Forget(id)
		}
		b.queue.Done(id)
		b.written(id, upTo, err)
	}
}

// note logs each refusal, but of an API server that does not answer only that it
// ceases and that it answers again: everything that waits would say so, again and
// again.
func (b *behind) note(id env.ID, err error) {
	b.s.metrics.wrote(writeBehind, err)
	silent := errors.Is(err, env.ErrUnavailable)
	switch was := b.silent.Swap(silent); {
	case silent && !was:
		b.s.log.Warn("environments are not written behind", "error", err)
	case was && !silent:
		b.s.log.Info("environments are written behind again")
	}
	if err != nil && !silent {
		b.s.log.Warn("environment not written behind", "environment", id, "attempts", b.queue.NumRequeues(id)+1, "error", err)
	}
}

// stop ends the workers after what they are at; what is queued stays.
func (b *behind) stop() {
	b.ending.Store(true)
	b.queue.ShutDown()
	b.workers.Wait()
}

// Post lets a change be written behind.
func (s *Store) Post(c fleet.Change) {
	switch {
	case c.Record != nil:
		s.mu.Lock()
		e := s.entryOf(c.Record)
		e.want, e.forget, e.refused = c.Record, false, ""
		s.mu.Unlock()
		s.behind.add(c.Record.ID(), delayOf(c.Record))
	case c.DeleteRecord != "":
		s.mu.Lock()
		e := s.entries[c.DeleteRecord]
		if e != nil {
			e.forget = true
		}
		s.mu.Unlock()
		if e != nil {
			s.behind.add(c.DeleteRecord, 0)
		}
	}
}

func delayOf(r *fleet.Record) time.Duration {
	if r.Object != "" || r.Ended {
		return 0
	}
	return ownDelay
}

// Close writes what was posted and not written yet, as far as that takes no
// longer than a few seconds.
func (s *Store) Close() error {
	s.behind.stop()
	if s.lost() {
		return nil
	}
	s.mu.Lock()
	var ids []env.ID
	for id, e := range s.entries {
		if e.want != nil || e.forget || e.refused != "" {
			ids = append(ids, id)
		}
	}
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), behindTimeout)
	defer cancel()
	var g errgroup.Group
	g.SetLimit(behindWorkers)
	for _, id := range ids {
		g.Go(func() error { return s.settle(ctx, id) })
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("write what was posted: %w", err)
	}
	return nil
}

// settle makes the object say what is wanted of it. It costs no request if it does
// already.
func (s *Store) settle(ctx context.Context, id env.ID) error {
	e := s.entry(id)
	if e == nil || s.lost() {
		return nil
	}
	if err := s.mayWrite(); err != nil {
		return err
	}
	e.io.Lock()
	defer e.io.Unlock()
	s.mu.Lock()
	want, forget, refused := e.want, e.forget, e.refused
	s.mu.Unlock()
	var todo []step
	switch {
	case forget:
		todo = forgetting(e.have)
	case want != nil:
		todo = steps(e.have, want)
	}
	err := s.run(ctx, e, want, todo)
	if errors.Is(err, env.ErrNotFound) && e.have.presence == gone {
		err = nil // its end comes by the informer
	}
	if err == nil && forget {
		s.unmake(e)
	}
	// A placement that the API server refuses, because of what somebody else wrote
	// into the object, keeps no news from it.
	if (err == nil || errors.Is(err, env.ErrInvalid)) && !forget && e.have.presence == present {
		err = errors.Join(err, s.writeStatus(ctx, e, want, refused))
	}
	if err == nil {
		s.tidy(id, e, forget)
	}
	return err
}

// tidy forgets the entry if nothing is left to be written for it; forgot is that
// its deletion was. The caller holds io.
func (s *Store) tidy(id env.ID, e *entry, forgot bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	over := e.have.presence == gone && (e.want == nil || e.want.Ended && len(e.want.Stale) == 0)
	if over || forgot && e.forget {
		s.drop(id, e)
	}
}

// statusFor is what the object shall say, and whether it does not yet. Of one that
// is about to vanish nothing is said any more. The caller holds io.
func (s *Store) statusFor(e *entry, want *fleet.Record, refused string) (v1alpha1.EnvironmentStatus, bool) {
	now := time.Now()
	var st v1alpha1.EnvironmentStatus
	switch {
	case refused != "":
		st = refusedStatus(e.id, refused, e.have.generation, e.status.Conditions, now)
	case want == nil || want.Ended && (e.have.deleting || !e.have.theirs):
		return st, false
	default:
		address := ""
		if node := want.Environment.GetNode(); node != "" && s.cfg.Address != nil {
			address = s.cfg.Address(node)
		}
		st = statusOf(want, address, e.have.generation, e.status.Conditions, now)
	}
	if st.Phase == v1alpha1.EnvironmentPhase(env.PhaseClaiming) && refused == "" && e.status.Phase == "" {
		return st, false // that goes without saying
	}
	return st, !equality.Semantic.DeepEqual(st, e.status)
}

func (s *Store) writeStatus(ctx context.Context, e *entry, want *fleet.Record, refused string) error {
	st, differs := s.statusFor(e, want, refused)
	if !differs {
		return nil
	}
	body, err := json.Marshal(st)
	if err != nil {
		return fmt.Errorf("encode status of %s: %w", e.have.ref, err)
	}
	o, err := s.c.apply(ctx, e.have.ref, applied{Status: body}, "status")
	if err != nil {
		if s.c.isGone(ctx, e.have.ref, err) {
			e.have.presence = gone
			return nil
		}
		return failed(fmt.Sprintf("write status of %s", e.have.ref), err)
	}
	e.have, e.status = s.seal.objectFrom(o), o.Status
	return nil
}

// Refuse says in the object's status that nothing could be claimed for it yet.
func (s *Store) Refuse(o *v1alpha1.Environment, why string) {
	id := s.idOf(o)
	s.mu.Lock()
	e := s.entries[id]
	if e == nil {
		e = &entry{id: id, have: s.seal.objectFrom(o), status: o.Status}
		s.entries[id] = e
	}
	e.refused = why
	s.mu.Unlock()
	s.behind.add(id, 0)
}

// Known tells that there is a record that this very object shall hold, as far as it
// is known which object that is.
func (s *Store) Known(id env.ID, o ref) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entries[id]
	return e != nil && e.want != nil && !e.forget && (e.uid == "" || e.uid == o.uid)
}

// Elsewhere tells that there is a record of that id, and that another object than
// this one holds it: what becomes of this one says nothing of the environment.
func (s *Store) Elsewhere(id env.ID, o ref) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entries[id]
	return e != nil && e.want != nil && e.uid != "" && e.uid != o.uid
}

// Gone tells that the object was seen to be away, so that nothing more is written
// about it.
func (s *Store) Gone(id env.ID, o ref) {
	s.seen(id, o, func(have *object) { have.presence = gone })
}

// Deleting tells that the object was seen to be deleted by somebody.
func (s *Store) Deleting(id env.ID, o ref) {
	s.seen(id, o, func(have *object) { have.deleting = true })
}

func (s *Store) seen(id env.ID, o ref, edit func(*object)) {
	e := s.entry(id)
	if e == nil {
		return
	}
	e.io.Lock()
	defer e.io.Unlock()
	if e.have.uid == o.uid {
		edit(&e.have)
		s.behind.add(id, 0)
	}
}

// LetGo takes the finalizer from an object that is being deleted and for which
// there is no record.
func (s *Store) LetGo(ctx context.Context, o *v1alpha1.Environment) error {
	if err := s.mayWrite(); err != nil {
		return err
	}
	return s.rid(ctx, o, s.c.letGo(ctx, refOf(o), o.Finalizers))
}

// Orphan deletes an object that a claim through the API made, and that no record
// is held by: the claim's caller was told that it failed.
func (s *Store) Orphan(ctx context.Context, o *v1alpha1.Environment) error {
	if err := s.mayWrite(); err != nil {
		return err
	}
	if err := s.rid(ctx, o, s.c.delete(ctx, refOf(o))); err != nil {
		return err
	}
	return s.LetGo(ctx, o)
}

func (s *Store) rid(ctx context.Context, o *v1alpha1.Environment, err error) error {
	if err == nil || s.c.isGone(ctx, refOf(o), err) {
		return nil
	}
	return failed(fmt.Sprintf("let go of environment %s", refOf(o)), err)
}
