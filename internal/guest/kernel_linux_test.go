package guest_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hearth/internal/env"
	"hearth/internal/guest"
	"hearth/internal/guest/guesttest"
	"hearth/internal/guest/wire"
)

func TestMain(m *testing.M) {
	code := m.Run()
	guesttest.Clean()
	os.Exit(code)
}

func within(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// sh runs a script and returns its trimmed output; a failure ends the test.
func sh(t testing.TB, m *guesttest.Machine, script string) string {
	t.Helper()
	var out, errs bytes.Buffer
	exit, err := m.Client.Run(within(t, 30*time.Second), guest.Command{Args: []string{"sh", "-c", script}}, nil, &out, &errs)
	if err != nil || exit.Code != 0 {
		t.Fatalf("sh -c %q: exit %+v, %v, stderr %q", script, exit, err, errs.String())
	}
	return strings.TrimSpace(out.String())
}

// begin starts a process whose connection lasts for 20 s at most, so that a
// fault shows as an error and not as a test that hangs.
func begin(t testing.TB, m *guesttest.Machine, cmd guest.Command) (*guest.Process, error) {
	t.Helper()
	p, err := m.Client.Exec(within(t, 10*time.Second), cmd)
	if err == nil {
		t.Cleanup(p.Close)
		limit := time.AfterFunc(20*time.Second, p.Close)
		t.Cleanup(func() { limit.Stop() })
	}
	return p, err
}

// eventually polls until f is true.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if f() {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within 15 s: %s", what)
		}
	}
}

func TestKernelExecDeliversAllOutputOfBothStreams(t *testing.T) {
	m := guesttest.Start(t)
	const size = 10 << 20
	script := fmt.Sprintf("head -c %d /dev/zero | tr '\\0' a & head -c %d /dev/zero | tr '\\0' b >&2; wait; exit 7", size, size)
	// /dev/zero is not in the root: make the bytes with yes.
	script = strings.ReplaceAll(script, "head -c "+strconv.Itoa(size)+" /dev/zero", "yes | head -c "+strconv.Itoa(size)+" | tr 'y\\n' '\\0\\0'")
	var out, errs bytes.Buffer
	exit, err := m.Client.Run(within(t, time.Minute), guest.Command{Args: []string{"sh", "-c", script}}, nil, &out, &errs)
	if err != nil || exit != (guest.Exit{Code: 7}) {
		t.Fatalf("exit %+v, %v", exit, err)
	}
	for name, got := range map[string][]byte{"a": out.Bytes(), "b": errs.Bytes()} {
		if len(got) != size || len(bytes.Trim(got, name)) != 0 {
			t.Errorf("stream of %q has %d bytes, %d of them others", name, len(got), len(bytes.Trim(got, name)))
		}
	}
}

func TestKernelExecLosesNothingWhenTheProcessEndsAtOnce(t *testing.T) {
	m := guesttest.Start(t)
	want := sha256.Sum256([]byte(numbers(9000)))
	for i := range 100 {
		var out bytes.Buffer
		if _, err := m.Client.Run(within(t, 30*time.Second), guest.Command{Args: []string{"seq", "1", "9000"}}, nil, &out, nil); err != nil {
			t.Fatal(err)
		}
		if sha256.Sum256(out.Bytes()) != want {
			t.Fatalf("try %d: %d bytes of %d", i, out.Len(), len(numbers(9000)))
		}
	}
}

func numbers(n int) string {
	var b strings.Builder
	for i := 1; i <= n; i++ {
		fmt.Fprintln(&b, i)
	}
	return b.String()
}

func TestKernelExecReportsCodesAndSignals(t *testing.T) {
	m := guesttest.Start(t)
	for script, want := range map[string]guest.Exit{
		"exit 0":      {},
		"exit 255":    {Code: 255},
		"kill -9 $$":  {Code: 137, Signal: 9},
		"kill -15 $$": {Code: 143, Signal: 15},
	} {
		got, err := m.Client.Run(within(t, 10*time.Second), guest.Command{Args: []string{"sh", "-c", script}}, nil, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", script, diff)
		}
	}
}

func TestKernelExecNamesWhatCannotStart(t *testing.T) {
	m := guesttest.Start(t)
	for name, c := range map[string]struct {
		cmd  guest.Command
		want error
		text string
	}{
		"unknown command":   {guest.Command{Args: []string{"no-such-thing"}}, env.ErrNotFound, "no-such-thing"},
		"unknown path":      {guest.Command{Args: []string{"/no/such"}}, env.ErrNotFound, "/no/such"},
		"unknown directory": {guest.Command{Args: []string{"true"}, Dir: "/nowhere"}, env.ErrNotFound, "/nowhere"},
		"not executable":    {guest.Command{Args: []string{"/etc/passwd"}}, env.ErrDenied, "/etc/passwd"},
		"empty":             {guest.Command{}, env.ErrInvalid, "command is empty"},
		"zero byte":         {guest.Command{Args: []string{"true", "a\x00b"}}, env.ErrInvalid, "true"},
	} {
		_, err := m.Client.Exec(within(t, 10*time.Second), c.cmd)
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v, want %v with %q", name, err, c.want, c.text)
		}
	}
}

