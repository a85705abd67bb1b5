package warm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"hearth/internal/env"
)

// Claim turns a slot into an environment: a ready one of the class, or, if
// there is none or a snapshot is to be restored, one made for it.
func (n *Node) Claim(ctx context.Context, c Claim) (Answer, error) {
	watch := newStopwatch()
	if err := c.validate(); err != nil {
		return Answer{}, err
	}
	ctx, end, err := n.begin(ctx)
	if err != nil {
		return Answer{}, err
	}
	defer end()
	answer, err := n.claimByKey(ctx, c, watch)
	return answer, hurried(ctx, err)
}

// claimByKey claims, or answers a repeated key as before.
func (n *Node) claimByKey(ctx context.Context, c Claim, watch *stopwatch) (Answer, error) {
	if c.Key == "" {
		return n.claim(ctx, &c, "", watch)
	}
	digest, err := c.digest(n.tokens.key)
	if err != nil {
		return Answer{}, err
	}
	for {
		k, mine, err := n.reserveKey(c.Key, digest)
		if err != nil {
			return Answer{}, err
		}
		if mine {
			return n.claimOnce(ctx, &c, digest, watch, k)
		}
		select {
		case <-k.done:
		case <-ctx.Done():
			return Answer{}, ctx.Err()
		}
		if k.id != "" {
			return n.repeat(c.Key, k.id)
		}
		// The first try failed, so this one is the first.
	}
}

// claimOnce is the claim that owns its key, which is settled whatever happens.
func (n *Node) claimOnce(ctx context.Context, c *Claim, digest string, watch *stopwatch, k *keyed) (answer Answer, err error) {
	defer func() { n.settleKey(c.Key, k, answer.Environment.ID) }()
	return n.claim(ctx, c, digest, watch)
}

// reserveKey enters a claim's key, or finds the claim that has it.
func (n *Node) reserveKey(key, digest string) (k *keyed, mine bool, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if k := n.keys[key]; k != nil {
		if k.digest != digest {
			return nil, false, fmt.Errorf("%w: idempotency key %q came with another request before; use a new key", env.ErrInvalid, key)
		}
		return k, false, nil
	}
	k = &keyed{digest: digest, done: make(chan struct{})}
	n.keys[key] = k
	return k, true, nil
}

// settleKey ends a reservation: with an environment, or free again.
func (n *Node) settleKey(key string, k *keyed, id env.ID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	k.id = id
	if id == "" {
		delete(n.keys, key)
	} else {
		n.keyAges = append(n.keyAges, keyAgeing{key, time.Now()})
	}
	close(k.done)
}

// repeat gives the first answer again.
func (n *Node) repeat(key string, id env.ID) (Answer, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.envs[id]
	if s == nil {
		return Answer{}, fmt.Errorf("%w: idempotency key %q claimed environment %s, which was released", env.ErrState, key, id)
	}
	e := s.state.Env
	return Answer{
		Environment: n.viewLocked(s), Took: e.Took,
		Token: n.tokens.of(e.ID, e.Generation, e.Epoch),
	}, nil
}

func (n *Node) claim(ctx context.Context, c *Claim, digest string, watch *stopwatch) (Answer, error) {
	if err := n.parts.Disk.Admit(0); err != nil {
		return Answer{}, fmt.Errorf("claim class %s: %w", c.Class, err)
	}
	if c.ID == "" {
		c.ID = env.NewID()
	}
	if c.Generation == 0 {
		c.Generation = 1
	}
	if c.Egress != nil {
		if err := n.parts.Islands.Warm(env.EgressPolicy{Mode: env.EgressNone}, c.Egress); err != nil {
			return Answer{}, fmt.Errorf("egress policy of the claim: %w", err)
		}
		watch.lap("policy")
	}
	var err error
	if c.binds, err = n.openBinds(c); err != nil {
		return Answer{}, fmt.Errorf("claim class %s: %w", c.Class, err)
	}
	defer closeBinds(c.binds)
	s, warm, err := n.obtain(ctx, c)
	if err != nil {
		return Answer{}, err
	}
	watch.skip(queuePhase, c.waited)
	watch.lap("take")
	err = n.personalise(ctx, s, c, digest, warm, watch)
	if warm && errors.Is(err, errUnfit) {
		s, err = n.tryOthers(s, c, err, func(s *slot) error { return n.personalise(ctx, s, c, digest, warm, watch) })
	}
	condemned, err := n.claimEnded(c.ID, s, err)
	if err != nil {
		if warm && errors.Is(err, errUnfit) {
			n.putBack(s)
		} else {
			n.background(s, "its claim failed")
		}
		n.unfork(c)
		return Answer{}, fmt.Errorf("claim environment %s: %w", c.ID, err)
	}
	st := n.stateOf(s)
	n.afterClaim(ctx, s, st, watch, condemned)
	return Answer{
		Environment: n.show(s, st),
		Token:       n.tokens.of(st.Env.ID, st.Env.Generation, st.Env.Epoch),
		Took:        st.Env.Took,
		Phases:      watch.laps,
	}, nil
}

