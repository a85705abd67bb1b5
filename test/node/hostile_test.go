package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/internal/env"
	"hearth/test/stage"
)

// intrude brings the intruder into an environment, and returns how to run it.
func (a *agent) intrude(t *testing.T, c stage.Claimed) (run func(args ...string) (stdout, stderr string, code int)) {
	t.Helper()
	a.bring(t, c, "intruder")
	return func(args ...string) (string, string, int) {
		return a.Hearthctl.Try(append([]string{"exec", c.ID(), "--", "/intruder"}, args...)...)
	}
}

// bring copies a program of the tests to the root of an environment.
func (a *agent) bring(t *testing.T, c stage.Claimed, program string) {
	t.Helper()
	_, err := a.Hearthctl.Run("cp", filepath.Join(os.Getenv(programs), program), c.ID()+":/"+program)
	ok(t, err)
	_, err = a.Hearthctl.Sh(c, "chmod 755 /"+program)
	ok(t, err)
}

// failed waits until the environment is failed because its init ended.
func (a *agent) failed(t *testing.T, c stage.Claimed) {
	t.Helper()
	eventually(t, 10*time.Second, func() error {
		if e := a.get(t, c.ID()); e.GetPhase() != hearthv1.Phase_PHASE_FAILED || !strings.Contains(e.GetMessage(), "init ended") {
			return fmt.Errorf("the environment is %s: %q", e.GetPhase(), e.GetMessage())
		}
		return nil
	})
}

// Root inside writes over the memory of pid 1.
func TestNodeInitThatIsOverwrittenFromInsideFailsAlone(t *testing.T) {
	a := node(t)
	c, neighbour := a.claim(t, "bare"), a.claim(t, "bare")
	_, stderr, code := a.intrude(t, c)("overwrite")
	t.Logf("overwriting pid 1: exit %d: %s", code, strings.TrimSpace(stderr))
	// Each exec is served by what was overwritten.
	_, _, code = a.Hearthctl.Try("exec", c.ID(), "--", "true")
	if code != 125 {
		t.Errorf("an exec of what was overwritten: exit %d, want 125", code)
	}
	a.failed(t, c)
	a.alive(t, neighbour)
	a.release(t, c)
	a.release(t, neighbour)
}

// Root inside makes pid 1 another program, which then has its pid, and the name of
// its socket: the agent cannot tell, and need not.
func TestNodeInitThatIsReplacedFromInsideHarmsNobodyElse(t *testing.T) {
	a := node(t)
	c, neighbour := a.claim(t, "web"), a.claim(t, "bare")
	a.bring(t, c, "liar")
	stdout, stderr, code := a.intrude(t, c)("possess", "/liar")
	t.Logf("possessing pid 1: exit %d: %s%s", code, stdout, stderr)
	g := guest(t, c, c.ID(), c.Access.Token)
	memory := a.watch(t)
	eventually(t, 10*time.Second, func() error { // the liar answers now
		got, err := execOf(within(t), g, 50, "x")
		if err != nil || len(got) < 50 || !strings.Contains(string(got[1].GetStdout()), "lies") {
			return fmt.Errorf("%d messages, %w", len(got), err)
		}
		return nil
	})
	if cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", c.Environment.PID)); err != nil || !strings.HasPrefix(string(cmdline), "/liar\x00") {
		t.Errorf("pid 1 is %q: %v", cmdline, err)
	}
	seesNoEnd(t, a, c)
	a.alive(t, neighbour)
	memory.grewAtMost(t, 96*mib)
	// It is frozen, captured and let go as any other.
	_, err := a.Hearthctl.Run("pause", c.ID())
	ok(t, err)
	_, err = a.Hearthctl.Run("resume", c.ID())
	ok(t, err)
	ok(t, second(a.Node.Snapshot(t.Context(), &hearthv1.NodeSnapshotRequest{Environment: c.ID()})))
	a.release(t, c)
	a.release(t, neighbour)
}

