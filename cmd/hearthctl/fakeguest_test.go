package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"connectrpc.com/connect"
	"github.com/creack/pty"
	"google.golang.org/protobuf/types/known/timestamppb"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/env"
	"hearth/internal/rpc"
)

// fakeGuest serves the inside of the fake's environments.
type fakeGuest struct {
	hearthv1connect.UnimplementedGuestServiceHandler
	*fake
}

type guestKey struct{}

func (f *fake) guestToken(ctx context.Context, _ string, h http.Header) (context.Context, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	id := h.Get("Hearth-Environment")
	e, ok := f.envs[id]
	switch {
	case !ok, h.Get("Authorization") != "Bearer "+e.token:
		return ctx, rpc.Unauthenticated(fmt.Errorf("%w: token or environment unknown", env.ErrDenied))
	case e.Phase != hearthv1.Phase_PHASE_RUNNING:
		return ctx, fmt.Errorf("%w: environment %s is paused: resume it first", env.ErrState, id)
	}
	return context.WithValue(ctx, guestKey{}, f.root(id)), nil
}

func rootOf(ctx context.Context) string { return ctx.Value(guestKey{}).(string) }

// pathOf maps a path inside to the machine's.
func pathOf(ctx context.Context, p string) string {
	return filepath.Join(rootOf(ctx), decodeName(p))
}

func fault(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: %w", env.ErrNotFound, err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: %w", env.ErrDenied, err)
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.EISDIR):
		return fmt.Errorf("%w: %w", env.ErrInvalid, err)
	default:
		return err
	}
}

func (g *fakeGuest) Exec(ctx context.Context, stream *connect.BidiStream[hearthv1.ExecRequest, hearthv1.ExecResponse]) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	start := first.GetStart()
	root := rootOf(ctx)
	// Words that name paths inside are mapped, so that mkdir and ln work.
	words := append([]string{}, start.GetCommand()...)
	if words[0] == "mkdir" || words[0] == "ln" {
		for i := range words {
			if strings.HasPrefix(words[i], "/") && (words[0] != "ln" || i == len(words)-1) {
				words[i] = filepath.Join(root, words[i])
			}
		}
	}
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Dir = filepath.Join(root, start.GetDir())
	cmd.Env = append(os.Environ(), "INSIDE=1", fmt.Sprintf("ASKED_UID=%d", start.GetUid()))
	for k, v := range start.GetVariables() {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	return runProcess(stream, cmd, start)
}

// runProcess is one exec: pipes or a terminal, and the caller's messages.
func runProcess(stream *connect.BidiStream[hearthv1.ExecRequest, hearthv1.ExecResponse], cmd *exec.Cmd, start *hearthv1.ExecStart) error {
	var mu sync.Mutex // guards stream.Send
	send := func(m *hearthv1.ExecResponse) {
		mu.Lock()
		defer mu.Unlock()
		_ = stream.Send(m)
	}
	stdout := writerFunc(func(p []byte) {
		send(&hearthv1.ExecResponse{Message: &hearthv1.ExecResponse_Stdout{Stdout: append([]byte{}, p...)}})
	})
	var stdin io.WriteCloser
	var tty *os.File
	var err error
	var output sync.WaitGroup
	if start.GetTerminal() {
		size := &pty.Winsize{Rows: uint16(start.GetSize().GetRows()), Cols: uint16(start.GetSize().GetColumns())}
		if tty, err = pty.StartWithSize(cmd, size); err != nil {
			return fault(err)
		}
		stdin = tty
		output.Go(func() { _, _ = io.Copy(stdout, tty) })
	} else {
		if stdin, err = cmd.StdinPipe(); err != nil {
			return err
		}
		cmd.Stdout = stdout
		cmd.Stderr = writerFunc(func(p []byte) {
			send(&hearthv1.ExecResponse{Message: &hearthv1.ExecResponse_Stderr{Stderr: append([]byte{}, p...)}})
		})
		if err := cmd.Start(); err != nil {
			return fmt.Errorf("%w: %w", env.ErrNotFound, err)
		}
	}
	send(&hearthv1.ExecResponse{Message: &hearthv1.ExecResponse_Started{Started: &hearthv1.ExecStarted{Pid: uint32(cmd.Process.Pid)}}})
	var live sync.Mutex // guards ended, and the terminal against its closing
	ended := false
	defer func() {
		live.Lock()
		defer live.Unlock()
		ended = true
		if tty != nil {
			_ = tty.Close()
		}
	}()
	obey := func(m *hearthv1.ExecRequest) {
		if in, ok := m.GetMessage().(*hearthv1.ExecRequest_Stdin); ok {
			_, _ = stdin.Write(in.Stdin) // may block; a closed one is an error
			return
		}
		live.Lock()
		defer live.Unlock()
		if !ended {
			switch m := m.GetMessage().(type) {
			case *hearthv1.ExecRequest_CloseStdin:
				if tty == nil {
					_ = stdin.Close()
				}
			case *hearthv1.ExecRequest_Signal:
				_ = cmd.Process.Signal(syscall.Signal(m.Signal))
			case *hearthv1.ExecRequest_Resize:
				if tty != nil {
					_ = pty.Setsize(tty, &pty.Winsize{Rows: uint16(m.Resize.GetRows()), Cols: uint16(m.Resize.GetColumns())})
				}
			}
		}
	}
	go func() {
		for {
			m, err := stream.Receive()
			if err != nil {
				_ = cmd.Process.Signal(syscall.SIGHUP)
				return
			}
			obey(m)
		}
	}()
	_ = cmd.Wait()
	output.Wait()
	exit := &hearthv1.ExecExit{Code: int32(cmd.ProcessState.ExitCode())}
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		exit.Signal, exit.Code = uint32(ws.Signal()), 128+int32(ws.Signal())
	}
	send(&hearthv1.ExecResponse{Message: &hearthv1.ExecResponse_Exit{Exit: exit}})
	return nil
}

