package wire

import (
	"fmt"
	"time"
)

// The versions that this package speaks.
const (
	Version      = 2
	LeastVersion = 1
)

// VersionFileProbe is the first that knows Probe.File: an older envinit would
// pass over it, and call ready what was never probed.
const VersionFileProbe = 2

// VersionHygiene is the first that knows Configure.Hygiene: an older envinit
// would leave what environments must not share.
const VersionHygiene = 2

// Op names an operation.
type Op string

// The operations of version 1.
const (
	OpConfigure Op = "configure"
	OpReady     Op = "ready"
	OpClaimed   Op = "claimed"
	OpStatus    Op = "status"
	OpExec      Op = "exec"
	OpStat      Op = "stat"
	OpRead      Op = "read"
	OpWrite     Op = "write"
	OpList      Op = "list"
	OpConnect   Op = "connect"
	OpShutdown  Op = "shutdown"
)

// Request opens an operation. The field of the operation's name is set.
type Request struct {
	Version int `json:"version"` // newest that the sender speaks
	Least   int `json:"least"`   // oldest that the sender speaks
	Op      Op  `json:"op"`

	Configure *Configure `json:"configure,omitempty"`
	Ready     *Ready     `json:"ready,omitempty"`
	Exec      *Exec      `json:"exec,omitempty"`
	Stat      *Stat      `json:"stat,omitempty"`
	Read      *Read      `json:"read,omitempty"`
	Write     *Write     `json:"write,omitempty"`
	List      *List      `json:"list,omitempty"`
	Connect   *Connect   `json:"connect,omitempty"`
	Shutdown  *Shutdown  `json:"shutdown,omitempty"`
}

// Choose returns the version for a request: the newest that both sides speak.
func Choose(newest, least int) (int, *Error) {
	chosen := min(newest, Version)
	if chosen < least || chosen < LeastVersion {
		return 0, &Error{Code: CodeVersion, Message: fmt.Sprintf(
			"this envinit speaks versions %d to %d, the node asked for %d to %d: an environment keeps the envinit that it was started with; release it or run a node agent that speaks one of these versions",
			LeastVersion, Version, least, newest)}
	}
	return chosen, nil
}

// Configure gives envinit its class. It is accepted once; the same again is
// accepted too, anything else refused with CodeState.
type Configure struct {
	Services  []Service         `json:"services"`
	Probe     Probe             `json:"probe"`
	Variables map[string]string `json:"variables,omitempty"`
	Hygiene   *Hygiene          `json:"hygiene,omitempty"` // since VersionHygiene
}

// Hygiene says what of the image or the snapshot is made anew, or removed,
// before boot services start, so that no two environments share it.
type Hygiene struct {
	Hostname    bool `json:"hostname,omitempty"` // in /etc/hostname, then and at the claim
	Hosts       bool `json:"hosts,omitempty"`    // the host's name in /etc/hosts
	MachineID   bool `json:"machineId,omitempty"`
	SSHHostKeys bool `json:"sshHostKeys,omitempty"`
	RandomSeed  bool `json:"randomSeed,omitempty"`
}

// MaxServices bounds a class.
const MaxServices = 64

// Service mirrors env.Service. The protocol has a copy of its own so that a
// changed vocabulary cannot change what old envinits are told.
type Service struct {
	Name    string            `json:"name"`
	Command []string          `json:"command"`
	Dir     string            `json:"dir,omitempty"`
	Env     map[string]string `json:"env,omitempty"`
	Start   string            `json:"start,omitempty"`   // "boot", "" or "afterClaim"
	Restart string            `json:"restart,omitempty"` // "always", "" or "never"
}

// The words of Service.
const (
	StartAtBoot     = "boot"
	StartAfterClaim = "afterClaim"
	RestartAlways   = "always"
	RestartNever    = "never"
)

// Probe mirrors env.Probe: at most one of Command, TCPPort, HTTP and File is set.
// Durations are nanoseconds.
type Probe struct {
	Command  []string      `json:"command,omitempty"`
	TCPPort  uint16        `json:"tcpPort,omitempty"`
	HTTP     *HTTPProbe    `json:"http,omitempty"`
	File     *FileProbe    `json:"file,omitempty"` // since VersionFileProbe
	Timeout  time.Duration `json:"timeout,omitempty"`
	Interval time.Duration `json:"interval,omitempty"`
}

// HTTPProbe is a GET on 127.0.0.1.
type HTTPProbe struct {
	Port uint16 `json:"port"`
	Path string `json:"path"`
}

// FileProbe is passed when Path is a regular file, with content if NonEmpty.
type FileProbe struct {
	Path     string `json:"path"`
	NonEmpty bool   `json:"nonEmpty,omitempty"`
}

// Ready waits for the probe. Reply: ReadyReply, or CodeUnready.
type Ready struct {
	// Timeout is the most that the node will wait; the probe's own applies
	// when it is shorter. 0 leaves it to the probe.
	Timeout time.Duration `json:"timeout,omitempty"`
}

