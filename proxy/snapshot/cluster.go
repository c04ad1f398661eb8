package snapshot

import (
	"math"
	"strconv"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/isthmus-mesh/isthmus/proxy/snapshot/fields"
	"github.com/isthmus-mesh/isthmus/proxy/upstream"
	"github.com/isthmus-mesh/isthmus/proxy/upstream/balance"
)

// clusterSpec is a compiled Cluster message.
type clusterSpec struct {
	settings upstream.Settings
	// eds names the endpoints' resource; empty: they are in endpoints.
	eds       string
	endpoints []upstream.Endpoint
}

// never is a timeout that xDS switched off.
const never = time.Duration(-1)

// httpOptionsKey is where a cluster's HTTP options are.
const httpOptionsKey = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

func decodeCluster(name string, body []byte) (*clusterSpec, error) {
	var m clusterv3.Cluster
	if err := decode(body, &m); err != nil {
		return nil, err
	}
	if err := clusterSet.Check(&m); err != nil {
		return nil, err
	}
	c := clusterCompiler{}
	if m.GetName() != name {
		c.add("name", "%q, but the resource is named %q", m.GetName(), name)
	}
	spec := &clusterSpec{settings: upstream.Settings{
		ConnectTimeout: c.duration("connect_timeout", m.GetConnectTimeout()),
		Limits:         c.limits(m.GetCircuitBreakers()),
		Policy:         c.policy(&m),
	}}
	if m.GetConnectTimeout() != nil && spec.settings.ConnectTimeout == 0 {
		c.add("connect_timeout", "0s, want more")
	}
	c.httpOptions(&m, &spec.settings)
	if t := m.GetCommonLbConfig().GetHealthyPanicThreshold(); t != nil {
		if t.GetValue() < 0 || t.GetValue() > 100 || math.IsNaN(t.GetValue()) {
			c.add("common_lb_config.healthy_panic_threshold", "%v, want 0 to 100", t.GetValue())
		}
		spec.settings.PanicPercent = new(t.GetValue())
	}
	c.discovery(&m, spec)
	if err := c.err(); err != nil {
		return nil, err
	}
	return spec, nil
}

type clusterCompiler struct{ mistakes }

func (c *clusterCompiler) discovery(m *clusterv3.Cluster, spec *clusterSpec) {
	switch m.GetType() {
	case clusterv3.Cluster_EDS:
		if m.GetEdsClusterConfig().GetEdsConfig() != nil && m.GetEdsClusterConfig().GetEdsConfig().GetAds() == nil {
			c.add("eds_cluster_config.eds_config", "only ads is implemented")
		}
		spec.eds = m.GetEdsClusterConfig().GetServiceName()
		if spec.eds == "" {
			spec.eds = m.GetName()
		}
		if m.GetLoadAssignment() != nil {
			c.add("load_assignment", "beside type EDS")
		}
	case clusterv3.Cluster_STATIC:
		if m.GetEdsClusterConfig() != nil {
			c.add("eds_cluster_config", "beside type STATIC")
		}
		endpoints, err := compileEndpoints(m.GetLoadAssignment())
		if err != nil {
			c.errs = append(c.errs, fields.At("load_assignment", err))
		}
		spec.endpoints = endpoints
	default:
		c.add("type", "%v is not implemented", m.GetType())
	}
}

func (c *clusterCompiler) policy(m *clusterv3.Cluster) balance.Policy {
	switch m.GetLbPolicy() {
	case clusterv3.Cluster_ROUND_ROBIN:
		return balance.RoundRobin{}
	case clusterv3.Cluster_RANDOM:
		return balance.Random{}
	case clusterv3.Cluster_LEAST_REQUEST:
		choices := m.GetLeastRequestLbConfig().GetChoiceCount()
		if choices != nil && (choices.GetValue() < 2 || choices.GetValue() > 100) {
			c.add("least_request_lb_config.choice_count", "%d, want 2 to 100", choices.GetValue())
		}
		return balance.LeastRequest{Choices: choices.GetValue()}
	case clusterv3.Cluster_RING_HASH:
		ring := m.GetRingHashLbConfig()
		if ring.GetHashFunction() != clusterv3.Cluster_RingHashLbConfig_XX_HASH {
			c.add("ring_hash_lb_config.hash_function", "%v is not implemented", ring.GetHashFunction())
		}
		least, most := ring.GetMinimumRingSize().GetValue(), ring.GetMaximumRingSize().GetValue()
		if least > balance.MaxRing {
			c.add("ring_hash_lb_config.minimum_ring_size", "%d, want at most %d", least, balance.MaxRing)
		}
		if most > balance.MaxRing || most != 0 && most < least {
			c.add("ring_hash_lb_config.maximum_ring_size", "%d, want at least minimum_ring_size and at most %d", most, balance.MaxRing)
		}
		return balance.RingHash{MinSize: least, MaxSize: most}
	}
	c.add("lb_policy", "%v is not implemented", m.GetLbPolicy())
	return nil
}

