package isthmus.peers.spring;

import java.util.Map;
import org.springframework.beans.factory.annotation.Value;
import org.springframework.boot.SpringApplication;
import org.springframework.boot.autoconfigure.SpringBootApplication;
import org.springframework.boot.context.event.ApplicationReadyEvent;
import org.springframework.cloud.client.loadbalancer.LoadBalanced;
import org.springframework.context.annotation.Bean;
import org.springframework.context.annotation.Configuration;
import org.springframework.context.event.EventListener;
import org.springframework.web.bind.annotation.GetMapping;
import org.springframework.web.bind.annotation.PostMapping;
import org.springframework.web.bind.annotation.RequestBody;
import org.springframework.web.bind.annotation.RequestHeader;
import org.springframework.web.bind.annotation.RequestParam;
import org.springframework.web.bind.annotation.RestController;
import org.springframework.web.client.RestTemplate;

/**
 * An ordinary Spring Cloud application, provider and consumer in one. {@code GET /sayHello?name=x}
 * greets; {@code POST /echo} returns the body; {@code GET /call?name=x} calls /sayHello of the service
 * {@code --target} through Spring's own load balancer. {@code --peers.id} names the instance in its answers.
 * Prints {@code READY} when it serves and is registered.
 */
@SpringBootApplication
@RestController
public class App {
  private final String id;
  private final String target;
  private final RestTemplate balanced;

  App(@Value("${peers.id:app}") String id, @Value("${target:greeting}") String target, RestTemplate balanced) {
    this.id = id;
    this.target = target;
    this.balanced = balanced;
  }

  @GetMapping("/sayHello")
  String sayHello(@RequestParam("name") String name, @RequestHeader Map<String, String> headers) {
    return "hello " + name + " from " + id + " host=" + headers.get("host");
  }

  @PostMapping("/echo")
  byte[] echo(@RequestBody byte[] body) {
    return body;
  }

  @GetMapping("/call")
  String call(@RequestParam("name") String name) {
    return balanced.getForObject("http://" + target + "/sayHello?name={name}", String.class, name);
  }

  @EventListener(ApplicationReadyEvent.class)
  void ready() {
    System.out.println("READY");
  }

  public static void main(String[] args) {
    SpringApplication.run(App.class, args);
  }

  /** The client of /call; a class of its own, since App needs the bean to exist first. */
  @Configuration
  static class Clients {
    @Bean
    @LoadBalanced
    RestTemplate balanced() {
      return new RestTemplate();
    }
  }
}
