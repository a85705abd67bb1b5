package bench

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"hearth/test/stage"
)

const (
	instance = "hearthbench"
	// poolSize is what the largest burst takes. With as many slots as that the node
	// refills nothing while environments live; with refillSlots it has room to.
	poolSize    = 100
	refillSlots = 220
	// insideVar names the module's root for the process inside the stage.
	insideVar = "HEARTH_BENCH_INSIDE"
	// samples are taken of each benchmark unless -benchtime says otherwise: a
	// second of a millisecond's claims would spend minutes on refilling.
	samples = "200x"
)

// TestMain sets the stage and runs this program again inside it.
func TestMain(m *testing.M) {
	flag.Parse()
	if flag.Lookup("test.bench").Value.String() == "" {
		os.Exit(m.Run())
	}
	if root := os.Getenv(insideVar); root != "" {
		os.Exit(inside(m, root))
	}
	if err := outside(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// outside sets the stage, has the benchmarks run in it, and clears it.
func outside() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	s, err := newStage(root)
	if err != nil {
		return err
	}
	if err := s.SetUp(); err != nil {
		return errors.Join(err, s.TearDown())
	}
	self, err := os.Executable()
	if err != nil {
		return errors.Join(err, s.TearDown())
	}
	cmd := s.Inside(append([]string{self}, os.Args[1:]...)...)
	cmd.Env = append(os.Environ(), insideVar+"="+root)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err = cmd.Start(); err == nil {
		undo := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })
		err = cmd.Wait()
		undo()
	}
	if err != nil {
		s.ShowLogs()
	}
	return errors.Join(err, s.TearDown())
}

// inside starts the daemons, fills the pool and runs the benchmarks.
func inside(m *testing.M, root string) int {
	s, err := newStage(root)
	if err == nil {
		// With the largest limit of all: the kernel's maps keep their first size.
		s.WarmSlots, s.MaxSlots, s.SlotMemory = poolSize, refillSlots, "64Mi"
		err = s.StartDaemons()
	}
	if err == nil {
		_, err = s.Node.PoolFull(filling)
	}
	if err == nil {
		host, err = open(s)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	defer host.close()
	if t := flag.Lookup("test.benchtime"); t.Value.String() == t.DefValue {
		if err := t.Value.Set(samples); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			return 1
		}
	}
	return m.Run()
}

// newStage names the stage; paths are relative to the module's root.
func newStage(root string) (*stage.Stage, error) {
	if err := os.Chdir(root); err != nil {
		return nil, err
	}
	return stage.New(instance, filepath.Join(".test", instance)), nil
}

func moduleRoot() (string, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	return filepath.Dir(strings.TrimSpace(string(out))), err
}
