package fleet

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

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
	call, end, err := f.begin(ctx, tenant, idempotencyKey, "Claim", spec)
	if err != nil {
		return nil, err
	}
	defer end()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), f.cfg.ClaimTimeout)
	defer cancel()
	if err := call.awaitAdoption(ctx, spec.GetClass()); err != nil {
		return nil, err
	}
	if call.prior != nil {
		f.metrics.claimed("repeated", begun)
		return answered(call.prior, &hearthv1.ClaimResponse{})
	}
	resp, err := f.claim(ctx, call, spec)
	f.metrics.claimed(resultOf(resp, err), begun)
	return resp, err
}

func resultOf(resp *hearthv1.ClaimResponse, err error) string {
	switch {
	case err != nil:
		return "failed"
	case !resp.GetEnvironment().GetWarm():
		return "cold"
	case resp.GetEnvironment().GetWaited().AsDuration() > 0:
		return "queued"
	default:
		return "warm"
	}
}

// claim goes on with what the key has made, or begins.
func (f *Fleet) claim(ctx context.Context, call *call, spec *hearthv1.ClaimSpec) (*hearthv1.ClaimResponse, error) {
	c := f.newClaiming(spec, &Record{ClaimKey: call.key, ClaimRequest: call.request, Count: 1}, env.NewID())
	var resp *hearthv1.ClaimResponse
	var err error
	switch r := latest(call.made); {
	case r == nil:
		resp, err = c.start(ctx)
	case r.Phase() == env.PhaseClaiming && !r.moving():
		resp, err = c.resume(ctx, r)
	case r.final():
		return nil, overBefore(r)
	default:
		resp, err = c.again(ctx, r)
	}
	if err == nil {
		call.remember(resp)
	}
	return resp, err
}

// overBefore says that a repeated key cannot be answered any more.
func overBefore(r *Record) error {
	return fmt.Errorf("%w: idempotency key made environment %s, which is %s%s; use a new key for another one",
		env.ErrState, r.ID(), r.Phase(), because(r))
}

// latest is the one of a key's records that counts: a store that was asked to
// forget one and crashed may have kept two. One that got further goes before one
// that did not.
func latest(made []*Record) *Record {
	var best *Record
	for _, r := range made {
		if best == nil || rank(r) >= rank(best) {
			best = r
		}
	}
	return best
}

func rank(r *Record) int {
	switch {
	case r.Phase().Live():
		return 2
	case r.Phase() != env.PhaseClaiming:
		return 1
	default:
		return 0
	}
}

// claiming is one claim on its way over the nodes.
type claiming struct {
	f       *Fleet
	spec    *hearthv1.ClaimSpec
	id      env.ID
	by      *Record // who asks: its claim key, object and the like
	record  *Record // nil until the first placement is stored
	request placement.Request
	refused []string // one line for each node that was tried in vain
	denied  []error  // of them, those that said that it may not be
	silent  bool     // a node may make it yet, though its release was confirmed
}

func (f *Fleet) newClaiming(spec *hearthv1.ClaimSpec, by *Record, id env.ID) *claiming {
	return &claiming{f: f, spec: spec, id: id, by: by, request: placement.Request{
		Class: spec.GetClass(), Cold: spec.GetSnapshot() != "", Memory: int64(spec.GetResources().GetMemoryBytes()), Exclude: map[string]string{},
	}}
}

// start claims from the beginning.
func (c *claiming) start(ctx context.Context) (*hearthv1.ClaimResponse, error) {
	defer c.f.work(c.id)()
	if err := c.findHome(ctx); err != nil {
		return nil, err
	}
	return c.run(ctx)
}

