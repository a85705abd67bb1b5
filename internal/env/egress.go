package env

import "net/netip"

// EgressMode is the base of an egress policy.
type EgressMode string

// The modes. Whatever the mode, private and special ranges, metadata services,
// the node and other environments are refused unless an Allow rule of the
// class names them and the mode is EgressAllow.
const (
	EgressInternet EgressMode = "internet" // every public IPv4 address
	EgressNone     EgressMode = "none"     // nothing, the resolver included
	EgressAllow    EgressMode = "allow"    // only what Allow names
)

// EgressPolicy says where an environment's packets may go. Deny wins.
type EgressPolicy struct {
	Mode  EgressMode
	Allow []EgressRule // only with EgressAllow
	Deny  []EgressRule
}

// EgressRule names destinations.
type EgressRule struct {
	CIDR  netip.Prefix // IPv4
	Ports []PortRange  // empty is every port of TCP and UDP
}

// PortRange is First to Last, both included.
type PortRange struct{ First, Last uint16 }

// Reason is why a packet was refused: the word is a metric label, an event's
// field and an index in the kernel's counters.
type Reason string

// The verdict reasons, in the order of the kernel's enumeration
// (bpf/include/verdict.h), which starts at 1; 0 is "allowed".
const (
	ReasonMetadata  Reason = "metadata"
	ReasonPrivate   Reason = "private"
	ReasonNode      Reason = "node"
	ReasonNeighbour Reason = "neighbour"
	ReasonSpecial   Reason = "special"
	ReasonSpoof     Reason = "spoof"
	ReasonEtherType Reason = "ethertype"
	ReasonProtocol  Reason = "protocol"
	ReasonFragment  Reason = "fragment"
	ReasonOption    Reason = "option"
	ReasonICMP      Reason = "icmp"
	ReasonMulticast Reason = "multicast"
	ReasonPolicy    Reason = "policy"
	ReasonName      Reason = "name"
	ReasonQuota     Reason = "quota"
	ReasonLocked    Reason = "locked"
)

// Reasons lists every verdict reason; Reasons[i] has the kernel's number i+1.
var Reasons = [...]Reason{
	ReasonMetadata, ReasonPrivate, ReasonNode, ReasonNeighbour, ReasonSpecial,
	ReasonSpoof, ReasonEtherType, ReasonProtocol, ReasonFragment, ReasonOption,
	ReasonICMP, ReasonMulticast, ReasonPolicy, ReasonName, ReasonQuota, ReasonLocked,
}
