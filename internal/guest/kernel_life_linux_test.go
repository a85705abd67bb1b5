package guest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"hearth/internal/env"
	"hearth/internal/guest"
	"hearth/internal/guest/guesttest"
	"hearth/internal/guest/wire"
)

func TestKernelConnectReachesAServiceAndHalfCloses(t *testing.T) {
	m := guesttest.Start(t)
	// The service answers only after its client has ended its side.
	configure(t, m, &env.Class{
		Services:  []env.Service{{Name: "upper", Command: []string{"nc", "-ll", "-p", "7777", "-e", "sh", "-c", "tr a-z A-Z; echo end"}}},
		Readiness: env.Probe{TCPPort: 7777},
	})
	if err := m.Client.AwaitReady(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	conn, err := m.Client.Connect(within(t, 10*time.Second), 7777)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	got, err := io.ReadAll(conn)
	if string(got) != "HELLOend\n" || err != nil {
		t.Errorf("answer %q, %v", got, err)
	}
	if _, err := m.Client.Connect(within(t, 10*time.Second), 7778); !errors.Is(err, env.ErrUnavailable) {
		t.Errorf("connect to a closed port: %v", err)
	}
}

func TestKernelReadinessByEachKind(t *testing.T) {
	web := env.Service{Name: "web", Command: []string{"sh", "-c", "sleep 0.2; mkdir -p /tmp/www; echo ok > /tmp/www/health; touch /tmp/up; exec httpd -f -p 8080 -h /tmp/www"}}
	for name, probe := range map[string]env.Probe{
		"none":    {},
		"command": {Command: []string{"test", "-e", "/tmp/up"}},
		"tcp":     {TCPPort: 8080},
		"http":    {HTTP: &env.HTTPProbe{Port: 8080, Path: "/health"}},
		"file":    {File: &env.FileProbe{Path: "/tmp/www/health", NonEmpty: true}},
	} {
		t.Run(name, func(t *testing.T) {
			m := guesttest.Start(t)
			probe.Interval = time.Hour // the first attempts come sooner
			configure(t, m, &env.Class{Services: []env.Service{web}, Readiness: probe})
			begun := time.Now()
			if err := m.Client.AwaitReady(within(t, 15*time.Second)); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(begun); name != "none" && took < 100*time.Millisecond {
				t.Errorf("ready after %v, before the service was", took)
			}
		})
	}
}

func TestKernelUnreadyNamesThePartAndItsLastOutput(t *testing.T) {
	web := env.Service{Name: "web", Command: []string{"sh", "-c", "echo cannot open the database; exit 3"}}
	for name, c := range map[string]struct {
		class env.Class
		want  []string
	}{
		"command":     {env.Class{Readiness: env.Probe{Command: []string{"sh", "-c", "echo not yet >&2; exit 4"}}}, []string{"code 4", "not yet"}},
		"tcp":         {env.Class{Services: []env.Service{web}, Readiness: env.Probe{TCPPort: 81}}, []string{"port 81", "refused", `service "web"`, "code 3", "cannot open the database"}},
		"http status": {env.Class{Services: []env.Service{{Name: "w", Command: []string{"httpd", "-f", "-p", "8080", "-h", "/tmp"}}}, Readiness: env.Probe{HTTP: &env.HTTPProbe{Port: 8080, Path: "/none"}}}, []string{"status 404"}},
		"no command":  {env.Class{Services: []env.Service{{Name: "w", Command: []string{"no-such"}}}}, []string{`service "w"`, "no-such", "PATH"}},
	} {
		t.Run(name, func(t *testing.T) {
			m := guesttest.Start(t)
			c.class.Readiness.Timeout = guesttest.Patience(700 * time.Millisecond)
			configure(t, m, &c.class)
			err := m.Client.AwaitReady(within(t, 10*time.Second))
			var unready *guest.UnreadyError
			if !errors.As(err, &unready) || !errors.Is(err, env.ErrUnavailable) {
				t.Fatalf("%v is not an UnreadyError", err)
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q is not in %q", w, err)
				}
			}
		})
	}
}

