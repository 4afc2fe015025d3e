package portcullis.plugins;

import com.google.gson.Gson;
import java.util.Map;
import org.apache.apisix.plugin.runner.HttpRequest;
import org.apache.apisix.plugin.runner.HttpResponse;
import org.apache.apisix.plugin.runner.filter.PluginFilter;
import org.apache.apisix.plugin.runner.filter.PluginFilterChain;
import org.springframework.stereotype.Component;

/** Changes what the upstream gets. Apache's module changes neither the body nor headers of the response from here. */
@Component
public class Rewrite implements PluginFilter {
    /** What stands in the route; everything may be left out. */
    static class Conf {
        String path;
        Map<String, String> headers = Map.of();
        Map<String, String> args = Map.of();
    }

    private final Gson gson = new Gson();

    @Override
    public String name() {
        return "rewrite";
    }

    @Override
    public void filter(HttpRequest request, HttpResponse response, PluginFilterChain chain) {
        Conf conf = gson.fromJson(request.getConfig(this), Conf.class);
        if (conf.path != null) {
            request.setPath(conf.path);
        }
        conf.headers.forEach(request::setHeader);
        conf.args.forEach(request::setArg);
        chain.filter(request, response);
    }
}
