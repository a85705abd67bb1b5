package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Environment asks for one environment of a class, and is one for as long as it
// exists: deleting the object releases the environment. Its namespace is the
// tenant. Claims through the API of a durable class make such objects too, named
// like the environment's id.
//
// Everything but resources, timeToLive, labels and annotations is fixed at creation: another
// machine is another object.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Namespaced,shortName=env
// +kubebuilder:selectablefield:JSONPath=`.spec.class`
// +kubebuilder:selectablefield:JSONPath=`.spec.placement.nodeName`
// +kubebuilder:printcolumn:name="Class",type=string,JSONPath=`.spec.class`
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.placement.nodeName`
// +kubebuilder:printcolumn:name="Warm",type=boolean,JSONPath=`.status.warm`
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.message`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name="ID",type=string,priority=1,JSONPath=`.status.id`
// +kubebuilder:printcolumn:name="Expires",type=string,priority=1,JSONPath=`.status.expiresAt`
// +kubebuilder:printcolumn:name="Generation",type=integer,priority=1,JSONPath=`.spec.placement.generation`
type Environment struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// spec is what the environment is claimed with, and where it was placed.
	Spec EnvironmentSpec `json:"spec"`

	// status is what the controller observed.
	// +optional
	Status EnvironmentStatus `json:"status,omitzero"`
}

// EnvironmentList is a list of environments.
//
// +kubebuilder:object:root=true
type EnvironmentList struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Environment `json:"items"`
}

// EnvironmentSpec is what the caller decides; placement is the controller's.
//
// +kubebuilder:validation:XValidation:rule="!has(oldSelf.claim) || has(self.resources) == has(oldSelf.resources) && (!has(self.resources) || self.resources == oldSelf.resources)",message="resources of an environment that was claimed through the API are changed there"
type EnvironmentSpec struct {
	// class is the EnvironmentClass.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="class cannot be changed: make another Environment"
	Class string `json:"class"`

	// hostname inside; absent is the environment's id.
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="hostname cannot be changed: make another Environment"
	// +optional
	Hostname string `json:"hostname,omitempty"`

	// variables reach every process that starts after the claim. Whoever may read
	// this object reads them: a claim through the API keeps secrets out of it.
	// +kubebuilder:validation:MaxProperties=256
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="variables cannot be changed: make another Environment"
	// +optional
	Variables map[string]string `json:"variables,omitempty"`

	// egress narrows the class's policy; it can never widen it.
	// +optional
	Egress *Egress `json:"egress,omitempty"`

	// snapshot is restored before the first process starts: "<environment>/<number>".
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:Pattern=`^e-[0-9a-z]{26}/[0-9]+$`
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="snapshot cannot be changed: make another Environment"
	// +optional
	Snapshot string `json:"snapshot,omitempty"`

	// mounts are directories of the node that are mounted into the environment: those
	// that the class allows and the node has.
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="mounts cannot be changed: make another Environment"
	// +listType=map
	// +listMapKey=path
	// +optional
	Mounts []Mount `json:"mounts,omitempty"`

	// timeToLive after its claim the environment is released, and this object is
	// deleted; at most what the class allows. Absent is what the class says. It
	// may be changed while the environment lives, and counts from the claim then
	// too.
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1s')",message="at least 1s, or no timeToLive at all"
	// +optional
	TimeToLive *metav1.Duration `json:"timeToLive,omitempty"`

	// resources are limits of this environment alone, in place of its class's. They
	// may be changed while it lives; what is taken away again stays as it was. Of an
	// environment that was claimed through the API they are changed there.
	// +optional
	Resources *EnvironmentResources `json:"resources,omitempty"`

	// claim is how a call through the API made this object. It holds digests only.
	// +optional
	Claim *Claim `json:"claim,omitempty"`

	// placement is written by the controller before it asks a node.
	// +kubebuilder:validation:XValidation:rule="self.generation >= oldSelf.generation",message="a placement's generation only rises"
	// +optional
	Placement *Placement `json:"placement,omitempty"`
}

// Mount is a directory of the node inside an environment.
type Mount struct {
	// name is the directory's in the node's configuration.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Name string `json:"name"`

	// directory below it; absent is all of it.
	// +kubebuilder:validation:MaxLength=1024
	// +optional
	Directory string `json:"directory,omitempty"`

	// path is where it is mounted; what is missing of that is made.
	// +kubebuilder:validation:Pattern=`^/.`
	// +kubebuilder:validation:MaxLength=1024
	Path string `json:"path"`

	// readOnly refuses writes.
	// +optional
	ReadOnly bool `json:"readOnly,omitempty"`
}

