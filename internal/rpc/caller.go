package rpc

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"

	"hearth/internal/env"
	"hearth/internal/rpc/pki"
)

// Caller is who is at the other end of the connection, as the transport proved it.
type Caller struct {
	// Local is true on a Unix socket: this process's own user or root.
	Local bool
	// Identity is that of the verified client certificate; zero without one.
	Identity pki.Identity
}

type callerKey struct{}
type localKey struct{}

// CallerFrom tells a handler who calls. It is zero for a TLS client without certificate.
func CallerFrom(ctx context.Context) Caller {
	c, _ := ctx.Value(callerKey{}).(Caller)
	return c
}

// RequireRole is a Gate that lets pass only local callers and certificates of
// this instance with the role.
func RequireRole(instance string, role pki.Role) Gate {
	return func(ctx context.Context, procedure string, _ http.Header) (context.Context, error) {
		c := CallerFrom(ctx)
		if c.Local || (c.Identity.Role == role && c.Identity.Instance == instance) {
			return ctx, nil
		}
		if c.Identity == (pki.Identity{}) {
			return ctx, Unauthenticated(fmt.Errorf("%w: %s needs a client certificate of role %s", env.ErrDenied, methodOf(procedure), role))
		}
		return ctx, fmt.Errorf("%w: %s needs a certificate of role %s, not %s", env.ErrDenied, methodOf(procedure), role, c.Identity)
	}
}

// callerOfConn marks connections of Unix sockets; their peers were checked at accept.
func callerOfConn(ctx context.Context, c net.Conn) context.Context {
	if _, ok := c.(*net.UnixConn); ok {
		return context.WithValue(ctx, localKey{}, true)
	}
	return ctx
}

func withCaller(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var c Caller
		c.Local, _ = r.Context().Value(localKey{}).(bool)
		if r.TLS != nil {
			c.Identity = identityOf(r.TLS)
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, c)))
	})
}

// identityOf is zero unless the certificate was verified against the CA and
// carries exactly one well-formed identity.
func identityOf(s *tls.ConnectionState) pki.Identity {
	if len(s.VerifiedChains) == 0 {
		return pki.Identity{}
	}
	id, err := pki.IdentityOf(s.VerifiedChains[0][0])
	if err != nil {
		return pki.Identity{}
	}
	return id
}
