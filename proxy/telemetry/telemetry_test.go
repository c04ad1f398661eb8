package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestCountersAddUpOverShards(t *testing.T) {
	u := NewUpstream("c", "s")
	var group sync.WaitGroup
	for shard := range uint32(40) {
		group.Go(func() {
			for range 1000 {
				u.RequestTotal.Add(shard, 2)
				u.RequestActive.Add(shard, 1)
				u.RequestActive.Add(shard+1, -1) // ended on another shard
				u.Duration.Observe(shard, time.Millisecond)
			}
		})
	}
	group.Wait()
	if got := u.RequestTotal.Value(); got != 80000 {
		t.Errorf("RequestTotal: got %d, want 80000", got)
	}
	if got := u.RequestActive.Value(); got != 0 {
		t.Errorf("RequestActive: got %d, want 0", got)
	}
	if got := u.ConnectionTotal.Value(); got != 0 {
		t.Errorf("a neighbour: got %d, want 0", got)
	}
	count, sum, buckets := u.Duration.snapshot()
	if count != 40000 || sum < 39.99 || sum > 40.01 || buckets[0.001] != 40000 || buckets[0.0005] != 0 {
		t.Errorf("Duration: got %d, %v, %v", count, sum, buckets)
	}
	var none Counter
	none.Add(3, 1) // counts nothing, and does not panic
}

func TestHistogramBounds(t *testing.T) {
	d := NewDownstream("inbound", 1)
	for _, v := range []time.Duration{0, 100 * time.Microsecond, 100*time.Microsecond + 1, 10 * time.Second, time.Hour} {
		d.Duration.Observe(0, v)
	}
	count, _, buckets := d.Duration.snapshot()
	if count != 5 || buckets[0.0001] != 2 || buckets[0.00025] != 3 || buckets[10] != 4 {
		t.Errorf("got %d, %v", count, buckets)
	}
}

func TestMetricsHaveTheFixedKeys(t *testing.T) {
	r := NewRegistry()
	d := r.Downstream("outbound", 15002)
	if r.Downstream("outbound", 15002) != d {
		t.Error("the same listener got other counters")
	}
	u := r.Upstream("outbound|80||cart", "cart")
	d.RequestTimeTotal.Add(1, int64(1500*time.Microsecond))
	d.ProcessTimeTotal.Add(1, int64(250*time.Microsecond))
	u.DurationTotal.Add(2, int64(2*time.Second))
	u.FailureEject.Add(0, 1)
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(r)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	have, values := map[string]bool{}, map[string]float64{}
	for _, f := range families {
		have[f.GetName()] = true
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			if v := m.GetCounter().GetValue(); v != 0 {
				values[f.GetName()+" "+strings.Join(labels, ",")] = v
			}
		}
	}
	want := map[string]float64{
		"downstream_process_time_total direction=outbound,port=15002":                 0.25,
		"downstream_request_time_total direction=outbound,port=15002":                 1.5,
		"upstream_request_duration_time_total cluster=outbound|80||cart,service=cart": 2000,
		"upstream_request_failure_eject cluster=outbound|80||cart,service=cart":       1,
	}
	if d := cmp.Diff(want, values); d != "" {
		t.Errorf("counters (-want +got):\n%s", d)
	}
	for _, key := range []string{
		"downstream_connection_active", "downstream_request_active", "downstream_request_total", "downstream_request_time_total",
		"downstream_process_time_total", "downstream_request_failed", "upstream_connection_active", "upstream_request_active",
		"upstream_request_total", "upstream_request_duration_time_total", "upstream_request_failure_eject",
		"mesh_proxy_downstream_request_duration_seconds", "mesh_proxy_upstream_request_duration_seconds",
	} {
		if !have[key] {
			t.Errorf("%s is missing", key)
		}
	}
	r.Forget("outbound|80||cart")
	if families, err = reg.Gather(); err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "upstream_request_total" {
			t.Error("a forgotten cluster is still shown")
		}
	}
}

