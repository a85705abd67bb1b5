package guestapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"

	"connectrpc.com/connect"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
	"hearth/internal/guest"
)

// Connect implements hearthv1connect.GuestServiceHandler.
func (s *Service) Connect(ctx context.Context, stream *connect.BidiStream[hearthv1.ConnectRequest, hearthv1.ConnectResponse]) error {
	session, leave, err := s.session(ctx)
	if err != nil {
		return err
	}
	defer leave()
	first, err := stream.Receive()
	if err != nil {
		return fmt.Errorf("%w: read the first message: %w", env.ErrInvalid, err)
	}
	port, err := session.listed(first.GetPort())
	if err != nil {
		return err
	}
	done, err := session.use(ctx)
	if err != nil {
		return err
	}
	defer done()
	conn, err := session.Guest.Connect(ctx, port.Number)
	if err != nil {
		return err
	}
	defer conn.Close()
	ends := func() { _ = conn.Close() }
	defer context.AfterFunc(ctx, ends)()
	defer context.AfterFunc(s.detaching, ends)()
	var sending sync.WaitGroup
	sending.Go(func() { send(stream, conn, first) })
	err = receive(stream, conn)
	_ = conn.Close()
	endReads(ctx)
	sending.Wait()
	if err != nil {
		return s.whyEnded(ctx, err)
	}
	return nil
}

// listed finds a port of the class.
func (s Session) listed(number uint32) (env.Port, error) {
	if number == 0 || number > math.MaxUint16 {
		return env.Port{}, fmt.Errorf("%w: %d is not a port", env.ErrInvalid, number)
	}
	for _, p := range s.Ports {
		if uint32(p.Number) == number {
			return p, nil
		}
	}
	return env.Port{}, fmt.Errorf("%w: port %d is not among the ports of the class: add it there", env.ErrDenied, number)
}

// connectStream is connect's, as far as it is used.
type connectStream interface {
	Receive() (*hearthv1.ConnectRequest, error)
	Send(*hearthv1.ConnectResponse) error
}

// send carries the caller's bytes inside, beginning with the first message,
// and their end.
func send(stream connectStream, conn guest.Conn, m *hearthv1.ConnectRequest) {
	defer func() { _ = conn.CloseWrite() }()
	for {
		if len(m.GetData()) > 0 {
			if _, err := conn.Write(m.GetData()); err != nil {
				return
			}
		}
		if m.GetCloseWrite() {
			return
		}
		var err error
		if m, err = stream.Receive(); err != nil {
			return
		}
	}
}

// receive carries the inside's bytes out until their end.
func receive(stream connectStream, conn guest.Conn) error {
	buf := make([]byte, chunk)
	for {
		n, err := conn.Read(buf)
		if n > 0 {
			if err := stream.Send(&hearthv1.ConnectResponse{Data: buf[:n]}); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: read from port: %w", env.ErrUnavailable, err)
		}
	}
}
