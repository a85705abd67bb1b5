package env

import "time"

// Class is the template of slots and environments, as the node uses it. It is
// decoded from an EnvironmentClass manifest at the edge (internal/config) and
// never changes afterwards: a changed manifest is a new Class with another
// Revision.
type Class struct {
	Name      string
	Revision  string // hex digest of the specification; equal specs, equal revisions
	Image     string // OCI reference as it is known to containerd
	Runtime   string // name of what makes the containers; "" is DefaultRuntime
	Env       map[string]string
	Services  []Service
	Readiness Probe
	Resources Resources
	Warm      WarmPolicy
	Egress    EgressPolicy
	Detection DetectionPolicy
	Snapshot  SnapshotPolicy
	Ports     []Port
	Mounts    []string // directories of the node that claims may ask for, by name
	Lifetime  Lifetime
	Hygiene   HygienePolicy
	// Ephemeral environments are stored by no controller.
	Ephemeral bool
	// RunOnPartition leaves environments running on a node that has lost its
	// controller, which gives up that only one generation ever runs.
	RunOnPartition bool
}

// DefaultRuntime makes the containers of classes that name none.
const DefaultRuntime = "runc"

// StartWhen says when envinit starts a service.
type StartWhen string

// A service that reads the claim's variables must start after the claim:
// a running process cannot receive them.
const (
	StartAtBoot     StartWhen = "boot"
	StartAfterClaim StartWhen = "afterClaim"
)

// RestartPolicy says what envinit does when a service exits.
type RestartPolicy string

// Restarts are delayed with back-off from 100 ms to 10 s.
const (
	RestartAlways RestartPolicy = "always"
	RestartNever  RestartPolicy = "never"
)

// Service is one process that envinit keeps inside the environment.
type Service struct {
	Name    string            `json:"name"`
	Command []string          `json:"command"`
	Dir     string            `json:"dir,omitempty"` // "" is /
	Env     map[string]string `json:"env,omitempty"`
	Start   StartWhen         `json:"start,omitempty"`   // "" is boot
	Restart RestartPolicy     `json:"restart,omitempty"` // "" is always
}

// Probe decides when a slot is ready. Exactly one of Command, TCPPort, HTTP and
// File is set, or none: then a slot is ready when its boot services started.
type Probe struct {
	Command  []string      `json:"command,omitempty"` // ready when it exits with 0
	TCPPort  uint16        `json:"tcpPort,omitempty"` // ready when 127.0.0.1:port accepts
	HTTP     *HTTPProbe    `json:"http,omitempty"`    // ready when the answer's status is 200–399
	File     *FileProbe    `json:"file,omitempty"`
	Timeout  time.Duration `json:"timeout,omitempty"`  // of the whole probing; 0 is 30 s
	Interval time.Duration `json:"interval,omitempty"` // at most, between two attempts; 0 is 50 ms
}

// FileProbe is passed when Path is a regular file, with content if NonEmpty.
type FileProbe struct {
	Path     string `json:"path"` // absolute; links are followed
	NonEmpty bool   `json:"nonEmpty,omitempty"`
}

// HTTPProbe is a GET on 127.0.0.1 inside the environment.
type HTTPProbe struct {
	Port uint16 `json:"port"`
	Path string `json:"path"`
}

// WarmPolicy sizes the class's pool on one node.
type WarmPolicy struct {
	Slots int // ready slots to keep; 0 means every claim is cold
	// Created is how many slots to keep beside them that have everything that needs no
	// container: they shorten restores, cold claims and refill.
	Created int
	MaxAge  time.Duration // an older ready slot is replaced; 0 means never
	// Wait is how long a claim that finds no ready slot waits for one, or for its turn
	// to have one made; 0 means not at all.
	Wait time.Duration
	// CheckEvery is how old the proof of a ready slot's readiness may become
	// before the slot is probed again; 0 means never.
	CheckEvery time.Duration
	// Deflate lets the memory of ready slots go to swap until they are claimed.
	Deflate bool
	// RollEvery is the least time between two replacements of ready slots because
	// the class changed.
	RollEvery time.Duration
}

// DetectionPolicy chooses the response to detections per severity.
type DetectionPolicy struct {
	// Responses maps a severity ("low", "medium", "high", "critical") to
	// "record", "alert" or "freeze". Absent severities are "alert".
	Responses map[string]string
}

// SnapshotPolicy says what of an environment is kept.
type SnapshotPolicy struct {
	OnRelease bool // take one before a release
}

// Lifetime says when environments end or pause by themselves. Zero is never.
type Lifetime struct {
	TimeToLive    time.Duration // after the claim
	MaxTimeToLive time.Duration // how far ahead the end may be set; 0 is no bound
	PauseWhenIdle time.Duration // after so long without work, traffic and callers
}

// Port is a port that callers may reach through the node.
type Port struct {
	Name     string
	Number   uint16
	Protocol PortProtocol
}

// PortProtocol is what the proxy speaks on a port.
type PortProtocol string

// Every port can be reached as TCP; an HTTP port by URL too.
const (
	PortTCP  PortProtocol = "tcp"
	PortHTTP PortProtocol = "http"
)
