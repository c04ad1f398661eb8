// Package consul reads a Consul cluster into the mesh: every service of the
// chosen data centres with its instances, their health, weights, tags and meta.
//
// New makes a Source for bridges.New; wire speaks the HTTP API, watch follows it.
// A Source never changes after New; Run may be called from any goroutine, one at
// a time.
//
// What is read how, and which labels come out: RATIONALE.md.
package consul

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"text/template"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/isthmus-mesh/isthmus/bridges"
	"github.com/isthmus-mesh/isthmus/bridges/consul/watch"
	"github.com/isthmus-mesh/isthmus/bridges/consul/wire"
	"github.com/isthmus-mesh/isthmus/xds/model"
)

// Kind is the sort of registry in reports.
const Kind = "consul"

// Secret is a token that never prints.
type Secret = wire.Secret

// Consistency chooses which server may answer; the zero value is Consul's default.
type Consistency = wire.Consistency

// Modes of Consistency.
const (
	Leader     = wire.Leader
	Stale      = wire.Stale
	Consistent = wire.Consistent
)

// Config is what New needs. Only Name is required.
type Config struct {
	// Name is the source's in the mesh, "consul-main".
	Name string
	// Addresses are agents of one cluster, "http://127.0.0.1:8500" or
	// "https://consul:8501"; without a scheme it is https when TLS is set. The
	// next one is asked when one fails. Empty means http://127.0.0.1:8500.
	Addresses []string
	// Token is the ACL token; it needs service:read and node:read. Empty is
	// Consul's anonymous token. It is never logged.
	Token Secret
	// TLS is for https addresses: roots, client certificate, server name. Nil
	// means the system's roots.
	TLS *tls.Config
	// Datacenters to read; empty means the agent's own. Each is a label "dc"
	// and, where Consul says nothing else, the region of its endpoints.
	Datacenters []string
	// ConsulNamespace and ConsulPartition are for Consul Enterprise.
	ConsulNamespace, ConsulPartition string
	Consistency                      Consistency
	// Tags and Meta choose instances: those that carry all of them.
	Tags []string
	Meta map[string]string
	// HostTemplate renames hosts, "{{.Service}}.{{.Namespace}}.mesh"; fields are
	// Service, Namespace (the mesh's) and Datacenter. Empty keeps the name.
	HostTemplate string
	// Namespace is the mesh namespace of the services; empty means "default".
	Namespace string
	// Protocol is what travels where an instance's meta has no "protocol"; nil
	// means HTTP.
	Protocol *model.Protocol
	// ServicePorts overrides model's default service port of a protocol. TCP
	// has no default: it takes the instance's own port.
	ServicePorts map[model.Protocol]uint16
	// Wait is how long a blocking query may wait, 1 s to 10 min; 0 means 5 min.
	Wait time.Duration
	// Queries is how many queries run at once; 0 means 150, and 1000 over
	// HTTP/2, whose queries share connections. An agent takes 200 connections
	// of one client address; services beyond Queries take turns.
	Queries int
	// Heartbeat is how often a silent agent is asked for a sign of life, and
	// how long that may take; 0 means 10 s. At least 100 ms.
	Heartbeat time.Duration
	// Log nil discards; Registerer nil registers nothing.
	Log        *slog.Logger
	Registerer prometheus.Registerer
}

// Defaults of Config.
const (
	defaultAddress      = "http://127.0.0.1:8500"
	defaultWait         = 5 * time.Minute
	defaultQueries      = 150 // of the 200 connections that http_max_conns_per_client allows
	defaultQueriesHTTP2 = 1000
	defaultHeartbeat    = 10 * time.Second
)

// Source implements bridges.Source for one Consul cluster.
type Source struct {
	name     string
	clients  []*wire.Client
	follower *watch.Follower
}

var _ bridges.Source = (*Source)(nil)

