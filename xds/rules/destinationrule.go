package rules

import (
	"fmt"
	"strings"
	"time"

	networking "istio.io/api/networking/v1alpha3"
)

func (d *reader) destinationRule(dr *networking.DestinationRule) {
	if dr.Host == "" {
		d.failAt("spec.host", "is missing")
	} else {
		d.host("spec.host", dr.Host, true)
	}
	d.only("spec.exportTo", dr.ExportTo, "*")
	d.policy("spec.trafficPolicy", dr.TrafficPolicy)
	seen := map[string]int{}
	for i, s := range dr.Subsets {
		path := fmt.Sprintf("spec.subsets[%d]", i)
		if d.subsetName(path+".name", s.Name) {
			if first, twice := seen[s.Name]; twice {
				d.failf(path+".name", "%q is taken by subsets[%d]", s.Name, first)
			} else {
				seen[s.Name] = i
			}
		}
		d.labels(path+".labels", s.Labels)
		d.policy(path+".trafficPolicy", s.TrafficPolicy)
	}
}

// subsetName accepts what can stand in a cluster's name between two "|".
func (d *reader) subsetName(path, name string) bool {
	const maxBytes = 63
	if name == "" {
		d.failAt(path, "is missing")
		return false
	}
	if len(name) > maxBytes || strings.ContainsFunc(name, func(r rune) bool {
		alnum := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		return !alnum && !strings.ContainsRune("-_.", r)
	}) {
		d.failf(path, "%q, want at most %d letters, digits, '-', '_' and '.'", name, maxBytes)
		return false
	}
	return true
}

// Bounds of a ring, as Envoy has them.
const maxRingSize = 8 << 20

func (d *reader) policy(path string, p *networking.TrafficPolicy) {
	if p == nil {
		return
	}
	if lb := p.LoadBalancer; lb != nil {
		at := path + ".loadBalancer"
		if lb.LbPolicy == nil {
			d.failAt(at, "is empty, want simple or consistentHash")
		}
		if ch := lb.GetConsistentHash(); ch != nil {
			if ch.GetHttpHeaderName() == "" {
				d.failAt(at+".consistentHash.httpHeaderName", "is missing")
			} else {
				d.headerName(at+".consistentHash.httpHeaderName", ch.GetHttpHeaderName())
			}
			if n := ch.GetRingHash().GetMinimumRingSize(); n > maxRingSize {
				d.failf(at+".consistentHash.ringHash.minimumRingSize", "%d, want at most %d", n, maxRingSize)
			}
		}
	}
	tcp, http := p.GetConnectionPool().GetTcp(), p.GetConnectionPool().GetHttp()
	for name, n := range map[string]int32{
		"tcp.maxConnections":            tcp.GetMaxConnections(),
		"http.http2MaxRequests":         http.GetHttp2MaxRequests(),
		"http.maxRequestsPerConnection": http.GetMaxRequestsPerConnection(),
		"http.maxRetries":               http.GetMaxRetries(),
	} {
		if n < 0 {
			d.failf(path+".connectionPool."+name, "%d, want 0 (no limit) or more", n)
		}
	}
	d.duration(path+".connectionPool.tcp.connectTimeout", tcp.GetConnectTimeout(), time.Millisecond)
	d.duration(path+".connectionPool.http.idleTimeout", http.GetIdleTimeout(), time.Millisecond)
	if percent := p.GetRetryBudget().GetPercent(); percent != nil && (percent.Value < 0 || percent.Value > 100) {
		d.failf(path+".retryBudget.percent", "%v, want 0 to 100", percent.Value)
	}
	if p.GetRetryBudget() != nil && http.GetMaxRetries() != 0 {
		d.failAt(path+".retryBudget", "excludes connectionPool.http.maxRetries")
	}
}
