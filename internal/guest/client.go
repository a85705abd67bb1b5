package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"hearth/internal/env"
	"hearth/internal/guest/wire"
)

// Bounds of one operation's parts. An exec or a connection may be silent for
// ever; everything else must move within idleTimeout.
const (
	openTimeout = 10 * time.Second // dial, request, first answer
	idleTimeout = 30 * time.Second // between two frames of a file operation
	readyLimit  = 10 * time.Minute // the longest readiness probing
	readySlack  = 5 * time.Second  // for the answer to travel
	partTimeout = 100 * time.Millisecond
)

// Conn is a stream in both directions whose halves close on their own.
type Conn interface {
	net.Conn
	CloseWrite() error
}

// DialFunc makes one connection to envinit. Its errors wrap env.ErrDenied if
// somebody else listens and env.ErrUnavailable if nobody does.
type DialFunc func(ctx context.Context) (Conn, error)

// Target names the envinit of one slot.
type Target struct {
	PID int // the slot's pid 1, in the agent's pid namespace
	// NetNS is the path of the island's network namespace, best one that
	// cannot come to mean another, such as /proc/<agent>/fd/<n>. "" is
	// /proc/<PID>/ns/net.
	NetNS string
}

// Client speaks to one envinit. Each call is a connection of its own. Its
// methods may be called concurrently.
type Client struct {
	dial DialFunc
}

// New makes the client of a slot. It connects to nothing yet.
func New(t Target) *Client { return NewWithDial(t.Dial) }

// NewWithDial makes a client over another transport.
func NewWithDial(dial DialFunc) *Client { return &Client{dial: dial} }

// call is one operation on its connection.
type call struct {
	op   wire.Op
	ctx  context.Context
	conn Conn
	in   *wire.Reader
	out  *wire.Writer
	stop func() bool // detaches the context
}

// open dials and sends the request. first bounds the wait for the first
// answer; the caller resets the deadline if it goes on.
func (c *Client) open(ctx context.Context, req wire.Request, first time.Duration) (*call, error) {
	dialCtx, cancel := context.WithTimeout(ctx, openTimeout)
	conn, err := c.dial(dialCtx)
	cancel()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", req.Op, err)
	}
	cl := &call{op: req.Op, ctx: ctx, conn: conn, in: wire.NewReader(conn), out: wire.NewWriter(conn)}
	// Closing, unlike a deadline, cannot be undone by whoever sets the next one.
	cl.stop = context.AfterFunc(ctx, func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(first))
	req.Version, req.Least = wire.Version, max(req.Least, wire.LeastVersion)
	if err := cl.out.SendJSON(wire.KindRequest, req); err != nil {
		if errors.Is(err, wire.ErrFrame) {
			cl.close()
			return nil, fmt.Errorf("%w: %s: request is larger than %d bytes: send less", env.ErrInvalid, req.Op, wire.MaxRequest)
		}
		// envinit may have answered before it read everything (a refused
		// version), so what it said goes before the broken pipe.
		if f, rerr := cl.in.Next(); rerr == nil && f.Kind == wire.KindError {
			err = cl.remote(f)
		} else {
			err = cl.fault(err)
		}
		cl.close()
		return nil, err
	}
	return cl, nil
}

// close ends the operation. It is idempotent.
func (cl *call) close() {
	cl.stop()
	_ = cl.conn.Close()
}

// release frees an open operation from its context and its deadline. It is
// false, and the operation closed, if the context has ended just now.
func (cl *call) release() bool {
	if !cl.stop() {
		cl.close()
		return false
	}
	cl.ctx = context.WithoutCancel(cl.ctx)
	_ = cl.conn.SetDeadline(time.Time{})
	return true
}

// expect reads one frame, which must be of the kind, and decodes it into v.
func (cl *call) expect(kind wire.Kind, v any) error {
	f, err := cl.next()
	if err != nil {
		return err
	}
	if f.Kind != kind {
		return cl.lie("frame of kind %d where %d belongs", f.Kind, kind)
	}
	if err := f.Decode(v); err != nil {
		return cl.lie("%v", err)
	}
	return nil
}

// next reads one frame; an error frame becomes an error.
func (cl *call) next() (wire.Frame, error) {
	f, err := cl.in.Next()
	if err != nil {
		return f, cl.fault(err)
	}
	if f.Kind == wire.KindError {
		return f, cl.remote(f)
	}
	return f, nil
}

// fault words an error of the transport.
func (cl *call) fault(err error) error {
	switch {
	case cl.ctx.Err() != nil:
		return fmt.Errorf("%s: %w", cl.op, context.Cause(cl.ctx))
	case errors.Is(err, wire.ErrFrame):
		return cl.lie("%v", err)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("%w: %s: envinit does not answer: the environment may be frozen or out of memory", env.ErrUnavailable, cl.op)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed),
		errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNRESET):
		return fmt.Errorf("%w: %s: envinit closed the connection: the environment may have ended", env.ErrUnavailable, cl.op)
	default:
		return fmt.Errorf("%w: %s: %w", env.ErrUnavailable, cl.op, err)
	}
}

// lie words an answer that the protocol does not allow.
func (cl *call) lie(format string, args ...any) error {
	return fmt.Errorf("%w: %s: answer from inside breaks the protocol: %s", env.ErrCorrupt, cl.op, clean(fmt.Sprintf(format, args...)))
}

// ask runs an operation of one request and one reply.
func (c *Client) ask(ctx context.Context, req wire.Request, wait time.Duration, reply any) error {
	cl, err := c.open(ctx, req, wait)
	if err != nil {
		return err
	}
	defer cl.close()
	return cl.expect(wire.KindReply, reply)
}

// askAndPart is ask, and then waits a moment until envinit has done with the
// connection: it may be frozen next, and would do that when it is thawed.
func (c *Client) askAndPart(ctx context.Context, req wire.Request, wait time.Duration, reply any) error {
	cl, err := c.open(ctx, req, wait)
	if err != nil {
		return err
	}
	defer cl.close()
	if err := cl.expect(wire.KindReply, reply); err != nil {
		return err
	}
	_ = cl.conn.CloseWrite()
	_ = cl.conn.SetReadDeadline(time.Now().Add(partTimeout))
	_, _ = cl.conn.Read(make([]byte, 1)) // whatever comes: it was told all that there is
	return nil
}
