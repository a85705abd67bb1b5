package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"

	"connectrpc.com/connect"
	"golang.org/x/term"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
)

// stdinChunk is how much of standard input one message carries.
const stdinChunk = 32 << 10

// session is one running command.
type session struct {
	stream *connect.BidiStreamForClientSimple[hearthv1.ExecRequest, hearthv1.ExecResponse]
	out    chan *hearthv1.ExecRequest // to the one goroutine that sends
	urgent chan *hearthv1.ExecRequest // signals and sizes, which do not wait for input
	done   chan struct{}              // closed when nothing more is received
	work   sync.WaitGroup             // the goroutines that end with done
}

// execute runs a command and returns its exit code. An error that matches
// env.ErrDenied means that nothing was started and no input taken.
func (a *app) execute(ctx context.Context, g *guest, start *hearthv1.ExecStart, interactive bool, sigs *catcher) (int, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := g.Exec(ctx)
	if err != nil {
		return 0, err
	}
	s := &session{
		stream: stream,
		out:    make(chan *hearthv1.ExecRequest),
		urgent: make(chan *hearthv1.ExecRequest, 16),
		done:   make(chan struct{}),
	}
	defer func() {
		close(s.done)
		cancel() // frees a Send that the other side does not take
		s.work.Wait()
		_ = stream.CloseResponse()
	}()
	if start.GetTerminal() {
		start.Size = a.terminalSize()
	}
	if err := stream.Send(&hearthv1.ExecRequest{Message: &hearthv1.ExecRequest_Start{Start: start}}); err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	first, err := stream.Receive() // of a refused one, this is the reason
	if err != nil {
		return 0, lost(err)
	}
	if start.GetTerminal() {
		restore, err := a.rawTerminal()
		if err != nil {
			return 0, err
		}
		defer restore()
	}
	defer sigs.with(s.onSignal(a, start.GetTerminal(), cancel))()
	s.work.Go(s.sendLoop)
	// A read of standard input cannot be interrupted: this goroutine alone may
	// outlive the session, and the process ends with it.
	go s.pumpInput(a.stdin, interactive)
	return s.receiveLoop(first, a.stdout, a.stderr)
}

// receiveLoop copies output until the exit message.
func (s *session) receiveLoop(m *hearthv1.ExecResponse, stdout, stderr io.Writer) (int, error) {
	for {
		var err error
		switch m := m.GetMessage().(type) {
		case *hearthv1.ExecResponse_Stdout:
			_, err = stdout.Write(m.Stdout)
		case *hearthv1.ExecResponse_Stderr:
			_, err = stderr.Write(m.Stderr)
		case *hearthv1.ExecResponse_Exit:
			return exitOf(m.Exit), nil
		}
		if err != nil {
			return 0, fmt.Errorf("write the command's output: %w", err)
		}
		if m, err = s.stream.Receive(); err != nil {
			return 0, lost(err)
		}
	}
}

// exitOf keeps an exit code within a byte: it comes from inside.
func exitOf(e *hearthv1.ExecExit) int {
	if sig := e.GetSignal(); sig > 0 && sig < 65 {
		return exitSignal + int(sig)
	}
	return int(e.GetCode()) & 0xff
}

// lost names a stream that ended without saying how the command did.
func lost(err error) error {
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: the connection ended before the command did: it may still run", env.ErrUnavailable)
	}
	return err
}

func (s *session) sendLoop() {
	for {
		var m *hearthv1.ExecRequest
		select {
		case m = <-s.urgent:
		default:
			select {
			case m = <-s.urgent:
			case m = <-s.out:
			case <-s.done:
				_ = s.stream.CloseRequest()
				return
			}
		}
		if s.stream.Send(m) != nil {
			return // receiveLoop learns why
		}
	}
}

func (s *session) pumpInput(stdin *os.File, interactive bool) {
	for interactive {
		buf := make([]byte, stdinChunk)
		n, err := stdin.Read(buf)
		if n > 0 && !s.send(&hearthv1.ExecRequest{Message: &hearthv1.ExecRequest_Stdin{Stdin: buf[:n]}}) {
			return
		}
		if err != nil {
			break
		}
	}
	s.send(&hearthv1.ExecRequest{Message: &hearthv1.ExecRequest_CloseStdin{CloseStdin: true}})
}

func (s *session) send(m *hearthv1.ExecRequest) bool {
	select {
	case s.out <- m:
		return true
	case <-s.done:
		return false
	}
}

// onSignal forwards. The third request to end gives up on the command: it may
// ignore them, or the connection may hang.
func (s *session) onSignal(a *app, terminal bool, giveUp func()) func(syscall.Signal) {
	asked := 0
	return func(sig syscall.Signal) {
		m := &hearthv1.ExecRequest{Message: &hearthv1.ExecRequest_Signal{Signal: linuxNumber(sig)}}
		if sig == syscall.SIGWINCH {
			if !terminal {
				return
			}
			m = &hearthv1.ExecRequest{Message: &hearthv1.ExecRequest_Resize{Resize: a.terminalSize()}}
		}
		if endsUs(sig) {
			if asked++; asked >= 3 {
				giveUp()
				return
			}
		}
		select {
		case s.urgent <- m:
		default: // sixteen wait already
		}
	}
}

func (a *app) terminalSize() *hearthv1.TerminalSize {
	w, h, err := term.GetSize(int(a.stdin.Fd()))
	if err != nil {
		return &hearthv1.TerminalSize{Rows: 24, Columns: 80}
	}
	return &hearthv1.TerminalSize{Rows: uint32(h), Columns: uint32(w)}
}

func (a *app) rawTerminal() (restore func(), err error) {
	fd := int(a.stdin.Fd())
	old, err := term.MakeRaw(fd)
	if err != nil {
		return nil, fmt.Errorf("set terminal to raw mode: %w", err)
	}
	return func() { _ = term.Restore(fd, old) }, nil
}
