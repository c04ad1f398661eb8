package watch

import (
	"container/heap"
	"time"
)

// schedule decides which watch may ask next. Urgent ones (lists, first reads,
// confirmations) go before those that wait for changes, and always find a free
// query: the reserve. When there are more services than queries, those that wait
// take turns.
type schedule struct {
	limit   int // queries at once
	reserve int // of these, never used to wait for a service's changes

	urgent, normal turns
	flying         int
	waiting        int // of flying: taken from normal
}

// rotation is the time in which every service gets its turn when there are more
// services than queries, as long as turns of minTurn allow it.
const (
	rotation = 10 * time.Second
	minTurn  = 250 * time.Millisecond
)

// room is how many services can wait for changes at once.
func (s *schedule) room() int { return max(1, s.limit-s.reserve) }

// wait is how long a query may wait when so many services are followed.
func (s *schedule) wait(services int, longest time.Duration) time.Duration {
	if services <= s.room() {
		return longest
	}
	return min(longest, max(minTurn, rotation*time.Duration(s.room())/time.Duration(services)))
}

// put queues w for a turn at the given time, or moves it there.
func (s *schedule) put(w *watch, urgent bool, at time.Time) {
	s.drop(w)
	w.at = at
	w.queue = &s.normal
	if urgent {
		w.queue = &s.urgent
	}
	heap.Push(w.queue, w)
}

// drop takes w out of its queue, if it is in one.
func (s *schedule) drop(w *watch) {
	if w.queue != nil {
		heap.Remove(w.queue, w.place)
		w.queue = nil
	}
}

// take returns a watch that may ask now, or nil.
func (s *schedule) take(now time.Time) *watch {
	if s.flying >= s.limit {
		return nil
	}
	q := &s.urgent
	if !q.due(now) {
		if q = &s.normal; !q.due(now) || s.waiting >= s.room() {
			return nil
		}
		s.waiting++
	}
	s.flying++
	w := heap.Pop(q).(*watch)
	w.queue, w.long = nil, q == &s.normal
	return w
}

// landed notes that the query of w came back.
func (s *schedule) landed(w *watch) {
	s.flying--
	if w.long {
		s.waiting--
	}
}

// next is when take should be asked again if no query comes back before; false
// when only a returning query can make room.
func (s *schedule) next() (time.Time, bool) {
	var at time.Time
	if s.flying >= s.limit {
		return at, false
	}
	if len(s.urgent) > 0 {
		at = s.urgent[0].at
	}
	if len(s.normal) > 0 && s.waiting < s.room() && (at.IsZero() || s.normal[0].at.Before(at)) {
		at = s.normal[0].at
	}
	return at, !at.IsZero()
}

// turns is a heap of watches, the earliest first.
type turns []*watch

func (t turns) due(now time.Time) bool { return len(t) > 0 && !t[0].at.After(now) }

func (t turns) Len() int           { return len(t) }
func (t turns) Less(i, j int) bool { return t[i].at.Before(t[j].at) }

func (t turns) Swap(i, j int) {
	t[i], t[j] = t[j], t[i]
	t[i].place, t[j].place = i, j
}

// Push is for container/heap.
func (t *turns) Push(x any) {
	w := x.(*watch)
	w.place = len(*t)
	*t = append(*t, w)
}

// Pop is for container/heap.
func (t *turns) Pop() any {
	old := *t
	w := old[len(old)-1]
	old[len(old)-1] = nil
	*t = old[:len(old)-1]
	return w
}
