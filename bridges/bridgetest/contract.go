package bridgetest

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/isthmus-mesh/isthmus/bridges"
	"github.com/isthmus-mesh/isthmus/xds/model"
)

// checked is a Source whose every call to its sink is held against the contract
// of bridges.Source.
type checked struct {
	bridges.Source
	t    testing.TB
	runs atomic.Int32
}

// Run implements bridges.Source.
func (c *checked) Run(ctx context.Context, sink bridges.Sink) error {
	c.runs.Add(1)
	s := &checkedSink{Sink: sink, t: c.t}
	err := c.Source.Run(ctx, s)
	s.over.Store(true)
	if err != nil && ctx.Err() != nil {
		c.t.Errorf("Run returned %v after its context ended, want nil", err)
	}
	return err
}

type checkedSink struct {
	bridges.Sink
	t      testing.TB
	full   bool // touched by the serialised calls only
	inside atomic.Bool
	over   atomic.Bool
}

// Held implements bridges.Holder, as the supervisor's sink does.
func (s *checkedSink) Held(host model.Host) *model.Service {
	if holder, ok := s.Sink.(bridges.Holder); ok {
		return holder.Held(host)
	}
	return nil
}

func (s *checkedSink) enter(what string) {
	if s.over.Load() {
		s.t.Errorf("%s after Run returned", what)
	}
	if !s.inside.CompareAndSwap(false, true) {
		s.t.Errorf("%s while another call was under way: a source serialises its calls", what)
	}
}

// Apply implements bridges.Sink.
func (s *checkedSink) Apply(u model.Update) {
	s.enter("Apply")
	defer s.inside.Store(false)
	if !s.full && !u.Full {
		s.t.Errorf("the first Apply of a Run is %s, want a full one", describe(u))
	}
	s.full = true
	if !u.Full && len(u.Services)+len(u.Removed)+len(u.Workloads)+len(u.RemovedWorkloads) == 0 {
		s.t.Error("Apply of nothing")
	}
	s.Sink.Apply(u)
}

// Report implements bridges.Sink.
func (s *checkedSink) Report(status model.SourceStatus) {
	s.enter("Report")
	defer s.inside.Store(false)
	if status.Phase == model.Live && !s.full {
		s.t.Error("Report of live before the first full Apply of this Run")
	}
	s.Sink.Report(status)
}
