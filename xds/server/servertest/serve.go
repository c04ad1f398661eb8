package servertest

import (
	"context"
	"net"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/test/bufconn"

	"github.com/isthmus-mesh/isthmus/xds/server"
	"github.com/isthmus-mesh/isthmus/xds/status"
)

// Serve starts a server over w on a loopback port until the test ends and returns its
// address. cfg.World is set here.
func Serve(t testing.TB, w *World, cfg server.Config) (addr string) {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, w, cfg, lis)
	return lis.Addr().String()
}

// Connect starts a server over w within the process until the test ends and returns a
// connection to it.
func Connect(t testing.TB, w *World, cfg server.Config) *grpc.ClientConn {
	t.Helper()
	lis := bufconn.Listen(1 << 16)
	serve(t, w, cfg, lis)
	conn, err := grpc.NewClient("passthrough:///bufconn", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return conn
}

func serve(t testing.TB, w *World, cfg server.Config, lis net.Listener) {
	t.Helper()
	cfg.World = w
	if cfg.Status == nil {
		cfg.Status = status.NewRegistry()
	}
	s, err := server.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(s.ServerOptions()...)
	s.Register(g)
	status.NewCSDS(cfg.Status).Register(g)
	reflection.Register(g)
	done := make(chan error, 1)
	go func() { done <- g.Serve(lis) }()
	t.Cleanup(func() {
		g.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
