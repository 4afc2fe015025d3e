//! The metrics per request: `http_status`, `http_latency`, `bandwidth`. APISIX: prometheus/exporter.lua `http_log`.

use std::{
    borrow::Cow,
    iter,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{family::Family, text};
use crate::{compat::Compat, vars::var::Var};

/// The prefix of all names when `metric_prefix` does not say.
pub const PREFIX: &str = "apisix_";

/// Upper bounds in milliseconds when `default_buckets` does not say.
const BUCKETS: [f64; 15] = [
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0, 30_000.0,
    60_000.0,
];

/// The labels of `http_status`; the older APISIX has the first seven.
pub const STATUS_LABELS: [&str; 11] = [
    "code",
    "route",
    "matched_uri",
    "matched_host",
    "service",
    "consumer",
    "node",
    "request_type",
    "request_llm_model",
    "llm_model",
    "response_source",
];

/// The labels of `http_latency` and `bandwidth` after `type`; the older APISIX has the first four.
pub const TRAFFIC_LABELS: [&str; 7] =
    ["route", "service", "consumer", "node", "request_type", "request_llm_model", "llm_model"];

/// `request_type` of a request that no AI plugin handles.
pub const REQUEST_TYPE: &str = "traditional_http";

/// `plugin_attr.prometheus`, as far as it matters here.
#[derive(Debug)]
pub struct Settings {
    /// What every name begins with.
    pub prefix: String,
    /// Whether metrics are served by their own listener, and so not through `public-api`.
    pub export_server: bool,
    /// Options of `http_status`.
    pub status: Options,
    /// Options of `http_latency`.
    pub latency: Options,
    /// Options of `bandwidth`.
    pub bandwidth: Options,
    buckets: Vec<f64>,
}

/// Options of one metric.
#[derive(Debug, Default)]
pub struct Options {
    /// Labels that are variables, after the metric's own.
    pub extra: Vec<(String, Var)>,
    expire: Option<u64>,
}

impl Settings {
    /// Reads the attribute.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(attr: Option<&Value>) -> Result<Self, String> {
        let field = |name: &str| attr.and_then(|attr| attr.get(name));
        let prefix = field("metric_prefix").and_then(Value::as_str).unwrap_or(PREFIX);
        if !prefix.is_empty() && !is_name(prefix) {
            return Err(format!(
                "plugin_attr.prometheus.metric_prefix: \"{prefix}\" cannot begin a metric's name"
            ));
        }
        let options =
            |name: &str| Options::parse(name, field("metrics").and_then(|metrics| metrics.get(name)));
        Ok(Self {
            prefix: prefix.to_owned(),
            export_server: field("enable_export_server").and_then(Value::as_bool).unwrap_or(true),
            status: options("http_status")?,
            latency: options("http_latency")?,
            bandwidth: options("bandwidth")?,
            buckets: field("default_buckets").map_or(Ok(BUCKETS.to_vec()), buckets)?,
        })
    }
}

impl Options {
    fn parse(metric: &str, options: Option<&Value>) -> Result<Self, String> {
        let Some(options) = options else { return Ok(Self::default()) };
        let expire = options.get("expire").and_then(Value::as_f64).unwrap_or(0.0);
        let labels =
            options.get("extra_labels").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let mut extra = Vec::with_capacity(labels.len());
        for label in labels {
            let Some((name, Value::String(variable))) =
                label.as_object().and_then(|label| label.iter().next())
            else {
                return Err(format!(
                    "plugin_attr.prometheus.metrics.{metric}.extra_labels: {label} is no label"
                ));
            };
            if !is_name(name) {
                return Err(format!(
                    "plugin_attr.prometheus.metrics.{metric}.extra_labels: \"{name}\" is no label name"
                ));
            }
            // APISIX cuts the first character off, whatever it is.
            let mut variable = variable.chars();
            variable.next();
            extra.push((name.clone(), Var::parse(variable.as_str())));
        }
        // Fractions of a second round up; 0 keeps label sets for ever.
        let expire = (expire > 0.0).then_some(expire.ceil() as u64);
        Ok(Self { extra, expire })
    }
}

