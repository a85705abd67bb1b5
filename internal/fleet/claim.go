package fleet

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
	"hearth/internal/placement"
)

// Claim places an environment and answers when it runs, or repeats the answer
// that the idempotency key got before. It goes on to its end even if the caller
// goes away, who then finds the result by repeating the key.
func (f *Fleet) Claim(ctx context.Context, p Principal, idempotencyKey string, spec *hearthv1.ClaimSpec) (*hearthv1.ClaimResponse, error) {
	begun := time.Now()
	tenant, err := p.tenantFor(spec.GetTenant())
	if err != nil {
		return nil, err
	}
	if spec == nil {
		spec = &hearthv1.ClaimSpec{}
	}
	spec = proto.CloneOf(spec)
	spec.Tenant = tenant
	if err := checkSpec(spec); err != nil {
		return nil, err
	}
	request, err := digest("Claim", spec)
	if err != nil {
		return nil, err
	}
	key := AnswerKey{tenant, idempotencyKey}
	prior, end, err := f.begin(ctx, key, request)
	if err != nil {
		return nil, err
	}
	defer end()
	if prior != nil && prior.Response != nil {
		f.metrics.claimed("repeated", begun)
		return answered(prior, &hearthv1.ClaimResponse{})
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), f.cfg.ClaimTimeout)
	defer cancel()
	resp, err := f.claim(ctx, key, request, prior, spec)
	switch {
	case err != nil:
		f.metrics.claimed("failed", begun)
	case resp.GetEnvironment().GetWarm():
		f.metrics.claimed("warm", begun)
	default:
		f.metrics.claimed("cold", begun)
	}
	return resp, err
}

// claiming is one claim on its way over the nodes.
type claiming struct {
	f       *Fleet
	spec    *hearthv1.ClaimSpec
	answer  *Answer
	record  *Record // nil until the first placement is stored
	request placement.Request
	refused []string // one line for each node that was tried in vain
	silent  bool     // a node may make it yet, though its release was confirmed
}

func (f *Fleet) claim(ctx context.Context, key AnswerKey, request [32]byte, prior *Answer, spec *hearthv1.ClaimSpec) (*hearthv1.ClaimResponse, error) {
	home, err := f.snapshotHome(spec)
	if err != nil {
		return nil, err
	}
	c := &claiming{f: f, spec: spec, request: placement.Request{
		Class: spec.GetClass(), Cold: spec.GetSnapshot() != "", Only: home, Exclude: map[string]string{},
	}}
	if prior != nil && len(prior.Environments) == 1 {
		if r := f.record(prior.Environments[0]); r != nil && r.Phase() == env.PhaseClaiming {
			c.answer, c.record = prior, r
			return c.resume(ctx)
		}
	}
	c.answer = f.newAnswer(key, request, env.NewID())
	return c.run(ctx)
}

// resume asks the node again that a claim was stored for before a crash or an
// error: only it knows what became of it.
func (c *claiming) resume(ctx context.Context) (*hearthv1.ClaimResponse, error) {
	c.silent = true
	for _, p := range c.record.Stale {
		c.request.Exclude[p.Node] = "may still hold an earlier generation"
	}
	d := placement.Decision{Node: c.record.Environment.GetNode(), Class: c.spec.GetClass(), Reasons: []string{"placed before"}}
	if c.record.isStale(d.Node) {
		return c.run(ctx) // that node was given up already, and is being cleaned
	}
	if !c.f.waitForNode(ctx, d.Node) {
		if err := c.lost(d.Node, errors.New("not connected")); err != nil {
			return nil, err
		}
		return c.run(ctx)
	}
	c.f.mu.Lock()
	c.f.index.Begin(d)
	c.f.mu.Unlock()
	resp, done, err := c.attempt(ctx, d)
	if done {
		return resp, err
	}
	return c.run(ctx)
}

// run tries nodes until one has claimed.
func (c *claiming) run(ctx context.Context) (*hearthv1.ClaimResponse, error) {
	for {
		d, err := c.decide(ctx)
		if err != nil {
			return nil, c.giveUp(err)
		}
		if err := c.place(d.Node); err != nil {
			c.f.ended(d, placement.Unknown)
			return nil, err
		}
		resp, done, err := c.attempt(ctx, d)
		if done {
			return resp, err
		}
	}
}

