package warm

import (
	"context"
	"net/netip"
	"time"

	"hearth/internal/env"
)

// Parts are what a Node works on. Every field but Snapshots and Pressure is
// required.
type Parts struct {
	Runtime   containers
	Cgroups   cgroups
	Islands   islands
	Inits     inits
	Guests    guests
	Detector  detector
	Disk      disk
	Snapshots snapshots
	Tracer    tracer
	Pressure  pressure // nil: the node always has power to spare
}

// containers starts and removes containers. Delete is idempotent and undoes
// Prepare, Create and Start at whatever stage they stopped.
type containers interface {
	Image(ctx context.Context, ref string) (Image, error)
	// Prepare makes the container's writable layer, not mounted, and returns
	// where its upper directory lies.
	Prepare(ctx context.Context, slot env.SlotID, image Image, ids env.IDRange) (upper string, err error)
	// Create makes the container's init without starting it, and returns its pid.
	Create(ctx context.Context, spec Container) (pid int, err error)
	Start(ctx context.Context, slot env.SlotID) error
	Delete(ctx context.Context, slot env.SlotID) error
	// List returns every container of this instance and the pid of its init,
	// 0 if it does not run.
	List(ctx context.Context) (map[env.SlotID]int, error)
}

// Image is an unpacked image.
type Image struct {
	Ref    string
	Digest string
}

// Container is what a slot's container is made from.
type Container struct {
	Slot      env.SlotID
	Class     *env.Class
	Image     Image
	IDs       env.IDRange
	UserNS    string // path of the user namespace
	NetNS     string // path of the network namespace
	Cgroup    string // path in the cgroup tree
	Workspace string // host directory that becomes /workspace
}

// cgroups makes the parent cgroup of each slot.
type cgroups interface {
	// Create makes the cgroup with its limits in force.
	Create(slot env.SlotID, limits env.Resources) (Cgroup, error)
	// Adopt opens a slot's cgroup after a restart of the agent. What is missing of it
	// is made, empty, so that the rest can be removed.
	Adopt(slot env.SlotID) (Cgroup, error)
	List() ([]env.SlotID, error)
}

// Cgroup is the parent cgroup of one slot: ours to freeze, kill and remove,
// while containerd goes on saying "running".
type Cgroup interface {
	ContainerPath() string
	ID() uint64
	Freeze(ctx context.Context) error
	// Thaw returns when the kernel says that the slot runs.
	Thaw(ctx context.Context) error
	Frozen() (bool, error)
	// SetLimits changes limits, all or none, also of a frozen slot; zero leaves one.
	// A memory limit below what is used is env.ErrState, one that the kernel does not
	// have env.ErrUnsupported.
	SetLimits(limits env.Resources) error
	// Deflate lets the memory of a frozen slot be swapped out, and has that done,
	// until ctx ends; it returns the bytes in use before and after. A node that
	// cannot is env.ErrUnsupported.
	Deflate(ctx context.Context) (before, after int64, err error)
	// Inflate ends that: no more is swapped out than limits allow.
	Inflate(limits env.Resources) error
	// CPUTime is what its processes have used of the CPUs so far.
	CPUTime() (time.Duration, error)
	Kill(ctx context.Context) error
	// Remove is idempotent.
	Remove(ctx context.Context) error
	// Close lets go of the cgroup without changing it.
	Close() error
}

// islands makes and enforces the slots' networks.
type islands interface {
	// Create makes an island's namespaces.
	Create(ctx context.Context, slot env.SlotID, ids env.IDRange) (Island, error)
	// Adopt takes an island back after a restart, or says why it cannot.
	Adopt(ctx context.Context, slot env.SlotID, record []byte) (IslandInfo, error)
	// Warm compiles policies, so that Unlock need not.
	Warm(class env.EgressPolicy, claim *env.EgressPolicy) error
	Unlock(slot env.SlotID, class env.EgressPolicy, claim *env.EgressPolicy) error
	Lock(slot env.SlotID) error
	// Packets is how many packets have passed so far, in both directions.
	Packets(slot env.SlotID) (uint64, error)
	// Destroy is idempotent.
	Destroy(ctx context.Context, slot env.SlotID) error
	// Sweep removes the islands of slots that keep refuses.
	Sweep(ctx context.Context, keep func(env.SlotID) bool) error
}

// Island is an island's namespaces, and what gives them a link. The paths of both are
// valid until ReleaseHolder.
type Island struct {
	IslandInfo
	UserNS string
	NetNS  string
	// Held reports whether the namespaces are still there; nil is for ever. ReleaseHolder
	// ends what holds them.
	Held func() bool
	// Connect gives the namespaces a link, locked, whose enforcement is in force on
	// return, and returns the record. It is to be called once, before ReleaseHolder.
	Connect       func(ctx context.Context) (record []byte, err error)
	ReleaseHolder func() error
}

