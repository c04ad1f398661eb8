//go:build integration

package peers_test

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/isthmus-mesh/isthmus/testenv/peers"
)

func consulClient(t *testing.T, server *peers.Consul) *api.Client {
	t.Helper()
	client, err := api.NewClient(&api.Config{
		Address:    server.Addr,
		Scheme:     server.Scheme,
		Token:      server.Token,
		TLSConfig:  api.TLSConfig{CAFile: server.CAFile},
		HttpClient: consulHTTP(t, server),
	})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// consulHTTP returns a client that leaves no connection behind.
func consulHTTP(t *testing.T, server *peers.Consul) *http.Client {
	t.Helper()
	transport := &http.Transport{DisableKeepAlives: true}
	if server.CAFile != "" {
		text, err := os.ReadFile(server.CAFile)
		if err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(text)
		transport.TLSClientConfig = &tls.Config{RootCAs: roots}
	}
	return &http.Client{Transport: transport}
}

func TestConsulKeepsItsServicesOverAKill(t *testing.T) {
	tests := []struct {
		name string
		cfg  peers.ConsulConfig
	}{
		{name: "open and plain", cfg: peers.ConsulConfig{}},
		{name: "access control", cfg: peers.ConsulConfig{ACL: true}},
		{name: "access control over TLS", cfg: peers.ConsulConfig{ACL: true, TLS: true}},
	}
	for _, tt := range tests {
		var pid int
		t.Run(tt.name, func(t *testing.T) {
			server := peers.StartConsul(t, tt.cfg)
			client := consulClient(t, server)
			service := &api.AgentServiceRegistration{Name: "cart", Port: 8080, Address: "127.0.0.1"}
			if err := client.Agent().ServiceRegister(service); err != nil {
				t.Fatal(err)
			}
			server.Kill()
			server.Start()
			pid = server.Pid()
			entries, _, err := client.Health().Service("cart", "", true, nil)
			if err != nil || len(entries) != 1 {
				t.Errorf("after the kill: got %d entries, %v; want 1", len(entries), err)
			}
		})
		ended(t, pid)
	}
}

func TestConsulDeniesWhoHasNoToken(t *testing.T) {
	server := peers.StartConsul(t, peers.ConsulConfig{ACL: true})
	server.Token = ""
	err := consulClient(t, server).Agent().ServiceRegister(&api.AgentServiceRegistration{Name: "cart"})
	if err == nil || !strings.Contains(err.Error(), "403") {
		t.Errorf("got %v, want 403", err)
	}
}

func TestConsulFederatesDatacenters(t *testing.T) {
	first := peers.StartConsul(t, peers.ConsulConfig{})
	second := peers.StartConsul(t, peers.ConsulConfig{Datacenter: "dc2", Join: first})
	service := &api.AgentServiceRegistration{Name: "cart", Port: 8080, Address: "127.0.0.1"}
	if err := consulClient(t, second).Agent().ServiceRegister(service); err != nil {
		t.Fatal(err)
	}
	query := &api.QueryOptions{Datacenter: "dc2"}
	entries, _, err := consulClient(t, first).Health().Service("cart", "", true, query)
	if err != nil || len(entries) != 1 {
		t.Errorf("dc2 asked through dc1: got %d entries, %v; want 1", len(entries), err)
	}
}
