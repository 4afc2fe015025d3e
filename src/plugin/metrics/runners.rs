//! Metrics of the runners of external plugins. APISIX has none.

use std::sync::atomic::Ordering::Relaxed;

use super::text::{family, sample};
use crate::ext_plugin::{
    message::kind_name,
    report::{self, Report},
    runner::{Runner, Runners},
    stats::{BOUNDS, Histogram, Series},
};

/// What is counted of a configuration, with its runner's name.
type Counted<'a> = [(&'a str, &'a Series)];

/// Writes them; nothing when no runner is configured.
pub fn render(out: &mut String, runners: &Runners) {
    let runners = runners.all();
    if runners.is_empty() {
        return;
    }
    let series: Vec<_> = runners.iter().map(|runner| (runner.name(), runner.stats().all())).collect();
    let series: Vec<(&str, &Series)> =
        series.iter().flat_map(|(name, all)| all.iter().map(|one| (*name, &**one))).collect();
    durations(out, &series);
    errors(out, &series);
    tokens(out, &series);
    processes(out, runners.iter().map(|runner| &**runner));
}

fn durations(out: &mut String, series: &Counted<'_>) {
    const NAME: &str = "portcullis_ext_plugin_call_duration_seconds";
    family(out, NAME, "Calls to runners, waiting and retries included", "histogram");
    for (runner, one) in series {
        let call = if one.hook.ends_with("-resp") { kind_name(4) } else { kind_name(2) };
        let times = [(call, &one.calls), (kind_name(1), &one.prepared), (kind_name(3), &one.questions)];
        for (call, times) in times {
            let labels =
                [("runner", *runner), ("hook", &*one.hook), ("plugin", &*one.plugins), ("call", call)];
            histogram(out, NAME, labels, times);
        }
    }
}

fn histogram(out: &mut String, name: &str, labels: [(&str, &str); 4], times: &Histogram) {
    let (classes, sum) = times.read();
    let [a, b, c, d] = labels;
    let all = classes[BOUNDS.len()];
    if all == 0 {
        return;
    }
    for (class, count) in classes.iter().enumerate() {
        let bound = BOUNDS.get(class).map_or("+Inf".into(), |bound| seconds(*bound));
        sample(out, &format!("{name}_bucket"), &[a, b, c, d, ("le", &*bound)], count);
    }
    sample(out, &format!("{name}_sum"), &labels, sum.as_secs_f64());
    sample(out, &format!("{name}_count"), &labels, all);
}

#[allow(clippy::cast_precision_loss)] // microseconds of a bound
fn seconds(micros: u64) -> String {
    (micros as f64 / 1e6).to_string()
}

fn errors(out: &mut String, series: &Counted<'_>) {
    const NAME: &str = "portcullis_ext_plugin_errors_total";
    family(out, NAME, "Calls to runners that failed", "counter");
    for (runner, one) in series {
        for (kind, count) in one.errors() {
            let labels =
                [("runner", *runner), ("hook", &*one.hook), ("plugin", &*one.plugins), ("kind", kind)];
            sample(out, NAME, &labels, count);
        }
    }
}

fn tokens(out: &mut String, series: &Counted<'_>) {
    const NAME: &str = "portcullis_ext_plugin_tokens_total";
    family(out, NAME, "Conf tokens: used, fetched, fetched anew", "counter");
    for (runner, one) in series {
        for (outcome, count) in [("hit", &one.hits), ("miss", &one.misses), ("renewal", &one.renewals)] {
            let labels =
                [("runner", *runner), ("hook", &*one.hook), ("plugin", &*one.plugins), ("outcome", outcome)];
            sample(out, NAME, &labels, count.load(Relaxed));
        }
    }
}

fn processes<'a>(out: &mut String, runners: impl Iterator<Item = &'a Runner>) {
    let reports: Vec<_> = runners.map(|runner| (runner, report::of(runner))).collect();
    let mut each = |name: &str, help: &str, kind: &str, value: &dyn Fn(&Report) -> u64| {
        let name = format!("portcullis_ext_plugin_{name}");
        family(out, &name, help, kind);
        for (runner, report) in &reports {
            for (at, one) in report.iter().enumerate() {
                let labels = [("runner", runner.name()), ("process", &*at.to_string())];
                sample(out, &name, &labels, value(one));
            }
        }
    };
    each("process_ready", "Whether a process of a runner may be called", "gauge", &|one| one.ready.into());
    each("in_flight", "Calls at a process of a runner", "gauge", &|one| one.in_flight as u64);
    each("queued", "Calls that wait for a connection to it", "gauge", &|one| one.queued as u64);
    each("connections", "Connections to it", "gauge", &|one| one.connections as u64);
    each("restarts_total", "Times it ended by itself", "counter", &|one| one.story.restarts);
    each("failed_starts_total", "Times it did not start", "counter", &|one| one.story.failed_starts);
    each("circuit_breaker", "Its circuit breaker: 0 closed, 1 open, 2 half open", "gauge", &|one| {
        one.breaker as u64
    });
    const WAITING: &str = "portcullis_ext_plugin_waiting";
    family(out, WAITING, "Calls that wait for a runner to be ready", "gauge");
    for (runner, _) in &reports {
        sample(out, WAITING, &[("runner", runner.name())], runner.waiting());
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;
    use crate::ext_plugin::{error::CallError, runner::Limits};

    #[test]
    fn renders_what_was_counted() {
        let mut out = String::new();
        render(&mut out, &Runners::default());
        assert_eq!(out, "", "nothing without a runner");
        let runner = Runner::managed("py", 2, Limits::default());
        let series = runner.stats().series("ext-plugin-pre-req", "stop,rewrite");
        series.calls.observe(Duration::from_micros(70));
        series.failed(&CallError::Closed);
        series.hits.store(7, Relaxed);
        render(&mut out, &Runners::new(vec![Arc::new(runner)]));
        let labels = "runner=\"py\",hook=\"ext-plugin-pre-req\",plugin=\"stop,rewrite\"";
        for line in [
            format!("_call_duration_seconds_bucket{{{labels},call=\"http_req_call\",le=\"0.00005\"}} 0"),
            format!("_call_duration_seconds_bucket{{{labels},call=\"http_req_call\",le=\"0.0001\"}} 1"),
            format!("_call_duration_seconds_bucket{{{labels},call=\"http_req_call\",le=\"+Inf\"}} 1"),
            format!("_call_duration_seconds_sum{{{labels},call=\"http_req_call\"}} 0.00007"),
            format!("_call_duration_seconds_count{{{labels},call=\"http_req_call\"}} 1"),
            format!("_errors_total{{{labels},kind=\"closed\"}} 1"),
            format!("_tokens_total{{{labels},outcome=\"hit\"}} 7"),
            "_process_ready{runner=\"py\",process=\"1\"} 0".to_owned(),
            "_circuit_breaker{runner=\"py\",process=\"0\"} 0".to_owned(),
            "_waiting{runner=\"py\"} 0".to_owned(),
        ] {
            assert!(out.contains(&format!("portcullis_ext_plugin{line}\n")), "{line}\n{out}");
        }
        assert!(!out.contains("prepare_conf"), "what did not happen is not shown");
    }
}
