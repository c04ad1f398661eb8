package peers

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/testenv/peers/cache"
	"github.com/isthmus-mesh/isthmus/testenv/peers/certificate"
)

// consulToken is the management token of every test server with access control.
const consulToken = "5ca1ab1e-0000-4000-8000-000000000001"

// ConsulConfig describes a server. The zero value is one open, plain data centre.
type ConsulConfig struct {
	Datacenter string  // default "dc1"
	ACL        bool    // deny what the token does not allow; see Consul.Token
	TLS        bool    // serve HTTPS, not HTTP; see Consul.CAFile
	Join       *Consul // a server of another data centre to federate with
}

// Consul is a real server, the only one of its data centre. Its catalog, its
// services and its settings survive Stop, Kill and Start.
type Consul struct {
	*Process
	Addr       string // host:port of the HTTP or HTTPS port
	Scheme     string // "http" or "https"
	Datacenter string
	Token      string // may do anything; empty without access control
	CAFile     string // PEM file with the root of the server's certificate; empty without TLS

	serfWAN string // host:port that servers of other data centres join
}

// StartConsul starts a server that has elected itself.
func StartConsul(t testing.TB, cfg ConsulConfig) *Consul {
	t.Helper()
	path, err := cache.Consul().Path("consul")
	if err != nil {
		t.Fatalf("start consul: %v", err)
	}
	dir := t.TempDir()
	c := &Consul{
		Addr:       freeAddr(t),
		Scheme:     "http",
		Datacenter: orDefault(cfg.Datacenter, "dc1"),
		serfWAN:    freeAddr(t),
	}
	settings := c.settings(t, cfg, dir)
	client := http.DefaultClient
	if cfg.TLS {
		c.Scheme, c.CAFile = "https", filepath.Join(dir, "ca.pem")
		root := certificate.Write(t, dir)
		client = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: root}}}
	}
	text, err := json.Marshal(settings)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "consul.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	c.Process = &Process{
		t: t, name: "consul " + c.Datacenter, path: path, within: 30 * time.Second,
		args: []string{"agent", "-config-file", file},
		ready: func(ctx context.Context, _ *output) error {
			return c.serves(ctx, client, cfg.Join)
		},
	}
	c.launch()
	return c
}

// settings returns the agent's configuration. The mode -dev would be shorter,
// but keeps nothing on disk.
func (c *Consul) settings(t testing.TB, cfg ConsulConfig, dir string) map[string]any {
	t.Helper()
	httpPort, httpsPort := portNumber(t, c.Addr), -1
	if cfg.TLS {
		httpPort, httpsPort = httpsPort, httpPort
	}
	settings := map[string]any{
		"datacenter":  c.Datacenter,
		"node_name":   "server-" + c.Datacenter,
		"data_dir":    filepath.Join(dir, "data"),
		"bind_addr":   "127.0.0.1",
		"client_addr": "127.0.0.1",
		"ports": map[string]any{
			"http": httpPort, "https": httpsPort, "dns": -1, "grpc": -1, "grpc_tls": -1,
			"server":   FreePort(t),
			"serf_lan": FreePort(t),
			"serf_wan": portNumber(t, c.serfWAN),
		},
		"server":               true,
		"bootstrap":            true,
		"performance":          map[string]any{"raft_multiplier": 1}, // quickest election
		"disable_update_check": true,
		"log_level":            "warn",
	}
	if cfg.ACL {
		c.Token = consulToken
		settings["primary_datacenter"] = c.Datacenter
		settings["acl"] = map[string]any{
			"enabled":        true,
			"default_policy": "deny",
			"tokens":         map[string]any{"initial_management": c.Token, "agent": c.Token},
		}
	}
	if cfg.TLS {
		settings["tls"] = map[string]any{"https": map[string]any{
			"ca_file":   filepath.Join(dir, "ca.pem"),
			"cert_file": filepath.Join(dir, "cert.pem"),
			"key_file":  filepath.Join(dir, "key.pem"),
		}}
	}
	if cfg.Join != nil {
		settings["retry_join_wan"] = []string{cfg.Join.serfWAN}
		settings["retry_interval_wan"] = "1s"
	}
	return settings
}

// serves asks for what a test may ask for: a catalog in which the server has
// found itself, here and in the data centre that it joined, from both sides.
func (c *Consul) serves(ctx context.Context, client *http.Client, other *Consul) error {
	if err := c.finds(ctx, client, c.Datacenter); err != nil || other == nil {
		return err
	}
	if err := c.finds(ctx, client, other.Datacenter); err != nil {
		return err
	}
	if other.Scheme == "https" { // its root is not this server's
		return nil
	}
	return other.finds(ctx, http.DefaultClient, c.Datacenter)
}

// finds asks this server for the healthy servers of a data centre.
func (c *Consul) finds(ctx context.Context, client *http.Client, datacenter string) error {
	url := c.Scheme + "://" + c.Addr + "/v1/health/service/consul?passing&dc=" + datacenter
	body, status, err := httpGet(ctx, client, url, c.Token)
	if err == nil && (status != http.StatusOK || !strings.HasPrefix(body, "[{")) {
		err = fmt.Errorf("catalog of %s answers %d %.100s", datacenter, status, body)
	}
	return err
}
