package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	hearthv1 "hearth/api/hearth/v1"
)

// forward is one LOCAL:REMOTE argument.
type forward struct{ local, remote uint16 }

func parseForward(s string) (forward, error) {
	local, remote, both := strings.Cut(s, ":")
	if !both {
		remote = local
	}
	if local == "" {
		local = "0"
	}
	l, errL := strconv.ParseUint(local, 10, 16)
	r, errR := strconv.ParseUint(remote, 10, 16)
	if errL != nil || errR != nil || r == 0 {
		return forward{}, usagef("port %q: want LOCAL:REMOTE, such as 8080:80, or :80 for any free port", s)
	}
	return forward{uint16(l), uint16(r)}, nil
}

func (a *app) portForwardCommand() *cobra.Command {
	var address string
	cmd := &cobra.Command{
		Use:   "port-forward ENVIRONMENT [LOCAL:]REMOTE…",
		Short: "Reach ports of an environment on this machine",
		Long: `Port-forward listens here and passes connections on to ports that the
environment's class lists. It prints one line a port when it listens, and runs
until it is interrupted.`,
		Example: `  hearthctl port-forward e-01ktz… 8080:80
  hearthctl port-forward e-01ktz… :3000 :5432`,
		ValidArgsFunction: a.completeFirst,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 2 {
				return usagef("want an environment and ports: hearthctl port-forward ENVIRONMENT 8080:80")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := environmentID(args[0])
			if err != nil {
				return err
			}
			var forwards []forward
			for _, arg := range args[1:] {
				f, err := parseForward(arg)
				if err != nil {
					return err
				}
				forwards = append(forwards, f)
			}
			return a.cancellable(cmd.Context(), func(ctx context.Context) error {
				return a.portForward(ctx, id, address, forwards)
			})
		},
	}
	cmd.Flags().StringVar(&address, "address", "127.0.0.1", "address to listen on; others can reach what is not a loopback address")
	return cmd
}

// portForward serves until ctx ends or a listener fails. All connections share
// one to the node.
func (a *app) portForward(ctx context.Context, id, address string, forwards []forward) error {
	err := a.inside(ctx, id, func(g *guest) error {
		// The access is tried before anyone is told that a port is open.
		if _, err := g.ListDir(ctx, &hearthv1.ListDirRequest{Path: "/"}); err != nil {
			return err
		}
		return a.serveForwards(ctx, g, address, forwards)
	})
	if err != nil {
		return fmt.Errorf("forward ports of %s: %w", id, err)
	}
	return nil
}

func (a *app) serveForwards(ctx context.Context, g *guest, address string, forwards []forward) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel(nil)
	for _, f := range forwards {
		l, err := net.Listen("tcp", net.JoinHostPort(address, strconv.Itoa(int(f.local))))
		if err != nil {
			return fmt.Errorf("%w: choose another local port", err)
		}
		defer l.Close()
		fmt.Fprintf(a.stdout, "forwarding %s -> %s:%d\n", l.Addr(), g.id, f.remote)
		work.Go(func() { cancel(a.accept(ctx, l, g, f.remote)) })
		context.AfterFunc(ctx, func() { _ = l.Close() })
	}
	<-ctx.Done()
	return context.Cause(ctx)
}

// accept returns when l is closed, once its connections have ended.
func (a *app) accept(ctx context.Context, l net.Listener, g *guest, port uint16) error {
	var work sync.WaitGroup
	defer work.Wait()
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		work.Go(func() {
			defer c.Close()
			err := tunnel(ctx, g, c, port)
			if err != nil && ctx.Err() == nil {
				fmt.Fprintf(a.stderr, "hearthctl: connection to %s:%d: %s\n", g.id, port, err)
			}
		})
	}
}

type connectStream = connect.BidiStreamForClientSimple[hearthv1.ConnectRequest, hearthv1.ConnectResponse]

// tunnel carries one connection. Each side's end of data is passed on, so that
// a half-closed connection still answers.
func tunnel(ctx context.Context, g *guest, c net.Conn, port uint16) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := g.Connect(ctx)
	if err != nil {
		return err
	}
	if err := stream.Send(&hearthv1.ConnectRequest{Port: uint32(port)}); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		sendFrom(c, stream)
	}()
	err = receiveTo(c, stream)
	cancel()
	<-sent
	return errors.Join(err, stream.CloseResponse())
}

func sendFrom(c net.Conn, stream *connectStream) {
	buf := make([]byte, 32<<10)
	for {
		n, err := c.Read(buf)
		if n > 0 && stream.Send(&hearthv1.ConnectRequest{Data: buf[:n]}) != nil {
			return // the receiver learns why
		}
		if err != nil {
			_ = stream.Send(&hearthv1.ConnectRequest{CloseWrite: true})
			_ = stream.CloseRequest()
			return
		}
	}
}

func receiveTo(c net.Conn, stream *connectStream) error {
	for {
		m, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if n, _ := c.Write(m.GetData()); n < len(m.GetData()) {
			return nil // the local side has gone
		}
	}
}