// What every shell inside can try on the host, and must not get.
func TestNodeRootInsideReachesNothingOfTheHost(t *testing.T) {
	a := node(t)
	secret := a.Path("secret")
	ok(t, os.WriteFile(secret, []byte("of the host"), 0o644))
	t.Cleanup(func() { ok(t, os.Remove(secret)) })
	pattern, err := os.ReadFile("/proc/sys/kernel/core_pattern")
	ok(t, err)
	c := a.claim(t, "bare")
	g := guest(t, c, c.ID(), c.Access.Token)
	read := func(path string) (string, error) {
		r, err := g.ReadFile(within(t), &hearthv1.ReadFileRequest{Path: path})
		if err != nil {
			return "", err
		}
		defer r.Close()
		var out strings.Builder
		for r.Receive() {
			out.Write(r.Msg().GetData())
		}
		return out.String(), r.Err()
	}
	for _, root := range []string{"", "/proc/self/root", "/proc/1/root", "/proc/1/cwd", "/proc/self/cwd/../..", "/proc/1/task/1/root", "/dev/fd/../../.."} {
		if got, err := read(root + secret); err == nil {
			t.Errorf("%s%s reads %q", root, secret, got)
		}
		if got, err := read(root + "/etc/hostname"); err == nil && strings.TrimSpace(got) != c.ID() {
			t.Errorf("%s/etc/hostname is %q", root, got)
		}
	}
	// Descriptors that were left open would be doors.
	out, err := a.Hearthctl.Sh(c, `ls -l /proc/self/fd /proc/1/fd | grep -e '-> /' | grep -v -e '-> /dev/null' -e '-> /dev/pts' -e '-> /proc/' -e '-> /sys/fs/cgroup/'`)
	if left := strings.TrimSpace(out); err == nil && left != "" {
		t.Errorf("descriptors of files: %s", left)
	}
	for what, script := range map[string]string{
		"the core pattern":   `echo '|/bin/sh' > /proc/sys/kernel/core_pattern`,
		"sysrq":              `echo h > /proc/sysrq-trigger`,
		"its cgroup":         `d=/sys/fs/cgroup; [ -e $d/cgroup.procs ] || d=$d/pids; echo 1 > $d/cgroup.procs`,
		"its limits":         `d=/sys/fs/cgroup; [ -e $d/cgroup.procs ] || d=$d/pids; echo max > $d/pids.max`,
		"a new cgroup":       `d=/sys/fs/cgroup; [ -e $d/cgroup.procs ] || d=$d/pids; mkdir $d/x`,
		"another mount":      `mount -t tmpfs x /mnt || mount -t cgroup2 x /mnt || mount -o remount,rw /sys`,
		"a namespace":        `unshare -U true || unshare -n true || nsenter -t 1 -m -u true`,
		"init's program":     `echo x > /proc/1/exe`,
		"init's mount":       `umount /run/.hearth/init || rm /run/.hearth/init || echo x > /run/.hearth/init`,
		"a device":           `mknod /tmp/vda b 254 0 && head -c 1 /tmp/vda`,
		"a module":           `insmod /proc/self/exe`,
		"another's priority": `echo -1000 > /proc/self/oom_score_adj`,
		"the host's name":    `hostname elsewhere`,
	} {
		if out, _, code := a.Hearthctl.Try("exec", c.ID(), "--", "sh", "-c", script); code == 0 {
			t.Errorf("%s: %q", what, out)
		}
	}
	for _, signal := range []string{"KILL", "STOP", "SEGV", "TERM"} {
		if signal != "TERM" { // by which it is asked to end
			_, _, _ = a.Hearthctl.Try("exec", c.ID(), "--", "kill", "-"+signal, "1")
		}
	}
	if now, err := os.ReadFile("/proc/sys/kernel/core_pattern"); err != nil || string(now) != string(pattern) {
		t.Errorf("the core pattern is %q, was %q: %v", now, pattern, err)
	}
	a.alive(t, c)
	a.release(t, c)
}

