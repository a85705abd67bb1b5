package controllerapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"hearth/internal/env"
	"hearth/internal/fleet"
	"hearth/internal/rpc"
)

// The verbs that an authorizer is asked for, as on environments.hearth.run.
const (
	verbCreate = "create"
	verbGet    = "get"
	verbList   = "list"
	verbUpdate = "update"
	verbDelete = "delete"
)

// maxToken bounds what is taken for a service account's token. Those that
// clusters sign have about 1 KiB.
const maxToken = 8 << 10

// Cluster vouches for callers that are service accounts. The zero value is
// that of a controller without Kubernetes: only API keys are known.
type Cluster struct {
	// Verify tells whose token it is. A token that is not good is
	// env.ErrDenied, a cluster that cannot be asked env.ErrUnavailable.
	Verify verifier
	// Access tells what the account may do.
	Access authorizer
}

type verifier interface {
	Verify(ctx context.Context, token string) (env.ServiceAccount, error)
}

// authorizer refuses with env.ErrDenied what the account may not do to the
// environments of the tenant, and with env.ErrUnavailable what it does not know.
type authorizer interface {
	Authorize(ctx context.Context, who env.ServiceAccount, verb, tenant string) error
}

// caller is who sent a request. Without the gate it is nobody, who sees nothing.
type caller struct {
	key     fleet.Principal     // of an API key
	account *env.ServiceAccount // of a token; key is then zero
}

type callerKey struct{}

func callerOf(ctx context.Context) caller {
	c, _ := ctx.Value(callerKey{}).(caller)
	return c
}

// Authenticate is the gate that turns "authorization: Bearer <API key or service
// account token>" into a caller. Keys of listed are tried after the fleet's own.
func Authenticate(f *fleet.Fleet, listed func(key string) (fleet.Principal, bool), cluster Cluster) rpc.Gate {
	return func(ctx context.Context, _ string, h http.Header) (context.Context, error) {
		text, ok := strings.CutPrefix(h.Get("Authorization"), "Bearer ")
		if !ok || text == "" {
			return ctx, rpc.Unauthenticated(fmt.Errorf("%w: the API key is missing: send the header \"authorization: Bearer <key>\"", env.ErrDenied))
		}
		c, err := authenticate(ctx, f, listed, cluster, text)
		if errors.Is(err, env.ErrUnavailable) {
			return ctx, err
		}
		if err != nil {
			return ctx, rpc.Unauthenticated(err)
		}
		return context.WithValue(ctx, callerKey{}, c), nil
	}
}

func authenticate(ctx context.Context, f *fleet.Fleet, listed func(string) (fleet.Principal, bool), cluster Cluster, text string) (caller, error) {
	if cluster.Verify != nil && looksLikeToken(text) {
		if len(text) > maxToken {
			return caller{}, fmt.Errorf("%w: the token has %d bytes; one of a service account has at most %d", env.ErrDenied, len(text), maxToken)
		}
		account, err := cluster.Verify.Verify(ctx, text)
		return caller{account: &account}, err
	}
	p, err := f.Authenticate(text)
	if err != nil {
		var found bool
		if p, found = listed(text); !found {
			return caller{}, err
		}
	}
	return caller{key: p}, nil
}

// looksLikeToken tells a JSON web token (RFC 7519) from an API key, which has no
// dots.
func looksLikeToken(text string) bool { return strings.Count(text, ".") == 2 }

// in is the principal for a call that names the tenant itself; an empty one is
// the caller's own.
func (s *Environments) in(ctx context.Context, tenant string, verbs ...string) (fleet.Principal, error) {
	c := callerOf(ctx)
	if c.account == nil {
		return c.key, nil
	}
	if tenant == "" {
		tenant = c.account.Namespace
	}
	if err := s.may(ctx, *c.account, tenant, verbs); err != nil {
		return fleet.Principal{}, err
	}
	return fleet.Principal{Tenant: tenant}, nil
}

// on is the principal for a call on an environment. What belongs to a tenant in
// whose namespace the account may not do this is to it as if it were not there.
func (s *Environments) on(ctx context.Context, id string, verbs ...string) (fleet.Principal, error) {
	c := callerOf(ctx)
	if c.account == nil {
		return c.key, nil
	}
	if tenant := s.fleet.TenantOf(id); tenant != "" && tenant != c.account.Namespace {
		err := s.may(ctx, *c.account, tenant, verbs)
		if err == nil {
			return fleet.Principal{Tenant: tenant}, nil
		}
		if !errors.Is(err, env.ErrDenied) {
			return fleet.Principal{}, err
		}
	}
	return s.in(ctx, "", verbs...)
}

// listed is the principal whose environments of the tenant are listed.
func (s *Environments) listed(ctx context.Context, tenant string) (fleet.Principal, error) {
	p, err := s.in(ctx, tenant, verbList)
	switch {
	case err != nil, tenant == "", tenant == p.Tenant:
		return p, err
	case p.Admin:
		return fleet.Principal{Tenant: tenant}, nil
	default:
		return fleet.Principal{}, fmt.Errorf("%w: this key is of tenant %q, it cannot list %.64q; leave the tenant empty", env.ErrDenied, p.Tenant, tenant)
	}
}

func (s *Environments) may(ctx context.Context, who env.ServiceAccount, tenant string, verbs []string) error {
	if s.access == nil {
		return fmt.Errorf("%w: this controller knows no service accounts", env.ErrDenied)
	}
	for _, verb := range verbs {
		if err := s.access.Authorize(ctx, who, verb, tenant); err != nil {
			return err
		}
	}
	return nil
}
