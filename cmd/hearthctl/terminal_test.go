package main

import (
	"bufio"
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/creack/pty"

	hearthv1 "hearth/api/hearth/v1"
)

// TestATerminalIsRawAndFollowsItsSize runs the program on a pseudo terminal.
func TestATerminalIsRawAndFollowsItsSize(t *testing.T) {
	f := newFake(t, t.TempDir())
	c, err := f.claim("", &hearthv1.ClaimSpec{Class: "base"})
	if err != nil {
		t.Fatal(err)
	}
	exe, err := exec.LookPath("hearthctl") // testscript put it there
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "exec", "-it", c.GetEnvironment().GetId(), "--", "sh", "-c",
		`stty size
		i=0; until test "$(stty size)" != "31 97" || test $i = 500; do sleep 0.02; i=$((i+1)); done
		stty size; read line; echo "got $line"; exit 3`)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir(), "HEARTH_SERVER="+f.server, "HEARTH_TOKEN="+fakeKey, "HEARTH_CA="+filepath.Join(f.dir, "ca.pem"), "TERM=vt100")
	tty, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 31, Cols: 97})
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	out := bufio.NewReader(tty)
	first, err := out.ReadString('\n')
	if err != nil || strings.TrimSpace(first) != "31 97" {
		t.Fatalf("size = %q, %v, want 31 97", first, err)
	}
	if err := pty.Setsize(tty, &pty.Winsize{Rows: 40, Cols: 120}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(tty, "word\r"); err != nil {
		t.Fatal(err)
	}
	rest, _ := io.ReadAll(out) // a terminal's end is EIO
	for _, want := range []string{"40 120", "got word"} {
		if !bytes.Contains(rest, []byte(want)) {
			t.Errorf("output lacks %q: %q", want, rest)
		}
	}
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 3 {
		t.Errorf("exit = %v, want code 3", err)
	}
}
