package bridges

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/isthmus-mesh/isthmus/xds/model"
)

// supervised runs a supervisor inside a bubble until the test stops it.
func supervised(t *testing.T, cfg Config) (s *Supervisor, stop func() error) {
	t.Helper()
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	return s, func() error {
		cancel()
		return <-ended
	}
}

// value reads a counter or gauge.
func value(t *testing.T, c prometheus.Collector) float64 {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	if err := reg.Register(c); err != nil {
		t.Fatal(err)
	}
	families, err := reg.Gather()
	if err != nil || len(families) != 1 {
		t.Fatalf("%d metrics, %v", len(families), err)
	}
	m := families[0].GetMetric()[0]
	return m.GetCounter().GetValue() + m.GetGauge().GetValue()
}

func TestNewReportsEveryMistake(t *testing.T) {
	_, err := New(Config{Source: &scripted{name: "a/b"}, SaveEvery: -1})
	for _, want := range []string{"sink is nil", `"a/b"`, "'/' in the name", "save_every -1ns"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want it to contain %q", err, want)
		}
	}
	if _, err := New(Config{Sink: &mesh{}}); err == nil || err.Error() != "source is nil" {
		t.Errorf("got %v", err)
	}
	for _, bad := range []string{"", ".hidden", "a b", "ä", strings.Repeat("x", 129)} {
		if _, err := New(Config{Sink: &mesh{}, Source: &scripted{name: bad}}); err == nil {
			t.Errorf("name %q was taken", bad)
		}
	}
}

func TestASecondSourceOfTheSameNameIsRefused(t *testing.T) {
	reg := prometheus.NewRegistry()
	cfg := Config{Source: &scripted{name: "zk"}, Sink: &mesh{}, Registerer: reg}
	if _, err := New(cfg); err != nil {
		t.Fatal(err)
	}
	if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), "source zk") {
		t.Errorf("got %v", err)
	}
	cfg.Source = &scripted{name: "zk2"}
	if _, err := New(cfg); err != nil {
		t.Errorf("another name: %v", err)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	if problems, err := promlint.NewWithMetricFamilies(families).Lint(); err != nil || len(problems) > 0 {
		t.Errorf("metrics: %v, %v", problems, err)
	}
}

func TestASourceThatEndsIsStaleAndRunAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cut := errors.New("connection reset")
		m := &mesh{}
		src := &scripted{name: "zk", runs: []func(context.Context, Sink) error{
			func(_ context.Context, sink Sink) error {
				sink.Apply(model.Update{Full: true, Services: []*model.Service{service("cart", 2)}})
				sink.Report(model.SourceStatus{Phase: model.Live})
				time.Sleep(time.Minute)
				return cut
			},
			func(context.Context, Sink) error { return cut },
			func(context.Context, Sink) error { return nil },
			full(service("cart", 2)),
		}}
		s, stop := supervised(t, Config{Source: src, Sink: m})
		start := time.Now()
		time.Sleep(time.Minute)
		synctest.Wait()
		status := m.last()
		if status.Phase != model.Stale || status.Err != cut.Error() || !status.Read.Equal(start) || !status.Since.Equal(time.Now()) {
			t.Errorf("after the cut: %+v", status)
		}
		if d := cmp.Diff([]string{"cart"}, m.hosts()); d != "" {
			t.Errorf("hosts (-want +got):\n%s", d)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if d := cmp.Diff([]model.SourcePhase{model.Syncing, model.Live, model.Stale, model.Live}, m.phases()); d != "" {
			t.Errorf("phases (-want +got):\n%s", d)
		}
		if got := s.Status(); got.Phase != model.Live || got.Source != "zk" || got.Kind != "scripted" || got.Err != "" {
			t.Errorf("status %+v", got)
		}
		if src.n != 4 {
			t.Errorf("%d runs, want 4", src.n)
		}
		if n := value(t, s.metrics.restarts); n != 3 {
			t.Errorf("%v restarts counted, want 3", n)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestASourceThatNeverReadsIsSyncing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mesh{}
		src := &scripted{name: "zk", runs: []func(context.Context, Sink) error{func(context.Context, Sink) error { return errors.New("refused") }}}
		_, stop := supervised(t, Config{Source: src, Sink: m, RetryHigh: 4 * time.Second})
		time.Sleep(time.Minute)
		synctest.Wait()
		if status := m.last(); status.Phase != model.Syncing || status.Err != "refused" || !status.Read.IsZero() || time.Since(status.Since) < time.Minute {
			t.Errorf("status %+v", status)
		}
		// 0.1 to 4 s, doubled, then one each 2 to 4 s.
		if src.n < 15 || src.n > 40 {
			t.Errorf("%d attempts in a minute", src.n)
		}
		if len(m.updates) != 0 {
			t.Errorf("updates %v", m.updates)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestLiveBeforeAFullReadIsNotBelieved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mesh{}
		src := &scripted{name: "zk", runs: []func(context.Context, Sink) error{func(ctx context.Context, sink Sink) error {
			sink.Report(model.SourceStatus{Phase: model.Live})
			return stay(ctx, sink)
		}}}
		_, stop := supervised(t, Config{Source: src, Sink: m})
		synctest.Wait()
		if status := m.last(); status.Phase != model.Syncing || !strings.Contains(status.Err, "before its first complete read") {
			t.Errorf("status %+v", status)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestEqualServicesAreNotHandedOnAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mesh{}
		first := service("cart", 3)
		src := &scripted{name: "zk", runs: []func(context.Context, Sink) error{
			func(_ context.Context, sink Sink) error {
				sink.Apply(model.Update{Full: true, Services: []*model.Service{first, service("old", 1)}})
				sink.Apply(model.Update{Services: []*model.Service{service("cart", 3)}})
				sink.Apply(model.Update{Services: []*model.Service{service("cart", 3), service("new", 1)}, Removed: []model.Host{"old"}})
				return errors.New("cut")
			},
			full(service("cart", 3), service("new", 2)),
		}}
		s, stop := supervised(t, Config{Source: src, Sink: m})
		time.Sleep(time.Second)
		synctest.Wait()
		if len(m.updates) != 3 {
			t.Fatalf("%d updates, want 3", len(m.updates))
		}
		if got := m.updates[1]; len(got.Services) != 1 || got.Services[0].Host != "new" {
			t.Errorf("second update %+v, want the new service alone", got)
		}
		if last := m.updates[2]; !last.Full || last.Services[0] != first {
			t.Error("a service that is as before is another pointer in the next full update")
		}
		if services, endpoints, _ := s.held.size(); services != 2 || endpoints != 5 {
			t.Errorf("%d services, %d endpoints, want 2 and 5", services, endpoints)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestColdStartServesTheLastReadUntilTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		src := &scripted{name: "zk", runs: []func(context.Context, Sink) error{full(service("cart", 2), service("gone", 1))}}
		_, stop := supervised(t, Config{Source: src, Sink: &mesh{}, Dir: dir})
		synctest.Wait()
		read := time.Now()
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)

		m := &mesh{}
		back := make(chan struct{})
		src = &scripted{name: "zk", runs: []func(context.Context, Sink) error{
			func(context.Context, Sink) error { return errors.New("refused") },
			func(ctx context.Context, sink Sink) error {
				if held := sink.(Holder).Held("gone"); held == nil || len(held.Endpoints) != 1 {
					t.Errorf("held %v, want the service from disk", held)
				}
				<-back
				return full(service("cart", 3))(ctx, sink)
			},
		}}
		_, stop = supervised(t, Config{Source: src, Sink: m, Dir: dir})
		synctest.Wait()
		if !m.updates[0].Full || len(m.updates) != 1 {
			t.Errorf("updates %+v, want one full", m.updates)
		}
		if d := cmp.Diff([]string{"cart", "gone"}, m.hosts()); d != "" {
			t.Errorf("hosts (-want +got):\n%s", d)
		}
		if first := m.statuses[0]; first.Phase != model.Stale || !first.Read.Equal(read) || first.Err == "" {
			t.Errorf("first status %+v, want stale since the hour of %v", first, read)
		}
		time.Sleep(time.Minute)
		if status := m.last(); status.Phase != model.Stale || status.Err != "refused" {
			t.Errorf("status %+v", status)
		}
		close(back)
		synctest.Wait()
		if d := cmp.Diff([]string{"cart"}, m.hosts()); d != "" {
			t.Errorf("hosts after the read (-want +got):\n%s", d)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestAColdStartThatReadNothingLeavesTheFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := disk{dir: t.TempDir(), source: "zk", kind: "scripted"}
		if _, err := d.save(someKept()); err != nil {
			t.Fatal(err)
		}
		src := &scripted{name: "zk", runs: []func(context.Context, Sink) error{stay}}
		_, stop := supervised(t, Config{Source: src, Sink: &mesh{}, Dir: d.dir})
		time.Sleep(time.Hour)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		k, found, err := d.load()
		if err != nil || !found || len(k.Services) != 2 || len(k.Workloads) != 2 || !k.Read.Equal(someKept().Read) {
			t.Errorf("found %v, %v, %+v", found, err, k)
		}
	})
}

func TestADamagedFileIsReportedAndTheSourceStarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "zk.snapshot"), []byte("garbage\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		m := &mesh{}
		src := &scripted{name: "zk", runs: []func(context.Context, Sink) error{full(service("cart", 1))}}
		_, stop := supervised(t, Config{Source: src, Sink: m, Dir: dir})
		synctest.Wait()
		if first := m.statuses[0]; first.Phase != model.Syncing || !strings.Contains(first.Err, "zk.snapshot.corrupt") {
			t.Errorf("first status %+v, want it to name the file moved aside", first)
		}
		if m.last().Phase != model.Live {
			t.Errorf("status %+v", m.last())
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestSavesAreBoundedInRateAndTheLastStateIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := disk{dir: t.TempDir(), source: "zk", kind: "scripted"}
		src := &scripted{name: "zk", runs: []func(context.Context, Sink) error{func(ctx context.Context, sink Sink) error {
			sink.Apply(model.Update{Full: true})
			sink.Report(model.SourceStatus{Phase: model.Live})
			for i := range 100 {
				sink.Apply(model.Update{Services: []*model.Service{service("cart", i+1)}})
				time.Sleep(100 * time.Millisecond)
			}
			return stay(ctx, sink)
		}}}
		s, stop := supervised(t, Config{Source: src, Sink: &mesh{}, Dir: d.dir})
		time.Sleep(9_950 * time.Millisecond)
		synctest.Wait()
		if n := value(t, s.metrics.saves.WithLabelValues("ok")); n < 5 || n > 11 {
			t.Errorf("%v saves in 10 s, want about 10", n)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if k, _, err := d.load(); err != nil || len(k.Services) != 1 || len(k.Services[0].Endpoints) != 100 {
			t.Errorf("%v, %+v", err, k)
		}
	})
}

func TestADiskThatFailsIsShownAndLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		root := t.TempDir()
		dir := filepath.Join(root, "bridges")
		if err := os.WriteFile(dir, nil, 0o600); err != nil { // a file where the folder should be
			t.Fatal(err)
		}
		m := &mesh{}
		src := &scripted{name: "zk", runs: []func(context.Context, Sink) error{full(service("cart", 2))}}
		s, stop := supervised(t, Config{Source: src, Sink: m, Dir: dir})
		time.Sleep(time.Second)
		synctest.Wait()
		if s.DiskError() == nil || !strings.Contains(s.DiskError().Error(), dir) {
			t.Errorf("disk error %v, want one that names %s", s.DiskError(), dir)
		}
		status := m.last()
		if status.Phase != model.Live || status.Err != "" || len(status.Skipped) != 1 || !strings.Contains(status.Skipped[0].Where, dir) {
			t.Errorf("status %+v, want live with the disk among what was skipped", status)
		}
		if d := cmp.Diff([]string{"cart"}, m.hosts()); d != "" {
			t.Errorf("hosts (-want +got):\n%s", d)
		}
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if err := s.DiskError(); err != nil {
			t.Errorf("disk error %v after the disk is well", err)
		}
		if status := m.last(); len(status.Skipped) != 0 {
			t.Errorf("status %+v", status)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestTheLastSaveFailingIsReturned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(dir, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		src := &scripted{name: "zk", runs: []func(context.Context, Sink) error{full(service("cart", 2))}}
		_, stop := supervised(t, Config{Source: src, Sink: &mesh{}, Dir: dir})
		synctest.Wait()
		if err := stop(); err == nil || !strings.Contains(err.Error(), "keep the last complete read of zk") {
			t.Errorf("got %v", err)
		}
	})
}

