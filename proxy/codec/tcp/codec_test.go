package tcp_test

import (
	_ "embed"
	"testing"

	"go.uber.org/goleak"

	"github.com/isthmus-mesh/isthmus/proxy/codec/codectest"
	"github.com/isthmus-mesh/isthmus/proxy/codec/tcp"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// What a Redis client and server say.
var (
	//go:embed testdata/ping
	ping []byte
	//go:embed testdata/pong
	pong []byte
)

func TestConformance(t *testing.T) {
	codectest.Run(t, tcp.New(), codectest.Samples{
		Request: ping, Response: pong, OneExchange: true,
	})
}
