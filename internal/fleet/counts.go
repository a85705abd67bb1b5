package fleet

// PoolCount is what all nodes that report have of one class.
type PoolCount struct{ Ready, Wanted, Environments int }

// PoolCounts counts by class, as the nodes last said.
func (f *Fleet) PoolCounts() map[string]PoolCount {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[string]PoolCount{}
	for _, n := range f.nodes {
		if n.down != "" {
			continue
		}
		for _, p := range n.pools {
			c := out[p.GetClass()]
			c.Ready += int(p.GetReady())
			c.Wanted += int(p.GetWant())
			c.Environments += int(p.GetClaimed())
			out[p.GetClass()] = c
		}
	}
	return out
}

// AddressOf is the host and port of a node's APIs; empty if it was never seen.
func (f *Fleet) AddressOf(node string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := f.nodes[node]; n != nil {
		return n.address
	}
	return ""
}
