package isthmus.peers.dubbo;

import java.net.InetAddress;
import org.apache.dubbo.common.utils.NetUtils;

/**
 * Makes Dubbo advertise 127.0.0.1. Dubbo refuses any loopback address in its settings and takes the
 * first network card instead, so the address goes straight into its cache.
 */
final class Loopback {
  private Loopback() {}

  static void advertise() throws ReflectiveOperationException, java.net.UnknownHostException {
    String ip = "127.0.0.1";
    for (String name : new String[] {"LOCAL_ADDRESS", "HOST_ADDRESS"}) {
      var field = NetUtils.class.getDeclaredField(name);
      field.setAccessible(true);
      field.set(null, field.getType() == String.class ? ip : InetAddress.getByName(ip));
    }
  }
}
