package guest_test

import (
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"hearth/internal/guest"
	"hearth/internal/guest/guesttest"
)

func TestKernelTerminalHasItsSizeAndFollowsResize(t *testing.T) {
	m := guesttest.Start(t)
	p, err := begin(t, m, guest.Command{
		Args: []string{"sh"}, Terminal: true, Size: guest.TerminalSize{Rows: 33, Columns: 101},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	seen := readUntil(t, p, "stty size; tty; echo TERM=$TERM\n", "TERM=xterm")
	for _, want := range []string{"33 101", "/dev/pts/"} {
		if !strings.Contains(seen, want) {
			t.Errorf("%q is not in %q", want, seen)
		}
	}
	if err := p.Resize(guest.TerminalSize{Rows: 50, Columns: 200}); err != nil {
		t.Fatal(err)
	}
	readUntil(t, p, "stty size\n", "50 200")
	time.Sleep(500 * time.Millisecond)     // a shell that changes the terminal's mode just now loses its end of file
	if err := p.CloseStdin(); err != nil { // end of file ends the shell
		t.Fatal(err)
	}
	for {
		ev, err := p.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if ev.Exit != nil {
			return
		}
	}
}

func readUntil(t *testing.T, p *guest.Process, input, want string) string {
	t.Helper()
	if _, err := p.Write([]byte(input)); err != nil {
		t.Fatal(err)
	}
	var seen string
	for !strings.Contains(seen, want) {
		ev, err := p.Recv()
		if err != nil || ev.Exit != nil {
			t.Fatalf("waiting for %q: %v, seen %q", want, err, seen)
		}
		seen += string(ev.Data)
	}
	return seen
}

// output reads a process to its end.
func output(t *testing.T, p *guest.Process) (string, guest.Exit) {
	t.Helper()
	var seen strings.Builder
	for {
		ev, err := p.Recv()
		if err != nil {
			t.Fatalf("%v, seen %q", err, seen.String())
		}
		if ev.Exit != nil {
			return seen.String(), *ev.Exit
		}
		seen.Write(ev.Data)
	}
}

// busy keeps both of the machine's sides short of processor time.
func busy(t *testing.T) {
	t.Helper()
	var stop atomic.Bool
	var done sync.WaitGroup
	for range 2 * runtime.GOMAXPROCS(0) {
		done.Go(func() {
			for spins := uint64(0); !stop.Load(); spins++ {
			}
		})
	}
	t.Cleanup(func() {
		stop.Store(true)
		done.Wait()
	})
}

func TestKernelTerminalLosesNothingWhenTheProcessEndsAtOnce(t *testing.T) {
	m := guesttest.Start(t)
	busy(t)
	want := strings.ReplaceAll(numbers(9000), "\n", "\r\n")
	for name, command := range map[string][]string{
		"one process": {"seq", "1", "9000"},
		"a pipeline":  {"sh", "-c", "seq 1 9000 | cat"},
		// For a while nobody has the terminal open, which is not its end.
		"a terminal opened again": {"sh", "-c", "t=$(tty); exec </dev/null >/dev/null 2>&1; usleep 2000; exec seq 1 9000 >$t"},
	} {
		t.Run(name, func(t *testing.T) {
			for try := range guesttest.Tries(60) {
				p, err := begin(t, m, guest.Command{Args: command, Terminal: true})
				if err != nil {
					t.Fatal(err)
				}
				got, exit := output(t, p)
				p.Close()
				if got != want || exit != (guest.Exit{}) {
					t.Fatalf("try %d: %d bytes of %d (the first of them: %v), exit %+v", try, len(got), len(want), strings.HasPrefix(want, got), exit)
				}
			}
		})
	}
}

func TestKernelTerminalEndsWithItsProcessThoughAnotherKeepsIt(t *testing.T) {
	m := guesttest.Start(t)
	// The one in the background waits until the exec has ended.
	script := "trap '' HUP; (until [ -e /tmp/go ]; do usleep 20000; done; echo late; touch /tmp/wrote) & echo early"
	p, err := begin(t, m, guest.Command{Terminal: true, Args: []string{"sh", "-c", script}})
	if err != nil {
		t.Fatal(err)
	}
	if got, exit := output(t, p); got != "early\r\n" || exit != (guest.Exit{}) {
		t.Errorf("%q, exit %+v", got, exit)
	}
	sh(t, m, "touch /tmp/go")
	eventually(t, "the process in the background has written and gone on", func() bool {
		return sh(t, m, "ls /tmp/wrote 2>/dev/null || true") != ""
	})
}

func TestKernelTerminalHangsUpItsForegroundGroupAtTheLeadersEnd(t *testing.T) {
	m := guesttest.Start(t)
	p, err := begin(t, m, guest.Command{Terminal: true, Args: []string{"sh", "-c", "sleep 2345 & exit 3"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, exit := output(t, p); exit != (guest.Exit{Code: 3}) {
		t.Errorf("exit %+v", exit)
	}
	eventually(t, "sleep has gone", func() bool {
		return sh(t, m, "ps | grep -c '[s]leep 2345' || true") == "0"
	})
}

func TestKernelTerminalHasJobControl(t *testing.T) {
	m := guesttest.Start(t)
	p, err := begin(t, m, guest.Command{Args: []string{"sh", "-i"}, Terminal: true, UID: 1000, GID: 1000})
	if err != nil {
		t.Fatal(err)
	}
	const ctrlC, ctrlZ = "\x03", "\x1a"
	readUntil(t, p, "stty -echo; echo own:$(tty)\n", "own:/dev/pts/")
	readUntil(t, p, "sh -c 'echo up:$$; exec sleep 3456'\n", "up:")
	readUntil(t, p, ctrlZ, "Stopped")
	readUntil(t, p, "jobs; echo jobs:$?\n", "jobs:0")
	readUntil(t, p, "fg\n", "sleep 3456")
	eventually(t, "the job goes on, and so has the terminal", func() bool {
		return sh(t, m, "ps -o stat,args | grep -c '^S.*[s]leep 3456' || true") == "1"
	})
	readUntil(t, p, ctrlC+"echo code:$?\n", "code:130")
	if _, err := p.Write([]byte("exit 7\n")); err != nil {
		t.Fatal(err)
	}
	if _, exit := output(t, p); exit != (guest.Exit{Code: 7}) {
		t.Errorf("exit %+v", exit)
	}
}
