//go:build integration

package e2e_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/testenv"
	"github.com/isthmus-mesh/isthmus/testenv/echo"
	"github.com/isthmus-mesh/isthmus/testenv/echo/echotest"
	"github.com/isthmus-mesh/isthmus/testenv/openloop"
	"github.com/isthmus-mesh/isthmus/testenv/peers"
)

// says succeeds when a GET answers the status and a body that holds every part.
func says(url string, want int, parts ...string) func(context.Context) error {
	return func(ctx context.Context) error {
		status, body, err := get(ctx, http.DefaultClient, url)
		if err != nil {
			return err
		}
		for _, part := range parts {
			if status != want || !strings.Contains(body, part) {
				return fmt.Errorf("%s: status %d, want %d, with %q in:\n%s", url, status, want, part, body)
			}
		}
		return nil
	}
}

// TestRegistryOutageAtStart: a MeshServer starts while one registry is down that
// it knew and another that it never read. Each is named in one sentence, what was
// known is served, and the return of the first mends it.
func TestRegistryOutageAtStart(t *testing.T) {
	z := peers.StartZooKeeper(t)
	never := &peers.Consul{Scheme: "http", Addr: fmt.Sprintf("127.0.0.1:%d", peers.FreePort(t))}
	mesh := testenv.Start(t, testenv.Config{ZooKeeper: z, Consul: never, More: "startWait: 500ms"})
	a := echotest.Start(t, echo.Config{ID: "a", Version: "v1"})
	springInstance(t, z, "cart", "a", a)
	client := mesh.Sidecar(testenv.Workload{Name: "web", App: "web"})
	eventually(t, "the instance arrives", uses(client, "cart", a))
	mesh.Stop()
	z.Kill()
	mesh.Start()

	const refused = "connect: connection refused"
	eventually(t, "readiness names both", says("http://"+mesh.Ops+"/readyz", http.StatusOK, "degraded\n", "xds: ok\n",
		"source zk-main: degraded stale: ", "source consul-main: degraded syncing: ", never.Addr+": "+refused, z.Addr+": "+refused))
	for _, args := range [][]string{{"status"}, {"source", "list"}} {
		eventually(t, "so does meshctl", shows(mesh, []string{"zk-main", "stale", z.Addr + ": " + refused, "consul-main", "syncing", never.Addr + ": " + refused}, args...))
	}
	for line := range strings.Lines(mesh.Ctl("status")) {
		if strings.HasPrefix(line, "source ") && strings.Count(line, refused) > 1 {
			t.Errorf("more than one sentence: %s", line)
		}
	}
	eventually(t, "what was known is served", shows(mesh, []string{a, "zk-main"}, "service", "show", "cart"))
	late := mesh.Sidecar(testenv.Workload{Name: "late", App: "web"})
	eventually(t, "also to who comes now", answers(caller(t, late.Proxy), "http://cart/", `"id":"a"`))

	z.Start()
	eventually(t, "the registry is live again", shows(mesh, []string{"source zk-main:\tok"}, "status"))
	eventually(t, "nothing was lost", shows(mesh, []string{a}, "service", "show", "cart"))
}

// TestSidecarAwaitsItsPort: whose inbound port another process holds is not
// registered, says so, and mends itself when the port is free.
func TestSidecarAwaitsItsPort(t *testing.T) {
	mesh := testenv.Start(t, testenv.Config{})
	taken, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", peers.FreePort(t)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }() // closed below; this is for a failure before
	at := taken.Addr().String()
	app := echotest.Start(t, echo.Config{ID: "cart-1", Version: "v1"})
	s := mesh.Sidecar(testenv.Workload{Name: "cart-1", App: "cart", Port: app, Service: "cart", Inbound: at, Early: true})
	eventually(t, "readiness names the port", says("http://"+s.Admin+"/ready", http.StatusServiceUnavailable, "NOT READY", at+" is in use by another process"))
	if out := mesh.Ctl("workload", "list"); strings.Contains(out, "cart-1") {
		t.Errorf("registered though it cannot be called:\n%s", out)
	}
	if err := taken.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is ready once the port is free", says("http://"+s.Admin+"/ready", http.StatusOK, "LIVE"))
	client := mesh.Sidecar(testenv.Workload{Name: "web", App: "web"})
	eventually(t, "and called", answers(caller(t, client.Proxy), "http://cart/", `"id":"cart-1"`))
}

