package portcullis.plugins;

import com.google.gson.Gson;
import org.apache.apisix.plugin.runner.HttpRequest;
import org.apache.apisix.plugin.runner.HttpResponse;
import org.apache.apisix.plugin.runner.PostRequest;
import org.apache.apisix.plugin.runner.PostResponse;
import org.apache.apisix.plugin.runner.filter.PluginFilter;
import org.apache.apisix.plugin.runner.filter.PluginFilterChain;
import org.springframework.stereotype.Component;

/** The plugin {NAME}. */
@Component
public class {CLASS} implements PluginFilter {
    /** What stands in the route; both may be left out. */
    static class Conf {
        String header = "X-Checked";
        String value = "yes";
    }

    private final Gson gson = new Gson();

    @Override
    public String name() {
        return "{NAME}"; // what routes call it
    }

    @Override
    public void filter(HttpRequest request, HttpResponse response, PluginFilterChain chain) {
        if (request.getArgs() != null && request.getArgs().containsKey("stop")) {
            System.out.println("stopped: " + request.getSourceIP()); // goes to the gateway's log
            response.setStatusCode(403); // answers, nothing reaches the upstream
            response.setBody("stopped by {NAME}\n");
            return;
        }
        String text = request.getConfig(this);
        Conf conf = text == null || text.isEmpty() ? new Conf() : gson.fromJson(text, Conf.class);
        request.setHeader(conf.header, conf.value); // goes on to the upstream
        chain.filter(request, response);
    }

    @Override
    public void postFilter(PostRequest request, PostResponse response, PluginFilterChain chain) {
        response.setHeader("X-Plugin", "{NAME}");
        chain.postFilter(request, response);
    }
}
