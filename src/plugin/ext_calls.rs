//! The calls to runners of external plugins that an exchange has cost, for the logs.

use std::{sync::Arc, time::Duration};

use super::{exchange::Exchange, request::RequestCtx};
use crate::ext_plugin::runner::Runner;

/// One call.
#[derive(Clone)]
pub struct ExtCall {
    /// The runner.
    pub runner: Arc<Runner>,
    /// From the wish to the reply.
    pub took: Duration,
    /// What came of it: what the runner decided, or the kind of the error.
    pub status: &'static str,
}

/// Notes a call.
pub fn note(x: &mut Exchange<'_>, call: ExtCall) {
    x.ctx.ext_calls.push(call);
}

/// The variables `ext_plugin_runner`, `ext_plugin_time` and `ext_plugin_status`; several calls stand behind each other
/// as the tries do in `upstream_addr`.
pub(super) fn variable(ctx: &RequestCtx, name: &str) -> Option<String> {
    if ctx.ext_calls.is_empty() {
        return None;
    }
    let show = |call: &ExtCall| match name {
        "ext_plugin_runner" => Some(call.runner.name().to_owned()),
        "ext_plugin_time" => Some(format!("{:.6}", call.took.as_secs_f64())),
        "ext_plugin_status" => Some(call.status.to_owned()),
        _ => None,
    };
    let shown: Option<Vec<String>> = ctx.ext_calls.iter().map(show).collect();
    shown.map(|shown| shown.join(", "))
}
