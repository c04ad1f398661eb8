module github.com/isthmus-mesh/isthmus

go 1.26.7

require (
	connectrpc.com/connect/v2 v2.0.2 // Mesh API: gRPC, gRPC-Web and JSON from one handler
	connectrpc.com/grpcreflect/v2 v2.0.0 // grpcurl against the Mesh API without proto files
	github.com/cespare/xxhash/v2 v2.3.0 // content-hash versions, ring hash
	github.com/cncf/xds/go v0.0.0-20260202195803-dba9d589def2 // matcher and type messages that xDS resources embed
	github.com/envoyproxy/go-control-plane v0.14.0 // wellknown names; its caches are the oracle and baseline in tests
	github.com/envoyproxy/go-control-plane/envoy v1.40.0 // xDS messages and service stubs
	github.com/go-zookeeper/zk v1.0.4 // ZooKeeper client of the bridge
	github.com/google/go-cmp v0.7.0 // one diff per test failure
	github.com/hashicorp/consul/api v1.34.5 // Consul client of the bridge; 1.35 wants a newer Go
	github.com/prometheus/client_golang v1.25.0 // metrics
	github.com/rogpeppe/go-internal v1.16.0 // txtar scripts for the commands
	github.com/spf13/cobra v1.10.2 // meshctl
	go.uber.org/goleak v1.3.0 // leak check in tests
	go.yaml.in/yaml/v3 v3.0.5 // YAML with line numbers, for errors that name the place
	golang.org/x/net v0.61.0 // HTTP/2 framing in tests and spikes
	golang.org/x/sync v0.24.0 // errgroup
	golang.org/x/sys v0.49.0 // socket calls on the data path
	golang.org/x/term v0.47.0 // is stdout a terminal
	google.golang.org/grpc v1.85.0 // ADS
	google.golang.org/protobuf v1.36.12 // messages
	istio.io/api v1.31.1 // the rules that users write
	modernc.org/sqlite v1.61.1 // embedded store without cgo
	sigs.k8s.io/yaml v1.6.0 // YAML to JSON for protojson
)

require (
	cel.dev/expr v0.25.3 // indirect
	cloud.google.com/go/compute/metadata v0.9.0 // indirect
	github.com/armon/go-metrics v0.4.1 // indirect
	github.com/beorn7/perks v1.0.1 // indirect
	github.com/dustin/go-humanize v1.1.0 // indirect
	github.com/envoyproxy/go-control-plane/ratelimit v0.1.0 // indirect
	github.com/envoyproxy/protoc-gen-validate v1.3.3 // indirect
	github.com/fatih/color v1.19.0 // indirect
	github.com/go-jose/go-jose/v4 v4.1.4 // indirect
	github.com/go-viper/mapstructure/v2 v2.5.0 // indirect
	github.com/golang/protobuf v1.5.4 // indirect
	github.com/google/uuid v1.6.0 // indirect
	github.com/hashicorp/errwrap v1.1.0 // indirect
	github.com/hashicorp/go-cleanhttp v0.5.2 // indirect
	github.com/hashicorp/go-hclog v1.6.3 // indirect
	github.com/hashicorp/go-immutable-radix v1.3.1 // indirect
	github.com/hashicorp/go-metrics v0.6.0 // indirect
	github.com/hashicorp/go-multierror v1.1.1 // indirect
	github.com/hashicorp/go-rootcerts v1.0.2 // indirect
	github.com/hashicorp/golang-lru v1.0.2 // indirect
	github.com/hashicorp/serf v0.10.4 // indirect
	github.com/inconshreveable/mousetrap v1.1.0 // indirect
	github.com/mattn/go-colorable v0.1.15 // indirect
	github.com/mattn/go-isatty v0.0.24 // indirect
	github.com/mitchellh/go-homedir v1.1.0 // indirect
	github.com/munnerz/goautoneg v0.0.0-20191010083416-a7dc8b61c822 // indirect
	github.com/ncruces/go-strftime v1.1.0 // indirect
	github.com/planetscale/vtprotobuf v0.6.1-0.20240319094008-0393e58bdf10 // indirect
	github.com/prometheus/client_model v0.6.3 // indirect
	github.com/prometheus/common v0.72.0 // indirect
	github.com/prometheus/procfs v0.22.0 // indirect
	github.com/remyoudompheng/bigfft v0.0.0-20230129092748-24d4a6f8daec // indirect
	github.com/spf13/pflag v1.0.9 // indirect
	github.com/spiffe/go-spiffe/v2 v2.8.1 // indirect
	go.yaml.in/yaml/v2 v2.4.4 // indirect
	golang.org/x/exp v0.0.0-20260218203240-3dfff04db8fa // indirect
	golang.org/x/oauth2 v0.37.0 // indirect
	golang.org/x/text v0.43.0 // indirect
	golang.org/x/tools v0.52.0 // indirect
	google.golang.org/genproto/googleapis/api v0.0.0-20260817212433-ac3dfec99bb1 // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20260817212433-ac3dfec99bb1 // indirect
	modernc.org/libc v1.79.0 // indirect
	modernc.org/mathutil v1.7.1 // indirect
	modernc.org/memory v1.12.1 // indirect
)

tool (
	connectrpc.com/connect/v2/cmd/protoc-gen-connect-go
	google.golang.org/protobuf/cmd/protoc-gen-go
)
