package fleet

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
)

// maxFork bounds the children of one call.
const maxFork = 16

// Fork snapshots a running environment and claims copies of it on its node. All
// children come or none.
func (f *Fleet) Fork(ctx context.Context, p Principal, req *hearthv1.ForkRequest) (*hearthv1.ForkResponse, error) {
	parent, err := f.find(p, req.GetEnvironment())
	if err != nil {
		return nil, err
	}
	if n := req.GetCount(); n < 1 || n > maxFork {
		return nil, fmt.Errorf("%w: count %d: fork into 1 to %d", env.ErrInvalid, n, maxFork)
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

func (f *Fleet) fork(ctx context.Context, p Principal, req *hearthv1.ForkRequest, key AnswerKey, request [32]byte, prior *Answer) (*hearthv1.ForkResponse, error) {
	parent, client, err := f.live(p, req.GetEnvironment())
	if err != nil {
		return nil, err
	}
	answer, children := prior, f.childrenOf(prior)
	if children == nil {
		answer, children = f.newChildren(parent, key, request, int(req.GetCount()))
		if err := f.noteSnapshots(parent.ID()); err != nil {
			return nil, err
		}
		if err := f.put(Change{Op: "fork-place", Put: State{Records: children, Answers: []*Answer{answer}}}); err != nil {
			return nil, err
		}
	}
	node := &hearthv1.NodeForkRequest{IdempotencyKey: string(children[0].ID()) + "/fork", Environment: req.GetEnvironment()}
	for _, c := range children {
		node.Children = append(node.Children, &hearthv1.NodeClaimRequest{
			IdempotencyKey: fmt.Sprintf("%s/%d", c.ID(), c.Generation()),
			Environment:    string(c.ID()), Generation: uint64(c.Generation()),
			Spec: &hearthv1.ClaimSpec{Variables: req.GetVariables()},
		})
	}
	resp, err := client.Fork(ctx, node)
	if err != nil && outcomeOf(err) == outcomeUnknown && ctx.Err() == nil {
		time.Sleep(reaskAfter)
		resp, err = client.Fork(ctx, node)
	}
	if err != nil {
		return nil, f.forkFailed(parent, answer, children, err)
	}
	return f.forked(answer, children, resp)
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

// forkFailed forgets the children that the node has refused. If the node may
// have made them they stay, for the call to be repeated or given up.
func (f *Fleet) forkFailed(parent *Record, answer *Answer, children []*Record, cause error) error {
	cause = f.nodeError(parent, cause)
	if outcomeOf(cause) == outcomeUnknown {
		return fmt.Errorf("%w; repeat the fork with the same idempotency key", cause)
	}
	c := Change{Op: "fork-failed", DeleteAnswers: []AnswerKey{answer.AnswerKey}}
	for _, r := range children {
		c.DeleteRecords = append(c.DeleteRecords, r.ID())
	}
	if err := f.put(c); err != nil {
		f.log.Warn("refused fork not deleted", "environment", parent.ID(), "error", err)
	}
	return cause
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
