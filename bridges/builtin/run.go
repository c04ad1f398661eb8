package builtin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/isthmus-mesh/isthmus/bridges"
	"github.com/isthmus-mesh/isthmus/xds/model"
)

// settleTime is how long nothing is reported as gone when the leases file was
// lost: sidecars renew within it, are told that their lease is unknown and
// register again.
const settleTime = 30 * time.Second

// beat is how often a report confirms that the registry is live.
const beat = 10 * time.Second

// Run implements bridges.Source. It restores the leases of a former process, then
// reports every change at once and ends leases. It returns nil when ctx ends; the
// leases stay for the next Run.
func (r *Registry) Run(ctx context.Context, sink bridges.Sink) error {
	r.mu.Lock()
	busy := r.running
	r.running = true
	r.mu.Unlock()
	if busy {
		return fmt.Errorf("builtin %s: runs already", r.cfg.Name)
	}
	defer func() {
		r.mu.Lock()
		r.running = false
		r.mu.Unlock()
	}()

	n := &run{r: r, sink: sink, since: time.Now()}
	if wait := n.restore(); wait > 0 && !n.settle(ctx, wait) {
		n.save()
		return nil
	}
	n.full()
	n.report(model.Live)
	n.follow(ctx)
	n.save()
	return nil
}

// run is one Run; its goroutine owns it.
type run struct {
	r     *Registry
	sink  bridges.Sink
	since time.Time // of the phase
	phase model.SourcePhase
	lost  string // why the leases file could not be read; empty when it could
	// unsaved are workloads whose lease the file does not have yet.
	unsaved  map[string]struct{}
	saveErr  string
	conflict map[model.Host]model.Rejected
	told     map[model.Host]*model.Service // while settling
}

func (n *run) follow(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	live := time.NewTicker(beat)
	defer live.Stop()
	for {
		n.setTimer(timer)
		select {
		case <-ctx.Done():
			return
		case <-n.r.wake:
		case <-timer.C:
		case <-live.C:
			n.save() // what failed is tried again
			n.report(model.Live)
		}
		n.step()
	}
}

// setTimer sets timer to the first end of a lease.
func (n *run) setTimer(timer *time.Timer) {
	n.r.mu.Lock()
	var end time.Time
	if len(n.r.ends) > 0 {
		end = n.r.ends[0].end
	}
	n.r.mu.Unlock()
	if end.IsZero() {
		timer.Stop()
		return
	}
	timer.Reset(max(0, time.Until(end)))
}

// step ends leases and reports what changed.
func (n *run) step() {
	u, conflicts := model.Update{}, maps.Clone(n.conflict)
	now := time.Now()
	n.r.mu.Lock()
	ended := n.r.expire(now)
	d := n.r.dirty
	n.r.dirty = newChanges()
	for name := range d.names {
		if l := n.r.byName[name]; l != nil {
			u.Workloads = append(u.Workloads, n.r.meshed(l))
		} else {
			u.RemovedWorkloads = append(u.RemovedWorkloads, name)
		}
	}
	members := map[model.Host][]*lease{}
	for h := range d.hosts {
		members[h] = slices.Collect(maps.Keys(n.r.byHost[h]))
	}
	count := len(n.r.byName)
	n.r.mu.Unlock()

	if ended > 0 {
		n.r.metrics.ended.WithLabelValues(expired).Add(float64(ended))
		n.r.metrics.workloads.Set(float64(count))
		n.r.cfg.Log.Info("leases ended", "source", n.r.cfg.Name, "workloads", ended)
	}
	for h, leases := range members {
		if s := n.service(h, leases); s != nil {
			u.Services = append(u.Services, s)
		} else {
			u.Removed = append(u.Removed, h)
		}
	}
	maps.Copy(n.pending(), d.leases)
	sortUpdate(&u)
	if len(u.Services)+len(u.Removed)+len(u.Workloads)+len(u.RemovedWorkloads) > 0 {
		n.sink.Apply(u)
	}
	n.save()
	if !maps.Equal(n.conflict, conflicts) {
		n.report(model.Live)
	}
}

func (n *run) pending() map[string]struct{} {
	if n.unsaved == nil {
		n.unsaved = map[string]struct{}{}
	}
	return n.unsaved
}

// full reports everything.
func (n *run) full() {
	u := model.Update{Full: true}
	members := map[model.Host][]*lease{}
	n.r.mu.Lock()
	ended := n.r.expire(time.Now())
	maps.Copy(n.pending(), n.r.dirty.leases)
	n.r.dirty = newChanges()
	for _, l := range n.r.byName {
		u.Workloads = append(u.Workloads, n.r.meshed(l))
	}
	for h, set := range n.r.byHost {
		members[h] = slices.Collect(maps.Keys(set))
	}
	n.r.mu.Unlock()

	n.r.metrics.ended.WithLabelValues(expired).Add(float64(ended))
	n.r.metrics.workloads.Set(float64(len(u.Workloads)))
	for h, leases := range members {
		u.Services = append(u.Services, n.service(h, leases))
	}
	sortUpdate(&u)
	n.sink.Apply(u)
	n.save()
}

func sortUpdate(u *model.Update) {
	slices.SortFunc(u.Services, func(a, b *model.Service) int { return cmp.Compare(a.Host, b.Host) })
	slices.SortFunc(u.Workloads, func(a, b *model.Workload) int { return cmp.Compare(a.Name, b.Name) })
	slices.Sort(u.Removed)
	slices.Sort(u.RemovedWorkloads)
}