// ReadyReply says how long the probing of this call took.
type ReadyReply struct {
	Version int           `json:"version"`
	Elapsed time.Duration `json:"elapsed"`
}

// Reply is the answer of operations that have nothing else to say.
type Reply struct {
	Version int `json:"version"`
}

// StatusReply is what pid 1 knows of itself.
type StatusReply struct {
	Version  int             `json:"version"`
	Claimed  bool            `json:"claimed"`
	Execs    int             `json:"execs"` // running now
	Services []ServiceStatus `json:"services,omitempty"`
	Orphans  int             `json:"orphans"` // adopted and reaped
	// EnvError says why the claim's variables cannot be read, if so.
	EnvError string `json:"envError,omitempty"`
}

// ServiceStatus is one service's state.
type ServiceStatus struct {
	Name     string `json:"name"`
	PID      int    `json:"pid,omitempty"` // 0 is not running
	Starts   int    `json:"starts"`
	LastExit string `json:"lastExit,omitempty"` // "code 1", "signal 9", or why it could not start
	Output   string `json:"output,omitempty"`   // the last 2 KiB or less
}

// Exec runs a process in a session of its own.
type Exec struct {
	Command   []string          `json:"command"`
	Dir       string            `json:"dir,omitempty"` // "" is /
	Variables map[string]string `json:"variables,omitempty"`
	Terminal  bool              `json:"terminal,omitempty"`
	Size      Size              `json:"size,omitzero"`
	UID       uint32            `json:"uid,omitempty"`
	GID       uint32            `json:"gid,omitempty"`
}

// Window is how many bytes of stdin may be under way to a process. It keeps
// the connection free for signals while the process does not read.
const Window = 256 << 10

// Size is a terminal's.
type Size struct {
	Rows    uint16 `json:"rows"`
	Columns uint16 `json:"columns"`
}

// ExecReply says that the process runs.
type ExecReply struct {
	Version int `json:"version"`
	PID     int `json:"pid"` // inside
}

// Exit is how a process ended: Code is 128+Signal if a signal did it.
type Exit struct {
	Code   int `json:"code"`
	Signal int `json:"signal,omitempty"`
}

// Stat asks for one file, the link itself if it is one. Reply: StatReply.
type Stat struct {
	Path []byte `json:"path"`
}

// StatReply answers stat and opens read.
type StatReply struct {
	Version int      `json:"version"`
	Info    FileInfo `json:"info"`
}

// FileInfo describes a file. Name and Target are bytes, since names on Linux
// are not text; in JSON they are base64.
type FileInfo struct {
	Name     []byte `json:"name"`
	Size     int64  `json:"size"`
	Mode     uint32 `json:"mode"` // st_mode
	UID      uint32 `json:"uid"`
	GID      uint32 `json:"gid"`
	Modified int64  `json:"modified"` // nanoseconds of the Unix epoch
	Target   []byte `json:"target,omitempty"`
}

// Read streams a regular file. Limit 0 is to the end.
type Read struct {
	Path   []byte `json:"path"`
	Offset int64  `json:"offset,omitempty"`
	Limit  int64  `json:"limit,omitempty"`
}

// Write replaces a file by rename; a symbolic link at Path is replaced itself.
type Write struct {
	Path    []byte `json:"path"`
	Mode    uint32 `json:"mode,omitempty"` // 0 is 0644
	UID     uint32 `json:"uid,omitempty"`
	GID     uint32 `json:"gid,omitempty"`
	Parents bool   `json:"parents,omitempty"`
}

// WriteReply comes twice: with Size 0 when the file is open for content, and
// after the rename.
type WriteReply struct {
	Version int   `json:"version"`
	Size    int64 `json:"size"`
}

// MaxEntries bounds a page of list.
const MaxEntries = 10_000

// List asks for the names after After, sorted by bytes.
type List struct {
	Path  []byte `json:"path"`
	After []byte `json:"after,omitempty"`
	Limit int    `json:"limit,omitempty"` // 0 is MaxEntries
}

// End closes a list or a read.
type End struct {
	More bool `json:"more,omitempty"` // list: there are names after the last entry
}

// Connect dials 127.0.0.1:Port over TCP.
type Connect struct {
	Port uint16 `json:"port"`
}

// Shutdown asks every process to end, and kills what remains after Grace.
type Shutdown struct {
	Grace time.Duration `json:"grace,omitempty"` // 0 is 10 s
}

// Code says what kind of failure an Error is.
type Code string

// The codes. An unknown one is taken for CodeInternal.
const (
	CodeInvalid     Code = "invalid"
	CodeNotFound    Code = "not_found"
	CodeExists      Code = "exists"
	CodeDenied      Code = "denied"
	CodeState       Code = "state"
	CodeExhausted   Code = "exhausted"
	CodeUnavailable Code = "unavailable"
	CodeUnready     Code = "unready"
	CodeVersion     Code = "version"
	CodeInternal    Code = "internal"
)

// Error is a refusal or failure as it travels.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
}

func (e *Error) Error() string { return e.Message }

// Errorf makes an Error.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}
