//! What the gateway and its plugins count, and how Prometheus reads it.
//!
//! Every metric's name and labels stand in this module and its children. The HTTP metrics of the prometheus plugin
//! are own types instead of those of the `prometheus` crate: their label sets expire and are bounded, and one look
//! into a table counts a request. Differs from APISIX: there are no `shared_dict_*` (nothing here is one), `llm_*`,
//! `ai_cache_*` and `stream_*` metrics, and a scrape is computed when it is asked for instead of every 15 seconds.

pub mod batches;
pub mod family;
pub mod gateway;
pub mod http;
pub mod runners;
mod text;

use std::sync::{Arc, OnceLock};

use prometheus::{IntCounterVec, Opts, Registry, TextEncoder};
use serde_json::Value;

use self::{
    batches::Batches,
    gateway::Gateway,
    http::{Http, Settings},
};
use crate::{compat::Compat, ext_plugin::runner::Runners};

/// Metrics of gateway and plugins.
pub struct Metrics {
    /// Where plugins register metrics of their own.
    pub registry: Registry,
    /// `portcullis_refusals_total{plugin,reason}`: requests that a plugin refused, by the class of its reason.
    pub refusals: IntCounterVec,
    /// `portcullis_log_entries_dropped_total{plugin,reason}`: log entries that no server got: too many waited
    /// (`backlog`), or their server did not take them (`failed`).
    pub lost_entries: IntCounterVec,
    /// Log entries that wait.
    pub batches: Batches,
    /// Of the gateway as a whole.
    pub gateway: Gateway,
    /// Runners of external plugins; they count by themselves.
    pub runners: OnceLock<Arc<Runners>>,
    http: OnceLock<Arc<Http>>,
}

impl Metrics {
    /// Registers the metrics.
    pub fn new(registry: Registry) -> Self {
        let counter = |name, help| {
            let counter = IntCounterVec::new(Opts::new(name, help), &["plugin", "reason"])
                .expect("the name and labels are constants");
            registry.register(Box::new(counter.clone())).expect("registered once per registry");
            counter
        };
        Self {
            refusals: counter("portcullis_refusals_total", "Requests that a plugin refused"),
            lost_entries: counter("portcullis_log_entries_dropped_total", "Log entries that no server got"),
            batches: Batches::default(),
            gateway: Gateway::default(),
            runners: OnceLock::new(),
            http: OnceLock::new(),
            registry,
        }
    }

    /// The metrics per request, made from `plugin_attr.prometheus` the first time; as in APISIX, a changed
    /// attribute counts after a restart.
    ///
    /// # Errors
    /// What is wrong with the attribute.
    pub fn http(&self, attr: Option<&Value>, compat: Compat) -> Result<Arc<Http>, String> {
        if let Some(http) = self.http.get() {
            return Ok(http.clone());
        }
        let http = Http::new(Settings::parse(attr)?, compat);
        Ok(self.http.get_or_init(|| Arc::new(http)).clone())
    }

    /// Whether metrics are served by their own listener, as long as the plugin's attributes do not say otherwise.
    pub fn has_export_server(&self) -> bool {
        self.http.get().is_none_or(|http| http.settings.export_server)
    }
}

/// All metrics in Prometheus' text format.
pub fn render(metrics: &Metrics) -> String {
    let mut out = String::with_capacity(16 * 1024);
    // Fails only for families without metrics, which `gather` leaves out.
    if let Err(e) = TextEncoder::new().encode_utf8(&metrics.registry.gather(), &mut out) {
        tracing::warn!(error = %e, "registered metrics cannot be written");
    }
    let http = metrics.http.get();
    let prefix = http.map_or(http::PREFIX, |http| &http.settings.prefix);
    let compat = http.map(|http| http.compat).unwrap_or_default();
    metrics.gateway.render(&mut out, prefix, compat);
    metrics.batches.render(&mut out, prefix);
    if let Some(runners) = metrics.runners.get() {
        runners::render(&mut out, runners);
    }
    if let Some(http) = http {
        http.render(&mut out);
    }
    let lost = http.map_or(0, |http| http.lost());
    let name = format!("{prefix}nginx_metric_errors_total");
    text::family(&mut out, &name, "Label sets that were given up because there were too many", "counter");
    text::sample(&mut out, &name, &[], lost);
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn renders_without_the_plugin() {
        let metrics = Metrics::new(Registry::new());
        metrics.refusals.with_label_values(&["key-auth", "wrong"]).inc();
        let text = render(&metrics);
        assert!(
            text.contains("portcullis_refusals_total{plugin=\"key-auth\",reason=\"wrong\"} 1\n"),
            "{text}"
        );
        assert!(
            text.contains("# TYPE apisix_http_requests_total gauge\napisix_http_requests_total 0\n"),
            "{text}"
        );
        assert!(text.ends_with("apisix_nginx_metric_errors_total 0\n"), "{text}");
    }

    #[test]
    fn the_prefix_is_an_attribute() {
        let metrics = Metrics::new(Registry::new());
        metrics.http(Some(&json!({"metric_prefix": "gw_"})), Compat::Now).unwrap();
        let text = render(&metrics);
        assert!(text.contains("gw_http_requests_total 0\n"), "{text}");
        assert!(!text.contains("apisix_"), "{text}");
    }
}
