package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/hashicorp/consul/api"

	"github.com/isthmus-mesh/isthmus/testenv/load/subject"
	"github.com/isthmus-mesh/isthmus/testenv/peers/cache"
)

func startConsul(ctx context.Context, dir string) (*Registry, error) {
	path, err := cache.Consul().Path("consul")
	if err != nil {
		return nil, err
	}
	var ports [4]int
	for i := range ports {
		ports[i], err = subject.Port()
		if err != nil {
			return nil, err
		}
	}
	text, err := json.Marshal(map[string]any{
		"node_name": "server", "bind_addr": "127.0.0.1", "client_addr": "127.0.0.1",
		"ports": map[string]int{
			"http": ports[0], "server": ports[1], "serf_lan": ports[2], "serf_wan": ports[3], "https": -1, "dns": -1, "grpc": -1, "grpc_tls": -1,
		},
		"disable_update_check": true, "log_level": "warn",
		// Here all applications and MeshServer share one address, and with it the
		// 200 connections that an address may have by default.
		"limits": map[string]int{"http_max_conns_per_client": 2000},
	})
	if err != nil {
		return nil, err
	}
	config := filepath.Join(dir, "consul.json")
	if err := os.WriteFile(config, text, 0o600); err != nil {
		return nil, err
	}
	// The mode -dev keeps everything in memory: the disk is not what is measured.
	p, err := subject.Start(subject.Command{Name: Consul, Path: path, Args: []string{"agent", "-dev", "-config-file", config}, Dir: dir, Core: subject.AnyCore})
	if err != nil {
		return nil, err
	}
	at := fmt.Sprintf("127.0.0.1:%d", ports[0])
	client, err := api.NewClient(&api.Config{Address: at})
	if err != nil {
		return nil, errors.Join(err, p.Stop())
	}
	err = p.Await(ctx, func(ctx context.Context) error {
		found, _, err := client.Health().Service(Consul, "", true, new(api.QueryOptions).WithContext(ctx))
		if err == nil && len(found) == 0 {
			err = errors.New("the server has not found itself")
		}
		return err
	})
	if err != nil {
		return nil, errors.Join(err, p.Stop())
	}
	return &Registry{
		process:  p,
		Settings: fmt.Sprintf("- {name: %s, consul: {address: %q, protocol: http}}", Consul, "http://"+at),
		// Through the agent, as applications do: it tells the catalog.
		Register: func(ctx context.Context, i Instance) error {
			return client.Agent().ServiceRegisterOpts(&api.AgentServiceRegistration{
				ID: fmt.Sprintf("%s-%d", i.Service, i.Address.Port()), Name: i.Service, Address: i.Address.Addr().String(), Port: int(i.Address.Port()),
			}, api.ServiceRegisterOpts{}.WithContext(ctx))
		},
	}, nil
}
