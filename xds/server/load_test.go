package server_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"go.uber.org/goleak"

	"github.com/isthmus-mesh/isthmus/xds/server/servertest"
)

// loadEnv makes this test binary the process under load: subject, clusters, endpoints.
const loadEnv = "ISTHMUS_XDS_LOAD"

func TestMain(m *testing.M) {
	if spec := os.Getenv(loadEnv); spec != "" {
		if err := serveLoad(spec); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

type loadSpec struct {
	Subject string
	Shape   servertest.Shape
}

func serveLoad(spec string) error {
	var s loadSpec
	if err := json.Unmarshal([]byte(spec), &s); err != nil {
		return err
	}
	return servertest.ServeLoad(context.Background(), s.Subject, s.Shape, os.Stdin, os.Stdout)
}

func load(tb testing.TB, subject string, streams, updates int) servertest.LoadResult {
	tb.Helper()
	shape := servertest.Shape{Clusters: 200, Endpoints: 10}
	spec, err := json.Marshal(loadSpec{subject, shape})
	if err != nil {
		tb.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		tb.Fatal(err)
	}
	cmd := exec.CommandContext(tb.Context(), self)
	cmd.Env = append(os.Environ(), loadEnv+"="+string(spec))
	cmd.Stderr = os.Stderr
	res, err := servertest.Load(tb.Context(), servertest.LoadConfig{Command: cmd, Shape: shape, Streams: streams, Updates: updates})
	if err != nil {
		tb.Fatal(err)
	}
	return res
}

func TestLoadRuns(t *testing.T) {
	for _, subject := range []string{servertest.Isthmus, servertest.LinearCache} {
		if res := load(t, subject, 10, 5); len(res.LastAck) != 5 || res.LastAckP(0.5) <= 0 || res.RSS == 0 {
			t.Errorf("%s: result %+v", subject, res)
		}
	}
}

// BenchmarkUpdate changes one endpoint under streams of 200 clusters each.
func BenchmarkUpdate(b *testing.B) {
	for _, run := range []struct {
		subject string
		streams int
	}{{servertest.Isthmus, 1000}, {servertest.LinearCache, 1000}, {servertest.Isthmus, 10000}} {
		b.Run(fmt.Sprintf("%s/%d", run.subject, run.streams), func(b *testing.B) {
			res := load(b, run.subject, run.streams, b.N)
			b.ReportMetric(float64(res.LastAckP(0.5).Microseconds())/1000, "last_ack_ms_p50")
			b.ReportMetric(float64(res.LastAckP(0.99).Microseconds())/1000, "last_ack_ms_p99")
			b.ReportMetric(res.CPUPerUpdate, "cpu_s/update")
			b.ReportMetric(res.Connect.Seconds(), "connect_s")
			b.ReportMetric(res.ConnectCPU, "connect_cpu_s")
			b.ReportMetric(float64(res.RSS)/(1<<20), "rss_MiB")
			b.ReportMetric(0, "ns/op")
		})
	}
}
