package isthmus.peers.dubbo;

import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.util.concurrent.Executors;
import org.apache.dubbo.config.ReferenceConfig;
import org.apache.dubbo.config.bootstrap.DubboBootstrap;

/**
 * Consumes {@link GreetingService} and offers it over HTTP: {@code GET /?name=x} answers 200 with the
 * greeting, or 500 with the exception. {@code -Dpeers.url=dubbo://host:port} calls that address instead
 * of looking into the registry; {@code -Dpeers.http} is the HTTP port on 127.0.0.1.
 * Prints {@code READY} when it listens.
 */
public final class Consumer {
  private Consumer() {}

  public static void main(String[] args) throws Exception {
    Loopback.advertise();
    ReferenceConfig<GreetingService> reference = new ReferenceConfig<>();
    reference.setInterface(GreetingService.class);
    reference.setCheck(false);
    reference.setTimeout(3000);
    reference.setUrl(System.getProperty("peers.url"));
    reference.setGroup(System.getProperty("peers.group"));
    reference.setVersion(System.getProperty("peers.version"));
    DubboBootstrap.getInstance().reference(reference).start();
    GreetingService service = reference.get();

    var address = new InetSocketAddress("127.0.0.1", Integer.getInteger("peers.http"));
    HttpServer server = HttpServer.create(address, 0);
    server.setExecutor(Executors.newFixedThreadPool(16));
    server.createContext("/", exchange -> answer(exchange, service));
    server.start();
    System.out.println("READY");
  }

  private static void answer(HttpExchange exchange, GreetingService service) throws IOException {
    String query = exchange.getRequestURI().getQuery();
    String name = query == null ? "world" : query.replaceFirst("^name=", "");
    int status = 200;
    String text;
    try {
      text = service.sayHello(name);
    } catch (RuntimeException e) {
      status = 500;
      text = e.toString();
    }
    byte[] body = text.getBytes(StandardCharsets.UTF_8);
    exchange.sendResponseHeaders(status, body.length);
    exchange.getResponseBody().write(body);
    exchange.close();
  }
}
