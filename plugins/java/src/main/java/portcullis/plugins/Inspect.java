package portcullis.plugins;

import com.google.gson.Gson;
import java.nio.charset.StandardCharsets;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.apache.apisix.plugin.runner.HttpRequest;
import org.apache.apisix.plugin.runner.HttpResponse;
import org.apache.apisix.plugin.runner.filter.PluginFilter;
import org.apache.apisix.plugin.runner.filter.PluginFilterChain;
import org.springframework.stereotype.Component;

/** Answers with what it sees, or fails, to show what becomes of that. */
@Component
public class Inspect implements PluginFilter {
    /** What stands in the route. */
    static class Conf {
        boolean fail;
    }

    private final Gson gson = new Gson();

    @Override
    public String name() {
        return "inspect";
    }

    @Override
    public void filter(HttpRequest request, HttpResponse response, PluginFilterChain chain) {
        if (gson.fromJson(request.getConfig(this), Conf.class).fail) {
            throw new IllegalStateException("this plugin was told to fail");
        }
        String body = request.getBody();
        Map<String, Object> seen = new LinkedHashMap<>();
        seen.put("method", request.getMethod().toString());
        seen.put("path", request.getPath());
        seen.put("args", request.getArgs());
        seen.put("headers", request.getHeaders());
        seen.put("remote_addr", request.getSourceIP());
        seen.put("route_id", request.getVars("route_id"));
        seen.put("body_length", body == null ? 0 : body.getBytes(StandardCharsets.UTF_8).length);
        response.setBody(gson.toJson(seen));
    }

    /** Everything that a filter wants to ask is said beforehand. */
    @Override
    public List<String> requiredVars() {
        return List.of("route_id");
    }

    @Override
    public Boolean requiredBody() {
        return true;
    }
}
