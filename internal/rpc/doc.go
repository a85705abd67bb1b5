// Package rpc adapts Hearth's services to the wire: servers and clients over a
// Unix socket and over TLS, with one mapping of errors, one set of limits, one
// set of metrics.
//
// Handlers are written against internal/env: they return wrapped sentinels, and
// the interceptor of HandlerOptions turns each into a code with a detail, once.
// ClientOptions turns them back, so that errors.Is works across the wire.
//
// Invariants: a Unix socket is 0600 and serves only this process's own user and
// root, checked by SO_PEERCRED; TCP is TLS 1.3, always. Connections last; no
// call sets one up if one is open. No header, token or message is ever logged.
// A stream ends when the server shuts down, a unary call is let finish.
//
// It refuses to know any service: the generated constructors meet it in cmd.
package rpc
