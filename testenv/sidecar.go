package testenv

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/isthmus-mesh/isthmus/testenv/peers"
)

// Sidecar is a running sidecar. Its process may be killed and started again.
type Sidecar struct {
	*peers.Process
	Admin string // host:port
	// Proxy is its explicit outbound proxy, host:port.
	Proxy string
	// Inbound is where it listens for its application; empty without one.
	Inbound string
	// AccessLog is the file of its access log.
	AccessLog string
}

// Workload says what a sidecar stands beside.
type Workload struct {
	Name    string // unique in the mesh
	App     string
	Version string // label; empty: none
	// Port is where the application listens, "127.0.0.1:8080"; empty: it
	// cannot be called.
	Port     string
	Protocol string // of Port; empty means http
	Service  string // host that the built-in registry announces for Port
	// Inbound is where the sidecar listens for Port; empty: at a free port.
	Inbound string
	// DataDir is where it keeps its configuration; empty: a folder of its own.
	DataDir string
	// Early returns as soon as the admin port answers, ready or not.
	Early bool
	// Egress are services to reach at loopback addresses, "host:port@address".
	Egress []string
}

// Sidecar starts a sidecar and returns once it is ready.
func (m *Mesh) Sidecar(w Workload) *Sidecar {
	m.t.Helper()
	s := &Sidecar{Admin: freeAddr(m.t), Proxy: freeAddr(m.t), AccessLog: filepath.Join(m.dir, w.Name+".access.log")}
	dataDir := w.DataDir
	if dataDir == "" {
		dataDir = filepath.Join(m.dir, w.Name)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "workload: {name: %s, app: %s", w.Name, w.App)
	if w.Version != "" {
		fmt.Fprintf(&b, ", labels: {version: %s}", w.Version)
	}
	fmt.Fprintf(&b, "}\nmeshserver: [%q]\napi: %q\nhttpProxy: %q\nadmin: %q\nreadiness: off\nmetrics: off\nlease: 3s\ndrainTime: 2s\naccessLog: {path: %s}\ndataDir: %s\n",
		m.XDS, m.API, s.Proxy, s.Admin, s.AccessLog, dataDir)
	if w.Port != "" {
		if s.Inbound = w.Inbound; s.Inbound == "" {
			s.Inbound = freeAddr(m.t)
		}
		fmt.Fprintf(&b, "inbound:\n- {app: %q, listen: %q, protocol: %s", w.Port, s.Inbound, protocolOr(w.Protocol, "http"))
		if w.Service != "" {
			fmt.Fprintf(&b, ", service: %s", w.Service)
		}
		b.WriteString("}\n")
	}
	for i, e := range w.Egress {
		if i == 0 {
			b.WriteString("egress:\n")
		}
		target, address, ok := strings.Cut(e, "@")
		colon := strings.LastIndexByte(target, ':')
		if !ok || colon < 0 {
			m.t.Fatalf("egress %q, want host:port@address", e)
		}
		fmt.Fprintf(&b, "- {host: %s, port: %s, address: %s}\n", target[:colon], target[colon+1:], address)
	}
	m.t.Cleanup(func() {
		if text, err := os.ReadFile(s.AccessLog); m.t.Failed() && err == nil {
			m.t.Logf("access log of %s, its end:\n%s", w.Name, text[max(0, len(text)-2000):])
		}
	})
	ready := "/ready"
	if w.Early {
		ready = "/stats/prometheus"
	}
	s.Process = peers.StartProgram(m.t, peers.Program{
		Name: w.Name + "'s sidecar", Path: Program(m.t, "sidecar"), Args: []string{"-config", m.write(m.t, w.Name+".yaml", b.String())}, Ready: "http://" + s.Admin + ready,
	})
	return s
}

func protocolOr(protocol, otherwise string) string {
	if protocol == "" {
		return otherwise
	}
	return protocol
}
