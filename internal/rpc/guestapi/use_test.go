package guestapi_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/env"
	"hearth/internal/guest"
	"hearth/internal/rpc/guestapi"
)

// sleeper is an environment that counts who uses it. Nothing inside answers.
type sleeper struct {
	mu    sync.Mutex // guards all below
	used  int
	using int
	err   error
}

func (s *sleeper) use(context.Context) (func(), error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, s.err
	}
	s.used++
	s.using++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.using--
	}, nil
}

func (s *sleeper) counts() (used, using int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used, s.using
}

func TestWhatMayWakeAnEnvironmentUsesItAndLetsGo(t *testing.T) {
	s := &sleeper{}
	inside := guest.NewWithDial(func(context.Context) (guest.Conn, error) {
		if _, using := s.counts(); using == 0 {
			t.Error("init was called in an environment that may sleep")
		}
		return nil, fmt.Errorf("%w: nobody is there", env.ErrUnavailable)
	})
	id := env.NewID()
	service := guestapi.New(slog.New(slog.DiscardHandler), known{id, guestapi.Session{
		Guest: inside, Use: s.use, Ports: []env.Port{{Name: "web", Number: 8080, Protocol: env.PortHTTP}},
	}})
	mux := http.NewServeMux()
	service.Mount(mux, connect.WithRequestGate(func(ctx context.Context, spec connect.Spec, _ connect.Peer, h http.Header) (context.Context, error) {
		return service.Gate(ctx, spec.Procedure, h)
	}))
	server := httptest.NewUnstartedServer(mux)
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	h := &http.Client{Transport: withToken{server.Client().Transport, id}}
	client := hearthv1connect.NewGuestServiceClient(h, server.URL)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()

	calls := map[string]struct {
		call  func() error
		wakes bool
	}{
		"exec": {func() error {
			stream, err := client.Exec(ctx)
			if err != nil {
				return err
			}
			_ = stream.Send(&hearthv1.ExecRequest{Message: &hearthv1.ExecRequest_Start{Start: &hearthv1.ExecStart{Command: []string{"true"}}}})
			_, err = stream.Receive()
			return err
		}, true},
		"read a file": {func() error {
			stream, err := client.ReadFile(ctx, &hearthv1.ReadFileRequest{Path: "/x"})
			if err != nil {
				return err
			}
			stream.Receive()
			return stream.Err()
		}, true},
		"write a file": {func() error {
			stream, err := client.WriteFile(ctx)
			if err != nil {
				return err
			}
			_ = stream.Send(&hearthv1.WriteFileRequest{Open: &hearthv1.WriteFileRequest_Open{Path: "/x"}})
			_, err = stream.CloseAndReceive()
			return err
		}, true},
		"list a directory": {func() error { _, err := client.ListDir(ctx, &hearthv1.ListDirRequest{Path: "/"}); return err }, true},
		"a listed port":    {func() error { return connected(ctx, client, 8080) }, true},
		"another port":     {func() error { return connected(ctx, client, 8081) }, false},
		"a page":           {func() error { return page(h, server.URL+"/ports/"+string(id)+"/8080/") }, true},
		"another's page":   {func() error { return page(h, server.URL+"/ports/"+string(id)+"/8081/") }, false},
	}
	for name, c := range calls {
		before, _ := s.counts()
		if err := c.call(); err == nil {
			t.Errorf("%s: it worked, though nobody is inside", name)
		}
		for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			if _, using := s.counts(); using == 0 {
				break
			}
		}
		if used, using := s.counts(); (used > before) != c.wakes || using != 0 {
			t.Errorf("%s: used %d times, %d still", name, used-before, using)
		}
	}
	s.mu.Lock()
	s.err = fmt.Errorf("%w: environment is paused: resume it first", env.ErrState)
	s.mu.Unlock()
	for name, c := range calls {
		if err := c.call(); c.wakes && (err == nil || !strings.Contains(err.Error(), "resume it first")) {
			t.Errorf("%s in one that its owner paused: %v", name, err)
		}
	}
}

func connected(ctx context.Context, c hearthv1connect.GuestServiceClient, port uint32) error {
	stream, err := c.Connect(ctx)
	if err != nil {
		return err
	}
	_ = stream.Send(&hearthv1.ConnectRequest{Port: port})
	_, err = stream.Receive()
	return err
}

func page(h *http.Client, url string) error {
	resp, err := h.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	if resp.StatusCode < 400 {
		return nil
	}
	return fmt.Errorf("%s: %s", resp.Status, body)
}
