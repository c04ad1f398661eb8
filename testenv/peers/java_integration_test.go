//go:build integration

package peers_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/isthmus-mesh/isthmus/testenv/peers"
)

// want wants 200 from a URL, and an answer that begins so.
func want(t *testing.T, url, prefix string) {
	t.Helper()
	status, body, err := get(t.Context(), url)
	if err != nil || status != http.StatusOK || !strings.HasPrefix(body, prefix) {
		t.Errorf("GET %s: got %d %q, %v; want 200 and %q", url, status, body, err, prefix)
	}
}

func TestDubboConsumerFindsAndCallsProvider(t *testing.T) {
	zk := peers.StartZooKeeper(t)
	for _, release := range []peers.DubboRelease{peers.Dubbo3, peers.Dubbo2} {
		var pids []int
		t.Run(string(release), func(t *testing.T) {
			cfg := peers.DubboConfig{Release: release, ZooKeeper: zk.Addr, ID: "first", Group: "g", Version: string(release)}
			provider := peers.StartDubboProvider(t, cfg)
			consumer := peers.StartDubboConsumer(t, cfg)
			want(t, "http://"+consumer.Addr+"/?name=ann", "hello ann from first attach={")

			children, _, err := dialZooKeeper(t, zk.Addr).Children("/dubbo/" + peers.DubboInterface + "/providers")
			if err != nil || len(children) != 1 || !strings.Contains(children[0], strings.ReplaceAll(provider.Addr, ":", "%3A")) {
				t.Errorf("registered: %q, %v; want %s alone", children, err, provider.Addr)
			}
			provider.Stop()
			pids = []int{provider.Pid(), consumer.Pid()}
		})
		for _, pid := range pids {
			ended(t, pid)
		}
	}
}

func TestDubboConsumerCallsAnAddress(t *testing.T) {
	provider := peers.StartDubboProvider(t, peers.DubboConfig{})
	consumer := peers.StartDubboConsumer(t, peers.DubboConfig{URL: "dubbo://" + provider.Addr})
	want(t, "http://"+consumer.Addr+"/?name=bob", "hello bob from provider attach={")
	status, body, err := get(t.Context(), "http://"+consumer.Addr+"/?name=boom")
	if err != nil || status != http.StatusInternalServerError || !strings.Contains(body, "IllegalStateException") {
		t.Errorf("boom: got %d %q, %v; want 500 and the exception", status, body, err)
	}
}

func TestSpringRegistersInZooKeeper(t *testing.T) {
	zk := peers.StartZooKeeper(t)
	app := peers.StartSpring(t, peers.SpringConfig{ID: "one", ZooKeeper: zk.Addr})
	want(t, "http://"+app.Addr+"/sayHello?name=ann", "hello ann from one host="+app.Addr)
	want(t, "http://"+app.Addr+"/call?name=ann", "hello ann from one")
	children, _, err := dialZooKeeper(t, zk.Addr).Children("/services/greeting")
	if err != nil || len(children) != 1 {
		t.Errorf("registered: %q, %v; want one instance", children, err)
	}
}

func TestSpringRegistersInConsul(t *testing.T) {
	consul := peers.StartConsul(t, peers.ConsulConfig{})
	app := peers.StartSpring(t, peers.SpringConfig{Name: "orders", Target: "orders", Consul: consul.Addr})
	want(t, "http://"+app.Addr+"/sayHello?name=ann", "hello ann from orders")
	entries, _, err := consulClient(t, consul).Health().Service("orders", "", false, &api.QueryOptions{})
	if err != nil || len(entries) != 1 {
		t.Fatalf("registered: %d entries, %v; want 1", len(entries), err)
	}
	if got := fmt.Sprintf("%s:%d", entries[0].Service.Address, entries[0].Service.Port); got != app.Addr {
		t.Errorf("registered at %s, want %s", got, app.Addr)
	}
}
