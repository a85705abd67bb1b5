package ctrd

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"golang.org/x/sys/unix"

	"hearth/internal/env"
)

func TestNodeTwoInstancesInOneNamespaceSeeOnlyTheirOwnSlots(t *testing.T) {
	n := startNode(t)
	ctx := t.Context()
	other, err := Open(ctx, Config{Instance: "other", Namespace: n.cfg.Instance, Address: n.r.cfg.Address}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	running, prepared := n.run(), n.prepare()
	prepared.free()
	// A lease and a snapshot can each be what is left of a slot.
	leaseless := n.prepare()
	leaseless.free()
	if err := n.r.snapshots().Remove(n.r.namespaced(ctx), string(prepared.spec.Slot)); err != nil {
		t.Fatal(err)
	}
	ns := n.r.namespaced(ctx)
	if err := n.r.client.LeasesService().AddResource(ns, leases.Lease{ID: string(running.spec.Slot)},
		leases.Resource{ID: string(leaseless.spec.Slot), Type: "snapshots/overlayfs"}); err != nil {
		t.Fatal(err)
	}
	if err := n.r.client.LeasesService().Delete(ns, leases.Lease{ID: string(leaseless.spec.Slot)}); err != nil {
		t.Fatal(err)
	}
	if list, err := other.List(ctx); err != nil || len(list) != 0 {
		t.Errorf("the other instance lists %+v, %v", list, err)
	}
	list, err := n.r.List(ctx)
	seen := map[env.SlotID]Status{}
	for _, c := range list {
		seen[c.Slot] = c.Status
	}
	if err != nil || len(list) != 3 || seen[running.spec.Slot] != StatusRunning || seen[prepared.spec.Slot] != StatusNone || seen[leaseless.spec.Slot] != StatusNone {
		t.Errorf("the owner lists %+v, %v", list, err)
	}
	if err := errors.Join(n.r.Delete(ctx, leaseless.spec.Slot), leaseless.g.Remove(ctx)); err != nil {
		t.Error(err)
	}
	n.release(prepared)
	n.release(running)
}

func TestNodeACallersLabelDoesNotHideASlot(t *testing.T) {
	n := startNode(t)
	m := n.prepare()
	m.spec.Labels = map[string]string{instanceLabel: "other", "class": "c"}
	n.create(m)
	if list, err := n.r.List(t.Context()); err != nil || len(list) != 1 || list[0].PID != m.pid || list[0].Labels["class"] != "c" {
		t.Errorf("list = %+v, %v", list, err)
	}
	n.release(m)
}

// A shim ends with its last container, and when several are deleted at once it may do
// so under the hands of one deletion. Here it is killed there.
func TestNodeAShimThatEndsUnderADeletionHindersNone(t *testing.T) {
	n := startNode(t)
	for i := range 8 {
		m := n.run()
		if err := m.g.Kill(t.Context()); err != nil {
			t.Error(err)
		}
		shim := shimOf(t, m.spec.Slot)
		deleted := make(chan error, 1)
		go func() { deleted <- n.r.Delete(t.Context(), m.spec.Slot) }()
		time.Sleep(time.Duration(i) * 4 * time.Millisecond)
		if err := unix.Kill(shim, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			t.Error(err)
		}
		if err := <-deleted; err != nil {
			t.Errorf("deleted %d ms before its shim's end: %v", i*4, err)
		}
		n.release(m)
	}
	if left, _ := filepath.Glob(filepath.Join(n.r.cfg.runcRoot(), "*", "s-*")); len(left) > 0 {
		t.Errorf("the runtime remembers %v", left)
	}
}

// shimOf is the process that was started for the slot.
func shimOf(t *testing.T, slot env.SlotID) int {
	t.Helper()
	for _, p := range processesNaming("\x00-id\x00" + string(slot) + "\x00") {
		var pid int
		if _, err := fmt.Sscanf(p, "/proc/%d/", &pid); err == nil {
			return pid
		}
	}
	t.Fatalf("no shim of slot %s", slot)
	return 0
}