fn buckets(value: &Value) -> Result<Vec<f64>, String> {
    let bounds: Option<Vec<f64>> = value.as_array().and_then(|all| all.iter().map(Value::as_f64).collect());
    let Some(mut bounds) = bounds.filter(|bounds| !bounds.is_empty()) else {
        return Err("plugin_attr.prometheus.default_buckets: a list of numbers is expected".into());
    };
    bounds.sort_by(f64::total_cmp);
    bounds.dedup();
    Ok(bounds)
}

fn is_name(text: &str) -> bool {
    let letter = |c: char| c.is_ascii_alphabetic() || c == '_';
    text.starts_with(letter) && text.chars().all(|c| letter(c) || c.is_ascii_digit())
}

/// Label values of one request, in the order of the labels' names.
pub struct Labels<'a, const N: usize> {
    /// The metric's own.
    pub own: [&'a str; N],
    /// Those of `extra_labels`.
    pub extra: &'a [Cow<'a, str>],
}

/// How long one request took.
#[derive(Clone, Copy, Debug)]
pub struct Latency {
    /// From the first byte to the last.
    pub request: Duration,
    /// Spent on upstream nodes, if there was one.
    pub upstream: Option<Duration>,
}

/// See the module.
pub struct Http {
    /// `plugin_attr.prometheus`.
    pub settings: Settings,
    /// Which labels there are.
    pub compat: Compat,
    began: Instant,
    status: Family<AtomicU64>,
    latency: Family<[Histogram; 3]>,
    bandwidth: Family<[AtomicU64; 2]>,
}

const LATENCIES: [&str; 3] = ["request", "upstream", "apisix"];
const DIRECTIONS: [&str; 2] = ["ingress", "egress"];

impl Http {
    /// No requests yet.
    pub fn new(settings: Settings, compat: Compat) -> Self {
        Self {
            status: Family::new(settings.status.expire),
            latency: Family::new(settings.latency.expire),
            bandwidth: Family::new(settings.bandwidth.expire),
            began: Instant::now(),
            settings,
            compat,
        }
    }

    /// Counts a response by its status.
    pub fn count(&self, labels: &Labels<'_, 11>) {
        let values = self.values(labels, self.compat.status_labels());
        self.status.add(values, self.now(), AtomicU64::default, |cell| _ = cell.fetch_add(1, Relaxed));
    }

    /// Notes how long a request took.
    pub fn observe(&self, labels: &Labels<'_, 7>, latency: Latency) {
        let bounds = &self.settings.buckets;
        let new = || std::array::from_fn(|_| Histogram::new(bounds.len()));
        let values = self.values(labels, self.compat.traffic_labels());
        self.latency.add(values, self.now(), new, |[request, upstream, apisix]| {
            request.observe(bounds, latency.request);
            if let Some(spent) = latency.upstream {
                upstream.observe(bounds, spent);
            }
            apisix.observe(bounds, latency.request.saturating_sub(latency.upstream.unwrap_or_default()));
        });
    }

    /// Counts bytes from and to the client.
    pub fn transfer(&self, labels: &Labels<'_, 7>, ingress: u64, egress: u64) {
        let values = self.values(labels, self.compat.traffic_labels());
        self.bandwidth.add(values, self.now(), Default::default, |[from, to]| {
            from.fetch_add(ingress, Relaxed);
            to.fetch_add(egress, Relaxed);
        });
    }

