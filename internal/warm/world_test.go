package warm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"hearth/internal/env"
)

// world is a node's kernel and containerd in memory. It outlives Nodes, as the
// real ones outlive agents. Every call first asks fail, if that is set.
type world struct {
	mu          sync.Mutex
	fail        func(call string) error
	calls       []string
	containers  map[env.SlotID]int // pid of the started init, 0 before
	cgroups     map[env.SlotID]*fakeCgroup
	islands     map[env.SlotID]string // "locked" or "open"
	alive       map[int]bool
	identities  map[int]map[string]string
	mounted     map[int][]Bind
	bound       map[env.SlotID]env.ID
	watched     map[env.SlotID]bool
	quotas      map[uint32]int64
	snaps       map[env.SnapshotID]env.Snapshot
	lineages    map[env.ID]bool // begun by a fork
	restored    []Files         // what restores filled
	nextPID     int
	hang        bool                         // guests take no claim
	cpu         map[env.SlotID]time.Duration // used so far
	packets     map[env.SlotID]uint64
	hangReady   bool // guests' probes hang
	hangDeflate bool // deflating goes on until it is ended
	pressed     string
	hygiene     map[env.SlotID]env.HygienePolicy // as init was told
	unheld      map[env.SlotID]bool              // whose namespaces are gone
	sick        func(env.SlotID) bool            // whose probes fail, of slots that are thawed for a check; nil: none
}

func newWorld() *world {
	return &world{
		containers: map[env.SlotID]int{}, cgroups: map[env.SlotID]*fakeCgroup{}, islands: map[env.SlotID]string{},
		alive: map[int]bool{}, identities: map[int]map[string]string{}, mounted: map[int][]Bind{}, bound: map[env.SlotID]env.ID{}, watched: map[env.SlotID]bool{}, quotas: map[uint32]int64{},
		hygiene: map[env.SlotID]env.HygienePolicy{}, unheld: map[env.SlotID]bool{},
		snaps: map[env.SnapshotID]env.Snapshot{}, lineages: map[env.ID]bool{}, nextPID: 1000,
		cpu: map[env.SlotID]time.Duration{}, packets: map[env.SlotID]uint64{},
	}
}

// call records a call and fails it if the test wants that.
func (w *world) call(name string) error {
	w.mu.Lock()
	w.calls = append(w.calls, name)
	fail := w.fail
	w.mu.Unlock()
	if fail != nil {
		return fail(name)
	}
	return nil
}

func (w *world) parts() Parts {
	return Parts{
		Runtime: fakeRuntime{w}, Cgroups: fakeCgroups{w}, Islands: fakeIslands{w},
		Inits: fakeInits{w}, Guests: fakeGuests{w}, Detector: fakeDetector{w}, Disk: fakeDisk{w}, Snapshots: fakeSnapshots{w},
		Pressure: fakePressure{w},
	}
}

// failWith makes calls fail as fail says; nil lets them work.
func (w *world) failWith(fail func(call string) error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fail = fail
}

// island is "locked", "open" or "" for none.
func (w *world) island(slot env.SlotID) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.islands[slot]
}

func (w *world) isFrozen(slot env.SlotID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cgroups[slot].frozen
}

func (w *world) setFrozen(slot env.SlotID, frozen bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cgroups[slot].frozen = frozen
}

func (w *world) identity(pid int) map[string]string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.identities[pid]
}

func (w *world) forked() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.lineages)
}

// die ends a process.
func (w *world) die(pid int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.alive[pid] = false
}

func (w *world) lives(pid int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.alive[pid]
}

func (w *world) hygieneOf(slot env.SlotID) env.HygienePolicy {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.hygiene[slot]
}

// leftovers counts everything that exists.
func (w *world) leftovers() map[string]int {
	w.mu.Lock()
	defer w.mu.Unlock()
	alive := 0
	for _, a := range w.alive {
		if a {
			alive++
		}
	}
	return map[string]int{
		"containers": len(w.containers), "cgroups": len(w.cgroups), "islands": len(w.islands),
		"processes": alive, "bound": len(w.bound), "watched": len(w.watched), "quotas": len(w.quotas),
	}
}

type fakeRuntime struct{ *world }

func (w fakeRuntime) Image(_ context.Context, ref string) (Image, error) {
	return Image{Ref: ref, Digest: "sha256:" + ref}, w.call("image")
}

