package rpc

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"hearth/internal/env"
)

// unary sends calls by HTTP/1.1 from the goroutine of their caller, each on a
// connection that no other call uses meanwhile. The clients of net/http have a
// goroutine or two between a caller and its connection, in each direction; where a
// call takes less than a millisecond, waking those is most of it.
type unary struct {
	dial func(context.Context) (net.Conn, error)

	mu   sync.Mutex // guards idle
	idle []*line    // the most recently used last
}

// maxIdle is how many connections are kept for further calls.
const maxIdle = 4

// line is one connection and its buffers.
type line struct {
	net.Conn
	r *bufio.Reader
	w *bufio.Writer
}

// lineBuffer holds the head of a request or an answer, and most bodies.
const lineBuffer = 16 << 10

// RoundTrip implements http.RoundTripper. A call that fails is never repeated: its
// server may have begun.
func (u *unary) RoundTrip(r *http.Request) (*http.Response, error) {
	l, err := u.take(r.Context())
	if err != nil {
		closeBody(r)
		return nil, err
	}
	interrupt := context.AfterFunc(r.Context(), func() { _ = l.SetDeadline(time.Unix(1, 0)) })
	resp, err := l.call(r)
	if err != nil {
		interrupt()
		_ = l.Close()
		return nil, fmt.Errorf("%w: %w", cause(r.Context(), err), err)
	}
	resp.Body = &answer{ReadCloser: resp.Body, unary: u, line: l, interrupt: interrupt, last: resp.Close}
	return resp, nil
}

// cause is what ended a call that has no answer.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return env.ErrUnavailable
}

// call writes the request and reads the head of the answer. A server reads a call
// whole before it answers, or refuses it in a few words before that.
func (l *line) call(r *http.Request) (*http.Response, error) {
	defer closeBody(r)
	err := r.Write(l.w)
	if err == nil {
		err = l.w.Flush()
	}
	resp, noAnswer := http.ReadResponse(l.r, r)
	if noAnswer != nil {
		return nil, cmp.Or(err, noAnswer)
	}
	resp.Close = resp.Close || err != nil
	return resp, nil
}

func closeBody(r *http.Request) {
	if r.Body != nil {
		_ = r.Body.Close()
	}
}

// take is an idle connection whose peer is still there, or a new one.
func (u *unary) take(ctx context.Context) (*line, error) {
	for {
		u.mu.Lock()
		n := len(u.idle)
		if n == 0 {
			u.mu.Unlock()
			break
		}
		l := u.idle[n-1]
		u.idle = u.idle[:n-1]
		u.mu.Unlock()
		if !hungUp(l.Conn) {
			return l, nil
		}
		_ = l.Close()
	}
	c, err := u.dial(ctx)
	if err != nil {
		return nil, err
	}
	return &line{Conn: c, r: bufio.NewReaderSize(c, lineBuffer), w: bufio.NewWriterSize(c, lineBuffer)}, nil
}

// put keeps a connection whose answer was read to its end.
func (u *unary) put(l *line) {
	u.mu.Lock()
	if len(u.idle) < maxIdle {
		u.idle = append(u.idle, l)
		l = nil
	}
	u.mu.Unlock()
	if l != nil {
		_ = l.Close()
	}
}

// CloseIdleConnections is what http.Client's does.
func (u *unary) CloseIdleConnections() {
	u.mu.Lock()
	idle := u.idle
	u.idle = nil
	u.mu.Unlock()
	for _, l := range idle {
		_ = l.Close()
	}
}

// answer gives its connection back when it was read to its end, and ends it if it is
// closed before.
type answer struct {
	io.ReadCloser
	unary     *unary
	line      *line
	interrupt func() bool
	last      bool // the peer closes the connection after this answer
	done      sync.Once
}

func (a *answer) Read(p []byte) (int, error) {
	n, err := a.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) {
		a.end(!a.last)
	}
	return n, err
}

func (a *answer) Close() error {
	a.end(false)
	return nil
}

func (a *answer) end(whole bool) {
	a.done.Do(func() {
		// A context that has ended meanwhile has spoiled the deadline.
		if inTime := a.interrupt(); whole && inTime && a.line.r.Buffered() == 0 {
			a.unary.put(a.line)
			return
		}
		_ = a.line.Close()
	})
}

// byKind sends streams, which need both directions at once, another way than calls.
type byKind struct{ calls, streams http.RoundTripper }

func (k byKind) RoundTrip(r *http.Request) (*http.Response, error) {
	if streams(r) || r.ContentLength < 0 {
		return k.streams.RoundTrip(r)
	}
	return k.calls.RoundTrip(r)
}

func (k byKind) CloseIdleConnections() {
	for _, t := range []http.RoundTripper{k.calls, k.streams} {
		if c, ok := t.(interface{ CloseIdleConnections() }); ok {
			c.CloseIdleConnections()
		}
	}
}
