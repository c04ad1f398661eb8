package watch

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/bridges"
	"github.com/isthmus-mesh/isthmus/xds/model"
)

// follower reads one session's tree and tells the sink. All but the readers it
// starts belongs to the goroutine of Run.
type follower struct {
	cfg  Config
	tree tree
	sink bridges.Sink

	memory   *Memory
	units    map[key]*unit
	byHost   map[model.Host]map[key]*unit
	pace     bridges.Pacer[key]
	reads    int // under way
	readings chan reading
	unread   int  // units that were not read since the session began
	live     bool // the Full was applied

	told     map[model.Host]*model.Service // by host, what the sink holds
	skipped  skipList
	unnamed  map[key]string // nodes that are no service, with the reason
	report   bool           // the status changed since it was reported
	reported time.Time
	read     time.Time // up to when what was told is known to be complete
}

func newFollower(cfg Config, t tree, memory *Memory, sink bridges.Sink) *follower {
	f := &follower{
		cfg: cfg, tree: t, memory: memory, sink: sink, readings: make(chan reading, maxReads),
		units: map[key]*unit{}, byHost: map[model.Host]map[key]*unit{},
		told: map[model.Host]*model.Service{}, skipped: skipList{}, unnamed: map[key]string{},
	}
	now := time.Now()
	for i, root := range cfg.Roots {
		u := &unit{key: key{root: i}, layout: root.Layout, path: root.Path, relist: true}
		f.units[u.key] = u
		f.unread++
		f.pace.Mark(u.key, now)
	}
	return f
}

// start lets readers begin on what is due.
func (f *follower) start(now time.Time) {
	for f.reads < maxReads {
		k, ok := f.pace.Take(now)
		if !ok {
			return
		}
		u := f.units[k]
		if u == nil {
			f.pace.Done(k, now)
			continue
		}
		f.reads++
		o := u.begin(f.memory.nodes[k], f.cfg.ServicePorts)
		go func() { f.readings <- o.carryOut(f.tree) }()
	}
}

// timer fires when the next read is due; nil when none waits or no reader is free.
func (f *follower) timer() <-chan time.Time {
	next, ok := f.pace.Next()
	if !ok || f.reads >= maxReads {
		return nil
	}
	return time.After(time.Until(next))
}

// changed takes paths that the server said changed.
func (f *follower) changed(paths map[string]struct{}, now time.Time) {
	for path := range paths {
		if u := f.find(path); u != nil {
			f.pace.Mark(u.key, now)
		}
	}
}

// find notes an event at the unit it belongs to. Events of unknown paths are of
// services that are gone.
func (f *follower) find(path string) *unit {
	for i, root := range f.cfg.Roots {
		if path == root.Path {
			u := f.units[key{root: i}]
			u.childrenChanged()
			return u
		}
		rest, ok := strings.CutPrefix(path, strings.TrimSuffix(root.Path, "/")+"/")
		if !ok {
			continue
		}
		service, entry, below := strings.Cut(rest, "/")
		u := f.units[key{i, service}]
		if u == nil {
			continue
		}
		if below && root.Layout != Dubbo {
			u.markStale(entry)
		} else {
			u.childrenChanged()
		}
		return u
	}
	return nil
}

// take handles what a reader brought.
func (f *follower) take(r reading, now time.Time) {
	f.reads--
	u := r.unit
	u.finish(r)
	f.pace.Done(u.key, r.started.Add(window(r.took)))
	if r.err != nil {
		f.cfg.Log.Debug("read from zookeeper", "path", u.path, "error", r.err)
		f.pace.MarkAt(u.key, now.Add(retryRead))
	}
	if !u.read && (r.err == nil || u.name != "") {
		u.read = true
		f.unread--
	}
	switch {
	case u.gone:
		f.drop(u)
	case u.name == "":
		if f.skipped.set(u.key, u.rejected()) {
			f.sayStatus(now) // all of a root is at stake: at once
		}
		if r.err == nil {
			f.relisted(u, r.names, now)
		}
	default:
		if r.err == nil {
			u.shown, u.known = u.cache, true
			f.memory.note(u)
		}
		f.noteSkipped(u)
		f.tell(u.host)
	}
	if !f.live && f.unread == 0 {
		f.tellAll(now)
	}
}

// relisted takes over the list of a root's services.
func (f *follower) relisted(root *unit, names []string, now time.Time) {
	listed := make(map[key]bool, len(names))
	for _, name := range names {
		k := key{root.root, name}
		if reserved(f.cfg.Roots[root.root], name) {
			continue
		}
		listed[k] = true
		if u := f.units[k]; u != nil {
			u.gone = false
			continue
		}
		if f.unnamed[k] != "" {
			continue
		}
		u, err := newUnit(k, f.cfg.Roots[root.root])
		if err != nil {
			f.unnamed[k] = oneLine(err)
			f.skipped.set(k, []model.Rejected{{Where: where(join(root.path, name)), Reason: oneLine(err)}})
			f.report = true
			continue
		}
		f.units[k] = u
		if f.byHost[u.host] == nil {
			f.byHost[u.host] = map[key]*unit{}
		}
		f.byHost[u.host][k] = u
		f.unread++
		f.pace.Mark(k, now)
	}
	for k, u := range f.units {
		if k.root == root.root && k.name != "" && !listed[k] {
			u.gone = true
			if !u.busy {
				f.drop(u)
			}
		}
	}
	f.memory.retain(root.root, listed)
	for k := range f.unnamed {
		if k.root == root.root && !listed[k] {
			delete(f.unnamed, k)
			f.skipped.set(k, nil)
			f.report = true
		}
	}
}

// drop forgets a service that its root does not list any more.
func (f *follower) drop(u *unit) {
	delete(f.units, u.key)
	f.pace.Forget(u.key)
	if !u.read {
		f.unread--
	}
	if delete(f.byHost[u.host], u.key); len(f.byHost[u.host]) == 0 {
		delete(f.byHost, u.host)
	}
	if f.skipped.set(u.key, nil) {
		f.report = true
	}
	f.tell(u.host)
}

func (f *follower) noteSkipped(u *unit) {
	if f.skipped.set(u.key, u.rejected()) {
		f.report = true
	}
}

// rootErr is why a root could not be read; nil when all could.
func (f *follower) rootErr() error {
	for i := range f.cfg.Roots {
		if u := f.units[key{root: i}]; u.err != nil {
			return fmt.Errorf("list %s: %w", u.path, u.err)
		}
	}
	return nil
}

// status reports the follower's state when it changed, or when a quiet registry's
// completeness was last confirmed long ago.
func (f *follower) status(ctx context.Context, now time.Time) {
	due := f.report && now.Sub(f.reported) >= statusEvery || now.Sub(f.reported) >= confirmEvery
	if !due || ctx.Err() != nil {
		return
	}
	f.sayStatus(now)
}

func (f *follower) sayStatus(now time.Time) {
	f.report, f.reported = false, now
	status := model.SourceStatus{Phase: model.Live, Read: f.read, Skipped: f.skipped.list()}
	if err := f.rootErr(); err != nil {
		status.Phase, status.Err = model.Stale, oneLine(err)
	} else if !f.live {
		status.Phase, status.Err = model.Syncing, fmt.Sprintf("reading, %d services to go", f.unread)
	}
	f.sink.Report(status)
}
