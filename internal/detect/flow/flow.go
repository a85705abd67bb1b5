package flow

import (
	"net/netip"
	"time"

	"hearth/internal/env"
)

// Cap is how many bytes of a stream are kept; the kernel captures no more.
const Cap = 2048

// Direction is who sent.
type Direction uint8

// The directions, with the kernel's numbers.
const (
	Out Direction = 0 // sent by the environment
	In  Direction = 1 // sent to the environment
)

func (d Direction) String() string {
	if d == In {
		return "in"
	}
	return "out"
}

// Protocol is the IP protocol number.
type Protocol uint8

// The protocols whose payloads are captured.
const (
	TCP Protocol = 6
	UDP Protocol = 17
)

func (p Protocol) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	default:
		return "other"
	}
}

// Key names a flow from the environment's side, whatever the direction of a
// segment.
type Key struct {
	NetID    env.NetID
	Protocol Protocol
	Local    netip.AddrPort // the environment's
	Remote   netip.AddrPort // the peer's
}

// Segment is a captured piece of a stream.
type Segment struct {
	Key       Key
	Direction Direction
	Seq       uint32 // of Data[0]
	ISN       uint32 // of the stream's first byte, valid if HasISN
	HasISN    bool
	Cut       bool // the segment was longer on the wire than Data
	Data      []byte
	At        time.Duration // CLOCK_MONOTONIC of the capture
}

// Prefix is what is known of a stream so far. Data is the table's own and
// valid until the next call.
type Prefix struct {
	Key       Key
	Direction Direction
	Data      []byte        // contiguous from the stream's first byte
	First, At time.Duration // capture of the first and of the newest segment
	Segments  int
	Conflict  bool // two captures of one byte differed
	Full      bool // Data has reached Cap: nothing will be added
	Seen      *Seen
}

// Seen is the judge's own memory of a stream. It lives and dies with the
// stream, so that a new connection on the same ports starts afresh.
type Seen struct {
	Times    int      // it was judged
	Rules    []string // that have matched
	Conflict bool     // was reported
	Messages int      // whole ones at the beginning, which need no second look
}
