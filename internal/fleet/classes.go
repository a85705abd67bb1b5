package fleet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/env"
)

// Budget bounds what all environments of a node may use together; a zero leaves
// what the node's own configuration says.
type Budget struct {
	MemoryBytes uint64
	CPUMillis   uint64
}

// classSet is all that nodes shall know of classes. It is never changed.
type classSet struct {
	revision  string
	manifests [][]byte
}

// SetClasses gives all nodes the same classes: EnvironmentClass objects as JSON,
// under a revision that names the whole set. Nodes that report another one are
// given them until they have them. Without it nodes have their own.
func (f *Fleet) SetClasses(revision string, manifests [][]byte) {
	set := &classSet{revision: revision}
	for _, m := range manifests {
		set.manifests = append(set.manifests, slices.Clone(m))
	}
	f.mu.Lock()
	f.classes = set
	for _, n := range f.nodes {
		n.push.retry()
	}
	f.mu.Unlock()
	f.poke()
}

// SetBudgets replaces the budgets of the nodes. One without keeps what it has.
func (f *Fleet) SetBudgets(budgets map[string]Budget) {
	f.mu.Lock()
	f.budgets = maps.Clone(budgets)
	for _, n := range f.nodes {
		n.push.retry()
	}
	f.mu.Unlock()
	f.poke()
}

// Bounds of what is given to nodes at once, and of the wait between two tries.
const (
	pushesAtOnce = 64
	maxPushWait  = time.Minute
)

// pushState is what one node was given. Fleet.mu guards it.
type pushState struct {
	known    bool   // the node has said which classes it has
	revision string // of those
	budget   *Budget
	running  bool
	wait     time.Duration
	after    time.Time
	refused  string // why it does not take what it shall have
}

// retry lets the next try be at once.
func (p *pushState) retry() { p.wait, p.after = 0, time.Time{} }

// push is what one node is to be given.
type push struct {
	node    string
	session uint64
	client  hearthv1connect.NodeServiceClient
	classes *classSet // nil if it has them
	budget  *Budget   // nil if it has it
}

// takePushes lists what is to be given now, one a node at a time, and notes it as
// under way.
func (f *Fleet) takePushes(now time.Time) []push {
	f.mu.Lock()
	defer f.mu.Unlock()
	running := 0
	for _, n := range f.nodes {
		if n.push.running {
			running++
		}
	}
	var out []push
	for _, n := range f.nodes {
		if n.session == 0 || !n.push.known || n.push.running || now.Before(n.push.after) || running >= pushesAtOnce {
			continue
		}
		if p := f.pushFor(n); p.classes != nil || p.budget != nil {
			n.push.running = true
			running++
			out = append(out, p)
		}
	}
	return out
}

// pushFor is what the node lacks. The caller holds mu.
func (f *Fleet) pushFor(n *nodeState) push {
	p := push{node: n.name, session: n.session, client: n.client}
	if f.classes != nil && n.push.revision != f.classes.revision {
		p.classes = f.classes
	}
	if b, ok := f.budgets[n.name]; ok && (n.push.budget == nil || *n.push.budget != b) {
		p.budget = &b
	}
	return p
}

// give sends what takePushes listed and books what came of it.
func (f *Fleet) give(ctx context.Context, p push) {
	err := p.send(ctx, f.cfg.AttemptTimeout)
	if ctx.Err() != nil {
		err = nil // this controller ends; the next one gives it again
	}
	f.mu.Lock()
	n := f.nodes[p.node]
	n.push.running = false
	if err != nil {
		n.push.wait = min(max(2*n.push.wait, f.cfg.Heartbeat), maxPushWait)
		n.push.after = time.Now().Add(n.push.wait)
		n.push.refused = fmt.Sprintf("%.*s", maxReason, err)
	} else if ctx.Err() == nil && n.session == p.session {
		n.push.retry()
		n.push.refused = ""
		if p.classes != nil {
			n.push.revision = p.classes.revision
		}
		if p.budget != nil {
			n.push.budget = p.budget
		}
	}
	f.mu.Unlock()
	f.metrics.pushed(err)
	if err != nil {
		f.log.Warn("node does not have its classes or budget", "node", p.node, "error", err)
		return
	}
	f.poke() // there may be more than could be begun at once, or something newer
}

func (p push) send(ctx context.Context, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var errs []error
	if p.budget != nil {
		_, err := p.client.SetBudget(ctx, &hearthv1.SetBudgetRequest{MemoryBytes: p.budget.MemoryBytes, CpuMillis: p.budget.CPUMillis})
		errs = append(errs, named("budget", err))
	}
	if p.classes != nil {
		_, err := p.client.SetClasses(ctx, &hearthv1.SetClassesRequest{Revision: p.classes.revision, Manifests: p.classes.manifests})
		errs = append(errs, named("classes "+p.classes.revision, err))
	}
	return errors.Join(errs...)
}

func named(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

// pushOutcome is the word for what came of one.
func pushOutcome(err error) string {
	switch {
	case err == nil:
		return "done"
	case errors.Is(err, env.ErrUnavailable), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return "unanswered"
	default:
		return "refused"
	}
}
