package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"time"

	"hearth/internal/cgroups"
	"hearth/internal/ctrd"
	"hearth/internal/detect"
	"hearth/internal/disk"
	"hearth/internal/env"
	"hearth/internal/guest"
	"hearth/internal/netpol"
	"hearth/internal/obs"
	"hearth/internal/rpc/nodeapi"
	"hearth/internal/rpc/pki"
	"hearth/internal/snapshot"
	"hearth/internal/warm"
)

// The domain packages do not know each other. Each adapter here says in the
// words of one what another does; none decides anything.

type runtimeAdapter struct {
	runtime  *ctrd.Runtime
	initPath string
	shims    *shims
}

func (a runtimeAdapter) Image(ctx context.Context, ref string) (warm.Image, error) {
	img, err := a.runtime.Image(ctx, ref)
	return warm.Image{Ref: img.Ref, Digest: img.Digest}, err
}

// image finds an image again. A reference that names another image than before
// is refused: what lies on the one must not be said to lie on the other.
func (a runtimeAdapter) image(ctx context.Context, want warm.Image) (ctrd.Image, error) {
	img, err := a.runtime.Image(ctx, want.Ref)
	if err == nil && img.Digest != want.Digest {
		err = fmt.Errorf("%w: image %s became %s while a slot was made from %s; try again", env.ErrUnavailable, want.Ref, img.Digest, want.Digest)
	}
	return img, err
}

func (a runtimeAdapter) Prepare(ctx context.Context, slot env.SlotID, image warm.Image, ids env.IDRange) (string, error) {
	img, err := a.image(ctx, image)
	if err != nil {
		return "", err
	}
	rootfs, err := a.runtime.Prepare(ctx, slot, img, ids)
	return rootfs.Upper, err
}

func (a runtimeAdapter) Create(ctx context.Context, c warm.Container) (int, error) {
	img, err := a.image(ctx, c.Image)
	if err != nil {
		return 0, err
	}
	return a.runtime.Create(ctx, ctrd.Spec{
		Slot: c.Slot, Image: img, Class: *c.Class, IDs: c.IDs, UserNS: c.UserNS, NetNS: c.NetNS,
		CgroupsPath: c.Cgroup, InitPath: a.initPath, Hostname: string(c.Slot)[:16],
		Mounts: []ctrd.Mount{{Source: c.Workspace, Target: "/workspace"}},
		Labels: map[string]string{"hearth.run/class": c.Class.Name, labelInit: filepath.Base(a.initPath)},
	})
}

func (a runtimeAdapter) Start(ctx context.Context, slot env.SlotID) error {
	return a.runtime.Start(ctx, slot)
}

func (a runtimeAdapter) Delete(ctx context.Context, slot env.SlotID) error {
	return a.shims.delete(ctx, a.runtime, slot)
}

func (a runtimeAdapter) List(ctx context.Context) (map[env.SlotID]int, error) {
	a.shims.look()
	list, err := a.runtime.List(ctx)
	out := make(map[env.SlotID]int, len(list))
	for _, slot := range a.shims.slots() {
		if !a.runtime.ShimServes(slot) {
			out[slot] = 0 // of no container, unless the list has one
		}
	}
	for _, c := range list {
		out[c.Slot] = 0
		if c.Status == ctrd.StatusRunning {
			out[c.Slot] = c.PID
		}
	}
	return out, err
}

type cgroupsAdapter struct{ tree *cgroups.Tree }

func (a cgroupsAdapter) Create(slot env.SlotID, limits env.Resources) (warm.Cgroup, error) {
	g, err := a.tree.Create(slot)
	if err != nil {
		return nil, err // not g: a nil *Group is no nil Cgroup
	}
	if err := g.SetLimits(limits); err != nil {
		return nil, errors.Join(err, g.Remove(context.Background()))
	}
	return g, nil
}

func (a cgroupsAdapter) Adopt(slot env.SlotID) (warm.Cgroup, error) {
	g, err := a.tree.Adopt(slot)
	if err != nil {
		return nil, err
	}
	return g, nil
}

func (a cgroupsAdapter) List() ([]env.SlotID, error) { return a.tree.List() }

type islandsAdapter struct{ *netpol.Manager }