// Files that init itself reads are fifos: nobody writes to them.
func TestNodeFifosInThePlaceOfFilesHoldNobodyUp(t *testing.T) {
	a := node(t)
	c := a.claim(t, "bare")
	_, err := a.Hearthctl.Sh(c, `for f in /etc/passwd /etc/group /etc/hosts /etc/hostname /etc/machine-id /run/hearth/env /run/hearth/env.json; do rm -f $f; mkfifo $f; done
		mkdir -p /etc/ssh /workspace/d; mkfifo /etc/ssh/ssh_host_rsa_key /workspace/d/fifo; ln -s fifo /workspace/d/link`)
	ok(t, err)
	if out, err := a.Hearthctl.Sh(c, "echo alive"); err != nil || out != "alive\n" {
		t.Errorf("exec: %q, %v", out, err)
	}
	g := guest(t, c, c.ID(), c.Access.Token)
	for _, path := range []string{"/workspace/d/fifo", "/workspace/d/link", "/etc/passwd", "/dev/tty", "/dev/ptmx", "/proc/kmsg"} {
		r, err := g.ReadFile(within(t), &hearthv1.ReadFileRequest{Path: path})
		if err == nil {
			for r.Receive() {
			}
			err = errors.Join(r.Err(), r.Close())
		}
		if err == nil {
			t.Errorf("%s was read", path)
		}
	}
	list, err := g.ListDir(within(t), &hearthv1.ListDirRequest{Path: "/workspace/d"})
	if err != nil || len(list.GetEntries()) != 2 {
		t.Errorf("list: %v, %v", list, err)
	}
	// A snapshot of them, and an environment of that, whose names are renewed.
	forked, err := a.Node.Fork(t.Context(), &hearthv1.NodeForkRequest{Environment: c.ID(), Children: []*hearthv1.NodeClaimRequest{{}}})
	ok(t, err)
	child := claimed(forked.GetChildren()[0])
	if got := a.says(t, child, "cat /etc/hostname; test -p /workspace/d/fifo && echo fifo"); got != child.ID()+"\nfifo" {
		t.Errorf("the fork has %q", got)
	}
	a.release(t, child)
	a.release(t, c)
}

// As many processes as an environment may have, and more, by exec: at once and one
// after the other.
func TestNodeExecsByTheThousandCostOnlyTheirEnvironment(t *testing.T) {
	a := node(t)
	c, neighbour := a.claim(t, "web"), a.claim(t, "web")
	g := guest(t, c, c.ID(), c.Access.Token)
	_, err := execOf(within(t), g, 10, "true") // connections are made
	ok(t, err)
	fds, memory := a.descriptors(t), a.watch(t)
	_, goroutines := a.heap(t)

	many := either(700, 3000)
	var wg sync.WaitGroup
	var ran, refused atomic.Int64
	begun := time.Now()
	for range many {
		wg.Go(func() {
			got, err := execOf(within(t), g, 3, "sleep", "1")
			switch {
			case errors.Is(err, env.ErrExhausted):
				refused.Add(1)
			case err != nil || len(got) != 2 || got[1].GetExit().GetCode() != 0:
				t.Errorf("exec: %v, %v", got, err)
			default:
				ran.Add(1)
			}
		})
	}
	a.alive(t, neighbour)
	wg.Wait()
	t.Logf("%d at once: %d ran, %d were refused, %d ms", many, ran.Load(), refused.Load(), time.Since(begun).Milliseconds())
	if ran.Load() < 100 || refused.Load() == 0 {
		t.Errorf("%d ran and %d were refused, with 256 processes", ran.Load(), refused.Load())
	}
	begun = time.Now()
	series := either(300, 5000)
	for range series {
		if got, err := execOf(within(t), g, 3, "true"); err != nil || got[len(got)-1].GetExit() == nil {
			t.Fatalf("exec: %v, %v", got, err)
		}
	}
	t.Logf("%d one after the other: %d ms", series, time.Since(begun).Milliseconds())
	memory.grewAtMost(t, 128*mib)
	a.alive(t, c)
	a.alive(t, neighbour)
	eventually(t, 20*time.Second, func() error {
		// Connections of this client are among them: a thousand calls share one.
		if now := a.descriptors(t); now > fds+either(16, 32) {
			return fmt.Errorf("the agent has %d descriptors, before it had %d", now, fds)
		}
		if _, now := a.heap(t); now > goroutines+20 {
			return fmt.Errorf("the agent has %d goroutines, before it had %d", now, goroutines)
		}
		return nil
	})
	a.release(t, c)
	a.release(t, neighbour)
}

