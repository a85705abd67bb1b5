package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/config"
	"hearth/internal/env"
	"hearth/internal/rpc"
)

// backend is the life of environments, by a controller or by one node's agent.
// Keys are idempotency keys.
type backend interface {
	claim(ctx context.Context, key string, spec *hearthv1.ClaimSpec) (*hearthv1.ClaimResponse, error)
	get(ctx context.Context, id string) (*hearthv1.Environment, error)
	list(ctx context.Context, class, node string) ([]*hearthv1.Environment, error)
	classes(ctx context.Context) ([]string, error)
	pause(ctx context.Context, key, id string) (*hearthv1.Environment, error)
	resume(ctx context.Context, key, id string) (*hearthv1.Environment, error)
	resize(ctx context.Context, key, id string, want *hearthv1.Resources) (*hearthv1.Environment, error)
	snapshot(ctx context.Context, key, id string) (*hearthv1.Snapshot, error)
	snapshots(ctx context.Context, id string) ([]*hearthv1.Snapshot, error)
	fork(ctx context.Context, key, id string, count int, vars map[string]string) (*hearthv1.ForkResponse, error)
	extend(ctx context.Context, key, id string, end ending) (*hearthv1.Environment, error)
	release(ctx context.Context, key, id string, snapshot bool) (*hearthv1.Snapshot, error)
	token(ctx context.Context, id string) (*hearthv1.Access, error)
	upgrade(ctx context.Context, key, id string, keep hearthv1.Keep) (*hearthv1.UpgradeResponse, error)
}

// backend connects to what the configuration names. It sends nothing yet.
func (a *app) backend() (backend, error) {
	c, err := config.LoadClient(a.flags, a.getenv)
	if err != nil {
		return nil, err
	}
	switch {
	case c.NodeSocket != "":
		return node{hearthv1connect.NewNodeServiceClient(rpc.UnixClient(c.NodeSocket), rpc.UnixURL, rpc.ClientOptions()...)}, nil
	case c.Server != "":
		return newController(c)
	default:
		return nil, usagef("no controller: set HEARTH_SERVER to https://host:port and HEARTH_TOKEN, or write both to ~/.config/hearth/config.yaml; on a node, use --node-socket")
	}
}

func newController(c config.Client) (backend, error) {
	roots, err := c.Roots()
	if err != nil {
		return nil, err
	}
	if c.Token == "" {
		return nil, usagef("no API key for %s: set HEARTH_TOKEN, or write token to ~/.config/hearth/config.yaml", c.Server)
	}
	h := rpc.TLSClient(&tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots})
	h.Transport = withHeaders{h.Transport, map[string]string{"Authorization": "Bearer " + c.Token}}
	return controller{hearthv1connect.NewEnvironmentServiceClient(h, c.Server, rpc.ClientOptions()...)}, nil
}

// withHeaders adds headers to every request.
type withHeaders struct {
	next    http.RoundTripper
	headers map[string]string
}

func (t withHeaders) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	for k, v := range t.headers {
		r.Header.Set(k, v)
	}
	return t.next.RoundTrip(r)
}

// CloseIdleConnections is found by http.Client.
func (t withHeaders) CloseIdleConnections() {
	if c, ok := t.next.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// newKey mints an idempotency key.
func newKey() string { return "hearthctl-" + rand.Text() }

// again repeats a call with an idempotency key when the connection failed after
// it had been made: the call may have been carried out, and its answer lost.
func again[T any](ctx context.Context, call func() (T, error)) (T, error) {
	for pause := 50 * time.Millisecond; ; pause *= 4 {
		v, err := call()
		if err == nil || !lostAnswer(err) || pause > time.Second {
			return v, err
		}
		select {
		case <-ctx.Done():
			return v, err
		case <-time.After(pause):
		}
	}
}

func lostAnswer(err error) bool {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return false
	}
	return !rpc.Answered(err) && errors.Is(err, env.ErrUnavailable)
}

// environmentID checks an id before it goes anywhere.
func environmentID(s string) (string, error) {
	id, err := env.ParseID(s)
	if err != nil {
		return "", fmt.Errorf("%w: hearthctl list shows the ids", err)
	}
	return string(id), nil
}