func entry() *Entry {
	return &Entry{
		Start:    time.Date(2026, 3, 4, 5, 6, 7, 89e6, time.UTC),
		Duration: 12345 * time.Microsecond, Process: 300 * time.Microsecond, ProcessRequest: 200 * time.Microsecond,
		ProcessResponse: 100 * time.Microsecond, Upstream: 11 * time.Millisecond,
		Method: []byte("GET"), Path: []byte("/a?b=\"c\""), Authority: []byte("cart:80"), UserAgent: []byte("curl/8\x1b[31m"),
		DownstreamProtocol: "HTTP/1.1", UpstreamProtocol: "HTTP/1.1", Status: 503, Flags: UpstreamConnectionFailure | RetryLimitExceeded,
		RequestBytes: 1, ResponseBytes: 91, Attempts: 3, Route: "default", Cluster: "outbound|80||cart", TargetApp: "cart-1", SourceApp: "shop",
		UpstreamHost: netip.MustParseAddrPort("10.0.0.1:8080"), DownstreamLocal: netip.MustParseAddrPort("127.0.0.1:15002"),
		DownstreamRemote: netip.MustParseAddrPort("127.0.0.1:51000"),
	}
}

func TestTextLines(t *testing.T) {
	var clock clockCache
	got := string(appendText(nil, &clock, entry()))
	want := `[2026-03-04T05:06:07.089Z] "GET /a?b=\"c\" HTTP/1.1" 503 UF,URX 1 91 12 11 "-" "curl/8\x1b[31m" "-" "cart:80" "10.0.0.1:8080" outbound|80||cart - 127.0.0.1:15002 127.0.0.1:51000 default` + "\n"
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("line (-want +got):\n%s", d)
	}
	e := &Entry{Start: entry().Start.Add(time.Second)}
	if got, want := string(appendText(nil, &clock, e)), `[2026-03-04T05:06:08.089Z] "- - -" 0 - 0 0 0 - "-" "-" "-" "-" "-" - - - - -`+"\n"; got != want {
		t.Errorf("empty entry: got %s want %s", got, want)
	}
}

func TestJSONLines(t *testing.T) {
	var clock clockCache
	e := entry()
	e.Path = []byte("/\xff\n\u00fc")
	var got map[string]any
	if err := json.Unmarshal(appendObject(nil, &clock, "host-1", e), &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"start_time": "2026-03-04T05:06:07.089Z", "host.name": "host-1", "source.app": "shop", "target.app": "cart-1",
		"downstream.address": "127.0.0.1:51000", "downstream.local_address": "127.0.0.1:15002", "upstream.address": "10.0.0.1:8080",
		"downstream.protocol": "HTTP/1.1", "upstream.protocol": "HTTP/1.1", "http.method": "GET", "http.url": "/\ufffd\n\u00fc",
		"http.host": "cart:80", "user_agent": "curl/8\x1b[31m", "http.status": 503.0, "response_flags": "UF,URX",
		"request.size": 1.0, "response.size": 91.0, "duration": 12.345, "mosn.process.duration": 0.3,
		"mosn.process.request.duration": 0.2, "mosn.process.response.duration": 0.1, "mosn.process.fail": false,
		"attempts": 3.0, "route": "default", "cluster": "outbound|80||cart",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("fields (-want +got):\n%s", d)
	}
}

// sink is a destination whose writes can be held and made to fail.
type sink struct {
	mu     sync.Mutex // guards the fields below
	buf    bytes.Buffer
	opened int
	fail   bool
}

func (s *sink) open() (io.WriteCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opened++
	return s, nil
}

func (s *sink) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail {
		return 0, errors.New("disk full")
	}
	return s.buf.Write(b)
}

func (s *sink) Close() error { return nil }

func (s *sink) lines() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return bytes.Count(s.buf.Bytes(), []byte("\n"))
}

