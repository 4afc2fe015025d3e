package portcullis.plugins;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNull;

import com.google.gson.Gson;
import java.util.List;
import java.util.Map;
import org.apache.apisix.plugin.runner.filter.PluginFilter;
import org.junit.jupiter.api.Test;

class PluginsTest {
    private final Gson gson = new Gson();

    @Test
    void namesAreThoseOfTheRoutes() {
        List<PluginFilter> filters = List.of(new Stop(), new Rewrite(), new Response(), new Inspect());
        Object[] names = filters.stream().map(PluginFilter::name).toArray();
        assertEquals(List.of("stop", "rewrite", "response", "inspect"), List.of(names));
    }

    @Test
    void whatIsLeftOutIsEmpty() {
        Stop.Conf conf = gson.fromJson("{}", Stop.Conf.class);
        assertEquals(0, conf.status);
        assertEquals(Map.of(), conf.headers);
        assertNull(conf.body);
    }

    @Test
    void aConfigurationIsRead() {
        Stop.Conf conf = gson.fromJson("{\"status\": 403, \"headers\": {\"A\": \"b\"}, \"body\": \"no\"}", Stop.Conf.class);
        assertEquals(403, conf.status);
        assertEquals(Map.of("A", "b"), conf.headers);
        assertEquals("no", conf.body);
    }
}
