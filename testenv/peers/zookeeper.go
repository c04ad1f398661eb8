package peers

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// ZooKeeper is a real server with one node. Its data survives Stop, Kill and Start.
type ZooKeeper struct {
	*Process
	Addr string // host:port, also the connection string of clients
}

// StartZooKeeper starts a server. Sessions last between 1 s and 10 s, whatever
// the client asks for, and are checked every 500 ms. The settings, lines of
// zoo.cfg, come last and win: "maxSessionTimeout=2000".
func StartZooKeeper(t testing.TB, settings ...string) *ZooKeeper {
	t.Helper()
	dir, addr := t.TempDir(), freeAddr(t)
	lines := append([]string{
		"dataDir=" + filepath.Join(dir, "data"),
		"clientPortAddress=127.0.0.1",
		"clientPort=" + portOf(t, addr),
		"tickTime=500", // milliseconds; sessions are 2 to 20 of them
		"maxClientCnxns=0",
		"admin.enableServer=false",
		"4lw.commands.whitelist=*",
	}, settings...)
	config := filepath.Join(dir, "zoo.cfg")
	if err := os.WriteFile(config, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	zk := &ZooKeeper{Addr: addr, Process: newJava(t, JavaApp{
		Module: "zookeeper",
		Main:   "org.apache.zookeeper.server.quorum.QuorumPeerMain",
		Args:   []string{config},
		// A killed process loses nothing that it wrote; only a power cut does.
		Properties: []string{"zookeeper.forceSync=no"},
	})}
	zk.ready = func(ctx context.Context, _ *output) error { return zooKeeperServes(ctx, addr) }
	zk.launch()
	return zk
}

// zooKeeperServes asks for the server's mode. The command ruok would answer
// before it serves.
func zooKeeperServes(ctx context.Context, addr string) error {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, "srvr"); err != nil {
		return err
	}
	answer, err := io.ReadAll(conn)
	if err != nil {
		return err
	}
	if !strings.Contains(string(answer), "\nMode: ") {
		return fmt.Errorf("srvr answers %q", answer)
	}
	return nil
}