type writerFunc func([]byte)

func (f writerFunc) Write(p []byte) (int, error) { f(p); return len(p), nil }

func infoOf(path string, st fs.FileInfo) *hearthv1.FileInfo {
	sys := st.Sys().(*syscall.Stat_t)
	target, _ := os.Readlink(path)
	return &hearthv1.FileInfo{
		Name: encodeName(st.Name()), Size: uint64(st.Size()), Mode: sys.Mode,
		Modified: timestamppb.New(st.ModTime()), LinkTarget: encodeName(target),
	}
}

func (g *fakeGuest) ReadFile(ctx context.Context, r *hearthv1.ReadFileRequest, stream *connect.ServerStream[hearthv1.ReadFileResponse]) error {
	path := pathOf(ctx, r.GetPath())
	f, err := os.Open(path)
	if err != nil {
		return fault(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.IsDir() {
		return fmt.Errorf("%w: %s is a directory", env.ErrInvalid, r.GetPath())
	}
	if err := stream.Send(&hearthv1.ReadFileResponse{Info: infoOf(path, st)}); err != nil {
		return err
	}
	_, err = io.Copy(writerFunc(func(p []byte) { _ = stream.Send(&hearthv1.ReadFileResponse{Data: p}) }), f)
	return err
}

func (g *fakeGuest) WriteFile(ctx context.Context, stream *connect.ClientStream[hearthv1.WriteFileRequest]) (*hearthv1.WriteFileResponse, error) {
	if !stream.Receive() {
		return nil, fmt.Errorf("%w: no open", env.ErrInvalid)
	}
	open := stream.Msg().GetOpen()
	path := pathOf(ctx, open.GetPath())
	if strings.Contains(path, "/refused/") {
		return nil, fmt.Errorf("%w: %s: read-only", env.ErrDenied, open.GetPath())
	}
	if open.GetParents() {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return nil, fault(err)
		}
	}
	mode := fs.FileMode(open.GetMode())
	if mode == 0 {
		mode = 0o644
	}
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, mode)
	if err != nil {
		return nil, fault(err)
	}
	defer os.Remove(tmp)
	defer f.Close()
	var n int
	for stream.Receive() {
		m, err := f.Write(stream.Msg().GetData())
		if n += m; err != nil {
			return nil, err
		}
	}
	if err := stream.Err(); err != nil {
		return nil, err
	}
	return &hearthv1.WriteFileResponse{Size: uint64(n)}, fault(os.Rename(tmp, path))
}

func (g *fakeGuest) ListDir(ctx context.Context, r *hearthv1.ListDirRequest) (*hearthv1.ListDirResponse, error) {
	dir := pathOf(ctx, r.GetPath())
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fault(err)
	}
	out := &hearthv1.ListDirResponse{}
	for _, e := range entries {
		if e.Name() <= r.GetPageToken() {
			continue
		}
		if len(out.Entries) == 2 { // small pages, so that there are some
			out.NextPageToken = out.Entries[1].GetName()
			break
		}
		st, err := e.Info()
		if err != nil {
			return nil, err
		}
		info := infoOf(filepath.Join(dir, e.Name()), st)
		if e.Name() == "liar" { // an environment that answers with a path
			info.Name = "../../escaped"
		}
		out.Entries = append(out.Entries, info)
	}
	return out, nil
}

func (g *fakeGuest) Connect(ctx context.Context, stream *connect.BidiStream[hearthv1.ConnectRequest, hearthv1.ConnectResponse]) error {
	m, err := stream.Receive()
	if err != nil {
		return err
	}
	addr, ok := g.ports[m.GetPort()]
	if !ok {
		return fmt.Errorf("%w: port %d is not among the ports of the class: add it there", env.ErrDenied, m.GetPort())
	}
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return fmt.Errorf("%w: %w", env.ErrUnavailable, err)
	}
	defer c.Close()
	go func() {
		for {
			m, err := stream.Receive()
			if err != nil || m.GetCloseWrite() {
				_ = c.(*net.TCPConn).CloseWrite()
				return
			}
			_, _ = c.Write(m.GetData())
		}
	}()
	_, err = io.Copy(writerFunc(func(p []byte) { _ = stream.Send(&hearthv1.ConnectResponse{Data: p}) }), c)
	return err
}
