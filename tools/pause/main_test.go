package main

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// paused starts pause in place of a shell that leaves it one child, as a pod
// whose processes share a PID namespace leaves its orphans.
func paused(t *testing.T) (*exec.Cmd, string) {
	t.Helper()
	program := filepath.Join(t.TempDir(), "pause")
	if text, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	cmd := exec.Command("/bin/sh", "-c", `sleep 0.2 & echo $!; exec "$0"`, program)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	child, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return cmd, strings.TrimSpace(child)
}

func TestPauseReapsAndEndsWhenTold(t *testing.T) {
	cmd, child := paused(t)
	begun := time.Now()
	for {
		if _, err := os.Stat("/proc/" + child); os.IsNotExist(err) {
			break
		}
		if time.Since(begun) > 10*time.Second {
			t.Fatal("its child is still there")
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("pause ended with %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("pause did not end at SIGTERM")
	}
}
