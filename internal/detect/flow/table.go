package flow

import (
	"container/list"
	"time"

	"hearth/internal/env"
)

// Limits bound a Table. Zero values mean the defaults.
type Limits struct {
	Flows       int           // of the table; 8192
	FlowsPerNet int           // of one environment; 256
	Idle        time.Duration // a flow without new bytes is forgotten; 2 min
}

func (l Limits) withDefaults() Limits {
	if l.Flows == 0 {
		l.Flows = 8192
	}
	if l.FlowsPerNet == 0 {
		l.FlowsPerNet = 256
	}
	if l.Idle == 0 {
		l.Idle = 2 * time.Minute
	}
	return l
}

// Table reassembles the flows of many environments. It is not safe for
// concurrent use.
type Table struct {
	limits  Limits
	flows   map[Key]*list.Element // of the list of the flow's net
	nets    map[env.NetID]*list.List
	evicted uint64
}

// conn is both directions of a flow, an element of its net's list, which is
// ordered by the time of the newest segment.
type conn struct {
	key     Key
	streams [2]stream
	last    time.Duration
}

// NewTable makes an empty table.
func NewTable(limits Limits) *Table {
	return &Table{
		limits: limits.withDefaults(),
		flows:  map[Key]*list.Element{},
		nets:   map[env.NetID]*list.List{},
	}
}

// Add takes a segment and returns the prefix of its stream; grown says
// whether it has new bytes. The segment's data is copied.
func (t *Table) Add(seg Segment) (p Prefix, grown bool) {
	if seg.Direction > In {
		return Prefix{}, false
	}
	if seg.Key.Protocol != TCP {
		return datagram(seg), len(seg.Data) > 0
	}
	c := t.conn(seg)
	s := &c.streams[seg.Direction]
	if s.restarted(&seg) {
		c.streams = [2]stream{}
	}
	grown = s.add(&seg)
	return s.describe(c.key, seg), grown
}

func (s *stream) describe(key Key, seg Segment) Prefix {
	return Prefix{
		Key: key, Direction: seg.Direction, Data: s.buf[:s.prefix:s.prefix],
		First: s.first, At: seg.At, Segments: s.segments,
		Conflict: s.conflict, Full: s.prefix == Cap, Seen: &s.seen,
	}
}

func datagram(seg Segment) Prefix {
	data := seg.Data[:min(len(seg.Data), Cap)]
	return Prefix{
		Key: seg.Key, Direction: seg.Direction, Data: data,
		First: seg.At, At: seg.At, Segments: 1, Seen: &Seen{},
	}
}

func (t *Table) conn(seg Segment) *conn {
	net := t.nets[seg.Key.NetID]
	if e, ok := t.flows[seg.Key]; ok {
		c := e.Value.(*conn)
		c.last = seg.At
		net.MoveToBack(e)
		return c
	}
	t.makeRoom(seg.Key.NetID)
	if net = t.nets[seg.Key.NetID]; net == nil {
		net = list.New()
		t.nets[seg.Key.NetID] = net
	}
	c := &conn{key: seg.Key, last: seg.At}
	t.flows[seg.Key] = net.PushBack(c)
	return c
}

// makeRoom takes from the environment itself first: a flood is paid for by
// whoever makes it.
func (t *Table) makeRoom(id env.NetID) {
	if net := t.nets[id]; net != nil && net.Len() >= t.limits.FlowsPerNet {
		t.evicted++
		t.remove(net.Front())
		return
	}
	if len(t.flows) < t.limits.Flows {
		return
	}
	var largest *list.List
	for _, net := range t.nets {
		if largest == nil || net.Len() > largest.Len() {
			largest = net
		}
	}
	t.evicted++
	t.remove(largest.Front())
}

func (t *Table) remove(e *list.Element) {
	key := e.Value.(*conn).key
	net := t.nets[key.NetID]
	net.Remove(e)
	delete(t.flows, key)
	if net.Len() == 0 {
		delete(t.nets, key.NetID)
	}
}

// Expire forgets the flows that have been idle at the given time.
func (t *Table) Expire(now time.Duration) {
	for _, net := range t.nets {
		for e := net.Front(); e != nil && now-e.Value.(*conn).last > t.limits.Idle; e = net.Front() {
			t.remove(e)
		}
	}
}

// Forget drops every flow of an environment.
func (t *Table) Forget(id env.NetID) {
	net := t.nets[id]
	for net != nil && net.Len() > 0 {
		t.remove(net.Front())
	}
}

// Len is the number of flows held.
func (t *Table) Len() int { return len(t.flows) }

// Evicted is how many flows were given up for want of room.
func (t *Table) Evicted() uint64 { return t.evicted }
