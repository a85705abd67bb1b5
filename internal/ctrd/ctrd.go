package ctrd

import (
	"time"

	"hearth/internal/env"
)

// Config says which containerd is used and what is ours in it.
type Config struct {
	Instance    string // "hearth"
	Namespace   string // containerd namespace; "" is Instance
	Snapshotter string // "" is overlayfs

	// Address is the socket of a given containerd. It is used if BinDir is
	// empty; with BinDir the socket is State/containerd.sock.
	Address string

	// BinDir holds containerd and its shim: then this package starts and keeps
	// a containerd of its own.
	BinDir string
	Root   string // the managed containerd's data and log; must survive a reboot
	State  string // its socket, pid file, lock and configuration; short: a socket's path has at most 107 bytes

	// SlotsPerShim is how many containers share a shim at most; 0 is
	// DefaultSlotsPerShim.
	SlotsPerShim int

	RuntimeBinary string // runc; "" is BinDir's, or what a given containerd's shim finds in PATH
	// Runtimes are the programs that classes may name besides runc: names and paths,
	// or names that containerd's shim finds in its PATH.
	Runtimes map[string]string
	// CertsDir has the registries' certificates and mirrors, laid out as
	// containerd's certs.d; "" is /etc/containerd/certs.d.
	CertsDir string
	// StartTimeout bounds the wait for containerd's first answer; 0 is 15 s.
	StartTimeout time.Duration
}

// Image is an image that is present, unpacked and held.
type Image struct {
	Ref        string
	Digest     string // of the manifest or index that the reference names
	Env        []string
	Entrypoint []string
	Cmd        []string
	User       string
	WorkingDir string
	chainID    string // the snapshot that a slot's root file system is made from
}

// Rootfs is a slot's root file system, not mounted. The paths are the host's.
// Whoever writes into Upper must have finished before Create.
type Rootfs struct {
	Upper  string
	Work   string
	Lowers []string // topmost first
}

// Mount is a bind mount of a host path into the container: writable, nosuid,
// nodev. Owners are not shifted: the source belongs to the slot's id range.
type Mount struct {
	Source string
	Target string
}

// Spec is all that Create needs of a slot.
type Spec struct {
	Slot  env.SlotID
	Image Image
	Class env.Class // Runtime, Env, which wins over the image's, and Resources are read; zero resources set no limit here
	IDs   env.IDRange

	UserNS string // "/proc/<child>/ns/user": its maps must be IDs exactly
	NetNS  string // "/proc/<agent pid>/fd/<n>": owned by that user namespace

	CgroupsPath string // cgroups.Group.ContainerPath
	InitPath    string // host path of envinit, mounted read-only at InitTarget
	Hostname    string
	Mounts      []Mount
	Labels      map[string]string

	shim env.SlotID // leader of the shim that it goes into; Create decides
}

// Paths inside every container.
const (
	// InitTarget is below /run, a tmpfs, so that the mount point leaves no trace
	// in the writable layer.
	InitTarget     = "/run/.hearth/init"
	IdentityTarget = "/run/hearth" // tmpfs, root's, 0755, 1 MiB
)

// Status is what containerd says of a task. A frozen slot is running here.
type Status string

// The statuses. StatusNone is a container without a task.
const (
	StatusNone    Status = "none"
	StatusCreated Status = "created"
	StatusRunning Status = "running"
	StatusStopped Status = "stopped"
	StatusPaused  Status = "paused"
	StatusUnknown Status = "unknown"
)

// Container is one of our containers as containerd knows it.
type Container struct {
	Slot   env.SlotID
	PID    int // of its init on the host; 0 without a task
	Status Status
	Labels map[string]string
}

// Exit says that a slot's init process ended.
type Exit struct {
	Slot env.SlotID
	PID  int
	Code uint32 // 128+n if signal n ended it
	Time time.Time
}
