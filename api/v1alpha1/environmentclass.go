package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// EnvironmentClass is the template of environments: what runs in them, how
// many are kept warm, and what they may reach and use.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=envclass
// +kubebuilder:printcolumn:name="Image",type=string,JSONPath=`.spec.image`
// +kubebuilder:printcolumn:name="Warm",type=integer,JSONPath=`.spec.warm.slots`
// +kubebuilder:printcolumn:name="Ready",type=integer,JSONPath=`.status.ready`
// +kubebuilder:printcolumn:name="Environments",type=integer,JSONPath=`.status.environments`
// +kubebuilder:printcolumn:name="Durability",type=string,JSONPath=`.spec.durability`
// +kubebuilder:printcolumn:name="Egress",type=string,JSONPath=`.spec.egress.mode`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name.size() <= 63",message="the name may have at most 63 characters"
type EnvironmentClass struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// spec is what the class's environments are made of.
	Spec EnvironmentClassSpec `json:"spec"`

	// status is what the controller observed. It is ignored in files.
	// +optional
	Status EnvironmentClassStatus `json:"status,omitzero"`
}

// EnvironmentClassList is a list of classes.
//
// +kubebuilder:object:root=true
type EnvironmentClassList struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []EnvironmentClass `json:"items"`
}

// EnvironmentClassSpec is what a class's author decides.
type EnvironmentClassSpec struct {
	// image is the OCI reference of the root filesystem, as containerd knows it:
	// registry, name, and tag or digest.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=512
	Image string `json:"image"`

	// runtime is the program that makes the containers: runc, or a name that the
	// node knows (containerd.runtimes of its configuration). All must have runc's
	// command line and make containers on the node's own kernel.
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:default=runc
	// +optional
	Runtime string `json:"runtime,omitempty"`

	// env are variables of every process in the environment. A claim's
	// variables win over them.
	// +kubebuilder:validation:MaxProperties=256
	// +optional
	Env map[string]string `json:"env,omitempty"`

	// services are the processes that run in every environment.
	// +kubebuilder:validation:MaxItems=64
	// +listType=map
	// +listMapKey=name
	// +optional
	Services []Service `json:"services,omitempty"`

	// readiness decides when a slot may be handed out. Without it a slot is
	// ready when its boot services have started.
	// +optional
	Readiness *Readiness `json:"readiness,omitempty"`

	// resources are hard limits of one environment. What is absent comes from
	// the node's configuration; nothing is unlimited.
	// +optional
	Resources Resources `json:"resources,omitzero"`

	// warm sizes the pool of ready slots on each node.
	// +optional
	Warm Warm `json:"warm,omitzero"`

	// egress says where the environment's packets may go.
	// +optional
	Egress Egress `json:"egress,omitzero"`

	// detection chooses the response to suspicious behaviour.
	// +optional
	Detection Detection `json:"detection,omitzero"`

	// snapshot says what is kept of an environment.
	// +optional
	Snapshot Snapshot `json:"snapshot,omitzero"`

	// ports are the ports that callers may reach through the node.
	// +kubebuilder:validation:MaxItems=64
	// +listType=map
	// +listMapKey=name
	// +optional
	Ports []Port `json:"ports,omitempty"`

	// mounts are the directories of a node that claims may have mounted, by the names
	// that the nodes' configuration gives them (mounts).
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MaxLength=63
	// +kubebuilder:validation:items:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	// +listType=set
	// +optional
	Mounts []string `json:"mounts,omitempty"`

	// lifetime says when environments end or pause by themselves.
	// +optional
	Lifetime Lifetime `json:"lifetime,omitzero"`

	// hygiene says what environments may have in common with their image, or with
	// the environment that they were forked from.
	// +optional
	Hygiene Hygiene `json:"hygiene,omitzero"`

	// durability is durable, for environments that the controller stores before
	// it makes them and that outlive it, or ephemeral, for those of which only
	// their nodes know: nothing is written for them, and they are claimed also
	// while the cluster's API is down.
	// +kubebuilder:default=durable
	// +optional
	Durability Durability `json:"durability,omitempty"`

	// onPartition is fence: a node that has lost its controller for long freezes
	// and locks the environment, so that it can be placed anew safely; or run,
	// which gives that up.
	// +kubebuilder:default=fence
	// +optional
	OnPartition OnPartition `json:"onPartition,omitempty"`
}

