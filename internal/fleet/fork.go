package fleet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/env"
)

// maxFork bounds the children of one call.
const maxFork = 16

// Fork snapshots a running environment and claims copies of it on its node. All
// children come or none.
//
// Children belong to one attempt. Each is stored by itself, all before the node is
// asked, so that a set that is not whole was never asked for. As long as the node
// is silent (a broken connection, a deadline, a part of it that does not answer),
// asking again and repeating the key go on with the same children and the same
// keys, which the node answers as it did before. Once it has answered with an
// error the attempt is over: its children are failed and whatever of them is seen
// is released, and the key begins a new attempt, with children and keys that no
// node knows. Children that somebody may have been told of are never failed: if
// the node does not know the fork any more, they are answered with new tokens.
func (f *Fleet) Fork(ctx context.Context, p Principal, req *hearthv1.ForkRequest) (*hearthv1.ForkResponse, error) {
	parent, err := f.find(ctx, p, req.GetEnvironment())
	if err != nil {
		return nil, err
	}
	if n := req.GetCount(); n < 1 || n > maxFork {
		return nil, fmt.Errorf("%w: count %d: fork into 1 to %d", env.ErrInvalid, n, maxFork)
	}
	if err := checkVariables(req.GetVariables()); err != nil {
		return nil, err
	}
	plain := proto.CloneOf(req)
	plain.IdempotencyKey = ""
	call, end, err := f.begin(ctx, parent.Environment.GetTenant(), req.GetIdempotencyKey(), "Fork", plain)
	if err != nil {
		return nil, err
	}
	defer end()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), f.cfg.SnapshotTimeout)
	defer cancel()
	if err := call.awaitAdoption(ctx, parent.Environment.GetClass()); err != nil {
		return nil, err
	}
	if call.prior != nil {
		return answered(call.prior, &hearthv1.ForkResponse{})
	}
	k := &forking{f: f, req: req, call: call, parent: parent}
	resp, err := k.run(ctx, p)
	if err == nil {
		call.remember(resp)
	}
	return resp, err
}

// forking is one fork: its attempts have their own children.
type forking struct {
	f        *Fleet
	req      *hearthv1.ForkRequest
	call     *call
	parent   *Record
	client   hearthv1connect.NodeServiceClient
	children []*Record // of this attempt, by id
}

func (k *forking) run(ctx context.Context, p Principal) (*hearthv1.ForkResponse, error) {
	if len(k.call.made) > 0 {
		resp, done, err := k.resume(ctx)
		if done {
			return resp, err
		}
		k.f.log.Info("fork begins anew", "environment", k.parent.ID(), "reason", err)
	}
	parent, client, done, err := k.f.liveInUse(ctx, p, k.req.GetEnvironment())
	if err != nil {
		return nil, err
	}
	defer done()
	k.parent, k.client = parent, client
	k.children = newChildren(parent, k.call, int(k.req.GetCount()))
	defer k.f.work(ids(k.children)...)()
	if err := k.place(); err != nil {
		return nil, err
	}
	resp, anew, err := k.attempt(ctx)
	if !anew {
		return resp, err
	}
	return k.run(ctx, p) // the node was silent once, and has other children's word for it
}

// resume goes on with the children that the key made before. Not done means that
// there is nothing left of them, and that others are to be made.
func (k *forking) resume(ctx context.Context) (resp *hearthv1.ForkResponse, done bool, err error) {
	made := k.call.made
	k.call.made = nil
	k.children = slices.DeleteFunc(slices.Clone(made), (*Record).final)
	if len(k.children) == 0 {
		return nil, true, overBefore(made[0])
	}
	defer k.f.work(ids(k.children)...)()
	k.f.waitForNode(ctx, k.children[0].Environment.GetNode())
	if k.client, err = k.f.reach(k.children[0]); err != nil {
		return nil, true, err
	}
	err = fmt.Errorf("%w: of %d children %d are stored", env.ErrState, k.req.GetCount(), len(k.children))
	if len(k.children) == int(k.req.GetCount()) {
		var n *hearthv1.NodeForkResponse
		n, err = k.client.Fork(ctx, k.nodeRequest())
		if err == nil {
			resp, err = k.forked(n)
			return resp, true, err
		}
		if silent(err) {
			return nil, true, k.again(err)
		}
	}
	told, rest := k.told(ctx)
	switch {
	case rest != nil:
		return nil, true, rest
	case len(told) == int(k.req.GetCount()):
		resp, err = k.answerAnew(ctx)
		return resp, true, err
	case len(told) > 0:
		return nil, true, fmt.Errorf("%w: of the %d environments that this idempotency key made only these are left: %v; use them, or a new key",
			env.ErrState, k.req.GetCount(), told)
	}
	for _, c := range k.children {
		k.f.endChild(c, err)
	}
	return nil, !refusesKeys(err), k.f.nodeError(k.parent, err)
}

// told lists the children that somebody may have been told of and that are there.
func (k *forking) told(ctx context.Context) (told []env.ID, err error) {
	for _, c := range k.children {
		if !k.f.inDoubt(c) {
			continue
		}
		err := k.f.stillThere(ctx, k.client, c)
		switch {
		case err == nil:
			told = append(told, c.ID())
		case !isNotFound(err):
			return nil, err
		}
	}
	return told, nil
}

