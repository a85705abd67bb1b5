package netpol

import (
	"slices"

	"hearth/internal/env"
)

var allPorts = env.PortRange{First: 0, Last: 65535}

// portsOf gives a rule's ranges; none is every port.
func portsOf(r env.EgressRule) []env.PortRange {
	if len(r.Ports) == 0 {
		return []env.PortRange{allPorts}
	}
	return r.Ports
}

// union sorts ranges and joins those that overlap or touch.
func union(ranges []env.PortRange) []env.PortRange {
	ranges = slices.Clone(ranges)
	slices.SortFunc(ranges, func(a, b env.PortRange) int { return int(a.First) - int(b.First) })
	var out []env.PortRange
	for _, r := range ranges {
		if n := len(out); n > 0 && int(r.First) <= int(out[n-1].Last)+1 {
			out[n-1].Last = max(out[n-1].Last, r.Last)
			continue
		}
		out = append(out, r)
	}
	return out
}

// subtract takes cut out of ranges; both may be in any order.
func subtract(ranges, cut []env.PortRange) []env.PortRange {
	out := union(ranges)
	for _, c := range union(cut) {
		var next []env.PortRange
		for _, r := range out {
			if c.Last < r.First || c.First > r.Last {
				next = append(next, r)
				continue
			}
			if r.First < c.First {
				next = append(next, env.PortRange{First: r.First, Last: c.First - 1})
			}
			if r.Last > c.Last {
				next = append(next, env.PortRange{First: c.Last + 1, Last: r.Last})
			}
		}
		out = next
	}
	return out
}
