//! prometheus: counts responses, latencies and bytes per route, service, consumer and node.
//!
//! APISIX: plugins/prometheus.lua, prometheus/exporter.lua; what is counted stands in `plugin::metrics`.

use std::{borrow::Cow, sync::Arc, time::Duration};

use http::{StatusCode, header};
use pingora::http::ResponseHeader;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::plugin::{
    contract::{self, HookFuture, PublicApi},
    env::BuildEnv,
    exchange::Exchange,
    metrics::{
        self,
        http::{Http, Labels, Latency, Options, REQUEST_TYPE, STATUS_LABELS, TRAFFIC_LABELS},
    },
    phases::Phases,
    reply::Reply,
    request::{RequestCtx, RouteMeta},
};

const EXPORT_URI: &str = "/apisix/prometheus/metrics";
const LLM_LABELS: [&str; 3] = ["request_type", "request_llm_model", "llm_model"];

/// Metrics whose labels the metadata may switch off, with the labels that are not structural.
const LABELS: [(&str, &[&str]); 13] = [
    ("http_status", &["route", "matched_uri", "matched_host", "service", "consumer", "node"]),
    ("http_latency", &["route", "service", "consumer", "node"]),
    ("bandwidth", &["route", "service", "consumer", "node"]),
    ("llm_latency", &["route_id", "service_id", "consumer", "node"]),
    ("llm_prompt_tokens", &["route_id", "service_id", "consumer", "node"]),
    ("llm_completion_tokens", &["route_id", "service_id", "consumer", "node"]),
    (
        "llm_active_connections",
        &["route", "route_id", "matched_uri", "matched_host", "service", "service_id", "consumer", "node"],
    ),
    ("llm_prompt_tokens_dist", &["route_id", "service_id", "consumer", "node"]),
    ("llm_completion_tokens_dist", &["route_id", "service_id", "consumer", "node"]),
    ("ai_cache_hits_total", &["route", "route_id", "service", "service_id", "consumer", "node"]),
    ("ai_cache_misses_total", &["route", "route_id", "service", "service_id", "consumer", "node"]),
    ("ai_cache_bypasses_total", &["route", "route_id", "service", "service_id", "consumer", "node"]),
    ("ai_cache_embedding_latency", &["route", "route_id", "service", "service_id", "consumer", "node"]),
];

/// The configuration.
#[derive(Deserialize)]
pub struct Config {
    /// Shows names of routes and services instead of ids.
    #[serde(default)]
    pub prefer_name: bool,
}

/// The compiled configuration.
pub struct Plugin {
    http: Arc<Http>,
    prefer_name: bool,
    status: Shown<11>,
    latency: Shown<7>,
    bandwidth: Shown<7>,
}

/// Which labels of a metric have values; the others are empty.
struct Shown<const N: usize>([bool; N]);

impl contract::Plugin for Plugin {
    const NAME: &'static str = "prometheus";
    const PRIORITY: i32 = 500;
    const PHASES: Phases = Phases::LOG;
    const PREFER_ROUTE: bool = true;
    type Config = Config;

    fn schema() -> Value {
        json!({"type": "object", "properties": {"prefer_name": {"type": "boolean", "default": false}}})
    }

    fn metadata_schema() -> Option<Value> {
        let metric = |(name, labels): (&str, &[&str])| {
            let own = if name == "http_status" { &["response_source"][..] } else { &[] };
            let labels: Vec<&str> = [labels, &LLM_LABELS, own].concat();
            (name.to_owned(), json!({"type": "array", "items": {"type": "string", "enum": labels}}))
        };
        let properties: Map<String, Value> = LABELS.into_iter().map(metric).collect();
        Some(json!({
            "type": "object",
            "properties": {
                "disabled_labels": {"type": "object", "properties": properties, "additionalProperties": false}
            }
        }))
    }

    fn build(config: Config, env: &BuildEnv<'_>) -> Result<Self, String> {
        Ok(Self {
            http: env.metrics.http(env.attr, env.compat)?,
            prefer_name: config.prefer_name,
            status: Shown::new(&STATUS_LABELS, "http_status", env.metadata),
            latency: Shown::new(&TRAFFIC_LABELS, "http_latency", env.metadata),
            bandwidth: Shown::new(&TRAFFIC_LABELS, "bandwidth", env.metadata),
        })
    }

