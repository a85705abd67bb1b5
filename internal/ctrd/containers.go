package ctrd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"

	"hearth/internal/env"
)

// Create makes the slot's container and its task: the init process exists in
// its namespaces and cgroup and waits for Start. Prepare came before. After an
// error the caller calls Delete.
func (r *Runtime) Create(ctx context.Context, s Spec) (pid int, err error) {
	if err := s.check(); err != nil {
		return 0, err
	}
	op := fmt.Sprintf("create container of slot %s", s.Slot)
	host := hostLimits()
	if err := host.refuse(s.Class.Resources); err != nil {
		return 0, fmt.Errorf("%s: %w", op, err)
	}
	program, err := r.program(ctx, s.Class.Runtime)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", op, err)
	}
	ctx, err = r.leased(r.namespaced(ctx), s.Slot)
	if err != nil {
		return 0, r.fail(op, err)
	}
	mounts, err := r.snapshots().Mounts(ctx, string(s.Slot))
	if err != nil {
		return 0, r.fail(op, err)
	}
	leader, made := r.shims.join(s.Slot, nameOf(s.Class.Runtime))
	defer func() { made(err == nil) }()
	s.shim = leader
	oci := ociSpec(s, host)
	labels := maps.Clone(s.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	maps.Copy(labels, r.instanceLabels())
	labels[labelShim], labels[labelRuntime] = string(leader), nameOf(s.Class.Runtime)
	c, err := r.client.NewContainer(ctx, string(s.Slot),
		client.WithSpec(&oci),
		client.WithContainerLabels(labels),
		client.WithRuntime(runtimeName, &options.Options{BinaryName: program, Root: r.cfg.runcRoot(), SystemdCgroup: false}))
	if err != nil {
		return 0, r.fail(op, err)
	}
	// The mounts are given here and not by the container's snapshot key, so
	// that our overlay options hold. The slot's lease holds the snapshot.
	task, err := c.NewTask(ctx, cio.NullIO, client.WithRootFS(withOverlayOptions(mounts)))
	if err != nil {
		r.found.doubt(nameOf(s.Class.Runtime))
		return 0, r.fail(op, err)
	}
	return int(task.Pid()), nil
}

// Start lets the slot's init process run.
func (r *Runtime) Start(ctx context.Context, slot env.SlotID) error {
	_, err := r.client.TaskService().Start(r.namespaced(ctx), &tasksapi.StartRequest{ContainerID: string(slot)})
	return r.fail("start slot "+string(slot), errgrpc.ToNative(err))
}

// Delete removes everything that containerd has of the slot: task, container,
// root file system, lease. It may be called at any stage and repeated. Kill the
// slot's cgroup before: containerd's own kill is the slower way.
func (r *Runtime) Delete(ctx context.Context, slot env.SlotID) error {
	ctx = r.namespaced(ctx)
	op := "delete slot " + string(slot)
	if err := r.shims.leave(ctx, slot); err != nil {
		return r.fail(op, err)
	}
	if err := r.deleteContainer(ctx, slot); err != nil {
		return r.fail(op, err)
	}
	if err := r.removeBundle(ctx, slot); err != nil {
		return r.fail(op+": remove what its shim left", err)
	}
	if err := r.emptyRootfs(ctx, slot); err != nil {
		return r.fail(op+": remove what it wrote", err)
	}
	if err := r.snapshots().Remove(ctx, string(slot)); err != nil && !errdefs.IsNotFound(err) {
		return r.fail(op+": remove root file system", err)
	}
	// containerd removes a snapshot's files when it collects garbage, which a
	// synchronous deletion waits for: after Delete the disk is free.
	lease := leases.Lease{ID: string(slot)}
	if err := r.client.LeasesService().Delete(ctx, lease, leases.SynchronousDelete); err != nil && !errdefs.IsNotFound(err) {
		return r.fail(op+": delete lease", err)
	}
	return nil
}

// A shim ends with its last container, also under the hands of whoever deletes
// another one of it at that moment ("ttrpc: closed"): a moment later containerd
// knows that both are gone.
const (
	deleteTries = 6
	deletePause = 30 * time.Millisecond // doubled each time
)