// TestSidecarStop: SIGTERM under load. The workload leaves the registry, callers
// hear of it, only then does the port close; requests under way are finished and
// none fails.
func TestSidecarStop(t *testing.T) {
	mesh := testenv.Start(t, testenv.Config{})
	a, b := meshedEcho(t, mesh, "cart", "cart-a"), meshedEcho(t, mesh, "cart", "cart-b")
	client := mesh.Sidecar(testenv.Workload{Name: "web", App: "web"})
	eventually(t, "both instances arrive", uses(client, "cart", a.Inbound, b.Inbound))
	noneFailed(t, underLoad(t, client.Proxy, "cart", func(*openloop.Loop) {
		slow, err := net.Dial("tcp", b.Inbound)
		if err != nil {
			t.Fatal(err)
		}
		defer slow.Close()
		if _, err := io.WriteString(slow, "GET /?delay=1500ms HTTP/1.1\r\nHost: cart\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		ended, closed := make(chan struct{}), make(chan time.Time, 1)
		go func() {
			defer close(ended)
			b.Stop()
		}()
		go func() { closed <- refusedAt(t.Context(), b.Inbound) }()
		eventually(t, "callers leave the instance", uses(client, "cart", a.Inbound))
		left := time.Now()
		if at := <-closed; at.Before(left) {
			t.Errorf("the port closed %v before callers had left", left.Sub(at))
		}
		resp, err := http.ReadResponse(bufio.NewReader(slow), nil)
		if err != nil {
			t.Fatalf("the slow request: %v", err)
		}
		defer resp.Body.Close()
		if body, err := readAll(resp); err != nil || !strings.Contains(body, `"id":"cart-b"`) {
			t.Errorf("the slow request: %v %s", err, body)
		}
		<-ended
	}))
	if out := b.Output(); !strings.Contains(out, `"msg":"stopped"`) {
		t.Errorf("it did not end in order:\n%s", out)
	}
}

// refusedAt is when addr began to refuse connections.
func refusedAt(ctx context.Context, addr string) time.Time {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err != nil {
			return time.Now()
		}
		_ = c.Close()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return time.Now()
		}
	}
}

