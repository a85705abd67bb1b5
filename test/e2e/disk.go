package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"hearth/test/stage"
)

// disk fills the second node's disk from inside an environment, first with bytes,
// then with files. The agent stalls what writes before the kubelet evicts pods,
// which it would not choose by who wrote. That this kubelet does evict, a pod
// shows at the end.
func (w *world) disk(ctx context.Context) (f facts, err error) {
	node, err := w.second()
	if err != nil {
		return f, err
	}
	d, err := w.diskOf(ctx, node)
	if err != nil {
		return f, err
	}
	for _, step := range []func(context.Context, *facts) error{d.stallsWriter, d.stallsMaker, d.evictsPods} {
		if err := step(ctx, &f); err != nil {
			return f, err
		}
	}
	if err := w.poolsFull(ctx, 60*time.Second); err != nil {
		return f, err
	}
	left, err := w.nothingLeft(ctx)
	f.add("left", left)
	return f, err
}

// roomyClass has memory for the kernel's part in half a million new files: with
// less, its processes are killed first.
const roomyClass = `
apiVersion: hearth.run/v1alpha1
kind: EnvironmentClass
metadata: {name: roomy}
spec:
  image: hearth.local/busybox:1
  resources: {cpu: "1", memory: 1Gi, pids: 64}
  warm: {slots: 1}
`

const (
	// writer takes bytes of its root's disk as fast as it can.
	writer = "cat /dev/zero > /fill"
	// maker takes inodes as fast as a shell can.
	maker = "mkdir /files && cd /files && i=0 && while :; do : > $i; i=$((i+1)); done"
	// sipper writes a few bytes each second.
	sipper = "(while true; do date > /workspace/tick; sleep 1; done) >/dev/null 2>&1 &"
)

// stallsWriter fills the disk with bytes. Others on the node go on, nothing is
// claimed there or captured, and with room the writer goes on, until it is
// released.
func (d *nodeDisk) stallsWriter(ctx context.Context, f *facts) (err error) {
	// What is left is written in seconds.
	const room = 0.05
	if err := d.leave(d.marks.bytes + room); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.forget()) }()
	if err := d.low(ctx, "bytes", 0); err != nil {
		return err
	}
	here, err := d.w.claimOn(d.node, class, 2)
	if err != nil {
		return err
	}
	filler, neighbour := here[0], here[1]
	if _, err := d.w.ctl().Sh(neighbour, sipper); err != nil {
		return err
	}
	end, err := d.w.busy(filler, writer)
	if err != nil {
		return err
	}
	defer end()
	least, err := d.stalled(ctx, f, "", filler, 2*evictionPeriod+5*time.Second, neighbour)
	if err != nil {
		return err
	}
	if least.bytes < d.marks.bytes {
		return fmt.Errorf("%s %% of the disk were available when the writer had been stalled", percent(least.bytes))
	}
	f.add("available_percent", percent(least.bytes))
	if err := d.low(ctx, "bytes", 1); err != nil {
		return err
	}
	if err := d.refusesMore(ctx, neighbour); err != nil {
		return err
	}
	f.add("claims_there", "refused")
	f.add("snapshot_there", "refused")
	if err := d.goesOn(ctx, filler); err != nil {
		return err
	}
	f.add("with_room", "went-on")
	return d.roomAgain(ctx, f, filler, neighbour)
}

// roomAgain releases the writer: what was refused is answered.
func (d *nodeDisk) roomAgain(ctx context.Context, f *facts, filler, neighbour stage.Claimed) error {
	begun := time.Now()
	if err := d.w.releaseAll(d.w.ctl(), filler); err != nil {
		return err
	}
	if err := eventually(ctx, 30*time.Second, func() error { return d.low(ctx, "bytes", 0) }); err != nil {
		return err
	}
	f.ms("room_ms", time.Since(begun))
	again, err := d.w.claimOn(d.node, class, 1)
	if err != nil {
		return fmt.Errorf("claims with room again: %w", err)
	}
	f.add("claims_again", "answered")
	if out, err := d.w.ctl().Run("snapshot", "create", neighbour.ID()); err != nil {
		return fmt.Errorf("a snapshot with room again: %w: %s", err, out)
	}
	f.add("snapshot_again", "answered")
	return d.w.releaseAll(d.w.ctl(), again[0], neighbour)
}

// stallsMaker fills the disk with empty files.
func (d *nodeDisk) stallsMaker(ctx context.Context, f *facts) (err error) {
	if err := errors.Join(d.w.apply(roomyClass), d.w.poolsFull(ctx, 60*time.Second)); err != nil {
		return err
	}
	defer func() {
		_, again := d.w.kubectl("delete", "envclass/roomy")
		err = errors.Join(err, again)
	}()
	here, err := d.w.claimOn(d.node, "roomy", 1)
	if err != nil {
		return err
	}
	end, err := d.w.busy(here[0], maker)
	if err != nil {
		return err
	}
	defer end()
	least, err := d.stalled(ctx, f, "inodes_", here[0], evictionPeriod+5*time.Second)
	if err != nil {
		return err
	}
	if least.inodes < d.marks.inodes {
		return fmt.Errorf("%s %% of the inodes were available when their maker had been stalled", percent(least.inodes))
	}
	f.add("inodes_available_percent", percent(least.inodes))
	if err := errors.Join(d.low(ctx, "inodes", 1), d.low(ctx, "bytes", 0)); err != nil {
		return err
	}
	begun := time.Now()
	if err := d.w.releaseAll(d.w.ctl(), here...); err != nil {
		return err
	}
	if err := eventually(ctx, 60*time.Second, func() error { return d.low(ctx, "inodes", 0) }); err != nil {
		return err
	}
	f.ms("inodes_room_ms", time.Since(begun))
	return nil
}

