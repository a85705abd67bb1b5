package fleet

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/env"
)

// find returns the caller's environment; another tenant's is not found.
func (f *Fleet) find(ctx context.Context, p Principal, id string) (*Record, error) {
	parsed, err := env.ParseID(id)
	if err != nil {
		return nil, err
	}
	if err := f.awaitRecord(ctx, parsed); err != nil {
		return nil, err
	}
	r := f.record(parsed)
	if r == nil || !p.sees(r) {
		return nil, notFound(parsed)
	}
	return r, nil
}

// live is find for calls that need the environment to run somewhere.
func (f *Fleet) live(ctx context.Context, p Principal, id string) (*Record, hearthv1connect.NodeServiceClient, error) {
	r, err := f.find(ctx, p, id)
	if err != nil {
		return nil, nil, err
	}
	if r.Phase() == env.PhaseClaiming && f.inDoubt(r) {
		return nil, nil, unreported(r)
	}
	if !r.Phase().Live() {
		return nil, nil, fmt.Errorf("%w: environment %s is %s%s", env.ErrState, r.ID(), r.Phase(), because(r))
	}
	client, err := f.reach(r)
	return r, client, err
}

// liveInUse is live for calls to the node that a move must not overtake: it waits
// while the environment moves, and no move begins at its node before done.
func (f *Fleet) liveInUse(ctx context.Context, p Principal, id string) (*Record, hearthv1connect.NodeServiceClient, func(), error) {
	r, err := f.find(ctx, p, id)
	if err != nil {
		return nil, nil, nil, err
	}
	done, err := f.use(ctx, r.ID())
	if err != nil {
		return nil, nil, nil, err
	}
	r, client, err := f.live(ctx, p, id)
	if err != nil {
		done()
		return nil, nil, nil, err
	}
	return r, client, done, nil
}

func (f *Fleet) reach(r *Record) (hearthv1connect.NodeServiceClient, error) {
	client := f.client(r.Environment.GetNode())
	if client == nil {
		return nil, unreported(r)
	}
	return client, nil
}

func unreported(r *Record) error {
	return fmt.Errorf("%w: node %s of environment %s has not reported since this controller started; try again",
		env.ErrUnavailable, r.Environment.GetNode(), r.ID())
}

// nodeKey makes the caller's key one for the node, where tenants share a space.
func nodeKey(tenant, method, key string) (string, error) {
	if err := checkKey(key); err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(tenant + "\x00" + method + "\x00" + key))
	return hex.EncodeToString(sum[:]), nil
}

// Get returns the environment as its node sees it now, or, if the node does not
// answer within a second, as it was last known, with a message that says so.
func (f *Fleet) Get(ctx context.Context, p Principal, id string) (*hearthv1.Environment, error) {
	r, err := f.find(ctx, p, id)
	if err != nil {
		return nil, err
	}
	if !r.Phase().Live() || r.moving() {
		return proto.CloneOf(r.Environment), nil
	}
	e := proto.CloneOf(r.Environment)
	client, err := f.reach(r)
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		var resp *hearthv1.NodeGetResponse
		if resp, err = client.Get(ctx, &hearthv1.NodeGetRequest{Environment: string(r.ID())}); err == nil {
			return f.observed(r, resp.GetEnvironment()), nil
		}
	}
	e.Message = fmt.Sprintf("as last known; node %s: %s", e.GetNode(), err)
	return e, nil
}

// observed is what the node says, under what the controller knows better. A
// phase that changed is noted; what runs is never a claim again.
func (f *Fleet) observed(r *Record, e *hearthv1.Environment) *hearthv1.Environment {
	if e.GetId() != string(r.ID()) || e.GetGeneration() != r.Environment.GetGeneration() {
		return proto.CloneOf(r.Environment)
	}
	shown := r.merged(e)
	if isExpired(e) {
		f.timeCame(r, e.GetMessage())
		return shown
	}
	if !r.differs(e) || e.GetPhase() == hearthv1.Phase_PHASE_CLAIMING {
		return shown
	}
	if _, err := f.note("observe", r.ID(), func(now *Record) (bool, error) {
		if now.final() || now.moving() || now.Generation() != r.Generation() || !now.differs(e) {
			return false, nil
		}
		now.observe(e)
		return true, nil
	}); err != nil {
		f.log.Warn("phase not stored", "environment", r.ID(), "error", err)
	}
	return shown
}

