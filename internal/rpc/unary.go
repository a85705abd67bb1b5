package rpc

import (
	"bufio"
	"bytes"
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
	// dial connects to a host and port.
	dial func(ctx context.Context, host string) (net.Conn, error)
	// most is how many connections to a host are open at once; a call beyond them is
	// errBusy. So is one that would have to wait for a connection while another is
	// being made: bursts share what is there. 0 is no bound.
	most int

	mu    sync.Mutex // guards hosts
	hosts map[string]*lines
}

// errBusy refuses a call before anything of it was sent.
var errBusy = errors.New("every connection has a call")

// lines are the connections to one host.
type lines struct {
	idle   []*line // the most recently used last
	open   int     // with those that have a call, and the one that is being made
	making bool
}

// maxIdle is how many connections to a host are kept for further calls.
const maxIdle = 4

// line is one connection and its buffers.
type line struct {
	net.Conn
	of *lines
	r  *bufio.Reader
	w  *bufio.Writer
}

// lineBuffer holds the head of a request or an answer, and most bodies.
const lineBuffer = 16 << 10

// try makes the call, if there is a connection for it. If none of it was sent its
// body is untouched, and err says why. A call that was sent and fails is never
// repeated: its server may have begun.
func (u *unary) try(r *http.Request) (resp *http.Response, sent bool, err error) {
	l, err := u.take(r.Context(), r.URL.Host)
	if err != nil {
		return nil, false, err
	}
	interrupt := context.AfterFunc(r.Context(), func() { _ = l.SetDeadline(time.Unix(1, 0)) })
	resp, err = l.call(r)
	if err != nil {
		interrupt()
		u.drop(l)
		return nil, true, fmt.Errorf("%w: %w", cause(r.Context(), err), err)
	}
	resp.Body = &answer{ReadCloser: resp.Body, unary: u, line: l, interrupt: interrupt, last: resp.Close}
	return resp, true, nil
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
	out, err := inOnePiece(r)
	if err != nil {
		return nil, err // nothing was sent, so that nothing will be answered
	}
	if err = out.Write(l.w); err == nil {
		err = l.w.Flush()
	}
	resp, noAnswer := http.ReadResponse(l.r, r)
	if noAnswer != nil {
		return nil, cmp.Or(err, noAnswer)
	}
	resp.Close = resp.Close || err != nil
	return resp, nil
}

// inOnePiece has a short body ready in memory: of any other one net/http sends the
// head first, for which the peer would wake up in vain.
func inOnePiece(r *http.Request) (*http.Request, error) {
	if r.Body == nil || r.ContentLength <= 0 || r.ContentLength > lineBuffer { // 0 is not known, where there is a body
		return r, nil
	}
	b := make([]byte, r.ContentLength)
	if _, err := io.ReadFull(r.Body, b); err != nil {
		return nil, fmt.Errorf("read the call's body: %w", err)
	}
	out := r.WithContext(r.Context())
	out.Body = io.NopCloser(bytes.NewReader(b))
	return out, nil
}

func closeBody(r *http.Request) {
	if r.Body != nil {
		_ = r.Body.Close()
	}
}

// take is an idle connection whose peer is still there, or a new one.
func (u *unary) take(ctx context.Context, host string) (*line, error) {
	for {
		l, of, err := u.next(host)
		if err != nil {
			return nil, err
		}
		if l == nil {
			return u.make(ctx, host, of)
		}
		if !hungUp(l.Conn) {
			return l, nil
		}
		u.drop(l)
	}
}

// next is an idle connection, or else room for one that the caller is to make.
func (u *unary) next(host string) (*line, *lines, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.hosts == nil {
		u.hosts = map[string]*lines{}
	}
	of := u.hosts[host]
	if of == nil {
		of = &lines{}
		u.hosts[host] = of
	}
	if n := len(of.idle); n > 0 {
		l := of.idle[n-1]
		of.idle = of.idle[:n-1]
		return l, of, nil
	}
	if u.most > 0 && (of.making || of.open >= u.most) {
		return nil, nil, errBusy
	}
	of.open++
	of.making = true
	return nil, of, nil
}

func (u *unary) make(ctx context.Context, host string, of *lines) (*line, error) {
	c, err := u.dial(ctx, host)
	u.mu.Lock()
	defer u.mu.Unlock()
	of.making = false
	if err != nil {
		of.open--
		return nil, err
	}
	return &line{Conn: c, of: of, r: bufio.NewReaderSize(c, lineBuffer), w: bufio.NewWriterSize(c, lineBuffer)}, nil
}

// put keeps a connection whose answer was read to its end.
func (u *unary) put(l *line) {
	u.mu.Lock()
	kept := len(l.of.idle) < maxIdle
	if kept {
		l.of.idle = append(l.of.idle, l)
	}
	u.mu.Unlock()
	if !kept {
		u.drop(l)
	}
}

// drop ends a connection that is not idle.
func (u *unary) drop(l *line) {
	_ = l.Close()
	u.mu.Lock()
	defer u.mu.Unlock()
	l.of.open--
}

// CloseIdleConnections is what http.Client's does.
func (u *unary) CloseIdleConnections() {
	u.mu.Lock()
	var idle []*line
	for _, of := range u.hosts {
		idle = append(idle, of.idle...)
		of.idle = nil
	}
	u.mu.Unlock()
	for _, l := range idle {
		u.drop(l)
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
		a.unary.drop(a.line)
	})
}

// byKind sends streams, which need both directions at once, another way than calls,
// and calls too if there are more at once than have connections.
type byKind struct {
	calls   *unary
	streams http.RoundTripper
}

func (k byKind) RoundTrip(r *http.Request) (*http.Response, error) {
	if streams(r) || r.ContentLength < 0 {
		return k.streams.RoundTrip(r)
	}
	resp, sent, err := k.calls.try(r)
	switch {
	case sent || err == nil:
		return resp, err
	case errors.Is(err, errBusy):
		return k.streams.RoundTrip(r)
	}
	closeBody(r)
	return nil, err
}

func (k byKind) CloseIdleConnections() {
	k.calls.CloseIdleConnections()
	closeIdle(k.streams)
}

// writes sends what changes something as calls, if it can be, and the rest another way.
type writes struct {
	calls *unary
	rest  http.RoundTripper
}

func (w writes) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method != http.MethodGet && r.ContentLength >= 0 {
		if resp, sent, err := w.calls.try(r); sent || err == nil {
			return resp, err
		}
	}
	return w.rest.RoundTrip(r)
}

func (w writes) CloseIdleConnections() {
	w.calls.CloseIdleConnections()
	closeIdle(w.rest)
}

func closeIdle(t http.RoundTripper) {
	if c, ok := t.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}