// answerAnew answers for children that all live, and that the node cannot answer
// for as it did before.
func (k *forking) answerAnew(ctx context.Context) (*hearthv1.ForkResponse, error) {
	resp := &hearthv1.ForkResponse{}
	for _, c := range k.children {
		child, err := k.f.answerAnew(ctx, k.client, c)
		if err != nil {
			return nil, err
		}
		resp.Children = append(resp.Children, child)
		resp.Snapshot = &hearthv1.Snapshot{Id: child.GetEnvironment().GetRestoredFrom(), Environment: k.req.GetEnvironment()}
	}
	return resp, nil
}

// place stores new children, before the node is asked for them.
func (k *forking) place() error {
	errs := make([]error, len(k.children))
	var wg sync.WaitGroup
	for i, c := range k.children {
		wg.Go(func() {
			defer k.f.lanes.enter(c.ID())()
			errs[i] = k.f.write("fork-place", c, durably)
		})
	}
	wg.Wait()
	err := errors.Join(errs...)
	if err == nil {
		return nil
	}
	for i, c := range k.children {
		if errs[i] != nil {
			k.f.unplaced(c, errs[i])
			continue
		}
		leave := k.f.lanes.enter(c.ID())
		k.f.drop("fork-undo", c) // no node was asked for it
		leave()
	}
	return err
}

// attempt asks the node, once more if it was silent, and ends the children if it
// has answered with an error. Anew says that the error may be about an asking
// before, and that other children may fare better.
func (k *forking) attempt(ctx context.Context) (resp *hearthv1.ForkResponse, anew bool, err error) {
	node := k.nodeRequest()
	n, err := k.client.Fork(ctx, node)
	asked := err != nil && silent(err) && ctx.Err() == nil
	if asked {
		time.Sleep(reaskAfter)
		n, err = k.client.Fork(ctx, node)
	}
	switch {
	case err == nil:
		resp, err = k.forked(n)
		return resp, false, err
	case silent(err):
		return nil, false, k.again(err)
	}
	cause := k.f.nodeError(k.parent, err)
	for _, c := range k.children {
		k.f.endChild(c, cause)
	}
	return nil, asked && refusesKeys(err), cause
}

func (k *forking) again(err error) error {
	return fmt.Errorf("%w; repeat the fork with the same idempotency key", k.f.nodeError(k.parent, err))
}

func (k *forking) nodeRequest() *hearthv1.NodeForkRequest {
	node := &hearthv1.NodeForkRequest{IdempotencyKey: string(k.children[0].ID()) + "/fork", Environment: k.req.GetEnvironment()}
	for _, c := range k.children {
		node.Children = append(node.Children, nodeClaim(c, &hearthv1.ClaimSpec{Variables: k.req.GetVariables(), TimeToLive: c.Environment.GetTimeToLive()}))
	}
	return node
}

// forked shows the children and answers. That they run is stored behind.
func (k *forking) forked(n *hearthv1.NodeForkResponse) (*hearthv1.ForkResponse, error) {
	if len(n.GetChildren()) != len(k.children) {
		return nil, fmt.Errorf("node %s answered %d children of %d", k.children[0].Environment.GetNode(), len(n.GetChildren()), len(k.children))
	}
	resp := &hearthv1.ForkResponse{Snapshot: n.GetSnapshot()}
	for i, child := range n.GetChildren() {
		r, err := k.f.ran("fork-done", k.children[i], child.GetEnvironment())
		if err != nil {
			return nil, err
		}
		resp.Children = append(resp.Children, &hearthv1.ClaimResponse{Environment: shown(r.Environment), Access: child.GetAccess(), Took: child.GetTook()})
	}
	return resp, nil
}

// silent reports that err leaves open whether the node still forks. Everything
// else is its answer, an internal fault included: it has stopped.
func silent(err error) bool {
	return errors.Is(err, env.ErrUnavailable) || errors.Is(err, env.ErrSuperseded) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
}

// refusesKeys reports that err may be the node's word on children's keys that it
// has seen before, with another snapshot to restore.
func refusesKeys(err error) bool {
	return errors.Is(err, env.ErrInvalid) || errors.Is(err, env.ErrState) || errors.Is(err, env.ErrExists)
}

// newChildren are sorted by id, so that a repetition asks for them in the same order.
func newChildren(parent *Record, call *call, count int) []*Record {
	var children []*Record
	for range count {
		r := &Record{ClaimKey: call.key, ClaimRequest: call.request, Count: count, Environment: &hearthv1.Environment{
			Id: string(env.NewID()), Class: parent.Environment.GetClass(), Tenant: parent.Environment.GetTenant(), Generation: 1,
			Phase: hearthv1.Phase_PHASE_CLAIMING, Node: parent.Environment.GetNode(), ClaimedAt: timestamppb.Now(),
			TimeToLive: proto.CloneOf(parent.Environment.GetTimeToLive()),
		}}
		r.setEphemeral(parent.Ephemeral)
		children = append(children, r)
	}
	slices.SortFunc(children, byID)
	return children
}

func ids(records []*Record) []env.ID {
	var out []env.ID
	for _, r := range records {
		out = append(out, r.ID())
	}
	return out
}

// endChild fails a child of an attempt that is over. Its placement becomes stale,
// since it may run all the same.
func (f *Fleet) endChild(child *Record, cause error) {
	_, err := f.update("fork-failed", child.ID(), func(r *Record) (bool, error) {
		if r.final() {
			return false, nil
		}
		r.end(hearthv1.Phase_PHASE_FAILED, fmt.Sprintf("the fork failed: %.*s", maxReason, cause))
		return true, nil
	})
	if err != nil && !isNotFound(err) {
		f.log.Warn("child of a refused fork not ended", "environment", child.ID(), "error", err)
	}
	f.poke()
}