// decide chooses a node and counts the claim there. Shortly after a start it
// waits for nodes that have not reported yet.
func (c *claiming) decide(ctx context.Context) (placement.Decision, error) {
	for {
		if ctx.Err() != nil {
			return placement.Decision{}, ctx.Err()
		}
		c.f.mu.Lock()
		d, err := c.f.index.Decide(c.request)
		if err == nil {
			c.f.index.Begin(d)
		}
		seen := c.f.changed
		c.f.mu.Unlock()
		if err == nil || !c.f.waitForChange(ctx, seen) {
			return d, err
		}
	}
}

func (f *Fleet) ended(d placement.Decision, o placement.Outcome) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.index.End(d, o)
}

// place stores where the claim goes, before it goes there.
func (c *claiming) place(node string) error {
	if c.record == nil {
		r := &Record{Changed: time.Now(), Environment: &hearthv1.Environment{
			Id: string(c.answer.Environments[0]), Class: c.spec.GetClass(), Tenant: c.spec.GetTenant(), Labels: c.spec.GetLabels(),
			Generation: 1, Phase: hearthv1.Phase_PHASE_CLAIMING, Node: node, ClaimedAt: timestamppb.Now(), RestoredFrom: c.spec.GetSnapshot(),
		}}
		err := c.f.put(Change{Op: "claim-place", Put: State{Records: []*Record{r}, Answers: []*Answer{c.answer}}})
		c.record = r
		return err
	}
	r, err := c.f.update("claim-place", c.record.ID(), nil, func(r *Record) (bool, error) {
		if r.final() {
			return false, fmt.Errorf("%w: the claim of %s was given up", env.ErrState, r.ID())
		}
		r.Environment.Node = node
		r.Environment.Generation++
		return true, nil
	})
	c.record = r
	return err
}

// attempt asks one node. Not done means that another is to be tried.
func (c *claiming) attempt(ctx context.Context, d placement.Decision) (resp *hearthv1.ClaimResponse, done bool, err error) {
	answer, err := c.ask(ctx, d.Node)
	o := outcomeOf(err)
	c.f.metrics.attempts.WithLabelValues(o.word).Inc()
	c.f.ended(d, o.booked)
	switch o {
	case outcomeClaimed:
		resp, err = c.finish(d, answer)
		return resp, true, err
	case outcomeInvalid:
		return nil, true, c.giveUp(err)
	case outcomeRefused:
		c.note(d.Node, "refused: ", err)
		return nil, false, nil
	default:
		if err := c.lost(d.Node, err); err != nil {
			return nil, true, err
		}
		return nil, false, nil
	}
}

// What is kept of the nodes that did not take a claim: it goes into the answer,
// which is stored. The log has all.
const (
	maxReason  = 300 // characters
	maxReasons = 16
)

func (c *claiming) note(node, how string, err error) {
	why := fmt.Sprintf("%s%.*s", how, maxReason, err)
	c.request.Exclude[node] = why
	if len(c.refused) < maxReasons {
		c.refused = append(c.refused, node+": "+why)
	}
	c.f.log.Info("node did not take claim", "environment", c.record.ID(), "node", node, "reason", why)
}

// lost stores that the node may hold this generation, before another is made.
func (c *claiming) lost(node string, err error) error {
	c.silent = true
	c.note(node, "did not answer: ", err)
	r, err := c.f.update("claim-lost", c.record.ID(), nil, func(r *Record) (bool, error) {
		r.makeStale()
		return true, nil
	})
	c.record = r
	return err
}

// ask sends the claim. If the connection breaks the node is asked once more: the
// key makes it answer what it did, if it did.
func (c *claiming) ask(ctx context.Context, node string) (*hearthv1.NodeClaimResponse, error) {
	client := c.f.client(node)
	if client == nil {
		return nil, fmt.Errorf("%w: node %s is not known", env.ErrNotFound, node)
	}
	ctx, cancel := context.WithTimeout(ctx, c.f.cfg.AttemptTimeout)
	defer cancel()
	id, generation := c.record.ID(), c.record.Generation()
	req := &hearthv1.NodeClaimRequest{
		IdempotencyKey: fmt.Sprintf("%s/%d", id, generation),
		Environment:    string(id), Generation: uint64(generation), Spec: c.spec,
	}
	resp, err := client.Claim(ctx, req)
	if err != nil && outcomeOf(err) == outcomeUnknown && ctx.Err() == nil {
		time.Sleep(reaskAfter)
		resp, err = client.Claim(ctx, req)
	}
	if err != nil {
		return nil, err
	}
	if e := resp.GetEnvironment(); e.GetId() != string(id) || e.GetGeneration() != uint64(generation) {
		return nil, fmt.Errorf("it answered for environment %.40q, generation %d", e.GetId(), e.GetGeneration())
	}
	return resp, nil
}

