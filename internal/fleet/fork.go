package fleet

import (
	"context"
	"errors"
	"fmt"
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
// Children belong to one attempt. As long as the node is silent (a broken
// connection, a deadline, a part of it that does not answer), asking again and
// repeating the key go on with the same children and the same keys, which the
// node answers as it did before. Once it has answered with an error the attempt
// is over: its children are failed and whatever of them is seen is released, and
// the key begins a new attempt, with children and keys that no node knows.
func (f *Fleet) Fork(ctx context.Context, p Principal, req *hearthv1.ForkRequest) (*hearthv1.ForkResponse, error) {
	parent, err := f.find(p, req.GetEnvironment())
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
	request, err := digest("Fork", plain)
	if err != nil {
		return nil, err
	}
	key := AnswerKey{parent.Environment.GetTenant(), req.GetIdempotencyKey()}
	prior, end, err := f.begin(ctx, key, request)
	if err != nil {
		return nil, err
	}
	defer end()
	if prior != nil && prior.Response != nil {
		return answered(prior, &hearthv1.ForkResponse{})
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), f.cfg.SnapshotTimeout)
	defer cancel()
	return f.fork(ctx, p, req, key, request, prior)
}

// forking is one fork: its attempts have their own answer and children.
type forking struct {
	f       *Fleet
	req     *hearthv1.ForkRequest
	key     AnswerKey
	request [32]byte
	parent  *Record
	client  hearthv1connect.NodeServiceClient

	answer   *Answer
	children []*Record
	asked    bool // the node was asked for these children before
}

func (f *Fleet) fork(ctx context.Context, p Principal, req *hearthv1.ForkRequest, key AnswerKey, request [32]byte, prior *Answer) (*hearthv1.ForkResponse, error) {
	parent, client, err := f.live(p, req.GetEnvironment())
	if err != nil {
		return nil, err
	}
	k := &forking{f: f, req: req, key: key, request: request, parent: parent, client: client}
	if children := f.childrenOf(prior); children != nil {
		k.answer, k.children, k.asked = prior, children, true
	} else if err := k.place(); err != nil {
		return nil, err
	}
	resp, err := k.attempt(ctx)
	if err == nil || silent(err) || !k.asked || !refusesKeys(err) {
		return resp, err
	}
	// The node has forgotten the asking before, or that one failed in it after
	// the connection broke: with these children the fork will never come.
	f.log.Info("fork begins anew", "environment", parent.ID(), "reason", err)
	if err := k.place(); err != nil {
		return nil, err
	}
	return k.attempt(ctx)
}

// place stores new children, before the node is asked for them.
func (k *forking) place() error {
	k.answer, k.children = k.f.newChildren(k.parent, k.key, k.request, int(k.req.GetCount()))
	k.asked = false
	if err := k.f.noteSnapshots(k.parent.ID()); err != nil {
		return err
	}
	return k.f.put(Change{Op: "fork-place", Put: State{Records: k.children, Answers: []*Answer{k.answer}}})
}

// attempt asks the node, once more if it was silent, and ends the children if it
// has answered with an error.
func (k *forking) attempt(ctx context.Context) (*hearthv1.ForkResponse, error) {
	node := k.nodeRequest()
	resp, err := k.client.Fork(ctx, node)
	if err != nil && silent(err) && ctx.Err() == nil {
		time.Sleep(reaskAfter)
		k.asked = true
		resp, err = k.client.Fork(ctx, node)
	}
	if err == nil {
		return k.f.forked(k.answer, k.children, resp)
	}
	cause := k.f.nodeError(k.parent, err)
	if silent(err) {
		return nil, fmt.Errorf("%w; repeat the fork with the same idempotency key", cause)
	}
	if err := k.f.endChildren(k.answer, k.children, cause); err != nil {
		k.f.log.Warn("children of a refused fork not ended", "environment", k.parent.ID(), "error", err)
	}
	return nil, cause
}