// busy runs a script that does not end by itself in an environment. Frozen, it
// does not answer: the function that it returns goes away without it.
func (w *world) busy(c stage.Claimed, script string) (end func(), err error) {
	cmd := w.ctl().Command("exec", c.ID(), "--", "sh", "-c", script)
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }, nil
}

// stalled waits until an environment is, and then looks on for a while: neither
// pods nor neighbours may suffer. It returns the least that was available.
func (d *nodeDisk) stalled(ctx context.Context, f *facts, prefix string, c stage.Claimed, look time.Duration, neighbours ...stage.Claimed) (share, error) {
	stop := d.watch()
	defer func() { _, _ = stop() }()
	begun := time.Now()
	if err := eventually(ctx, 120*time.Second, func() error { return d.w.isStalled(c) }); err != nil {
		return share{}, err
	}
	f.ms(prefix+"stalled_ms", time.Since(begun))
	kubelet, ticks, slowest := share{1, 1}, map[string]bool{}, time.Duration(0)
	for end := time.Now().Add(look); time.Now().Before(end); {
		seen, err := d.seen(ctx)
		if err = errors.Join(err, d.calm(ctx), d.w.isStalled(c)); err != nil {
			return share{}, err
		}
		kubelet = kubelet.least(seen)
		for _, n := range neighbours {
			begun := time.Now()
			tick, err := d.w.ctl().Sh(n, "cat /workspace/tick")
			if err != nil {
				return share{}, fmt.Errorf("a neighbour suffers: %w", err)
			}
			ticks[n.ID()+tick], slowest = true, max(slowest, time.Since(begun))
		}
		if err := wait(ctx, 500*time.Millisecond); err != nil {
			return share{}, err
		}
	}
	if kubelet.bytes < d.marks.bytes || kubelet.inodes < d.marks.inodes {
		return share{}, fmt.Errorf("the kubelet saw %s %% of the bytes and %s %% of the inodes available", percent(kubelet.bytes), percent(kubelet.inodes))
	}
	if want := len(neighbours) * int(look/(2*time.Second)); len(ticks) < want {
		return share{}, fmt.Errorf("neighbours that write each second wrote %d times in %s", len(ticks), look)
	}
	f.add(prefix+"kubelet_percent", percent(kubelet.bytes)+"/"+percent(kubelet.inodes))
	if len(neighbours) > 0 {
		f.add("neighbour_writes", len(ticks))
		f.ms("neighbour_slowest_ms", slowest)
	}
	f.add(prefix+"pressure", "none")
	return stop()
}

// isStalled reports whether users see that an environment waits for room.
func (w *world) isStalled(c stage.Claimed) error {
	var e struct{ Phase, Message string }
	if err := w.ctl().Decode(&e, "get", c.ID()); err != nil {
		return err
	}
	if e.Phase != "PHASE_STALLED" || !strings.Contains(e.Message, "disk") {
		return fmt.Errorf("environment %s is %s: %s", c.ID(), e.Phase, e.Message)
	}
	return nil
}

// refusesMore tries what would take more of the disk.
func (d *nodeDisk) refusesMore(ctx context.Context, neighbour stage.Claimed) (err error) {
	if _, stderr, code := d.w.ctl().Try("snapshot", "create", neighbour.ID()); code == 0 || !strings.Contains(stderr, "disk") {
		return fmt.Errorf("a snapshot on the full disk was answered %d: %s", code, stderr)
	}
	if err := d.w.noClaimsOn(ctx, d.node); err != nil {
		return err
	}
	// With nowhere else to go the caller is told why.
	for _, n := range d.w.cluster.Nodes() {
		if n == d.node {
			continue
		}
		if _, err := d.w.kubectl("cordon", n); err != nil {
			return err
		}
		defer func() {
			_, again := d.w.kubectl("uncordon", n)
			err = errors.Join(err, again)
		}()
	}
	return eventually(ctx, short, func() error {
		c, claimErr := d.w.claim(d.w.ctl(), class)
		if claimErr == nil {
			return errors.Join(errors.New("a claim was answered though no node has room"), d.w.releaseAll(d.w.ctl(), c))
		}
		if !strings.Contains(claimErr.Error(), "exit 3") || !strings.Contains(claimErr.Error(), "disk") {
			return fmt.Errorf("a claim with no room anywhere was refused: %w", claimErr)
		}
		return nil
	})
}

// goesOn gives some room back. The writer goes on by itself, until it is used up.
func (d *nodeDisk) goesOn(ctx context.Context, c stage.Claimed) error {
	before, err := d.metric(ctx, "hearth_disk_stalls_total", `class="`+class+`"`)
	if err != nil {
		return err
	}
	now, err := d.now()
	if err != nil {
		return err
	}
	if err := d.leave(now.bytes + 0.04); err != nil {
		return err
	}
	return eventually(ctx, 60*time.Second, func() error {
		after, err := d.metric(ctx, "hearth_disk_stalls_total", `class="`+class+`"`)
		if err == nil && after <= before {
			err = fmt.Errorf("it was stalled %v times before there was room, %v after", before, after)
		}
		return errors.Join(err, d.w.isStalled(c))
	})
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
