package netpol

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"

	"hearth/bpf"
	"hearth/internal/env"
)

// island is the Manager's book of one island. The first five fields never
// change.
type island struct {
	slot    env.SlotID
	netID   env.NetID
	address netip.Addr
	name    string      // of the host's end
	ids     env.IDRange // zero for an adopted one, which needs them no more

	mu       sync.Mutex // guards what follows and the order of this island's kernel writes
	ifindex  int        // 0 until the link exists
	mac      [6]byte
	hostMAC  [6]byte
	attach   string
	mode     bpf.IslandIslandMode
	class    *policy
	claim    *policy // nil if the claim has none
	classOf  *env.EgressPolicy
	claimOf  *env.EgressPolicy
	holder   *holder
	ns       *os.File
	unjudged bool // in the second wall's set as well
	gone     bool
}

// Island is a slot's place in the network, as its maker sees it.
type Island struct {
	NetID    env.NetID
	Address  netip.Addr
	Gateway  netip.Addr
	HostLink string

	inner *island
}

// UserNS is the path of the user namespace that owns the island, valid until
// ReleaseHolder.
func (i *Island) UserNS() string {
	i.inner.mu.Lock()
	defer i.inner.mu.Unlock()
	if i.inner.holder == nil {
		return ""
	}
	return i.inner.holder.path("user")
}

// NetNSFile is the island's network namespace. It belongs to the Manager and
// is nil after ReleaseHolder.
func (i *Island) NetNSFile() *os.File {
	i.inner.mu.Lock()
	defer i.inner.mu.Unlock()
	return i.inner.ns
}

// ReleaseHolder ends the child that carried the namespaces and closes
// NetNSFile: from now on the container's processes keep them. Call it once the
// container is created, or never to be. Idempotent.
func (i *Island) ReleaseHolder() error { return i.inner.letGo() }

// Record is what a journal keeps for Adopt, once Connect has returned.
func (i *Island) Record() IslandRecord { return i.inner.record() }

func (is *island) letGo() error {
	is.mu.Lock()
	holder, ns := is.holder, is.ns
	is.holder, is.ns = nil, nil
	is.mu.Unlock()
	var faults []error
	if holder != nil {
		faults = append(faults, holder.release())
	}
	if ns != nil {
		faults = append(faults, ns.Close())
	}
	return errors.Join(faults...)
}

func (is *island) record() IslandRecord {
	is.mu.Lock()
	defer is.mu.Unlock()
	return IslandRecord{
		NetID: is.netID, Address: is.address, HostLink: is.name, IfIndex: is.ifindex, Attach: is.attach,
		Class: is.classOf, Claim: is.claimOf, Unlocked: is.mode == bpf.IslandIslandModeISLAND_OPEN,
	}
}

// Create makes a slot's island: namespaces and no link yet, which Connect gives it.
// Nothing is left of an island whose making failed. Errors wrap env.ErrExists,
// env.ErrExhausted and env.ErrUnsupported.
func (m *Manager) Create(ctx context.Context, slot env.SlotID, ids env.IDRange) (*Island, error) {
	if ids.Base == 0 || ids.Size == 0 {
		return nil, fmt.Errorf("%w: id range %d+%d of slot %s", env.ErrInvalid, ids.Base, ids.Size, slot)
	}
	is, err := m.reserve(slot, ids)
	if err != nil {
		return nil, err
	}
	if err := is.hold(ctx, m.cfg.InitPath); err != nil {
		return nil, errors.Join(fmt.Errorf("make island of %s: %w", slot, err), m.teardown(is))
	}
	return &Island{NetID: is.netID, Address: is.address, Gateway: m.cfg.gateway(), HostLink: is.name, inner: is}, nil
}

func (is *island) hold(ctx context.Context, initPath string) error {
	h, err := hold(ctx, initPath, is.ids)
	if err != nil {
		return err
	}
	is.mu.Lock()
	defer is.mu.Unlock()
	is.holder = h
	if is.ns, err = os.Open(h.path("net")); err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	return nil
}

// Connect gives an island its link, addresses, and programs attached and pinned;
// it is locked. Most of the time it waits for the kernel, while a container may be
// made in the namespaces, which ReleaseHolder must not let go before. After an
// error nothing is left of the island.
func (m *Manager) Connect(ctx context.Context, slot env.SlotID) error {
	is, err := m.island(slot)
	if err != nil {
		return err
	}
	is.mu.Lock()
	if is.gone || is.ns == nil || is.ifindex != 0 {
		is.mu.Unlock()
		return fmt.Errorf("%w: island of %s: it has its link, or its namespaces were let go", env.ErrState, slot)
	}
	err = m.connect(ctx, is)
	is.mu.Unlock()
	if err != nil {
		return errors.Join(fmt.Errorf("connect island of %s: %w", slot, err), m.teardown(is))
	}
	return nil
}

