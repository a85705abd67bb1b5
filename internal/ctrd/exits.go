package ctrd

import (
	"context"
	"time"

	eventsapi "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/typeurl/v2"

	"hearth/internal/env"
)

const (
	minBackoff = 100 * time.Millisecond
	maxBackoff = 5 * time.Second
)

// codeLost is an Exit's code when nobody saw the process end.
const codeLost = 255

// Exits tells of init processes that ended, also of those that ended while
// containerd was away. One may be told twice, and those of another instance in
// our namespace are told as well: events carry no labels. The channel is closed
// when ctx ends; who reads must go on reading until then.
func (r *Runtime) Exits(ctx context.Context) <-chan Exit {
	ch := make(chan Exit)
	go func() {
		defer close(ch)
		w := exitWatch{r: r, out: ch, running: map[env.SlotID]int{}}
		w.run(r.namespaced(ctx))
	}()
	return ch
}

type exitWatch struct {
	r       *Runtime
	out     chan<- Exit
	running map[env.SlotID]int // init processes that were seen alive
}

// run subscribes again, with back-off, whenever the stream breaks.
func (w *exitWatch) run(ctx context.Context) {
	backoff := minBackoff
	for ctx.Err() == nil {
		began := time.Now()
		err := w.watch(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > maxBackoff {
			backoff = minBackoff
		}
		w.r.log.Warn("containerd event stream ended, subscribing again", "err", err, "backoff", backoff)
		select {
		case <-ctx.Done():
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

// watch subscribes first and looks at the tasks then, so that no exit falls
// between.
func (w *exitWatch) watch(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ns := `namespace==` + w.r.cfg.Namespace
	evs, errs := w.r.client.Subscribe(ctx, ns+`,topic=="/tasks/exit"`, ns+`,topic=="/tasks/start"`)
	if err := w.reconcile(ctx); err != nil {
		return err
	}
	for {
		select {
		case e, ok := <-evs:
			if !ok {
				return <-errs
			}
			if err := w.handle(ctx, e); err != nil {
				return err
			}
		case err := <-errs:
			return err
		}
	}
}

// reconcile tells of processes that ended unseen.
func (w *exitWatch) reconcile(ctx context.Context) error {
	list, err := w.r.List(ctx)
	if err != nil {
		return err
	}
	alive := map[env.SlotID]bool{}
	for _, c := range list {
		switch c.Status {
		case StatusRunning, StatusPaused:
			alive[c.Slot] = true
			w.running[c.Slot] = c.PID
		case StatusStopped:
			w.running[c.Slot] = c.PID
		}
	}
	for slot, pid := range w.running {
		if alive[slot] {
			continue
		}
		if err := w.tell(ctx, Exit{Slot: slot, PID: pid, Code: codeLost, Time: time.Now()}); err != nil {
			return err
		}
	}
	return nil
}

func (w *exitWatch) handle(ctx context.Context, e *events.Envelope) error {
	v, err := typeurl.UnmarshalAny(e.Event)
	if err != nil {
		w.r.log.Warn("event of containerd is unreadable", "topic", e.Topic, "err", err)
		return nil
	}
	switch ev := v.(type) {
	case *eventsapi.TaskStart:
		if slot, err := env.ParseSlotID(ev.ContainerID); err == nil {
			w.running[slot] = int(ev.Pid)
		}
	case *eventsapi.TaskExit:
		slot, err := env.ParseSlotID(ev.ContainerID)
		if err == nil && ev.ID == ev.ContainerID { // a slot's, and its init
			return w.tell(ctx, Exit{Slot: slot, PID: int(ev.Pid), Code: ev.ExitStatus, Time: ev.ExitedAt.AsTime()})
		}
	}
	return nil
}

func (w *exitWatch) tell(ctx context.Context, e Exit) error {
	select {
	case w.out <- e:
		delete(w.running, e.Slot)
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