    /// There is none while metrics have their own listener, which is the default.
    fn apis(attr: Option<&Value>) -> Vec<PublicApi> {
        let of = |name| attr.and_then(|attr| attr.get(name));
        if of("enable_export_server") != Some(&Value::Bool(false)) {
            return Vec::new();
        }
        let path = of("export_uri").and_then(Value::as_str).unwrap_or(EXPORT_URI).to_owned();
        let methods = &["GET"];
        vec![PublicApi {
            methods,
            path: path.into(),
            secret_args: &[],
            secret_bodies: false,
            handler: export,
        }]
    }

    fn log(&self, x: &mut Exchange<'_>) {
        let x = &*x;
        let subject = Subject::of(x.ctx, self.prefer_name);
        self.count(x, &subject);
        let traffic = [subject.route, subject.service, subject.consumer, &subject.node, REQUEST_TYPE, "", ""];
        let settings = &self.http.settings;
        let extra = values(&settings.latency, x);
        let labels = Labels { own: self.latency.filter(traffic), extra: &extra };
        self.http.observe(&labels, latency(x.ctx));
        let extra = values(&settings.bandwidth, x);
        let labels = Labels { own: self.bandwidth.filter(traffic), extra: &extra };
        self.http.transfer(&labels, received(x), sent(x));
    }
}

impl Plugin {
    fn count(&self, x: &Exchange<'_>, subject: &Subject<'_>) {
        let status = StatusCode::from_u16(x.ctx.status.unwrap_or(0));
        let code = status.as_ref().map_or("000", |status| status.as_str());
        let route = x.ctx.route.as_deref();
        let uri = route.and_then(|route| route.paths.get(usize::from(x.ctx.matched_path)));
        let host = x.ctx.matched_host.and_then(|at| route?.hosts.get(usize::from(at)));
        let own = [
            code,
            subject.route,
            uri.map_or("", |uri| uri),
            host.map_or("", |host| host),
            subject.service,
            subject.consumer,
            &subject.node,
            REQUEST_TYPE,
            "",
            "",
            source(x.ctx),
        ];
        let extra = values(&self.http.settings.status, x);
        self.http.count(&Labels { own: self.status.filter(own), extra: &extra });
    }
}

impl<const N: usize> Shown<N> {
    fn new(labels: &[&str; N], metric: &str, metadata: Option<&Value>) -> Self {
        let disabled = metadata.and_then(|metadata| metadata.get("disabled_labels")?.get(metric)?.as_array());
        let hidden = |label: &str| disabled.is_some_and(|disabled| disabled.iter().any(|one| one == label));
        Self(labels.map(|label| !hidden(label)))
    }

    fn filter<'a>(&self, mut values: [&'a str; N]) -> [&'a str; N] {
        for (value, shown) in values.iter_mut().zip(self.0) {
            if !shown {
                *value = "";
            }
        }
        values
    }
}

/// What a request is counted under.
struct Subject<'a> {
    route: &'a str,
    service: &'a str,
    consumer: &'a str,
    node: Cow<'static, str>,
}

impl<'a> Subject<'a> {
    fn of(ctx: &'a RequestCtx, prefer_name: bool) -> Self {
        let route = ctx.route.as_deref();
        let (route, service) = route.map_or(("", ""), |route| titles(route, prefer_name));
        let node =
            ctx.upstream.tries.last().map_or(Cow::Borrowed(""), |last| last.addr.ip().to_string().into());
        Self {
            route,
            service,
            consumer: ctx.consumer.as_ref().map_or("", |consumer| &consumer.username),
            node,
        }
    }
}

fn titles(route: &RouteMeta, prefer_name: bool) -> (&str, &str) {
    let service = route.service_id.as_deref().unwrap_or_default();
    if !prefer_name {
        return (&route.id, service);
    }
    let name = route.name.as_deref().unwrap_or(&route.id);
    (name, if service.is_empty() { "" } else { route.service_name.as_deref().unwrap_or(service) })
}

