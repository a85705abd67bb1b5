package fleet

import (
	"container/heap"
	"time"
)

// schedule orders keys by the time at which something is due for them. Setting
// and dropping a key and taking the first one cost O(log n); nothing scans it.
// Its owner guards it.
type schedule[K comparable] struct {
	items map[K]*scheduled[K]
	order queue[K]
}

type scheduled[K comparable] struct {
	key K
	at  time.Time
	pos int // in the queue
}

func newSchedule[K comparable]() *schedule[K] {
	return &schedule[K]{items: map[K]*scheduled[K]{}}
}

// set enters a key or moves it to another time.
func (s *schedule[K]) set(key K, at time.Time) {
	if have := s.items[key]; have != nil {
		have.at = at
		heap.Fix(&s.order, have.pos)
		return
	}
	it := &scheduled[K]{key: key, at: at}
	s.items[key] = it
	heap.Push(&s.order, it)
}

// drop forgets a key; one that is not there is no error.
func (s *schedule[K]) drop(key K) {
	if have := s.items[key]; have != nil {
		heap.Remove(&s.order, have.pos)
		delete(s.items, key)
	}
}

// oldest lists up to limit keys, the earliest first. Visit says of each whether
// to list it and whether to go on. The schedule stays as it is.
func (s *schedule[K]) oldest(limit int, visit func(key K, at time.Time) (list, more bool)) []K {
	var keys []K
	var seen []*scheduled[K]
	for len(s.order) > 0 && len(keys) < limit {
		list, more := visit(s.order[0].key, s.order[0].at)
		if list {
			keys = append(keys, s.order[0].key)
		}
		if !more {
			break
		}
		seen = append(seen, heap.Pop(&s.order).(*scheduled[K]))
	}
	for _, it := range seen {
		heap.Push(&s.order, it)
	}
	return keys
}

// queue implements heap.Interface.
type queue[K comparable] []*scheduled[K]

func (q queue[K]) Len() int           { return len(q) }
func (q queue[K]) Less(i, j int) bool { return q[i].at.Before(q[j].at) }

func (q queue[K]) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].pos, q[j].pos = i, j
}

func (q *queue[K]) Push(x any) {
	it := x.(*scheduled[K])
	it.pos = len(*q)
	*q = append(*q, it)
}

func (q *queue[K]) Pop() any {
	last := len(*q) - 1
	it := (*q)[last]
	(*q)[last] = nil // let it be collected
	*q = (*q)[:last]
	return it
}