// connect takes the steps in the order that leaves no moment unjudged: record and
// programs, and only then a link that is up. Each change of a link's programs and of a
// map of maps waits for a grace period of RCU, so that the two go side by side.
// Callers hold mu.
func (m *Manager) connect(ctx context.Context, is *island) error {
	link, err := veth(is.name, m.cfg.linkAlias(is.slot), m.mtu, int(is.ns.Fd()))
	if err != nil {
		return err
	}
	is.ifindex = link.Index
	copy(is.mac[:], link.PeerHardwareAddr)
	copy(is.hostMAC[:], link.HardwareAddr)
	var judged errgroup.Group
	var attached string
	judged.Go(func() error { return m.enter(is) })
	judged.Go(func() (err error) {
		attached, err = attach(m.cfg, m.kernel, is.slot, link.Index)
		return err
	})
	if err := judged.Wait(); err != nil {
		return err
	}
	is.attach = attached
	if err := furnish(is.ns, link, is.address, m.cfg.gateway(), is.ids); err != nil {
		return err
	}
	if err := raiseHost(link, is.address); err != nil {
		return err
	}
	return awaitUp(ctx, is.ns, link)
}

// enter gives the island its kernel entries; the record, locked, comes last.
func (m *Manager) enter(is *island) error {
	id := uint32(is.netID)
	if err := full("counters", m.kernel.Stats.Update(id, bpf.IslandIslandStats{}, ebpf.UpdateNoExist)); err != nil {
		return err
	}
	flows, err := ebpf.NewMap(m.flowMap)
	if err != nil {
		return fmt.Errorf("make flow map: %w", err)
	}
	err = full("flows", m.kernel.Flows.Update(id, flows, ebpf.UpdateNoExist))
	if err := errors.Join(err, flows.Close()); err != nil {
		return err
	}
	return full("islands", m.kernel.Islands.Update(uint32(is.ifindex), is.kernelRecord(), ebpf.UpdateNoExist))
}

// full turns a full map into env.ErrExhausted.
func full(name string, err error) error {
	if err == nil {
		return nil
	}
	if isFull(err) {
		return fmt.Errorf("%w: the kernel map of %s is full: release environments; if limits.slots is not reached, an earlier version made it smaller: clean the instance up once it is empty", env.ErrExhausted, name)
	}
	return fmt.Errorf("write kernel map of %s: %w", name, err)
}

// kernelRecord is the record that the books ask for. Callers hold mu.
func (is *island) kernelRecord() bpf.IslandIsland {
	r := bpf.IslandIsland{NetId: uint32(is.netID), Address: addrWord(is.address), Mac: is.mac, HostMac: is.hostMAC, Mode: uint8(is.mode)}
	if is.class != nil {
		r.ClassPolicy, r.ClaimPolicy = is.class.id, is.class.id
	}
	if is.claim != nil {
		r.ClaimPolicy = is.claim.id
	}
	return r
}

// Destroy takes a slot's island down and everything of it. It is idempotent:
// a slot without island is as it should be.
func (m *Manager) Destroy(ctx context.Context, slot env.SlotID) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	is := m.islands[slot]
	m.mu.Unlock()
	if is == nil {
		is = &island{slot: slot, name: m.cfg.linkName(slot)}
		if l, err := netlink.LinkByName(is.name); err == nil {
			is.ifindex = l.Attrs().Index
			var r bpf.IslandIsland
			if m.kernel.Islands.Lookup(uint32(is.ifindex), &r) == nil {
				is.netID, is.address = env.NetID(r.NetId), wordAddr(r.Address)
			}
		}
	}
	return m.teardown(is)
}

// teardown goes on over faults: what can go, goes. An island with faults stays
// in the books, so that a later Destroy or Sweep tries again.
func (m *Manager) teardown(is *island) error {
	faults := []error{is.letGo()}
	is.mu.Lock()
	is.mode, is.gone = bpf.IslandIslandModeISLAND_LOCKED, true
	if is.ifindex != 0 { // shut first: the link may take a moment to go
		_ = m.kernel.Islands.Update(uint32(is.ifindex), is.kernelRecord(), ebpf.UpdateExist|ebpf.UpdateLock)
	}
	if is.unjudged {
		faults = append(faults, m.wall.judge(is.address))
	}
	faults = append(faults, delLink(is.name), unpin(m.cfg, is.slot))
	if is.ifindex != 0 {
		faults = append(faults, absent(m.kernel.Islands.Delete(uint32(is.ifindex))))
	}
	last, err := m.eraseID(uint32(is.netID))
	faults = append(faults, err)
	m.policies.put(is.class, is.claim)
	is.class, is.claim = nil, nil
	is.mu.Unlock()
	if err := errors.Join(faults...); err != nil {
		return fmt.Errorf("take down island of %s: %w", is.slot, err)
	}
	m.forget(is, last)
	return nil
}

// eraseID removes what the kernel keeps by net id and returns the last counts.
func (m *Manager) eraseID(id uint32) (*bpf.IslandIslandStats, error) {
	var last *bpf.IslandIslandStats
	var st bpf.IslandIslandStats
	if m.kernel.Stats.Lookup(id, &st) == nil {
		last = &st
	}
	faults := []error{absent(m.kernel.Stats.Delete(id)), absent(m.kernel.Flows.Delete(id))}
	var stale []bpf.IslandFragmentKey
	var k bpf.IslandFragmentKey
	var v bpf.IslandFragment
	it := m.kernel.Fragments.Iterate()
	for it.Next(&k, &v) {
		if k.NetId == id {
			stale = append(stale, k)
		}
	}
	for _, k := range stale {
		faults = append(faults, absent(m.kernel.Fragments.Delete(k)))
	}
	return last, errors.Join(faults...)
}

// absent forgives that there is nothing to delete.
func absent(err error) error {
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return err
}
