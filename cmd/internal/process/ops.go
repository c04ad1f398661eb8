package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// drainTime bounds how long Ops waits for open requests when it stops.
const drainTime = 2 * time.Second

// Condition is the state of one part of a daemon, shown by /readyz.
type Condition struct {
	Name string `json:"name"` // "store", "source zk-main"
	// NotReady makes /readyz answer 503: the daemon must get no work.
	NotReady bool `json:"notReady,omitempty"`
	// Degraded is shown and does not change the answer.
	Degraded bool `json:"degraded,omitempty"`
	// Detail says why it is degraded or not ready, and what mends it.
	Detail string `json:"detail,omitempty"`
}

// OpsConfig configures an Ops server.
type OpsConfig struct {
	Listener net.Listener         // required
	Registry *prometheus.Registry // required
	Log      *slog.Logger         // required
	Level    *slog.LevelVar       // nil: the level cannot be changed at run time
	// Ready lists the conditions now; nil means always ready. It is called by
	// every request of /readyz and must not block.
	Ready func() []Condition
	// Debug adds handlers under /debug/: path below it -> handler.
	Debug map[string]http.Handler
}

// Ops serves /metrics, /readyz, /livez, /debug/log-level and /debug/pprof/.
type Ops struct {
	cfg  OpsConfig
	http *http.Server
}

// NewOps checks cfg.
func NewOps(cfg OpsConfig) (*Ops, error) {
	var errs []error
	if cfg.Listener == nil {
		errs = append(errs, errors.New("ops: Listener is missing"))
	}
	if cfg.Registry == nil {
		errs = append(errs, errors.New("ops: Registry is missing"))
	}
	if cfg.Log == nil {
		errs = append(errs, errors.New("ops: Log is missing"))
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	o := &Ops{cfg: cfg}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(cfg.Registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second}))
	mux.HandleFunc("GET /readyz", o.ready)
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "live") })
	mux.HandleFunc("/debug/log-level", o.level)
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	for path, h := range cfg.Debug {
		mux.Handle("/debug/"+strings.TrimPrefix(path, "/"), h)
	}
	o.http = &http.Server{
		Handler:           localHosts(cfg.Listener.Addr(), ownSite(mux)),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug),
	}
	return o, nil
}

// Run serves until ctx ends.
func (o *Ops) Run(ctx context.Context) error {
	drained := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(drained)
		bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
		defer cancel()
		if o.http.Shutdown(bound) != nil {
			_ = o.http.Close() // a profile under way outlives its reader's patience
		}
	})
	err := o.http.Serve(o.cfg.Listener)
	if !stop() {
		<-drained
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve operations port: %w", err)
}

func (o *Ops) ready(w http.ResponseWriter, r *http.Request) {
	var conditions []Condition
	if o.cfg.Ready != nil {
		conditions = o.cfg.Ready()
	}
	status, word := http.StatusOK, "ready"
	for _, c := range conditions {
		if c.Degraded && status == http.StatusOK {
			word = "degraded"
		}
		if c.NotReady {
			status, word = http.StatusServiceUnavailable, "not ready"
		}
	}
	if strings.Contains(r.Header.Get("Accept"), "json") {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(map[string]any{"status": word, "conditions": conditions}) // the reader left
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	fmt.Fprintln(w, word)
	for _, c := range conditions {
		state := "ok"
		if c.NotReady {
			state = "not ready"
		} else if c.Degraded {
			state = "degraded"
		}
		fmt.Fprintln(w, strings.TrimSpace(fmt.Sprintf("%s: %s %s", c.Name, state, c.Detail)))
	}
}

func (o *Ops) level(w http.ResponseWriter, r *http.Request) {
	if o.cfg.Level == nil {
		http.NotFound(w, r)
		return
	}
	switch r.Method {
	case http.MethodGet:
		fmt.Fprintln(w, strings.ToLower(o.cfg.Level.Level().String()))
	case http.MethodPut, http.MethodPost:
		name := r.URL.Query().Get("level")
		if name == "" {
			body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 64))
			if err != nil {
				http.Error(w, "level: want debug, info, warn or error", http.StatusBadRequest)
				return
			}
			name = strings.TrimSpace(string(body))
		}
		before := o.cfg.Level.Level()
		if err := SetLevel(o.cfg.Level, name); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		o.cfg.Log.Warn("log level changed", "from", before.String(), "to", o.cfg.Level.Level().String())
		fmt.Fprintln(w, strings.ToLower(o.cfg.Level.Level().String()))
	default:
		w.Header().Set("Allow", "GET, PUT")
		http.Error(w, "want GET or PUT", http.StatusMethodNotAllowed)
	}
}

// localHosts refuses requests that name a foreign host on a loopback listener: a
// web page whose name was rebound to 127.0.0.1 sends its own name. On other
// addresses any name may be right, so nothing is checked.
func localHosts(addr net.Addr, next http.Handler) http.Handler {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok || !tcp.IP.IsLoopback() {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
		if host != "localhost" && (err != nil || !ip.IsLoopback()) {
			http.Error(w, "this port answers to localhost and loopback addresses only", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// ownSite keeps pages of other sites from what changes or costs something: any
// method but GET and HEAD, and everything under /debug/. Browsers say where a
// request comes from in Origin and Sec-Fetch-Site; programs send neither.
func ownSite(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		harmless := (r.Method == http.MethodGet || r.Method == http.MethodHead) && !strings.HasPrefix(r.URL.Path, "/debug/")
		if !harmless && foreign(r) {
			http.Error(w, "pages of other sites may not call this port", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func foreign(r *http.Request) bool {
	if origin := r.Header.Get("Origin"); origin != "" {
		if u, err := url.Parse(origin); err != nil || !strings.EqualFold(u.Host, r.Host) {
			return true
		}
	}
	site := r.Header.Get("Sec-Fetch-Site")
	return site == "cross-site" || site == "same-site"
}
