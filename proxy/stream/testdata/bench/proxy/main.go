// Command proxy serves one listener with one route to one host: the smallest
// process around the hot path, for measurements.
package main

import (
	"context"
	"flag"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	_ "net/http/pprof" // a measuring tool shows its profile
	"net/netip"
	"os"
	"os/signal"
	"runtime/debug"
	"sync/atomic"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/isthmus-mesh/isthmus/proxy/clock"
	"github.com/isthmus-mesh/isthmus/proxy/codec/http1"
	"github.com/isthmus-mesh/isthmus/proxy/codec/tcp"
	"github.com/isthmus-mesh/isthmus/proxy/conn"
	"github.com/isthmus-mesh/isthmus/proxy/router"
	"github.com/isthmus-mesh/isthmus/proxy/stream"
	"github.com/isthmus-mesh/isthmus/proxy/telemetry"
	"github.com/isthmus-mesh/isthmus/proxy/upstream"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:18080", "")
	to := flag.String("to", "127.0.0.1:18081", "")
	plain := flag.Bool("tcp", false, "")
	logTo := flag.String("log", "", "")
	prof := flag.String("pprof", "", "")
	gc := flag.Int("gc", 0, "")
	flag.Parse()
	if *gc != 0 {
		debug.SetGCPercent(*gc)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if *prof != "" {
		go func() { log.Print(http.ListenAndServe(*prof, nil)) }()
	}
	wheel := clock.NewWheel()
	go func() { _ = wheel.Run(ctx) }()

	cluster := upstream.NewCluster("origin", telemetry.NewUpstream("origin", "origin"))
	cluster.Configure(upstream.Settings{ConnectTimeout: time.Second, Limits: upstream.Limits{Connections: 1 << 20, Requests: 1 << 20, Retries: 10}})
	cluster.SetEndpoints([]upstream.Endpoint{{Addr: netip.MustParseAddrPort(*to), Weight: 1}})
	table, err := router.Compile(&routev3.RouteConfiguration{VirtualHosts: []*routev3.VirtualHost{{
		Name: "all", Domains: []string{"*"}, Routes: []*routev3.Route{{
			Match:  &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
			Action: &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: "origin"}}},
		}},
	}}}, func(string) *upstream.Cluster { return cluster })
	if err != nil {
		log.Fatal(err)
	}
	h := &stream.HTTP{Routes: new(atomic.Pointer[router.Table]), Stats: telemetry.NewDownstream("outbound", 1), Codec: http1.New(), RequestID: true}
	h.Routes.Store(table)
	if *logTo != "" {
		l, err := telemetry.NewAccessLog(telemetry.AccessLogConfig{Open: func() (io.WriteCloser, error) {
			return os.OpenFile(*logTo, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		}, Log: slog.Default()})
		if err != nil {
			log.Fatal(err)
		}
		go func() { _ = l.Run(ctx) }()
		h.Log = l
	}
	t := &stream.TCP{Destinations: []stream.TCPDestination{{Cluster: cluster, Weight: 1}}, Stats: h.Stats, Codec: tcp.New()}

	lc := net.ListenConfig{}
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(ctx, "tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	context.AfterFunc(ctx, func() { _ = l.Close() })
	for shard := uint32(0); ; shard++ {
		nc, err := l.Accept()
		if err != nil {
			return
		}
		c, err := conn.New(nc, wheel, shard)
		if err != nil {
			_ = nc.Close()
			continue
		}
		if *plain {
			go func() { _ = t.Serve(ctx, c) }()
		} else {
			go func() { _ = h.Serve(ctx, c) }()
		}
	}
}
