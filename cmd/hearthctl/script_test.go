package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"hearth/internal/env"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"hearthctl": main})
}

// TestScripts runs the real program against a controller and a node in this
// process; each script has its own.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			dir, err := os.MkdirTemp("", "hctl") // short, for the socket's path
			if err != nil {
				return err
			}
			e.Defer(func() { _ = os.RemoveAll(dir) })
			f := newFake(e.T().(testing.TB), dir)
			e.Values["fake"] = f
			e.Setenv("HOME", filepath.Join(e.WorkDir, "home"))
			e.Setenv("HEARTH_SERVER", "https://"+f.server)
			e.Setenv("HEARTH_TOKEN", fakeKey)
			e.Setenv("HEARTH_CA", filepath.Join(dir, "ca.pem"))
			e.Setenv("SOCKET", f.socket)
			e.Setenv("FAKE", dir) // has "claiming" once a slow claim has begun
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"fake":    fakeCmd,
			"setid":   setID,
			"forward": forwardCmd,
		},
	})
}

// setid VAR sets a variable to the first word of the last output.
func setID(ts *testscript.TestScript, _ bool, args []string) {
	words := strings.Fields(ts.ReadFile("stdout"))
	if len(words) == 0 {
		ts.Fatalf("no output")
	}
	ts.Setenv(args[0], words[0])
}

// fake orders and asks:
//
//	fake envs N           there are N environments now
//	fake calls METHOD N   METHOD was called so often
//	fake fail METHOD WHAT the next call fails: unavailable, exhausted, state
//	fake slow MS          each claim takes so long
//	fake newtoken ID      someone else asked for a token
//	fake release REV IMG  the class has another release, on that image
//	fake root VAR ID      the directory that is the environment's inside
func fakeCmd(ts *testscript.TestScript, _ bool, args []string) {
	f := ts.Value("fake").(*fake)
	f.mu.Lock()
	defer f.mu.Unlock()
	number := func(i int) int {
		n, err := strconv.Atoi(args[i])
		ts.Check(err)
		return n
	}
	switch args[0] {
	case "envs":
		if len(f.envs) != number(1) {
			ts.Fatalf("%d environments, want %s", len(f.envs), args[1])
		}
	case "calls":
		if f.calls[args[1]] != number(2) {
			ts.Fatalf("%d calls of %s, want %s", f.calls[args[1]], args[1], args[2])
		}
	case "fail":
		f.fail[args[1]] = fmt.Errorf("%w: as ordered: try another", map[string]error{
			"unavailable": env.ErrUnavailable, "exhausted": env.ErrExhausted, "state": env.ErrState,
		}[args[2]])
	case "slow":
		f.slow = time.Duration(number(1)) * time.Millisecond
	case "newtoken":
		f.access(f.envs[args[1]])
	case "release":
		f.newRelease(args[1], args[2])
	case "root":
		ts.Setenv(args[1], f.root(args[2]))
	default:
		ts.Fatalf("fake %q", args)
	}
}

// forward FILE TEXT sends TEXT to the address in the first line of FILE, ends
// its side, and wants TEXT in upper case as the answer. With ! it does so with
// the second line, and wants no answer.
func forwardCmd(ts *testscript.TestScript, refused bool, args []string) {
	line := 0
	if refused {
		line = 1
	}
	var addr string
	for range 200 {
		lines := strings.SplitAfter(ts.ReadFile(args[0]), "\n")
		if len(lines) > line && strings.HasSuffix(lines[line], "\n") {
			addr = strings.Fields(lines[line])[1]
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	c, err := net.Dial("tcp", addr)
	ts.Check(err)
	defer c.Close()
	_, err = io.WriteString(c, args[1])
	ts.Check(err)
	ts.Check(c.(*net.TCPConn).CloseWrite())
	ts.Check(c.SetDeadline(time.Now().Add(10 * time.Second)))
	answer, err := io.ReadAll(c)
	if !refused { // a refused connection may be reset
		ts.Check(err)
	}
	want := strings.ToUpper(args[1])
	if refused {
		want = ""
	}
	if string(answer) != want {
		ts.Fatalf("answer %q, want %q", answer, want)
	}
}
