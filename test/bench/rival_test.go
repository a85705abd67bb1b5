package bench

import (
	"context"
	"fmt"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/opencontainers/runtime-spec/specs-go"

	hearthv1 "hearth/api/hearth/v1"
)

// The rivals use the same containerd by a client that has been connected for a
// while, so that only the work itself is measured.

// BenchmarkContainerdResume is containerd's way to give a prepared container
// back its processor: the same container that a claim thaws, paused by
// containerd before.
func BenchmarkContainerdResume(b *testing.B) {
	ctx := context.Background()
	c, id := claimed(b, ctx)
	task, err := c.Task(ctx, nil)
	if err != nil {
		b.Fatal(err)
	}
	var all sample
	for b.Loop() {
		b.StopTimer()
		if err := task.Pause(ctx); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		begun := time.Now()
		if err := task.Resume(ctx); err != nil {
			b.Fatal(err)
		}
		all = append(all, time.Since(begun))
	}
	b.StopTimer()
	all.report(b)
	host.settle(b, id)
}

// BenchmarkContainerdCreateStart is a container made when it is asked for:
// snapshot, container, task, start. It waits for no readiness, has no link, no
// address, no egress policy and no identity: all of that would come on top.
func BenchmarkContainerdCreateStart(b *testing.B) {
	ctx := context.Background()
	like, id := claimed(b, ctx)
	rival, err := newRival(ctx, like)
	if err != nil {
		b.Fatal(err)
	}
	var all sample
	for i := 0; b.Loop(); i++ {
		name := fmt.Sprintf("rival-%d", i)
		b.StopTimer()
		rival.spec.Linux.CgroupsPath = filepath.Join("/", instance, name)
		b.StartTimer()
		begun := time.Now()
		err := rival.start(ctx, name)
		took := time.Since(begun)
		b.StopTimer()
		if err := rival.remove(ctx, name); err != nil {
			b.Fatal(err)
		}
		if err != nil {
			b.Fatal(err)
		}
		all = append(all, took)
		b.StartTimer()
	}
	b.StopTimer()
	all.report(b)
	host.settle(b, id)
}

// claimed is the running container of a new environment, and its id.
func claimed(b *testing.B, ctx context.Context) (client.Container, string) {
	b.Helper()
	resp, err := host.node.Claim(ctx, &hearthv1.NodeClaimRequest{Spec: spec(0), WarmOnly: true})
	if err != nil {
		b.Fatal(err)
	}
	c, err := host.containerd.LoadContainer(ctx, resp.GetEnvironment().GetSlot())
	if err != nil {
		b.Fatal(err)
	}
	return c, resp.GetEnvironment().GetId()
}

// rival makes containers like one of Hearth's.
type rival struct {
	image   client.Image
	runtime client.NewContainerOpts
	spec    *specs.Spec
}

func newRival(ctx context.Context, like client.Container) (*rival, error) {
	info, err := like.Info(ctx)
	if err != nil {
		return nil, err
	}
	r := &rival{runtime: client.WithRuntime(info.Runtime.Name, info.Runtime.Options)}
	if r.spec, err = like.Spec(ctx); err != nil {
		return nil, err
	}
	// The runtime makes both namespaces itself: the paths were those of a
	// process that lived only while the slot was made.
	for i, ns := range r.spec.Linux.Namespaces {
		if ns.Type == specs.UserNamespace || ns.Type == specs.NetworkNamespace {
			r.spec.Linux.Namespaces[i].Path = ""
		}
	}
	images, err := host.containerd.ListImages(ctx)
	if err == nil && len(images) == 0 {
		err = fmt.Errorf("containerd has no image")
	}
	if err == nil {
		r.image = images[0] // the stage imports one
	}
	return r, err
}

func (r *rival) start(ctx context.Context, name string) error {
	ids := r.spec.Linux.UIDMappings[0]
	c, err := host.containerd.NewContainer(ctx, name,
		client.WithSnapshotter("overlayfs"),
		client.WithNewSnapshot(name, r.image, client.WithRemapperLabels(0, ids.HostID, 0, ids.HostID, ids.Size)),
		client.WithSpec(r.spec), r.runtime)
	if err != nil {
		return err
	}
	task, err := c.NewTask(ctx, cio.NullIO)
	if err != nil {
		return err
	}
	return task.Start(ctx)
}

// remove ends what start made, as far as it came.
func (r *rival) remove(ctx context.Context, name string) error {
	c, err := host.containerd.LoadContainer(ctx, name)
	if err != nil {
		return err
	}
	if task, err := c.Task(ctx, nil); err == nil {
		ended, err := task.Wait(ctx)
		if err != nil {
			return err
		}
		if err := task.Kill(ctx, syscall.SIGKILL); err != nil {
			return err
		}
		<-ended
		if _, err := task.Delete(ctx); err != nil {
			return err
		}
	}
	return c.Delete(ctx, client.WithSnapshotCleanup)
}