// New checks cfg, reports all mistakes at once, and makes a source. It connects
// to nothing.
func New(cfg Config) (*Source, error) {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("consul "+cmp.Or(cfg.Name, "?")+": "+format, args...))
	}

	if cfg.Name == "" {
		bad("name is empty")
	}
	cfg.Namespace = cmp.Or(cfg.Namespace, "default")
	cfg.Wait = cmp.Or(cfg.Wait, defaultWait)
	cfg.Heartbeat = cmp.Or(cfg.Heartbeat, defaultHeartbeat)
	queriesHTTP2 := cmp.Or(cfg.Queries, defaultQueriesHTTP2)
	cfg.Queries = cmp.Or(cfg.Queries, defaultQueries)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Wait < time.Second || cfg.Wait > 10*time.Minute {
		bad("wait: %v, want 1s to 10m", cfg.Wait)
	}
	if cfg.Heartbeat < 100*time.Millisecond {
		bad("heartbeat: %v, want at least 100ms", cfg.Heartbeat)
	}
	if cfg.Consistency > wire.Consistent {
		bad("consistency: %d is none", cfg.Consistency)
	}
	centers := datacenters(cfg.Datacenters, bad)
	if least := watch.MinQueries(len(centers)); cfg.Queries < least {
		bad("queries: %d, want at least %d for %d data centres", cfg.Queries, least, len(centers))
	}
	rules := rulesOf(&cfg, bad)

	s := &Source{name: cfg.Name}
	followed := watch.Config{
		Name: cfg.Name, Kind: Kind, Datacenters: centers, Rules: rules,
		Wait: cfg.Wait, Queries: cfg.Queries, QueriesHTTP2: queriesHTTP2,
		Heartbeat: cfg.Heartbeat, HeartbeatTime: min(cfg.Heartbeat, 5*time.Second), Log: cfg.Log,
	}
	for _, address := range addresses(&cfg) {
		client, err := wire.NewClient(wire.ClientConfig{
			URL: address, Token: cfg.Token, TLS: cfg.TLS, Namespace: cfg.ConsulNamespace, Partition: cfg.ConsulPartition,
			Consistency: cfg.Consistency, Conns: cfg.Queries,
			// Called only while Run asks, when follower is long set.
			HTTP2: func() { s.follower.HTTP2() },
		})
		if err != nil {
			bad("%w", err)
			continue
		}
		s.clients = append(s.clients, client)
		followed.Servers = append(followed.Servers, client)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	metrics, err := watch.NewMetrics(cfg.Name, cfg.Registerer)
	if err != nil {
		return nil, err
	}
	followed.Metrics = metrics
	s.follower = watch.New(followed)
	return s, nil
}

// Name implements bridges.Source.
func (s *Source) Name() string { return s.name }

// Kind implements bridges.Source.
func (s *Source) Kind() string { return Kind }

// Run implements bridges.Source. Once everything was read it retries by itself;
// before that it returns why the registry cannot be reached.
func (s *Source) Run(ctx context.Context, sink bridges.Sink) error {
	err := s.follower.Run(ctx, sink)
	for _, c := range s.clients {
		c.CloseIdle()
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func addresses(cfg *Config) []string {
	if len(cfg.Addresses) == 0 {
		return []string{defaultAddress}
	}
	out := slices.Clone(cfg.Addresses)
	for i, a := range out {
		if !strings.Contains(a, "://") {
			scheme := "http://"
			if cfg.TLS != nil {
				scheme = "https://"
			}
			out[i] = scheme + a
		}
	}
	return out
}

func datacenters(names []string, bad func(string, ...any)) []string {
	if len(names) == 0 {
		return []string{""}
	}
	seen := map[string]bool{}
	for i, name := range names {
		switch {
		case name == "":
			bad("datacenters[%d] is empty", i)
		case seen[name]:
			bad("datacenters[%d]: %q is there twice", i, name)
		}
		seen[name] = true
	}
	return slices.Clone(names)
}

func rulesOf(cfg *Config, bad func(string, ...any)) watch.Rules {
	rules := watch.Rules{
		Namespace: cfg.Namespace, Protocol: model.HTTP,
		Tags: slices.Clone(cfg.Tags), Meta: maps.Clone(cfg.Meta), ServicePorts: maps.Clone(cfg.ServicePorts),
	}
	if cfg.Protocol != nil {
		rules.Protocol = *cfg.Protocol
	}
	for protocol, number := range rules.ServicePorts {
		if number == 0 {
			bad("servicePorts: %v is 0, want 1 to 65535", protocol)
		}
	}
	if cfg.HostTemplate == "" {
		return rules
	}
	parsed, err := template.New("hostTemplate").Option("missingkey=error").Parse(cfg.HostTemplate)
	if err != nil {
		bad("%w", err)
		return rules
	}
	type fields struct{ Service, Namespace, Datacenter string }
	rules.Host = func(service, datacenter string) (string, error) {
		var b strings.Builder
		if err := parsed.Execute(&b, fields{service, cfg.Namespace, datacenter}); err != nil {
			return "", err
		}
		return b.String(), nil
	}
	if _, err := rules.Host("service", "dc1"); err != nil {
		bad("%w", err)
	}
	return rules
}
