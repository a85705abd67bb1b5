package netpol

import (
	"net/netip"
	"time"

	"hearth/internal/env"
)

// IslandRecord is all that must be kept to adopt an island after a restart.
// It is JSON for a journal.
type IslandRecord struct {
	NetID    env.NetID         `json:"net_id"`
	Address  netip.Addr        `json:"address"`
	HostLink string            `json:"host_link"`
	IfIndex  int               `json:"ifindex"`
	Attach   string            `json:"attach"` // "tcx" or "clsact"
	Class    *env.EgressPolicy `json:"class,omitempty"`
	Claim    *env.EgressPolicy `json:"claim,omitempty"`
	Unlocked bool              `json:"unlocked"`
}

// Counters is what the kernel counted for one island since it was made.
type Counters struct {
	Allowed   uint64                // packets out
	AllowedIn uint64                // packets in
	BytesOut  uint64                // of allowed packets, without the Ethernet header
	BytesIn   uint64                //
	Unjudged  uint64                // packets that passed because of OpenForTest, both ways
	Drops     map[env.Reason]uint64 // refused on the way out; absent is 0
	DropsIn   map[env.Reason]uint64 // refused on the way in
	FlowsMade uint64                // since the island was made
	Payloads  uint64                // payload records sent
	// PayloadsShed counts records beyond the island's own rate; PayloadsLost
	// those for which the shared ring had no room.
	PayloadsShed, PayloadsLost uint64
}

// Flow is one conversation of an island. An echo has its id as local port.
type Flow struct {
	Protocol          string         `json:"protocol"` // "tcp", "udp", "icmp"
	Local             netip.AddrPort `json:"local"`
	Remote            netip.AddrPort `json:"remote"`
	PacketsOut        uint64         `json:"packets_out"`
	PacketsIn         uint64         `json:"packets_in"`
	BytesOut          uint64         `json:"bytes_out"`
	BytesIn           uint64         `json:"bytes_in"`
	FirstAge, LastAge time.Duration  `json:"-"` // before now, of the first and last packet
}
