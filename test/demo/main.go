// Command demo runs Hearth's main job on real parts and says of each step what
// it saw: `demo: <step> ok key=value …` or `demo: <step> FAILED <why>`.
//
// Everything happens on a stage of its own: see test/stage.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"hearth/test/stage"
)

func main() {
	role := "run"
	if len(os.Args) > 1 {
		role = os.Args[1]
	}
	var err error
	switch role {
	case "run":
		err = runDemo(newStage(), os.Getenv("KEEP") != "")
	case "stop":
		err = newStage().TearDown()
	case "hold":
		err = stage.Hold()
	case "internet":
		err = stage.Internet()
	case "steps":
		err = runSteps(newStage())
	default:
		err = fmt.Errorf("unknown role %q", role)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func newStage() *stage.Stage { return stage.New("hearthdemo", ".demo") }

// runDemo sets the stage, plays the steps in it, and clears it unless keep.
func runDemo(s *stage.Stage, keep bool) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	before := s.OuterInventory()
	if err := s.SetUp(); err != nil {
		return errors.Join(err, s.TearDown())
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	steps := s.Inside(self, "steps")
	steps.Stdout, steps.Stderr = os.Stdout, os.Stderr
	steps.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err = steps.Start(); err == nil {
		undo := context.AfterFunc(ctx, func() { _ = steps.Process.Signal(syscall.SIGTERM) })
		err = steps.Wait()
		undo()
	}
	if err != nil {
		s.ShowLogs()
	}
	if keep {
		return errors.Join(err, s.PrintKept())
	}
	if err := errors.Join(err, s.TearDown()); err != nil {
		return err
	}
	// The kernel frees programs and maps a little after their last user.
	if err := stage.Eventually(10*time.Second, func() error {
		if diff := stage.Compare(before, s.OuterInventory(), nil); diff != "" {
			return fmt.Errorf("stop FAILED the machine is not as before: %s", diff)
		}
		return nil
	}); err != nil {
		return err
	}
	fmt.Println("demo: stop ok left=0")
	return nil
}
