package portcullis.plugins;

import org.springframework.boot.SpringApplication;
import org.springframework.boot.autoconfigure.SpringBootApplication;

/** A runner with the plugins of this package: Apache's module finds every bean that is a PluginFilter. */
@SpringBootApplication(scanBasePackages = {"portcullis.plugins", "org.apache.apisix.plugin.runner"})
public class Main {
    public static void main(String[] arguments) {
        SpringApplication.run(Main.class, arguments);
    }
}
