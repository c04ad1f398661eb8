package watch

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/xds/model"
)

// maxSkipped bounds what a report names of what could not be understood.
const maxSkipped = 100

// report tells the sink how far the source can be trusted: at once when that
// changed, and with each beat how fresh it is.
func (s *session) report(now time.Time, beat bool) {
	st := model.SourceStatus{Source: s.f.cfg.Name, Kind: s.f.cfg.Kind, Phase: model.Live, Err: s.trouble()}
	switch {
	case !s.complete:
		st.Phase = model.Syncing
	case st.Err != "":
		st.Phase = model.Stale
	}
	last := s.status
	st.Since, st.Read = last.Since, last.Read
	if !s.reported || st.Phase != last.Phase {
		st.Since = now
	}
	if st.Phase == model.Live {
		st.Read = now
	}
	if !beat && !s.news && s.reported && st.Phase == last.Phase && st.Err == last.Err {
		return
	}
	st.Skipped = last.Skipped
	if s.news && s.complete {
		st.Skipped, s.news = s.skipped(), false
	}
	if s.reported && st.Phase != last.Phase {
		s.log(st)
	}
	s.status, s.reported = st, true
	s.sink.Report(st)
}

func (s *session) log(st model.SourceStatus) {
	if st.Phase == model.Stale {
		s.f.cfg.Log.Warn("consul is not followed; the last read stands", "source", st.Source, "error", st.Err)
		return
	}
	s.f.cfg.Log.Info("consul is followed", "source", st.Source, "skipped", len(st.Skipped))
}

// trouble says in a sentence why not everything is followed; empty when it is.
func (s *session) trouble() string {
	var down []string
	var failing *watch
	failed := 0
	for _, c := range s.centers {
		if c.list.err != nil {
			down = append(down, prefix(c.name)+c.list.err.Error())
		}
		if s.troubled == 0 {
			continue
		}
		for _, w := range c.services {
			if (w.err != nil || w.hidden) && !c.down {
				failed++
				if failing == nil || order(w, failing) < 0 {
					failing = w
				}
			}
		}
	}
	switch {
	case len(down) > 0:
		return strings.Join(down, "; ")
	case s.pingErr != nil:
		return s.pingErr.Error()
	case failing != nil:
		text := fmt.Sprintf("%sservice %s: %v", prefix(failing.center.name), failing.service, cmp.Or(failing.err, errHidden))
		if failed > 1 {
			text += fmt.Sprintf("; and %d more", failed-1)
		}
		return text
	}
	return ""
}

func prefix(datacenter string) string {
	if datacenter == "" {
		return ""
	}
	return "data centre " + datacenter + ": "
}

// skipped lists what could not be understood, in the order of names.
func (s *session) skipped() []model.Rejected {
	var out []model.Rejected
	for _, c := range s.centers {
		out = append(out, c.rejected...)
		for _, name := range slices.Sorted(maps.Keys(c.services)) {
			if p := c.services[name].part; p != nil && len(out) <= maxSkipped {
				out = append(out, p.rejected...)
			}
		}
	}
	if len(out) > maxSkipped {
		out = append(out[:maxSkipped:maxSkipped], model.Rejected{Where: s.f.cfg.Name, Reason: "there are more that are not listed"})
	}
	return out
}