func TestASourceThatCallsAfterItsEndIsNotHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mesh{}
		var late Sink
		src := &scripted{name: "zk", runs: []func(context.Context, Sink) error{
			func(_ context.Context, sink Sink) error {
				late = sink
				return errors.New("cut")
			},
			full(service("cart", 1)),
		}}
		_, stop := supervised(t, Config{Source: src, Sink: m})
		time.Sleep(time.Second)
		synctest.Wait()
		late.Apply(model.Update{Full: true})
		late.Report(model.SourceStatus{Phase: model.Stale})
		if len(m.updates) != 1 || m.last().Phase != model.Live {
			t.Errorf("updates %+v, status %+v", m.updates, m.last())
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestRetryWaitsLongerEachTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var at []time.Duration
		start := time.Now()
		err := Retry(t.Context(), time.Second, 4*time.Second, func(context.Context) error {
			at = append(at, time.Since(start))
			if len(at) < 6 {
				return errors.New("not yet")
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for i, low := range []time.Duration{500, 1000, 2000, 2000, 2000} {
			wait := at[i+1] - at[i]
			if low *= time.Millisecond; wait < low || wait > 2*low {
				t.Errorf("wait %d is %v, want %v to %v", i, wait, low, 2*low)
			}
		}
	})
}

func TestRetryEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		failing := errors.New("never")
		if err := Retry(ctx, 0, 0, func(context.Context) error { return failing }); !errors.Is(err, failing) {
			t.Errorf("got %v", err)
		}
	})
}
