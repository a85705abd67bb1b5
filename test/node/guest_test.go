package node

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/env"
	"hearth/internal/rpc"
	"hearth/test/stage"
)

// guest makes a client of an environment's Guest API with any id and token.
func guest(t *testing.T, c stage.Claimed, id, token string) hearthv1connect.GuestServiceClient {
	t.Helper()
	h := rpc.TLSClient(tlsOf(c))
	t.Cleanup(h.CloseIdleConnections)
	h.Transport = bearer{h.Transport, id, token}
	return hearthv1connect.NewGuestServiceClient(h, "https://"+c.Access.Address, rpc.ClientOptions()...)
}

func tlsOf(c stage.Claimed) *tls.Config {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(c.Access.CAPEM)
	return &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}
}

type bearer struct {
	next      http.RoundTripper
	id, token string
}

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Hearth-Environment", b.id)
	if b.token != "" {
		r.Header.Set("Authorization", "Bearer "+b.token)
	}
	return b.next.RoundTrip(r)
}

func TestNodeGuestAPIRefusesEveryWrongToken(t *testing.T) {
	a := node(t)
	one, two := a.claim(t, "web"), a.claim(t, "web")
	list := func(id, token string) error {
		_, err := guest(t, one, id, token).ListDir(t.Context(), &hearthv1.ListDirRequest{Path: "/"})
		return err
	}
	ok(t, list(one.ID(), one.Access.Token))
	fails(t, list(one.ID(), ""), env.ErrDenied, "authorization: Bearer")
	fails(t, list(one.ID(), "ht1.wrong"), env.ErrDenied)
	fails(t, list(one.ID(), one.Access.Token+"x"), env.ErrDenied)
	fails(t, list(one.ID(), two.Access.Token), env.ErrDenied)
	fails(t, list(two.ID(), one.Access.Token), env.ErrDenied)
	fails(t, list(string(env.NewID()), one.Access.Token), env.ErrDenied)
	fails(t, list("../"+one.ID(), one.Access.Token), env.ErrInvalid)
	wrong := two
	wrong.Environment.ID = one.ID()
	if _, err := wrong.Get(8000, "/index.html"); err == nil || !strings.Contains(err.Error(), "403") {
		t.Errorf("a port with another's token: %v, want status 403", err)
	}
	// A new token ends the old one, also over a restart.
	resp, err := a.Node.Token(t.Context(), &hearthv1.NodeTokenRequest{Environment: one.ID()})
	ok(t, err)
	for range 2 {
		fails(t, list(one.ID(), one.Access.Token), env.ErrDenied)
		ok(t, list(one.ID(), resp.GetAccess().GetToken()))
		a.kill(t)
		a.up(t)
	}
	a.release(t, one)
	fails(t, list(one.ID(), resp.GetAccess().GetToken()), env.ErrDenied)
	a.release(t, two)
}

func TestNodeTCPNeedsTLSAndTheNodeAPIACertificate(t *testing.T) {
	a := node(t)
	c := a.claim(t, "web")
	defer a.release(t, c)
	// Plain HTTP never reaches a handler.
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+c.Access.Address+"/ports/"+c.ID()+"/8000/index.html", nil)
	ok(t, err)
	req.Header.Set("Authorization", "Bearer "+c.Access.Token)
	resp, err := http.DefaultClient.Do(req)
	if err == nil {
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode < 400 || strings.Contains(string(body), "ready") {
			t.Errorf("plain HTTP is answered: %s %q", resp.Status, body)
		}
	}
	// TLS 1.2 is none.
	old := tlsOf(c)
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 //nolint:gosec // that it is refused is the point
	if conn, err := tls.Dial("tcp", c.Access.Address, old); err == nil {
		conn.Close()
		t.Error("TLS 1.2 is accepted")
	}
	// The Node API knows nobody without a certificate, whatever the token.
	h := rpc.TLSClient(tlsOf(c))
	defer h.CloseIdleConnections()
	h.Transport = bearer{h.Transport, c.ID(), c.Access.Token}
	api := hearthv1connect.NewNodeServiceClient(h, "https://"+c.Access.Address, rpc.ClientOptions()...)
	_, err = api.Inventory(t.Context(), &hearthv1.InventoryRequest{})
	fails(t, err, env.ErrDenied, "needs a client certificate")
	_, err = api.Release(t.Context(), &hearthv1.NodeReleaseRequest{Environment: c.ID()})
	fails(t, err, env.ErrDenied, "needs a client certificate")
	a.alive(t, c)
}

