package placement

import (
	"fmt"
	"slices"
	"strings"

	"hearth/internal/env"
)

// Request is what is to be placed.
type Request struct {
	Class string
	// Cold is true if a ready slot is of no use, as for a restore.
	Cold bool
	// Memory is the limit of this environment in bytes; 0 is its class's.
	Memory int64
	// Only names the one node that will do, as for a snapshot that is nowhere
	// else; empty is any.
	Only string
	// Exclude maps nodes that will not do to why.
	Exclude map[string]string
}

// Decision is where it goes.
type Decision struct {
	Node  string
	Class string
	Warm  bool // a ready slot was seen there
	// Soon: there is no room, but a slot of the class is being prepared for which no
	// other claim waits.
	Soon bool
	// Memory is the request's.
	Memory int64
	// Reasons has one line a node, the chosen one first, at most MaxReasons, and
	// a last one that counts the others.
	Reasons []string
}

// MaxReasons bounds the lines of an answer.
const MaxReasons = 16

// inFlightMalus is what one claim on its way costs, in thousandths of a full
// node: five of them make an empty node as good as a full one.
const inFlightMalus = 200

// refusal is why a node will not do; 0 is accepted.
type refusal uint8

const (
	accepted refusal = iota
	unplaceable
	excluded
	noSlot
	noMemory
	elsewhere
)

var refusalWords = [...]string{
	unplaceable: "not placeable", excluded: "excluded", noSlot: "no free slot",
	noMemory: "no free memory", elsewhere: "not where the snapshot is",
}

// Decide chooses a node. If none will do, the error wraps env.ErrNotFound when
// no node knows the class, else env.ErrExhausted, and says how many nodes were
// refused for which reason.
func (x *Index) Decide(r Request) (Decision, error) {
	list := x.classes[r.Class]
	if len(list) == 0 {
		return Decision{}, fmt.Errorf("%w: class %q: no node of %d has it; give its manifest to the nodes", env.ErrNotFound, r.Class, len(x.nodes))
	}
	q := x.query(&r)
	best := -1
	var bestRank rank
	for i := range list {
		c := &list[i]
		rank, _ := q.judge(c)
		if rank == none {
			continue
		}
		// Strictly better only: the list is sorted, so the lower name wins a tie.
		if best < 0 || rank > bestRank || (rank == bestRank && c.score > list[best].score) {
			best, bestRank = i, rank
		}
	}
	if best < 0 {
		return Decision{}, fmt.Errorf("%w: class %q: %s", env.ErrExhausted, r.Class, q.summary(list))
	}
	return Decision{
		Node: list[best].node.Name, Class: r.Class, Warm: bestRank == ready, Soon: bestRank == soon, Memory: r.Memory,
		Reasons: q.reasons(list, best),
	}, nil
}

// rank is how good a candidate is, whatever its score.
type rank uint8

const (
	none  rank = iota // it will not do
	maybe             // it will not do, unless a claim that its report overtook is counted twice
	soon              // a slot is being prepared there
	room              // there is room for a slot
	ready             // a slot is ready
)

// query is a request with its names resolved.
type query struct {
	*Request
	only     *node
	excluded []*node
}

func (x *Index) query(r *Request) query {
	q := query{Request: r, only: x.nodes[r.Only]}
	for name := range r.Exclude {
		if n := x.nodes[name]; n != nil {
			q.excluded = append(q.excluded, n)
		}
	}
	return q
}

// judge is the hot loop: it allocates nothing and follows no pointer. Why says what
// is wrong with a candidate of rank none.
func (q *query) judge(c *candidate) (r rank, why refusal) {
	switch {
	case q.Only != "" && c.node != q.only:
		return none, elsewhere
	case c.why != accepted:
		return none, c.why
	case slices.Contains(q.excluded, c.node):
		return none, excluded
	}
	warm := c.has&warmSlot != 0 && !q.Cold
	why = c.room
	if q.Memory > 0 { // rare
		why = c.node.roomFor(q.Class, q.Memory, warm)
	} else if warm {
		why = accepted
	}
	switch {
	case why == accepted && warm:
		return ready, accepted
	case why == accepted:
		return room, accepted
	case c.has&soonSlot != 0 && !q.Cold && q.Memory == 0:
		return soon, accepted
	case c.has&doubleSlot != 0:
		return maybe, accepted
	}
	return none, why
}

// roomFor judges a claim with a memory limit of its own. A ready slot has its
// class's already, and a cold one is made with no less than that.
func (n *node) roomFor(class string, memory int64, warm bool) refusal {
	i := n.pool(class)
	if i < 0 {
		return noMemory
	}
	pool := n.Pools[i].Memory
	more := max(memory, pool)
	if warm {
		more -= pool
	}
	switch {
	case !warm && more <= pool && n.Pools[i].Created > n.cold:
	case !warm && n.SlotsUsed+n.cold >= n.SlotsMax:
		return noSlot
	case n.MemoryMax > 0 && more > 0 && n.MemoryUsed+int64(n.cold)*pool+more > n.MemoryMax:
		return noMemory
	}
	return accepted
}

// packing is how full a node is, in thousandths of its scarcer resource.
func packing(n *Node) int {
	p := 0
	if n.SlotsMax > 0 {
		p = 1000 * n.SlotsUsed / n.SlotsMax
	}
	if n.MemoryMax > 0 {
		p = max(p, int(1000*n.MemoryUsed/n.MemoryMax))
	}
	return min(p, 1000)
}

// reasons tells of the chosen node, then of others in the order of their names.
func (q *query) reasons(list []candidate, best int) []string {
	out := []string{q.line(&list[best]) + ", chosen"}
	for i := range list {
		if len(out) == MaxReasons {
			break
		}
		if i != best {
			out = append(out, q.line(&list[i]))
		}
	}
	if rest := len(list) - len(out); rest > 0 {
		out = append(out, fmt.Sprintf("and %d more", rest))
	}
	return out
}

func (q *query) line(c *candidate) string {
	n := c.node
	r, why := q.judge(c)
	switch {
	case why == unplaceable:
		return n.Name + ": " + n.Unplaceable
	case why != accepted:
		return n.Name + ": " + refusalWords[why]
	}
	kind := "cold"
	switch r {
	case ready:
		kind = "warm slot"
	case soon:
		kind = "a slot is being prepared"
	case maybe:
		kind = "full, unless a claim is counted twice"
	}
	full := packing(&n.Node)
	return fmt.Sprintf("%s: %s, %d.%d%% full, %d in flight", n.Name, kind, full/10, full%10, n.inFlight)
}

// summary counts the refusals: "3 no free slot, 1 excluded (n2: refused: …)".
func (q *query) summary(list []candidate) string {
	var count [len(refusalWords)]int
	var example [len(refusalWords)]string
	for i := range list {
		_, why := q.judge(&list[i])
		count[why]++
		if example[why] == "" {
			example[why] = q.example(list[i].node, why)
		}
	}
	var parts []string
	for why, n := range count {
		if n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s%s", n, refusalWords[why], example[why]))
		}
	}
	return fmt.Sprintf("none of %d nodes can take it: %s", len(list), strings.Join(parts, ", "))
}

func (q *query) example(n *node, why refusal) string {
	switch why {
	case unplaceable:
		return fmt.Sprintf(" (%s: %s)", n.Name, n.Unplaceable)
	case excluded:
		return fmt.Sprintf(" (%s: %s)", n.Name, q.Exclude[n.Name])
	default:
		return ""
	}
}
