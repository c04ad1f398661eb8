package snapshot

import "github.com/isthmus-mesh/isthmus/proxy/snapshot/fields"

// What is implemented of clusters, endpoints and listeners; all else is refused.
// Values that are not implemented are refused where they are compiled. Fields
// that concern only who reads the configuration (metadata, stat_prefix) are let
// through.

const sharedFields = `
envoy.config.core.v3.Address: socket_address
envoy.config.core.v3.SocketAddress: protocol address port_value
envoy.config.core.v3.Metadata: *
envoy.config.core.v3.ConfigSource: ads initial_fetch_timeout resource_api_version
envoy.config.core.v3.AggregatedConfigSource:
`

const endpointFields = `
envoy.config.endpoint.v3.ClusterLoadAssignment: cluster_name endpoints policy
envoy.config.endpoint.v3.ClusterLoadAssignment.Policy: overprovisioning_factor
envoy.config.endpoint.v3.LocalityLbEndpoints: locality lb_endpoints load_balancing_weight priority metadata
envoy.config.core.v3.Locality: *
envoy.config.endpoint.v3.LbEndpoint: endpoint health_status metadata load_balancing_weight
envoy.config.endpoint.v3.Endpoint: address hostname
`

var clusterSet = fields.Parse(sharedFields + endpointFields + `
envoy.config.cluster.v3.Cluster: name alt_stat_name type eds_cluster_config connect_timeout lb_policy ring_hash_lb_config least_request_lb_config round_robin_lb_config load_assignment circuit_breakers typed_extension_protocol_options common_lb_config metadata
envoy.config.cluster.v3.Cluster.EdsClusterConfig: eds_config service_name
envoy.config.cluster.v3.Cluster.RingHashLbConfig: minimum_ring_size maximum_ring_size hash_function
envoy.config.cluster.v3.Cluster.LeastRequestLbConfig: choice_count
envoy.config.cluster.v3.Cluster.RoundRobinLbConfig:
envoy.config.cluster.v3.Cluster.CommonLbConfig: healthy_panic_threshold
envoy.type.v3.Percent: value
envoy.config.cluster.v3.CircuitBreakers: thresholds
envoy.config.cluster.v3.CircuitBreakers.Thresholds: priority max_connections max_pending_requests max_requests max_retries retry_budget track_remaining
envoy.config.cluster.v3.CircuitBreakers.Thresholds.RetryBudget: budget_percent min_retry_concurrency
envoy.config.core.v3.HttpProtocolOptions: idle_timeout max_requests_per_connection
envoy.config.core.v3.Http1ProtocolOptions:
envoy.extensions.upstreams.http.v3.HttpProtocolOptions: common_http_protocol_options explicit_http_config
envoy.extensions.upstreams.http.v3.HttpProtocolOptions.ExplicitHttpConfig: http_protocol_options
`)

var endpointSet = fields.Parse(sharedFields + endpointFields)

var listenerSet = fields.Parse(sharedFields + `
envoy.config.listener.v3.Listener: name address stat_prefix filter_chains bind_to_port traffic_direction api_listener metadata enable_reuse_port
envoy.config.listener.v3.FilterChain: filters name metadata
envoy.config.listener.v3.Filter: name typed_config
envoy.config.listener.v3.ApiListener: api_listener
envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager: codec_type stat_prefix rds route_config http_filters access_log upgrade_configs server_header_transformation generate_request_id stream_idle_timeout request_headers_timeout common_http_protocol_options http_protocol_options max_request_headers_kb
envoy.extensions.filters.network.http_connection_manager.v3.Rds: config_source route_config_name
envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter: name typed_config
envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.UpgradeConfig: upgrade_type enabled
envoy.extensions.filters.http.router.v3.Router: suppress_envoy_headers
envoy.config.core.v3.HttpProtocolOptions: idle_timeout
envoy.config.core.v3.Http1ProtocolOptions:
envoy.config.route.v3.RouteConfiguration: *
envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy: stat_prefix cluster weighted_clusters idle_timeout access_log max_connect_attempts
envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster: clusters
envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster.ClusterWeight: name weight
envoy.config.accesslog.v3.AccessLog: name typed_config
envoy.extensions.access_loggers.file.v3.FileAccessLog: path
envoy.extensions.access_loggers.stream.v3.StdoutAccessLog:
`)