func (a islandsAdapter) Create(ctx context.Context, slot env.SlotID, ids env.IDRange) (warm.Island, error) {
	i, err := a.Manager.Create(ctx, slot, ids)
	if err != nil {
		return warm.Island{}, err
	}
	return warm.Island{
		IslandInfo: warm.IslandInfo{NetID: i.NetID, Address: i.Address},
		UserNS:     i.UserNS(),
		NetNS:      fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), i.NetNSFile().Fd()),
		Held: func() bool {
			_, err := os.Readlink(i.UserNS()) // not of a process that has ended
			return err == nil
		},
		Connect: func(ctx context.Context) ([]byte, error) {
			if err := a.Connect(ctx, slot); err != nil {
				return nil, err
			}
			record, err := json.Marshal(i.Record())
			if err != nil {
				return nil, fmt.Errorf("encode island: %w", err)
			}
			return record, nil
		},
		ReleaseHolder: i.ReleaseHolder,
	}, nil
}

func (a islandsAdapter) Adopt(_ context.Context, slot env.SlotID, record []byte) (warm.IslandInfo, error) {
	if len(record) == 0 {
		return warm.IslandInfo{}, fmt.Errorf("%w: slot %s has no island", env.ErrNotFound, slot)
	}
	var rec netpol.IslandRecord
	if err := json.Unmarshal(record, &rec); err != nil {
		return warm.IslandInfo{}, fmt.Errorf("%w: island of slot %s: %v", env.ErrCorrupt, slot, err)
	}
	if err := a.Manager.Adopt(slot, rec); err != nil {
		return warm.IslandInfo{}, err
	}
	return warm.IslandInfo{NetID: rec.NetID, Address: rec.Address, Record: record}, nil
}

func (a islandsAdapter) Warm(class env.EgressPolicy, claim *env.EgressPolicy) error {
	if claim == nil {
		return a.Prepare(class)
	}
	return a.Prepare(class, *claim)
}

type guestsAdapter struct{}

func (guestsAdapter) Dial(slot env.SlotID, init warm.Init) (warm.Guest, error) {
	target := guest.Target{PID: init.PID()}
	return guest.NewWithDial(func(ctx context.Context) (guest.Conn, error) {
		conn, err := target.Dial(ctx)
		if err != nil {
			return nil, err
		}
		// If init lives now, its pid meant it while the connection was made.
		if !init.Alive() {
			conn.Close()
			return nil, fmt.Errorf("%w: init of slot %s has ended", env.ErrState, slot)
		}
		return conn, nil
	}), nil
}

type detectorAdapter struct{ *detect.Engine }

func (a detectorAdapter) Bind(slot env.SlotID, netID env.NetID, cgroup uint64, class *env.Class) error {
	return a.Engine.Bind(detect.Subject{
		Slot: slot, NetID: netID, CgroupID: cgroup, Class: class.Name, Policy: class.Detection,
	})
}

type snapshotsAdapter struct {
	store   *snapshot.Store
	fetcher *nodeapi.Fetcher
	metrics *ownMetrics
}

// snapshots is the adapter of the agent's store. Fetching waits for nothing: by
// the time that anybody claims, the agent serves and has a certificate.
func (a *agent) snapshots() snapshotsAdapter {
	return snapshotsAdapter{a.store, nodeapi.NewFetcher(a.cfg.Instance, a.cfg.Node, func() *pki.Source {
		if a.api == nil || a.api.front == nil {
			return nil
		}
		return a.api.front.source.Load()
	}), a.metrics}
}

// Names of an environment's trees in every snapshot.
const (
	rootUpper     = "upper"
	rootWorkspace = "workspace"
)

// labelClass is the snapshot's label with the environment's class.
const labelClass = "class"

// identityFiles are of one slot and are never captured. The identity tmpfs on
// /run/hearth is no part of the upper layer anyway. What a machine is known by
// for longer (/etc/machine-id, SSH host keys) goes with the environment, and is
// renewed where it is forked.
var identityFiles = []string{"etc/hostname"}

func (a snapshotsAdapter) Capture(ctx context.Context, id env.ID, tenant, class, base string, files warm.Files, f warm.Freezer) (env.Snapshot, error) {
	info, err := a.store.Capture(ctx, snapshot.Source{
		Lineage: snapshot.Lineage(id), Tenant: tenant, IDs: files.IDs, Base: base,
		Labels: map[string]string{labelClass: class},
		Roots: []snapshot.Root{
			{Name: rootUpper, Path: files.Upper, Exclude: identityFiles},
			{Name: rootWorkspace, Path: files.Workspace},
		},
	}, f)
	s := snapshotOf(info)
	a.metrics.taken(s, err)
	return s, err
}

