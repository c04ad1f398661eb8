package bridges

import (
	"container/heap"
	"time"
)

// Pacer decides when each key may be read again: the first change of a quiet key
// at once, then one turn a window in which everything that changed meanwhile is
// read together. So a single change is never delayed, and a flapping instance
// costs one read a window however fast it flaps.
//
// A key is either running, between Take and Done, or waits for its next turn.
// Keys that stay quiet for a window are forgotten. The zero value is ready; not
// for use by several goroutines.
type Pacer[K comparable] struct {
	turns map[K]*turn[K]
	queue turnQueue[K] // turns that are not running
}

type turn[K comparable] struct {
	key     K
	at      time.Time // when it may run, or be forgotten if nobody wants it
	wanted  bool
	running bool
	index   int // in queue
}

// Mark says that key changed and wants a turn.
func (p *Pacer[K]) Mark(key K, now time.Time) {
	if t := p.turns[key]; t != nil {
		t.wanted = true
		return
	}
	if p.turns == nil {
		p.turns = map[K]*turn[K]{}
	}
	t := &turn[K]{key: key, at: now, wanted: true}
	p.turns[key] = t
	heap.Push(&p.queue, t)
}

// MarkAt is Mark with a turn that comes at the given time, not before; an earlier
// turn that is due already stays.
func (p *Pacer[K]) MarkAt(key K, at time.Time) {
	t := p.turns[key]
	if t == nil {
		p.Mark(key, at)
		return
	}
	if !t.running && !t.wanted && t.at.Before(at) {
		t.at = at
		heap.Fix(&p.queue, t.index)
	}
	t.wanted = true
}

// Take returns a key whose turn has come and starts the turn; false when none is
// due at now.
func (p *Pacer[K]) Take(now time.Time) (key K, ok bool) {
	for len(p.queue) > 0 && !p.queue[0].at.After(now) {
		t := heap.Pop(&p.queue).(*turn[K])
		if t.wanted {
			t.wanted, t.running = false, true
			return t.key, true
		}
		delete(p.turns, t.key)
	}
	return key, false
}

// Done ends the turn of key, which may have its next one at next. What was marked
// since Take waits for it.
func (p *Pacer[K]) Done(key K, next time.Time) {
	t := p.turns[key]
	if t == nil || !t.running {
		return
	}
	t.running, t.at = false, next
	heap.Push(&p.queue, t)
}

// Forget drops key, also when it is wanted. A running turn ends by Done, which
// then does nothing.
func (p *Pacer[K]) Forget(key K) {
	t := p.turns[key]
	if t == nil {
		return
	}
	if !t.running {
		heap.Remove(&p.queue, t.index)
	}
	delete(p.turns, key)
}

// Next is when Take should be asked again; false when nothing waits.
func (p *Pacer[K]) Next() (time.Time, bool) {
	if len(p.queue) == 0 {
		return time.Time{}, false
	}
	return p.queue[0].at, true
}

// turnQueue is a heap of turns, the earliest first.
type turnQueue[K comparable] []*turn[K]

func (q turnQueue[K]) Len() int           { return len(q) }
func (q turnQueue[K]) Less(i, j int) bool { return q[i].at.Before(q[j].at) }

func (q turnQueue[K]) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

// Push is for container/heap.
func (q *turnQueue[K]) Push(x any) {
	t := x.(*turn[K])
	t.index = len(*q)
	*q = append(*q, t)
}

// Pop is for container/heap.
func (q *turnQueue[K]) Pop() any {
	old := *q
	t := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	return t
}
