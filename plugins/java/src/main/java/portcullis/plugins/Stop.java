package portcullis.plugins;

import com.google.gson.Gson;
import java.util.Map;
import org.apache.apisix.plugin.runner.HttpRequest;
import org.apache.apisix.plugin.runner.HttpResponse;
import org.apache.apisix.plugin.runner.filter.PluginFilter;
import org.apache.apisix.plugin.runner.filter.PluginFilterChain;
import org.springframework.stereotype.Component;

/** Answers every request itself. */
@Component
public class Stop implements PluginFilter {
    /** What stands in the route; everything may be left out. */
    static class Conf {
        int status;
        Map<String, String> headers = Map.of();
        String body;
    }

    private final Gson gson = new Gson();

    @Override
    public String name() {
        return "stop";
    }

    @Override
    public void filter(HttpRequest request, HttpResponse response, PluginFilterChain chain) {
        answer(gson.fromJson(request.getConfig(this), Conf.class), response);
        // A filter that answers does not call the chain, or the next one would run as well. The runner sends the
        // answer when all filters have returned.
    }

    static void answer(Conf conf, HttpResponse response) {
        if (conf.status != 0) {
            response.setStatusCode(conf.status);
        }
        conf.headers.forEach(response::setHeader);
        if (conf.body != null) {
            response.setBody(conf.body);
        }
    }
}
