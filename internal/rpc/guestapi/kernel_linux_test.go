package guestapi_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/env"
	"hearth/internal/guest/guesttest"
	"hearth/internal/rpc/guestapi"
)

func TestMain(m *testing.M) {
	code := m.Run()
	guesttest.Clean()
	os.Exit(code)
}

const token = "ht1.test"

type known struct {
	id      env.ID
	session guestapi.Session
}

func (k known) Authorize(_ context.Context, id env.ID, got string) (guestapi.Session, error) {
	if id != k.id || got != token {
		return guestapi.Session{}, fmt.Errorf("%w: no", env.ErrDenied)
	}
	return k.session, nil
}

// node is a server with one real environment.
type node struct {
	machine *guesttest.Machine
	service *guestapi.Service
	client  hearthv1connect.GuestServiceClient
	http    *http.Client
	url     string
	id      env.ID
}

// withToken adds the headers of every call.
type withToken struct {
	next http.RoundTripper
	id   env.ID
}

func (w withToken) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+token)
	r.Header.Set("hearth-environment", string(w.id))
	return w.next.RoundTrip(r)
}

func startNode(t *testing.T) *node {
	t.Helper()
	n := &node{machine: guesttest.Start(t), id: env.NewID()}
	n.service = guestapi.New(slog.New(slog.DiscardHandler), known{n.id, guestapi.Session{
		Guest: n.machine.Client,
		Ports: []env.Port{{Name: "web", Number: 8080, Protocol: env.PortHTTP}, {Name: "echo", Number: 7777, Protocol: env.PortTCP}},
	}})
	mux := http.NewServeMux()
	n.service.Mount(mux, connect.WithRequestGate(func(ctx context.Context, spec connect.Spec, _ connect.Peer, h http.Header) (context.Context, error) {
		return n.service.Gate(ctx, spec.Procedure, h)
	}))
	server := httptest.NewUnstartedServer(mux)
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	n.http = &http.Client{Transport: withToken{server.Client().Transport, n.id}}
	n.url = server.URL
	n.client = hearthv1connect.NewGuestServiceClient(n.http, server.URL)
	return n
}

func (n *node) exec(t *testing.T, ctx context.Context, start *hearthv1.ExecStart) *connect.BidiStreamForClientSimple[hearthv1.ExecRequest, hearthv1.ExecResponse] {
	t.Helper()
	stream, err := n.client.Exec(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&hearthv1.ExecRequest{Message: &hearthv1.ExecRequest_Start{Start: start}}); err != nil {
		t.Fatal(err)
	}
	return stream
}

func (n *node) shell(t *testing.T, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	stream := n.exec(t, ctx, &hearthv1.ExecStart{Command: []string{"sh", "-c", script}})
	_ = stream.CloseRequest()
	var out bytes.Buffer
	for {
		m, err := stream.Receive()
		if err != nil {
			t.Fatalf("%s: %v", script, err)
		}
		out.Write(m.GetStdout())
		if m.GetExit() != nil {
			return strings.TrimSpace(out.String())
		}
	}
}

func TestKernelExecOverTheAPICarriesStreamsAndSignals(t *testing.T) {
	n := startNode(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	stream := n.exec(t, ctx, &hearthv1.ExecStart{Command: []string{"sh", "-c", "cat; echo err >&2; sleep 1000"}})
	if m, err := stream.Receive(); err != nil || m.GetStarted().GetPid() == 0 {
		t.Fatalf("%v, %v", m, err)
	}
	for _, m := range []*hearthv1.ExecRequest{
		{Message: &hearthv1.ExecRequest_Stdin{Stdin: []byte("hello")}},
		{Message: &hearthv1.ExecRequest_CloseStdin{CloseStdin: true}},
	} {
		if err := stream.Send(m); err != nil {
			t.Fatal(err)
		}
	}
	var out, errs string
	for {
		m, err := stream.Receive()
		if err != nil {
			t.Fatal(err)
		}
		out, errs = out+string(m.GetStdout()), errs+string(m.GetStderr())
		if errs == "err\n" {
			errs += "."
			if err := stream.Send(&hearthv1.ExecRequest{Message: &hearthv1.ExecRequest_Signal{Signal: 15}}); err != nil {
				t.Fatal(err)
			}
		}
		if e := m.GetExit(); e != nil {
			if out != "hello" || e.GetCode() != 143 || e.GetSignal() != 15 {
				t.Errorf("out %q, exit %v", out, e)
			}
			break
		}
	}
	if _, err := stream.Receive(); !errors.Is(err, io.EOF) {
		t.Errorf("after the exit: %v", err)
	}
}

func TestKernelCallerWhoLeavesHangsUpAndAStoppingAgentDoesNot(t *testing.T) {
	n := startNode(t)
	running := func(what string) string { return n.shell(t, "ps | grep -c '[s]leep "+what+"' || true") }
	ctx, cancel := context.WithCancel(t.Context())
	stream := n.exec(t, ctx, &hearthv1.ExecStart{Command: []string{"sleep", "1111"}})
	if _, err := stream.Receive(); err != nil {
		t.Fatal(err)
	}
	cancel()
	_ = stream.CloseRequest()
	_ = stream.CloseResponse()
	for deadline := time.Now().Add(10 * time.Second); running("1111") != "0"; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the process of a caller who left runs on")
		}
	}
	stream = n.exec(t, t.Context(), &hearthv1.ExecStart{Command: []string{"sleep", "2222"}})
	if _, err := stream.Receive(); err != nil {
		t.Fatal(err)
	}
	n.service.Detach()
	if _, err := stream.Receive(); err == nil || !strings.Contains(err.Error(), "agent is restarting") {
		t.Errorf("a detached stream says %v", err)
	}
	time.Sleep(200 * time.Millisecond)
	st, err := n.machine.Client.Status(t.Context())
	if err != nil || st.Execs != 1 {
		t.Errorf("%d processes run on, %v", st.Execs, err)
	}
}