// IslandInfo is what outlives the making of an island.
type IslandInfo struct {
	NetID   env.NetID
	Address netip.Addr
	Record  []byte // what Adopt needs; opaque, without secrets
}

// inits opens the init processes of containers.
type inits interface {
	// Open fails with env.ErrNotFound if there is no such process any more.
	Open(pid int) (Init, error)
}

// Init is a slot's first process, as the kernel shows it.
type Init interface {
	PID() int
	// Started is when it began, in clock ticks after boot: with the pid it
	// names a process for ever.
	Started() uint64
	Alive() bool
	// OpenIdentity opens the door for Personalise; best before the container
	// is started, when nothing inside can have moved what it leads to.
	OpenIdentity(ids env.IDRange) error
	// Personalise replaces the identity files and sets the hostname.
	Personalise(files []IdentityFile, hostname string) error
	// Mount mounts directories of the node, in their order.
	Mount(binds []Bind) error
	// Recall reads an identity file as it is now: foreign bytes, at most limit.
	Recall(name string, limit int) ([]byte, error)
	// Close lets go of the process without changing it.
	Close()
}

// guests reaches the init process of a slot.
type guests interface {
	// Dial makes no connection yet. A connection must be to init and no other.
	Dial(slot env.SlotID, init Init) (Guest, error)
}

// Guest is the host's side of one slot's init. What it returns comes from
// inside: bounded, never trusted.
type Guest interface {
	// Configure hands over services, probe and variables; boot services start.
	Configure(ctx context.Context, class *env.Class) error
	// AwaitReady returns when the class's probe passed.
	AwaitReady(ctx context.Context) error
	// Claimed starts the services marked afterClaim.
	Claimed(ctx context.Context) error
}

// disk knows what room the node's disks have.
type disk interface {
	// Admit reports whether so many bytes can be written now, 0 for few; the
	// error is env.ErrExhausted.
	Admit(bytes uint64) error
	// Watch counts what a slot writes from now on, until Unwatch.
	Watch(slot env.SlotID, cgroup uint64, class string) error
	Unwatch(slot env.SlotID)
	// Bound limits what the root filesystem of a slot and its workspace, which are
	// empty yet, take to so many bytes. It is env.ErrUnsupported where nothing
	// counts them.
	Bound(ctx context.Context, slot env.SlotID, ids env.IDRange, bytes int64, workspace string) error
	// Unbound takes that limit away again.
	Unbound(ids env.IDRange) error
}

// pressure knows whether the node has power to spare for slots that nobody
// waits for.
type pressure interface {
	// Pressed says what the node is short of, "" for nothing.
	Pressed() (string, error)
}

// tracer is told of claims that succeeded, beside their answer.
type tracer interface {
	// Claimed is told with the context of the call, which may have ended, and with how
	// it was served.
	Claimed(ctx context.Context, class, served string, begun time.Time, phases []PhaseTime)
}

// detector watches slots for abuse.
type detector interface {
	Bind(slot env.SlotID, netID env.NetID, cgroup uint64, class *env.Class) error
	Claimed(slot env.SlotID, id env.ID)
	Unbind(slot env.SlotID)
}

// Freezer stops and restarts every process of an environment.
type Freezer interface {
	Freeze(ctx context.Context) error
	Thaw(ctx context.Context) error
}

// Files says where the changeable files of an environment lie on the host.
type Files struct {
	Upper     string
	Workspace string
	IDs       env.IDRange
}

// FetchFrom is a node that has a snapshot and granted it to this one.
type FetchFrom struct {
	Node    string
	Address string // host:port of its Node API
}

// snapshots keeps and brings back environments' files.
type snapshots interface {
	// Capture refuses a lineage that belongs to another tenant.
	Capture(ctx context.Context, id env.ID, tenant, class, base string, files Files, freeze Freezer) (env.Snapshot, error)
	// Fetch gets a snapshot of the tenant from the node that granted it.
	Fetch(ctx context.Context, id env.SnapshotID, tenant string, from FetchFrom) error
	// Restore fills empty directories below which nothing is mounted. What is "" of
	// files is left out.
	Restore(ctx context.Context, id env.SnapshotID, files Files) error
	// Fork starts child's lineage from the snapshot, which must be the tenant's.
	Fork(ctx context.Context, id env.SnapshotID, child env.ID, tenant string) error
	// Delete removes a lineage from which nothing borrows.
	Delete(lineage env.ID) error
	Get(id env.SnapshotID) (env.Snapshot, error)
	List(lineage env.ID) ([]env.Snapshot, error) // empty lineage: all
}
