package rpc

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"hearth/internal/env"
)

// plainServer serves a handler on a Unix socket with the standard library alone.
func plainServer(t *testing.T, h http.HandlerFunc) (path string, stop func()) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "s.sock")
	return path, serveAt(t, path, h)
}

func serveAt(t *testing.T, path string, h http.HandlerFunc) (stop func()) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: h} //nolint:gosec // a test's
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }()
	stop = sync.OnceFunc(func() { _ = server.Close(); <-done })
	t.Cleanup(stop)
	return stop
}

func post(ctx context.Context, c *http.Client, body string) (string, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, UnixURL+"/call", strings.NewReader(body))
	if err != nil {
		return "", err
	}
	resp, err := c.Do(r)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// echo reads all of a request before it answers, as every call's handler does.
func echo(w http.ResponseWriter, r *http.Request) {
	b, _ := io.ReadAll(r.Body)
	_, _ = w.Write(b)
}

func TestCallsAtOnceHaveAConnectionEach(t *testing.T) {
	s := newService(t, nil)
	const callers = 20
	var all, inside sync.WaitGroup
	inside.Add(callers)
	s.call = func(context.Context) error { inside.Done(); inside.Wait(); return nil }
	c := s.unixClient(t)
	for range callers {
		all.Go(func() {
			if err := c.get(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if got := s.conns.Load(); got != callers {
		t.Errorf("%d connections for %d calls at once", got, callers)
	}
	s.call = nil
	for range callers {
		if err := c.get(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if got := s.conns.Load(); got != callers {
		t.Errorf("%d more connections for calls one by one", got-callers)
	}
}

func TestACallAfterItsServerWasReplacedReachesTheNewOne(t *testing.T) {
	path, stop := plainServer(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "first") })
	c := UnixClient(path)
	defer c.CloseIdleConnections()
	if got, err := post(t.Context(), c, "x"); got != "first" || err != nil {
		t.Fatal(got, err)
	}
	stop()
	if _, err := post(t.Context(), c, "x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a call to nobody = %v", err)
	}
	serveAt(t, path, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "second") })
	if got, err := post(t.Context(), c, "x"); got != "second" || err != nil {
		t.Errorf("after the server was replaced: %q, %v", got, err)
	}
}

func TestACallWhoseServerDiesIsNotRepeated(t *testing.T) {
	var calls atomic.Int32
	path, _ := plainServer(t, func(w http.ResponseWriter, r *http.Request) {
		if calls.Add(1) == 1 {
			echo(w, r)
			return
		}
		c, _, err := http.NewResponseController(w).Hijack()
		if err == nil {
			_ = c.Close()
		}
	})
	c := UnixClient(path)
	defer c.CloseIdleConnections()
	if got, err := post(t.Context(), c, "hello"); got != "hello" || err != nil {
		t.Fatal(got, err)
	}
	if _, err := post(t.Context(), c, "hello"); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a call whose server died = %v", err)
	}
	if n := calls.Load(); n != 2 {
		t.Errorf("the server saw %d calls of 2", n)
	}
}

func TestACallEndsWithItsContext(t *testing.T) {
	entered := make(chan struct{})
	path, _ := plainServer(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.ReadAll(r.Body)
		close(entered)
		<-r.Context().Done()
	})
	c := UnixClient(path)
	defer c.CloseIdleConnections()
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-entered; cancel() }()
	if _, err := post(ctx, c, "x"); !errors.Is(err, context.Canceled) {
		t.Errorf("a call that was given up = %v", err)
	}
}

func TestAnAnswerThatIsNotReadSpoilsNoLaterCall(t *testing.T) {
	path, _ := plainServer(t, echo)
	c := UnixClient(path)
	defer c.CloseIdleConnections()
	for range 3 {
		r, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, UnixURL, strings.NewReader(strings.Repeat("long ", 100_000)))
		resp, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if got, err := post(t.Context(), c, "short"); got != "short" || err != nil {
			t.Fatalf("%.40q, %v", got, err)
		}
	}
}

func TestLongCallsAreWhole(t *testing.T) {
	path, _ := plainServer(t, echo)
	c := UnixClient(path)
	defer c.CloseIdleConnections()
	want := strings.Repeat("0123456789abcdef", 1<<16)
	for range 3 {
		if got, err := post(t.Context(), c, want); got != want || err != nil {
			t.Fatalf("%d of %d bytes: %v", len(got), len(want), err)
		}
	}
}

func TestACallToASocketThatIsNotThereIsUnavailable(t *testing.T) {
	c := clientOf(UnixClient(filepath.Join(t.TempDir(), "none.sock")), UnixURL)
	if err := c.get(t.Context()); !errors.Is(err, env.ErrUnavailable) || Answered(err) {
		t.Errorf("error = %v", err)
	}
}

// A peer that wakes up for a call finds all of it.
func TestAShortCallIsSentInOnePiece(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	first := make(chan string, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		b := make([]byte, 2*lineBuffer)
		n, _ := c.Read(b)
		first <- string(b[:n])
		_, _ = io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
	}()
	body := strings.Repeat("x", 5000)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, UnixURL+"/call", struct{ io.Reader }{strings.NewReader(body)})
	if err != nil {
		t.Fatal(err)
	}
	r.ContentLength = int64(len(body))
	resp, err := UnixClient(path).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if got := <-first; !strings.HasSuffix(got, "\r\n\r\n"+body) {
		t.Errorf("the first read has %d bytes, and not all of the call", len(got))
	}
}

// A body of which nobody said how long it is arrives, and one that breaks off ends its
// call at once.
func TestBodiesThatAreNotWhatTheySay(t *testing.T) {
	path, _ := plainServer(t, echo)
	send := func(body io.Reader, length int64) (string, error) {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, UnixURL+"/call", struct{ io.Reader }{body})
		if err != nil {
			t.Fatal(err)
		}
		r.ContentLength = length
		resp, err := UnixClient(path).Do(r)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return string(b), err
	}
	if got, err := send(strings.NewReader("some"), 0); err != nil || got != "some" {
		t.Errorf("of a length that was not said: %q, %v", got, err)
	}
	if _, err := send(strings.NewReader("some"), 10); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("shorter than said: %v", err)
	}
}
