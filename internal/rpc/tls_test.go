package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
	"hearth/internal/rpc/pki"
)

// tlsService serves on TLS, at the address, to clients of the configuration.
func tlsService(t *testing.T) (s *service, addr string, cfg *tls.Config) {
	t.Helper()
	ca, source := authority(t)
	l, err := ListenTLS("127.0.0.1:0", source)
	if err != nil {
		t.Fatal(err)
	}
	return newService(t, l), l.Addr().String(), issue(t, ca, pki.Node("test", "n1")).ClientConfig(pki.Controller("test"))
}

func tlsClientOf(t *testing.T) (*service, client) {
	t.Helper()
	s, addr, cfg := tlsService(t)
	h := TLSClient(cfg)
	t.Cleanup(h.CloseIdleConnections)
	return s, clientOf(h, "https://"+addr)
}

func TestTLSCallsOneByOneShareAConnection(t *testing.T) {
	s, c := tlsClientOf(t)
	for range 20 {
		if err := c.get(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if got := s.conns.Load(); got != 1 {
		t.Errorf("%d connections for calls one by one", got)
	}
}

// A burst makes no handshake for each of its calls: what has no connection of its own
// goes over the one that the streams have.
func TestATLSBurstHasFewConnections(t *testing.T) {
	s, c := tlsClientOf(t)
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := c.Detections(ctx, &hearthv1.DetectionsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { cancel(); <-s.ended; _ = stream.Close() }()
	const callers = 50
	for range 3 {
		var all, inside sync.WaitGroup
		inside.Add(callers)
		s.call = func(context.Context) error { inside.Done(); inside.Wait(); return nil }
		for range callers {
			all.Go(func() {
				if err := c.get(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
	}
	if got := s.conns.Load(); got > tlsLines+1 {
		t.Errorf("%d connections for bursts of %d calls", got, callers)
	}
}

func TestATLSStreamAndCallsGoBesideEachOther(t *testing.T) {
	s, c := tlsClientOf(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := c.Detections(ctx, &hearthv1.DetectionsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	<-s.opened
	if !stream.Receive() {
		t.Fatal(stream.Err())
	}
	if err := c.get(t.Context()); err != nil {
		t.Fatal(err)
	}
	cancel()
	<-s.ended
}

// A server that goes closes its connections; the call after that is made on another,
// and fails only if nobody serves.
func TestATLSCallAfterItsServerWentIsUnavailableAtOnce(t *testing.T) {
	s, c := tlsClientOf(t)
	if err := c.get(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := s.server.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	if err := c.get(ctx); !errors.Is(err, env.ErrUnavailable) {
		t.Errorf("a call to nobody = %v, want ErrUnavailable", err)
	}
	if ctx.Err() != nil {
		t.Error("it waited")
	}
}

// A refused handshake leaves room for the next call's.
func TestTLSCallsAfterRefusedHandshakesHaveConnectionsAgain(t *testing.T) {
	_, addr, cfg := tlsService(t)
	refused, refuse := errors.New("not this one"), true
	cfg.VerifyConnection = func(tls.ConnectionState) error {
		if refuse {
			return refused
		}
		return nil
	}
	calls := &unary{dial: dialTLS(&net.Dialer{}, cfg), most: tlsLines}
	c := clientOf(&http.Client{Transport: byKind{calls: calls}}, "https://"+addr)
	defer calls.CloseIdleConnections()
	for range 2 * tlsLines {
		if err := c.get(t.Context()); !errors.Is(err, refused) {
			t.Fatalf("a call over a refused connection = %v", err)
		}
	}
	refuse = false
	if err := c.get(t.Context()); err != nil {
		t.Error(err)
	}
	if open := calls.hosts[addr].open; open != 1 {
		t.Errorf("%d connections are counted as open", open)
	}
}

// A writer of which the server speaks no HTTP/1.1 uses what it has.
func TestWritesGoTheOtherWayIfThereIsNoConnection(t *testing.T) {
	_, addr, cfg := tlsService(t)
	broken := cfg.Clone()
	broken.VerifyConnection = func(tls.ConnectionState) error { return errors.New("not this one") }
	whole := TLSClient(cfg)
	t.Cleanup(whole.CloseIdleConnections)
	rest := &seen{next: whole.Transport}
	h := &http.Client{Transport: Writes(broken, rest)}
	if err := clientOf(h, "https://"+addr).get(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.Transport = Writes(cfg, rest)
	t.Cleanup(h.CloseIdleConnections)
	if err := clientOf(h, "https://"+addr).get(t.Context()); err != nil {
		t.Fatal(err)
	}
	r, err := h.Get("https://" + addr + "/")
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Body.Close()
	if diff := cmp.Diff([]string{http.MethodPost, http.MethodGet}, rest.methods); diff != "" {
		t.Error("the other way had: ", diff)
	}
}

// seen notes what is sent.
type seen struct {
	next    http.RoundTripper
	methods []string
}

func (s *seen) RoundTrip(r *http.Request) (*http.Response, error) {
	s.methods = append(s.methods, r.Method)
	return s.next.RoundTrip(r)
}
