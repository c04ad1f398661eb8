package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-zookeeper/zk"

	"github.com/isthmus-mesh/isthmus/bridges/zookeeper/wire"
	"github.com/isthmus-mesh/isthmus/testenv/load/subject"
	"github.com/isthmus-mesh/isthmus/testenv/peers/cache"
)

const sessionTime = 10 * time.Second

func startZooKeeper(ctx context.Context, dir string) (*Registry, error) {
	java, err := exec.LookPath("java")
	if err != nil {
		return nil, fmt.Errorf("%w; it needs JDK 17", err)
	}
	part, err := cache.Java()
	if err != nil {
		return nil, err
	}
	home, err := part.Path("zookeeper")
	if err != nil {
		return nil, err
	}
	at, err := address()
	if err != nil {
		return nil, err
	}
	_, port, _ := strings.Cut(at, ":")
	config := filepath.Join(dir, "zoo.cfg")
	text := fmt.Sprintf("dataDir=%s\nclientPortAddress=127.0.0.1\nclientPort=%s\ntickTime=2000\nmaxClientCnxns=0\nadmin.enableServer=false\n4lw.commands.whitelist=*\n",
		filepath.Join(dir, "zookeeper-data"), port)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	p, err := subject.Start(subject.Command{
		Name: ZooKeeper, Path: java, Dir: dir, Core: subject.AnyCore,
		Args: []string{
			// The disk is not what is measured.
			"-Dzookeeper.forceSync=no",
			"-Xmx200m", "-XX:+UseSerialGC", "-XX:-UsePerfData", "-Duser.home=" + dir, "-cp", filepath.Join(home, "classes") + ":" + filepath.Join(home, "lib") + "/*",
			"org.apache.zookeeper.server.quorum.QuorumPeerMain", config,
		},
	})
	if err != nil {
		return nil, err
	}
	r := &Registry{process: p, Settings: fmt.Sprintf("- {name: %s, zookeeper: {servers: [%q]}}", ZooKeeper, at)}
	if err := p.Await(ctx, func(ctx context.Context) error { return serves(ctx, at) }); err != nil {
		return nil, errors.Join(err, p.Stop())
	}
	conn, _, err := zk.Connect([]string{at}, sessionTime, zk.WithLogInfo(false))
	if err != nil {
		return nil, errors.Join(err, p.Stop())
	}
	r.leave = conn.Close
	r.Register = func(_ context.Context, i Instance) error { return register(conn, i) }
	return r, nil
}

// serves asks for the server's mode. The command ruok would answer before it serves.
func serves(ctx context.Context, at string) error {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", at)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, "srvr"); err != nil {
		return err
	}
	answer, err := io.ReadAll(conn)
	if err == nil && !strings.Contains(string(answer), "\nMode: ") {
		err = fmt.Errorf("srvr answers %q", answer)
	}
	return err
}

// register does what Spring Cloud ZooKeeper does.
func register(conn *zk.Conn, i Instance) error {
	id := fmt.Sprintf("%s-%d", i.Service, i.Address.Port())
	data, err := wire.Instance{
		Name: i.Service, ID: id, Address: i.Address.Addr(), Port: i.Address.Port(), Class: wire.ClassSpring, Enabled: true, Registered: time.Now(),
		Metadata: map[string]string{"instance_status": "UP"},
	}.Encode()
	if err != nil {
		return err
	}
	path := "/services/" + i.Service + "/" + id
	_, err = conn.Create(path, data, zk.FlagEphemeral, zk.WorldACL(zk.PermAll))
	if !errors.Is(err, zk.ErrNoNode) {
		return err
	}
	for _, folder := range []string{"/services", "/services/" + i.Service} {
		if _, err := conn.Create(folder, nil, zk.FlagPersistent, zk.WorldACL(zk.PermAll)); err != nil && !errors.Is(err, zk.ErrNodeExists) {
			return err
		}
	}
	_, err = conn.Create(path, data, zk.FlagEphemeral, zk.WorldACL(zk.PermAll))
	return err
}
