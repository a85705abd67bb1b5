package config

import (
	"net/netip"

	"hearth/internal/env"
)

// Agent is nodeagent.yaml: the settings of one node's agent.
type Agent struct {
	// Instance names everything that this agent owns: directories, sockets,
	// containerd namespace, cgroup, pins, links. Two agents on one kernel need
	// two instances.
	Instance string `json:"instance"`
	// Node is this node's name in the cluster; default is HEARTH_NODE of the
	// process's environment, or the host's name.
	Node string `json:"node"`
	// StateDir outlives reboots. RunDir does not, and holds the sockets.
	StateDir string `json:"stateDir"`
	RunDir   string `json:"runDir"`
	// ClassesDir has EnvironmentClass manifests, *.yaml, *.yml and *.json. With a
	// controller it may be missing, and a set that a controller gave wins over it.
	ClassesDir string `json:"classesDir"`
	// InitPath is the envinit binary to mount into environments; default is the
	// one beside the nodeagent binary.
	InitPath   string          `json:"initPath"`
	Containerd Containerd      `json:"containerd"`
	Cgroup     Cgroup          `json:"cgroup"`
	Network    Network         `json:"network"`
	IDs        IDs             `json:"ids"`
	Limits     Limits          `json:"limits"`
	Defaults   Resources       `json:"defaults"`
	Refill     Refill          `json:"refill"`
	Claims     Claims          `json:"claims"`
	API        AgentAPI        `json:"api"`
	Controller *ControllerLink `json:"controller,omitempty"`
	Detection  AgentDetection  `json:"detection"`
	Snapshots  Snapshots       `json:"snapshots"`
	Disk       Disk            `json:"disk"`
	// Mounts are directories of this node that classes may let claims mount into
	// their environments, by the names that both use.
	Mounts  map[string]Mount `json:"mounts,omitempty"`
	Log     Log              `json:"log"`
	Tracing Tracing          `json:"tracing"`
}

// Containerd says whose containerd is used: the one at Address, or one that
// the agent starts from BinDir and keeps in its own directories. Exactly one of
// the two is set.
type Containerd struct {
	Address string `json:"address,omitempty"` // path of the socket
	BinDir  string `json:"binDir,omitempty"`  // has containerd, containerd-shim-runc-v2 and runc
	Runtime string `json:"runtime,omitempty"` // path of runc; default binDir's, or what the shim finds
	// Runtimes are the programs that classes may name besides runc, by their
	// names there: absolute paths, or names that are looked for in containerd's
	// PATH. Default is crun.
	Runtimes    map[string]string `json:"runtimes,omitempty"`
	Namespace   string            `json:"namespace"`
	Snapshotter string            `json:"snapshotter"`
	// SlotsPerShim is how many slots share one shim at most, and die with it.
	SlotsPerShim int `json:"slotsPerShim"`
}

// Managed reports whether the agent runs its own containerd.
func (c Containerd) Managed() bool { return c.BinDir != "" }

// Cgroup places the agent's tree.
type Cgroup struct {
	// Root is absolute in the cgroup filesystem: "/hearth". Empty is a cgroup that
	// systemd delegates, or "/<instance>" where systemd is not the node's init.
	Root string `json:"root,omitempty"`
}

// Network is the islands' addressing.
type Network struct {
	// Pool has one address for every island; IPv4.
	Pool netip.Prefix `json:"pool"`
	// LinkPrefix begins the name of every link on the host: 1 to 5 letters and
	// digits. Two instances need two.
	LinkPrefix string `json:"linkPrefix"`
	// Resolvers answer the environments' DNS questions through the agent. Absent
	// means those of the host's resolv.conf; an empty list, no names at all.
	Resolvers []Resolver `json:"resolvers"`
	// Refused are further destinations that no environment may reach, such as
	// pod and service ranges with public addresses; IPv4.
	Refused []netip.Prefix `json:"refused"`
	// UnsafeOpenSwitch lets root on the node open an island completely, so that
	// a test can show that a refused destination would have answered. Never in
	// production.
	UnsafeOpenSwitch bool `json:"unsafeOpenSwitch"`
}

// ResolverAddrs returns the resolvers as addresses.
func (n Network) ResolverAddrs() []netip.AddrPort {
	out := make([]netip.AddrPort, len(n.Resolvers))
	for i, r := range n.Resolvers {
		out[i] = r.AddrPort
	}
	return out
}

// IDs is where slots' user and group ids lie on the host: Count ranges of
// env.IDRangeSize, the first from Base on.
type IDs struct {
	Base  uint32 `json:"base"`
	Count uint32 `json:"count"`
}

// Limits is what all environments of the node may use together.
type Limits struct {
	Slots  int   `json:"slots"`  // slots and environments together
	Memory Bytes `json:"memory"` // what their limits may add up to, and the limit of their cgroup tree
	PIDs   int64 `json:"pids"`   // limit of their cgroup tree
}

// Resources are an environment's limits where its class is silent.
type Resources struct {
	CPU    Millis `json:"cpu"`
	Memory Bytes  `json:"memory"`
	PIDs   int64  `json:"pids"`
}

// Complete fills what r leaves to the node.
func (d Resources) Complete(r env.Resources) env.Resources {
	if r.CPUMillis == 0 {
		r.CPUMillis = int64(d.CPU)
	}
	if r.MemoryBytes == 0 {
		r.MemoryBytes = int64(d.Memory)
	}
	if r.PIDs == 0 {
		r.PIDs = d.PIDs
	}
	return r
}

