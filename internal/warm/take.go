package warm

import (
	"context"
	"errors"
	"fmt"
	"strings"
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
			answer, err := n.claim(ctx, &c, digest, watch)
			n.settleKey(c.Key, k, answer.Environment.ID)
			return answer, err
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
	k.id, k.at = id, time.Now()
	if id == "" {
		delete(n.keys, key)
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
		Environment: s.view(s.state), Took: e.Took,
		Token: n.tokens.of(e.ID, e.Generation, e.Epoch),
	}, nil
}

func (n *Node) claim(ctx context.Context, c *Claim, digest string, watch *stopwatch) (Answer, error) {
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
	s, warm, err := n.obtain(ctx, c)
	if err != nil {
		return Answer{}, err
	}
	watch.lap("take")
	defer n.claimEnded()
	if err := n.personalise(ctx, s, c, digest, warm, watch); err != nil {
		n.dropEnvironment(c.ID)
		n.background(s, "its claim failed")
		n.unfork(c)
		return Answer{}, fmt.Errorf("claim environment %s: %w", c.ID, err)
	}
	n.metrics.claim(c.Class, warm, watch)
	st := n.stateOf(s)
	n.afterClaim(s, st)
	return Answer{
		Environment: s.view(st),
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
		return nil, false, fmt.Errorf("%w: this node's agent is stopping", env.ErrUnavailable)
	case class == nil:
		return nil, false, fmt.Errorf("%w: class %q; this node has %s", env.ErrNotFound, c.Class, n.classNames())
	case n.envs[c.ID] != nil:
		return nil, false, fmt.Errorf("%w: environment %s runs on this node", env.ErrExists, c.ID)
	}
	n.claiming++
	if c.Snapshot == "" {
		if s := n.popReady(class); s != nil {
			n.envs[c.ID] = s
			return s, true, nil
		}
	}
	s, err = n.makeCold(ctx, class, c)
	if err != nil {
		n.claiming--
		return nil, false, err
	}
	n.envs[c.ID] = s
	return s, false, nil
}

// popReady takes the oldest live slot of the class's current revision, or of
// an older one if there is no other. Dead ones on the way are removed. The
// caller holds mu.
func (n *Node) popReady(class *env.Class) *slot {
	p := n.pools[class.Name]
	for len(p.ready) > 0 {
		s := p.ready[0]
		for _, r := range p.ready {
			if r.state.Revision == class.Revision {
				s = r
				break
			}
		}
		n.takeLocked(s)
		if s.init.Alive() {
			return s
		}
		n.buryLocked(s)
	}
	return nil
}

// makeCold prepares a slot for one claim. The caller holds mu, which is
// released meanwhile.
func (n *Node) makeCold(ctx context.Context, class *env.Class, c *Claim) (*slot, error) {
	if c.WarmOnly {
		return nil, fmt.Errorf("%w: no ready slot of class %s", env.ErrExhausted, class.Name)
	}
	if n.roomLocked() <= 0 {
		return nil, fmt.Errorf("%w: all %d slots of this node are in use; release environments or raise limits.slots", env.ErrExhausted, n.cfg.MaxSlots)
	}
	n.reserved++
	// Refill may go on while this slot is made: only its hand-over is in a hurry.
	n.claiming--
	n.mu.Unlock()
	var fill fill
	if c.Snapshot != "" {
		fill = n.restore(c.Snapshot, c.ID)
	}
	s, err := n.prepare(ctx, class, fill)
	if err != nil {
		n.unfork(c)
	}
	n.mu.Lock()
	n.claiming++
	if err != nil {
		return nil, err
	}
	if n.envs[c.ID] != nil {
		n.background(s, "its environment was claimed meanwhile")
		return nil, fmt.Errorf("%w: environment %s runs on this node", env.ErrExists, c.ID)
	}
	return s, nil
}

// restore fills a slot from a snapshot of the same image.
func (n *Node) restore(id env.SnapshotID, child env.ID) fill {
	return func(ctx context.Context, image Image, files Files) error {
		snap, err := n.parts.Snapshots.Get(id)
		if err != nil {
			return err
		}
		if snap.Base != image.Digest {
			return fmt.Errorf("%w: snapshot %s lies on image %s, the class has %s; claim a class of the snapshot's image", env.ErrInvalid, id, snap.Base, image.Digest)
		}
		if err := n.parts.Snapshots.Restore(ctx, id, files); err != nil {
			return err
		}
		if snap.Lineage == child {
			return nil // it goes on in its own lineage
		}
		return n.parts.Snapshots.Fork(ctx, id, child)
	}
}

// unfork forgets the lineage that a failed claim of a snapshot began.
func (n *Node) unfork(c *Claim) {
	if c.Snapshot == "" || strings.HasPrefix(string(c.Snapshot), string(c.ID)+"/") {
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
	files, err := identityFiles(c.ID, c)
	if err != nil {
		return err
	}
	hostname := c.Hostname
	if hostname == "" {
		hostname = string(c.ID)
	}
	if err := n.change(s, func(st *slotState) { st.claimedBy(c, digest, warm, s.class) }); err != nil {
		return err
	}
	watch.lap("journal")
	if err := s.init.Personalise(files, hostname); err != nil {
		return err
	}
	watch.lap("identity")
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
	if !s.init.Alive() { // an end from here on is InitEnded's
		return errors.New("the slot's init ended during the claim")
	}
	return n.change(s, func(st *slotState) {
		st.Env.Phase = env.PhaseRunning
		st.Env.Took = watch.total()
	})
}

// claimedBy makes the state that of a claim under way.
func (st *slotState) claimedBy(c *Claim, digest string, warm bool, class *env.Class) {
	st.Phase = env.SlotClaimed
	st.Env = &envState{
		ID: c.ID, Tenant: c.Tenant, Generation: c.Generation, Phase: env.PhaseClaiming,
		Warm: warm, Snapshot: c.Snapshot, Claimed: time.Now(), Labels: c.Labels, Egress: c.Egress,
		Epoch: 1, Key: c.Key, Digest: digest, Ports: class.Ports,
	}
}

// afterClaim starts the services that waited for the claim, beside the answer.
func (n *Node) afterClaim(s *slot, st slotState) {
	n.work.Add(1)
	go func() {
		defer n.work.Done()
		ctx, cancel := context.WithTimeout(context.Background(), n.cfg.UndoTimeout)
		defer cancel()
		n.log.Info("environment claimed", "environment", st.Env.ID, "slot", s.id, "class", st.Class, "warm", st.Env.Warm, "took", st.Env.Took)
		if err := s.guest.Claimed(ctx); err != nil {
			n.log.Error("start services after claim", "environment", st.Env.ID, "error", err)
		}
	}()
}

// claimEnded lets the pools be refilled again after a rest. Claims that follow
// each other closely do not prolong it: a busy node must refill most of all.
func (n *Node) claimEnded() {
	n.mu.Lock()
	n.claiming--
	if now := time.Now(); !n.restTill.After(now) {
		n.restTill = now.Add(rest)
	}
	n.mu.Unlock()
	n.poke()
}

func (n *Node) dropEnvironment(id env.ID) {
	n.mu.Lock()
	delete(n.envs, id)
	n.mu.Unlock()
}