/// Who made the response. APISIX: `core.response.get_response_source`.
fn source(ctx: &RequestCtx) -> &'static str {
    match (ctx.upstream.answered, ctx.upstream.tries.is_empty()) {
        (true, _) => "upstream",
        (false, false) => "nginx",
        (false, true) => "apisix",
    }
}

fn latency(ctx: &RequestCtx) -> Latency {
    let tries = &ctx.upstream.tries;
    let spent: Duration = tries.iter().filter_map(|one| one.total).sum();
    Latency { request: ctx.started.elapsed(), upstream: (!tries.is_empty()).then_some(spent) }
}

fn values<'a>(options: &'a Options, x: &'a Exchange<'_>) -> Vec<Cow<'a, str>> {
    options.extra.iter().map(|(_, var)| x.logged(var).unwrap_or_default()).collect()
}

/// nginx: `$request_length`.
fn received(x: &Exchange<'_>) -> u64 {
    let session = x.session.as_downstream();
    let head = session.as_http1().map_or(0, |session| session.get_headers_raw_bytes().len());
    (head + session.body_bytes_read()) as u64
}

/// nginx: `$bytes_sent`; the head is computed, as the framework counts bodies only.
fn sent(x: &Exchange<'_>) -> u64 {
    let head = x.session.response_written().map_or(0, head_length);
    (head + x.session.as_downstream().body_bytes_sent()) as u64
}

fn head_length(head: &ResponseHeader) -> usize {
    let reason = head.get_reason_phrase().map_or(0, str::len);
    let fields: usize = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    "HTTP/1.1 200 \r\n".len() + reason + fields + 2
}