// Lifetime says when environments end or pause by themselves.
//
// +kubebuilder:validation:XValidation:rule="!has(self.timeToLive) || !has(self.maxTimeToLive) || duration(self.timeToLive) <= duration(self.maxTimeToLive)",message="timeToLive is longer than maxTimeToLive"
type Lifetime struct {
	// timeToLive after its claim an environment is released, unless the claim or
	// an extension says otherwise. Absent is maxTimeToLive; without both, never.
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1s')",message="at least 1s, or no timeToLive at all"
	// +optional
	TimeToLive *metav1.Duration `json:"timeToLive,omitempty"`

	// maxTimeToLive is how far ahead a claim or an extension may set the end.
	// Absent is timeToLive; without both there is no bound.
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1s')",message="at least 1s, or no maxTimeToLive at all"
	// +optional
	MaxTimeToLive *metav1.Duration `json:"maxTimeToLive,omitempty"`

	// pauseWhenIdle pauses an environment that has used next to no CPU and
	// network for so long and in which nobody has a process, a file or a port
	// open. It goes on by itself when somebody does. Absent is never.
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('5s')",message="at least 5s, or no pauseWhenIdle at all"
	// +optional
	PauseWhenIdle *metav1.Duration `json:"pauseWhenIdle,omitempty"`
}

// Durability says whether the controller stores environments.
// +kubebuilder:validation:Enum=durable;ephemeral
type Durability string

// OnPartition says what a node does that has lost its controller.
// +kubebuilder:validation:Enum=fence;run
type OnPartition string

// Service is one process that is kept running inside the environment.
type Service struct {
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	// +kubebuilder:validation:MaxLength=63
	Name string `json:"name"`

	// command is the program and its arguments; no shell is added.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=256
	// +listType=atomic
	Command []string `json:"command"`

	// dir is the working directory.
	// +kubebuilder:validation:Pattern=`^/`
	// +kubebuilder:validation:MaxLength=4096
	// +kubebuilder:default="/"
	// +optional
	Dir string `json:"dir,omitempty"`

	// env adds to the class's variables for this service.
	// +kubebuilder:validation:MaxProperties=256
	// +optional
	Env map[string]string `json:"env,omitempty"`

	// start is boot, or afterClaim for a service that reads the claim's
	// variables: a running process cannot receive them.
	// +kubebuilder:default=boot
	// +optional
	Start StartWhen `json:"start,omitempty"`

	// restart says what happens when the process exits.
	// +kubebuilder:default=always
	// +optional
	Restart RestartPolicy `json:"restart,omitempty"`
}

// StartWhen says when a service starts.
// +kubebuilder:validation:Enum=boot;afterClaim
type StartWhen string

// RestartPolicy says whether a service that exits is started again.
// +kubebuilder:validation:Enum=always;never
type RestartPolicy string

// Readiness is one probe, run inside the environment.
//
// +kubebuilder:validation:XValidation:rule="[has(self.command), has(self.tcp), has(self.http), has(self.file)].filter(x, x).size() == 1",message="exactly one of command, tcp, http and file must be set"
type Readiness struct {
	// command is ready when it exits with 0.
	// +kubebuilder:validation:MaxItems=256
	// +listType=atomic
	// +optional
	Command []string `json:"command,omitempty"`

	// tcp is ready when 127.0.0.1:port accepts a connection.
	// +optional
	TCP *TCPProbe `json:"tcp,omitempty"`

	// http is ready when a GET on 127.0.0.1 answers with 200 to 399.
	// +optional
	HTTP *HTTPProbe `json:"http,omitempty"`

	// file is ready when a regular file is there.
	// +optional
	File *FileProbe `json:"file,omitempty"`

	// timeout bounds the whole probing; a slot that is not ready by then is
	// discarded.
	// +kubebuilder:default="30s"
	// +optional
	Timeout *metav1.Duration `json:"timeout,omitempty"`

	// interval is the pause between two attempts. The first ones come sooner, a
	// millisecond apart (a command: ten) and then each time twice as long.
	// +kubebuilder:default="100ms"
	// +optional
	Interval *metav1.Duration `json:"interval,omitempty"`
}

