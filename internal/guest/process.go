package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
	"time"

	"hearth/internal/env"
	"hearth/internal/guest/wire"
)

// sendTimeout bounds one frame to a process whose envinit does not read.
// Flow control keeps an honest one far from it.
const sendTimeout = 30 * time.Second

// hangupTimeout bounds the last word of a caller who is leaving.
const hangupTimeout = time.Second

// Command is a process to run inside.
type Command struct {
	Args      []string
	Dir       string // "" is /
	Variables map[string]string
	Terminal  bool
	Size      TerminalSize // with Terminal
	UID, GID  uint32
}

// TerminalSize is counted in characters.
type TerminalSize struct{ Rows, Columns uint16 }

// Exit is how a process ended: Code is 128+Signal if a signal did it.
type Exit struct {
	Code   int
	Signal int
}

// Stream says where output came from.
type Stream uint8

// The streams. A terminal has only Stdout.
const (
	Stdout Stream = 1
	Stderr Stream = 2
)

// Event is one thing that a process did: output, or its end if Exit is not
// nil. Data is valid until the next Recv.
type Event struct {
	Stream Stream
	Data   []byte
	Exit   *Exit
}

// Process is a running exec. Recv must be called by one goroutine until it
// returns the exit: it carries the output and also the permission to send
// more stdin. The other methods may be called concurrently.
type Process struct {
	PID int // inside

	call *call
	gone chan struct{} // closed by Close
	once sync.Once

	credit chan struct{} // one token when window may have grown
	// mu guards window and ended.
	mu     sync.Mutex
	window int
	ended  bool // stdin was closed
}

// Exec starts a process and returns when it runs. The context covers that
// much and no more: end the rest by Close, or Hangup and Close.
func (c *Client) Exec(ctx context.Context, cmd Command) (*Process, error) {
	if len(cmd.Args) == 0 || cmd.Args[0] == "" {
		return nil, fmt.Errorf("%w: exec: command is empty", env.ErrInvalid)
	}
	if err := wire.CheckVariables(cmd.Variables); err != nil {
		return nil, fmt.Errorf("%w: exec: %w", env.ErrInvalid, err)
	}
	req := wire.Request{Op: wire.OpExec, Exec: &wire.Exec{
		Command: cmd.Args, Dir: cmd.Dir, Variables: cmd.Variables,
		Terminal: cmd.Terminal, Size: wire.Size(cmd.Size), UID: cmd.UID, GID: cmd.GID,
	}}
	cl, err := c.open(ctx, req, openTimeout)
	if err != nil {
		return nil, err
	}
	var reply wire.ExecReply
	if err := cl.expect(wire.KindReply, &reply); err != nil {
		cl.close()
		return nil, err
	}
	if !cl.release() {
		return nil, cl.fault(context.Cause(ctx))
	}
	return &Process{
		PID: reply.PID, call: cl, gone: make(chan struct{}),
		credit: make(chan struct{}, 1), window: wire.Window,
	}, nil
}

// Recv returns the next event. After the exit it returns io.EOF.
func (p *Process) Recv() (Event, error) {
	for {
		f, err := p.call.next()
		if err != nil {
			return Event{}, err
		}
		switch f.Kind {
		case wire.KindData:
			return Event{Stream: Stdout, Data: f.Payload}, nil
		case wire.KindStderr:
			return Event{Stream: Stderr, Data: f.Payload}, nil
		case wire.KindExit:
			return p.exited(f)
		case wire.KindWindow:
			if err := p.grow(f); err != nil {
				return Event{}, err
			}
		default:
			return Event{}, p.call.lie("frame of kind %d from a process", f.Kind)
		}
	}
}

func (p *Process) exited(f wire.Frame) (Event, error) {
	var e wire.Exit
	if err := f.Decode(&e); err != nil {
		return Event{}, p.call.lie("%v", err)
	}
	if e.Code < 0 || e.Code > 255 || e.Signal < 0 || e.Signal > 127 {
		return Event{}, p.call.lie("exit code %d, signal %d", e.Code, e.Signal)
	}
	p.Close()
	return Event{Exit: &Exit{Code: e.Code, Signal: e.Signal}}, nil
}

func (p *Process) grow(f wire.Frame) error {
	n, err := f.Uint32()
	if err != nil {
		return p.call.lie("%v", err)
	}
	p.mu.Lock()
	over := uint64(n)+uint64(p.window) > wire.Window
	if !over {
		p.window += int(n)
	}
	p.mu.Unlock()
	if over {
		return p.call.lie("%d bytes of stdin acknowledged that were not sent", n)
	}
	select {
	case p.credit <- struct{}{}:
	default:
	}
	return nil
}

// Write sends stdin. It blocks while the process does not read; Recv in
// another goroutine, or Close, unblocks it. One writer at a time.
func (p *Process) Write(b []byte) (int, error) {
	sent := 0
	for len(b) > 0 {
		n, err := p.take(len(b))
		if err != nil {
			return sent, err
		}
		if err := p.send(func() error { return p.call.out.Send(wire.KindData, b[:n]) }); err != nil {
			return sent, err
		}
		sent, b = sent+n, b[n:]
	}
	return sent, nil
}

// take waits for room and returns how much may be sent now.
func (p *Process) take(want int) (int, error) {
	for {
		p.mu.Lock()
		ended := p.ended
		n := min(want, p.window, wire.MaxPayload)
		p.window -= n
		p.mu.Unlock()
		if ended {
			return 0, fmt.Errorf("%w: exec: stdin is closed", env.ErrState)
		}
		if n > 0 {
			return n, nil
		}
		select {
		case <-p.credit:
		case <-p.gone:
			return 0, io.ErrClosedPipe
		}
	}
}

func (p *Process) send(frame func() error) error {
	_ = p.call.conn.SetWriteDeadline(time.Now().Add(sendTimeout))
	err := frame()
	switch {
	case err == nil:
		return nil
	case errors.Is(err, wire.ErrFrame):
		return fmt.Errorf("%w: exec: %w", env.ErrInvalid, err)
	default:
		return p.call.fault(err)
	}
}

// CloseStdin gives the process an end of file (a terminal: its end-of-file
// character). Repeating it is harmless.
func (p *Process) CloseStdin() error {
	p.mu.Lock()
	again := p.ended
	p.ended = true
	p.mu.Unlock()
	if again {
		return nil
	}
	return p.send(func() error { return p.call.out.Send(wire.KindEnd, nil) })
}

// Signal sends a signal to the process's group: 1 to 64.
func (p *Process) Signal(n syscall.Signal) error {
	if n < 1 || n > 64 {
		return fmt.Errorf("%w: exec: signal %d is not one of 1 to 64", env.ErrInvalid, int(n))
	}
	return p.send(func() error { return p.call.out.SendUint32(wire.KindSignal, uint32(n)) })
}

// Resize changes the terminal's size.
func (p *Process) Resize(s TerminalSize) error {
	return p.send(func() error { return p.call.out.SendSize(wire.Size(s)) })
}

// Hangup tells the process's group that its caller has gone (SIGHUP), as a
// lost terminal would. Close follows.
func (p *Process) Hangup() error {
	_ = p.call.conn.SetWriteDeadline(time.Now().Add(hangupTimeout))
	return p.call.out.Send(wire.KindHangup, nil)
}

// Close leaves the process to itself: its stdin ends, its further output is
// discarded, it runs on. It is idempotent, and harmless after the exit.
func (p *Process) Close() {
	p.once.Do(func() { close(p.gone) })
	p.call.close()
}