fn export<'a>(x: &'a mut Exchange<'_>) -> HookFuture<'a> {
    let reply = Reply::bytes(200, metrics::render(x.world.metrics()))
        .with_header(header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain; charset=utf-8"));
    Box::pin(async { reply.into() })
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, time::Instant};

    use super::*;
    use crate::plugin::{
        contract::Plugin as _,
        request::Try,
        testing::{self, Kit, Setup},
    };

    #[test]
    fn schemas_compile() {
        testing::compile_schemas::<Plugin>();
        let expected = "property \"prefer_name\" validation failed: wrong type: expected boolean, got number";
        assert_eq!(testing::refusal::<Plugin>(json!({"prefer_name": 1})), expected);
    }

    fn meta() -> RouteMeta {
        RouteMeta {
            id: "1".into(),
            name: Some("root".into()),
            service_id: Some("s".into()),
            service_name: None,
            paths: vec!["/a".into(), "/x*".into()],
            hosts: vec!["a.com".into()],
            ..RouteMeta::default()
        }
    }

    fn proxied(ctx: &mut RequestCtx) {
        let addr: SocketAddr = "10.1.1.1:80".parse().unwrap();
        let some = Some(Duration::from_millis(3));
        ctx.upstream.tries.push(Try {
            addr,
            began: Instant::now(),
            connect: some,
            header: some,
            total: some,
            status: Some(200),
        });
        ctx.upstream.answered = true;
        (ctx.matched_path, ctx.matched_host, ctx.status) = (1, Some(0), Some(200));
    }

    /// Logs one request and gives the lines that contain `wanted`.
    fn logged(setup: &Setup, conf: Value, prepare: fn(&mut RequestCtx), wanted: &str) -> Vec<String> {
        let plugin: Plugin = setup.build(conf).unwrap();
        Kit::get("/x", &[("who", "me")]).route(meta()).run(async |x| {
            prepare(x.ctx);
            plugin.log(x);
        });
        let text = metrics::render(setup.build_env().metrics);
        text.lines()
            .filter(|line| line.contains(wanted) && !line.starts_with('#'))
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn statuses_have_apisix_labels() {
        let ai = "request_type=\"traditional_http\",request_llm_model=\"\",llm_model=\"\"";
        assert_eq!(
            logged(&Setup::new(), json!({}), proxied, "http_status"),
            [format!(
                "apisix_http_status{{code=\"200\",route=\"1\",matched_uri=\"/x*\",matched_host=\"a.com\",service=\"s\",\
                 consumer=\"\",node=\"10.1.1.1\",{ai},response_source=\"upstream\"}} 1"
            )]
        );
        assert_eq!(
            logged(&Setup::new(), json!({"prefer_name": true}), |ctx| ctx.status = Some(401), "http_status"),
            [format!(
                "apisix_http_status{{code=\"401\",route=\"root\",matched_uri=\"/a\",matched_host=\"\",service=\"s\",\
                 consumer=\"\",node=\"\",{ai},response_source=\"apisix\"}} 1"
            )]
        );
        let failed = |ctx: &mut RequestCtx| {
            proxied(ctx);
            ctx.upstream.answered = false;
        };
        let lines = logged(&Setup::new(), json!({}), failed, "http_status");
        assert!(lines[0].contains("response_source=\"nginx\""), "{lines:?}");
    }

    #[test]
    fn the_older_labels() {
        let setup = Setup::new().compat(crate::compat::Compat::V3_2);
        let lines = logged(&setup, json!({}), proxied, "http_status");
        assert!(lines[0].ends_with("consumer=\"\",node=\"10.1.1.1\"} 1"), "{lines:?}");
        let lines = logged(&setup, json!({}), proxied, "type=\"egress\"");
        assert!(lines[0].starts_with(
            "apisix_bandwidth{type=\"egress\",route=\"1\",service=\"s\",consumer=\"\",node=\"10.1.1.1\"} "
        ));
    }

    #[test]
    fn bytes_and_latencies() {
        let setup = Setup::new();
        let lines = logged(&setup, json!({}), proxied, "type=\"ingress\"");
        let length = "GET /x HTTP/1.1\r\nHost: a.com\r\nwho: me\r\n\r\n".len();
        assert!(lines[0].ends_with(&format!("}} {length}")), "{lines:?}");
        let lines = logged(&setup, json!({}), proxied, "http_latency_count");
        assert_eq!(lines.len(), 3);
        assert!(lines.iter().all(|line| line.ends_with("llm_model=\"\"} 2")), "{lines:?}");
        let lines = logged(&setup, json!({}), proxied, "http_latency_sum{type=\"upstream\"");
        assert!(lines[0].ends_with(" 9"), "{lines:?}");
    }

    #[test]
    fn labels_can_be_added_and_emptied() {
        let attr = json!({"metrics": {"http_status": {"extra_labels": [{"who": "$http_who"}, {"none": "$http_none"}]}}});
        let metadata = json!({"disabled_labels": {"http_status": ["node", "matched_uri"]}});
        let setup = Setup::new().attr(attr).metadata(metadata);
        let lines = logged(&setup, json!({}), proxied, "http_status");
        assert!(lines[0].contains("matched_uri=\"\",matched_host=\"a.com\""), "{lines:?}");
        assert!(lines[0].contains("node=\"\""), "{lines:?}");
        assert!(lines[0].ends_with("who=\"me\",none=\"\"} 1"), "{lines:?}");
        let lines = logged(&setup, json!({}), proxied, "bandwidth");
        assert!(lines[0].contains("node=\"10.1.1.1\""), "{lines:?}");
    }

    #[test]
    fn the_endpoint_exists_without_an_export_server_only() {
        #[track_caller]
        fn check(attr: Value, expected: &[&str]) {
            let apis = <Plugin as contract::Plugin>::apis(Some(&attr));
            assert_eq!(apis.iter().map(|api| &*api.path).collect::<Vec<_>>(), expected, "{attr}");
        }
        check(json!({}), &[]);
        check(json!({"enable_export_server": true, "export_uri": "/a"}), &[]);
        check(json!({"enable_export_server": false}), &[EXPORT_URI]);
        check(json!({"enable_export_server": false, "export_uri": "/a"}), &["/a"]);
        Kit::get(EXPORT_URI, &[]).run(async |x| {
            let answer = testing::answer(&export(x).await);
            assert!(answer.starts_with("200 ") && answer.contains("apisix_node_info"), "{answer}");
        });
    }
}