// resume asks the node again that a claim was stored for before a crash or an
// error: only it knows what became of it.
func (c *claiming) resume(ctx context.Context, r *Record) (*hearthv1.ClaimResponse, error) {
	c.id, c.record, c.silent = r.ID(), r, true
	defer c.f.work(c.id)()
	if err := c.settle(); err != nil {
		return nil, err
	}
	if err := c.findHome(ctx); err != nil {
		return nil, err
	}
	for _, p := range r.Stale {
		c.request.Exclude[p.Node] = "may still hold an earlier generation"
	}
	d := placement.Decision{Node: r.Environment.GetNode(), Class: c.spec.GetClass(), Reasons: []string{r.Environment.GetNode() + ": placed before"}}
	if r.isStale(d.Node) {
		return c.run(ctx) // that node was given up already, and is being cleaned
	}
	if !c.f.waitForNode(ctx, d.Node) {
		if done, err := c.lost(d.Node, fmt.Errorf("%w: not connected", env.ErrUnavailable)); done {
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

// settle stores the placement for sure, before its node is asked.
func (c *claiming) settle() error {
	if !c.f.isUnsure(c.id) {
		return nil
	}
	r, err := c.f.update("claim-place", c.id, func(r *Record) (bool, error) { return !r.final(), nil })
	if err == nil {
		c.record = r
	}
	return err
}

// findHome finds the node that has the snapshot to restore.
func (c *claiming) findHome(ctx context.Context) (err error) {
	c.request.Only, err = c.f.snapshotHome(ctx, c.spec)
	return err
}

// run tries nodes until one has claimed.
func (c *claiming) run(ctx context.Context) (*hearthv1.ClaimResponse, error) {
	for {
		d, err := c.decide(ctx)
		if err != nil {
			return nil, c.giveUp(c.whyNone(err))
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

// whyNone is why no node takes the claim: not that they are full, if each of them has
// said that it may not be.
func (c *claiming) whyNone(err error) error {
	c.f.mu.Lock()
	know := c.f.index.Know(c.spec.GetClass())
	c.f.mu.Unlock()
	if len(c.denied) == 0 || len(c.denied) < know {
		return err
	}
	first := c.denied[0]
	c.refused = nil // nothing else was said
	return fmt.Errorf("every node that has class %q (%d): %w", c.spec.GetClass(), know, first)
}

func (f *Fleet) ended(d placement.Decision, o placement.Outcome) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.index.End(d, o)
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
	case outcomeSuperseded:
		return nil, true, fmt.Errorf("%w: a newer controller leads; repeat the claim there with the same idempotency key: %w", env.ErrUnavailable, err)
	case outcomeRefused:
		c.note(d.Node, "refused: ", err)
		if errors.Is(err, env.ErrDenied) {
			c.denied = append(c.denied, err)
		}
		return nil, false, nil
	default:
		done, err := c.lost(d.Node, err)
		return nil, done, err
	}
}

// What is kept of the nodes that did not take a claim: it goes into the answer.
// The log has all.
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
	c.f.log.Info("node did not take claim", "environment", c.id, "node", node, "reason", why)
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
	req := nodeClaim(c.record, c.spec)
	resp, err := client.Claim(ctx, req)
	if err != nil && outcomeOf(err) == outcomeUnknown && ctx.Err() == nil {
		time.Sleep(reaskAfter)
		resp, err = client.Claim(ctx, req)
	}
	if err != nil {
		return nil, err
	}
	if e := resp.GetEnvironment(); e.GetId() != req.GetEnvironment() || e.GetGeneration() != req.GetGeneration() {
		return nil, fmt.Errorf("it answered for environment %.40q, generation %d", e.GetId(), e.GetGeneration())
	}
	return resp, nil
}

const reaskAfter = 50 * time.Millisecond

// nodeClaim is what the record's node is asked for, the same whenever it is asked.
func nodeClaim(r *Record, spec *hearthv1.ClaimSpec) *hearthv1.NodeClaimRequest {
	req := &hearthv1.NodeClaimRequest{
		IdempotencyKey: fmt.Sprintf("%s/%d", r.ID(), r.Generation()),
		Environment:    string(r.ID()), Generation: uint64(r.Generation()), Spec: spec,
	}
	if r.ClaimKey != (ClaimKey{}) {
		req.ClaimKey, req.ClaimRequest = r.ClaimKey[:], r.ClaimRequest[:]
	}
	return req
}

// outcome is what an error of a node's claim means.
type outcome struct {
	word   string
	booked placement.Outcome
}

var (
	outcomeClaimed    = outcome{"claimed", placement.Claimed}
	outcomeRefused    = outcome{"refused", placement.Refused}
	outcomeInvalid    = outcome{"invalid", placement.Unknown}    // would be refused by every node
	outcomeSuperseded = outcome{"superseded", placement.Unknown} // another controller leads
	outcomeUnknown    = outcome{"unknown", placement.Unknown}    // may have been carried out
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
	case errors.Is(err, env.ErrSuperseded):
		return outcomeSuperseded
	case errors.Is(err, env.ErrExhausted), errors.Is(err, env.ErrNotFound), errors.Is(err, env.ErrState),
		errors.Is(err, env.ErrUnsupported), errors.Is(err, env.ErrDenied):
		return outcomeRefused
	default:
		return outcomeUnknown
	}
}
