package netpol

import (
	"fmt"

	"hearth/bpf"
	"hearth/internal/env"
)

// Packets is how many packets of a slot's island have passed so far, in both
// directions; what was refused does not count. It is one lookup in a map.
func (m *Manager) Packets(slot env.SlotID) (uint64, error) {
	is, err := m.island(slot)
	if err != nil {
		return 0, err
	}
	var st bpf.IslandIslandStats
	if err := m.kernel.Stats.Lookup(uint32(is.netID), &st); err != nil {
		return 0, fmt.Errorf("read counters of %s: %w", slot, err)
	}
	return st.Out[0] + st.In[0], nil
}
