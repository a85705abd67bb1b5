package netpol

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"hearth/bpf"
	"hearth/internal/env"
)

// totals sums counters, over islands that are gone.
type totals struct {
	out, in              [len(bpf.IslandIslandStats{}.Out)]uint64
	bytesOut, bytesIn    uint64
	unjudged, flows      uint64
	payloads, shed, lost uint64
}

func (t *totals) add(st *bpf.IslandIslandStats) {
	for i := range t.out {
		t.out[i] += st.Out[i]
		t.in[i] += st.In[i]
	}
	t.bytesOut += st.BytesOut
	t.bytesIn += st.BytesIn
	t.unjudged += st.Unjudged
	t.flows += st.FlowsMade
	t.payloads += st.PayloadSent
	t.shed += st.PayloadShed
	t.lost += st.PayloadLost
}

// Counters reads what the kernel counted for a slot's island.
func (m *Manager) Counters(slot env.SlotID) (Counters, error) {
	is, err := m.island(slot)
	if err != nil {
		return Counters{}, err
	}
	var st bpf.IslandIslandStats
	if err := m.kernel.Stats.Lookup(uint32(is.netID), &st); err != nil {
		return Counters{}, fmt.Errorf("read counters of %s: %w", slot, err)
	}
	return Counters{
		Allowed: st.Out[0], AllowedIn: st.In[0], BytesOut: st.BytesOut, BytesIn: st.BytesIn, Unjudged: st.Unjudged,
		Drops: byReason(st.Out[1:]), DropsIn: byReason(st.In[1:]), FlowsMade: st.FlowsMade,
		Payloads: st.PayloadSent, PayloadsShed: st.PayloadShed, PayloadsLost: st.PayloadLost,
	}, nil
}

func byReason(counts []uint64) map[env.Reason]uint64 {
	out := map[env.Reason]uint64{}
	for i, n := range counts {
		if n != 0 {
			out[env.Reasons[i]] = n
		}
	}
	return out
}

// Flows lists an island's conversations, the most recent first. Long silent
// ones stay listed until their room is needed.
func (m *Manager) Flows(slot env.SlotID) ([]Flow, error) {
	is, err := m.island(slot)
	if err != nil {
		return nil, err
	}
	var id ebpf.MapID
	if err := m.kernel.Flows.Lookup(uint32(is.netID), &id); err != nil {
		return nil, fmt.Errorf("find flows of %s: %w", slot, err)
	}
	inner, err := ebpf.NewMapFromID(id)
	if err != nil {
		return nil, fmt.Errorf("open flows of %s: %w", slot, err)
	}
	defer inner.Close()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return nil, fmt.Errorf("read clock: %w", err)
	}
	var out []Flow
	var k bpf.IslandFlowKey
	var v bpf.IslandFlow
	it := inner.Iterate()
	for it.Next(&k, &v) {
		out = append(out, flowOf(is.address, &k, &v, now.Nano()))
	}
	// A flow that ended while it was passed ends the walk early, which is no fault.
	slices.SortFunc(out, func(a, b Flow) int { return cmp.Compare(a.LastAge, b.LastAge) })
	return out, nil
}

func flowOf(local netip.Addr, k *bpf.IslandFlowKey, v *bpf.IslandFlow, now int64) Flow {
	protocol := map[uint8]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp", unix.IPPROTO_ICMP: "icmp"}[k.Protocol]
	return Flow{
		Protocol:   protocol,
		Local:      netip.AddrPortFrom(local, hostPort(k.LocalPort)),
		Remote:     netip.AddrPortFrom(wordAddr(k.RemoteAddr), hostPort(k.RemotePort)),
		PacketsOut: v.PacketsOut, PacketsIn: v.PacketsIn, BytesOut: v.BytesOut, BytesIn: v.BytesIn,
		FirstAge: time.Duration(now - int64(v.FirstNs)), LastAge: time.Duration(now - int64(v.LastNs)),
	}
}
