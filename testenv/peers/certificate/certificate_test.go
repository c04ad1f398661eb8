package certificate_test

import (
	"crypto/tls"
	"net"
	"path/filepath"
	"testing"

	"github.com/isthmus-mesh/isthmus/testenv/peers/certificate"
)

func TestClientsTrustTheServerByItsRoot(t *testing.T) {
	dir := t.TempDir()
	root := certificate.Write(t, dir)
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"127.0.0.1", "localhost"} {
		near, far := net.Pipe()
		server := tls.Server(far, &tls.Config{Certificates: []tls.Certificate{pair}})
		done := make(chan error, 1)
		go func() { done <- server.HandshakeContext(t.Context()) }()
		client := tls.Client(near, &tls.Config{RootCAs: root, ServerName: name})
		if err := client.HandshakeContext(t.Context()); err != nil {
			t.Errorf("client of %s: %v", name, err)
		}
		if err := <-done; err != nil {
			t.Errorf("server for %s: %v", name, err)
		}
	}
}
