package client

import (
	"fmt"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/isthmus-mesh/isthmus/xds/resource"
)

// references returns the names of other resources that one needs, and their type:
// clusters need load assignments, listeners route configurations.
func references(t resource.Type, body []byte) (of resource.Type, names []string, err error) {
	switch t {
	case resource.Cluster:
		var c clusterv3.Cluster
		if err := proto.Unmarshal(body, &c); err != nil {
			return 0, nil, fmt.Errorf("cluster: %w", err)
		}
		if c.GetType() != clusterv3.Cluster_EDS {
			return resource.Endpoints, nil, nil
		}
		if service := c.GetEdsClusterConfig().GetServiceName(); service != "" {
			return resource.Endpoints, []string{service}, nil
		}
		return resource.Endpoints, []string{c.GetName()}, nil
	case resource.Listener:
		var l listenerv3.Listener
		if err := proto.Unmarshal(body, &l); err != nil {
			return 0, nil, fmt.Errorf("listener: %w", err)
		}
		names, err := routeNames(&l)
		return resource.Route, names, err
	}
	return t, nil, nil
}

func routeNames(l *listenerv3.Listener) (names []string, err error) {
	hcms := []*anypb.Any{l.GetApiListener().GetApiListener()}
	for _, chain := range append(l.GetFilterChains(), l.GetDefaultFilterChain()) {
		for _, f := range chain.GetFilters() {
			hcms = append(hcms, f.GetTypedConfig())
		}
	}
	for _, config := range hcms {
		var hcm hcmv3.HttpConnectionManager
		if !config.MessageIs(&hcm) {
			continue
		}
		if err := config.UnmarshalTo(&hcm); err != nil {
			return nil, fmt.Errorf("http connection manager: %w", err)
		}
		if rds := hcm.GetRds(); rds != nil {
			names = append(names, rds.GetRouteConfigName())
		}
	}
	return names, nil
}