func TestKernelServicesRestartAndAfterClaimOnesGetTheClaimsVariables(t *testing.T) {
	m := guesttest.Start(t)
	configure(t, m, &env.Class{
		Env: map[string]string{"WHO": "class"},
		Services: []env.Service{
			{Name: "flaky", Command: []string{"sh", "-c", "echo $$ >> /tmp/flaky; exit 1"}},
			{Name: "once", Command: []string{"sh", "-c", "echo run >> /tmp/once"}, Restart: env.RestartNever},
			{Name: "late", Command: []string{"sh", "-c", "echo $WHO > /tmp/late; exec sleep 1000"}, Start: env.StartAfterClaim},
		},
	})
	eventually(t, "flaky has started three times", func() bool { return sh(t, m, "wc -l < /tmp/flaky || echo 0") >= "3" })
	if got := sh(t, m, "cat /tmp/once; ls /tmp/late 2>/dev/null || echo none"); got != "run\nnone" {
		t.Errorf("before the claim: %q", got)
	}
	writeEnv(t, m, `{"WHO":"claimant"}`)
	for range 3 { // idempotent
		if err := m.Client.Claimed(within(t, 10*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "late has its variable", func() bool { return sh(t, m, "cat /tmp/late 2>/dev/null || true") == "claimant" })
	st, err := m.Client.Status(within(t, 10*time.Second))
	if err != nil || !st.Claimed || st.Services[2].Starts != 1 || st.Services[1].Starts != 1 || st.Services[0].Starts < 3 || st.Services[0].LastExit != "code 1" {
		t.Errorf("status %+v, %v", st, err)
	}
}

func TestKernelConfigureIsAcceptedOnceOrAgainTheSame(t *testing.T) {
	m := guesttest.Start(t)
	class := &env.Class{Env: map[string]string{"A": "1"}, Services: []env.Service{{Name: "s", Command: []string{"sleep", "1000"}}}}
	configure(t, m, class)
	configure(t, m, class)
	if n := sh(t, m, "ps | grep -c '[s]leep 1000'"); n != "1" {
		t.Errorf("%s services run", n)
	}
	other := &env.Class{Env: map[string]string{"A": "2"}}
	if err := m.Client.Configure(within(t, 10*time.Second), other); !errors.Is(err, env.ErrState) {
		t.Errorf("another class: %v", err)
	}
}

func TestKernelEndlessServiceOutputStaysBounded(t *testing.T) {
	m := guesttest.Start(t)
	configure(t, m, &env.Class{Services: []env.Service{{Name: "noisy", Command: []string{"yes", "noise"}}}})
	time.Sleep(time.Second)
	used, err := strconv.Atoi(sh(t, m, "cat /run/hearth/log/noisy /run/hearth/log/noisy.1 | wc -c"))
	if err != nil || used == 0 || used > wire.LogBudget {
		t.Errorf("logs hold %d bytes of at most %d, %v", used, wire.LogBudget, err)
	}
	if rss := memoryOf(t, m.PID, "VmRSS:"); rss > 24<<10 {
		t.Errorf("envinit has %d KiB resident", rss)
	}
}

func TestKernelOrphansAreReaped(t *testing.T) {
	m := guesttest.Start(t)
	for range 20 {
		sh(t, m, "for i in 1 2 3 4 5 6 7 8 9 10; do (sleep 0.0$i &) ; done; true")
	}
	eventually(t, "200 orphans were reaped", func() bool {
		st, err := m.Client.Status(within(t, 10*time.Second))
		return err == nil && st.Orphans >= 200
	})
	if zombies := sh(t, m, "grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l"); zombies != "0" {
		t.Errorf("%s zombies", zombies)
	}
}

func TestKernelConcurrentExecsEachGetTheirOwnCode(t *testing.T) {
	m := guesttest.Start(t)
	ctx := within(t, time.Minute)
	errs := make(chan error)
	for i := range 16 {
		go func() {
			for n := range 20 {
				want := (i*20 + n) % 200
				exit, err := m.Client.Run(ctx, guest.Command{Args: []string{"sh", "-c", fmt.Sprintf("(true &); exit %d", want)}}, nil, nil, nil)
				if err == nil && exit.Code != want {
					err = fmt.Errorf("exit %d, want %d", exit.Code, want)
				}
				if err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	for range 16 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func TestKernelPeersFromInsideAreRefused(t *testing.T) {
	m := guesttest.Start(t)
	b, err := os.Open(guesttest.Peer(t))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if _, err := m.Client.WriteFile(within(t, time.Minute), guest.WriteOptions{Path: "/tmp/peer", Mode: 0o755}, b); err != nil {
		t.Fatal(err)
	}
	for _, uid := range []uint32{0, 1000, 65534} {
		var out bytes.Buffer
		cmd := guest.Command{Args: []string{"/tmp/peer"}, UID: uid, GID: uid}
		exit, err := m.Client.Run(within(t, 30*time.Second), cmd, nil, &out, &out)
		if err != nil || exit.Code != 0 || !strings.Contains(out.String(), "only the node may talk to envinit") {
			t.Errorf("uid %d: exit %+v, %v: %s", uid, exit, err, out.String())
		}
	}
}

func TestKernelSquatterOnTheSocketIsRefused(t *testing.T) {
	m := guesttest.Start(t)
	// Another process than the one asked for listens: the slot's pid differs.
	wrong := guest.New(guest.Target{PID: os.Getpid(), NetNS: fmt.Sprintf("/proc/%d/ns/net", m.PID)})
	_, err := wrong.Status(within(t, 10*time.Second))
	if !errors.Is(err, env.ErrDenied) || !strings.Contains(err.Error(), strconv.Itoa(m.PID)) || !strings.Contains(err.Error(), strconv.Itoa(os.Getpid())) {
		t.Errorf("a listener with another pid: %v", err)
	}
}

func TestKernelOtherVersionsAreRefusedByName(t *testing.T) {
	m := guesttest.Start(t)
	conn, err := guest.Target{PID: m.PID}.Dial(within(t, 10*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = wire.NewWriter(conn).SendJSON(wire.KindRequest, wire.Request{Version: 9, Least: 8, Op: wire.OpStatus})
	f, err := wire.NewReader(conn).Next()
	if err != nil || f.Kind != wire.KindError || !strings.Contains(string(f.Payload), "speaks versions 1 to 2") {
		t.Errorf("answer %d %s, %v", f.Kind, f.Payload, err)
	}
}

func TestKernelSignalsFromInsideDoNotEndPidOne(t *testing.T) {
	m := guesttest.Start(t)
	sh(t, m, "for s in HUP INT QUIT USR1 USR2 PIPE ALRM ABRT SEGV BUS FPE ILL TRAP SYS KILL STOP TSTP; do kill -$s 1; done")
	time.Sleep(100 * time.Millisecond)
	if got := sh(t, m, "echo alive"); got != "alive" {
		t.Errorf("after the signals: %q", got)
	}
}

func TestKernelShutdownEndsPolitelyThenFirmly(t *testing.T) {
	m := guesttest.Start(t)
	configure(t, m, &env.Class{Services: []env.Service{
		{Name: "polite", Command: []string{"sh", "-c", "trap 'echo bye > /workspace/bye; exit 0' TERM; while true; do sleep 0.05; done"}},
		{Name: "stubborn", Command: []string{"sh", "-c", "trap '' TERM; while true; do sleep 0.05; done"}},
	}})
	time.Sleep(200 * time.Millisecond)
	begun := time.Now()
	if err := m.Client.Shutdown(within(t, 10*time.Second), time.Second); err != nil {
		t.Fatal(err)
	}
	select {
	case <-m.Ended():
	case <-time.After(10 * time.Second):
		t.Fatal("pid 1 did not end")
	}
	if took := time.Since(begun); took < 900*time.Millisecond || took > 5*time.Second {
		t.Errorf("ended after %v, grace was 1 s", took)
	}
	if b, err := os.ReadFile(filepath.Join(m.Root, "workspace/bye")); string(b) != "bye\n" {
		t.Errorf("the polite service left %q, %v", b, err)
	}
	if _, err := m.Client.Status(within(t, 5*time.Second)); !errors.Is(err, env.ErrUnavailable) {
		t.Errorf("status of what has ended: %v", err)
	}
}

func TestKernelLoopbackIsUp(t *testing.T) {
	m := guesttest.Start(t)
	if got := sh(t, m, "ip addr show lo"); !strings.Contains(got, "127.0.0.1") || !strings.Contains(got, "UP") {
		t.Errorf("lo: %s", got)
	}
}

// memoryOf reads a field of /proc/<pid>/status or smaps_rollup, in KiB.
func memoryOf(t testing.TB, pid int, field string) int {
	t.Helper()
	for _, file := range []string{"status", "smaps_rollup"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) >= 2 && f[0] == field {
				n, _ := strconv.Atoi(f[1])
				return n
			}
		}
	}
	t.Fatalf("no %s of pid %d", field, pid)
	return 0
}

// BenchmarkExec is a round trip of /bin/true through an idle machine, from the
// dial to the exit.
func BenchmarkExec(b *testing.B) {
	m := guesttest.Start(b)
	ctx := context.Background()
	var times []time.Duration
	for b.Loop() {
		begun := time.Now()
		exit, err := m.Client.Run(ctx, guest.Command{Args: []string{"/bin/true"}}, nil, nil, nil)
		if err != nil || exit.Code != 0 {
			b.Fatal(exit, err)
		}
		times = append(times, time.Since(begun))
	}
	slices.Sort(times)
	b.ReportMetric(float64(times[len(times)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(times[len(times)*99/100].Microseconds())/1000, "p99-ms")
	b.ReportMetric(float64(memoryOf(b, m.PID, "VmRSS:")), "rss-KiB")
	b.ReportMetric(float64(memoryOf(b, m.PID, "Pss:")), "pss-KiB")
	if st, err := os.Stat(guesttest.Binary(b)); err == nil {
		b.ReportMetric(float64(st.Size()), "binary-bytes")
	}
}
