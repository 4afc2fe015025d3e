//! A resource's plugins, compiled and in running order, and how the phases walk through them.
//!
//! Overlaying chains (service under route, consumer over route) moves pointers only: every plugin
//! configuration is compiled once, on the resource that carries it.

use std::{ops::ControlFlow, sync::Arc};

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use pingora::http::ResponseHeader;
use tracing::warn;

use super::{
    contract::Hooks,
    credentials::Place,
    def::PluginDef,
    env::Origin,
    exchange::Exchange,
    fingerprint::Fingerprint,
    meta::Meta,
    phases::Phases,
    reply::{CONTINUE, Flow, Reply},
};

/// One plugin configuration, compiled.
pub struct Step {
    /// The plugin.
    pub def: &'static PluginDef,
    /// Its `_meta`.
    pub meta: Meta,
    /// Its hooks.
    pub hooks: Box<dyn Hooks>,
    /// The resource that carries its configuration.
    pub origin: Origin,
    /// Of what it was compiled from; an equal source needs no new step, and the old one keeps its counters.
    pub source: Fingerprint,
}

impl Step {
    /// The phases it runs in: none while `_meta.disable` is set. A disabled step stays in the chain all the same,
    /// because it masks a plugin of its name underneath.
    fn phases(&self) -> Phases {
        if self.meta.disable { Phases::NONE } else { self.hooks.phases() }
    }

    fn priority(&self) -> i64 {
        self.meta.priority.unwrap_or_else(|| self.def.priority.into())
    }

    /// The identity by which an exchange keeps private state.
    pub(super) fn identity(self: &Arc<Self>) -> usize {
        Arc::as_ptr(self) as usize
    }
}

/// Plugins in running order. Cheap to clone.
#[derive(Clone, Default)]
pub struct Chain {
    steps: Arc<[Arc<Step>]>,
    phases: Phases,
    /// Whether some step looks for credentials where logs would show them.
    credentials: bool,
}

/// Whether a step runs at all beside the chain it yields to. APISIX: `run_policy = "prefer_route"`.
fn yields(step: &Step, to: Option<&Chain>) -> bool {
    step.def.prefer_route && to.is_some_and(|chain| chain.runs(step.def.name))
}

impl Chain {
    /// Sorts the steps into running order: by priority, highest first; equals by name, so that the order never
    /// depends on how an object was written.
    pub fn new(mut steps: Vec<Arc<Step>>) -> Chain {
        steps.sort_by(|a, b| b.priority().cmp(&a.priority()).then_with(|| a.def.name.cmp(b.def.name)));
        let phases = steps.iter().fold(Phases::NONE, |all, step| all.and(step.phases()));
        let mut credentials = false;
        steps.iter().for_each(|step| step.hooks.credentials(&mut |_| credentials = true));
        Chain { steps: steps.into(), phases, credentials }
    }

    /// Whether some step has a hook in this phase.
    pub fn has(&self, phase: Phases) -> bool {
        self.phases.has(phase)
    }

    /// Whether some step has a hook in one of these phases.
    pub fn meets(&self, phases: Phases) -> bool {
        self.phases.meets(phases)
    }

    /// Whether there is no step.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// The steps in running order.
    pub fn steps(&self) -> &[Arc<Step>] {
        &self.steps
    }

    /// Whether some step looks for credentials in places that logs may show.
    pub(super) fn has_credentials(&self) -> bool {
        self.credentials
    }

