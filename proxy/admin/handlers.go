package admin

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"slices"
	"strings"
	"time"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"
)

func (s *Server) adminHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ready", s.ready)
	mux.HandleFunc("GET /config_dump", s.buffered("application/json", s.cfg.Configuration.WriteDump))
	mux.HandleFunc("GET /clusters", s.buffered("text/plain; charset=utf-8", s.cfg.Configuration.WriteClusters))
	mux.HandleFunc("GET /listeners", s.buffered("text/plain; charset=utf-8", s.writeListeners))
	mux.HandleFunc("GET /server_info", s.buffered("application/json", s.writeServerInfo))
	mux.HandleFunc("GET /stats", s.buffered("text/plain; charset=utf-8", s.writeStats))
	mux.Handle("GET /stats/prometheus", s.prometheus())
	mux.HandleFunc("POST /drain", s.drain)
	if s.cfg.Level != nil {
		mux.HandleFunc("GET /logging", s.logging)
		mux.HandleFunc("POST /logging", s.logging)
	}
	if s.cfg.ReopenLogs != nil {
		mux.HandleFunc("POST /reopen_logs", s.reopen)
	}
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	for path, h := range s.cfg.Extra {
		mux.Handle(path, h)
	}
	mux.HandleFunc("GET /{$}", s.index)
	return localOnly(http.NewCrossOriginProtection().Handler(mux))
}

func (s *Server) metricsHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", s.prometheus())
	mux.Handle("GET /stats/prometheus", s.prometheus())
	return mux
}

func (s *Server) readinessHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ready", s.ready)
	mux.HandleFunc("GET /healthz/ready", s.ready)
	return mux
}

// maxScrapes bounds scrapes at once, each of which walks all counters.
const maxScrapes = 4

func (s *Server) prometheus() http.Handler {
	return promhttp.HandlerFor(s.cfg.Gatherer, promhttp.HandlerOpts{
		MaxRequestsInFlight: maxScrapes,
		ErrorLog:            slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelWarn),
	})
}

// localOnly refuses requests that name another host: a page whose name was made
// to point at this machine sends that name.
func localOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		_, err := netip.ParseAddr(strings.Trim(host, "[]"))
		if err != nil && host != "localhost" {
			http.Error(w, "the admin address answers to an IP address or localhost only", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// buffered answers with what write writes, or 500 if that fails.
func (s *Server) buffered(contentType string, write func(io.Writer) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var b bytes.Buffer
		if err := write(&b); err != nil {
			s.cfg.Log.Error("admin request failed", "path", r.URL.Path, "error", err)
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", contentType)
		w.Header().Set("X-Content-Type-Options", "nosniff")
		_, _ = b.WriteTo(w) // whoever asked went away
	}
}

func (s *Server) index(w http.ResponseWriter, _ *http.Request) {
	paths := []string{
		"/ready", "/config_dump", "/clusters", "/listeners", "/server_info", "/stats", "/stats/prometheus",
		"/drain (POST)", "/debug/pprof/",
	}
	if s.cfg.Level != nil {
		paths = append(paths, "/logging?level=debug (POST)")
	}
	if s.cfg.ReopenLogs != nil {
		paths = append(paths, "/reopen_logs (POST)")
	}
	paths = append(paths, slices.Sorted(maps.Keys(s.cfg.Extra))...)
	fmt.Fprintln(w, strings.Join(paths, "\n"))
}

func (s *Server) writeListeners(w io.Writer) error {
	for _, l := range s.cfg.Listeners.Status() {
		note := ""
		if !l.Bound {
			note = "::unbound::" + l.Err
		}
		if _, err := fmt.Fprintf(w, "%s::%v%s\n", l.Name, l.Addr, note); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) writeServerInfo(w io.Writer) error {
	info := &adminv3.ServerInfo{
		Version:            s.cfg.Version,
		UptimeCurrentEpoch: durationpb.New(time.Since(s.started).Truncate(time.Second)),
		UptimeAllEpochs:    durationpb.New(time.Since(s.started).Truncate(time.Second)),
		Node:               s.cfg.Node,
	}
	switch name, ready := state(s.cfg.Conditions(), s.cfg.Listeners.Draining()); {
	case name == "DRAINING":
		info.State = adminv3.ServerInfo_DRAINING
	case ready:
		info.State = adminv3.ServerInfo_LIVE
	default:
		info.State = adminv3.ServerInfo_INITIALIZING
	}
	data, err := protojson.MarshalOptions{Indent: " ", UseProtoNames: true, EmitUnpopulated: false}.Marshal(info)
	if err != nil {
		return fmt.Errorf("server info: %w", err)
	}
	_, err = w.Write(data)
	return err
}

// writeStats writes a line a value, "name{labels}: value"; of histograms the
// count and the sum.
func (s *Server) writeStats(w io.Writer) error {
	families, err := s.cfg.Gatherer.Gather()
	if err != nil {
		return fmt.Errorf("gather metrics: %w", err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName() + labels(m)
			switch {
			case m.GetHistogram() != nil:
				fmt.Fprintf(w, "%s: count %d, sum %v\n", name, m.GetHistogram().GetSampleCount(), m.GetHistogram().GetSampleSum())
			case m.GetSummary() != nil:
				fmt.Fprintf(w, "%s: count %d, sum %v\n", name, m.GetSummary().GetSampleCount(), m.GetSummary().GetSampleSum())
			default:
				value := m.GetCounter().GetValue() + m.GetGauge().GetValue() + m.GetUntyped().GetValue() // one is set
				fmt.Fprintf(w, "%s: %v\n", name, value)
			}
		}
	}
	return nil
}

func labels(m *dto.Metric) string {
	if len(m.GetLabel()) == 0 {
		return ""
	}
	var parts []string
	for _, l := range m.GetLabel() {
		parts = append(parts, l.GetName()+"="+l.GetValue())
	}
	return "{" + strings.Join(parts, ",") + "}"
}

func (s *Server) drain(w http.ResponseWriter, _ *http.Request) {
	s.cfg.Log.Info("drain asked for on the admin address")
	s.cfg.Listeners.Drain()
	fmt.Fprintln(w, "OK")
}

func (s *Server) reopen(w http.ResponseWriter, _ *http.Request) {
	s.cfg.ReopenLogs()
	fmt.Fprintln(w, "OK")
}

func (s *Server) logging(w http.ResponseWriter, r *http.Request) {
	if want := r.URL.Query().Get("level"); want != "" {
		if r.Method != http.MethodPost {
			http.Error(w, "POST changes the level", http.StatusMethodNotAllowed)
			return
		}
		var level slog.Level
		if want == "warning" {
			want = "warn" // as Envoy calls it
		}
		if err := level.UnmarshalText([]byte(want)); err != nil {
			http.Error(w, fmt.Sprintf("level %q, want debug, info, warning or error", want), http.StatusBadRequest)
			return
		}
		s.cfg.Level.Set(level)
		s.cfg.Log.Warn("log level changed", "level", level)
	}
	fmt.Fprintf(w, "level: %s\n", strings.ToLower(s.cfg.Level.Level().String()))
}