// Streams that nobody reads, terminals too, and input that nobody takes: they wait,
// nothing of them is kept in the agent, and calls beside them do not wait.
func TestNodeWhatNobodyReadsWaitsOutsideTheAgent(t *testing.T) {
	a := node(t)
	c, neighbour := a.claim(t, "web"), a.claim(t, "web")
	g := guest(t, c, c.ID(), c.Access.Token)
	memory := a.watch(t)
	over := make(chan struct{})
	var wg sync.WaitGroup
	open := func(start *hearthv1.ExecStart, then func(send func(*hearthv1.ExecRequest) error)) {
		ctx, cancel := context.WithCancel(within(t))
		s, err := g.Exec(ctx)
		ok(t, err)
		ok(t, s.Send(&hearthv1.ExecRequest{Message: &hearthv1.ExecRequest_Start{Start: start}}))
		wg.Go(func() {
			if then != nil {
				then(s.Send)
			}
			<-over
			cancel()
			_ = s.CloseResponse()
		})
	}
	for range 10 {
		open(&hearthv1.ExecStart{Command: []string{"sh", "-c", "yes $(seq 1000)"}}, nil)
		open(&hearthv1.ExecStart{Command: []string{"sh", "-c", "yes $(seq 1000)"}, Terminal: true}, nil)
		for _, terminal := range []bool{false, true} { // which read nothing
			open(&hearthv1.ExecStart{Command: []string{"sleep", "1000"}, Terminal: terminal}, func(send func(*hearthv1.ExecRequest) error) {
				sent := make(chan struct{})
				go func() {
					defer close(sent)
					for range 64 {
						if send(&hearthv1.ExecRequest{Message: &hearthv1.ExecRequest_Stdin{Stdin: make([]byte, 256<<10)}}) != nil {
							return
						}
					}
				}()
				select {
				case <-sent:
				case <-over:
				}
			})
		}
	}
	for range 10 {
		time.Sleep(100 * time.Millisecond)
		a.alive(t, neighbour)
	}
	// On their own connection too, which a caller may use for all environments.
	if got, err := execOf(within(t), g, 10, "true"); err != nil || got[len(got)-1].GetExit() == nil {
		t.Errorf("an exec beside them: %v, %v", got, err)
	}
	close(over)
	memory.grewAtMost(t, 160*mib)
	a.release(t, c)
	wg.Wait()
	a.alive(t, neighbour)
	a.release(t, neighbour)
}

