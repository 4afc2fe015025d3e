package portcullis.plugins;

import com.google.gson.Gson;
import java.util.Map;
import org.apache.apisix.plugin.runner.PostRequest;
import org.apache.apisix.plugin.runner.PostResponse;
import org.apache.apisix.plugin.runner.filter.PluginFilter;
import org.apache.apisix.plugin.runner.filter.PluginFilterChain;
import org.springframework.stereotype.Component;

/** Changes what the client gets, in a route with ext-plugin-post-resp. */
@Component
public class Response implements PluginFilter {
    /** What stands in the route; everything may be left out. */
    static class Conf {
        int status;
        Map<String, String> headers = Map.of();
        String body;
        String append;
    }

    private final Gson gson = new Gson();

    @Override
    public String name() {
        return "response";
    }

    @Override
    public void postFilter(PostRequest request, PostResponse response, PluginFilterChain chain) {
        Conf conf = gson.fromJson(request.getConfig(this), Conf.class);
        if (conf.status != 0) {
            response.setStatusCode(conf.status);
        }
        conf.headers.forEach(response::setHeader);
        if (conf.body != null) {
            response.setBody(conf.body);
        }
        if (conf.append != null) {
            String sent = request.getBody();
            response.setBody((sent == null ? "" : sent) + conf.append);
        }
        chain.postFilter(request, response);
    }

    /** Said once for all routes: the gateway holds every response back for this plugin. */
    @Override
    public Boolean requiredRespBody() {
        return true;
    }
}