// smallDisk mounts a disk of so many KiB, or skips the test where that is not
// allowed.
func smallDisk(t *testing.T, kib int) (dir string) {
	t.Helper()
	dir = t.TempDir()
	err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dk,mode=0700", kib))
	if errors.Is(err, os.ErrPermission) {
		t.Skipf("a small disk cannot be mounted: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

// fill takes all that is left of the disk, until the returned func frees it.
func fill(t *testing.T, dir string) (free func()) {
	t.Helper()
	name := filepath.Join(dir, "filler")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for block := make([]byte, 1<<10); err == nil; {
		_, err = f.Write(block)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("filling the disk ends with %v", err)
	}
	return func() {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFullDiskOfSidecar: a sidecar that cannot keep its configuration serves, says
// so, and keeps it once there is room.
func TestFullDiskOfSidecar(t *testing.T) {
	disk := smallDisk(t, 256)
	mesh := testenv.Start(t, testenv.Config{})
	meshedEcho(t, mesh, "cart", "cart-a")
	free := fill(t, disk)
	client := mesh.Sidecar(testenv.Workload{Name: "web", App: "web", DataDir: disk})
	c := caller(t, client.Proxy)
	eventually(t, "it serves", answers(c, "http://cart/", `"id":"cart-a"`))
	eventually(t, "and says what is wrong", says("http://"+client.Admin+"/ready", http.StatusOK, "last configuration: not kept: ", "no space left on device"))
	free()
	// The next change is kept, and with it all.
	added := meshedEcho(t, mesh, "cart", "cart-b")
	eventually(t, "the change arrives", func(ctx context.Context) error {
		status, body, err := get(ctx, http.DefaultClient, "http://"+client.Admin+"/clusters")
		if err == nil && (status != http.StatusOK || !strings.Contains(body, added.Inbound)) {
			err = fmt.Errorf("status %d, no %s in\n%s", status, added.Inbound, body)
		}
		return err
	})
	eventually(t, "nothing is wrong any more", func(ctx context.Context) error {
		_, body, err := get(ctx, http.DefaultClient, "http://"+client.Admin+"/ready")
		if err == nil && strings.Contains(body, "not kept") {
			err = errors.New(body)
		}
		return err
	})
	mesh.Kill()
	client.Kill()
	client.Start()
	eventually(t, "it starts from what it kept", answers(caller(t, client.Proxy), "http://cart/", `"id":"cart-`))
}

// TestFullDiskOfMeshServer: with a full disk a rule is refused in one sentence and
// nothing else changes; once there is room rules are taken again, and what was
// acknowledged survives a kill.
func TestFullDiskOfMeshServer(t *testing.T) {
	disk := smallDisk(t, 2048)
	mesh := testenv.Start(t, testenv.Config{DataDir: disk})
	a := meshedEcho(t, mesh, "cart", "cart-a")
	client := mesh.Sidecar(testenv.Workload{Name: "web", App: "web"})
	c := caller(t, client.Proxy)
	direct := func(n int) string {
		// Long, so that it does not fit into what the store has left of a page.
		body := fmt.Sprintf("rule %d %s", n, strings.Repeat("x", 3000))
		return fmt.Sprintf("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: cart}\nspec: {hosts: [cart], http: [{directResponse: {status: 200, body: {string: %q}}}]}\n", body)
	}
	mesh.Apply(direct(1))
	eventually(t, "a rule holds", answers(c, "http://cart/", "rule 1 "))

	free := fill(t, disk)
	var acknowledged int
	var refusal error
	for n := 2; n < 400 && refusal == nil; n++ { // until the store has to grow
		if _, refusal = mesh.AskWith(direct(n), "rule", "apply", "-f", "-", "--author", "test"); refusal == nil {
			acknowledged = n
		}
	}
	if refusal == nil || !strings.Contains(refusal.Error(), "disk") {
		t.Fatalf("a full disk: %v, want a sentence about the disk", refusal)
	}
	t.Logf("refused after rule %d: %v", acknowledged, refusal)
	if acknowledged == 0 {
		acknowledged = 1
	}
	last := fmt.Sprintf("rule %d ", acknowledged)
	eventually(t, "the last acknowledged rule holds", answers(c, "http://cart/", last))
	if out := mesh.Ctl("rule", "get", "virtualservice/default/cart"); !strings.Contains(out, last) {
		t.Errorf("the store shows another rule, want %q in\n%.400s", last, out)
	}
	added := meshedEcho(t, mesh, "cart", "cart-b")
	eventually(t, "endpoints still come", uses(client, "cart", a.Inbound, added.Inbound))
	for n := range 30 { // until the leases file has to grow
		register(t, mesh, "--app", fmt.Sprintf("filler-%d", n), "--label", "why="+strings.Repeat("x", 200))
	}
	eventually(t, "readiness says what is not kept", says("http://"+mesh.Ops+"/readyz", http.StatusOK, "degraded\n", "source builtin: degraded leases file: ", "no space left on device"))
	eventually(t, "so does meshctl", shows(mesh, []string{"source builtin:\tdegraded\tleases file: ", "no space left on device"}, "status"))
	free()
	mesh.Apply(direct(1000))
	eventually(t, "with room again a rule is taken", answers(c, "http://cart/", "rule 1000 "))
	eventually(t, "nothing is wrong any more", shows(mesh, []string{"source builtin:\tok"}, "status"))
	mesh.Kill()
	mesh.Start()
	if out := mesh.Ctl("rule", "get", "virtualservice/default/cart"); !strings.Contains(out, "rule 1000 ") {
		t.Errorf("lost by a kill:\n%.400s", out)
	}
}
