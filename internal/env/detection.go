package env

import (
	"net/netip"
	"time"
)

// Severity grades a detection.
type Severity string

// The severities, rising.
const (
	SeverityLow      Severity = "low"
	SeverityMedium   Severity = "medium"
	SeverityHigh     Severity = "high"
	SeverityCritical Severity = "critical"
)

// Response is what was done about a detection.
type Response string

// The responses of this version, rising.
const (
	ResponseRecord Response = "record"
	ResponseAlert  Response = "alert"
	ResponseFreeze Response = "freeze"
)

// Detection is a rule's finding about one environment. Its fields other than
// the ids come from a hostile domain: they are bounded, never trusted.
type Detection struct {
	Time        time.Time      `json:"time"`
	Rule        string         `json:"rule"` // "mining.stratum_v1"
	Severity    Severity       `json:"severity"`
	Slot        SlotID         `json:"slot"`
	Environment ID             `json:"environment,omitempty"` // empty if the slot was not claimed
	Class       string         `json:"class"`
	PID         int            `json:"pid,omitempty"` // on the host; 0 if no process could be named
	Command     string         `json:"command,omitempty"`
	Destination netip.AddrPort `json:"destination,omitzero"`
	Detail      string         `json:"detail,omitempty"` // the matched bytes, quoted and cut
	Response    Response       `json:"response"`
	// ResponseError says why a stronger response could not be carried out;
	// Response is then what was done instead.
	ResponseError string `json:"response_error,omitempty"`
	// Count is how many findings of this rule in this slot the detection
	// stands for; it is 1 when the detection is made and rises afterwards.
	Count uint64 `json:"count,omitempty"`
	// Latency runs from the event in the kernel to the detection; for payloads,
	// from the first byte of that direction of the flow.
	Latency time.Duration `json:"latency_ns"`
}
