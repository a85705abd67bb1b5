package ctrd

import (
	"errors"
	"log/slog"
	"testing"

	"github.com/containerd/containerd/v2/core/leases"

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