func newLog(t testing.TB, s *sink, bytes int) *AccessLog {
	t.Helper()
	l, err := NewAccessLog(AccessLogConfig{Open: s.open, BufferBytes: bytes, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func run(t *testing.T, l *AccessLog) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestLinesAreWrittenInBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sink{}
		l := newLog(t, s, 0)
		stop := run(t, l)
		for i := range uint32(10) {
			l.Log(i, entry())
		}
		time.Sleep(20 * time.Millisecond)
		if got := s.lines(); got != 0 {
			t.Errorf("before the delay: got %d lines, want 0", got)
		}
		time.Sleep(40 * time.Millisecond)
		synctest.Wait()
		if got := s.lines(); got != 10 || l.Written() != 10 {
			t.Errorf("after the delay: got %d lines, %d counted; want 10", got, l.Written())
		}
		l.Log(1, entry())
		l.Reopen()
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		if s.opened != 2 || s.lines() != 11 {
			t.Errorf("reopened: got %d openings, %d lines; want 2, 11", s.opened, s.lines())
		}
		l.Log(1, entry())
		stop()
		if got := s.lines(); got != 12 {
			t.Errorf("at the end: got %d lines, want 12", got)
		}
	})
}

func TestWhatDoesNotFitIsDroppedAndCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sink{}
		l := newLog(t, s, 16<<10)
		for range 1000 {
			l.Log(0, entry()) // nobody writes yet
		}
		if l.Dropped() == 0 {
			t.Error("nothing was dropped")
		}
		stop := run(t, l)
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		if got := int64(s.lines()) + l.Dropped(); got != 1000 {
			t.Errorf("written and dropped: got %d, want 1000", got)
		}
		before := l.Dropped()
		s.mu.Lock()
		s.fail = true
		s.mu.Unlock()
		l.Log(0, entry())
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		if got := l.Dropped() - before; got != 1 {
			t.Errorf("dropped by a failing disk: got %d, want 1", got)
		}
		s.mu.Lock()
		s.fail = false
		s.mu.Unlock()
		time.Sleep(2 * time.Second)
		lines := s.lines()
		l.Log(0, entry())
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		if got := s.lines() - lines; got != 1 || s.opened != 2 {
			t.Errorf("after the disk is back: got %d lines, %d openings; want 1, 2", got, s.opened)
		}
		stop()
	})
}

func TestLogDoesNotAllocate(t *testing.T) {
	for _, format := range []Format{Text, JSON} {
		l := newLog(t, &sink{}, 1<<20)
		l.cfg.Format = format
		e := entry()
		for range 5000 { // buffers grow to their bound
			l.Log(0, e)
		}
		if got := testing.AllocsPerRun(100, func() { l.Log(0, e) }); got != 0 {
			t.Errorf("%v: got %v allocations a line, want 0", format, got)
		}
	}
}

func TestMistakesOfConfigAreReportedTogether(t *testing.T) {
	_, err := NewAccessLog(AccessLogConfig{BufferBytes: -1})
	want := "access log: Open is missing\naccess log: Log is missing\naccess log: BufferBytes and Delay must not be negative"
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	var f Format
	if err := f.UnmarshalText([]byte("xml")); err == nil {
		t.Error("format xml: want an error")
	}
}

func BenchmarkLog(b *testing.B) {
	for _, format := range []Format{Text, JSON} {
		b.Run(format.String(), func(b *testing.B) {
			l := newLog(b, &sink{}, 0)
			l.cfg.Format = format
			e := entry()
			s := &l.shards[0]
			b.ReportAllocs()
			for b.Loop() {
				s.fill = s.fill[:0]
				l.Log(0, e)
			}
		})
	}
}

func BenchmarkCounter(b *testing.B) {
	u := NewUpstream("c", "s")
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			u.RequestTotal.Add(7, 1)
		}
	})
}

func ExampleFlags_Append() {
	fmt.Println(string((NoHealthyUpstream | UpstreamOverflow).Append(nil)))
	// Output: UH,UO
}