func (w fakeRuntime) Prepare(_ context.Context, slot env.SlotID, _ Image, _ env.IDRange) (string, error) {
	if err := w.call("prepare"); err != nil {
		return "", err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.containers[slot] = 0
	return "/upper/" + string(slot), nil
}

func (w fakeRuntime) Create(_ context.Context, c Container) (int, error) {
	if err := w.call("create"); err != nil {
		return 0, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.islands[c.Slot] != "locked" {
		return 0, errors.New("container created without a locked island")
	}
	if w.unheld[c.Slot] {
		return 0, errors.New("container created in namespaces that are gone")
	}
	w.nextPID++
	w.alive[w.nextPID] = true
	w.containers[c.Slot] = w.nextPID
	w.cgroups[c.Slot].pid = w.nextPID
	return w.nextPID, nil
}

func (w fakeRuntime) Start(context.Context, env.SlotID) error { return w.call("start") }

func (w fakeRuntime) Delete(_ context.Context, slot env.SlotID) error {
	if err := w.call("delete"); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if pid := w.containers[slot]; pid != 0 {
		w.alive[pid] = false
	}
	delete(w.containers, slot)
	return nil
}

func (w fakeRuntime) List(context.Context) (map[env.SlotID]int, error) {
	err := w.call("list")
	w.mu.Lock()
	defer w.mu.Unlock()
	out := map[env.SlotID]int{}
	for slot, pid := range w.containers {
		if w.alive[pid] {
			out[slot] = pid
		} else {
			out[slot] = 0
		}
	}
	return out, err
}

type fakeCgroups struct{ *world }

type fakeCgroup struct {
	*world
	limits env.Resources // guarded by world.mu, as the others
	used   int64         // bytes of memory
	slot   env.SlotID
	pid    int
	frozen bool

	swappable bool
}

func (w fakeCgroups) Create(slot env.SlotID, limits env.Resources) (Cgroup, error) {
	if err := w.call("cgroup"); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	c := &fakeCgroup{world: w.world, slot: slot, limits: limits}
	w.cgroups[slot] = c
	return c, nil
}

func (w fakeCgroups) Adopt(slot env.SlotID) (Cgroup, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cgroups[slot] == nil {
		w.cgroups[slot] = &fakeCgroup{world: w.world, slot: slot}
	}
	return w.cgroups[slot], nil
}

func (w fakeCgroups) List() (ids []env.SlotID, _ error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id := range w.cgroups {
		ids = append(ids, id)
	}
	return ids, nil
}

func (c *fakeCgroup) set(frozen bool, call string) error {
	if err := c.call(call); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.frozen = frozen
	return nil
}

func (c *fakeCgroup) ContainerPath() string        { return "/hearth/" + string(c.slot) + "/ctr" }
func (c *fakeCgroup) ID() uint64                   { return 7 }
func (c *fakeCgroup) Freeze(context.Context) error { return c.set(true, "freeze") }
func (c *fakeCgroup) Thaw(context.Context) error   { return c.set(false, "thaw") }
func (c *fakeCgroup) Close() error                 { return nil }

func (c *fakeCgroup) Deflate(ctx context.Context) (before, after int64, err error) {
	if err := c.call("deflate"); err != nil {
		return 0, 0, err
	}
	c.mu.Lock()
	hang := c.hangDeflate
	c.swappable = true
	c.mu.Unlock()
	if hang {
		<-ctx.Done()
		return 8 << 20, 7 << 20, context.Cause(ctx)
	}
	return 8 << 20, 1 << 20, nil
}

func (c *fakeCgroup) Inflate(env.Resources) error {
	if err := c.call("inflate"); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.swappable = false
	return nil
}

func (c *fakeCgroup) Frozen() (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.frozen, nil
}

func (c *fakeCgroup) Kill(context.Context) error {
	if err := c.call("kill"); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.alive[c.pid] = false
	return nil
}

func (c *fakeCgroup) Remove(context.Context) error {
	if err := c.call("rmcgroup"); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.cgroups, c.slot)
	return nil
}

type fakeIslands struct{ *world }

func (w fakeIslands) Create(_ context.Context, slot env.SlotID, _ env.IDRange) (Island, error) {
	if err := w.call("island"); err != nil {
		return Island{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.islands[slot] = "locked"
	return Island{
		IslandInfo: IslandInfo{NetID: 1, Address: netip.MustParseAddr("100.96.0.2")},
		Connect: func(context.Context) ([]byte, error) {
			if err := w.call("connect"); err != nil {
				return nil, err
			}
			return json.Marshal(slot)
		},
		Held: func() bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			return !w.unheld[slot]
		},
		ReleaseHolder: func() error { return nil },
	}, nil
}

func (w fakeIslands) Adopt(_ context.Context, slot env.SlotID, rec []byte) (IslandInfo, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.islands[slot] == "" {
		return IslandInfo{}, env.ErrNotFound
	}
	return IslandInfo{NetID: 1, Address: netip.MustParseAddr("100.96.0.2"), Record: rec}, nil
}

func (w fakeIslands) Warm(env.EgressPolicy, *env.EgressPolicy) error { return w.call("policy") }

func (w fakeIslands) set(slot env.SlotID, call, state string) error {
	if err := w.call(call); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.islands[slot] == "" {
		return fmt.Errorf("%w: island", env.ErrNotFound)
	}
	w.islands[slot] = state
	return nil
}

func (w fakeIslands) Unlock(slot env.SlotID, _ env.EgressPolicy, _ *env.EgressPolicy) error {
	return w.set(slot, "unlock", "open")
}
func (w fakeIslands) Lock(slot env.SlotID) error { return w.set(slot, "lock", "locked") }

func (w fakeIslands) Destroy(_ context.Context, slot env.SlotID) error {
	if err := w.call("rmisland"); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.islands, slot)
	return nil
}

func (w fakeIslands) Sweep(_ context.Context, keep func(env.SlotID) bool) error {
	w.mu.Lock()
	var gone []env.SlotID
	for id := range w.islands {
		gone = append(gone, id)
	}
	w.mu.Unlock()
	for _, id := range gone {
		if !keep(id) {
			w.mu.Lock()
			delete(w.islands, id)
			w.mu.Unlock()
		}
	}
	return nil
}

type fakeInits struct{ *world }

type fakeInit struct {
	*world
	pid int
}

func (w fakeInits) Open(pid int) (Init, error) {
	if err := w.call("open"); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.alive[pid] {
		return nil, env.ErrNotFound
	}
	return &fakeInit{w.world, pid}, nil
}

func (i *fakeInit) PID() int                       { return i.pid }
func (i *fakeInit) Started() uint64                { return uint64(i.pid) * 10 }
func (i *fakeInit) OpenIdentity(env.IDRange) error { return i.call("identity-open") }
func (i *fakeInit) Close()                         {}

func (i *fakeInit) Alive() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.alive[i.pid]
}

