package netpol

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"hearth/bpf"
	"hearth/internal/env"
)

// policyTable keeps compiled policies in the kernel, each once, under a number
// that this boot has not seen before. A number is never given to another
// content, so an island's record can never name half a policy.
type policyTable struct {
	kernel   *ebpf.Map
	compiler *compiler

	mu    sync.Mutex // guards what follows and the order of kernel writes
	known map[string]*policy
	next  uint32
}

type policy struct {
	*compiled
	id   uint32
	key  string
	refs int  // islands that name it
	warm bool // used since the last sweep
}

// openPolicies continues after the numbers that the kernel has.
func openPolicies(kernel *ebpf.Map, c *compiler) (*policyTable, error) {
	t := &policyTable{kernel: kernel, compiler: c, known: map[string]*policy{}, next: 1}
	keys, err := t.keys()
	if err != nil {
		return nil, err
	}
	for _, k := range keys {
		t.next = max(t.next, k.Policy+1)
	}
	return t, nil
}

// get returns the policy with its entries in the kernel and one reference more.
func (t *policyTable) get(p env.EgressPolicy) (*policy, error) {
	key := fingerprint(p)
	t.mu.Lock()
	defer t.mu.Unlock()
	if known := t.known[key]; known != nil {
		known.refs++
		known.warm = true
		return known, nil
	}
	c, err := t.compiler.compile(p)
	if err != nil {
		return nil, err
	}
	fresh := &policy{compiled: c, id: t.next, key: key, refs: 1, warm: true}
	t.next++
	for i := range c.entries {
		if err := t.kernel.Update(policyKey(fresh.id, c.entries[i].prefix), policyRule(&c.entries[i]), ebpf.UpdateNoExist); err != nil {
			t.erase(fresh)
			if errors.Is(err, unix.ENOSPC) {
				return nil, fmt.Errorf("%w: the policy map is full: use fewer different policies on this node", env.ErrExhausted)
			}
			return nil, fmt.Errorf("write policy entry %s: %w", c.entries[i].prefix, err)
		}
	}
	t.known[key] = fresh
	return fresh, nil
}

func (t *policyTable) put(policies ...*policy) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range policies {
		if p != nil {
			p.refs--
		}
	}
}

// sweep removes policies that no island names and that were not used since the
// last sweep, and entries of numbers that are not ours.
func (t *policyTable) sweep(inUse map[uint32]bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	keep := map[uint32]bool{}
	for key, p := range t.known {
		if p.refs > 0 || p.warm || inUse[p.id] {
			keep[p.id] = true
			p.warm = false
			continue
		}
		delete(t.known, key)
	}
	keys, err := t.keys()
	if err != nil {
		return err
	}
	for _, k := range keys {
		if keep[k.Policy] || inUse[k.Policy] {
			continue
		}
		if err := t.kernel.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("delete policy entry: %w", err)
		}
	}
	return nil
}

func (t *policyTable) erase(p *policy) {
	for i := range p.entries {
		_ = t.kernel.Delete(policyKey(p.id, p.entries[i].prefix)) // absent ones are what is wanted
	}
}

// keys lists the kernel's entries. An iteration that a concurrent change
// upset would only keep an entry for one sweep more.
func (t *policyTable) keys() ([]bpf.IslandPolicyKey, error) {
	var out []bpf.IslandPolicyKey
	var k bpf.IslandPolicyKey
	var v bpf.IslandPolicyRule
	it := t.kernel.Iterate()
	for it.Next(&k, &v) {
		out = append(out, k)
	}
	if err := it.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return nil, fmt.Errorf("list policy entries: %w", err)
	}
	return out, nil
}

func policyKey(id uint32, p netip.Prefix) bpf.IslandPolicyKey {
	return bpf.IslandPolicyKey{Prefixlen: uint32(32 + p.Bits()), Policy: id, Address: addrWord(p.Addr())}
}

func policyRule(e *entry) bpf.IslandPolicyRule {
	r := bpf.IslandPolicyRule{Reason: verdictOf(e.reason)}
	if e.wall {
		r.Flags |= uint8(bpf.IslandPolicyFlagsPOLICY_WALL)
	}
	if e.icmp {
		r.Flags |= uint8(bpf.IslandPolicyFlagsPOLICY_ICMP)
	}
	if len(e.ports) == 1 && e.ports[0] == allPorts {
		r.Flags |= uint8(bpf.IslandPolicyFlagsPOLICY_ALL_PORTS)
	}
	r.Ranges = uint8(len(e.ports)) // compile bounds it
	for i, p := range e.ports {
		r.Ports[i].First, r.Ports[i].Last = p.First, p.Last
	}
	return r
}

// verdictOf is the kernel's number of a reason.
func verdictOf(r env.Reason) uint8 { return uint8(slices.Index(env.Reasons[:], r) + 1) }

// addrWord gives an IPv4 address as the kernel keeps it: its bytes in memory
// order.
func addrWord(a netip.Addr) uint32 {
	b := a.As4()
	return binary.NativeEndian.Uint32(b[:])
}

// wordAddr is the inverse of addrWord.
func wordAddr(w uint32) netip.Addr {
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], w)
	return netip.AddrFrom4(b)
}

// hostPort turns a port that is in network byte order into a number.
func hostPort(p uint16) uint16 {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], p)
	return binary.BigEndian.Uint16(b[:])
}