// obtain takes a ready slot or makes one, and enters the environment's id so
// that no second claim can use it. On success n.claiming counts this claim.
func (n *Node) obtain(ctx context.Context, c *Claim) (s *slot, warm bool, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	class := n.classes[c.Class]
	switch {
	case n.closed:
		return nil, false, errStopping
	case n.fenced:
		return nil, false, errFenced
	case class == nil:
		return nil, false, fmt.Errorf("%w: class %q; this node has %s", env.ErrNotFound, c.Class, n.classNames())
	case n.envs[c.ID] != nil || n.pending[c.ID]:
		return nil, false, fmt.Errorf("%w: environment %s runs on this node", env.ErrExists, c.ID)
	}
	if err := errors.Join(checkLifetime(c, class), n.overLocked()); err != nil {
		return nil, false, err
	}
	n.pending[c.ID] = true
	s, warm, err = n.slotFor(ctx, class, c)
	if err != nil {
		delete(n.pending, c.ID)
		return nil, false, err
	}
	n.envs[c.ID] = s
	return s, warm, nil
}

// slotFor gets the claim a ready slot, at once or in its turn, or has one made. On
// success n.claiming counts the claim. The caller holds mu, which may be released
// meanwhile.
func (n *Node) slotFor(ctx context.Context, class *env.Class, c *Claim) (s *slot, warm bool, err error) {
	if c.Snapshot == "" {
		n.claiming++
		s := n.popReady(class)
		if s == nil && n.interrupt(ctx, class.Name) {
			s = n.popReady(class)
		}
		if s != nil {
			err = n.askLocked(s, c)
		}
		if s != nil && err == nil {
			return s, true, nil
		}
		n.claiming--
	}
	switch {
	case err != nil:
		return nil, false, err
	case c.WarmOnly:
		return nil, false, fmt.Errorf("%w: no ready slot of class %s", env.ErrExhausted, class.Name)
	}
	if err := n.fetchAhead(ctx, class, c); err != nil {
		return nil, false, err
	}
	w, err := n.standInLine(ctx, class, c)
	if err != nil || w.slot != nil {
		return w.slot, true, err
	}
	s, err = n.makeCold(ctx, w)
	return s, false, err
}

// popReady takes the oldest live slot of the class's current revision, or of
// an older one if there is no other. Dead ones on the way are removed. The
// caller holds mu.
func (n *Node) popReady(class *env.Class) *slot {
	p := n.pools[class.Name]
	for p != nil && len(p.ready) > 0 {
		s := p.ready[0]
		for _, r := range p.ready {
			if r.state.Revision == class.Revision {
				s = r
				break
			}
		}
		n.takeLocked(s)
		switch {
		case !s.init.Alive():
			n.buryLocked(s)
		case class.Warm.MaxAge > 0 && time.Since(s.state.Made) > class.Warm.MaxAge:
			n.background(s, "it is older than its class allows")
		default:
			return s
		}
	}
	return nil
}

// makeCold prepares a slot for one claim whose turn it is. The caller holds mu,
// which is released meanwhile. Refill may go on: only the slot's hand-over is in a
// hurry.
func (n *Node) makeCold(ctx context.Context, w *waiter) (*slot, error) {
	n.mu.Unlock()
	n.poke()
	slow := time.AfterFunc(slowStart, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.endTurnLocked(w)
	})
	s, err := n.makeFor(ctx, w)
	slow.Stop()
	n.mu.Lock()
	n.endTurnLocked(w)
	if err == nil {
		n.claiming++
	}
	return s, err
}

