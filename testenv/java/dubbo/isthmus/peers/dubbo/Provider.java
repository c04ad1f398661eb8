package isthmus.peers.dubbo;

import java.util.TreeMap;
import org.apache.dubbo.config.ServiceConfig;
import org.apache.dubbo.config.bootstrap.DubboBootstrap;
import org.apache.dubbo.rpc.RpcContext;

/**
 * Provides {@link GreetingService}. Dubbo's own settings come as {@code -Ddubbo.*}; {@code -Dpeers.id}
 * names the provider in its answers, {@code -Dpeers.group} and {@code -Dpeers.version} are the service's.
 * Prints {@code READY} when it serves and is registered.
 */
public final class Provider {
  private Provider() {}

  public static void main(String[] args) throws Exception {
    Loopback.advertise();
    ServiceConfig<GreetingService> service = new ServiceConfig<>();
    service.setInterface(GreetingService.class);
    service.setRef(Provider::greet);
    service.setGroup(System.getProperty("peers.group"));
    service.setVersion(System.getProperty("peers.version"));
    DubboBootstrap.getInstance().service(service).start();
    System.out.println("READY");
    DubboBootstrap.getInstance().await();
  }

  private static String greet(String name) {
    if (name.equals("boom")) {
      throw new IllegalStateException("boom");
    }
    var attachments = new TreeMap<>(RpcContext.getContext().getAttachments());
    return "hello " + name + " from " + System.getProperty("peers.id", "provider") + " attach=" + attachments;
  }
}
