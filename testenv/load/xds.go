package main

import (
	"context"
	"os"
	"os/exec"

	"github.com/isthmus-mesh/isthmus/xds/server/servertest"
)

// serveXDS is the argument that makes this program the server under load.
const serveXDS = "serve-xds"

const (
	xdsStreams = 1000
	xdsUpdates = 40
)

func xdsShape() servertest.Shape { return servertest.Shape{Clusters: 200, Endpoints: 10} }

// xds measures the time from a changed endpoint to the last stream's ACK.
func (s *suite) xds(ctx context.Context, name string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, self, serveXDS, name)
	cmd.Stderr = os.Stderr
	res, err := servertest.Load(ctx, servertest.LoadConfig{Command: cmd, Shape: xdsShape(), Streams: xdsStreams, Updates: xdsUpdates})
	if err != nil {
		return err
	}
	s.results.add(xdsUpdate, name, 0,
		figure{"last_ack_ms_p50", ms(res.LastAckP(0.5))}, figure{"last_ack_ms_p99", ms(res.LastAckP(0.99))},
		figure{"cpu_s_per_update", res.CPUPerUpdate}, figure{"rss_mib", float64(res.RSS) / mib},
		figure{"connect_s", res.Connect.Seconds()}, figure{"connect_cpu_s", res.ConnectCPU})
	return nil
}
