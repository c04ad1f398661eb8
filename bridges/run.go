package bridges

import (
	"context"
	"fmt"
	"time"

	"github.com/isthmus-mesh/isthmus/xds/model"
)

// saveShare is the share of time that may go into writing the file: a write that
// took d is followed by a rest of saveShare times d.
const saveShare = 20

// saveRetry is the shortest wait after a write that failed.
const saveRetry = 5 * time.Second

// run is one call of Supervisor.Run; all but the sink of the source belongs to
// its goroutine.
type run struct {
	*Supervisor
	full      bool      // the source applied a Full since it was started
	liveSince time.Time // zero while it is not live
	reported  model.SourceStatus

	dirty    bool      // something changed since the last save began
	saving   bool      // a save is under way
	nextSave time.Time // not before
	saved    chan saveResult
}

type saveResult struct {
	sizeBytes int64
	took      time.Duration
	err       error
}

// call is one call of the source, handed from its goroutine to that of Run.
type call struct {
	update *model.Update
	status *model.SourceStatus
	done   chan struct{}
}

// sourceSink is the Sink and Holder that a source gets for one run.
type sourceSink struct {
	*held
	calls chan call
	gone  chan struct{} // closed when Source.Run returned
}

// Apply implements Sink; it returns once the supervisor's sink has the update.
func (s *sourceSink) Apply(u model.Update) { s.hand(call{update: &u}) }

// Report implements Sink.
func (s *sourceSink) Report(status model.SourceStatus) { s.hand(call{status: &status}) }

// hand gives c to Run. A source that calls after its Run returned is not heard:
// a newer run may have read more.
func (s *sourceSink) hand(c call) {
	c.done = make(chan struct{})
	select {
	case s.calls <- c:
		<-c.done
	case <-s.gone:
	}
}

// attend runs the source once, to its end, and returns why it ended.
func (r *run) attend(ctx context.Context) error {
	sink := &sourceSink{held: r.held, calls: make(chan call), gone: make(chan struct{})}
	defer close(sink.gone)
	ended := make(chan error, 1)
	go func() { ended <- r.cfg.Source.Run(ctx, sink) }()
	return r.serve(context.WithoutCancel(ctx), sink.calls, ended, nil)
}