func (r *Runtime) deleteContainer(ctx context.Context, slot env.SlotID) (err error) {
	for try := range deleteTries {
		if err = r.tryDeleteContainer(ctx, slot); err == nil || errdefs.IsUnavailable(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(deletePause << try):
		}
	}
	return err
}

func (r *Runtime) tryDeleteContainer(ctx context.Context, slot env.SlotID) error {
	c, err := r.client.LoadContainer(ctx, string(slot))
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	task, err := c.Task(ctx, nil)
	if err == nil {
		_, err = task.Delete(ctx, client.WithProcessKill)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("delete task: %w", err)
	}
	if err := c.Delete(ctx); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("delete container: %w", err)
	}
	return nil
}

// List returns every container of this instance and, as orphans without labels,
// every lease and snapshot of it that has no container: Delete takes them all.
func (r *Runtime) List(ctx context.Context) ([]Container, error) {
	ctx = r.namespaced(ctx)
	records, err := r.client.ContainerService().List(ctx, r.ours())
	if err != nil {
		return nil, r.fail("list containers", err)
	}
	tasks, err := r.tasks(ctx)
	if err != nil {
		return nil, r.fail("list tasks", err)
	}
	var out []Container
	seen := map[env.SlotID]bool{}
	for _, rec := range records {
		slot, err := env.ParseSlotID(rec.ID)
		if err != nil {
			continue // labelled by hand
		}
		c := Container{Slot: slot, Status: StatusNone, Labels: rec.Labels}
		if t := tasks[rec.ID]; t != nil {
			c.PID, c.Status = int(t.Pid), statusOf(t.Status)
		}
		seen[slot] = true
		out = append(out, c)
	}
	orphans, err := r.orphans(ctx, seen)
	return append(out, orphans...), err
}

func (r *Runtime) tasks(ctx context.Context) (map[string]*tasktypes.Process, error) {
	resp, err := r.client.TaskService().List(ctx, &tasksapi.ListTasksRequest{})
	if err != nil {
		return nil, errgrpc.ToNative(err)
	}
	byID := map[string]*tasktypes.Process{}
	for _, t := range resp.Tasks {
		byID[t.ID] = t
	}
	return byID, nil
}

func (r *Runtime) orphans(ctx context.Context, seen map[env.SlotID]bool) ([]Container, error) {
	var out []Container
	add := func(id string) {
		if slot, err := env.ParseSlotID(id); err == nil && !seen[slot] {
			seen[slot] = true
			out = append(out, Container{Slot: slot, Status: StatusNone})
		}
	}
	held, err := r.client.LeasesService().List(ctx, r.ours())
	if err != nil {
		return nil, r.fail("list leases", err)
	}
	for _, l := range held {
		add(l.ID)
	}
	err = r.snapshots().Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		add(i.Name)
		return nil
	}, r.ours())
	return out, r.fail("list snapshots", err)
}

var statuses = map[tasktypes.Status]Status{
	tasktypes.Status_CREATED: StatusCreated,
	tasktypes.Status_RUNNING: StatusRunning,
	tasktypes.Status_STOPPED: StatusStopped,
	tasktypes.Status_PAUSED:  StatusPaused,
	tasktypes.Status_PAUSING: StatusPaused,
}

func statusOf(s tasktypes.Status) Status {
	if known, ok := statuses[s]; ok {
		return known
	}
	return StatusUnknown
}

// check refuses a spec that would share something with the host.
func (s Spec) check() error {
	var errs []error
	missing := func(what, value string) {
		if value == "" {
			errs = append(errs, fmt.Errorf("%w: container of slot %s has no %s", env.ErrInvalid, s.Slot, what))
		}
	}
	if _, err := env.ParseSlotID(string(s.Slot)); err != nil {
		errs = append(errs, err)
	}
	missing("user namespace", s.UserNS)
	missing("network namespace", s.NetNS)
	missing("cgroup path", s.CgroupsPath)
	missing("init", s.InitPath)
	missing("hostname", s.Hostname)
	if s.IDs.Base == 0 || s.IDs.Size == 0 {
		errs = append(errs, fmt.Errorf("%w: container of slot %s: id range %d+%d maps root inside to root outside", env.ErrInvalid, s.Slot, s.IDs.Base, s.IDs.Size))
	}
	return errors.Join(errs...)
}
