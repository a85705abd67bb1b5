package warm

import (
	"context"
	"fmt"
	"strings"

	"hearth/internal/env"
)

type fakeSnapshots struct{ *world }

func (w fakeSnapshots) Capture(ctx context.Context, id env.ID, tenant, class, base string, _ Files, f Freezer) (env.Snapshot, error) {
	if err := w.call("capture"); err != nil {
		return env.Snapshot{}, err
	}
	if err := f.Freeze(ctx); err != nil {
		return env.Snapshot{}, err
	}
	if err := f.Thaw(ctx); err != nil {
		return env.Snapshot{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	s := env.Snapshot{ID: env.SnapshotID(fmt.Sprintf("%s/%d", id, len(w.snaps)+1)), Lineage: id, Tenant: tenant, Class: class, Base: base}
	w.snaps[s.ID] = s
	return s, nil
}

func (w fakeSnapshots) Restore(_ context.Context, _ env.SnapshotID, files Files) error {
	if err := w.call("restore"); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.restored = append(w.restored, files)
	return nil
}

func (w fakeSnapshots) Fork(_ context.Context, _ env.SnapshotID, child env.ID, _ string) error {
	if err := w.call("fork"); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lineages[child] = true
	return nil
}

// Fetch finds on the other node whatever it is asked for, as a snapshot of the
// tenant and the test's image.
func (w fakeSnapshots) Fetch(_ context.Context, id env.SnapshotID, tenant string, from FetchFrom) error {
	if err := w.call("fetch " + from.Node); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	lineage, _, _ := strings.Cut(string(id), "/")
	w.snaps[id] = env.Snapshot{ID: id, Lineage: env.ID(lineage), Tenant: tenant, Base: "sha256:busybox"}
	return nil
}

func (w fakeSnapshots) Delete(lineage env.ID) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.lineages, lineage)
	return nil
}

func (w fakeSnapshots) Get(id env.SnapshotID) (env.Snapshot, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s, ok := w.snaps[id]
	if !ok {
		return s, fmt.Errorf("%w: snapshot %s", env.ErrNotFound, id)
	}
	return s, nil
}

func (w fakeSnapshots) List(env.ID) ([]env.Snapshot, error) { return nil, nil }

type fakeDetector struct{ *world }

func (w fakeDetector) Bind(slot env.SlotID, _ env.NetID, _ uint64, _ *env.Class) error {
	if err := w.call("bind"); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.bound[slot] = ""
	return nil
}

func (w fakeDetector) Claimed(slot env.SlotID, id env.ID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.bound[slot] = id
}

func (w fakeDetector) Unbind(slot env.SlotID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.bound, slot)
}

// forget begins the record of calls anew.
func (w *world) forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls = nil
}

// told are the calls since forget.
func (w *world) told() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string(nil), w.calls...)
}

// press makes the node short of something, or of nothing.
func (w *world) press(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pressed = what
}

type fakePressure struct{ *world }

func (w fakePressure) Pressed() (string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.world.pressed, nil
}