// TCPProbe connects.
type TCPProbe struct {
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Port int32 `json:"port"`
}

// HTTPProbe sends a GET.
type HTTPProbe struct {
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Port int32 `json:"port"`

	// +kubebuilder:validation:Pattern=`^/`
	// +kubebuilder:validation:MaxLength=2048
	// +kubebuilder:default="/"
	// +optional
	Path string `json:"path,omitempty"`
}

// FileProbe looks for a file that a service or a script makes when it is ready.
type FileProbe struct {
	// path is absolute; a symbolic link is followed.
	// +kubebuilder:validation:Pattern=`^/`
	// +kubebuilder:validation:MaxLength=4095
	Path string `json:"path"`

	// nonEmpty waits until the file has content.
	// +optional
	NonEmpty bool `json:"nonEmpty,omitempty"`
}

// Warm sizes a pool.
type Warm struct {
	// slots is the number of ready slots that each node keeps. With 0 every
	// claim is cold.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1000
	// +optional
	Slots int32 `json:"slots,omitempty"`

	// created is the number of slots that each node keeps beside the ready ones for
	// which everything is made but the container: id range, root file system,
	// network and cgroup. They need no memory, and shorten restores, forks, cold
	// claims and the preparation of ready slots.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1000
	// +optional
	Created int32 `json:"created,omitempty"`

	// maxAge replaces a ready slot that nobody claimed for so long. Absent is
	// never.
	// +optional
	MaxAge *metav1.Duration `json:"maxAge,omitempty"`

	// wait is how long a claim that finds no ready slot stands in its node's line: for
	// one that is being prepared, or for its turn to have one made. "0s" is not at all.
	// +kubebuilder:default="10s"
	// +optional
	Wait *metav1.Duration `json:"wait,omitempty"`

	// checkEvery probes a ready slot again whose readiness was seen so long ago;
	// one that fails is replaced. "0s" is never.
	// +kubebuilder:default="10m"
	// +optional
	CheckEvery *metav1.Duration `json:"checkEvery,omitempty"`

	// rollEvery is the least time between two replacements of ready slots
	// because the class changed. Absent is as fast as slots can be prepared, one
	// at a time.
	// +optional
	RollEvery *metav1.Duration `json:"rollEvery,omitempty"`

	// deflate lets the memory of ready slots go to the node's swap until they are
	// claimed: more of them fit, and what a service needs first after the claim
	// comes back from there. Nodes without swap or without the memory controller
	// in cgroup v2 say so and keep the slots as they are.
	// +optional
	Deflate bool `json:"deflate,omitempty"`
}

// EgressMode is the base of an egress policy.
// +kubebuilder:validation:Enum=internet;none;allow
type EgressMode string

