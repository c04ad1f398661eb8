package proxy

import (
	"fmt"
	"io"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/isthmus-mesh/isthmus/proxy/admin"
)

// Conditions returns what keeps the sidecar from being ready, and what is not as
// it should be.
func (p *Proxy) Conditions() []admin.Condition {
	var out []admin.Condition
	c := p.client.Load()
	if c == nil {
		return []admin.Condition{{Name: "start", NotReady: true, Detail: "not finished"}}
	}
	synced := false
	select {
	case <-c.Synced():
		synced = true
	default:
	}
	if !synced && p.kept.Load() == 0 {
		out = append(out, admin.Condition{Name: "configuration", NotReady: true, Detail: "not received yet, and none was kept"})
	}
	if target, _ := c.Connected(); target == "" {
		out = append(out, admin.Condition{Name: "control plane", Detail: fmt.Sprintf("not connected to any of %v", p.cfg.Bootstrap.MeshServer)})
	}
	for _, l := range p.Status() {
		if !l.Bound {
			// One that the control plane has not sent keeps only its own service away.
			out = append(out, admin.Condition{Name: "listener " + l.Name, NotReady: l.BindFailed, Detail: l.Err})
		}
	}
	if n := p.store.Waiting(); n > 0 {
		out = append(out, admin.Condition{Name: "listeners", Detail: fmt.Sprintf("%d wait for routes or clusters", n)})
	}
	if p.cfg.Conditions != nil {
		out = append(out, p.cfg.Conditions()...)
	}
	var refused []string
	for _, r := range p.store.Rejections() {
		refused = append(refused, r.Error())
	}
	if len(refused) > 0 {
		out = append(out, admin.Condition{Name: "configuration refused", Detail: some(refused)})
	}
	if err := p.store.SaveError(); err != nil {
		out = append(out, admin.Condition{Name: "last configuration", Detail: "not kept: " + err.Error()})
	}
	return out
}

// WriteClusters writes Envoy's /clusters.
func (p *Proxy) WriteClusters(w io.Writer) error { return p.store.WriteClusters(w) }

// WriteDump writes Envoy's /config_dump.
func (p *Proxy) WriteDump(w io.Writer) error {
	data, err := p.store.Dump(&adminv3.BootstrapConfigDump{
		Bootstrap:   &bootstrapv3.Bootstrap{Node: p.cfg.Bootstrap.Node(p.cfg.Version)},
		LastUpdated: timestamppb.New(p.store.Changed()),
	})
	if err != nil {
		return err
	}
	_, err = w.Write(data)
	return err
}
