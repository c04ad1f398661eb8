package tcp_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/isthmus-mesh/isthmus/proxy/codec/codectest"
	"github.com/isthmus-mesh/isthmus/proxy/codec/tcp"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) {
	codectest.Run(t, tcp.New(), codectest.Samples{
		Request: []byte("ping"), Response: []byte("pong"), OneExchange: true,
	})
}
