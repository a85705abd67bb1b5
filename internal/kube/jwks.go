package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"hearth/internal/env"
)

// Audience is for whom tokens must have been made.
const Audience = "hearth"

// Where the API server publishes who signs service accounts' tokens, and by
// which keys (KEP-1393).
const (
	discoveryPath = "/.well-known/openid-configuration"
	jwksPath      = "/openid/v1/jwks"
)

const (
	// keysEvery is between two readings of the keys; keysRetry after a failed
	// one; keysUnknown the least between two that unknown keys asked for, so
	// that nobody makes this process ask for every forged token.
	keysEvery   = 5 * time.Minute
	keysRetry   = 10 * time.Second
	keysUnknown = 5 * time.Second
	keysTimeout = 3 * time.Second
	maxKeysSize = 1 << 20
)

// getter reads one document of the API server.
type getter interface {
	Get(ctx context.Context, path string) ([]byte, error)
}

// Tokens tells whose a service account's token is, from the cluster's keys and
// without asking the API server. Keys that were read once are used until others
// are read, however long that takes.
type Tokens struct {
	log     *slog.Logger
	api     getter
	metrics *IdentityMetrics
	flight  singleflight.Group

	mu    sync.Mutex // guards all below
	keys  *keySet    // nil until they were read
	tried time.Time
	fault error // of the last reading
}

// NewTokens makes the verifier. It reads nothing yet: see Run.
func NewTokens(log *slog.Logger, api kubernetes.Interface, m *IdentityMetrics) *Tokens {
	return &Tokens{log: log, api: document{api.Discovery().RESTClient()}, metrics: m}
}

type document struct{ rest.Interface }

func (d document) Get(ctx context.Context, path string) ([]byte, error) {
	return d.Interface.Get().AbsPath(path).DoRaw(ctx)
}

// Run keeps the keys fresh until ctx ends.
func (t *Tokens) Run(ctx context.Context) error {
	for {
		next := keysEvery
		if err := t.refresh(ctx, 0); err != nil {
			next = keysRetry
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(next + rand.N(next/4)):
		}
	}
}

// Verify says whose token it is. One that is not good is env.ErrDenied, with
// what is wrong about it. It is env.ErrUnavailable while no keys are known, or
// while the token's key is not and the API server does not answer.
func (t *Tokens) Verify(ctx context.Context, token string) (env.ServiceAccount, error) {
	account, err := t.verify(ctx, token)
	t.metrics.token(err)
	return account, err
}

func (t *Tokens) verify(ctx context.Context, token string) (env.ServiceAccount, error) {
	keys := t.current()
	if keys == nil {
		if err := t.refresh(ctx, keysUnknown); err != nil {
			return env.ServiceAccount{}, err
		}
		keys = t.current()
	}
	account, err := keys.verify(token, time.Now())
	if !errors.Is(err, errUnknownKey) {
		return account, err
	}
	// The cluster may sign by a new key.
	if err := t.refresh(ctx, keysUnknown); err != nil {
		return env.ServiceAccount{}, err
	}
	return t.current().verify(token, time.Now())
}

func (t *Tokens) current() *keySet {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.keys
}

// refresh reads the keys, unless they were asked for less than atLeast ago: then
// that reading's error is the answer. Callers at the same time share one.
func (t *Tokens) refresh(ctx context.Context, atLeast time.Duration) error {
	_, err, _ := t.flight.Do("keys", func() (any, error) {
		t.mu.Lock()
		recent, fault := time.Since(t.tried) < atLeast, t.fault
		if !recent {
			t.tried = time.Now()
		}
		t.mu.Unlock()
		if recent {
			return nil, fault
		}
		// Whoever asked first does not decide for the others when to give up.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), keysTimeout)
		defer cancel()
		return nil, t.read(ctx)
	})
	return err
}

func (t *Tokens) read(ctx context.Context) error {
	keys, err := readKeys(ctx, t.api)
	if err != nil {
		err = fmt.Errorf("%w: read the cluster's token keys: %s; try again", env.ErrUnavailable, err)
	}
	t.mu.Lock()
	was := t.fault
	t.fault = err
	if err == nil {
		t.keys = keys
	}
	t.mu.Unlock()
	switch {
	case err != nil && was == nil:
		t.log.Warn("token keys not read", "error", err)
	case err == nil && was != nil:
		t.log.Info("token keys read again", "keys", len(keys.keys), "issuer", keys.issuer)
	}
	return err
}

func readKeys(ctx context.Context, api getter) (*keySet, error) {
	discovery, err := api.Get(ctx, discoveryPath)
	if err != nil {
		return nil, err
	}
	jwks, err := api.Get(ctx, jwksPath)
	if err != nil {
		return nil, err
	}
	return parseKeys(discovery, jwks)
}