func TestKernelExecSignalsTheWholeGroup(t *testing.T) {
	m := guesttest.Start(t)
	p, err := begin(t, m, guest.Command{Args: []string{"sh", "-c", "sleep 1000 & sleep 1000 & echo up; wait"}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if ev, err := p.Recv(); err != nil || string(ev.Data) != "up\n" {
		t.Fatalf("first event %+v, %v", ev, err)
	}
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for {
		ev, err := p.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if ev.Exit != nil {
			if want := (guest.Exit{Code: 143, Signal: 15}); *ev.Exit != want {
				t.Errorf("exit %+v, want %+v", *ev.Exit, want)
			}
			break
		}
	}
	eventually(t, "no sleep is left", func() bool {
		return sh(t, m, "ps | grep -c '[s]leep 1000' || true") == "0"
	})
}

func TestKernelStdinOfManyWindowsArrivesWholeAndEnds(t *testing.T) {
	m := guesttest.Start(t)
	content := bytes.Repeat([]byte("0123456789abcdef"), 3<<20/16)
	var out bytes.Buffer
	exit, err := m.Client.Run(within(t, 30*time.Second), guest.Command{Args: []string{"sha256sum"}}, bytes.NewReader(content), &out, nil)
	if err != nil || exit.Code != 0 {
		t.Fatalf("exit %+v, %v", exit, err)
	}
	if want := fmt.Sprintf("%x", sha256.Sum256(content)); !strings.HasPrefix(out.String(), want) {
		t.Errorf("sha256sum says %q, want %s", out.String(), want)
	}
}

func TestKernelSignalPassesAProcessThatDoesNotReadItsStdin(t *testing.T) {
	m := guesttest.Start(t)
	p, err := begin(t, m, guest.Command{Args: []string{"sleep", "1000"}})
	if err != nil {
		t.Fatal(err)
	}
	stuck := make(chan error, 1)
	go func() {
		_, err := p.Write(make([]byte, 4<<20))
		stuck <- err
	}()
	time.Sleep(200 * time.Millisecond)
	if err := p.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for {
		ev, err := p.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if ev.Exit != nil {
			break
		}
	}
	if err := <-stuck; err == nil {
		t.Error("4 MiB were taken by a process that reads nothing")
	}
}

func TestKernelBackgroundProcessesOutliveTheirExec(t *testing.T) {
	m := guesttest.Start(t)
	begun := time.Now()
	sh(t, m, "(while true; do echo x; sleep 0.05; echo $((n=n+1)) > /tmp/count; done) &")
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("exec waited %v for a background process", took)
	}
	eventually(t, "it writes on, without SIGPIPE", func() bool {
		return sh(t, m, "cat /tmp/count 2>/dev/null || echo 0") >= "5"
	})
}

func TestKernelProcessGoesOnWhenTheNodeGoesAway(t *testing.T) {
	m := guesttest.Start(t)
	p, err := begin(t, m, guest.Command{Args: []string{"sh", "-c", "while true; do echo tick; n=$((n+1)); echo $n > /tmp/n; sleep 0.02; done"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Recv(); err != nil {
		t.Fatal(err)
	}
	p.Close()
	before, _ := strconv.Atoi(sh(t, m, "cat /tmp/n"))
	eventually(t, "it counts on", func() bool {
		now, _ := strconv.Atoi(sh(t, m, "cat /tmp/n"))
		return now > before+10
	})
}

func TestKernelHangupEndsTheGroup(t *testing.T) {
	m := guesttest.Start(t)
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(200*time.Millisecond, cancel)
	_, err := m.Client.Run(ctx, guest.Command{Args: []string{"sleep", "4321"}}, nil, nil, nil)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("run says %v", err)
	}
	eventually(t, "sleep has gone", func() bool {
		return sh(t, m, "ps | grep -c '[s]leep 4321' || true") == "0"
	})
}

func TestKernelExecRunsAsTheUserInItsDirectoryWithItsVariables(t *testing.T) {
	m := guesttest.Start(t)
	configure(t, m, &env.Class{Env: map[string]string{"A": "class", "B": "class", "C": "class"}})
	writeEnv(t, m, `{"B":"claim","C":"claim"}`)
	var out bytes.Buffer
	_, err := m.Client.Run(within(t, 10*time.Second), guest.Command{
		Args: []string{"sh", "-c", "id -u; id -g; id -G; pwd; echo $HOME $USER $A $B $C; ps -o pid,sid | awk -v p=$$ '$1==p{print ($1==$2)}'"}, Dir: "/workspace",
		Variables: map[string]string{"C": "call"}, UID: 1000, GID: 1000,
	}, nil, &out, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := "1000\n1000\n1000\n/workspace\n/workspace agent class claim call\n"
	if !strings.HasPrefix(out.String(), want) {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}

func configure(t testing.TB, m *guesttest.Machine, class *env.Class) {
	t.Helper()
	if err := m.Client.Configure(within(t, 10*time.Second), class); err != nil {
		t.Fatal(err)
	}
}

func writeEnv(t testing.TB, m *guesttest.Machine, content string) {
	t.Helper()
	o := guest.WriteOptions{Path: wire.EnvJSONFile, Mode: 0o600}
	if _, err := m.Client.WriteFile(within(t, 10*time.Second), o, strings.NewReader(content)); err != nil {
		t.Fatal(err)
	}
}