// serve handles calls and saves until the source ended, the wait is over or ctx
// is done, whichever of them is given.
func (r *run) serve(ctx context.Context, calls <-chan call, ended <-chan error, wait <-chan time.Time) error {
	for {
		timer := r.saveTimer()
		select {
		case c := <-calls:
			if c.update != nil {
				r.take(*c.update)
			} else {
				r.hear(*c.status)
			}
			close(c.done)
		case err := <-ended:
			return err
		case result := <-r.saved:
			r.saving = false
			r.noteSave(result)
		case <-timer:
			r.startSave()
		case <-wait:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

// take handles an update of the source.
func (r *run) take(u model.Update) {
	out, changed := r.held.apply(u, time.Now())
	if u.Full {
		r.full = true
	}
	if r.full {
		r.held.confirm(time.Now())
	}
	if changed {
		r.dirty = true
		r.apply(out)
	}
}

func (r *run) apply(u model.Update) {
	step := "delta"
	if u.Full {
		step = "full"
	}
	r.metrics.updates.WithLabelValues(step).Inc()
	r.cfg.Sink.Apply(u)
	services, endpoints, read := r.held.size()
	r.metrics.services.Set(float64(services))
	r.metrics.endpoints.Set(float64(endpoints))
	r.noteRead(read)
}

func (r *run) noteRead(read time.Time) {
	if !read.IsZero() {
		r.metrics.lastRead.Set(float64(read.UnixMilli()) / 1000)
	}
}

// hear handles a status of the source.
func (r *run) hear(status model.SourceStatus) {
	if status.Phase == model.Live && !r.full {
		status.Phase = model.Stale
		status.Err = "the source calls itself live before its first complete read"
	}
	if status.Phase == model.Live {
		r.held.confirm(status.Read)
		if r.liveSince.IsZero() {
			r.liveSince = time.Now()
			r.log.Info("registry is followed", "skipped", len(status.Skipped))
		}
	} else {
		r.liveSince = time.Time{}
	}
	r.report(status)
}

// report completes status and passes it on. What is not live is stale when
// anything was ever read, here or by a former process, and syncing otherwise.
func (r *run) report(status model.SourceStatus) {
	r.reported = status
	was := r.Status()
	_, _, read := r.held.size()
	status.Source, status.Kind, status.Read = was.Source, was.Kind, read
	if status.Phase != model.Live {
		status.Phase = model.Syncing
		if !read.IsZero() {
			status.Phase = model.Stale
		}
	} else {
		status.Err = ""
	}
	if status.Since.IsZero() {
		status.Since = was.Since
		if status.Phase != was.Phase || was.Since.IsZero() {
			status.Since = time.Now()
		}
	}
	if err := r.DiskError(); err != nil {
		skipped := append([]model.Rejected(nil), status.Skipped...)
		status.Skipped = append(skipped, model.Rejected{Where: "disk " + r.cfg.Dir, Reason: "the last complete read is not kept: " + err.Error()})
	}
	r.mu.Lock()
	r.status = status
	r.mu.Unlock()
	r.metrics.setPhase(status.Phase)
	r.metrics.skipped.Set(float64(len(status.Skipped)))
	r.noteRead(read)
	r.cfg.Sink.Report(status)
}

// saveTimer fires when the next save may begin; nil when none is wanted.
func (r *run) saveTimer() <-chan time.Time {
	if !r.dirty || r.saving || r.cfg.Dir == "" {
		return nil
	}
	return time.After(time.Until(r.nextSave))
}

// startSave writes what is held in a goroutine of its own, which ends with the
// write.
func (r *run) startSave() {
	k, complete := r.held.all()
	r.dirty = false
	if !complete {
		return
	}
	r.saving = true
	go func() { r.saved <- r.saveNow(k) }()
}

func (r *run) saveNow(k kept) saveResult {
	start := time.Now()
	size, err := r.disk.save(k)
	return saveResult{size, time.Since(start), err}
}

// noteSave takes the result of a save: when the next may come, and whether the
// disk is degraded.
func (r *run) noteSave(result saveResult) {
	rest := max(r.cfg.SaveEvery, saveShare*result.took)
	was := r.DiskError()
	r.mu.Lock()
	r.err = result.err
	r.mu.Unlock()
	if result.err != nil {
		rest = max(rest, saveRetry)
		r.dirty = true
		r.metrics.saves.WithLabelValues("failed").Inc()
		if was == nil {
			r.log.Error("last complete read cannot be kept on disk, the mesh works on from memory", "error", result.err)
		}
	} else {
		r.metrics.saves.WithLabelValues("ok").Inc()
		r.metrics.saveTime.Observe(result.took.Seconds())
		r.metrics.diskBytes.Set(float64(result.sizeBytes))
		if was != nil {
			r.log.Info("last complete read is kept on disk again")
		}
	}
	r.nextSave = time.Now().Add(rest)
	if (was == nil) != (result.err == nil) {
		r.report(r.reported)
	}
}

// finish waits for a save under way and writes the last state, with the time up
// to which it was known to be complete.
func (r *run) finish() error {
	if r.saving {
		r.noteSave(<-r.saved)
	}
	k, complete := r.held.all()
	if r.cfg.Dir == "" || !complete {
		return nil
	}
	if result := r.saveNow(k); result.err != nil {
		r.metrics.saves.WithLabelValues("failed").Inc()
		return fmt.Errorf("keep the last complete read of %s: %w", r.disk.source, result.err)
	}
	r.metrics.saves.WithLabelValues("ok").Inc()
	return nil
}
