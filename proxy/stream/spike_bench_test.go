package stream_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// The spikes' proxies are measured in a process of their own, on a core of their
// own where taskset is there: its CPU time is theirs alone. For figures run
//
//	taskset -c 0 go test ./proxy/stream -run '^$' -bench Spike -benchtime 300000x -count 5

// Variables that make this program a spike's proxy.
const (
	spikeKind = "ISTHMUS_SPIKE"
	spikeHost = "ISTHMUS_SPIKE_HOST"
)

// TestSpikeProcess is such a process; it serves until its standard input ends.
func TestSpikeProcess(t *testing.T) {
	kind := os.Getenv(spikeKind)
	if kind == "" {
		t.Skip("it is started by the benchmarks")
	}
	b := newBed(t, nil, os.Getenv(spikeHost))
	switch kind {
	case "rpc":
		rpcServe(t, b)
	case "h2":
		h2Serve(t, b)
	default: // HTTP/1, to compare with
		b.serve()
	}
	fmt.Printf("at %s\n", b.addr)
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		t.Error(err)
	}
}

// startSpike starts a spike's proxy and returns its address and the CPU time it
// has used.
func startSpike(b *testing.B, kind, host string) (addr string, cpu func() time.Duration) {
	args := []string{os.Args[0], "-test.run=^TestSpikeProcess$"}
	if path, err := exec.LookPath("taskset"); err == nil {
		args = append([]string{path, "-c", "1"}, args...)
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), spikeKind+"="+kind, spikeHost+"="+host)
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	r := bufio.NewReader(out)
	b.Cleanup(func() {
		_ = in.Close()
		rest, _ := io.ReadAll(r) // a broken pipe shows in Wait too
		if err := cmd.Wait(); err != nil {
			b.Errorf("%v: %s", err, rest)
		}
	})
	line, err := r.ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	return strings.TrimSpace(strings.TrimPrefix(line, "at ")), func() time.Duration {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", cmd.Process.Pid))
		if err != nil {
			b.Fatal(err)
		}
		fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
		var ticks int64
		for _, f := range fields[11:13] { // utime, stime, in hundredths of a second
			n, err := strconv.ParseInt(string(f), 10, 64)
			if err != nil {
				b.Fatal(err)
			}
			ticks += n
		}
		return time.Duration(ticks) * 10 * time.Millisecond
	}
}

// report tells what n calls cost the proxy.
func report(b *testing.B, cpu time.Duration, n int) {
	b.ReportMetric(float64(cpu.Microseconds())/float64(n), "cpu-us/call")
}

// 32 connections of callers, 8 calls under way on each, one connection to the host.
func BenchmarkSpikeRPC(b *testing.B) {
	for _, size := range []int{128, 1024} {
		b.Run(fmt.Sprintf("%d bytes", size), func(b *testing.B) {
			host := rpcHost(b)
			addr, cpu := startSpike(b, "rpc", host.addr())
			rpcClients(b, addr, 32, 8, 8, size)
			calls := max(b.N/(32*8), 1) * 8
			b.ResetTimer()
			before := cpu()
			rpcClients(b, addr, 32, 8, calls, size)
			report(b, cpu()-before, 32*calls)
		})
	}
}

// h2load's 8 connections with 16 streams each, one connection to nginx.
func BenchmarkSpikeHTTP2(b *testing.B) {
	addr, cpu := startSpike(b, "h2", nginx(b))
	h2load(b, addr, 1000)
	n := max(b.N, 128)
	b.ResetTimer()
	before := cpu()
	h2load(b, addr, n)
	report(b, cpu()-before, n)
}

func h2load(b *testing.B, addr string, n int) {
	out, err := exec.Command("h2load", "-c8", "-m16", "-n", strconv.Itoa(n), "http://"+addr+"/").CombinedOutput()
	if want := fmt.Sprintf("%d succeeded, 0 failed", n); err != nil || !bytes.Contains(out, []byte(want)) {
		b.Fatalf("h2load: %v, want %s:\n%s", err, want, out)
	}
}

// nginx starts a server that answers 1 KiB over HTTP/2 and returns its address.
func nginx(b *testing.B) string {
	path, err := exec.LookPath("nginx")
	if err != nil {
		if path, err = exec.LookPath("/usr/sbin/nginx"); err != nil {
			b.Skip(err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close() // its port is free for a moment
	dir := b.TempDir()
	config := fmt.Sprintf("daemon off; master_process off; pid %[1]s/pid; error_log stderr; events {}\n"+
		"http { access_log off; client_body_temp_path %[1]s/a; proxy_temp_path %[1]s/b; fastcgi_temp_path %[1]s/c; uwsgi_temp_path %[1]s/d; scgi_temp_path %[1]s/e;\n"+
		"server { listen %[2]s http2; http2_max_concurrent_streams 1000; keepalive_requests 1000000000; location / { return 200 '%[3]s'; } } }\n",
		dir, addr, strings.Repeat("x", 1024))
	if err := os.WriteFile(dir+"/nginx.conf", []byte(config), 0o600); err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(path, "-p", dir, "-e", "stderr", "-c", dir+"/nginx.conf")
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
	})
	eventually(b, "nginx listens", func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
	return addr
}

// The real HTTP/1 codec on 32 connections, to set the spikes' figures beside.
func BenchmarkSpikeBesideHTTP1(b *testing.B) {
	host := fixedServer(b)
	addr, cpu := startSpike(b, "http1", host)
	clients(b, addr, 32, 10)
	each := max(b.N/32, 1)
	b.ResetTimer()
	before := cpu()
	clients(b, addr, 32, each)
	report(b, cpu()-before, 32*each)
}

// clients makes n requests over each of some connections.
func clients(b *testing.B, addr string, connections, n int) {
	var wg sync.WaitGroup
	for range connections {
		one := keepAliveAt(b, addr)
		wg.Go(func() {
			for range n {
				one()
			}
		})
	}
	wg.Wait()
}
