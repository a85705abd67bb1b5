package node

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	hearthv1 "hearth/api/hearth/v1"
	"hearth/test/stage"
)

// shimOf is the process that keeps the environment's container: its init's parent.
func shimOf(t *testing.T, c stage.Claimed) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.Environment.PID))
	ok(t, err)
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	pid, err := strconv.Atoi(fields[1])
	ok(t, err)
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	ok(t, err)
	if filepath.Base(exe) != "containerd-shim-runc-v2" {
		t.Fatalf("the parent of init %d is %s", c.Environment.PID, exe)
	}
	return pid
}

func TestNodeSlotsShareShims(t *testing.T) {
	a := node(t)
	a.poolFull(t)
	if shims := a.shims(); len(shims) == 0 || len(shims) >= warm {
		t.Errorf("%d shims for %d slots", len(shims), warm)
	}
}

func TestNodeAShimsDeathEndsItsSlotsAndNoOthers(t *testing.T) {
	a := node(t)
	a.poolFull(t)
	// Of two claims of one pool, and so on, until two are in different shims.
	var all []stage.Claimed
	shims := map[int][]stage.Claimed{}
	for len(shims) < 2 && len(all) < 12 {
		c := a.claim(t, "web")
		all, shims[shimOf(t, c)] = append(all, c), append(shims[shimOf(t, c)], c)
	}
	if len(shims) < 2 {
		t.Fatalf("%d environments are in one shim", len(all))
	}
	dies := shimOf(t, all[0])
	ok(t, syscall.Kill(dies, syscall.SIGKILL))
	for _, c := range shims[dies] {
		eventually(t, 20*time.Second, func() error {
			if e := a.get(t, c.ID()); e.GetPhase() != hearthv1.Phase_PHASE_FAILED {
				return fmt.Errorf("environment %s of the dead shim is %s", c.ID(), e.GetPhase())
			}
			return nil
		})
	}
	for pid, list := range shims {
		for _, c := range list {
			if pid != dies {
				a.alive(t, c)
			}
		}
	}
	for _, c := range slices.Backward(all) {
		a.release(t, c)
	}
	a.poolFull(t)
}

// A shim that dies while environments of its own are still listed is succeeded by
// one with another name, which the sweep for lost shims must not take for one.
func TestNodeAShimThatSucceedsADeadOneIsNotTakenForALostOne(t *testing.T) {
	a := node(t)
	a.poolFull(t)
	failed := a.claim(t, "web")
	ok(t, syscall.Kill(shimOf(t, failed), syscall.SIGKILL))
	eventually(t, 20*time.Second, func() error {
		if e := a.get(t, failed.ID()); e.GetPhase() != hearthv1.Phase_PHASE_FAILED {
			return fmt.Errorf("the environment of the dead shim is %s", e.GetPhase())
		}
		return nil
	})
	a.poolFull(t)
	// Two in the successor; the one that it was started for goes.
	shims := map[int][]stage.Claimed{}
	var all []stage.Claimed
	for range warm {
		c := a.claim(t, "web")
		all, shims[shimOf(t, c)] = append(all, c), append(shims[shimOf(t, c)], c)
	}
	var stay []stage.Claimed
	for _, list := range shims {
		a.release(t, list[0])
		stay = append(stay, list[1:]...)
	}
	a.kill(t) // the next one sweeps as it starts
	a.up(t)
	for _, c := range stay {
		a.alive(t, c)
	}
	if len(stay) == 0 {
		t.Errorf("%d environments are in %d shims: nothing was shown", len(all), len(shims))
	}
	for _, c := range append(stay, failed) {
		a.release(t, c)
	}
}
