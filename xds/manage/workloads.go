package manage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/isthmus-mesh/isthmus/xds/api"
	"github.com/isthmus-mesh/isthmus/xds/model"
)

// defaultTTL is the time of a lease whose request names none.
const defaultTTL = 30 * time.Second

type workloadService struct{ cfg Config }

func (s *workloadService) leases() (Leases, error) {
	if s.cfg.Leases == nil {
		return nil, forbidden("the built-in registry is switched off on this server")
	}
	return s.cfg.Leases, nil
}

func (s *workloadService) Register(ctx context.Context, req *api.RegisterRequest) (*api.RegisterResponse, error) {
	leases, err := s.leases()
	if err != nil {
		return nil, err
	}
	ttl := defaultTTL
	if req.Ttl != nil {
		ttl = req.Ttl.AsDuration()
	}
	w, err := workloadFrom(req.Workload)
	if req.Ttl != nil && !req.Ttl.IsValid() {
		err = errors.Join(err, errors.New("ttl: is not a duration"))
	}
	if err != nil {
		return nil, &requestError{err}
	}
	id, err := leases.Register(ctx, w, ttl)
	if err != nil {
		return nil, s.cfg.LeaseErrors.mark(err)
	}
	return &api.RegisterResponse{LeaseId: id, Ttl: durationpb.New(ttl)}, nil
}

func (s *workloadService) Renew(ctx context.Context, req *api.RenewRequest) (*api.RenewResponse, error) {
	leases, err := s.leases()
	if err != nil {
		return nil, err
	}
	if err := leases.Renew(ctx, req.LeaseId); err != nil {
		return nil, s.cfg.LeaseErrors.mark(err)
	}
	return &api.RenewResponse{}, nil
}

func (s *workloadService) Leave(ctx context.Context, req *api.LeaveRequest) (*api.LeaveResponse, error) {
	leases, err := s.leases()
	if err != nil {
		return nil, err
	}
	if err := leases.Leave(ctx, req.LeaseId); err != nil {
		return nil, s.cfg.LeaseErrors.mark(err)
	}
	return &api.LeaveResponse{}, nil
}

func (s *workloadService) List(_ context.Context, req *api.ListWorkloadsRequest) (*api.ListWorkloadsResponse, error) {
	type listed struct {
		key string
		w   *model.Workload
	}
	var all []listed
	for i, w := range s.cfg.Catalog.View().Workloads() {
		if req.Namespace == "" || w.Namespace == req.Namespace {
			// Two sources may report one name; the number keeps keys apart.
			all = append(all, listed{fmt.Sprintf("%s/%s/%08d", w.Namespace, w.Name, i), w})
		}
	}
	slices.SortFunc(all, func(a, b listed) int { return cmp.Compare(a.key, b.key) })
	items, next, err := page(all, func(l listed) string { return l.key }, req.PageSize, req.PageToken)
	if err != nil {
		return nil, err
	}
	resp := &api.ListWorkloadsResponse{NextPageToken: next}
	for _, l := range items {
		resp.Workloads = append(resp.Workloads, workloadOf(l.w))
	}
	return resp, nil
}

// workloadFrom decodes a workload and reports every mistake; what the values may
// be is for the registry to say.
func workloadFrom(in *api.Workload) (model.Workload, error) {
	if in == nil {
		return model.Workload{}, errors.New("workload: is missing")
	}
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("workload."+format, args...)) }
	w := model.Workload{
		Name: in.Name, Namespace: cmp.Or(in.Namespace, "default"), App: in.App, Labels: model.NewLabels(in.Labels),
		Locality: model.Locality{Region: in.Locality.GetRegion(), Zone: in.Locality.GetZone(), SubZone: in.Locality.GetSubZone()},
		Weight:   in.Weight, MeshTLS: in.MeshTls,
	}
	var err error
	if w.Address, err = netip.ParseAddr(in.Address); err != nil {
		bad("address: %q, want the IP address that others reach it by", in.Address)
	}
	switch in.Health {
	case "", model.Healthy.String():
	case model.Draining.String():
		w.Health = model.Draining
	case model.Unhealthy.String():
		w.Health = model.Unhealthy
	default:
		bad("health: %q, want healthy, draining or unhealthy", in.Health)
	}
	for i, p := range in.Inbound {
		inbound, mistakes := inboundFrom(p)
		for _, m := range mistakes {
			bad("inbound[%d].%w", i, m)
		}
		w.Inbound = append(w.Inbound, inbound)
	}
	return w, errors.Join(errs...)
}

func inboundFrom(in *api.Inbound) (out model.Inbound, mistakes []error) {
	bad := func(format string, args ...any) { mistakes = append(mistakes, fmt.Errorf(format, args...)) }
	out.Service = in.Service
	var err error
	if out.App, err = netip.ParseAddrPort(in.App); err != nil {
		bad("app: %q, want ip:port such as 127.0.0.1:8080", in.App)
	}
	if in.Listen != "" {
		if out.Listen, err = netip.ParseAddrPort(in.Listen); err != nil {
			bad("listen: %q, want ip:port such as 0.0.0.0:20881", in.Listen)
		}
	}
	if out.Protocol, err = model.ParseProtocol(in.Protocol); err != nil {
		bad("%w", err)
	}
	if in.ServicePort > 65535 {
		bad("service_port: %d, want 1 to 65535", in.ServicePort)
	}
	out.ServicePort = uint16(in.ServicePort)
	return out, mistakes
}

func workloadOf(w *model.Workload) *api.Workload {
	out := &api.Workload{
		Name: w.Name, Namespace: w.Namespace, App: w.App, Address: w.Address.String(), Labels: w.Labels.Map(),
		Locality: localityOf(w.Locality), Weight: cmp.Or(w.Weight, model.DefaultWeight), Health: w.Health.String(), MeshTls: w.MeshTLS,
	}
	for _, in := range w.Inbound {
		port := &api.Inbound{App: in.App.String(), Protocol: in.Protocol.String(), Service: in.Service, ServicePort: uint32(in.ServicePort)}
		if in.Listen.IsValid() {
			port.Listen = in.Listen.String()
		}
		out.Inbound = append(out.Inbound, port)
	}
	return out
}
