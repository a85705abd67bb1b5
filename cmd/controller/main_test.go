package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/api/hearth/v1/hearthv1connect"
	"hearth/internal/durable"
	"hearth/internal/rpc"
	"hearth/internal/rpc/pki"
)

// output is written by the program and read by the test.
type output struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// program is the real one with a configuration in a temporary directory.
type program struct {
	t            *testing.T
	dir, config  string
	api, metrics string
	log          output
	code         chan int
	stop         context.CancelFunc
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ok(t, err)
	defer l.Close()
	return l.Addr().String()
}

func newProgram(t *testing.T) *program {
	t.Helper()
	p := &program{t: t, dir: t.TempDir(), api: freeAddr(t), metrics: freeAddr(t)}
	ok(t, os.Chmod(p.dir, 0o700))
	p.config = filepath.Join(p.dir, "controller.yaml")
	text := fmt.Sprintf("instance: test\nstateDir: %s\napi:\n  listen: %s\n  metrics: %s\n  names: [127.0.0.1]\nfleet:\n  heartbeat: 100ms\n",
		filepath.Join(p.dir, "state"), p.api, p.metrics)
	ok(t, os.WriteFile(p.config, []byte(text), 0o600))
	return p
}

func (p *program) start() {
	p.t.Helper()
	var ctx context.Context
	ctx, p.stop = context.WithCancel(context.Background())
	p.code = make(chan int, 1)
	go func() { p.code <- run(ctx, []string{"run", "--config", p.config}, environment{&p.log, &p.log, noEnv}) }()
	p.t.Cleanup(p.stop)
	p.waitReady()
}

func (p *program) waitReady() {
	p.t.Helper()
	eventually(p.t, "the controller is ready", func() bool {
		r, err := http.Get("http://" + p.metrics + "/readyz")
		if err != nil {
			return false
		}
		_ = r.Body.Close()
		return r.StatusCode == http.StatusOK
	})
}

// file is one of the state directory's.
func (p *program) file(name string) string {
	p.t.Helper()
	b, err := os.ReadFile(filepath.Join(p.dir, "state", name))
	ok(p.t, err)
	return strings.TrimSpace(string(b))
}

func (p *program) end() {
	p.t.Helper()
	p.stop()
	if code := <-p.code; code != 0 {
		p.t.Errorf("exit code %d; log:\n%s", code, p.log.String())
	}
}

// command runs another command of the program beside the running one.
func (p *program) command(args ...string) (code int, stdout, stderr string) {
	var out, errs output
	code = run(context.Background(), append(args, "--config", p.config), environment{&out, &errs, noEnv})
	return code, out.String(), errs.String()
}

func (p *program) must(args ...string) string {
	p.t.Helper()
	code, out, errs := p.command(args...)
	if code != 0 {
		p.t.Fatalf("%q: exit code %d: %s", args, code, errs)
	}
	return strings.TrimSpace(out)
}

func (p *program) client(secret string) hearthv1connect.EnvironmentServiceClient {
	p.t.Helper()
	pem, err := os.ReadFile(filepath.Join(p.dir, "state", "ca.pem"))
	ok(p.t, err)
	cfg, err := pki.CAClientConfig(pem, "")
	ok(p.t, err)
	h := rpc.TLSClient(cfg)
	p.t.Cleanup(h.CloseIdleConnections)
	h.Transport = bearer{h.Transport, secret}
	return hearthv1connect.NewEnvironmentServiceClient(h, "https://"+p.api, rpc.ClientOptions()...)
}

