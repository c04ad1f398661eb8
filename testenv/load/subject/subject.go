// Package subject starts the proxies that are measured: Isthmus, HAProxy, nginx
// and Envoy, each with the same routing table, statistics and an access log.
//
// The configurations are the templates beside this file, tuned for each. A
// subject runs on one core; MeshServer, which is no part of the request's way,
// runs on the other. README.md of testenv/load says what is equal and what not.
package subject

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"text/template"
	"time"
)

//go:embed templates
var templates embed.FS

// Names of the subjects.
const (
	Isthmus = "isthmus"
	HAProxy = "haproxy"
	Nginx   = "nginx"
	Envoy   = "envoy"
)

// Names returns all subjects.
func Names() []string { return []string{Isthmus, HAProxy, Nginx, Envoy} }

// Service is one virtual host.
type Service struct {
	Host   string
	Routes []string // path prefixes, the last is "/"
}

// Site is what every subject serves.
type Site struct {
	Services  []Service
	Endpoints []netip.AddrPort // of every service
}

// NewSite is a table of services with four routes each.
func NewSite(services int, endpoints []netip.AddrPort) Site {
	site := Site{Endpoints: endpoints}
	for i := range services {
		site.Services = append(site.Services, Service{
			Host:   fmt.Sprintf("service-%02d.shop", i),
			Routes: []string{"/api/v1/orders", "/api/v1/items", "/static", "/"},
		})
	}
	return site
}

// Request is a caller's request for a route, whole.
func (s Service) Request(route int) []byte {
	return fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: load/1.0\r\nAccept: */*\r\n\r\n", s.path(route), s.Host)
}

func (s Service) path(route int) string {
	prefix := s.Routes[route]
	if prefix == "/" {
		return "/index"
	}
	return prefix + "/1234"
}

// Config says what to start and where.
type Config struct {
	Name string
	Site Site
	Bin  string // built programs of the product
	Dir  string // a folder for this start alone
	Core int    // for the subject
	Mesh *Mesh  // for Isthmus; else nil
	// LogSink takes lines over TCP, for a subject that cannot batch into a file.
	LogSink  netip.AddrPort
	LogLines func() int64 // that came to LogSink
}

// Running is a subject that serves.
type Running struct {
	Addr      netip.AddrPort
	process   *Process
	admin     int // port
	pids      []int
	accessLog string // empty: lines went to the sink
	lines     func() int64
}

// Run starts a subject and returns once every route of the site answers.
func Run(ctx context.Context, cfg Config) (*Running, error) {
	start := map[string]func(context.Context, Config, *values) (*Process, error){
		Isthmus: startIsthmus, HAProxy: startHAProxy, Nginx: startNginx, Envoy: startEnvoy,
	}[cfg.Name]
	if start == nil {
		return nil, fmt.Errorf("subject %q is not known", cfg.Name)
	}
	if err := os.MkdirAll(cfg.Dir, 0o755); err != nil {
		return nil, err
	}
	v := &values{Config: cfg, AccessLog: filepath.Join(cfg.Dir, "access.log")}
	for _, into := range []*int{&v.Port, &v.Admin} {
		port, err := Port()
		if err != nil {
			return nil, err
		}
		*into = port
	}
	linesBefore := cfg.LogLines()
	process, err := start(ctx, cfg, v)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", cfg.Name, err)
	}
	r := &Running{
		Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(v.Port)), process: process, admin: v.Admin,
		accessLog: v.AccessLog, lines: func() int64 { return cfg.LogLines() - linesBefore },
	}
	err = process.Await(ctx, func(ctx context.Context) error { return verify(ctx, r.Addr, cfg.Site) })
	if err == nil {
		r.pids, err = process.Pids()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", cfg.Name, err), process.Stop())
	}
	return r, nil
}

// Usage returns what the subject's processes have used.
func (r *Running) Usage() (Usage, error) { return usage(r.pids) }

// Stop ends the subject.
func (r *Running) Stop() error { return r.process.Stop() }

// Logged returns how many lines the access log has. Call it after Stop.
func (r *Running) Logged() (int64, error) {
	if r.accessLog == "" {
		// What was sent is on its way through the kernel at most.
		for before := int64(-1); before != r.lines(); time.Sleep(100 * time.Millisecond) {
			before = r.lines()
		}
		return r.lines(), nil
	}
	f, err := os.Open(r.accessLog)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var lines int64
	buf := make([]byte, 1<<20)
	for {
		n, err := f.Read(buf)
		lines += int64(bytes.Count(buf[:n], []byte("\n")))
		if errors.Is(err, io.EOF) {
			return lines, nil
		}
		if err != nil {
			return lines, err
		}
	}
}

// values are what templates see.
type values struct {
	Config
	Port, Admin int
	AccessLog   string
}

func (v *values) write(name string) (string, error) { return render(v.Dir, name, v) }

// render makes a file in dir of the template with its name.
func render(dir, name string, data any) (string, error) {
	t, err := template.ParseFS(templates, "templates/"+name)
	if err != nil {
		return "", err
	}
	var out bytes.Buffer
	if err := t.Execute(&out, data); err != nil {
		return "", err
	}
	path := filepath.Join(dir, name)
	return path, os.WriteFile(path, out.Bytes(), 0o644)
}

// verify asks for every route, and for a host that must be refused: a subject that
// forwards everything does less work than the others.
func verify(ctx context.Context, at netip.AddrPort, site Site) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1}}
	defer client.CloseIdleConnections()
	ask := func(host, path string, want int) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+at.String()+path, nil)
		if err != nil {
			return err
		}
		req.Host = host
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		if err == nil && resp.StatusCode != want {
			err = fmt.Errorf("%s%s: status %d, want %d: %.200s", host, path, resp.StatusCode, want, body)
		}
		return err
	}
	for _, s := range site.Services {
		for i := range s.Routes {
			if err := ask(s.Host, s.path(i), http.StatusOK); err != nil {
				return err
			}
		}
	}
	return ask("unknown.shop", "/", http.StatusNotFound)
}
