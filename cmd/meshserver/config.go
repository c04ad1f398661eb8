package main

import (
	"errors"
	"flag"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/bridges/builtin"
	"github.com/isthmus-mesh/isthmus/bridges/consul"
	"github.com/isthmus-mesh/isthmus/cmd/internal/process"
	"github.com/isthmus-mesh/isthmus/xds"
	"github.com/isthmus-mesh/isthmus/xds/model"
	"github.com/isthmus-mesh/isthmus/xds/rules/file"
)

// roles that this binary can play today.
var roleNames = []string{"xds", "api", "bridges"}

// Config is meshserver.yaml. Every key has a default.
type Config struct {
	DataDir string   `yaml:"dataDir"`
	Roles   []string `yaml:"roles"`
	XDS     Listen   `yaml:"xds"`
	API     Listen   `yaml:"api"`
	Ops     Listen   `yaml:"ops"`
	// Rules is a folder of YAML rules beside the store; empty means none.
	Rules string `yaml:"rules"`
	// Priority lists registries, the most trusted first.
	Priority   []string   `yaml:"priority"`
	Registries []Registry `yaml:"registries"`
	// AccessLog is the file that Envoys log requests to, "/dev/stdout"; empty
	// leaves their logs off. A sidecar's own bootstrap decides for itself.
	AccessLog string `yaml:"accessLog"`
	// StartWait serves without a registry that was never read before and does
	// not answer for so long; 0 means never: proxies would take ignorance for
	// an empty registry.
	StartWait time.Duration `yaml:"startWait"`
}

// Listen is where one server listens.
type Listen struct {
	Listen string `yaml:"listen"`
}

// Registry is one registry to read; exactly one kind is set.
type Registry struct {
	Name      string     `yaml:"name"`
	ZooKeeper *ZooKeeper `yaml:"zookeeper"`
	Consul    *Consul    `yaml:"consul"`
}

// ZooKeeper says how a ZooKeeper is read; see zookeeper.Config.
type ZooKeeper struct {
	Servers        []string          `yaml:"servers"`
	DubboRoots     []string          `yaml:"dubboRoots"`
	SpringRoots    []string          `yaml:"springRoots"`
	Namespace      string            `yaml:"namespace"`
	SessionTimeout time.Duration     `yaml:"sessionTimeout"`
	ServicePorts   map[string]uint16 `yaml:"servicePorts"`
	// DigestFile holds "user:password" for the digest scheme.
	DigestFile string `yaml:"digestFile"`
}

// Consul says how a Consul is read; see consul.Config.
type Consul struct {
	Address      string             `yaml:"address"`
	Addresses    []string           `yaml:"addresses"`
	TokenFile    string             `yaml:"tokenFile"`
	CAFile       string             `yaml:"caFile"`
	CertFile     string             `yaml:"certFile"`
	KeyFile      string             `yaml:"keyFile"`
	ServerName   string             `yaml:"serverName"`
	Datacenters  []string           `yaml:"datacenters"`
	Consistency  consul.Consistency `yaml:"consistency"`
	Tags         []string           `yaml:"tags"`
	Meta         map[string]string  `yaml:"meta"`
	HostTemplate string             `yaml:"hostTemplate"`
	Namespace    string             `yaml:"namespace"`
	Protocol     *model.Protocol    `yaml:"protocol"`
	Wait         time.Duration      `yaml:"wait"`
}

func defaults() Config {
	return Config{
		DataDir: "isthmus-data",
		Roles:   slices.Clone(roleNames),
		XDS:     Listen{"127.0.0.1:15010"},
		API:     Listen{"127.0.0.1:15080"},
		Ops:     Listen{"127.0.0.1:15014"},
	}
}

// commaList is a flag of words separated by commas.
type commaList struct{ into *[]string }

func (l commaList) String() string {
	if l.into == nil {
		return ""
	}
	return strings.Join(*l.into, ",")
}

func (l commaList) Set(text string) error {
	*l.into = strings.Split(text, ",")
	return nil
}

func daemon() process.Daemon[Config] {
	return process.Daemon[Config]{
		Name:     "meshserver",
		About:    "the control plane: reads registries and rules, serves xDS and the Mesh API",
		Defaults: defaults,
		Flags: func(fs *flag.FlagSet, c *Config) {
			fs.StringVar(&c.DataDir, "data-dir", c.DataDir, "`folder` for the rule store, leases and what registries last said")
			fs.Var(commaList{&c.Roles}, "roles", "what this process does: "+strings.Join(roleNames, ","))
			fs.StringVar(&c.XDS.Listen, "xds-listen", c.XDS.Listen, "`address` for xDS, loopback")
			fs.StringVar(&c.API.Listen, "api-listen", c.API.Listen, "`address` for the Mesh API, loopback")
			fs.StringVar(&c.Ops.Listen, "ops-listen", c.Ops.Listen, "`address` for metrics, readiness and profiles, loopback")
			fs.StringVar(&c.Rules, "rules", c.Rules, "`folder` of rules in YAML, beside the store's")
		},
		Check: check,
		Run:   run,
	}
}

// sourceName is what a registry may be called: a DNS label, since it becomes a
// file name, a metric label and a part of "<host>@<registry>", which knows no case.
var sourceName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// check reports every mistake that the types of Config cannot.
func check(c Config) error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for i, role := range c.Roles {
		if !slices.Contains(roleNames, role) {
			bad("roles[%d]: %q, want one of %s", i, role, strings.Join(roleNames, ", "))
		}
	}
	if len(errs) == 0 && len(slices.Compact(slices.Sorted(slices.Values(c.Roles)))) != len(roleNames) {
		bad("roles: %s: one process plays all of %s so far", strings.Join(c.Roles, ","), strings.Join(roleNames, ","))
	}
	if c.StartWait < 0 {
		bad("startWait: %v, want 0 or more", c.StartWait)
	}
	if c.DataDir == "" {
		bad("dataDir: is empty, want a folder")
	}
	seen := map[string]bool{builtin.Kind: true, file.Kind: true, xds.StoredRules: true} // sources of our own
	for i, r := range c.Registries {
		at := fmt.Sprintf("registries[%d]", i)
		if !sourceName.MatchString(r.Name) {
			bad("%s.name: %q, want lower-case letters, digits and inner dashes, at most 63", at, r.Name)
		}
		if seen[r.Name] {
			bad("%s.name: %q is taken", at, r.Name)
		}
		seen[r.Name] = true
		if (r.ZooKeeper == nil) == (r.Consul == nil) {
			bad("%s: want exactly one of zookeeper and consul", at)
		}
		if r.Consul != nil && (r.Consul.CertFile == "") != (r.Consul.KeyFile == "") {
			bad("%s.consul: certFile and keyFile go together", at)
		}
	}
	for i, name := range c.Priority {
		if !seen[name] {
			bad("priority[%d]: %q is no registry of this file", i, name)
		}
	}
	return errors.Join(errs...)
}