// makeFor is makeCold without the lock. It takes what the waiter was given.
func (n *Node) makeFor(ctx context.Context, w *waiter) (*slot, error) {
	c, class := w.claim, w.turn
	if c.made != nil {
		return c.made(ctx, w)
	}
	if c.Snapshot == "" {
		return n.prepareWith(ctx, w.base, class, w.boot, nil)
	}
	if c.goesOn() {
		class = asItWas(class)
	}
	s, err := n.prepareWith(ctx, w.base, class, w.boot, n.restore(c))
	if err != nil {
		n.unfork(c)
	}
	return s, err
}

// fetch gets the claim's snapshot from the node that the claim names, if this
// one does not have it.
func (n *Node) fetch(ctx context.Context, c *Claim) error {
	if c.Fetch == nil {
		return nil
	}
	if _, err := n.parts.Snapshots.Get(c.Snapshot); !errors.Is(err, env.ErrNotFound) {
		return err
	}
	return n.parts.Snapshots.Fetch(ctx, c.Snapshot, c.Tenant, *c.Fetch)
}

// restore fills a slot from the claim's snapshot, which must be of the same
// image, and begins the environment's own lineage there.
func (n *Node) restore(c *Claim) fill {
	return func(ctx context.Context, image Image, files Files) error {
		id := c.Snapshot
		snap, err := n.parts.Snapshots.Get(id)
		if err != nil {
			return err
		}
		if snap.Tenant != c.Tenant {
			return fmt.Errorf("%w: snapshot %s belongs to another tenant", env.ErrDenied, id)
		}
		if snap.Base != image.Digest {
			return fmt.Errorf("%w: snapshot %s lies on image %s, the class has %s; claim a class of the snapshot's image", env.ErrInvalid, id, snap.Base, image.Digest)
		}
		if err := n.parts.Disk.Admit(snap.Stats.Bytes); err != nil {
			return fmt.Errorf("restore snapshot %s of %d bytes: %w", id, snap.Stats.Bytes, err)
		}
		if err := n.parts.Snapshots.Restore(ctx, id, files); err != nil {
			return err
		}
		if snap.Lineage == c.ID {
			return nil // it goes on in its own lineage
		}
		if err := n.parts.Snapshots.Fork(ctx, id, c.ID, c.Tenant); err != nil {
			return err
		}
		c.forked = true
		return nil
	}
}

// unfork forgets the lineage that a failed claim began, and no other.
func (n *Node) unfork(c *Claim) {
	if !c.forked {
		return
	}
	if err := n.parts.Snapshots.Delete(c.ID); err != nil && !errors.Is(err, env.ErrNotFound) {
		n.log.Warn("forget lineage of failed claim", "environment", c.ID, "error", err)
	}
}

// personalise makes the slot the environment and lets it run: the claim path.
func (n *Node) personalise(ctx context.Context, s *slot, c *Claim, digest string, warm bool, watch *stopwatch) error {
	if !s.init.Alive() {
		return errors.New("the slot's init has ended")
	}
	if err := ctx.Err(); err != nil {
		return err // a caller who has gone wants no environment
	}
	files, err := identityFiles(c.ID, c)
	if err != nil {
		return err
	}
	if err := n.change(s, func(st *slotState) { st.claimedBy(c, digest, warm, s.class, n.moment()) }); err != nil {
		return err
	}
	watch.lap("journal")
	if err := n.equip(s, c, files, c.binds, watch); err != nil {
		return err
	}
	n.parts.Detector.Claimed(s.id, c.ID)
	if err := n.parts.Islands.Unlock(s.id, s.class.Egress, c.Egress); err != nil {
		return err
	}
	watch.lap("unlock")
	ctx, cancel := context.WithTimeout(ctx, n.cfg.UndoTimeout)
	defer cancel()
	if err := s.cgroup.Thaw(ctx); err != nil {
		return err
	}
	watch.lap("thaw")
	if err := n.change(s, func(st *slotState) {
		st.Env.Phase = env.PhaseRunning
		st.Env.Took = watch.total()
	}); err != nil {
		return err
	}
	watch.lap("commit")
	return nil
}