// Claim lets a repeated call find what it made before.
type Claim struct {
	// id is the environment's id.
	// +kubebuilder:validation:MaxLength=28
	ID string `json:"id"`

	// keyHash is the SHA-256 of tenant, a zero byte and the idempotency key, in hex.
	// +kubebuilder:validation:MaxLength=64
	// +optional
	KeyHash string `json:"keyHash,omitempty"`

	// requestHash is the SHA-256 of the request, in hex.
	// +kubebuilder:validation:MaxLength=64
	// +optional
	RequestHash string `json:"requestHash,omitempty"`

	// count is how many environments the call made.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1000
	// +optional
	Count int32 `json:"count,omitempty"`
}

// Placement is one generation of the environment on one node.
type Placement struct {
	// nodeName is the Kubernetes node.
	// +kubebuilder:validation:MaxLength=253
	// +optional
	NodeName string `json:"nodeName,omitempty"`

	// generation fences: a holder of a lower one may not act for the environment.
	// +kubebuilder:validation:Minimum=0
	Generation int64 `json:"generation"`

	// stale are earlier placements that are not confirmed to be gone.
	// +kubebuilder:validation:MaxItems=64
	// +listType=atomic
	// +optional
	Stale []StalePlacement `json:"stale,omitempty"`

	// next is where the environment is on its way to. Its generation stays when
	// nothing came of that: no other placement has it.
	// +optional
	Next *NextPlacement `json:"next,omitempty"`
}

// NextPlacement is what a move is about to make the placement.
type NextPlacement struct {
	// nodeName is empty while the environment does not move.
	// +kubebuilder:validation:MaxLength=253
	// +optional
	NodeName string `json:"nodeName,omitempty"`
	// +kubebuilder:validation:Minimum=0
	Generation int64 `json:"generation"`
}

// StalePlacement is a placement that must be released.
type StalePlacement struct {
	// +kubebuilder:validation:MaxLength=253
	NodeName string `json:"nodeName"`
	// +kubebuilder:validation:Minimum=0
	Generation int64 `json:"generation"`
}

// EnvironmentPhase is where the environment stands in its life.
// +kubebuilder:validation:Enum=claiming;running;paused;stalled;hibernated;quarantined;fenced;released;failed
type EnvironmentPhase string

// EnvironmentStatus is what the controller observed.
type EnvironmentStatus struct {
	// phase is where the environment stands in its life.
	// +optional
	Phase EnvironmentPhase `json:"phase,omitempty"`

	// id names the environment in the API, in metrics and on its node.
	// +kubebuilder:validation:MaxLength=28
	// +optional
	ID string `json:"id,omitempty"`

	// generation of the placement that this status speaks of.
	// +optional
	Generation int64 `json:"generation,omitempty"`

	// reason is idle, of an environment that is paused because it did nothing, or
	// expired, of one whose time to live has ended.
	// +kubebuilder:validation:MaxLength=64
	// +optional
	Reason string `json:"reason,omitempty"`

	// expiresAt is when the environment is released. Absent is never.
	// +optional
	ExpiresAt *metav1.Time `json:"expiresAt,omitempty"`

	// timeToLive is the spec's that is in force.
	// +optional
	TimeToLive *metav1.Duration `json:"timeToLive,omitempty"`

	// message says why, for failed, quarantined, fenced and stalled.
	// +kubebuilder:validation:MaxLength=1024
	// +optional
	Message string `json:"message,omitempty"`

	// warm is true if a ready slot was claimed.
	// +optional
	Warm bool `json:"warm,omitempty"`

	// served says how the claim was: warm, from a slot that was ready; queued, from
	// one that became ready while the claim waited; cold, from one made for it.
	// +kubebuilder:validation:Enum=warm;queued;cold
	// +optional
	Served string `json:"served,omitempty"`

	// address is the host and port of the node's Guest API.
	// +kubebuilder:validation:MaxLength=256
	// +optional
	Address string `json:"address,omitempty"`

	// resources are the limits in force.
	// +optional
	Resources *EnvironmentResources `json:"resources,omitempty"`

	// claimedAt is when the environment began to run.
	// +optional
	ClaimedAt *metav1.Time `json:"claimedAt,omitempty"`

	// observedGeneration is the metadata.generation that conditions speak of.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`

	// conditions: Ready is true while the environment runs.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// The types of conditions.
const (
	// ConditionReady is true while an environment runs, and while a class has its
	// warm slots.
	ConditionReady = "Ready"
	// ConditionAccepted is true if a class passed the checks that a schema cannot
	// make.
	ConditionAccepted = "Accepted"
)

// Finalizer keeps an Environment until its node has let go of it.
const Finalizer = "hearth.run/release"
