package http1_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/isthmus-mesh/isthmus/proxy/codec/codectest"
	"github.com/isthmus-mesh/isthmus/proxy/codec/http1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) {
	codectest.Run(t, http1.New(), codectest.Samples{
		Request:  []byte("GET /a HTTP/1.1\r\nHost: x\r\n\r\n"),
		Response: []byte("HTTP/1.1 200 OK\r\nDate: now\r\nContent-Length: 5\r\n\r\nhello"),
		Foreign: [][]byte{
			[]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
			{0x16, 0x03, 0x01},       // TLS
			{0xda, 0xbb, 0xc2, 0x00}, // dubbo
			{0x01, 0x00, 0x00, 0x01}, // Bolt
			[]byte("SSH-2.0-OpenSSH"),
			[]byte("get / "),
		},
		Malformed: [][]byte{
			[]byte("GET / HTTP/1.1\r\n\r\n"),
			[]byte("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
		},
	})
}
