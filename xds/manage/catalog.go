package manage

import (
	"context"
	"fmt"
	"slices"

	"github.com/isthmus-mesh/isthmus/xds/api"
	"github.com/isthmus-mesh/isthmus/xds/model"
	"github.com/isthmus-mesh/isthmus/xds/store"
)

// maxSkipped is how many skipped things of a source are listed.
const maxSkipped = 100

type catalogService struct{ cfg Config }

func (s *catalogService) ListServices(_ context.Context, req *api.ListServicesRequest) (*api.ListServicesResponse, error) {
	var matching []*model.Service
	for _, svc := range s.cfg.Catalog.View().Services() {
		if contains(string(svc.Host), req.Contains) &&
			(req.Namespace == "" || svc.Namespace == req.Namespace) &&
			(req.Source == "" || slices.Contains(svc.Registries, req.Source)) {
			matching = append(matching, svc)
		}
	}
	items, next, err := page(matching, func(s *model.Service) string { return string(s.Host) }, req.PageSize, req.PageToken)
	if err != nil {
		return nil, err
	}
	resp := &api.ListServicesResponse{NextPageToken: next, Total: uint32(len(matching))}
	for _, svc := range items {
		resp.Services = append(resp.Services, serviceOf(svc))
	}
	return resp, nil
}

func (s *catalogService) GetService(_ context.Context, req *api.GetServiceRequest) (*api.Service, error) {
	name, registry, part := model.Host(req.Host).CutRegistry()
	host, err := model.ParseHost(string(name))
	if err != nil {
		return nil, &requestError{err}
	}
	if part {
		host = host.AtRegistry(registry)
	}
	svc := s.cfg.Catalog.View().Service(host)
	if svc == nil {
		return nil, fmt.Errorf("service %s: %w: no registry reports it", host, store.ErrNotFound)
	}
	out := serviceOf(svc)
	for _, e := range svc.Endpoints {
		out.Endpoints = append(out.Endpoints, endpointOf(e))
	}
	return out, nil
}

func (s *catalogService) ListSources(context.Context, *api.ListSourcesRequest) (*api.ListSourcesResponse, error) {
	resp := &api.ListSourcesResponse{}
	for _, st := range s.cfg.Catalog.View().Statuses() {
		out := &api.Source{
			Name: st.Source, Kind: st.Kind, Phase: st.Phase.String(),
			Since: stamp(st.Since), Read: stamp(st.Read), Error: st.Err, SkippedCount: uint32(len(st.Skipped)),
		}
		for _, skip := range st.Skipped[:min(len(st.Skipped), maxSkipped)] {
			out.Skipped = append(out.Skipped, &api.Skipped{Where: skip.Where, Reason: skip.Reason})
		}
		resp.Sources = append(resp.Sources, out)
	}
	return resp, nil
}

func serviceOf(s *model.Service) *api.Service {
	out := &api.Service{
		Host: string(s.Host), Name: s.Name, Namespace: s.Namespace, Sources: s.Registries,
		EndpointCount: uint32(len(s.Endpoints)),
	}
	for _, p := range s.Ports {
		out.Ports = append(out.Ports, &api.ServicePort{Number: uint32(p.Number), Protocol: p.Protocol.String(), Name: p.Name})
	}
	for _, a := range s.Addresses {
		out.Addresses = append(out.Addresses, a.String())
	}
	for _, e := range s.Endpoints {
		if e.Health == model.Healthy {
			out.HealthyCount++
		}
	}
	return out
}

func endpointOf(e model.Endpoint) *api.Endpoint {
	out := &api.Endpoint{
		Address: e.Address.String(), Port: uint32(e.Port), Weight: e.Weight, Health: e.Health.String(),
		Labels: e.Labels.Map(), Locality: localityOf(e.Locality), Workload: e.Workload,
		Sources: e.Registries, Changed: stamp(e.Changed),
	}
	if e.Registered.IsValid() {
		out.Registered = e.Registered.String()
	}
	if out.Weight == 0 {
		out.Weight = model.DefaultWeight
	}
	return out
}

func localityOf(l model.Locality) *api.Locality {
	if l == (model.Locality{}) {
		return nil
	}
	return &api.Locality{Region: l.Region, Zone: l.Zone, SubZone: l.SubZone}
}