func (k *forking) nodeRequest() *hearthv1.NodeForkRequest {
	node := &hearthv1.NodeForkRequest{IdempotencyKey: string(k.children[0].ID()) + "/fork", Environment: k.req.GetEnvironment()}
	for _, c := range k.children {
		node.Children = append(node.Children, &hearthv1.NodeClaimRequest{
			IdempotencyKey: fmt.Sprintf("%s/%d", c.ID(), c.Generation()),
			Environment:    string(c.ID()), Generation: uint64(c.Generation()),
			Spec: &hearthv1.ClaimSpec{Variables: k.req.GetVariables()},
		})
	}
	return node
}

// silent reports that err leaves open whether the node still forks. Everything
// else is its answer, an internal fault included: it has stopped.
func silent(err error) bool {
	return errors.Is(err, env.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
}

// refusesKeys reports that err may be the node's word on children's keys that it
// has seen before, with another snapshot to restore.
func refusesKeys(err error) bool {
	return errors.Is(err, env.ErrInvalid) || errors.Is(err, env.ErrState) || errors.Is(err, env.ErrExists)
}

func (f *Fleet) newChildren(parent *Record, key AnswerKey, request [32]byte, count int) (*Answer, []*Record) {
	var children []*Record
	var ids []env.ID
	for range count {
		id := env.NewID()
		ids = append(ids, id)
		children = append(children, &Record{Changed: time.Now(), Environment: &hearthv1.Environment{
			Id: string(id), Class: parent.Environment.GetClass(), Tenant: parent.Environment.GetTenant(), Generation: 1,
			Phase: hearthv1.Phase_PHASE_CLAIMING, Node: parent.Environment.GetNode(), ClaimedAt: timestamppb.Now(),
		}})
	}
	return f.newAnswer(key, request, ids...), children
}

// childrenOf are those of a fork that was interrupted; nil if they are gone.
func (f *Fleet) childrenOf(prior *Answer) []*Record {
	if prior == nil {
		return nil
	}
	var children []*Record
	for _, id := range prior.Environments {
		r := f.record(id)
		if r == nil || r.Phase() != env.PhaseClaiming {
			return nil
		}
		children = append(children, r)
	}
	return children
}

// endChildren fails the children of an attempt that the node has ended, and
// frees the key. Their placements become stale, since some may run all the same.
func (f *Fleet) endChildren(answer *Answer, children []*Record, cause error) error {
	f.writing.Lock()
	defer f.writing.Unlock()
	c := Change{Op: "fork-failed", DeleteAnswers: []AnswerKey{answer.AnswerKey}}
	for _, child := range children {
		r := f.record(child.ID())
		if r == nil || r.Phase() != env.PhaseClaiming {
			continue // given up meanwhile
		}
		r = r.clone()
		r.Changed = time.Now()
		r.end(hearthv1.Phase_PHASE_FAILED, fmt.Sprintf("the fork failed: %.*s", maxReason, cause))
		c.Put.Records = append(c.Put.Records, r)
	}
	defer f.poke()
	return f.save(c)
}

// forked stores the answer and then gives it.
func (f *Fleet) forked(answer *Answer, children []*Record, n *hearthv1.NodeForkResponse) (*hearthv1.ForkResponse, error) {
	if len(n.GetChildren()) != len(children) {
		return nil, fmt.Errorf("node %s answered %d children of %d", children[0].Environment.GetNode(), len(n.GetChildren()), len(children))
	}
	f.writing.Lock()
	defer f.writing.Unlock()
	resp := &hearthv1.ForkResponse{Snapshot: n.GetSnapshot()}
	c := Change{Op: "fork-done"}
	for i, child := range n.GetChildren() {
		r := f.record(children[i].ID())
		if r == nil || r.Phase() != env.PhaseClaiming || child.GetEnvironment().GetId() != string(r.ID()) {
			return nil, fmt.Errorf("%w: child %s was given up while the fork went on; fork again", env.ErrState, children[i].ID())
		}
		r = r.clone()
		r.Changed, r.Environment = time.Now(), merge(r, child.GetEnvironment())
		c.Put.Records = append(c.Put.Records, r)
		resp.Children = append(resp.Children, &hearthv1.ClaimResponse{Environment: r.Environment, Access: child.GetAccess(), Took: child.GetTook()})
	}
	done, err := answer.finished(resp)
	if err != nil {
		return nil, err
	}
	c.Put.Answers = []*Answer{done}
	return resp, f.save(c)
}
