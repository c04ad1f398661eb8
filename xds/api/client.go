// Package api is the Mesh API: its messages, its stubs and a thin client.
//
// xds/manage implements the services; meshctl, the console and sidecars call them
// through a Client, which may be used from any goroutine. Everything but this
// file and errors.go is generated from the .proto files beside it.
//
// One port serves gRPC, gRPC-Web and JSON; why: xds/manage/RATIONALE.md.
package api

import (
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
)

// DefaultServer is where a MeshServer serves the Mesh API unless told otherwise.
const DefaultServer = "127.0.0.1:15080"

// maxAnswer bounds one answer in bytes; the largest are configurations of a proxy.
const maxAnswer = 64 << 20

// Client calls the Mesh API of one server. Make it with NewClient.
type Client struct {
	Rules     RuleServiceClient
	Catalog   CatalogServiceClient
	Proxies   ProxyServiceClient
	Workloads WorkloadServiceClient
	Status    StatusServiceClient

	server    string
	transport *http.Transport
}

// ClientConfig is what a Client is made from.
type ClientConfig struct {
	Server  string        // "host:port" or "http://host:port"; empty means DefaultServer
	Timeout time.Duration // of one call, connecting included; 0 means 30 s
	Agent   string        // User-Agent, "meshctl/1.0"; empty means the library's
}

// NewClient checks cfg. It does not connect.
func NewClient(cfg ClientConfig) (*Client, error) {
	server, err := parseServer(cfg.Server)
	if err != nil {
		return nil, err
	}
	if cfg.Timeout < 0 {
		return nil, fmt.Errorf("timeout %v, want more than 0", cfg.Timeout)
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 30 * time.Second
	}
	transport := &http.Transport{
		Proxy:               nil, // the mesh's own control must not depend on the user's http_proxy
		DialContext:         (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		MaxIdleConnsPerHost: 4,
		IdleConnTimeout:     time.Minute,
	}
	hc := &http.Client{Transport: agentTransport{transport, cfg.Agent}, Timeout: cfg.Timeout}
	cc := connect.NewClient(connecthttp.NewTransport(hc, server, connecthttp.WithReadMaxBytes(maxAnswer)))
	return &Client{
		Rules:     NewRuleServiceClient(cc),
		Catalog:   NewCatalogServiceClient(cc),
		Proxies:   NewProxyServiceClient(cc),
		Workloads: NewWorkloadServiceClient(cc),
		Status:    NewStatusServiceClient(cc),
		server:    server,
		transport: transport,
	}, nil
}

// Server is the base URL that the client calls.
func (c *Client) Server() string { return c.server }

// Close closes idle connections. Calls under way go on.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// parseServer makes a base URL of what users write.
func parseServer(server string) (string, error) {
	if server == "" {
		server = DefaultServer
	}
	if !strings.Contains(server, "://") {
		server = "http://" + server
	}
	u, err := url.Parse(server)
	if err != nil || u.Host == "" || u.Scheme != "http" || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.User != nil {
		return "", fmt.Errorf("server %q, want host:port or http://host:port", server)
	}
	if u.Port() == "" {
		return "", fmt.Errorf("server %q has no port, want host:port such as %s", u.Host, DefaultServer)
	}
	return "http://" + u.Host, nil
}

// agentTransport names the program in every request.
type agentTransport struct {
	next  http.RoundTripper
	agent string
}

func (t agentTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	if t.agent != "" {
		r = r.Clone(r.Context())
		r.Header.Set("User-Agent", t.agent)
	}
	return t.next.RoundTrip(r)
}