// settle reports what is known, and what registers, as additions for wait and
// reports whether ctx lasted that long. Leases that end meanwhile stay: nobody
// can tell yet who is gone and who only was forgotten.
func (n *run) settle(ctx context.Context, wait time.Duration) bool {
	n.told = map[model.Host]*model.Service{}
	n.r.mu.Lock()
	for _, l := range n.r.byName {
		for _, h := range l.hosts {
			n.r.dirty.hosts[h] = struct{}{}
		}
		n.r.dirty.names[l.workload.Name] = struct{}{}
	}
	n.r.mu.Unlock()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	live := time.NewTicker(beat)
	defer live.Stop()
	n.add()
	n.report(model.Syncing)
	for {
		select {
		case <-ctx.Done():
			return false
		case <-timer.C:
			n.told = nil
			return true
		case <-live.C:
			n.save()
			n.report(model.Syncing)
		case <-n.r.wake:
			n.add()
		}
	}
}

// add reports what came since the last time, and nothing as gone.
func (n *run) add() {
	u, members := model.Update{}, map[model.Host][]*lease{}
	n.r.mu.Lock()
	d := n.r.dirty
	n.r.dirty = newChanges()
	for name := range d.names {
		if l := n.r.byName[name]; l != nil {
			u.Workloads = append(u.Workloads, n.r.meshed(l))
		}
	}
	for h := range d.hosts {
		members[h] = slices.Collect(maps.Keys(n.r.byHost[h]))
	}
	n.r.mu.Unlock()

	for h, leases := range members {
		s := n.service(h, leases)
		if s == nil {
			continue
		}
		before := n.told[h]
		if holder, ok := n.sink.(bridges.Holder); ok && before == nil {
			before = holder.Held(h)
		}
		n.told[h] = keeping(s, before)
		u.Services = append(u.Services, n.told[h])
	}
	maps.Copy(n.pending(), d.leases)
	sortUpdate(&u)
	if len(u.Services)+len(u.Workloads) > 0 {
		n.sink.Apply(u)
	}
	n.save()
}

// restore takes over the leases of a former process, each with its whole time
// from now on, and returns for how long nothing may be reported as gone.
func (n *run) restore() time.Duration {
	if n.r.journal == nil || n.r.journal.open {
		return 0
	}
	records, err := n.r.journal.load()
	var broken *brokenError
	if err != nil && !errors.As(err, &broken) {
		// Not there for writing either; save says so again and again.
		n.lost = err.Error()
		n.r.cfg.Log.Error("leases cannot be read", "source", n.r.cfg.Name, "error", err)
		return settleTime
	}
	now := time.Now()
	n.r.mu.Lock()
	restored := 0
	for _, rec := range records {
		if n.r.byName[rec.Workload.Name] != nil || n.r.byID[rec.ID] != nil || len(n.r.byName) >= n.r.cfg.MaxWorkloads {
			continue
		}
		hosts, err := check(&rec.Workload, rec.TTL)
		if err != nil {
			continue // written by a version that took more; its owner is told when it registers again
		}
		n.r.seq++
		n.r.add(&lease{id: rec.ID, seq: n.r.seq, ttl: rec.TTL, workload: &rec.Workload, hosts: hosts, end: now.Add(rec.TTL)})
		restored++
	}
	n.r.mu.Unlock()
	n.r.cfg.Log.Info("leases restored", "source", n.r.cfg.Name, "workloads", restored, "of", len(records))
	if broken != nil {
		n.lost = broken.Error()
		n.r.cfg.Log.Error("leases file is damaged and was put aside", "source", n.r.cfg.Name, "error", broken)
		return settleTime
	}
	return 0
}

// save brings the leases file up to date. What fails is kept for the next time.
func (n *run) save() {
	if n.r.journal == nil {
		return
	}
	n.r.mu.Lock()
	maps.Copy(n.pending(), n.r.dirty.leases)
	clear(n.r.dirty.leases)
	whole := n.r.journal.wantsWhole(len(n.r.byName), len(n.unsaved))
	var records []record
	var ended []string
	if whole {
		records = make([]record, 0, len(n.r.byName))
		for _, l := range n.r.byName {
			records = append(records, recordOf(l))
		}
	} else {
		for name := range n.unsaved {
			if l := n.r.byName[name]; l != nil {
				records = append(records, recordOf(l))
			} else {
				ended = append(ended, name)
			}
		}
	}
	n.r.mu.Unlock()

	var err error
	switch {
	case whole:
		err = n.r.journal.rewrite(records)
	case len(n.unsaved) > 0:
		err = n.r.journal.append(records, ended)
	default:
		return
	}
	if err == nil {
		clear(n.unsaved)
		if n.saveErr != "" {
			n.saveErr = ""
			n.r.cfg.Log.Info("leases are saved again", "source", n.r.cfg.Name)
		}
		return
	}
	n.r.metrics.saveErrors.Inc()
	if n.saveErr == "" {
		n.r.cfg.Log.Error("leases cannot be saved", "source", n.r.cfg.Name, "error", err)
	}
	n.saveErr = err.Error()
}

func (n *run) report(phase model.SourcePhase) {
	now := time.Now()
	if phase != n.phase {
		n.phase, n.since = phase, now
	}
	st := model.SourceStatus{Source: n.r.cfg.Name, Kind: Kind, Phase: phase, Since: n.since}
	if phase == model.Live {
		st.Read = now
	} else {
		st.Err = n.lost
	}
	if n.saveErr != "" {
		st.Skipped = append(st.Skipped, model.Rejected{Where: "leases file", Reason: n.saveErr})
	}
	for _, h := range slices.Sorted(maps.Keys(n.conflict)) {
		st.Skipped = append(st.Skipped, n.conflict[h])
		if len(st.Skipped) >= maxSkipped {
			break
		}
	}
	n.sink.Report(st)
}

// maxSkipped bounds what a report names.
const maxSkipped = 100