func (c *clusterCompiler) limits(m *clusterv3.CircuitBreakers) upstream.Limits {
	var out upstream.Limits
	for i, t := range m.GetThresholds() {
		at := "circuit_breakers." + fields.Index("thresholds", i)
		if t.GetPriority() != corev3.RoutingPriority_DEFAULT {
			// No route of high priority is accepted, so it limits nothing.
			continue
		}
		limit := func(field string, set interface{ GetValue() uint32 }, present bool) uint32 {
			if present && set.GetValue() == 0 {
				c.add(at+"."+field, "0 would refuse everything, want at least 1")
			}
			return set.GetValue()
		}
		out.Connections = limit("max_connections", t.GetMaxConnections(), t.GetMaxConnections() != nil)
		// Nothing waits for a connection here: what finds none is refused at once,
		// so that no number of waiting requests is ever exceeded.
		limit("max_pending_requests", t.GetMaxPendingRequests(), t.GetMaxPendingRequests() != nil)
		out.Requests = limit("max_requests", t.GetMaxRequests(), t.GetMaxRequests() != nil)
		out.Retries = t.GetMaxRetries().GetValue()
		if t.GetMaxRetries() != nil && out.Retries == 0 {
			out.NoRetries = true
		}
		if b := t.GetRetryBudget(); b != nil {
			// As Envoy has it, a budget takes the place of the fixed limit.
			out.Retries, out.NoRetries = math.MaxUint32, false
			percent := 20.0
			if b.GetBudgetPercent() != nil {
				percent = b.GetBudgetPercent().GetValue()
			}
			if !(percent > 0 && percent <= 100) {
				c.add(at+".retry_budget.budget_percent", "%v, want more than 0 and at most 100", percent)
			}
			out.RetryBudgetPercent = uint32(math.Ceil(percent))
			out.RetryBudgetMin = b.GetMinRetryConcurrency().GetValue()
		} else if t.GetMaxRetries() != nil {
			// A fixed limit alone: a budget beside it would be a second one.
			out.RetryBudgetPercent, out.RetryBudgetMin = 100, math.MaxUint32
		}
	}
	return out
}

func (c *clusterCompiler) httpOptions(m *clusterv3.Cluster, s *upstream.Settings) {
	for key, packed := range m.GetTypedExtensionProtocolOptions() {
		at := "typed_extension_protocol_options[" + strconv.Quote(key) + "]"
		var o httpv3.HttpProtocolOptions
		if key != httpOptionsKey || !packed.MessageIs(&o) {
			c.add(at, "not implemented")
			continue
		}
		if err := packed.UnmarshalTo(&o); err != nil {
			c.add(at, "%v", err)
			continue
		}
		if o.GetExplicitHttpConfig().GetHttpProtocolOptions() == nil {
			c.add(at+".explicit_http_config", "want http_protocol_options: HTTP/1.1 is what is implemented")
		}
		s.AppProtocol = "http"
		c.commonOptions(at+".common_http_protocol_options", o.GetCommonHttpProtocolOptions(), s)
	}
}

func (c *clusterCompiler) commonOptions(path string, o *corev3.HttpProtocolOptions, s *upstream.Settings) {
	if o == nil {
		return
	}
	if o.GetIdleTimeout() != nil {
		if s.IdleTimeout = c.duration(path+".idle_timeout", o.GetIdleTimeout()); s.IdleTimeout == 0 {
			s.IdleTimeout = never
		}
	}
	if n := o.GetMaxRequestsPerConnection(); n != nil {
		s.MaxRequestsPerConnection = n.GetValue()
	}
}

// duration reads d; nil is 0.
func (m *mistakes) duration(path string, d *durationpb.Duration) time.Duration {
	if d == nil {
		return 0
	}
	if v := d.AsDuration(); d.CheckValid() == nil && v >= 0 && v != math.MaxInt64 {
		return v
	}
	m.add(path, "%ds, want a duration of at least 0", d.GetSeconds())
	return 0
}

func decode(body []byte, m proto.Message) error {
	if err := proto.Unmarshal(body, m); err != nil {
		return fields.Errorf("", "not a %s: %v", m.ProtoReflect().Descriptor().FullName(), err)
	}
	return nil
}
