// Package node tests a whole node on real parts: the real nodeagent with a
// containerd of its own, hearthctl, the node's socket and its TLS port, in
// network and mount namespaces without a route out. What it asks of them is
// what a node meets: bad input, lies from inside, full disks, dead parts and
// its own death.
package node

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
	"testing"
	"time"

	"hearth/test/stage"
)

// inside is set in the copy of the test binary that runs on the stage.
const inside = "HEARTH_NODE_TEST_INSIDE"

// programs is where the programs are that only these tests need.
const programs = "HEARTH_NODE_TEST_PROGRAMS"

// prebuilt names a directory that has them, where there is no go command.
const prebuilt = "HEARTH_TEST_PREBUILT"

func TestMain(m *testing.M) { os.Exit(run(m)) }

// run sets one stage for the whole package and runs the tests in a copy of the
// binary on it. The same binary keeps the stage's namespaces.
func run(m *testing.M) int {
	if len(os.Args) == 2 {
		if keep := map[string]func() error{"hold": stage.Hold, "internet": stage.Internet}[os.Args[1]]; keep != nil {
			return report(keep())
		}
	}
	flag.Parse()
	if os.Getenv(inside) != "" {
		return m.Run()
	}
	if os.Geteuid() != 0 || !wanted() {
		return m.Run() // nothing to run, or nothing that can
	}
	return perform()
}

// wanted reports whether the flags of go test choose any test of this package.
func wanted() bool {
	value := func(name string) string { return flag.Lookup(name).Value.String() }
	skip := value("test.skip")
	return value("test.list") == "" && (skip == "" || !regexp.MustCompile(skip).MatchString("TestNodeX"))
}

func report(err error) int {
	if err != nil {
		fmt.Fprintln(os.Stderr, "test/node:", err)
		return 1
	}
	return 0
}

// perform sets the stage, runs the copy on it and clears the stage, whatever
// happens between.
func perform() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	dir := os.Getenv(prebuilt)
	if dir == "" {
		var err error
		if dir, err = build(ctx); err != nil {
			return report(err)
		}
		defer os.RemoveAll(dir)
	}
	self, err := os.Executable()
	if err != nil {
		return report(err)
	}
	root, _ := filepath.Abs("../..")
	for name, path := range map[string]string{
		"HEARTH_RUNTIME_DIR": filepath.Join(root, ".bin"), "HEARTH_BIN_DIR": filepath.Join(root, "bin"),
		"HEARTH_IMAGE": filepath.Join(root, ".image/busybox.tar"),
	} {
		if os.Getenv(name) == "" {
			_ = os.Setenv(name, path)
		}
	}
	_ = os.Setenv("HEARTH_HOLDER", self)
	_ = os.Setenv("HEARTH_PROBE", filepath.Join(dir, "probe"))
	_ = os.Setenv(programs, dir)
	s := newStage(filepath.Join(root, ".test/node"))
	lock, err := s.Alone()
	if err != nil {
		return report(err)
	}
	defer lock.Close()
	if err := s.TearDown(); err != nil { // of a run that was killed
		return report(err)
	}
	before := outerInventory(s)
	code, err := onStage(ctx, s)
	if code != 0 || err != nil {
		s.ShowLogs()
	}
	return max(code, report(errors.Join(err, tearDown(s), unchanged(before, s))))
}

func newStage(dir string) *stage.Stage { return stage.New("hearthtest", dir) }

// build compiles the programs that run inside environments.
func build(ctx context.Context) (string, error) {
	dir, err := os.MkdirTemp("", "hearth-node-test-")
	if err != nil {
		return "", err
	}
	// Namespace holders, which are nobody on the host, run one of them.
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", dir+"/", "../demo/probe", "./liar", "./intruder")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", errors.Join(fmt.Errorf("build the tests' programs: %w: %s", err, out), os.RemoveAll(dir))
	}
	return dir, nil
}

// onStage runs the copy of the test binary and returns its exit code.
func onStage(ctx context.Context, s *stage.Stage) (int, error) {
	if err := s.SetUp(); err != nil {
		return 1, err
	}
	return s.Rerun(ctx, inside+"=1")
}

// tearDown ends whatever the tests have left on the stage, the instances beside
// it first.
func tearDown(s *stage.Stage) error {
	var errs []error
	for _, name := range instances {
		errs = append(errs, clear(s, s.Beside(name)))
	}
	return errors.Join(append(errs, s.TearDown())...)
}

// clear ends an instance's agent and removes everything of it.
func clear(on, s *stage.Stage) error {
	config := s.Path("nodeagent.yaml")
	if _, err := os.Stat(config); errors.Is(err, os.ErrNotExist) {
		return nil // never made
	}
	err := s.End("agent")
	if out, cleanup := on.Inside(s.Program("nodeagent"), "cleanup", "--all", "--config", config).CombinedOutput(); cleanup != nil {
		err = errors.Join(err, fmt.Errorf("cleanup of %s: %w: %s", s.Instance(), cleanup, out))
	}
	return errors.Join(err, s.End("containerd")) // if it had a given one
}

// outerInventory is what the machine shows of the stage from outside. Kernel
// programs are left out: other packages' tests may run beside this one.
func outerInventory(s *stage.Stage) stage.Inventory {
	inv := stage.Inventory{}
	for _, one := range append([]*stage.Stage{s}, beside(s)...) {
		for kind, names := range one.OuterInventory() {
			if kind != "bpf links" && kind != "bpf maps" {
				inv[kind] = append(inv[kind], names...)
			}
		}
	}
	return inv
}

func beside(s *stage.Stage) (out []*stage.Stage) {
	for _, name := range instances {
		out = append(out, s.Beside(name))
	}
	return out
}

func unchanged(before stage.Inventory, s *stage.Stage) error {
	return stage.Eventually(10*time.Second, func() error {
		if diff := stage.Compare(before, outerInventory(s), nil); diff != "" {
			return fmt.Errorf("the machine is not as before: %s", diff)
		}
		return nil
	})
}
