package ctrd

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"

	"hearth/internal/durable"
	"hearth/internal/env"
)

// instanceLabel marks our containers, leases and snapshots: another instance
// may have the same namespace.
const instanceLabel = "hearth.run/instance"

func (r *Runtime) instanceLabels() map[string]string {
	return map[string]string{instanceLabel: r.cfg.Instance}
}

// ours is containerd's filter for what has our label (pkg/filters).
func (r *Runtime) ours() string {
	return fmt.Sprintf("labels.%q==%q", instanceLabel, r.cfg.Instance)
}

// overlayOptions are added to every mount of ours. Snapshots read the writable
// layer: it must hold plain files, not references to lower ones.
var overlayOptions = []string{"redirect_dir=nofollow", "metacopy=off"}

// Prepare makes the slot's root file system from the image, idmapped to ids,
// and does not mount it. It is held by the slot's lease. Preparing a slot again
// returns what is there.
func (r *Runtime) Prepare(ctx context.Context, slot env.SlotID, img Image, ids env.IDRange) (Rootfs, error) {
	if _, err := env.ParseSlotID(string(slot)); err != nil {
		return Rootfs{}, err
	}
	if ids.Base == 0 || ids.Size == 0 {
		return Rootfs{}, fmt.Errorf("%w: prepare slot %s: id range %d+%d maps root inside to root outside", env.ErrInvalid, slot, ids.Base, ids.Size)
	}
	op := fmt.Sprintf("prepare root file system of slot %s from %q", slot, img.Ref)
	ctx, err := r.leased(r.namespaced(ctx), slot)
	if err != nil {
		return Rootfs{}, r.fail(op, err)
	}
	prepare := func() ([]mount.Mount, error) {
		return r.snapshots().Prepare(ctx, string(slot), img.chainID,
			client.WithRemapperLabels(0, ids.Base, 0, ids.Base, ids.Size),
			snapshots.WithLabels(r.instanceLabels()))
	}
	mounts, err := prepare()
	if errdefs.IsNotFound(err) { // its layers have gone since they were seen
		r.unpacked.Delete(img.Digest)
		if _, err := r.Image(ctx, img.Ref); err != nil {
			return Rootfs{}, err
		}
		mounts, err = prepare()
	}
	if errdefs.IsAlreadyExists(err) {
		mounts, err = r.snapshots().Mounts(ctx, string(slot))
	}
	if err != nil {
		return Rootfs{}, r.fail(op, err)
	}
	return parseOverlay(mounts)
}

// Rootfs finds the root file system that Prepare made for the slot.
func (r *Runtime) Rootfs(ctx context.Context, slot env.SlotID) (Rootfs, error) {
	mounts, err := r.snapshots().Mounts(r.namespaced(ctx), string(slot))
	if err != nil {
		return Rootfs{}, r.fail("find root file system of slot "+string(slot), err)
	}
	return parseOverlay(mounts)
}

// emptyRootfs removes what a slot has written, which is whatever it liked to write:
// millions of files, or directories below each other without end. containerd does
// that with a descriptor for each level, and while it removes a snapshot it makes
// no other. What has no overlay is containerd's to remove.
func (r *Runtime) emptyRootfs(ctx context.Context, slot env.SlotID) error {
	mounts, err := r.snapshots().Mounts(ctx, string(slot))
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	fs, err := parseOverlay(mounts)
	if err != nil {
		return nil //nolint:nilerr // a snapshotter of another kind
	}
	return durable.RemoveAll(ctx, fs.Upper)
}

func (r *Runtime) snapshots() snapshots.Snapshotter {
	return r.client.SnapshotService(r.cfg.Snapshotter)
}

// leased makes the slot's lease if need be and binds ctx to it: what is made
// under ctx is held until Delete.
func (r *Runtime) leased(ctx context.Context, slot env.SlotID) (context.Context, error) {
	_, err := r.client.LeasesService().Create(ctx, leases.WithID(string(slot)),
		leases.WithLabels(r.instanceLabels()))
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return nil, err
	}
	return leases.WithLease(ctx, string(slot)), nil
}

// parseOverlay reads the directories out of the snapshotter's mount.
func parseOverlay(mounts []mount.Mount) (Rootfs, error) {
	if len(mounts) != 1 || mounts[0].Type != "overlay" {
		return Rootfs{}, fmt.Errorf("%w: the snapshotter gives no single overlay mount (an image without layers?): %v", env.ErrInvalid, mounts)
	}
	var fs Rootfs
	for _, o := range mounts[0].Options {
		key, value, _ := strings.Cut(o, "=")
		switch key {
		case "upperdir":
			fs.Upper = value
		case "workdir":
			fs.Work = value
		case "lowerdir":
			fs.Lowers = strings.Split(value, ":")
		}
	}
	if fs.Upper == "" || fs.Work == "" || len(fs.Lowers) == 0 {
		return Rootfs{}, fmt.Errorf("%w: overlay mount %v lacks a directory", env.ErrInvalid, mounts[0].Options)
	}
	return fs, nil
}

// withOverlayOptions adds our options, in place of others for the same key.
func withOverlayOptions(mounts []mount.Mount) []mount.Mount {
	out := slices.Clone(mounts)
	for i, m := range out {
		if m.Type != "overlay" {
			continue
		}
		keep := slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool {
			return strings.HasPrefix(o, "redirect_dir=") || strings.HasPrefix(o, "metacopy=")
		})
		out[i].Options = append(keep, overlayOptions...)
	}
	return out
}

// Root is the host's directory where the snapshotter keeps what slots write.
func (r *Runtime) Root(ctx context.Context) (string, error) {
	op := "ask where snapshotter " + r.cfg.Snapshotter + " keeps its files"
	got, err := r.client.IntrospectionService().Plugins(ctx,
		fmt.Sprintf("type==%s,id==%s", plugins.SnapshotPlugin, r.cfg.Snapshotter))
	if err != nil {
		return "", r.fail(op, err)
	}
	for _, p := range got.Plugins {
		if root := p.Exports[plugins.SnapshotterRootDir]; root != "" {
			return root, nil
		}
	}
	return "", fmt.Errorf("%s: %w: containerd does not say", op, env.ErrUnsupported)
}