func TestNodePortsAreProxied(t *testing.T) {
	a := node(t)
	c := a.claim(t, "web", "-e", "GREETING=it's me")
	body, err := c.Get(8000, "/cgi-bin/hello")
	if err != nil || body != "it's me\n" {
		t.Errorf("HTTP port answers %q: %v", body, err)
	}
	if _, err := c.Get(8001, "/"); err == nil || !strings.Contains(err.Error(), "8001") {
		t.Errorf("a port that the class does not list: %v", err)
	}
	_, err = a.Hearthctl.Run("cp", a.Probe(), c.ID()+":/probe")
	ok(t, err)
	_, err = a.Hearthctl.Sh(c, "chmod 755 /probe; setsid /probe serve 127.0.0.1:9000 >/dev/null 2>&1 & true")
	ok(t, err)
	stream := guest(t, c, c.ID(), c.Access.Token).Connect
	eventually(t, 5*time.Second, func() error {
		got, err := converse(t.Context(), stream, 9000, "hello\n")
		if err != nil || !strings.HasPrefix(got, "reached 127.0.0.1:9000 hello") {
			return fmt.Errorf("the TCP port says %q: %w", got, err)
		}
		return nil
	})
	if got, err := converse(t.Context(), stream, 22, "x"); err == nil {
		t.Errorf("a port that the class does not list answers %q", got)
	}

	// hearthctl makes a local port of it.
	forward := a.Hearthctl.Command("port-forward", c.ID(), "17900:9000")
	ok(t, forward.Start())
	eventually(t, 5*time.Second, func() error {
		conn, err := net.DialTimeout("tcp", "127.0.0.1:17900", time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
		fmt.Fprintln(conn, "local")
		buf := make([]byte, 100)
		n, err := conn.Read(buf)
		if err != nil || !strings.Contains(string(buf[:n]), "local") {
			return fmt.Errorf("the forwarded port says %q: %w", buf[:n], err)
		}
		return nil
	})
	ok(t, forward.Process.Signal(syscall.SIGINT))
	_ = forward.Wait()
	a.release(t, c)
}

type connectFunc func(context.Context) (*connect.BidiStreamForClientSimple[hearthv1.ConnectRequest, hearthv1.ConnectResponse], error)

// converse sends one text over a port's stream and returns the first answer.
func converse(ctx context.Context, open connectFunc, port uint32, text string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	s, err := open(ctx)
	if err != nil {
		return "", err
	}
	defer func() { _ = s.CloseResponse() }()
	if err := s.Send(&hearthv1.ConnectRequest{Port: port, Data: []byte(text)}); err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	for {
		m, err := s.Receive()
		if err != nil || len(m.GetData()) > 0 {
			return string(m.GetData()), err
		}
	}
}

func TestNodeFilesGoInAndOutExactly(t *testing.T) {
	a := node(t)
	c := a.claim(t, "bare")
	g := guest(t, c, c.ID(), c.Access.Token)
	content := bytes.Repeat([]byte("0123456789abcdef\x00\xff"), 300_000) // beyond every buffer
	w, err := g.WriteFile(t.Context())
	ok(t, err)
	ok(t, w.Send(&hearthv1.WriteFileRequest{Open: &hearthv1.WriteFileRequest_Open{Path: "/workspace/a/b/file", Mode: 0o640, Uid: 7, Gid: 8, Parents: true}}))
	for rest := content; len(rest) > 0; rest = rest[min(len(rest), 60_000):] {
		ok(t, w.Send(&hearthv1.WriteFileRequest{Data: rest[:min(len(rest), 60_000)]}))
	}
	_, err = w.CloseAndReceive()
	ok(t, err)
	r, err := g.ReadFile(t.Context(), &hearthv1.ReadFileRequest{Path: "/workspace/a/b/file"})
	ok(t, err)
	var back bytes.Buffer
	for r.Receive() {
		if i := r.Msg().GetInfo(); i != nil && (i.GetUid() != 7 || i.GetGid() != 8 || i.GetMode()&0o7777 != 0o640) {
			t.Errorf("the file has mode %o and owner %d:%d", i.GetMode(), i.GetUid(), i.GetGid())
		}
		back.Write(r.Msg().GetData())
	}
	ok(t, r.Err())
	if !bytes.Equal(back.Bytes(), content) {
		t.Errorf("%d bytes came back of %d, or others", back.Len(), len(content))
	}
	l, err := g.ListDir(t.Context(), &hearthv1.ListDirRequest{Path: "/workspace/a"})
	if err != nil || len(l.GetEntries()) != 1 || l.GetEntries()[0].GetName() != "b" {
		t.Errorf("list: %v, %v", l.GetEntries(), err)
	}
	_, err = g.ListDir(t.Context(), &hearthv1.ListDirRequest{Path: "/none"})
	fails(t, err, env.ErrNotFound, "/none")

	// A tree through hearthctl.
	dir := t.TempDir()
	ok(t, os.MkdirAll(filepath.Join(dir, "tree/sub"), 0o755))
	ok(t, os.WriteFile(filepath.Join(dir, "tree/sub/x"), []byte("in and out"), 0o600))
	_, err = a.Hearthctl.Run("cp", filepath.Join(dir, "tree"), c.ID()+":/workspace/tree")
	ok(t, err)
	_, err = a.Hearthctl.Run("cp", c.ID()+":/workspace/tree", filepath.Join(dir, "back"))
	ok(t, err)
	b, err := os.ReadFile(filepath.Join(dir, "back/sub/x"))
	if err != nil || string(b) != "in and out" {
		t.Errorf("the tree came back with %q: %v", b, err)
	}
	a.release(t, c)
}

func TestNodeExecHasATerminalAndSignals(t *testing.T) {
	a := node(t)
	c := a.claim(t, "bare")
	// script gives hearthctl a terminal of its own, 24 by 80 until told.
	line := fmt.Sprintf("stty rows 41 cols 97; exec %s exec -it %s -- sh -c 'tty; stty size; exit 9'", a.Program("hearthctl"), c.ID())
	cmd := exec.Command("script", "-qec", line, "/dev/null")
	cmd.Env = append(a.Hearthctl.Command().Env, "TERM=vt100", "SHELL=/bin/sh")
	in, err := cmd.StdinPipe() // held open: the end of input is the end of script
	ok(t, err)
	defer in.Close()
	out, _ := cmd.Output()
	holds(t, string(out), "/dev/pts/", "41 97")
	if code := cmd.ProcessState.ExitCode(); code != 9 {
		t.Errorf("exit %d, want 9: %s", code, out)
	}

	// A signal reaches the command, which may do with it what it wants.
	trap := a.Hearthctl.Command("exec", c.ID(), "--", "sh", "-c", `trap 'echo caught; exit 5' TERM; echo started; while :; do sleep 0.1; done`)
	if said, code := signalled(t, trap, syscall.SIGTERM); said != "started\ncaught\n" || code != 5 {
		t.Errorf("the command said %q and ended with %d, want 5", said, code)
	}
	plain := a.Hearthctl.Command("exec", c.ID(), "--", "sh", "-c", `echo started; exec sleep 1000`)
	if said, code := signalled(t, plain, syscall.SIGINT); said != "started\n" || code != 128+2 {
		t.Errorf("the command said %q and ended with %d, want 130", said, code)
	}
	// Both ways, beyond every buffer.
	cat := a.Hearthctl.Command("exec", "-i", c.ID(), "--", "sh", "-c", "tee /dev/stderr")
	content := bytes.Repeat([]byte("line of text\n"), 200_000)
	var stdout, stderr bytes.Buffer
	cat.Stdin, cat.Stdout, cat.Stderr = bytes.NewReader(content), &stdout, &stderr
	ok(t, cat.Run())
	if !bytes.Equal(stdout.Bytes(), content) || !bytes.Equal(stderr.Bytes(), content) {
		t.Errorf("of %d bytes %d and %d came back", len(content), stdout.Len(), stderr.Len())
	}
	a.refused(t, 125, []string{c.ID(), "no-such-program"}, "exec", c.ID(), "--", "no-such-program")
	a.release(t, c)
}

// signalled sends the signal once the command has said its first line, and
// returns all that it said and its exit code.
func signalled(t *testing.T, cmd *exec.Cmd, sig os.Signal) (string, int) {
	t.Helper()
	out, err := cmd.StdoutPipe()
	ok(t, err)
	ok(t, cmd.Start())
	first := make([]byte, len("started\n"))
	_, err = io.ReadFull(out, first)
	ok(t, err)
	ok(t, cmd.Process.Signal(sig))
	rest, err := io.ReadAll(out)
	ok(t, err)
	_ = cmd.Wait()
	return string(first) + string(rest), cmd.ProcessState.ExitCode()
}