const reaskAfter = 50 * time.Millisecond

// finish stores the answer and then gives it.
func (c *claiming) finish(d placement.Decision, n *hearthv1.NodeClaimResponse) (*hearthv1.ClaimResponse, error) {
	e := proto.CloneOf(n.GetEnvironment())
	e.Node, e.Class, e.Tenant, e.Labels = d.Node, c.spec.GetClass(), c.spec.GetTenant(), c.spec.GetLabels()
	resp := &hearthv1.ClaimResponse{Environment: e, Access: n.GetAccess(), Took: n.GetTook(), Placement: append(c.refused, d.Reasons...)}
	done, err := c.answer.finished(resp)
	if err != nil {
		return nil, err
	}
	_, err = c.f.update("claim-done", c.record.ID(), done, func(r *Record) (bool, error) {
		if r.Phase() != env.PhaseClaiming || r.Generation() != env.Generation(e.GetGeneration()) {
			return false, fmt.Errorf("%w: environment %s was given up while its claim went on; claim again", env.ErrState, r.ID())
		}
		r.Environment = e
		return true, nil
	})
	if err != nil {
		return nil, fmt.Errorf("%w; repeat the claim with the same idempotency key", err)
	}
	return resp, nil
}

// giveUp ends the claim with cause. The key may be used again for a new attempt.
// What a node may hold stays stored until the node has let go of it, and if one
// was silent the record stays for what that one makes late.
func (c *claiming) giveUp(cause error) error {
	if len(c.refused) > 0 {
		cause = fmt.Errorf("%w; tried: %v", cause, c.refused)
	}
	if c.record == nil {
		return cause
	}
	c.f.writing.Lock()
	defer c.f.writing.Unlock()
	change := Change{Op: "claim-failed", DeleteAnswers: []AnswerKey{c.answer.AnswerKey}}
	r := c.f.record(c.record.ID())
	switch {
	case r == nil:
	case len(r.Stale) == 0 && !c.silent:
		change.DeleteRecords = []env.ID{r.ID()}
	default:
		r = r.clone()
		r.Changed = time.Now()
		r.giveUp("the claim failed: " + cause.Error())
		change.Put.Records = []*Record{r}
	}
	return errors.Join(cause, c.f.save(change))
}

// waitForNode waits, shortly after a start, until the node reports.
func (f *Fleet) waitForNode(ctx context.Context, node string) bool {
	for {
		f.mu.Lock()
		n := f.nodes[node]
		ok := n != nil && n.session != 0 && n.known.Unplaceable == ""
		seen := f.changed
		f.mu.Unlock()
		if ok || !f.waitForChange(ctx, seen) {
			return ok
		}
	}
}

// outcome is what an error of a node's claim means.
type outcome struct {
	word   string
	booked placement.Outcome
}

var (
	outcomeClaimed = outcome{"claimed", placement.Claimed}
	outcomeRefused = outcome{"refused", placement.Refused}
	outcomeInvalid = outcome{"invalid", placement.Unknown} // would be refused by every node
	outcomeUnknown = outcome{"unknown", placement.Unknown} // may have been carried out
)

// outcomeOf is careful: only an answer that says that nothing was done counts as
// a refusal. An internal fault of the node, a broken connection and a deadline
// leave open what was done.
func outcomeOf(err error) outcome {
	switch {
	case err == nil:
		return outcomeClaimed
	case errors.Is(err, env.ErrInvalid):
		return outcomeInvalid
	case errors.Is(err, env.ErrExhausted), errors.Is(err, env.ErrNotFound), errors.Is(err, env.ErrState),
		errors.Is(err, env.ErrUnsupported), errors.Is(err, env.ErrDenied):
		return outcomeRefused
	default:
		return outcomeUnknown
	}
}