    fn values<'a, const N: usize>(
        &self,
        labels: &'a Labels<'_, N>,
        known: usize,
    ) -> impl Iterator<Item = &'a str> + Clone {
        labels.own[..known.min(N)].iter().copied().chain(labels.extra.iter().map(|text| &**text))
    }

    /// Seconds since the start: all that expiry needs.
    fn now(&self) -> u64 {
        self.began.elapsed().as_secs()
    }

    pub(super) fn lost(&self) -> u64 {
        self.status.lost() + self.latency.lost() + self.bandwidth.lost()
    }

    pub(super) fn render(&self, out: &mut String) {
        self.render_bandwidth(out);
        self.render_latency(out);
        self.render_status(out);
    }

    fn render_bandwidth(&self, out: &mut String) {
        let name = format!("{}bandwidth", self.settings.prefix);
        let help = "Total bandwidth in bytes consumed per service in APISIX";
        let names = self.traffic_names(&self.settings.bandwidth);
        text::family_of(out, &name, help, "counter", |out| {
            self.bandwidth.each(self.now(), |values, cells| {
                for (direction, cell) in DIRECTIONS.iter().zip(cells) {
                    text::sample(out, &name, &typed(direction, &names, values), cell.load(Relaxed));
                }
            });
        });
    }

    fn render_latency(&self, out: &mut String) {
        let name = format!("{}http_latency", self.settings.prefix);
        let help = "HTTP request latency in milliseconds per service in APISIX";
        let names = self.traffic_names(&self.settings.latency);
        text::family_of(out, &name, help, "histogram", |out| {
            self.latency.each(self.now(), |values, histograms| {
                for (kind, histogram) in LATENCIES.iter().zip(histograms) {
                    let labels = typed(kind, &names, values);
                    histogram.render(out, &name, &self.settings.buckets, labels);
                }
            });
        });
    }

    fn render_status(&self, out: &mut String) {
        let name = format!("{}http_status", self.settings.prefix);
        let help = "HTTP status codes per service in APISIX";
        let own = STATUS_LABELS[..self.compat.status_labels()].iter().copied();
        let names: Vec<&str> = own.chain(extra_names(&self.settings.status)).collect();
        text::family_of(out, &name, help, "counter", |out| {
            self.status.each(self.now(), |values, cell| {
                let labels: Vec<_> = names.iter().copied().zip(values.iter().map(|value| &**value)).collect();
                text::sample(out, &name, &labels, cell.load(Relaxed));
            });
        });
    }

    fn traffic_names<'a>(&self, options: &'a Options) -> Vec<&'a str> {
        let own = TRAFFIC_LABELS[..self.compat.traffic_labels()].iter().copied();
        own.chain(extra_names(options)).collect()
    }
}

fn extra_names(options: &Options) -> impl Iterator<Item = &str> {
    options.extra.iter().map(|(name, _)| &**name)
}

/// Labels with `type` before them.
fn typed<'a>(kind: &'a str, names: &[&'a str], values: &'a [Box<str>]) -> Vec<(&'a str, &'a str)> {
    iter::once(("type", kind)).chain(names.iter().copied().zip(values.iter().map(|value| &**value))).collect()
}

/// Latencies by bucket.
struct Histogram {
    /// Not cumulated; what is above all bounds is in `count` only.
    buckets: Box<[AtomicU64]>,
    count: AtomicU64,
    microseconds: AtomicU64,
}

impl Histogram {
    fn new(bounds: usize) -> Self {
        let buckets = (0..bounds).map(|_| AtomicU64::new(0)).collect();
        Self { buckets, count: AtomicU64::new(0), microseconds: AtomicU64::new(0) }
    }