// equip gives a slot, which is frozen, all that its claim asks for but the network.
// Limits are set beside the rest, unless the slot may not suit them: then nothing of
// it may have been touched.
func (n *Node) equip(s *slot, c *Claim, files []IdentityFile, binds []Bind, watch *stopwatch) error {
	limits, limited := n.limitsOf(s), make(chan error, 1)
	switch {
	case limits == (env.Resources{}):
		limited <- nil
	case n.stateOf(s).Swappable, limits.MemoryBytes > 0 && limits.MemoryBytes < s.boot.MemoryBytes:
		if err := s.limit(limits); err != nil {
			return err
		}
		limited <- nil
		watch.lap("limits")
	default:
		// Not as limit tells it: whatever the error, the slot has been touched.
		go func() { limited <- s.cgroup.SetLimits(limits) }()
		defer watch.lap("limits") // as far as it took longer
	}
	err := n.inflate(s) // before its memory holds anything secret
	if err == nil {
		err = s.init.Personalise(files, c.hostname())
		watch.lap("identity")
	}
	if err == nil && len(binds) > 0 {
		err = s.init.Mount(binds)
		watch.lap("mounts")
	}
	return errors.Join(err, <-limited)
}

// claimedBy makes the state that of a claim under way.
func (st *slotState) claimedBy(c *Claim, digest string, warm bool, class *env.Class, now moment) {
	st.Phase = env.SlotClaimed
	st.Env = &envState{
		ID: c.ID, Tenant: c.Tenant, Generation: c.Generation, Phase: env.PhaseClaiming,
		Warm: warm, Waited: c.waited, Snapshot: c.Snapshot, Claimed: now.wall, Labels: c.Labels, Hostname: c.Hostname, Egress: c.Egress,
		Epoch: 1, Key: c.Key, Digest: digest, Ports: class.Ports,
		Ephemeral: class.Ephemeral, Limits: c.Limits, Mounts: c.Mounts, ClaimKey: c.ClaimKey, ClaimRequest: c.ClaimRequest,
	}
	st.Env.begin(c, class, now)
}

// afterClaim does beside the answer what it need not wait for: counting, services
// that waited for the claim, and what happened to the slot while it was claimed.
func (n *Node) afterClaim(call context.Context, s *slot, st slotState, watch *stopwatch, condemned string) {
	n.work.Add(1)
	after := func() {
		defer n.work.Done()
		n.recordClaim(call, st, watch)
		if !s.init.Alive() {
			n.initEnded(s)
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), n.cfg.UndoTimeout)
		defer cancel()
		if condemned != "" {
			if err := n.Quarantine(ctx, s.id, condemned); err != nil {
				n.log.Error("quarantine claimed environment", "environment", st.Env.ID, "error", err)
			}
			return
		}
		n.log.Info("environment claimed", "environment", st.Env.ID, "slot", s.id, "class", st.Class, "warm", st.Env.Warm, "took", st.Env.Took)
		if waitsForClaim(s.class) {
			n.claimed(ctx, s, st.Env.ID)
		}
	}
	if condemned != "" || waitsForClaim(s.class) {
		go after()
		return
	}
	time.AfterFunc(rest, after) // the answer has the processors until then
}

// claimed starts the services that wait for a claim.
func (n *Node) claimed(ctx context.Context, s *slot, id env.ID) {
	ctx, done := n.untilHurry(ctx) // init may hang
	defer done()
	if err := s.guest.Claimed(ctx); err != nil {
		n.log.Error("start services after claim", "environment", id, "error", err)
	}
}

// waitsForClaim tells whether init has something to do once its slot is claimed.
func waitsForClaim(class *env.Class) bool {
	return slices.ContainsFunc(class.Services, func(s env.Service) bool { return s.Start == env.StartAfterClaim })
}

// claimEnded opens the environment to operations, or forgets it if its claim
// failed, and says why it must be quarantined, if it must. A claim fails if the
// node was fenced meanwhile, which did not see its environment. The pools are
// refilled again after a rest; claims that follow each other closely do not
// prolong it: a busy node must refill most of all.
func (n *Node) claimEnded(id env.ID, s *slot, err error) (condemned string, _ error) {
	n.mu.Lock()
	n.claiming--
	s.asks = 0 // its state counts
	delete(n.pending, id)
	if err == nil && n.fenced && !s.class.RunOnPartition {
		err = errFenced
	}
	if err != nil {
		delete(n.envs, id)
	}
	condemned, s.used = s.condemned, n.now()
	if now := time.Now(); !n.restTill.After(now) {
		n.restTill = now.Add(rest)
		time.AfterFunc(rest, n.poke)
	}
	n.mu.Unlock()
	return condemned, err
}

func (n *Node) dropEnvironment(id env.ID) {
	n.mu.Lock()
	delete(n.envs, id)
	n.mu.Unlock()
}
