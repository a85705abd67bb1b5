//go:build e2e

package real

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"

	"hearth/test/stage"
)

// Variables of the copy of the test binary that runs on the stage.
const (
	inside     = "HEARTH_REAL_TEST_INSIDE"
	mirrorAddr = "HEARTH_REAL_TEST_MIRROR" // the mirror's address
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

// run sets one stage and runs the tests in a copy of the binary on it. The same
// binary keeps the stage's namespaces.
func run(m *testing.M) int {
	if len(os.Args) == 2 {
		if keep := map[string]func() error{"hold": stage.Hold, "internet": stage.Internet}[os.Args[1]]; keep != nil {
			return report(keep())
		}
	}
	flag.Parse()
	if os.Getenv(inside) != "" || flag.Lookup("test.list").Value.String() != "" {
		return m.Run()
	}
	code, err := perform()
	return max(code, report(err))
}

func report(err error) int {
	if err != nil {
		fmt.Fprintln(os.Stderr, "test/real:", err)
		return 1
	}
	return 0
}

func perform() (int, error) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	programs, err := os.MkdirTemp("", "hearth-real-test-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(programs)
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", programs+"/", "../demo/probe")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return 1, fmt.Errorf("build the stage's server: %w: %s", err, out)
	}
	self, err := os.Executable()
	if err != nil {
		return 1, err
	}
	for name, path := range map[string]string{"HEARTH_HOLDER": self, "HEARTH_PROBE": filepath.Join(programs, "probe")} {
		if err := os.Setenv(name, path); err != nil {
			return 1, err
		}
	}
	s := theStage()
	lock, err := s.Alone()
	if err != nil {
		return 1, err
	}
	defer lock.Close()
	m, err := findMirror(ctx)
	if err != nil {
		return 1, err
	}
	return s.Perform(ctx, func() (func() error, error) {
		pid, err := s.PID("internet")
		if err != nil {
			return nil, err
		}
		if err := s.AddInternetAddress(m.addr.String()); err != nil {
			return nil, err
		}
		return m.serve(pid)
	}, inside+"=1", mirrorAddr+"="+m.addr.String())
}

// theStage is the same outside and inside.
func theStage() *stage.Stage {
	root, err := filepath.Abs("../..")
	if err != nil {
		panic(errors.Join(errors.New("the working directory has no name"), err))
	}
	for name, path := range map[string]string{
		"HEARTH_RUNTIME_DIR": ".bin", "HEARTH_BIN_DIR": "bin", "HEARTH_IMAGE": ".image/debian.tar",
	} {
		if os.Getenv(name) == "" {
			_ = os.Setenv(name, filepath.Join(root, path))
		}
	}
	return stage.New("hearthreal", filepath.Join(root, ".test/real"))
}
