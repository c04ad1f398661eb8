// Package zookeeper connects a ZooKeeper with the mesh: what Dubbo (interface
// level) and Spring Cloud applications register there becomes services.
//
// A Source follows one ZooKeeper, or one ensemble; for several, make several. Its
// sub-packages: wire has the formats, watch the way from registry to mesh.
//
// A Source may be made and asked for its name from any goroutine; Run is called
// once at a time.
//
// What the layouts hold, what is left alone, and what the client library makes
// necessary: README.md and RATIONALE.md.
package zookeeper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/bridges"
	"github.com/isthmus-mesh/isthmus/bridges/zookeeper/watch"
)

// Kind is the kind of every Source of this package.
const Kind = "zookeeper"

// Auth is one credential presented to ZooKeeper.
type Auth = watch.Auth

// Config says which ZooKeeper to follow.
type Config struct {
	Name string // unique in the mesh, "zk-main"; required
	// Servers are "host:port", port 2181 when missing, IPv6 in brackets;
	// required. One entry may hold several separated by commas, and the last
	// may end in a chroot: "a:2181,b:2181/prod".
	Servers []string
	// DubboRoots are the groups of Dubbo's registry, "/dubbo" or "dubbo"; nil
	// means that one, an empty list means that none is followed.
	DubboRoots []string
	// SpringRoots are the discovery roots of Spring Cloud ZooKeeper; nil means
	// "/services", an empty list none.
	SpringRoots []string
	// Namespace of the services; "" means "default".
	Namespace string
	// SessionTimeout is asked for at the server, and the longest time until a
	// silent connection is given up; 0 means 10 s, the least is 1 s.
	SessionTimeout time.Duration
	Auth           []Auth
	// ServicePorts gives the port by which callers know a host, by the
	// protocol's name in the registry ("dubbo", "tri", "http", "tls", "rmi"),
	// over the default of the protocol. An unknown protocol that is named here
	// is carried as TCP; one that is not is skipped.
	ServicePorts map[string]uint16
	Log          *slog.Logger // nil discards
}

// Source follows one ZooKeeper.
type Source struct {
	name   string
	cfg    watch.Config
	memory watch.Memory // used by Run only
}

var _ bridges.Source = (*Source)(nil)

const (
	defaultPort    = "2181"
	defaultTimeout = 10 * time.Second
	minTimeout     = time.Second
)

// New checks cfg and reports every mistake. It connects to nothing.
func New(cfg Config) (*Source, error) {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	w := watch.Config{Namespace: cfg.Namespace, SessionTimeout: cfg.SessionTimeout, Auth: slices.Clone(cfg.Auth), Log: cfg.Log}
	if cfg.Name == "" {
		fail("name is empty")
	}
	var err error
	if w.Servers, w.Chroot, err = parseServers(cfg.Servers); err != nil {
		errs = append(errs, err)
	}
	if w.Roots, err = parseRoots(cfg, w.Chroot); err != nil {
		errs = append(errs, err)
	}
	if w.Namespace == "" {
		w.Namespace = "default"
	}
	if w.SessionTimeout == 0 {
		w.SessionTimeout = defaultTimeout
	}
	if w.SessionTimeout < minTimeout {
		fail("sessionTimeout: %v, want at least %v", w.SessionTimeout, minTimeout)
	}
	for i, a := range w.Auth {
		if a.Scheme == "" || a.Credential == "" {
			fail("auth[%d]: want a scheme and a credential", i)
		}
	}
	w.ServicePorts = make(map[string]uint16, len(cfg.ServicePorts))
	for protocol, port := range cfg.ServicePorts {
		if port == 0 || protocol == "" {
			fail("servicePorts: %q: %d, want a protocol and 1 to 65535", protocol, port)
		}
		w.ServicePorts[strings.ToLower(protocol)] = port
	}
	if w.Log == nil {
		w.Log = slog.New(slog.DiscardHandler)
	}
	w.Log = w.Log.With("source", cfg.Name)
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("zookeeper source %q: %w", cfg.Name, err)
	}
	return &Source{name: cfg.Name, cfg: w}, nil
}

// Name implements bridges.Source.
func (s *Source) Name() string { return s.name }

