package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// brief is a class of environments that pause and end by themselves.
const brief = "brief"

const briefManifests = `
apiVersion: hearth.run/v1alpha1
kind: EnvironmentClass
metadata: {name: ` + brief + `}
spec:
  image: hearth.local/busybox:1
  resources: {cpu: 250m, memory: 32Mi, pids: 64}
  warm: {slots: 1}
  lifetime: {maxTimeToLive: 1h, pauseWhenIdle: 5s}
---
apiVersion: hearth.run/v1alpha1
kind: Environment
metadata: {name: ` + brief + `, namespace: ` + team + `}
spec: {class: ` + brief + `, timeToLive: 30m, resources: {memory: 48Mi}}
`

// memoryLimit is what programs inside see, whatever the node's cgroups are.
const memoryLimit = "cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes"

// lifetimes has an environment of its object's own size, resizes it, lets it fall
// idle and wakes it, and shortens its life; one that was claimed through the API ends
// when its time is over.
func (w *world) lifetimes(ctx context.Context) (f facts, err error) {
	if err := w.apply(briefManifests); err != nil {
		return f, err
	}
	if _, err := w.kubectl("-n", team, "wait", "--for=condition=Ready", "env/"+brief, "--timeout=60s"); err != nil {
		return f, err
	}
	o, err := w.environment(ctx, team, brief)
	if err != nil {
		return f, err
	}
	id := field(o, "status", "id")
	if field(o, "status", "expiresAt") == "" {
		return f, errors.New("its status says no end")
	}
	if err := w.sized(ctx, id, "48Mi", 48<<20); err != nil {
		return f, err
	}
	begun := time.Now()
	if err := w.patch(brief, `{"spec":{"resources":{"memory":"64Mi"}}}`); err != nil {
		return f, err
	}
	if err := w.sized(ctx, id, "64Mi", 64<<20); err != nil {
		return f, err
	}
	f.ms("resize_ms", time.Since(begun))
	if err := w.idles(ctx, id, &f); err != nil {
		return f, err
	}
	begun = time.Now()
	if err := w.patch(brief, `{"spec":{"timeToLive":"1s"}}`); err != nil {
		return f, err
	}
	if err := w.over(ctx, brief); err != nil {
		return f, err
	}
	f.ms("shortened_ms", time.Since(begun))
	begun = time.Now()
	c, err := w.claim(w.ctl(), brief, "--ttl", "2s")
	if err != nil {
		return f, err
	}
	if err := w.over(ctx, c.ID()); err != nil {
		return f, err
	}
	f.ms("ttl_2s_ms", time.Since(begun))
	if _, _, code := w.ctl().Try("exec", c.ID(), "--", "true"); code == 0 {
		return f, errors.New("it still runs after its time to live")
	}
	_, err = w.kubectl("delete", "envclass/"+brief)
	return f, err
}

func (w *world) patch(name, patch string) error {
	_, err := w.kubectl("-n", team, "patch", "env/"+name, "--type=merge", "-p", patch)
	return err
}

// sized waits until the object's status and the programs inside agree on the memory.
func (w *world) sized(ctx context.Context, id, memory string, bytes int) error {
	return eventually(ctx, 15*time.Second, func() error {
		o, err := w.environment(ctx, team, brief)
		if err != nil {
			return err
		}
		if got := field(o, "status", "resources", "memory"); got != memory {
			return fmt.Errorf("its status says memory %q, want %s", got, memory)
		}
		out, err := w.ctl().Run("exec", id, "--", "sh", "-c", memoryLimit)
		if err == nil && strings.TrimSpace(out) != fmt.Sprint(bytes) {
			err = fmt.Errorf("programs inside see a memory limit of %q, want %d", out, bytes)
		}
		return err
	})
}

// idles waits until the environment has paused because it did nothing, and wakes it by
// using it.
func (w *world) idles(ctx context.Context, id string, f *facts) error {
	begun := time.Now()
	if err := eventually(ctx, 40*time.Second, func() error {
		o, err := w.environment(ctx, team, brief)
		if err == nil && (field(o, "status", "phase") != "paused" || field(o, "status", "reason") != "idle") {
			err = fmt.Errorf("after doing nothing it is %q (%s)", field(o, "status", "phase"), field(o, "status", "reason"))
		}
		return err
	}); err != nil {
		return err
	}
	f.ms("idle_ms", time.Since(begun))
	begun = time.Now()
	if out, err := w.ctl().Run("exec", id, "--", "echo", "awake"); err != nil || out != "awake\n" {
		return fmt.Errorf("a command in the idle environment printed %q: %w", out, err)
	}
	f.ms("wake_command_ms", time.Since(begun))
	return eventually(ctx, 10*time.Second, func() error {
		o, err := w.environment(ctx, team, brief)
		if err == nil && field(o, "status", "phase") != "running" {
			err = fmt.Errorf("after a command it is %q", field(o, "status", "phase"))
		}
		return err
	})
}

// over waits until an environment's time is over, and its object gone.
func (w *world) over(ctx context.Context, object string) error {
	return eventually(ctx, 20*time.Second, func() error {
		o, err := w.environment(ctx, team, object)
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err == nil {
			err = fmt.Errorf("environment %s is %q", object, field(o, "status", "phase"))
		}
		return err
	})
}