    /// Tells where the steps look for credentials.
    pub(super) fn credentials(&self, tell: &mut dyn FnMut(Place<'_>)) {
        self.steps.iter().for_each(|step| step.hooks.credentials(tell));
    }

    /// Whether a plugin takes part.
    pub fn contains(&self, name: &str) -> bool {
        self.steps.iter().any(|step| step.def.name == name)
    }

    /// This chain with `over` laid on top: a plugin of `over` replaces the one of the same name.
    pub fn overlaid(&self, over: &Chain) -> Chain {
        if over.is_empty() {
            return self.clone();
        }
        let kept = self.steps.iter().filter(|step| !over.contains(step.def.name));
        Chain::new(kept.chain(over.steps.iter()).cloned().collect())
    }

    /// Whether a plugin takes part and is not switched off.
    fn runs(&self, name: &str) -> bool {
        self.steps.iter().any(|step| step.def.name == name && !step.meta.disable)
    }

    /// Runs the rewrite hooks.
    pub async fn rewrite(&self, x: &mut Exchange<'_>) -> Flow {
        self.run(Phases::REWRITE, x, |_| true).await
    }

    /// Runs the rewrite hooks of plugins that a consumer brought: those the route did not have, never auth ones.
    /// APISIX: phase `rewrite_in_consumer`.
    pub async fn rewrite_newcomers(&self, before: &Chain, x: &mut Exchange<'_>) -> Flow {
        self.run(Phases::REWRITE, x, |step| !step.def.is_auth() && !before.contains(step.def.name)).await
    }

    /// Runs the access hooks.
    pub async fn access(&self, x: &mut Exchange<'_>) -> Flow {
        self.run(Phases::ACCESS, x, |_| true).await
    }

    /// Runs the before_proxy hooks.
    pub async fn before_proxy(&self, x: &mut Exchange<'_>) -> Flow {
        self.run(Phases::BEFORE_PROXY, x, |_| true).await
    }

    async fn run(&self, phase: Phases, x: &mut Exchange<'_>, select: impl Fn(&Step) -> bool) -> Flow {
        if !self.has(phase) {
            return CONTINUE;
        }
        for step in self.steps.iter() {
            if !step.phases().has(phase) || !select(step) {
                continue;
            }
            if step.meta.filter_needs_body
                && let Err(reply) = x.body().await
            {
                return ControlFlow::Break(step.stopped(reply, x));
            }
            if !step.applies(x) {
                continue;
            }
            x.running = step.identity();
            let flow = match phase {
                Phases::REWRITE => step.hooks.rewrite(x).await,
                Phases::ACCESS => step.hooks.access(x).await,
                _ => step.hooks.before_proxy(x).await,
            };
            if let ControlFlow::Break(reply) = flow {
                return ControlFlow::Break(step.stopped(reply, x));
            }
        }
        CONTINUE
    }

    /// Runs the header_filter hooks.
    pub fn header_filter(&self, x: &mut Exchange<'_>, head: &mut ResponseHeader) {
        for step in self.for_phase(Phases::HEADER_FILTER) {
            if step.applies(x) {
                x.running = step.identity();
                step.hooks.header_filter(x, head);
            }
        }
    }

    /// Runs the body_filter hooks.
    pub fn body_filter(&self, x: &mut Exchange<'_>, chunk: &mut Option<Bytes>, last: bool) {
        for step in self.for_phase(Phases::BODY_FILTER) {
            if step.applies(x) {
                x.running = step.identity();
                step.hooks.body_filter(x, chunk, last);
            }
        }
    }

    /// Runs the log hooks; those of a global rule yield to the route's chain.
    pub fn log(&self, x: &mut Exchange<'_>, yield_to: Option<&Chain>) {
        for step in self.for_phase(Phases::LOG) {
            if !yields(step, yield_to) && step.applies(x) {
                x.running = step.identity();
                step.hooks.log(x);
            }
        }
    }

    /// The steps with a hook in one of these phases, in running order.
    pub(super) fn for_phase(&self, phases: Phases) -> impl Iterator<Item = &Arc<Step>> {
        let steps: &[Arc<Step>] = if self.meets(phases) { &self.steps } else { &[] };
        steps.iter().filter(move |step| step.phases().meets(phases))
    }
}

impl Step {
    /// `_meta.filter`, evaluated once per request. APISIX: `plugin.lua meta_filter`.
    pub(super) fn applies(self: &Arc<Self>, x: &mut Exchange<'_>) -> bool {
        let Some(filter) = &self.meta.filter else { return true };
        let identity = self.identity();
        if let Some((_, outcome)) = x.ctx.filters.iter().find(|(who, _)| *who == identity) {
            return *outcome;
        }
        let outcome = filter.eval(&*x);
        x.ctx.filters.push((identity, outcome));
        outcome
    }

    /// The one place where a plugin's refusal is noted: a line in the log, a count, and, if the operator wants it,
    /// a header.
    pub(super) fn stopped(&self, reply: Reply, x: &mut Exchange<'_>) -> Reply {
        x.ctx.answered_by = Some(self.def.name);
        if reply.status < 400 {
            return self.meta.finish(reply);
        }
        let class = reply.class().label();
        x.world.metrics().refusals.with_label_values(&[self.def.name, class]).inc();
        warn!(
            plugin = self.def.name,
            status = reply.status,
            route = x.ctx.route.as_ref().map(|route| &*route.id),
            request_id = x.ctx.id(),
            consumer = x.ctx.consumer.as_ref().map(|consumer| &*consumer.username),
            class,
            reason = reply.reason.as_deref(),
            "request refused"
        );
        let mut reply = self.meta.finish(reply);
        if x.world.tells_why() {
            let value = told(self.def.name, reply.reason.as_deref().unwrap_or(class));
            reply.headers.push((X_PORTCULLIS_REFUSED, value));
        }
        reply
    }
}

/// Tells why a request was refused, while `portcullis.debug_auth` is on.
const X_PORTCULLIS_REFUSED: HeaderName = HeaderName::from_static("x-portcullis-refused");
/// A reason may quote what a client sent; no more of it is told, in bytes.
const TOLD: usize = 256;

/// `PLUGIN: REASON`, fit for a header: what is not printable ASCII is shown as `?`.
fn told(plugin: &str, reason: &str) -> HeaderValue {
    let shown = |c: char| if c == ' ' || c.is_ascii_graphic() { c } else { '?' };
    let text: String =
        plugin.chars().chain(": ".chars()).chain(reason.chars().map(shown)).take(TOLD).collect();
    HeaderValue::try_from(text).expect("printable ASCII is a header value")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(reason: &str, expected: &str) {
        assert_eq!(told("key-auth", reason), expected);
    }

    #[test]
    fn reasons_fit_into_a_header() {
        check("Missing API key in request", "key-auth: Missing API key in request");
        check("user é\r\nX: y\t", "key-auth: user ???X: y?");
        let long = told("key-auth", &"x".repeat(1000));
        assert_eq!(long.len(), TOLD);
    }
}
