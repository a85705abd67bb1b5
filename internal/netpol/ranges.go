package netpol

import (
	"net/netip"

	"hearth/internal/env"
)

// A guard is a range that no policy opens by being silent about it.
type guard struct {
	prefix netip.Prefix
	reason env.Reason
	// wall: not even an allow rule opens it.
	wall bool
}

// guards lists what is not the public internet: the metadata services of the
// clouds (each vendor's documentation), private and shared space (RFC 1918,
// RFC 6598) and the rest of the IANA IPv4 special-purpose registry that is not
// globally reachable, with multicast and reserved space (RFC 5771, RFC 1112).
func guards() []guard {
	var out []guard
	add := func(reason env.Reason, wall bool, prefixes ...string) {
		for _, p := range prefixes {
			out = append(out, guard{netip.MustParsePrefix(p), reason, wall})
		}
	}
	add(env.ReasonMetadata, true,
		"169.254.169.0/24",   // AWS, Azure, GCP, Oracle, DigitalOcean, OpenStack and most others; AWS time and DNS
		"169.254.170.0/23",   // AWS container credentials, EKS pod identity
		"169.254.42.42/32",   // Scaleway
		"169.254.0.23/32",    // Tencent
		"168.63.129.16/32",   // Azure's platform, in public space
		"100.100.100.200/32", // Alibaba
		"192.0.0.192/32",     // Oracle, legacy
	)
	add(env.ReasonPrivate, false, "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")
	add(env.ReasonSpecial, true, "0.0.0.0/8", "127.0.0.0/8")
	add(env.ReasonSpecial, false,
		"169.254.0.0/16",  // link-local
		"192.0.0.0/24",    // protocol assignments
		"192.0.2.0/24",    // documentation
		"192.88.99.0/24",  // 6to4 relays, withdrawn: a way into IPv6
		"198.18.0.0/15",   // benchmarking
		"198.51.100.0/24", // documentation
		"203.0.113.0/24",  // documentation
		"240.0.0.0/4",     // reserved
	)
	add(env.ReasonMulticast, true, "224.0.0.0/4", "255.255.255.255/32")
	return out
}

// siteGuards adds to guards what this node is told: the pool and ExtraRefused.
func siteGuards(pool netip.Prefix, extra []netip.Prefix) []guard {
	out := guards()
	for _, p := range extra {
		out = append(out, guard{p, env.ReasonPrivate, false})
	}
	return append(out, guard{pool, env.ReasonNeighbour, true})
}

// contains reports whether every address of inner is one of outer.
func contains(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}