    fn observe(&self, bounds: &[f64], spent: Duration) {
        let milliseconds = spent.as_secs_f64() * 1000.0;
        if let Some(bucket) = self.buckets.get(bounds.partition_point(|bound| *bound < milliseconds)) {
            bucket.fetch_add(1, Relaxed);
        }
        self.count.fetch_add(1, Relaxed);
        self.microseconds.fetch_add(u64::try_from(spent.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    fn render(&self, out: &mut String, name: &str, bounds: &[f64], mut labels: Vec<(&str, &str)>) {
        let count = self.count.load(Relaxed);
        if count == 0 {
            return;
        }
        let bucket = format!("{name}_bucket");
        let mut sum = 0;
        for (bound, cell) in bounds.iter().zip(&self.buckets) {
            // Counted between the two loads, the sum could overtake the total.
            sum = count.min(sum + cell.load(Relaxed));
            let bound = bound.to_string();
            let mut labels = labels.clone();
            labels.push(("le", &bound));
            text::sample(out, &bucket, &labels, sum);
        }
        labels.push(("le", "+Inf"));
        text::sample(out, &bucket, &labels, count);
        labels.pop();
        text::sample(out, &format!("{name}_count"), &labels, count);
        let milliseconds = self.microseconds.load(Relaxed) as f64 / 1000.0;
        text::sample(out, &format!("{name}_sum"), &labels, milliseconds);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check_refused(attr: Value, expected: &str) {
        let text = Settings::parse(Some(&attr)).unwrap_err();
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn wrong_attributes_are_named() {
        check_refused(json!({"metric_prefix": "1 a"}), "metric_prefix");
        check_refused(json!({"default_buckets": []}), "default_buckets");
        check_refused(json!({"default_buckets": ["a"]}), "default_buckets");
        check_refused(json!({"metrics": {"bandwidth": {"extra_labels": ["a"]}}}), "bandwidth.extra_labels");
        check_refused(
            json!({"metrics": {"http_status": {"extra_labels": [{"a-b": "$x"}]}}}),
            "\"a-b\" is no label name",
        );
    }

    fn rendered(http: &Http) -> Vec<String> {
        let mut out = String::new();
        http.render(&mut out);
        out.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
    }

    #[test]
    fn latencies_fall_into_their_buckets() {
        let attr = json!({"default_buckets": [5, 1, 2.5]});
        let http = Http::new(Settings::parse(Some(&attr)).unwrap(), Compat::V3_2);
        let labels = Labels { own: ["1", "", "", "n", REQUEST_TYPE, "", ""], extra: &[] };
        for (request, upstream) in [(1_000, Some(600)), (1_001, Some(2_000)), (9_000, None)] {
            let upstream = upstream.map(Duration::from_micros);
            http.observe(&labels, Latency { request: Duration::from_micros(request), upstream });
        }
        let labels = |kind| format!("type=\"{kind}\",route=\"1\",service=\"\",consumer=\"\",node=\"n\"");
        let mut expected = Vec::new();
        for (kind, counts, count, sum) in [
            ("request", [1, 2, 2], 3, "11.001"),
            ("upstream", [1, 2, 2], 2, "2.6"),
            ("apisix", [2, 2, 2], 3, "9.4"),
        ] {
            for (bound, count) in ["1", "2.5", "5", "+Inf"].iter().zip(counts.into_iter().chain([count])) {
                expected
                    .push(format!("apisix_http_latency_bucket{{{},le=\"{bound}\"}} {count}", labels(kind)));
            }
            expected.push(format!("apisix_http_latency_count{{{}}} {count}", labels(kind)));
            expected.push(format!("apisix_http_latency_sum{{{}}} {sum}", labels(kind)));
        }
        assert_eq!(rendered(&http), expected);
    }

    #[test]
    fn a_known_label_set_is_counted_without_allocation() {
        let http = Http::new(Settings::parse(None).unwrap(), Compat::Now);
        let traffic = Labels { own: ["1", "s", "jack", "10.0.0.1", REQUEST_TYPE, "", ""], extra: &[] };
        let status = Labels { own: ["200"; 11], extra: &[] };
        let count = || {
            http.count(&status);
            let request = Duration::from_millis(7);
            http.observe(&traffic, Latency { request, upstream: Some(request) });
            http.transfer(&traffic, 1, 2);
        };
        count();
        assert_eq!(allocation_counter::measure(count).count_total, 0);
    }

    #[test]
    fn extra_labels_stand_at_the_end() {
        let attr = json!({"metrics": {"http_status": {"extra_labels": [{"who": "$http_who"}, {"addr": "$upstream_addr"}]}}});
        let http = Http::new(Settings::parse(Some(&attr)).unwrap(), Compat::V3_2);
        let extra = [Cow::Borrowed("me"), Cow::Borrowed("")];
        let mut own = [""; 11];
        (own[0], own[1]) = ("200", "r");
        http.count(&Labels { own, extra: &extra });
        assert_eq!(
            rendered(&http),
            ["apisix_http_status{code=\"200\",route=\"r\",matched_uri=\"\",matched_host=\"\",service=\"\",\
              consumer=\"\",node=\"\",who=\"me\",addr=\"\"} 1"]
        );
    }
}
