package netpol

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"hearth/internal/env"
)

// Bounds of one policy: rules of each list, and port ranges that may remain
// for one destination once Allow and Deny are worked out (POLICY_RANGES of
// bpf/include/island_types.h).
const (
	maxRules  = 1024
	maxRanges = 15
)

// An entry says all there is to say about the addresses whose longest match it
// is: the kernel looks up one entry and needs no other.
type entry struct {
	prefix netip.Prefix
	reason env.Reason // of what is not allowed
	wall   bool       // nothing is, and the reason outranks the node's
	icmp   bool
	ports  []env.PortRange // sorted and disjoint; of TCP and UDP
}

// allows reports whether the entry lets anything through.
func (e *entry) allows() bool { return e.icmp || len(e.ports) > 0 }

// A compiled policy has its entries in the order in which they must reach the
// kernel: that of 0.0.0.0/0, without which the policy refuses all, is the last.
type compiled struct {
	entries []entry
}

// A compiler turns policies into entries, for one node's pool and guards.
type compiler struct {
	guards  []guard
	gateway netip.Addr
}

func newCompiler(cfg Config) *compiler {
	return &compiler{guards: siteGuards(cfg.Pool, cfg.ExtraRefused), gateway: cfg.gateway()}
}

// compile works a policy out. It fails with env.ErrInvalid, naming the rule.
func (c *compiler) compile(p env.EgressPolicy) (*compiled, error) {
	if err := checkPolicy(p); err != nil {
		return nil, err
	}
	prefixes := []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(c.gateway, 32)}
	for _, g := range c.guards {
		prefixes = append(prefixes, g.prefix)
	}
	for _, r := range p.Allow {
		prefixes = append(prefixes, r.CIDR.Masked())
	}
	for _, r := range p.Deny {
		prefixes = append(prefixes, r.CIDR.Masked())
	}
	slices.SortFunc(prefixes, func(a, b netip.Prefix) int {
		if d := b.Bits() - a.Bits(); d != 0 {
			return d
		}
		return a.Addr().Compare(b.Addr())
	})
	out := &compiled{}
	for _, prefix := range slices.Compact(prefixes) {
		e := c.entry(p, prefix)
		if len(e.ports) > maxRanges {
			return nil, fmt.Errorf("%w: egress: %d port ranges remain for %s, at most %d can: merge them", env.ErrInvalid, len(e.ports), prefix, maxRanges)
		}
		out.entries = append(out.entries, e)
	}
	return out, nil
}

// entry decides for the addresses that no longer prefix of the policy or the
// guards contains: every rule and guard that contains one contains them all.
func (c *compiler) entry(p env.EgressPolicy, prefix netip.Prefix) entry {
	if prefix.Addr() == c.gateway && prefix.Bits() == 32 {
		return c.resolver(p)
	}
	e := entry{prefix: prefix, reason: env.ReasonPolicy}
	base := c.guardOf(prefix)
	if base != nil && base.wall {
		e.reason, e.wall = base.reason, true
		return e
	}
	if base != nil {
		e.reason = base.reason
	}
	switch p.Mode {
	case env.EgressInternet:
		if base == nil {
			e.ports, e.icmp = []env.PortRange{allPorts}, true
		}
	case env.EgressAllow:
		e.permit(p.Allow)
	}
	if e.allows() {
		e.reason = env.ReasonPolicy
		e.forbid(p.Deny)
	}
	return e
}

// resolver is the gateway's entry: its port 53, unless the mode is none. No
// rule speaks of it: denying port 53 everywhere leaves the node's resolver.
func (c *compiler) resolver(p env.EgressPolicy) entry {
	e := entry{prefix: netip.PrefixFrom(c.gateway, 32), reason: env.ReasonPolicy}
	if p.Mode != env.EgressNone {
		e.ports = []env.PortRange{{First: 53, Last: 53}}
	}
	return e
}

// guardOf is the longest guard that contains prefix. A wall outranks every
// softer guard, also a longer one within it.
func (c *compiler) guardOf(prefix netip.Prefix) *guard {
	var best *guard
	for i := range c.guards {
		g := &c.guards[i]
		if !contains(g.prefix, prefix) {
			continue
		}
		if best == nil || (g.wall && !best.wall) || (g.wall == best.wall && g.prefix.Bits() >= best.prefix.Bits()) {
			best = g
		}
	}
	return best
}

func (e *entry) permit(rules []env.EgressRule) {
	var ports []env.PortRange
	for _, r := range rules {
		if contains(r.CIDR.Masked(), e.prefix) {
			ports = append(ports, portsOf(r)...)
			e.icmp = e.icmp || len(r.Ports) == 0
		}
	}
	e.ports = union(ports)
}

func (e *entry) forbid(rules []env.EgressRule) {
	var cut []env.PortRange
	for _, r := range rules {
		if contains(r.CIDR.Masked(), e.prefix) {
			cut = append(cut, portsOf(r)...)
			e.icmp = e.icmp && len(r.Ports) != 0
		}
	}
	e.ports = subtract(e.ports, cut)
}

// match finds the entry of an address, as the kernel does.
func (c *compiled) match(addr netip.Addr) *entry {
	for i := range c.entries { // longest prefixes first
		if c.entries[i].prefix.Contains(addr) {
			return &c.entries[i]
		}
	}
	return nil
}

// reaches reports whether the policy lets anything through to addr.
func (c *compiled) reaches(addr netip.Addr) bool {
	e := c.match(addr)
	return e != nil && e.allows()
}

func checkPolicy(p env.EgressPolicy) error {
	switch p.Mode {
	case env.EgressInternet, env.EgressNone, env.EgressAllow:
	default:
		return fmt.Errorf("%w: egress: mode %.32q: want internet, none or allow", env.ErrInvalid, p.Mode)
	}
	if p.Mode != env.EgressAllow && len(p.Allow) > 0 {
		return fmt.Errorf("%w: egress: allow rules need mode allow, not %s", env.ErrInvalid, p.Mode)
	}
	for name, rules := range map[string][]env.EgressRule{"allow": p.Allow, "deny": p.Deny} {
		if len(rules) > maxRules {
			return fmt.Errorf("%w: egress: %d %s rules: at most %d", env.ErrInvalid, len(rules), name, maxRules)
		}
		for i, r := range rules {
			if !r.CIDR.IsValid() || !r.CIDR.Addr().Is4() {
				return fmt.Errorf("%w: egress: %s rule %d: want an IPv4 prefix, not %s", env.ErrInvalid, name, i+1, r.CIDR)
			}
			for _, ports := range r.Ports {
				if ports.First > ports.Last {
					return fmt.Errorf("%w: egress: %s rule %d: ports %d to %d are in the wrong order", env.ErrInvalid, name, i+1, ports.First, ports.Last)
				}
			}
		}
	}
	return nil
}

// fingerprint is the content of a policy as a map key.
func fingerprint(p env.EgressPolicy) string {
	b := append([]byte(p.Mode), 0)
	for _, rules := range [][]env.EgressRule{p.Allow, p.Deny} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(rules)))
		for _, r := range rules {
			b, _ = r.CIDR.AppendBinary(b)
			b = binary.BigEndian.AppendUint32(b, uint32(len(r.Ports)))
			for _, ports := range r.Ports {
				b = binary.BigEndian.AppendUint16(b, ports.First)
				b = binary.BigEndian.AppendUint16(b, ports.Last)
			}
		}
	}
	return string(b)
}
