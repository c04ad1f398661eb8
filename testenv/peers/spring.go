package peers

import "testing"

// SpringConfig describes a Spring Cloud application.
type SpringConfig struct {
	Name      string // of the application, and so of its service; default "greeting"
	ID        string // of the instance, in its answers; default Name
	ZooKeeper string // address of the registry, or
	Consul    string // address of the agent's HTTP port; with neither it registers nowhere
	Target    string // service that GET /call calls; default "greeting"

	// Args come last and win: "--spring.cloud.zookeeper.discovery.root=/other".
	Args []string
}

// Spring is a running Spring Cloud application.
type Spring struct {
	*Process
	Addr string // host:port of its HTTP server, which is what it registers
}

// StartSpring starts an application that serves GET /sayHello?name=x, POST /echo
// and GET /call?name=x (which calls /sayHello of Target by Spring's own load
// balancer). It answers "hello x from <ID> host=<Host header>".
func StartSpring(t testing.TB, cfg SpringConfig) *Spring {
	t.Helper()
	addr := freeAddr(t)
	name := orDefault(cfg.Name, "greeting")
	args := []string{
		"--spring.main.banner-mode=off",
		"--spring.jmx.enabled=false",
		"--server.address=127.0.0.1",
		"--server.port=" + portOf(t, addr),
		"--spring.application.name=" + name,
		"--spring.cloud.loadbalancer.cache.ttl=1s",
		"--target=" + orDefault(cfg.Target, "greeting"),
		"--peers.id=" + orDefault(cfg.ID, name),
	}
	if cfg.ZooKeeper != "" {
		args = append(args,
			"--spring.cloud.zookeeper.connect-string="+cfg.ZooKeeper,
			"--spring.cloud.zookeeper.discovery.instance-host=127.0.0.1",
		)
	} else {
		args = append(args, "--spring.cloud.zookeeper.enabled=false", "--spring.cloud.zookeeper.discovery.enabled=false")
	}
	if cfg.Consul != "" {
		args = append(args,
			"--spring.cloud.consul.host=127.0.0.1",
			"--spring.cloud.consul.port="+portOf(t, cfg.Consul),
			"--spring.cloud.consul.discovery.hostname=127.0.0.1",
			"--spring.cloud.consul.discovery.instance-id="+name+"-"+portOf(t, addr),
			"--spring.cloud.consul.discovery.health-check-interval=1s",
		)
	} else {
		args = append(args, "--spring.cloud.consul.enabled=false", "--spring.cloud.consul.discovery.enabled=false")
	}
	app := JavaApp{Module: "spring", Main: "isthmus.peers.spring.App", Args: append(args, cfg.Args...)}
	return &Spring{Process: StartJava(t, app), Addr: addr}
}
