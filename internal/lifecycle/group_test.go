package lifecycle

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// diary notes what happens, in order.
type diary struct {
	mu    sync.Mutex
	lines []string
}

func (d *diary) note(s string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lines = append(d.lines, s)
}

func (d *diary) part(name string) Part {
	return Part{
		Name:  name,
		Start: func(context.Context) error { d.note("start " + name); return nil },
		Run:   func(ctx context.Context) error { <-ctx.Done(); d.note("end " + name); return nil },
		Stop: func(ctx context.Context) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			d.note("stop " + name)
			return nil
		},
	}
}

func newGroup() *Group { return NewGroup(slog.New(slog.DiscardHandler), time.Second) }

func TestPartsStartInOrderAndStopInReverseOnALivingContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, g := &diary{}, newGroup()
		g.Add(d.part("a"))
		g.Add(d.part("b"))
		ctx, cancel := context.WithCancel(t.Context())
		if g.Ready() == nil {
			t.Error("ready before the start")
		}
		done := make(chan error)
		go func() { done <- g.Run(ctx) }()
		synctest.Wait()
		if err := g.Ready(); err != nil {
			t.Errorf("not ready: %v", err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		want := []string{"start a", "start b", "stop b", "end b", "stop a", "end a"}
		if !slices.Equal(d.lines, want) {
			t.Errorf("%q, want %q", d.lines, want)
		}
		if g.Ready() == nil {
			t.Error("ready after the stop")
		}
	})
}

func TestTheFirstFailureEndsTheGroup(t *testing.T) {
	broken := errors.New("broken")
	for name, p := range map[string]Part{
		"start": {Name: "x", Start: func(context.Context) error { return broken }},
		"run":   {Name: "x", Run: func(context.Context) error { return broken }},
	} {
		t.Run(name, func(t *testing.T) {
			d, g := &diary{}, newGroup()
			g.Add(d.part("a"))
			g.Add(p)
			err := g.Run(t.Context())
			if !errors.Is(err, broken) || !strings.Contains(err.Error(), name+" x") {
				t.Errorf("error = %v", err)
			}
			if want := []string{"start a", "stop a", "end a"}; !slices.Equal(d.lines, want) {
				t.Errorf("%q, want %q", d.lines, want)
			}
		})
	}
}

func TestAPartThatEndsByItselfEndsTheGroup(t *testing.T) {
	g := newGroup()
	g.Add(Part{Name: "x", Run: func(context.Context) error { return nil }})
	if err := g.Run(t.Context()); !errors.Is(err, ErrEnded) {
		t.Errorf("error = %v", err)
	}
}

func TestAPartThatDoesNotEndIsNamedAtTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup()
		release := make(chan struct{})
		g.Add(Part{Name: "stuck", Run: func(context.Context) error { <-release; return nil }})
		ctx, cancel := context.WithCancel(t.Context())
		cancelled := time.AfterFunc(time.Second, cancel)
		defer cancelled.Stop()
		begun := time.Now()
		err := g.Run(ctx)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "stop stuck") {
			t.Errorf("error = %v", err)
		}
		if took := time.Since(begun); took != 2*time.Second {
			t.Errorf("took %s", took)
		}
		close(release)
		synctest.Wait()
	})
}

func TestACheckMakesTheGroupNotReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup()
		sick := errors.New("no space")
		g.Add(Part{Name: "disk", Check: func() error { return sick }})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- g.Run(ctx) }()
		synctest.Wait()
		if err := g.Ready(); !errors.Is(err, sick) || !strings.Contains(err.Error(), "disk") {
			t.Errorf("ready = %v", err)
		}
		cancel()
		<-done
	})
}

func TestARetiredGroupKeepsWhatLingersUntilItsStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, g := &diary{}, newGroup()
		lingers := d.part("b")
		lingers.Retire = func(context.Context) error { d.note("retire b"); return nil }
		g.Add(d.part("a"))
		g.Add(lingers)
		serves, closed := d.part("c"), make(chan struct{}) // as a server does: its Stop ends its Run
		stop := serves.Stop
		serves.Run = func(context.Context) error { <-closed; d.note("end c"); return nil }
		serves.Stop = func(ctx context.Context) error { defer close(closed); return stop(ctx) }
		g.Add(serves)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- g.Run(ctx) }()
		synctest.Wait()
		if err := g.Retire(func() error { d.note("then"); return nil }); err != nil {
			t.Errorf("retire = %v", err)
		}
		if err := g.Ready(); err == nil || err.Error() != "handed over" {
			t.Errorf("ready = %v", err)
		}
		d.note("linger")
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		want := []string{
			"start a", "start b", "start c", "stop c", "end c", "retire b", "stop a", "end a", "then", "linger", "stop b", "end b",
		}
		if !slices.Equal(d.lines, want) {
			t.Errorf("%q, want %q", d.lines, want)
		}
		if err := g.Retire(func() error { return nil }); !errors.Is(err, ErrEnded) {
			t.Errorf("retire of an ended group = %v", err)
		}
	})
}

func TestAFailedRetirementEndsTheGroup(t *testing.T) {
	broken := errors.New("broken")
	for name, test := range map[string]struct {
		retire func(context.Context) error
		then   func() error
	}{
		"a part":           {func(context.Context) error { return broken }, func() error { t.Error("called"); return nil }},
		"what comes after": {func(context.Context) error { return nil }, func() error { return broken }},
	} {
		t.Run(name, func(t *testing.T) {
			d, g := &diary{}, newGroup()
			p := d.part("a")
			p.Retire = test.retire
			g.Add(p)
			done := make(chan error)
			go func() { done <- g.Run(t.Context()) }()
			if err := g.Retire(test.then); !errors.Is(err, broken) {
				t.Errorf("retire = %v", err)
			}
			if err := <-done; !errors.Is(err, broken) {
				t.Errorf("run = %v", err)
			}
			if want := []string{"start a", "stop a", "end a"}; !slices.Equal(d.lines, want) {
				t.Errorf("%q, want %q", d.lines, want)
			}
		})
	}
}