// Kind implements bridges.Source.
func (s *Source) Kind() string { return Kind }

// Run implements bridges.Source. It ends when the session does.
func (s *Source) Run(ctx context.Context, sink bridges.Sink) error {
	return watch.Run(ctx, s.cfg, &s.memory, sink)
}

// parseServers reads a connection string given in one or more pieces.
func parseServers(list []string) (servers []string, chroot string, err error) {
	all, path, found := strings.Cut(strings.Join(list, ","), "/")
	var errs []error
	if found {
		chroot, err = cleanPath("/" + path)
		if err != nil {
			errs = append(errs, fmt.Errorf("servers: chroot %q: %w; it stands once, after the last server", "/"+path, err))
		}
		if chroot == "/" {
			chroot = ""
		}
	}
	for entry := range strings.SplitSeq(all, ",") {
		entry = strings.TrimSpace(entry)
		if entry == "" {
			continue
		}
		server, err := parseServer(entry)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if slices.Contains(servers, server) {
			errs = append(errs, fmt.Errorf("servers: %s stands twice", server))
		}
		servers = append(servers, server)
	}
	if len(servers) == 0 && len(errs) == 0 {
		errs = append(errs, errors.New("servers: none given, want host:port"))
	}
	return servers, chroot, errors.Join(errs...)
}

func parseServer(entry string) (string, error) {
	host, port, err := net.SplitHostPort(entry)
	if err != nil {
		host, port = strings.TrimSuffix(strings.TrimPrefix(entry, "["), "]"), defaultPort
		if strings.Contains(host, ":") && !strings.HasPrefix(entry, "[") {
			return "", fmt.Errorf("servers: %q: want host:port, IPv6 in brackets", entry)
		}
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || host == "" || strings.ContainsAny(host, " \t[]@") {
		return "", fmt.Errorf("servers: %q: want host:port with a port of 1 to 65535", entry)
	}
	return net.JoinHostPort(host, port), nil
}

// parseRoots gives every root its layout and chroot.
func parseRoots(cfg Config, chroot string) ([]watch.Root, error) {
	dubbo, spring := cfg.DubboRoots, cfg.SpringRoots
	if dubbo == nil {
		dubbo = []string{"/dubbo"}
	}
	if spring == nil {
		spring = []string{"/services"}
	}
	var roots []watch.Root
	var errs []error
	add := func(key string, layout watch.Layout, paths []string) {
		for i, path := range paths {
			if !strings.HasPrefix(path, "/") {
				path = "/" + path
			}
			clean, err := cleanPath(path)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s[%d]: %q: %w", key, i, path, err))
				continue
			}
			full := chroot + clean
			if clean == "/" && chroot != "" {
				full = chroot
			}
			for _, other := range roots {
				if within(full, other.Path) || within(other.Path, full) {
					errs = append(errs, fmt.Errorf("%s[%d]: %s and %s overlap", key, i, full, other.Path))
				}
			}
			roots = append(roots, watch.Root{Layout: layout, Path: full})
		}
	}
	add("dubboRoots", watch.Dubbo, dubbo)
	add("springRoots", watch.Spring, spring)
	if len(roots) == 0 && len(errs) == 0 {
		errs = append(errs, errors.New("dubboRoots and springRoots are both empty: nothing to follow"))
	}
	return roots, errors.Join(errs...)
}

// within reports whether path is root or below it.
func within(path, root string) bool {
	return path == root || strings.HasPrefix(path, strings.TrimSuffix(root, "/")+"/")
}

// cleanPath checks a path of ZooKeeper.
func cleanPath(path string) (string, error) {
	clean := strings.TrimRight(path, "/")
	if clean == "" {
		return "/", nil
	}
	for part := range strings.SplitSeq(clean[1:], "/") {
		if part == "" || part == "." || part == ".." {
			return "", fmt.Errorf("part %q, want a name", part)
		}
	}
	if i := strings.IndexFunc(clean, func(r rune) bool { return r < ' ' || r == 0x7f || r == ',' || r == 0xfffd }); i >= 0 {
		return "", fmt.Errorf("character %q at byte %d", clean[i], i)
	}
	return clean, nil
}
