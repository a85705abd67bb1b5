package netpol

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"hearth/bpf"
	"hearth/internal/env"
)

// Adopt takes over an island that an earlier process made. What the record
// says is checked against the kernel: link, entries, attachment. The programs
// are replaced in place and the policies written anew, so that a new version's
// rules are in force; a record without policies leaves an open island open
// under those that the kernel has, until the next Unlock. An error wraps env.ErrCorrupt if the island is not whole;
// it is then locked if it can be, and Destroy still removes it.
func (m *Manager) Adopt(slot env.SlotID, rec IslandRecord) error {
	is := &island{slot: slot, netID: rec.NetID, address: rec.Address, name: rec.HostLink, ifindex: rec.IfIndex, attach: rec.Attach}
	link, err := m.verify(slot, rec)
	if err != nil {
		return fmt.Errorf("adopt island of %s: %w", slot, err)
	}
	is.mac, is.hostMAC, is.mode = link.Mac, link.HostMac, bpf.IslandIslandMode(link.Mode)
	if err := m.book(is); err != nil {
		return err
	}
	is.mu.Lock()
	defer is.mu.Unlock()
	err = reattach(m.cfg, m.kernel, slot, rec)
	switch {
	case err == nil && rec.Class != nil:
		mode := bpf.IslandIslandModeISLAND_LOCKED
		if rec.Unlocked {
			mode = bpf.IslandIslandModeISLAND_OPEN
		}
		err = m.setPolicies(is, mode, *rec.Class, rec.Claim)
	case err == nil && rec.Unlocked:
		err = fmt.Errorf("%w: unlocked, but the record has no policy", env.ErrCorrupt)
	case err == nil && is.mode != bpf.IslandIslandModeISLAND_OPEN:
		err = m.write(is, bpf.IslandIslandModeISLAND_LOCKED, nil, nil)
	}
	if err != nil {
		err = errors.Join(err, m.write(is, bpf.IslandIslandModeISLAND_LOCKED, is.class, is.claim))
		return fmt.Errorf("adopt island of %s: %w", slot, err)
	}
	return nil
}

// verify compares a record with link and kernel entries.
func (m *Manager) verify(slot env.SlotID, rec IslandRecord) (bpf.IslandIsland, error) {
	var k bpf.IslandIsland
	link, err := netlink.LinkByIndex(rec.IfIndex)
	if err != nil {
		return k, fmt.Errorf("%w: link %d (%s): %w", env.ErrCorrupt, rec.IfIndex, rec.HostLink, err)
	}
	a := link.Attrs()
	if a.Name != rec.HostLink || a.Name != m.cfg.linkName(slot) || a.Alias != m.cfg.linkAlias(slot) {
		return k, fmt.Errorf("%w: link %d is %s (%s), not %s", env.ErrCorrupt, rec.IfIndex, a.Name, a.Alias, rec.HostLink)
	}
	if err := m.kernel.Islands.Lookup(uint32(rec.IfIndex), &k); err != nil {
		return k, fmt.Errorf("%w: island record of link %s: %w", env.ErrCorrupt, rec.HostLink, err)
	}
	if env.NetID(k.NetId) != rec.NetID || wordAddr(k.Address) != rec.Address {
		return k, fmt.Errorf("%w: link %s is island %d at %s, the record says %d at %s",
			env.ErrCorrupt, rec.HostLink, k.NetId, wordAddr(k.Address), rec.NetID, rec.Address)
	}
	if mac := net.HardwareAddr(k.HostMac[:]); mac.String() != a.HardwareAddr.String() {
		return k, fmt.Errorf("%w: link %s has address %s, the record %s", env.ErrCorrupt, rec.HostLink, a.HardwareAddr, mac)
	}
	var st bpf.IslandIslandStats
	if err := m.kernel.Stats.Lookup(k.NetId, &st); err != nil {
		return k, fmt.Errorf("%w: counters of island %d: %w", env.ErrCorrupt, k.NetId, err)
	}
	return k, nil
}

// book enters an adopted island.
func (m *Manager) book(is *island) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.islands[is.slot] != nil || m.addresses[is.address] != nil {
		return fmt.Errorf("%w: slot %s or address %s has an island", env.ErrExists, is.slot, is.address)
	}
	m.islands[is.slot], m.addresses[is.address] = is, is
	return nil
}

