package netpol

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"hearth/bpf"
	"hearth/internal/env"
)

// The two ways to attach. Both outlive the agent.
const (
	attachTCX    = "tcx"    // links, pinned; Linux 6.6
	attachClsact = "clsact" // filters of a qdisc, held by the link itself
)

// A direction is one of the two places at the host's end. What the environment
// sends is ingress there.
type direction struct {
	name    string
	program func(*bpf.IslandObjects) *ebpf.Program
	tcx     ebpf.AttachType
	parent  uint32
}

func directions() []direction {
	return []direction{
		{"out", func(o *bpf.IslandObjects) *ebpf.Program { return o.IslandOut }, ebpf.AttachTCXIngress, netlink.HANDLE_MIN_INGRESS},
		{"in", func(o *bpf.IslandObjects) *ebpf.Program { return o.IslandIn }, ebpf.AttachTCXEgress, netlink.HANDLE_MIN_EGRESS},
	}
}

func pinPath(cfg Config, slot env.SlotID, d direction) string {
	return filepath.Join(linkDir(cfg), string(slot)+"-"+d.name)
}

// attach puts both programs at the host's end, first in the chain, pinned.
func attach(cfg Config, objs *bpf.IslandObjects, slot env.SlotID, ifindex int) (string, error) {
	if cfg.ForceClsact {
		return attachClsact, setFilters(objs, ifindex)
	}
	for _, d := range directions() {
		l, err := link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: d.program(objs), Attach: d.tcx, Anchor: link.Head()})
		if errors.Is(err, ebpf.ErrNotSupported) && d.name == "out" {
			return attachClsact, setFilters(objs, ifindex)
		}
		if err != nil {
			return "", fmt.Errorf("attach tcx %s to link %d: %w", d.name, ifindex, err)
		}
		if err := errors.Join(l.Pin(pinPath(cfg, slot, d)), l.Close()); err != nil {
			return "", fmt.Errorf("pin tcx %s of %s: %w", d.name, slot, err)
		}
	}
	return attachTCX, nil
}

// setFilters attaches by clsact, or replaces what is attached.
func setFilters(objs *bpf.IslandObjects, ifindex int) error {
	qdisc := &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT},
		QdiscType:  "clsact",
	}
	if err := netlink.QdiscAdd(qdisc); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add clsact to link %d: %w: %w", ifindex, &env.UnsupportedError{Feature: "tcx or clsact", Needs: "Linux 6.6, or the kernel module sch_ingress"}, err)
	}
	for _, d := range directions() {
		f := &netlink.BpfFilter{
			FilterAttrs:  netlink.FilterAttrs{LinkIndex: ifindex, Parent: d.parent, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: 1},
			Fd:           d.program(objs).FD(),
			Name:         "island_" + d.name,
			DirectAction: true,
		}
		if err := netlink.FilterReplace(f); err != nil {
			return fmt.Errorf("attach filter %s to link %d: %w", d.name, ifindex, err)
		}
	}
	return nil
}

// reattach puts this process's programs in place of the old ones, without a
// gap, and fails with env.ErrCorrupt if a wall is not where it must be.
func reattach(cfg Config, objs *bpf.IslandObjects, slot env.SlotID, rec IslandRecord) error {
	if rec.Attach == attachClsact {
		if err := filtered(rec.IfIndex); err != nil {
			return err
		}
		return setFilters(objs, rec.IfIndex)
	}
	for _, d := range directions() {
		path := pinPath(cfg, slot, d)
		l, err := link.LoadPinnedLink(path, nil)
		if err != nil {
			return fmt.Errorf("%w: open pinned link %s: %w", env.ErrCorrupt, path, err)
		}
		err = errors.Join(onLink(l, rec.IfIndex), l.Update(d.program(objs)), l.Close())
		if err != nil {
			return fmt.Errorf("%w: replace program of %s: %w", env.ErrCorrupt, path, err)
		}
	}
	return nil
}

// onLink checks that a pinned link is still attached to the island's.
func onLink(l link.Link, ifindex int) error {
	info, err := l.Info()
	if err != nil {
		return err
	}
	if tcx := info.TCX(); tcx == nil || int(tcx.Ifindex) != ifindex {
		return fmt.Errorf("not attached to link %d", ifindex)
	}
	return nil
}

// filtered checks that both filters are there.
func filtered(ifindex int) error {
	l, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		return fmt.Errorf("%w: find link %d: %w", env.ErrCorrupt, ifindex, err)
	}
	for _, d := range directions() {
		have, err := netlink.FilterList(l, d.parent)
		if err != nil {
			return fmt.Errorf("list filters of link %d: %w", ifindex, err)
		}
		found := false
		for _, f := range have {
			b, ok := f.(*netlink.BpfFilter)
			found = found || (ok && b.Name == "island_"+d.name)
		}
		if !found {
			return fmt.Errorf("%w: link %d has no filter island_%s", env.ErrCorrupt, ifindex, d.name)
		}
	}
	return nil
}

// unpin removes a slot's pins; the links go with their interface.
func unpin(cfg Config, slot env.SlotID) error {
	var faults []error
	for _, d := range directions() {
		if err := os.Remove(pinPath(cfg, slot, d)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			faults = append(faults, fmt.Errorf("unpin: %w", err))
		}
	}
	return errors.Join(faults...)
}