func TestTheProgramServesRefusesASecondAndRestarts(t *testing.T) {
	p := newProgram(t)
	p.start()
	for _, f := range []string{"admin.key", "join-token", "ca.key", "fleet.db", "admin.sock"} {
		info, err := os.Stat(filepath.Join(p.dir, "state", f))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", f, info.Mode(), err)
		}
	}
	code, _, errs := p.command("run")
	if code != exitPrecondition || !strings.Contains(errs, "held by process") {
		t.Errorf("a second controller: exit code %d: %s", code, errs)
	}
	admin, err := os.ReadFile(filepath.Join(p.dir, "state", "admin.key"))
	ok(t, err)
	joinToken, err := os.ReadFile(filepath.Join(p.dir, "state", "join-token"))
	ok(t, err)
	n := &fakeNode{name: "n1"}
	dir, err := durable.OpenDir(t.TempDir(), nil)
	ok(t, err)
	serveNode(t, n, dir, p.api, string(joinToken))
	eventually(t, "the node is listed", func() bool {
		out := p.must("nodes")
		return strings.Contains(out, "n1") && strings.Contains(out, "ready")
	})
	secret := p.must("apikey", "create", "--tenant", "team-a")
	first, err := p.client(secret).Claim(t.Context(), claimOf("k"))
	ok(t, err)
	p.end()
	if !strings.Contains(p.log.String(), "stopping") || strings.Contains(p.log.String(), secret) || strings.Contains(p.log.String(), first.GetAccess().GetToken()) {
		t.Errorf("log:\n%s", p.log.String())
	}
	if len(n.has()) != 1 {
		t.Error("stopping the controller released the environment")
	}
	p.start()
	list, err := p.client(strings.TrimSpace(string(admin))).List(t.Context(), &hearthv1.ListRequest{})
	ok(t, err)
	if len(list.GetEnvironments()) != 1 || list.GetEnvironments()[0].GetTenant() != "team-a" {
		t.Errorf("list = %v", list)
	}
	again, err := os.ReadFile(filepath.Join(p.dir, "state", "join-token"))
	if err != nil || !bytes.Equal(again, joinToken) {
		t.Errorf("the join token changed over a restart: %v", err)
	}
	keys := p.must("apikey", "list")
	id := strings.Split(secret, "_")[1]
	if !strings.Contains(keys, "(admin)") || !strings.Contains(keys, id+"  team-a") {
		t.Errorf("keys:\n%s", keys)
	}
	p.must("apikey", "delete", id)
	if code, _, errs := p.command("apikey", "delete", id); code != exitFailed || !strings.Contains(errs, "not found") {
		t.Errorf("deleting twice: %d: %s", code, errs)
	}
	if token := p.must("join-token", "create", "--ttl", "30m"); !strings.HasPrefix(token, "hearth-join:") {
		t.Errorf("token = %q", token)
	}
	p.end()
	if code, _, errs := p.command("nodes"); code != exitUnreachable || !strings.Contains(errs, "admin.sock") {
		t.Errorf("without a controller: %d: %s", code, errs)
	}
}

func TestWrongCommandLinesAndFilesAreNamed(t *testing.T) {
	p := newProgram(t)
	for name, tc := range map[string]struct {
		args []string
		code int
		says string
	}{
		"an unknown command":   {[]string{"rnu"}, exitUsage, "rnu"},
		"an unknown flag":      {[]string{"run", "--cofnig", "x"}, exitUsage, "--cofnig"},
		"a surplus argument":   {[]string{"run", "x"}, exitUsage, "x"},
		"a missing file":       {[]string{"run", "--config", p.dir + "/none.yaml"}, exitUsage, "none.yaml"},
		"no tenant":            {[]string{"apikey", "create"}, exitUsage, "--tenant"},
		"a key without its id": {[]string{"apikey", "delete"}, exitUsage, "arg"},

		"an unknown command of a group":       {[]string{"apikey", "crate"}, exitUsage, "crate"},
		"an unknown command of another group": {[]string{"join-token", "list"}, exitUsage, "list"},
		"a group without a command":           {[]string{"apikey"}, exitUsage, "controller apikey"},
		"help for an unknown command":         {[]string{"help", "apikey", "crate"}, exitUsage, "crate"},
		"help for a command":                  {[]string{"help", "apikey", "create"}, 0, "--tenant"},
		"help for a group":                    {[]string{"apikey", "--help"}, 0, "create"},
		"surplus arguments of version":        {[]string{"version", "x"}, exitUsage, "x"},
		"surplus arguments of nodes":          {[]string{"nodes", "x"}, exitUsage, "x"},
		"surplus arguments of apikey list":    {[]string{"apikey", "list", "x"}, exitUsage, "x"},
		"surplus arguments of apikey create":  {[]string{"apikey", "create", "--admin", "x"}, exitUsage, "x"},
		"surplus arguments of apikey delete":  {[]string{"apikey", "delete", "a", "b"}, exitUsage, "arg"},
		"surplus arguments of join-token":     {[]string{"join-token", "create", "x"}, exitUsage, "x"},
	} {
		t.Run(name, func(t *testing.T) {
			var out output
			code := run(t.Context(), tc.args, environment{&out, &out, noEnv})
			if code != tc.code || !strings.Contains(out.String(), tc.says) {
				t.Errorf("exit code %d, want %d: %s", code, tc.code, out.String())
			}
		})
	}
	bad := filepath.Join(p.dir, "bad.yaml")
	ok(t, os.WriteFile(bad, []byte("instance: test\nstatedir: /x\n"), 0o600))
	var out output
	if code := run(t.Context(), []string{"run", "--config", bad}, environment{&out, &out, noEnv}); code != exitUsage || !strings.Contains(out.String(), "statedir") {
		t.Errorf("an unknown key: %d: %s", code, out.String())
	}
}

func TestAPortInUseEndsTheProgramWithItsName(t *testing.T) {
	p := newProgram(t)
	l, err := net.Listen("tcp", p.api)
	ok(t, err)
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	code := run(ctx, []string{"run", "--config", p.config}, environment{&p.log, &p.log, noEnv})
	if code != exitFailed || !strings.Contains(p.log.String(), "start api") || !strings.Contains(p.log.String(), p.api) {
		t.Errorf("exit code %d; log:\n%s", code, p.log.String())
	}
}

// noEnv is an environment without variables.
func noEnv(string) string { return "" }
