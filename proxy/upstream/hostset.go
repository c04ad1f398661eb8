package upstream

import (
	"cmp"
	"slices"

	"github.com/isthmus-mesh/isthmus/proxy/upstream/balance"
)

// overprovisioning is Envoy's default factor: a priority keeps all its traffic
// until less than 1/1.4 of its hosts are healthy.
const overprovisioning = 1.4

// hostSet is the hosts of a cluster at one moment. It never changes.
type hostSet struct {
	hosts  []*Host // ascending by address
	groups []group // each takes a share of the traffic; empty: no host
}

// group is the hosts that share a part of the traffic: the healthy or degraded
// ones of a priority.
type group struct {
	upTo   uint32 // traffic 0..99 below it, and not below the group before, is its own
	hosts  []*Host
	picker balance.Picker
}

// level is the hosts of a priority by health.
type level struct {
	priority               uint32
	all, healthy, degraded []*Host
}

func newHostSet(hosts []*Host, s *Settings) *hostSet {
	slices.SortFunc(hosts, func(a, b *Host) int { return a.Addr.Compare(b.Addr) })
	return (&hostSet{hosts: hosts}).rebalance(s)
}

// rebalance returns the same hosts under other settings.
func (h *hostSet) rebalance(s *Settings) *hostSet {
	next := &hostSet{hosts: h.hosts}
	levels := levelsOf(h.hosts)
	if len(levels) == 0 {
		return next
	}
	healthy, degraded := make([]float64, len(levels)), make([]float64, len(levels))
	var total float64
	for i, l := range levels {
		healthy[i] = min(100, overprovisioning*100*float64(len(l.healthy))/float64(len(l.all)))
		degraded[i] = min(100, overprovisioning*100*float64(len(l.degraded))/float64(len(l.all)))
		total += healthy[i] + degraded[i]
	}
	panicking := func(l level) bool {
		return total < 100 && float64(len(l.healthy))*100/float64(len(l.all)) < *s.PanicPercent
	}
	if total == 0 {
		// Nobody is healthy. Unless panic is switched off all hosts share the
		// traffic, sick or not.
		if *s.PanicPercent > 0 {
			count := 0
			for _, l := range levels {
				count += len(l.all)
				next.add(uint32(100*count/len(h.hosts)), l.all, s.Policy)
			}
		}
		return next
	}
	// Shares are handed out to healthy hosts by priority, then to degraded
	// ones, scaled up where together they come to less than 100.
	scale := max(1, 100/total)
	left := 100.0
	take := func(part float64, hosts []*Host) {
		if share := min(left, part*scale); share > 0 {
			left -= share
			next.add(uint32(100-left+0.5), hosts, s.Policy)
		}
	}
	for i, l := range levels {
		if panicking(l) {
			take(healthy[i], l.all)
		} else {
			take(healthy[i], l.healthy)
		}
	}
	for i, l := range levels {
		if panicking(l) {
			take(degraded[i], l.all)
		} else {
			take(degraded[i], l.degraded)
		}
	}
	if n := len(next.groups); n > 0 {
		next.groups[n-1].upTo = 100
	}
	return next
}

func (h *hostSet) add(upTo uint32, hosts []*Host, p balance.Policy) {
	if len(hosts) == 0 {
		return
	}
	members := make([]balance.Member, len(hosts))
	for i, host := range hosts {
		members[i] = balance.Member{Weight: host.meta.Load().Weight, Active: &host.Active, Key: host.Addr.String()}
	}
	h.groups = append(h.groups, group{upTo, hosts, p.Build(members)})
}

func levelsOf(hosts []*Host) []level {
	var levels []level
	for _, host := range hosts {
		e := host.meta.Load()
		i := slices.IndexFunc(levels, func(l level) bool { return l.priority == e.Priority })
		if i < 0 {
			i, levels = len(levels), append(levels, level{priority: e.Priority})
		}
		l := &levels[i]
		l.all = append(l.all, host)
		switch e.Health {
		case Healthy:
			l.healthy = append(l.healthy, host)
		case Degraded:
			l.degraded = append(l.degraded, host)
		}
	}
	slices.SortFunc(levels, func(a, b level) int { return cmp.Compare(a.priority, b.priority) })
	return levels
}

// maxPicks is how often a policy is asked for an acceptable host before the
// hosts are searched in order.
const maxPicks = 5

// pick returns nil when there is no host.
func (h *hostSet) pick(ch *Choice) *Host {
	if len(h.groups) == 0 {
		return nil
	}
	g := &h.groups[0]
	if len(h.groups) > 1 {
		g = h.groupOf(ch)
	}
	in := balance.Pick{Random: ch.Random, Hash: ch.Hash, HasHash: ch.HasHash}
	first := g.hosts[g.picker.Pick(in)]
	if ch.accepts(first) {
		return first
	}
	for in.Attempt = 1; in.Attempt < maxPicks; in.Attempt++ {
		if host := g.hosts[g.picker.Pick(in)]; ch.accepts(host) {
			return host
		}
	}
	start := int(ch.Random % uint64(len(g.hosts)))
	var resting *Host
	for i := range g.hosts {
		host := g.hosts[(start+i)%len(g.hosts)]
		if ch.accepts(host) {
			return host
		}
		if !slices.Contains(ch.Tried, host) {
			resting = host
		}
	}
	if resting != nil {
		return resting // better than one that failed this very request
	}
	return first // all of them were tried
}

// accepts reports whether host was not tried yet and is not resting.
func (ch *Choice) accepts(host *Host) bool {
	return !host.Resting(ch.Now) && (len(ch.Tried) == 0 || !slices.Contains(ch.Tried, host))
}

// groupOf spreads by the request's hash if it has one, so that a hash keeps to
// its host also while priorities share the traffic.
func (h *hostSet) groupOf(ch *Choice) *group {
	n := ch.Random
	if ch.HasHash {
		n = ch.Hash
	}
	share := uint32(n % 100)
	for i := range h.groups {
		if share < h.groups[i].upTo {
			return &h.groups[i]
		}
	}
	return &h.groups[len(h.groups)-1]
}
