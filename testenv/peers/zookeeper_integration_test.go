//go:build integration

package peers_test

import (
	"testing"
	"time"

	"github.com/go-zookeeper/zk"

	"github.com/isthmus-mesh/isthmus/testenv/peers"
)

func TestZooKeeperKeepsItsDataOverAKill(t *testing.T) {
	var pid int
	t.Run("inner", func(t *testing.T) {
		server := peers.StartZooKeeper(t)
		pid = server.Pid()
		conn := dialZooKeeper(t, server.Addr)
		if _, err := conn.Create("/cart", []byte("full"), 0, zk.WorldACL(zk.PermAll)); err != nil {
			t.Fatal(err)
		}
		server.Kill()
		server.Start()
		pid = server.Pid()
		got, _, err := conn.Get("/cart")
		if err != nil || string(got) != "full" {
			t.Errorf("after the kill: got %q, %v; want full", got, err)
		}
		server.Stop()
		server.Start()
		pid = server.Pid()
	})
	ended(t, pid)
}

func TestZooKeeperTakesSettings(t *testing.T) {
	server := peers.StartZooKeeper(t, "maxSessionTimeout=2000")
	conn := dialZooKeeper(t, server.Addr)
	if _, _, err := conn.Exists("/"); err != nil {
		t.Error(err)
	}
}

func dialZooKeeper(t *testing.T, addr string) *zk.Conn {
	t.Helper()
	conn, _, err := zk.Connect([]string{addr}, 10*time.Second, zk.WithLogger(silent{}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	return conn
}

// silent drops what the client logs about the connections that the tests cut.
type silent struct{}

func (silent) Printf(string, ...any) {}