func TestKernelFilesOverTheAPI(t *testing.T) {
	n := startNode(t)
	content := bytes.Repeat([]byte("content "), 100_000)
	w, err := n.client.WriteFile(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	send := func(m *hearthv1.WriteFileRequest) {
		t.Helper()
		if err := w.Send(m); err != nil {
			t.Fatal(err)
		}
	}
	send(&hearthv1.WriteFileRequest{Open: &hearthv1.WriteFileRequest_Open{Path: `/workspace/d/odd\xff`, Parents: true}})
	send(&hearthv1.WriteFileRequest{Data: content[:500_000]})
	send(&hearthv1.WriteFileRequest{Data: content[500_000:]})
	if res, err := w.CloseAndReceive(); err != nil || res.GetSize() != uint64(len(content)) {
		t.Fatalf("%v, %v", res, err)
	}
	list, err := n.client.ListDir(t.Context(), &hearthv1.ListDirRequest{Path: "/workspace/d"})
	if err != nil || len(list.GetEntries()) != 1 || list.GetEntries()[0].GetName() != `odd\xff` {
		t.Fatalf("%v, %v", list, err)
	}
	r, err := n.client.ReadFile(t.Context(), &hearthv1.ReadFileRequest{Path: "/workspace/d/" + list.GetEntries()[0].GetName()})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var got bytes.Buffer
	for r.Receive() {
		got.Write(r.Msg().GetData())
	}
	if r.Err() != nil || !bytes.Equal(got.Bytes(), content) {
		t.Errorf("%d bytes of %d, %v", got.Len(), len(content), r.Err())
	}
}

func TestKernelPortsAreProxiedWithoutTheToken(t *testing.T) {
	n := startNode(t)
	class := &env.Class{
		Services: []env.Service{
			// A CGI script shows what the server inside is told.
			{Name: "web", Command: []string{"sh", "-c", "mkdir -p /tmp/w/cgi-bin; printf '#!/bin/sh\\necho; env\\n' > /tmp/w/cgi-bin/env; chmod 755 /tmp/w/cgi-bin/env; exec httpd -f -p 8080 -h /tmp/w"}},
			{Name: "echo", Command: []string{"nc", "-ll", "-p", "7777", "-e", "cat"}},
		},
		Readiness: env.Probe{TCPPort: 8080},
	}
	if err := n.machine.Client.Configure(t.Context(), class); err != nil {
		t.Fatal(err)
	}
	if err := n.machine.Client.AwaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	res, err := n.http.Get(n.url + "/ports/" + string(n.id) + "/8080/cgi-bin/env?a=b")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(res.Body)
	res.Body.Close()
	if res.StatusCode != 200 || !strings.Contains(string(body), "QUERY_STRING=a=b") || !strings.Contains(string(body), "HTTP_X_FORWARDED_PREFIX=/ports/") || strings.Contains(string(body), token) {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	stream, err := n.client.Connect(ctx)
	if err != nil {
		t.Fatal(err)
	}
	_ = stream.Send(&hearthv1.ConnectRequest{Port: 7777, Data: []byte("ping")})
	_ = stream.Send(&hearthv1.ConnectRequest{CloseWrite: true})
	var got string
	for {
		m, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got += string(m.GetData())
	}
	if got != "ping" {
		t.Errorf("echo says %q", got)
	}
}

func TestKernelUpgradesPassThroughAPort(t *testing.T) {
	n := startNode(t)
	script := `read a; while read h; do case "$h" in $(printf '\r')) break;; esac; done; printf 'HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n'; exec cat`
	class := &env.Class{
		Services:  []env.Service{{Name: "ws", Command: []string{"nc", "-ll", "-p", "8080", "-e", "sh", "-c", script}}},
		Readiness: env.Probe{TCPPort: 8080},
	}
	if err := n.machine.Client.Configure(t.Context(), class); err != nil {
		t.Fatal(err)
	}
	if err := n.machine.Client.AwaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Upgrades are of HTTP/1.1.
	mux := http.NewServeMux()
	n.service.Mount(mux)
	plain := httptest.NewServer(mux)
	defer plain.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, plain.URL+"/ports/"+string(n.id)+"/8080/", nil)
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "echo")
	res, err := (&http.Client{Transport: withToken{http.DefaultTransport, n.id}}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	rw, ok := res.Body.(io.ReadWriter)
	if res.StatusCode != http.StatusSwitchingProtocols || !ok {
		t.Fatalf("status %d", res.StatusCode)
	}
	_, _ = io.WriteString(rw, "over the wire\n")
	if line, err := bufio.NewReader(rw).ReadString('\n'); line != "over the wire\n" {
		t.Errorf("%q, %v", line, err)
	}
}
