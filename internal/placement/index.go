package placement

import (
	"cmp"
	"slices"
)

// Node is what is known of one node.
type Node struct {
	Name string
	// Unplaceable says why nothing may go there ("silent for 40s",
	// "draining"); empty if something may.
	Unplaceable string
	SlotsMax    int
	SlotsUsed   int // ready, preparing and claimed ones
	MemoryMax   int64
	MemoryUsed  int64 // reserved, in bytes
	Pools       []Pool
}

// Pool is one class on one node. A class without a pool is not known there.
type Pool struct {
	Class string
	Ready int
	// Preparing slots have their room already; Waiting claims have been promised
	// them first.
	Preparing, Waiting int
	Created            int   // slots without a container, which have their room, too; also for restores
	Memory             int64 // limit of one environment in bytes; 0 is not known
}

// Index holds the nodes so that a decision looks only at those that know the
// class, and at 16 bytes of each. It is not safe for concurrent use.
type Index struct {
	nodes   map[string]*node
	classes map[string][]candidate // sorted by node name
}

type node struct {
	Node
	straddle int            // claims that were on their way at the last report: it may have them, too
	inFlight int            // claims on their way
	cold     int            // of them those that need room
	warm     map[string]int // by class those that count on a ready slot
	hoping   map[string]int // by class those that count on one being prepared
}

// candidate is what a decision needs to know of one node's pool of one class,
// worked out whenever the node changes.
type candidate struct {
	node  *node
	score int32
	why   refusal // of any claim
	room  refusal // of a cold one
	has   stock
}

// stock is what a pool has for a claim.
type stock uint8

const (
	warmSlot   stock = 1 << iota // ready and not spoken for
	soonSlot                     // being prepared and not spoken for
	doubleSlot                   // what stands against it may be counted twice
)

// NewIndex makes an empty index.
func NewIndex() *Index {
	return &Index{nodes: map[string]*node{}, classes: map[string][]candidate{}}
}

// Len is the number of nodes.
func (x *Index) Len() int { return len(x.nodes) }

// Know is the number of nodes that know a class.
func (x *Index) Know(class string) int { return len(x.classes[class]) }

// Set replaces what is known of a node. Claims on their way there stay counted.
func (x *Index) Set(n Node) {
	n.Pools = slices.Clone(n.Pools)
	have := x.nodes[n.Name]
	if have == nil {
		have = &node{warm: map[string]int{}, hoping: map[string]int{}}
		x.nodes[n.Name] = have
	}
	old := have.Pools
	have.Node, have.straddle = n, have.inFlight
	for _, p := range old {
		if !slices.ContainsFunc(n.Pools, func(q Pool) bool { return q.Class == p.Class }) {
			x.drop(p.Class, n.Name)
		}
	}
	x.refresh(have)
}

// refresh works out the node's candidates anew.
func (x *Index) refresh(n *node) {
	for i := range n.Pools {
		x.put(n.Pools[i].Class, n.candidate(&n.Pools[i]))
	}
}

func (n *node) candidate(p *Pool) candidate {
	c := candidate{node: n}
	if p.Ready > n.warm[p.Class] {
		c.has |= warmSlot
	}
	if p.Preparing > p.Waiting+n.hoping[p.Class] {
		c.has |= soonSlot
	}
	if n.straddle > 0 {
		c.has |= doubleSlot
	}
	c.score = int32(packing(&n.Node) - inFlightMalus*min(n.inFlight+p.Waiting, 1<<20))
	if n.Unplaceable != "" {
		c.why = unplaceable
	}
	switch {
	case p.Created > n.cold: // of whatever class: one that is wrong is refused there
	case n.SlotsUsed+n.cold >= n.SlotsMax:
		c.room = noSlot
	case p.Memory > 0 && n.MemoryMax > 0 && n.MemoryUsed+int64(n.cold+1)*p.Memory > n.MemoryMax:
		c.room = noMemory
	}
	return c
}

// Remove forgets a node.
func (x *Index) Remove(name string) {
	n := x.nodes[name]
	if n == nil {
		return
	}
	for _, p := range n.Pools {
		x.drop(p.Class, name)
	}
	delete(x.nodes, name)
}

func (x *Index) put(class string, c candidate) {
	list := x.classes[class]
	i, found := search(list, c.node.Name)
	if found {
		list[i] = c
		return
	}
	x.classes[class] = slices.Insert(list, i, c)
}

func (x *Index) drop(class, name string) {
	list := x.classes[class]
	i, found := search(list, name)
	if !found {
		return
	}
	list = slices.Delete(list, i, i+1)
	if len(list) == 0 {
		delete(x.classes, class)
		return
	}
	x.classes[class] = list
}

func search(list []candidate, name string) (int, bool) {
	return slices.BinarySearchFunc(list, name, func(c candidate, name string) int {
		switch {
		case c.node.Name < name:
			return -1
		case c.node.Name > name:
			return 1
		default:
			return 0
		}
	})
}

// Begin counts a claim that is sent as decided.
func (x *Index) Begin(d Decision) {
	n := x.nodes[d.Node]
	if n == nil {
		return
	}
	n.inFlight++
	switch {
	case d.Warm:
		n.warm[d.Class]++
	case d.Soon:
		n.hoping[d.Class]++
	default:
		n.cold++
	}
	x.refresh(n)
}

// Outcome is what became of a claim that was sent.
type Outcome int

// The outcomes. They correct the index until the node's next report.
const (
	Claimed Outcome = iota // the slot or the room is gone
	Refused                // the node has nothing for this class now
	Unknown                // the node did not answer
)

// End takes back Begin and books the outcome.
func (x *Index) End(d Decision, o Outcome) {
	n := x.nodes[d.Node]
	if n == nil {
		return
	}
	n.inFlight = max(0, n.inFlight-1)
	switch {
	case d.Warm:
		one(n.warm, d.Class)
	case d.Soon:
		one(n.hoping, d.Class)
	default:
		n.cold = max(0, n.cold-1)
	}
	defer x.refresh(n)
	i := n.pool(d.Class)
	switch {
	case i < 0:
	case o == Refused:
		n.Pools[i].Ready, n.Pools[i].Preparing, n.straddle = 0, 0, 0
	case o == Claimed && d.Warm:
		n.Pools[i].Ready = max(0, n.Pools[i].Ready-1)
		if d.Memory > 0 {
			n.MemoryUsed += d.Memory - n.Pools[i].Memory
		}
	case o == Claimed && d.Soon:
		n.Pools[i].Preparing = max(0, n.Pools[i].Preparing-1)
	case o == Claimed:
		n.SlotsUsed++
		n.MemoryUsed += cmp.Or(d.Memory, n.Pools[i].Memory)
	}
}

// one takes one off a count, which is gone at 0.
func one(counts map[string]int, class string) {
	if counts[class]--; counts[class] <= 0 {
		delete(counts, class)
	}
}

// Freed books that an environment of the class has left the node, which corrects
// the index until the node's next report. Memory is its limit in bytes; 0 is its
// class's.
func (x *Index) Freed(node, class string, memory int64) {
	n := x.nodes[node]
	if n == nil {
		return
	}
	if i := n.pool(class); i >= 0 {
		memory = cmp.Or(memory, n.Pools[i].Memory)
	}
	n.SlotsUsed = max(0, n.SlotsUsed-1)
	n.MemoryUsed = max(0, n.MemoryUsed-memory)
	x.refresh(n)
}

// pool is the place of a class among the node's pools, -1 for none.
func (n *node) pool(class string) int {
	return slices.IndexFunc(n.Pools, func(p Pool) bool { return p.Class == class })
}
