package kube

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/singleflight"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"hearth/api/v1alpha1"
	"hearth/internal/env"
)

const (
	accessTimeout = time.Second
	// Every renewEvery at most renewAtOnce allowances in use are asked for again,
	// renewers at a time.
	renewEvery  = time.Second
	renewAtOnce = 50
	renewers    = 4
	// askAtOnce bounds the questions about one account that the API server is asked
	// at the same time: it shares itself out among its clients, and all of this
	// controller's requests have one share. The others wait for accessTimeout.
	askAtOnce = 8
)

// asker puts one question to the API server.
type asker interface {
	Ask(ctx context.Context, q question) (allowed bool, reason string, err error)
}

// Access says what a service account may do, as the cluster's roles have it. An
// allowance in use is renewed in the background, so that no call waits for the
// API server; while that one does not answer, an allowance is served for
// staleFor.
type Access struct {
	log     *slog.Logger
	api     asker
	metrics *IdentityMetrics
	flight  singleflight.Group

	mu     sync.Mutex // guards all below
	cache  *accessCache
	asking map[string]*turnstile // by account, of those with questions under way
}

// turnstile lets askAtOnce through at a time.
type turnstile struct {
	slots chan struct{}
	users int // in it or before it; guarded by Access.mu
}

// NewAccess makes the authorizer. See Run.
func NewAccess(log *slog.Logger, api kubernetes.Interface, m *IdentityMetrics) *Access {
	return &Access{log: log, api: subjectAccess{api}, metrics: m, cache: newAccessCache(), asking: map[string]*turnstile{}}
}

// Authorize refuses with env.ErrDenied what the account may not do to the
// tenant's environments, and with env.ErrUnavailable what nobody can tell now.
func (a *Access) Authorize(ctx context.Context, who env.ServiceAccount, verb, tenant string) error {
	q := question{who, verb, tenant}
	if !namespaceName.MatchString(tenant) {
		// It is no question for the API server, nor one to remember: callers choose
		// the text.
		a.metrics.access("denied")
		q.tenant = fmt.Sprintf("%.64q", tenant)
		return denied(q, "that is no namespace's name")
	}
	a.mu.Lock()
	ruling, reason := a.cache.look(q, time.Now())
	silent := a.cache.silent(time.Now())
	a.mu.Unlock()
	if ruling == ask && !silent {
		ruling, reason = a.ask(ctx, q)
	}
	switch ruling {
	case allow:
		a.metrics.access("allowed")
		return nil
	case deny:
		a.metrics.access("denied")
		return denied(q, reason)
	}
	a.mu.Lock()
	stale := a.cache.stale(q, time.Now())
	a.mu.Unlock()
	if stale {
		a.metrics.access("stale")
		return nil
	}
	a.metrics.access("unavailable")
	return fmt.Errorf("%w: the Kubernetes API server does not say whether %s may %s environments in %s; try again",
		env.ErrUnavailable, who.Username(), verb, tenant)
}

func denied(q question, reason string) error {
	if reason != "" {
		reason = " (" + reason + ")"
	}
	return fmt.Errorf("%w: %s may not %s environments.%s in namespace %s%s; give it a role there",
		env.ErrDenied, q.who.Username(), q.verb, v1alpha1.Group, q.tenant, reason)
}

// ask puts the question and keeps the answer. Callers with the same question
// share one. Without an answer the ruling is ask.
func (a *Access) ask(ctx context.Context, q question) (ruling, string) {
	type result struct {
		ruling ruling
		reason string
	}
	// A NUL is in no name.
	key := q.who.Username() + "\x00" + q.who.UID + "\x00" + q.verb + "\x00" + q.tenant
	v, _, _ := a.flight.Do(key, func() (any, error) {
		// Whoever asked first does not decide for the others when to give up.
		leave, ok := a.enter(q.who.Username())
		defer leave()
		if !ok {
			return result{ask, ""}, nil
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), accessTimeout)
		defer cancel()
		allowed, reason, err := a.api.Ask(ctx, q)
		if err != nil {
			a.failed(err)
			return result{ask, ""}, nil
		}
		a.mu.Lock()
		a.cache.put(q, allowed, reason, time.Now())
		a.mu.Unlock()
		if allowed {
			return result{allow, ""}, nil
		}
		return result{deny, reason}, nil
	})
	r, _ := v.(result)
	return r.ruling, r.reason
}

// enter takes a turn to ask about the account. It is not ok if there was none in
// time, or if the API server became silent while it was waited for. The caller
// leaves either way.
func (a *Access) enter(account string) (leave func(), ok bool) {
	a.mu.Lock()
	t := a.asking[account]
	if t == nil {
		t = &turnstile{slots: make(chan struct{}, askAtOnce)}
		a.asking[account] = t
	}
	t.users++
	a.mu.Unlock()
	taken := t.take()
	leave = func() {
		if taken != noTurn {
			<-t.slots
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		if t.users--; t.users == 0 {
			delete(a.asking, account)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return leave, taken == turnAtOnce || taken == turnLater && !a.cache.silent(time.Now())
}

// turn is how one was come by.
type turn int

const (
	noTurn turn = iota
	turnAtOnce
	turnLater
)

func (t *turnstile) take() turn {
	select {
	case t.slots <- struct{}{}:
		return turnAtOnce
	default:
	}
	wait := time.NewTimer(accessTimeout)
	defer wait.Stop()
	select {
	case t.slots <- struct{}{}:
		return turnLater
	case <-wait.C:
		return noTurn
	}
}

// failed notes that the API server did not answer, and says so when it begins.
func (a *Access) failed(err error) {
	a.mu.Lock()
	was := a.cache.silent(time.Now())
	a.cache.failure(time.Now())
	a.mu.Unlock()
	if !was {
		a.log.Warn("access reviews not answered, serving earlier allowances", "error", err)
	}
}

// Run renews allowances that are in use until ctx ends.
func (a *Access) Run(ctx context.Context) error {
	tick := time.NewTicker(renewEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			a.renew(ctx)
		}
	}
}

// renew asks again for what is in use. While the API server is silent one
// question finds out whether it is back.
func (a *Access) renew(ctx context.Context) {
	a.mu.Lock()
	n := renewAtOnce
	if a.cache.silent(time.Now()) {
		n = 1
	}
	due := a.cache.due(time.Now(), n)
	a.mu.Unlock()
	var group errgroup.Group
	group.SetLimit(renewers)
	for _, q := range due {
		group.Go(func() error {
			a.ask(ctx, q)
			return nil
		})
	}
	_ = group.Wait() // no function fails
}

// subjectAccess asks by SubjectAccessReview.
type subjectAccess struct{ api kubernetes.Interface }

func (s subjectAccess) Ask(ctx context.Context, q question) (bool, string, error) {
	r, err := s.api.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{
		Spec: authorizationv1.SubjectAccessReviewSpec{
			User: q.who.Username(), UID: q.who.UID, Groups: q.who.Groups(),
			ResourceAttributes: &authorizationv1.ResourceAttributes{
				Namespace: q.tenant, Verb: q.verb, Group: v1alpha1.Group, Version: v1alpha1.Version, Resource: "environments",
			},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return false, "", err
	}
	return r.Status.Allowed && !r.Status.Denied, r.Status.Reason, nil
}