// Refill says when the node has no power to spare for slots that nobody waits
// for: parts of the last ten seconds, in percent, in which some task waited for
// the resource (pressure stall information). 100 is never.
type Refill struct {
	CPUPressure    int `json:"cpuPressure"`
	MemoryPressure int `json:"memoryPressure"`
	IOPressure     int `json:"ioPressure"`
}

// Claims bounds what claims that find no ready slot may ask of the node at once.
type Claims struct {
	ColdStarts int `json:"coldStarts"` // slots that are made for claims
	Queue      int `json:"queue"`      // claims that wait
}

func (c Claims) validate(l *faultList) {
	if c.ColdStarts < 1 || c.ColdStarts > maxColdStarts {
		l.addf("claims.coldStarts", "%d: want 1 to %d", c.ColdStarts, maxColdStarts)
	}
	if c.Queue < 1 || c.Queue > maxQueue {
		l.addf("claims.queue", "%d: want 1 to %d", c.Queue, maxQueue)
	}
}

// Bounds of Claims. A claim in line costs a goroutine and its request.
const (
	maxColdStarts = 256
	maxQueue      = 10_000
)

// AgentAPI is where the agent listens.
type AgentAPI struct {
	// Listen is the TCP address of the Node API (mutual TLS) and the Guest API
	// (TLS and tokens).
	Listen string `json:"listen"`
	// Advertise is the host:port by which others reach Listen; it is in the
	// access of every claim, and its host is in the node's certificate. Its
	// default is HEARTH_ADDRESS of the process's environment, or the node's name.
	Advertise string `json:"advertise"`
	// Metrics is the address of /metrics, /healthz and /readyz.
	Metrics string `json:"metrics"`
	// Socket is the root-only Unix socket of the Node API.
	Socket string `json:"socket"`
}

// ControllerLink is how the agent joins a controller: at an address, with a join
// token, or, in a cluster, wherever the leader is, with the agent's service
// account. Exactly one of the two is set.
type ControllerLink struct {
	Address string `json:"address,omitempty"` // host:port
	// JoinTokenFile holds the join token. It is read at the first join only:
	// later the agent renews with its own certificate. The token names the
	// controller's authority, so that no other file is needed.
	JoinTokenFile string          `json:"joinTokenFile,omitempty"`
	Kubernetes    *ControllerKube `json:"kubernetes,omitempty"`
}

// ControllerKube is how the agent finds its controller in the cluster that it
// runs in.
type ControllerKube struct {
	// Namespace and Lease name the lease that the leading controller holds; it
	// says where that listens and which authority it has.
	Namespace string `json:"namespace"`
	Lease     string `json:"lease"`
	// TokenFile holds the agent's service account token for the controller, as
	// the cluster projects and replaces it.
	TokenFile string `json:"tokenFile"`
}

// AgentDetection configures detection on the node.
type AgentDetection struct {
	// RulesDir has rules that are loaded beside the built-in ones.
	RulesDir string `json:"rulesDir,omitempty"`
	// EventsFile receives one line of JSON for every detection, appended. Empty
	// is standard output; logs go to standard error.
	EventsFile string `json:"eventsFile,omitempty"`
}

// Snapshots is the node's snapshot store.
type Snapshots struct {
	Dir string `json:"dir"`
	// MaxFiles, MaxNames and MaxBytes bound one snapshot, since its size is chosen inside
	// the environment.
	MaxFiles uint64 `json:"maxFiles"`
	MaxNames Bytes  `json:"maxNames"` // of names, links' targets and attributes
	MaxBytes Bytes  `json:"maxBytes"`
}

// Disk is what environments leave of the filesystems that they write to. Both
// must be above the kubelet's thresholds for evictions (imagefs.available 15%,
// nodefs.available 10%, inodesFree 5%).
type Disk struct {
	// KeepFree and KeepFreeInodes are parts of each filesystem or amounts: where
	// less is available, environments that write are stalled. "0" guards nothing.
	KeepFree       Share `json:"keepFree"`
	KeepFreeInodes Share `json:"keepFreeInodes"`
}

// Mount is a directory that environments may get to see.
type Mount struct {
	Path     string `json:"path"`
	Writable bool   `json:"writable"` // by claims that do not ask for it read-only
	// PerTenant gives each tenant a directory of its own below, made when it is
	// first asked for.
	PerTenant bool `json:"perTenant"`
}

// Tracing is where traces of calls and claims go.
type Tracing struct {
	// Endpoint is the URL of an OTLP/HTTP receiver; empty is nowhere.
	Endpoint string `json:"endpoint"`
	// Sample is the share of calls that are traced, above 0 to 1; one whose caller
	// traces it is always, one whose caller does not, never.
	Sample float64 `json:"sample"`
}

// Log is what is written to standard error.
type Log struct {
	Level  string `json:"level"`  // debug, info, warn, error
	Format string `json:"format"` // text, json
}

// LoadAgent reads nodeagent.yaml. Every fault of the file is in the error,
// which matches env.ErrInvalid; a file that cannot be read matches the
// os package's errors.
func LoadAgent(path string, host Host) (Agent, error) {
	var a Agent
	if err := loadFile(path, &a); err != nil {
		return Agent{}, err
	}
	a = defaultAgent(a, host)
	return a, wrapFaults(path, a.validate())
}

// DefaultAgent is what an empty file means on host.
func DefaultAgent(host Host) Agent { return defaultAgent(Agent{}, host) }

// Validate checks an Agent that did not come from LoadAgent.
func (a Agent) Validate() error { return wrapFaults("agent settings", a.validate()) }
