package isthmus.peers.dubbo;

/** The one service of these applications. */
public interface GreetingService {
  /** Greets, and says who does: {@code hello NAME from ID attach={...}}. The name "boom" is an exception. */
  String sayHello(String name);
}