// Pid 1 has as many descriptors as the class says.
func TestNodeInitOutOfDescriptorsSaysSoAndComesBack(t *testing.T) {
	a := node(t)
	a.beginClass(t, "narrow", "  image: hearth.local/busybox:1\n  resources: {memory: 64Mi, pids: 512, openFiles: 128}\n")
	c := a.claim(t, "narrow")
	g := guest(t, c, c.ID(), c.Access.Token)
	var wg sync.WaitGroup
	var refused atomic.Int64
	for range 150 {
		wg.Go(func() {
			if _, err := execOf(within(t), g, 3, "sleep", "1"); err != nil {
				refused.Add(1)
				if !errors.Is(err, env.ErrExhausted) && !errors.Is(err, env.ErrUnavailable) {
					t.Errorf("exec: %v", err)
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d of 150 were refused", refused.Load())
	if refused.Load() == 0 {
		t.Error("none was refused: the test proves nothing")
	}
	eventually(t, 20*time.Second, func() error {
		_, err := a.Hearthctl.Sh(c, "true")
		return err
	})
	a.alive(t, c)
	a.release(t, c)
}

// The kernel ends what wants more memory than there is: a process, or pid 1 with
// all of them, and nobody else.
func TestNodeAnEnvironmentOutOfMemoryHurtsNobodyElse(t *testing.T) {
	a := node(t)
	c, neighbour := a.claim(t, "bare"), a.claim(t, "bare")
	_, stderr, code := a.Hearthctl.Try("exec", c.ID(), "--", "sh", "-c", "head -c 1000000000 /dev/zero | tail -n 1")
	t.Logf("a hog: exit %d: %s", code, strings.TrimSpace(stderr))
	a.alive(t, c)
	a.alive(t, neighbour)
	// Files of a tmpfs are memory that no kill gives back.
	_, stderr, code = a.Hearthctl.Try("exec", c.ID(), "--", "sh", "-c", "for i in 1 2 3 4; do cat /dev/zero > /dev/shm/$i & done; cat /dev/zero > /run/x; wait; cat /dev/zero | tail -n 1")
	t.Logf("a tmpfs as large as the memory: exit %d: %s", code, strings.TrimSpace(stderr))
	eventually(t, 30*time.Second, func() error {
		switch e := a.get(t, c.ID()); e.GetPhase() {
		case hearthv1.Phase_PHASE_FAILED:
			return nil
		case hearthv1.Phase_PHASE_RUNNING:
			_, err := a.Hearthctl.Sh(c, "rm -f /dev/shm/* /run/x")
			return err
		default:
			return fmt.Errorf("it is %s", e.GetPhase())
		}
	})
	t.Logf("afterwards it is %s", a.get(t, c.ID()).GetPhase())
	a.alive(t, neighbour)
	a.release(t, c)
	a.release(t, neighbour)
}

// A pause in the middle of an exec stops its output and keeps it: afterwards it goes
// on where it was.
func TestNodeAPauseDuringAnExecOnlyDelaysIt(t *testing.T) {
	a := node(t)
	c := a.claim(t, "bare")
	const lines = 300
	cmd := a.Hearthctl.Command("exec", c.ID(), "--", "sh", "-c", fmt.Sprintf("i=0; while [ $i -lt %d ]; do i=$((i+1)); echo $i; sleep 0.005; done; exit 7", lines))
	var out strings.Builder
	cmd.Stdout = &out
	ok(t, cmd.Start())
	for range 5 {
		time.Sleep(100 * time.Millisecond)
		_, err := a.Hearthctl.Run("pause", c.ID())
		ok(t, err)
		if !a.frozen(t, c) {
			t.Error("it is not frozen")
		}
		time.Sleep(50 * time.Millisecond)
		_, err = a.Hearthctl.Run("resume", c.ID())
		ok(t, err)
	}
	_ = cmd.Wait()
	var want strings.Builder
	for i := range lines {
		fmt.Fprintln(&want, i+1)
	}
	if code := cmd.ProcessState.ExitCode(); code != 7 || out.String() != want.String() {
		t.Errorf("exit %d, want 7; %d bytes of output, want %d", code, out.Len(), want.Len())
	}
	a.release(t, c)
}

// A frozen environment whose pid 1 is killed ends, as does one that is released.
func TestNodeAFrozenEnvironmentCanBeKilled(t *testing.T) {
	a := node(t)
	c, other := a.claim(t, "bare"), a.claim(t, "bare")
	for _, e := range []stage.Claimed{c, other} {
		_, err := a.Hearthctl.Sh(e, "for i in 1 2 3 4 5; do setsid sleep 1000 >/dev/null 2>&1 & done")
		ok(t, err)
		_, err = a.Hearthctl.Run("pause", e.ID())
		ok(t, err)
	}
	ok(t, syscall.Kill(c.Environment.PID, syscall.SIGKILL))
	a.failed(t, c)
	a.release(t, other)
	if runs(other.Environment.PID) {
		t.Errorf("init %d of a released environment runs", other.Environment.PID)
	}
	ok(t, second(a.Node.Snapshot(t.Context(), &hearthv1.NodeSnapshotRequest{Environment: c.ID()})))
	a.release(t, c)
}