// Sweep removes what belongs to no kept slot (links, pins, kernel entries,
// policies) and builds the second wall anew if somebody took it away. It is
// safe beside every other method. Run it once the kept islands are adopted,
// and every few minutes.
func (m *Manager) Sweep(ctx context.Context, keep func(env.SlotID) bool) error {
	slots, err := m.present()
	faults := []error{err}
	for slot := range slots {
		if keep(slot) || ctx.Err() != nil || m.making(slot) {
			continue
		}
		m.log.Info("island swept", "slot", slot)
		faults = append(faults, m.Destroy(ctx, slot))
	}
	faults = append(faults, ctx.Err(), m.sweepEntries(), m.mendWall())
	return errors.Join(faults...)
}

// making reports whether the slot's island has no link yet.
func (m *Manager) making(slot env.SlotID) bool {
	is, err := m.island(slot)
	if err != nil {
		return false
	}
	if !is.mu.TryLock() {
		return true
	}
	defer is.mu.Unlock()
	return is.attach == "" && !is.gone
}

// present lists slots by what is there: books, link aliases, pins.
func (m *Manager) present() (map[env.SlotID]bool, error) {
	slots := map[env.SlotID]bool{}
	m.mu.Lock()
	for slot := range m.islands {
		slots[slot] = true
	}
	m.mu.Unlock()
	links, err := netlink.LinkList()
	if err != nil {
		return slots, fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		if slot, ours := m.cfg.slotOfAlias(l.Attrs().Alias); ours {
			slots[slot] = true
		}
	}
	pins, err := os.ReadDir(linkDir(m.cfg))
	if err != nil {
		return slots, fmt.Errorf("list pins: %w", err)
	}
	for _, p := range pins {
		if i := strings.LastIndexByte(p.Name(), '-'); i > 0 {
			if slot, err := env.ParseSlotID(p.Name()[:i]); err == nil {
				slots[slot] = true
			}
		}
	}
	return slots, nil
}

// sweepEntries removes kernel entries of net ids that the books do not have.
// The kernel is listed before the books, so that one made meanwhile is safe.
func (m *Manager) sweepEntries() error {
	records, err := m.records()
	if err != nil {
		return err
	}
	ids := map[uint32]bool{}
	var id uint32
	var st bpf.IslandIslandStats
	for it := m.kernel.Stats.Iterate(); it.Next(&id, &st); {
		ids[id] = true
	}
	var flows ebpf.MapID
	for it := m.kernel.Flows.Iterate(); it.Next(&id, &flows); {
		ids[id] = true
	}
	known := map[uint32]bool{}
	m.mu.Lock()
	for _, is := range m.islands {
		known[uint32(is.netID)] = true
	}
	m.mu.Unlock()
	var faults []error
	inUse := map[uint32]bool{}
	for ifindex, r := range records {
		if known[r.NetId] {
			inUse[r.ClassPolicy], inUse[r.ClaimPolicy] = true, true
			continue
		}
		faults = append(faults, absent(m.kernel.Islands.Delete(ifindex)))
		m.mu.Lock()
		if a := wordAddr(r.Address); m.addresses[a] == nil {
			delete(m.addresses, a)
		}
		m.mu.Unlock()
	}
	for id := range ids {
		if !known[id] {
			_, err := m.eraseID(id)
			faults = append(faults, err)
		}
	}
	return errors.Join(append(faults, m.policies.sweep(inUse))...)
}

// mendWall installs the second wall if it is not whole.
func (m *Manager) mendWall() error {
	whole, err := m.wall.standing()
	if err != nil || whole {
		return err
	}
	m.log.Warn("second wall was gone and is built anew", "table", m.wall.table.Name)
	m.mu.Lock()
	books := make([]*island, 0, len(m.islands))
	for _, is := range m.islands {
		books = append(books, is)
	}
	m.mu.Unlock()
	for _, is := range books { // an exemption does not outlive the wall
		is.mu.Lock()
		is.unjudged = false
		is.mu.Unlock()
	}
	return m.wall.install(nil)
}