func (a snapshotsAdapter) Fetch(ctx context.Context, id env.SnapshotID, tenant string, from warm.FetchFrom) error {
	return a.fetcher.Fetch(ctx, id, from.Node, from.Address, func(r io.Reader) error {
		_, err := a.store.Import(ctx, snapshot.ID(id), tenant, r)
		return err
	})
}

func (a snapshotsAdapter) Export(ctx context.Context, id env.SnapshotID, w io.Writer) error {
	return a.store.Export(ctx, snapshot.ID(id), w)
}

func (a snapshotsAdapter) Restore(ctx context.Context, id env.SnapshotID, files warm.Files) error {
	_, err := a.store.Restore(ctx, snapshot.ID(id), map[string]string{
		rootUpper: files.Upper, rootWorkspace: files.Workspace,
	}, files.IDs)
	return err
}

func (a snapshotsAdapter) Fork(ctx context.Context, id env.SnapshotID, child env.ID, tenant string) error {
	_, err := a.store.Fork(ctx, snapshot.ID(id), snapshot.Lineage(child), tenant)
	return err
}

func (a snapshotsAdapter) Delete(lineage env.ID) error {
	return a.store.Delete(snapshot.Lineage(lineage))
}

func (a snapshotsAdapter) Get(id env.SnapshotID) (env.Snapshot, error) {
	info, err := a.store.Get(snapshot.ID(id))
	return snapshotOf(info), err
}

func (a snapshotsAdapter) List(lineage env.ID) ([]env.Snapshot, error) {
	lineages := []snapshot.Lineage{snapshot.Lineage(lineage)}
	if lineage == "" {
		var err error
		if lineages, err = a.store.Lineages(); err != nil {
			return nil, err
		}
	}
	var out []env.Snapshot
	for _, l := range lineages {
		infos, err := a.store.List(l)
		if errors.Is(err, env.ErrNotFound) && lineage == "" {
			continue // deleted meanwhile
		}
		if err != nil {
			return nil, err
		}
		for _, info := range infos {
			out = append(out, snapshotOf(info))
		}
	}
	return out, nil
}

func snapshotOf(i snapshot.Info) env.Snapshot {
	return env.Snapshot{
		ID: env.SnapshotID(i.ID), Parent: env.SnapshotID(i.Parent), Lineage: env.ID(i.Lineage),
		Tenant: i.Tenant, Class: i.Labels[labelClass], Base: i.Base, Time: i.Time,
		Stats: env.SnapshotStats{
			Files: uint64(i.Files), Bytes: uint64(i.Bytes), NewBytes: uint64(i.NewBytes),
			Freeze: i.FreezeTime, Took: i.Took, Redone: uint64(i.Redone),
		},
	}
}

// diskAdapter knows where a slot's files lie.
type diskAdapter struct {
	*disk.Guard
	quotas  disk.Quotas
	runtime *ctrd.Runtime
	roots   []string // one directory of each filesystem that has some
}

func (a diskAdapter) Bound(ctx context.Context, slot env.SlotID, ids env.IDRange, bytes int64, workspace string) error {
	rootfs, err := a.runtime.Rootfs(ctx, slot)
	if err != nil {
		return err
	}
	return a.quotas.Set(disk.ProjectOf(ids), bytes, rootfs.Upper, rootfs.Work, workspace)
}

func (a diskAdapter) Unbound(ids env.IDRange) error {
	return a.quotas.Clear(disk.ProjectOf(ids), a.roots...)
}

// classesOf completes the classes with the node's defaults.
func classesOf(list []env.Class, complete func(env.Resources) env.Resources) []*env.Class {
	out := make([]*env.Class, len(list))
	for i, c := range list {
		c.Env = maps.Clone(c.Env)
		c.Resources = complete(c.Resources)
		out[i] = &c
	}
	return out
}

// tracerAdapter tells of a claim as spans, one for each phase.
type tracerAdapter struct{ tracing *obs.Tracing }

func (t tracerAdapter) Claimed(ctx context.Context, class, served string, begun time.Time, phases []warm.PhaseTime) {
	if t.tracing == nil {
		return
	}
	told := make([]obs.Phase, len(phases))
	for i, p := range phases {
		told[i] = obs.Phase(p)
	}
	t.tracing.Told(ctx, "claim", begun, told, map[string]string{"class": class, "kind": served})
}