// List returns the caller's environments by id, as they were last known. Empty
// filters are all.
func (f *Fleet) List(p Principal, class, node string) []*hearthv1.Environment {
	f.mu.Lock()
	var found []*Record
	for _, r := range f.records {
		e := r.Environment
		if p.sees(r) && (class == "" || e.GetClass() == class) && (node == "" || e.GetNode() == node) {
			found = append(found, r)
		}
	}
	f.mu.Unlock()
	slices.SortFunc(found, func(a, b *Record) int { return cmp.Compare(a.ID(), b.ID()) })
	out := make([]*hearthv1.Environment, 0, len(found))
	for _, r := range found {
		out = append(out, proto.CloneOf(r.Environment))
	}
	return out
}

// Pause freezes the environment.
func (f *Fleet) Pause(ctx context.Context, p Principal, key, id string) (*hearthv1.Environment, error) {
	return f.turn(ctx, p, "Pause", key, id, func(ctx context.Context, c hearthv1connect.NodeServiceClient, key string) (*hearthv1.Environment, error) {
		resp, err := c.Pause(ctx, &hearthv1.NodePauseRequest{IdempotencyKey: key, Environment: id})
		return resp.GetEnvironment(), err
	})
}

// Resume thaws the environment.
func (f *Fleet) Resume(ctx context.Context, p Principal, key, id string) (*hearthv1.Environment, error) {
	return f.turn(ctx, p, "Resume", key, id, func(ctx context.Context, c hearthv1connect.NodeServiceClient, key string) (*hearthv1.Environment, error) {
		resp, err := c.Resume(ctx, &hearthv1.NodeResumeRequest{IdempotencyKey: key, Environment: id})
		return resp.GetEnvironment(), err
	})
}

func (f *Fleet) turn(ctx context.Context, p Principal, method, key, id string,
	call func(context.Context, hearthv1connect.NodeServiceClient, string) (*hearthv1.Environment, error),
) (*hearthv1.Environment, error) {
	r, client, done, err := f.liveInUse(ctx, p, id)
	if err != nil {
		return nil, err
	}
	defer done()
	nkey, err := nodeKey(r.Environment.GetTenant(), method, key)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, f.cfg.CallTimeout)
	defer cancel()
	e, err := call(ctx, client, nkey)
	if err != nil {
		return nil, f.nodeError(r, err)
	}
	return f.observed(r, e), nil
}

// nodeError names the node. If it denies the environment, it is asked again
// from the sweep, which then draws the consequence.
func (f *Fleet) nodeError(r *Record, err error) error {
	node := r.Environment.GetNode()
	if isNotFound(err) {
		f.mu.Lock()
		if n := f.nodes[node]; n != nil {
			n.missing[r.ID()] = struct{}{}
		}
		f.mu.Unlock()
		f.poke()
	}
	return fmt.Errorf("node %s: %w", node, err)
}

// Token gives fresh access; older tokens end.
func (f *Fleet) Token(ctx context.Context, p Principal, id string) (*hearthv1.Access, error) {
	r, client, done, err := f.liveInUse(ctx, p, id)
	if err != nil {
		return nil, err
	}
	defer done()
	ctx, cancel := context.WithTimeout(ctx, f.cfg.CallTimeout)
	defer cancel()
	resp, err := client.Token(ctx, &hearthv1.NodeTokenRequest{Environment: id})
	if err != nil {
		return nil, f.nodeError(r, err)
	}
	return resp.GetAccess(), nil
}
