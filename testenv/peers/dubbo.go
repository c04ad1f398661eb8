package peers

import "testing"

// DubboRelease is a line of Dubbo releases.
type DubboRelease string

// The releases that testenv/java has, as its folders.
const (
	Dubbo3 DubboRelease = "dubbo3" // 3.3
	Dubbo2 DubboRelease = "dubbo2" // 2.7
)

// DubboInterface is the Java name of the service of these applications. Its
// method is String sayHello(String).
const DubboInterface = "isthmus.peers.dubbo.GreetingService"

// DubboConfig describes a Dubbo provider or consumer.
type DubboConfig struct {
	Release   DubboRelease // default Dubbo3
	ZooKeeper string       // address of the registry; none if empty
	URL       string       // consumer only: "dubbo://host:port" to call, past the registry
	ID        string       // provider only: its name in its answers; default "provider"
	Group     string       // of the service; none if empty
	Version   string       // of the service; none if empty

	// Properties are "key=value" for Dubbo itself. They come last and win:
	// "dubbo.application.register-mode=interface", "dubbo.protocol.name=tri".
	Properties []string
}

// Dubbo is a running provider or consumer.
type Dubbo struct {
	*Process
	Addr string // host:port: a provider's Dubbo protocol, a consumer's HTTP
}

// StartDubboProvider starts an application that provides DubboInterface on Addr
// and advertises that address. sayHello("x") returns
// "hello x from <ID> attach={...}", with "boom" it throws.
func StartDubboProvider(t testing.TB, cfg DubboConfig) *Dubbo {
	t.Helper()
	addr := freeAddr(t)
	return startDubbo(t, cfg, "isthmus.peers.dubbo.Provider", addr,
		"dubbo.application.name=greeting-provider",
		"dubbo.protocol.name=dubbo",
		"dubbo.protocol.port="+portOf(t, addr),
		"peers.id="+orDefault(cfg.ID, "provider"),
	)
}

// StartDubboConsumer starts an application that calls DubboInterface whenever
// somebody asks it by HTTP: GET http://Addr/?name=x answers 200 with the result,
// or 500 with the exception. It starts whether or not there is a provider.
func StartDubboConsumer(t testing.TB, cfg DubboConfig) *Dubbo {
	t.Helper()
	addr := freeAddr(t)
	properties := []string{
		"dubbo.application.name=greeting-consumer",
		"peers.http=" + portOf(t, addr),
	}
	if cfg.URL != "" {
		properties = append(properties, "peers.url="+cfg.URL)
	}
	return startDubbo(t, cfg, "isthmus.peers.dubbo.Consumer", addr, properties...)
}

func startDubbo(t testing.TB, cfg DubboConfig, main, addr string, properties ...string) *Dubbo {
	t.Helper()
	registry := "N/A" // Dubbo's word for none
	if cfg.ZooKeeper != "" {
		registry = "zookeeper://" + cfg.ZooKeeper
	}
	properties = append(properties,
		"dubbo.registry.address="+registry,
		"dubbo.application.qos-enable=false", // it would listen on a fixed port
		"dubbo.application.logger=slf4j",
		"dubbo.service.shutdown.wait=0",
		"org.slf4j.simpleLogger.defaultLogLevel=warn",
	)
	if cfg.Group != "" {
		properties = append(properties, "peers.group="+cfg.Group)
	}
	if cfg.Version != "" {
		properties = append(properties, "peers.version="+cfg.Version)
	}
	app := JavaApp{
		Module:     string(orDefault(cfg.Release, Dubbo3)),
		Main:       main,
		Properties: append(properties, cfg.Properties...),
	}
	if cfg.Release == Dubbo2 { // it was written for Java 8
		for _, pkg := range []string{"lang", "math", "util"} {
			app.Options = append(app.Options, "--add-opens=java.base/java."+pkg+"=ALL-UNNAMED")
		}
	}
	return &Dubbo{Process: StartJava(t, app), Addr: addr}
}

func orDefault[T comparable](value, fallback T) T {
	var zero T
	if value == zero {
		return fallback
	}
	return value
}
