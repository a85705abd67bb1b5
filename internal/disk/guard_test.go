package disk

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hearth/internal/env"
)

// machine is disks and writers in memory.
type machine struct {
	space   Space
	fault   error // of statfs
	written map[uint64]Written
	mu      sync.Mutex // guards stalled
	stalled []env.SlotID
	refuse  map[env.SlotID]error
	relief  int
	reliefs error
}

func (m *machine) statfs(string) (Space, error) { return m.space, m.fault }

func (m *machine) watch(cgroup uint64) error {
	m.written[cgroup] = Written{}
	return nil
}

func (m *machine) unwatch(cgroup uint64) error {
	delete(m.written, cgroup)
	return nil
}

func (m *machine) read(cgroup uint64) (Written, error) {
	w, ok := m.written[cgroup]
	if !ok {
		return w, env.ErrNotFound
	}
	return w, nil
}

func (m *machine) close() error { return nil }

// write makes a cgroup write.
func (m *machine) write(cgroup, bytes, files uint64) {
	w := m.written[cgroup]
	m.written[cgroup] = Written{w.Bytes + bytes, w.Files + files}
}

// guarded is a guard of a machine with a disk of 1000 MB and 1000 files, of
// which 160 are to be kept free, and slots "a", "b" and "c".
func guarded(t *testing.T) (*machine, *Guard) {
	t.Helper()
	m := &machine{
		space:   Space{Bytes: 1000e6, FreeBytes: 500e6, Files: 1000, FreeFiles: 500},
		written: map[uint64]Written{}, refuse: map[env.SlotID]error{},
	}
	g, err := newGuard(Config{
		Paths: []string{"/data"}, KeepFree: Mark{Percent: 16}, KeepFreeFiles: Mark{Percent: 16},
		Stall: func(_ context.Context, slot env.SlotID, _ string) error {
			if err := m.refuse[slot]; err != nil {
				return err
			}
			m.mu.Lock()
			defer m.mu.Unlock()
			m.stalled = append(m.stalled, slot)
			return nil
		},
		Relieve: func(context.Context) error {
			m.relief++
			return m.reliefs
		},
	}, m, m.statfs, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for i, slot := range []env.SlotID{"a", "b", "c"} {
		if err := g.Watch(slot, uint64(i), "demo"); err != nil {
			t.Fatal(err)
		}
	}
	return m, g
}

// clock steps the guard through time.
type clock struct {
	t   *testing.T
	g   *Guard
	now time.Time
}

func (c *clock) tick() {
	c.now = c.now.Add(lookEvery)
	c.g.step(c.t.Context(), c.now)
	c.g.stalls.Wait()
}

func newClock(t *testing.T, g *Guard) *clock {
	t.Helper()
	return &clock{t, g, time.Unix(1e9, 0)}
}

func TestWhoWritesFastIsStalledAtTheMarkAndNobodyElse(t *testing.T) {
	m, g := guarded(t)
	c := newClock(t, g)
	for range 20 { // room: a writes as it likes
		m.write(0, 50e6, 0)
		c.tick()
	}
	if len(m.stalled) != 0 || g.Admit(0) != nil {
		t.Fatalf("with room: stalled %v, admit %v", m.stalled, g.Admit(0))
	}
	m.space.FreeBytes = 159e6
	m.write(0, 50e6, 0)
	m.write(1, 1000, 0) // tolerated: 4 MB are left of the margin
	c.tick()
	if diff := cmp.Diff([]env.SlotID{"a"}, m.stalled); diff != "" {
		t.Errorf("stalled (-want +got):\n%s", diff)
	}
	if err := g.Admit(0); !errors.Is(err, env.ErrExhausted) {
		t.Errorf("admit = %v, want ErrExhausted", err)
	}
	for range 20 {
		m.write(1, 1000, 0)
		c.tick()
	}
	if len(m.stalled) != 1 {
		t.Errorf("stalled %v", m.stalled)
	}
	m.space.FreeBytes = 154e6 // the margin is gone
	m.write(1, 1000, 0)
	c.tick()
	if diff := cmp.Diff([]env.SlotID{"a", "b"}, m.stalled); diff != "" {
		t.Errorf("stalled (-want +got):\n%s", diff)
	}
}

func TestManyWritersAreStalledAtOnce(t *testing.T) {
	m, g := guarded(t)
	c := newClock(t, g)
	c.tick()
	m.space.FreeBytes = 150e6
	for cgroup := range uint64(3) {
		m.write(cgroup, 1e6*(cgroup+1), 0)
	}
	c.tick()
	slices.Sort(m.stalled)
	if diff := cmp.Diff([]env.SlotID{"a", "b", "c"}, m.stalled); diff != "" {
		t.Errorf("stalled (-want +got):\n%s", diff)
	}
}

func TestWhoMakesFilesIsStalledWhenInodesAreShort(t *testing.T) {
	m, g := guarded(t)
	c := newClock(t, g)
	c.tick()
	m.space.FreeFiles = 150
	m.write(0, 100e6, 0)
	m.write(1, 0, 40)
	c.tick()
	if diff := cmp.Diff([]env.SlotID{"b"}, m.stalled); diff != "" {
		t.Errorf("stalled (-want +got):\n%s", diff)
	}
}

func TestReliefComesOnceThereIsRoomAndIsTriedAgain(t *testing.T) {
	m, g := guarded(t)
	c := newClock(t, g)
	c.tick()
	if m.relief != 1 {
		t.Fatalf("at the start: relieved %d times, want once: an earlier agent may have stalled", m.relief)
	}
	m.space.FreeBytes = 100e6
	c.tick()
	m.space.FreeBytes = 170e6 // not yet
	c.tick()
	if m.relief != 1 {
		t.Errorf("relieved below the mark and an eighth")
	}
	m.space.FreeBytes, m.reliefs = 180e6, errors.New("injected")
	c.tick()
	m.reliefs = nil
	c.tick()
	c.tick()
	if m.relief != 3 || g.Admit(0) != nil {
		t.Errorf("relieved %d times, want 3; admit %v", m.relief, g.Admit(0))
	}
}

func TestASlotThatCannotBeStalledIsTriedAgainWhileItWrites(t *testing.T) {
	m, g := guarded(t)
	c := newClock(t, g)
	c.tick()
	m.space.FreeBytes, m.refuse["a"] = 100e6, env.ErrState // being claimed
	m.write(0, 1e6, 0)
	c.tick()
	delete(m.refuse, "a")
	c.tick() // it rests
	if len(m.stalled) != 0 {
		t.Fatalf("stalled %v though nobody writes", m.stalled)
	}
	m.write(0, 1e6, 0)
	c.tick()
	if diff := cmp.Diff([]env.SlotID{"a"}, m.stalled); diff != "" {
		t.Errorf("stalled (-want +got):\n%s", diff)
	}
}

func TestADiskThatCannotBeLookedAtStaysAsItWas(t *testing.T) {
	m, g := guarded(t)
	c := newClock(t, g)
	m.space.FreeBytes = 100e6
	c.tick()
	m.space.FreeBytes, m.fault = 900e6, errors.New("injected")
	m.write(2, 1e6, 0)
	c.tick()
	if !slices.Contains(m.stalled, "c") || g.Admit(0) == nil {
		t.Errorf("stalled %v, admit %v: a blind guard let go", m.stalled, g.Admit(0))
	}
	m.fault = nil
	c.tick()
	if err := g.Admit(0); err != nil {
		t.Errorf("admit = %v", err)
	}
}

func TestAdmitAsksForWhatWillBeWritten(t *testing.T) {
	_, g := guarded(t)
	if err := g.Admit(340e6); err != nil {
		t.Errorf("340 MB of 500 with 160 kept: %v", err)
	}
	for _, need := range []uint64{341e6, 600e6, 1 << 63} {
		if err := g.Admit(need); !errors.Is(err, env.ErrExhausted) {
			t.Errorf("%d: %v, want ErrExhausted", need, err)
		}
	}
}

func TestASlotIsForgottenWithItsCounter(t *testing.T) {
	m, g := guarded(t)
	g.Unwatch("a")
	g.Unwatch("a")
	if got := slices.Sorted(maps.Keys(m.written)); !slices.Equal(got, []uint64{1, 2}) {
		t.Errorf("counters of %v", got)
	}
}

func TestADiskThatIsNotThereIsNamedAtTheStart(t *testing.T) {
	m := &machine{fault: errors.New("injected")}
	if _, err := newGuard(Config{Paths: []string{"/data"}}, m, m.statfs, slog.New(slog.DiscardHandler)); err == nil || err.Error() != "look at the disk of /data: injected" {
		t.Errorf("error = %v", err)
	}
}

// A writer that takes more between two looks than the whole margin is stalled
// before it is over the mark, and its neighbour goes on.
func TestAWriterFasterThanTheMarginIsStalledInTime(t *testing.T) {
	m, g := guarded(t)
	c := newClock(t, g)
	m.space.FreeBytes = 245e6
	c.tick()
	for range 20 {
		if len(m.stalled) == 0 {
			m.write(0, 10e6, 0) // twice the margin
			m.space.FreeBytes -= 10e6
		}
		m.write(1, 450, 0)
		c.tick()
	}
	if diff := cmp.Diff([]env.SlotID{"a"}, m.stalled); diff != "" {
		t.Errorf("stalled (-want +got):\n%s", diff)
	}
	if m.space.FreeBytes < 160e6 {
		t.Errorf("%d bytes are left: the mark was passed", m.space.FreeBytes)
	}
}

// A slot that cannot be frozen yet keeps nobody else from being stalled, and is
// not asked again meanwhile.
func TestASlotThatDoesNotFreezeKeepsNobodyFromBeingStalled(t *testing.T) {
	m, g := guarded(t)
	c := newClock(t, g)
	c.tick()
	hangs, calls := make(chan struct{}), make(chan env.SlotID, 10)
	g.cfg.Stall = func(_ context.Context, slot env.SlotID, _ string) error {
		calls <- slot
		if slot == "a" {
			<-hangs
		}
		return nil
	}
	m.space.FreeBytes = 100e6
	for cgroup, slot := range []env.SlotID{"a", "b"} {
		m.write(0, 1e6, 0) // all the time
		m.write(uint64(cgroup), 1e6, 0)
		c.now = c.now.Add(lookEvery)
		g.step(t.Context(), c.now)
		if got := <-calls; got != slot {
			t.Errorf("stalled %s, want %s", got, slot)
		}
	}
	close(hangs)
	g.stalls.Wait()
	if len(calls) != 0 {
		t.Errorf("%s was asked twice", <-calls)
	}
}