func (i *fakeInit) Recall(name string, limit int) ([]byte, error) {
	if err := i.call("identity-recall"); err != nil {
		return nil, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	b, ok := i.identities[i.pid][name]
	if !ok || len(b) > limit {
		return nil, env.ErrNotFound
	}
	return []byte(b), nil
}

func (i *fakeInit) Personalise(files []IdentityFile, hostname string) error {
	if err := i.call("identity"); err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	m := map[string]string{"hostname": hostname}
	for _, f := range files {
		m[f.Name] = string(f.Data)
	}
	i.identities[i.pid] = m
	return nil
}

type fakeGuests struct{ *world }
type fakeGuest struct {
	*world
	slot env.SlotID
}

func (w fakeGuests) Dial(slot env.SlotID, _ Init) (Guest, error) {
	return fakeGuest{w.world, slot}, w.call("dial")
}

func (g fakeGuest) Configure(_ context.Context, class *env.Class) error {
	g.mu.Lock()
	g.hygiene[g.slot] = class.Hygiene
	g.mu.Unlock()
	return g.call("configure")
}
func (g fakeGuest) AwaitReady(ctx context.Context) error {
	g.mu.Lock()
	hang := g.hangReady
	g.mu.Unlock()
	if hang {
		<-ctx.Done()
		return ctx.Err()
	}
	if g.sick != nil && g.sick(g.slot) {
		return fmt.Errorf("%w: a service is gone", env.ErrUnavailable)
	}
	return g.call("ready")
}
func (g fakeGuest) Claimed(ctx context.Context) error {
	if g.hang {
		<-ctx.Done()
		return ctx.Err()
	}
	return g.call("claimed")
}
