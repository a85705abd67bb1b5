package netpol

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"hearth/bpf"
	"hearth/internal/env"
)

// Manager owns the islands of one instance on this node. It works in the
// network namespace of the process. Its methods may be called concurrently.
type Manager struct {
	cfg      Config
	log      *slog.Logger
	kernel   *bpf.IslandObjects
	flowMap  *ebpf.MapSpec // of one island
	policies *policyTable
	wall     *wall
	mtu      int

	mu        sync.Mutex // guards what follows
	islands   map[env.SlotID]*island
	addresses map[netip.Addr]*island // nil: of an island that is not adopted yet
	cursor    netip.Addr             // last address given
	retired   totals                 // of destroyed islands

	dns dnsCounters
}

// Open loads the programs, or takes over what an earlier process left, sets up
// NAT and the second wall, and puts the gateway's address on lo. Islands that
// exist go on being judged throughout; Adopt or Sweep must follow for each.
func Open(cfg Config, log *slog.Logger) (*Manager, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	if err := checkForwarding(); err != nil {
		return nil, err
	}
	mtu, err := uplinkMTU(cfg.MTU)
	if err != nil {
		return nil, err
	}
	if err := raiseGateway(cfg.gateway()); err != nil {
		return nil, err
	}
	objs, flowMap, err := openKernel(cfg)
	if err != nil {
		return nil, err
	}
	m := &Manager{
		cfg: cfg, log: log, kernel: objs, flowMap: flowMap, wall: newWall(cfg), mtu: mtu,
		islands: map[env.SlotID]*island{}, addresses: map[netip.Addr]*island{}, cursor: cfg.gateway(),
	}
	if m.policies, err = openPolicies(objs.Policies, newCompiler(cfg)); err != nil {
		return nil, errors.Join(err, objs.Close())
	}
	records, err := m.records()
	if err != nil {
		return nil, errors.Join(err, objs.Close())
	}
	for _, r := range records {
		m.addresses[wordAddr(r.Address)] = nil
	}
	if err := m.wall.install(nil); err != nil {
		return nil, errors.Join(err, objs.Close())
	}
	return m, nil
}

// Close gives up this process's hold. Links, programs, maps, NAT and the
// second wall go on as they are.
func (m *Manager) Close() error {
	m.mu.Lock()
	var held []*island
	for _, is := range m.islands {
		held = append(held, is)
	}
	m.mu.Unlock()
	faults := []error{m.kernel.Close()}
	for _, is := range held {
		faults = append(faults, is.letGo())
	}
	return errors.Join(faults...)
}

// PayloadMap is the ring of first payloads, records of bpf.IslandPayloadEvent.
// It belongs to the Manager.
func (m *Manager) PayloadMap() *ebpf.Map { return m.kernel.Payloads }

// SlotOf names the slot of an island, for what the kernel reports by number.
func (m *Manager) SlotOf(id env.NetID) (env.SlotID, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for slot, is := range m.islands {
		if is.netID == id {
			return slot, true
		}
	}
	return "", false
}

// island finds a slot's, or fails with env.ErrNotFound.
func (m *Manager) island(slot env.SlotID) (*island, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	is := m.islands[slot]
	if is == nil {
		return nil, fmt.Errorf("%w: slot %s has no island on this node", env.ErrNotFound, slot)
	}
	return is, nil
}

// reserve gives a new island its number and address, and its place in the
// books, so that a sweep knows what is being made.
func (m *Manager) reserve(slot env.SlotID, ids env.IDRange) (*island, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.islands[slot] != nil {
		return nil, fmt.Errorf("%w: slot %s has an island", env.ErrExists, slot)
	}
	addr, err := m.freeAddress()
	if err != nil {
		return nil, err
	}
	var key, id uint32
	if err := m.kernel.NextNetId.Lookup(key, &id); err != nil {
		return nil, fmt.Errorf("read next net id: %w", err)
	}
	if id++; id == 0 {
		return nil, fmt.Errorf("%w: every net id of this boot was used: reboot the node", env.ErrExhausted)
	}
	if err := m.kernel.NextNetId.Update(key, id, ebpf.UpdateAny); err != nil {
		return nil, fmt.Errorf("write next net id: %w", err)
	}
	is := &island{slot: slot, netID: env.NetID(id), address: addr, name: m.cfg.linkName(slot), ids: ids}
	m.islands[slot], m.addresses[addr] = is, is
	return is, nil
}

// freeAddress walks on from the last one given, so that an address rests as
// long as can be before another island gets it. Callers hold mu.
func (m *Manager) freeAddress() (netip.Addr, error) {
	a := m.cursor
	for range 1 << (32 - m.cfg.Pool.Bits()) {
		if a = a.Next(); !m.cfg.Pool.Contains(a) {
			a = m.cfg.Pool.Addr()
		}
		_, taken := m.addresses[a]
		last := a.As4()[3] // .0 and .255 look like networks and broadcasts to some software
		if taken || a == m.cfg.gateway() || last == 0 || last == 255 {
			continue
		}
		m.cursor = a
		return a, nil
	}
	return netip.Addr{}, fmt.Errorf("%w: no free address in %s: release environments or widen the pool", env.ErrExhausted, m.cfg.Pool)
}

// forget takes an island out of the books and keeps what it counted.
func (m *Manager) forget(is *island, last *bpf.IslandIslandStats) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.islands[is.slot] == is {
		delete(m.islands, is.slot)
	}
	delete(m.addresses, is.address)
	if last != nil {
		m.retired.add(last)
	}
}

// records lists the kernel's island records by link index.
func (m *Manager) records() (map[uint32]bpf.IslandIsland, error) {
	out := map[uint32]bpf.IslandIsland{}
	var k uint32
	var v bpf.IslandIsland
	it := m.kernel.Islands.Iterate()
	for it.Next(&k, &v) {
		out[k] = v
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("list island records: %w", err)
	}
	return out, nil
}

// raiseGateway puts the address on lo, which every island's route names.
func raiseGateway(gateway netip.Addr) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("raise lo: %w", err)
	}
	if err := netlink.AddrReplace(lo, &netlink.Addr{IPNet: hostNet(gateway)}); err != nil {
		return fmt.Errorf("add gateway address %s to lo: %w", gateway, err)
	}
	return nil
}

// uplinkMTU is what was configured, or the default route's, or Ethernet's.
func uplinkMTU(configured int) (int, error) {
	if configured != 0 {
		return configured, nil
	}
	routes, err := netlink.RouteListFiltered(unix.AF_INET, &netlink.Route{Dst: nil}, netlink.RT_FILTER_DST)
	if err != nil {
		return 0, fmt.Errorf("list default routes: %w", err)
	}
	mtu := 1500
	for _, r := range routes {
		if l, err := netlink.LinkByIndex(r.LinkIndex); err == nil { // a multipath route has none
			mtu = min(mtu, l.Attrs().MTU)
		}
	}
	return max(mtu, 576), nil
}