// Egress says where packets may go. Deny wins over everything.
//
// +kubebuilder:validation:XValidation:rule="has(self.mode) && self.mode == 'allow' ? has(self.allow) && size(self.allow) > 0 : !has(self.allow) || size(self.allow) == 0",message="allow needs mode allow, and mode allow needs at least one rule in allow"
// +kubebuilder:validation:XValidation:rule="!has(self.mode) || self.mode != 'none' || !has(self.deny) || size(self.deny) == 0",message="deny means nothing with mode none"
type Egress struct {
	// mode is internet (every public IPv4 address), none, or allow (only what
	// allow names). In every mode private and special ranges, metadata
	// services, the node and other environments are refused, unless a rule of
	// allow names them.
	// +kubebuilder:default=internet
	// +optional
	Mode EgressMode `json:"mode,omitempty"`

	// allow names destinations, with mode allow only.
	// +kubebuilder:validation:MaxItems=1000
	// +listType=atomic
	// +optional
	Allow []EgressRule `json:"allow,omitempty"`

	// deny names destinations that are refused whatever else is said.
	// +kubebuilder:validation:MaxItems=1000
	// +listType=atomic
	// +optional
	Deny []EgressRule `json:"deny,omitempty"`
}

// EgressRule names destinations.
type EgressRule struct {
	// cidr is an IPv4 prefix: "192.0.2.0/24", or "192.0.2.7/32" for one address.
	// +kubebuilder:validation:Pattern=`^([0-9]{1,3}\.){3}[0-9]{1,3}/[0-9]{1,2}$`
	CIDR string `json:"cidr"`

	// ports of TCP and UDP, single or ranges: "443", "8000-8100". Absent is all.
	// +kubebuilder:validation:MaxItems=64
	// +listType=atomic
	// +optional
	Ports []PortRange `json:"ports,omitempty"`
}

// PortRange is one port or a first and a last one, both included.
// +kubebuilder:validation:Pattern=`^[0-9]{1,5}(-[0-9]{1,5})?$`
type PortRange string

// Severity grades a detection.
// +kubebuilder:validation:Enum=low;medium;high;critical
type Severity string

// Response is what is done about a detection.
// +kubebuilder:validation:Enum=record;alert;freeze
type Response string

// Detection chooses responses.
type Detection struct {
	// responses maps a severity (low, medium, high, critical) to a response
	// (record, alert, freeze). Severities that are absent are alert.
	// +kubebuilder:validation:XValidation:rule="self.all(k, k in ['low', 'medium', 'high', 'critical'])",message="severities are low, medium, high and critical"
	// +kubebuilder:validation:MaxProperties=4
	// +optional
	Responses map[Severity]Response `json:"responses,omitempty"`
}

// Snapshot says what is kept.
type Snapshot struct {
	// onRelease takes a snapshot before an environment is released.
	// +optional
	OnRelease bool `json:"onRelease,omitempty"`
}

// Trait is something that identifies a machine.
// +kubebuilder:validation:Enum=hostname;hosts;machineId;sshHostKeys;randomSeed
type Trait string

// Hygiene is the part of a machine's identity that is not renewed.
type Hygiene struct {
	// keep names what is left as the image or the snapshot has it: hostname
	// (/etc/hostname), hosts (the host's name in /etc/hosts), machineId
	// (/etc/machine-id), sshHostKeys, randomSeed. All else of it is made anew
	// or removed before the first service starts.
	// +kubebuilder:validation:MaxItems=5
	// +listType=set
	// +optional
	Keep []Trait `json:"keep,omitempty"`
}

// PortProtocol is what the proxy speaks on a port.
// +kubebuilder:validation:Enum=tcp;http
type PortProtocol string

// Port is a port that callers may reach.
type Port struct {
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	// +kubebuilder:validation:MaxLength=63
	Name string `json:"name"`

	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Port int32 `json:"port"`

	// protocol is tcp, or http for a port that is reached by URL too.
	// +kubebuilder:default=tcp
	// +optional
	Protocol PortProtocol `json:"protocol,omitempty"`
}

// EnvironmentClassStatus is what the controller observed.
type EnvironmentClassStatus struct {
	// observedGeneration is the generation of the spec that conditions speak of.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`

	// ready and wanted are the warm slots of all nodes, environments those that
	// live.
	// +optional
	Ready int32 `json:"ready,omitempty"`
	// +optional
	Wanted int32 `json:"wanted,omitempty"`
	// +optional
	Environments int32 `json:"environments,omitempty"`

	// conditions say whether the class is accepted, and why not.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}
