package guestapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"
	"syscall"

	"connectrpc.com/connect"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
	"hearth/internal/guest"
)

// execStream is connect's, as far as it is used.
type execStream interface {
	Receive() (*hearthv1.ExecRequest, error)
	Send(*hearthv1.ExecResponse) error
}

// Exec implements hearthv1connect.GuestServiceHandler.
func (s *Service) Exec(ctx context.Context, stream *connect.BidiStream[hearthv1.ExecRequest, hearthv1.ExecResponse]) error {
	session, leave, err := s.session(ctx)
	if err != nil {
		return err
	}
	defer leave()
	return s.exec(ctx, session, stream)
}

func (s *Service) exec(ctx context.Context, session Session, stream execStream) error {
	first, err := stream.Receive()
	if err != nil {
		return fmt.Errorf("%w: read the first message: %w", env.ErrInvalid, err)
	}
	start := first.GetStart()
	if start == nil {
		return fmt.Errorf("%w: the first message of exec must be start", env.ErrInvalid)
	}
	size, err := sizeOf(start.GetSize())
	if err != nil {
		return err
	}
	done, err := session.use(ctx)
	if err != nil {
		return err
	}
	defer done()
	p, err := session.Guest.Exec(ctx, guest.Command{
		Args: start.GetCommand(), Dir: start.GetDir(), Variables: start.GetVariables(),
		Terminal: start.GetTerminal(), Size: size, UID: start.GetUid(), GID: start.GetGid(),
	})
	if err != nil {
		return err
	}
	defer s.leave(ctx, p)()
	started := &hearthv1.ExecStarted{Pid: uint32(max(0, p.PID))}
	if err := stream.Send(&hearthv1.ExecResponse{Message: &hearthv1.ExecResponse_Started{Started: started}}); err != nil {
		return err
	}
	var input sync.WaitGroup
	var inputErr error // read after Wait
	input.Go(func() {
		if inputErr = feed(stream, p); inputErr != nil {
			_ = p.Hangup()
			p.Close()
		}
	})
	err = forward(stream, p)
	p.Close()
	endReads(ctx)
	input.Wait()
	if err != nil && inputErr != nil && ctx.Err() == nil && s.detaching.Err() == nil {
		return inputErr
	}
	if err != nil {
		return s.whyEnded(ctx, err)
	}
	return nil
}

// leave arranges what happens to the process when its caller or this agent
// goes first. The returned function undoes it.
func (s *Service) leave(ctx context.Context, p *guest.Process) func() {
	letGo := context.AfterFunc(s.detaching, p.Close)
	var hanging sync.WaitGroup
	hanging.Add(1)
	hangUp := context.AfterFunc(ctx, func() {
		defer hanging.Done()
		if s.detaching.Err() == nil {
			_ = p.Hangup()
		}
		p.Close()
	})
	return func() {
		letGo()
		if hangUp() {
			hanging.Done()
		}
		hanging.Wait()
		p.Close()
	}
}

// forward sends what the process does until its exit.
func forward(stream execStream, p *guest.Process) error {
	for {
		ev, err := p.Recv()
		if err != nil {
			return err
		}
		var r hearthv1.ExecResponse
		switch {
		case ev.Exit != nil:
			r.Message = &hearthv1.ExecResponse_Exit{Exit: &hearthv1.ExecExit{
				Code: int32(ev.Exit.Code), Signal: uint32(ev.Exit.Signal),
			}}
		case ev.Stream == guest.Stderr:
			r.Message = &hearthv1.ExecResponse_Stderr{Stderr: ev.Data}
		default:
			r.Message = &hearthv1.ExecResponse_Stdout{Stdout: ev.Data}
		}
		if err := stream.Send(&r); err != nil || ev.Exit != nil {
			return err
		}
	}
}

// feed obeys the caller until it ends its side. Its error is the caller's
// fault, or nil.
func feed(stream execStream, p *guest.Process) error {
	for {
		m, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			_ = p.CloseStdin()
			return nil
		}
		if err != nil {
			return nil //nolint:nilerr // the call is over; forward says how
		}
		if err := obey(m, p); errors.Is(err, env.ErrInvalid) {
			return err
		}
	}
}

func obey(m *hearthv1.ExecRequest, p *guest.Process) error {
	switch m := m.GetMessage().(type) {
	case *hearthv1.ExecRequest_Stdin:
		_, err := p.Write(m.Stdin)
		return err
	case *hearthv1.ExecRequest_CloseStdin:
		if !m.CloseStdin {
			return nil
		}
		return p.CloseStdin()
	case *hearthv1.ExecRequest_Signal:
		return p.Signal(syscall.Signal(min(m.Signal, math.MaxInt16)))
	case *hearthv1.ExecRequest_Resize:
		size, err := sizeOf(m.Resize)
		if err != nil {
			return err
		}
		return p.Resize(size)
	default:
		return fmt.Errorf("%w: a message of exec after the first must be stdin, close_stdin, signal or resize", env.ErrInvalid)
	}
}

func sizeOf(s *hearthv1.TerminalSize) (guest.TerminalSize, error) {
	if s.GetRows() > math.MaxUint16 || s.GetColumns() > math.MaxUint16 {
		return guest.TerminalSize{}, fmt.Errorf("%w: terminal of %d rows and %d columns: at most %d are possible", env.ErrInvalid, s.GetRows(), s.GetColumns(), math.MaxUint16)
	}
	return guest.TerminalSize{Rows: uint16(s.GetRows()), Columns: uint16(s.GetColumns())}, nil
}
