//! What the ext-plugin-* plugins share: their configuration, the call for a request, what its decision changes.
//!
//! APISIX: plugins/ext-plugin/init.lua.
//!
//! Differs from APISIX:
//! - `runner` and `timeout_ms` are ours: which runner of config.yaml is called, and how long a call may take.
//! - A path equal to the one that was sent is no change: runners send it back, and APISIX escapes it once more.
//! - Arguments are changed also when an earlier plugin had rewritten the URI; the query keeps its order.
//! - A body beyond what a frame carries is refused with 413 instead of 503.
//! - Headers of the message framing (Content-Length, Transfer-Encoding) are the gateway's own: edits of them are not
//!   made. Names and values that HTTP does not have are left out; APISIX answers 500.

use std::{ops::ControlFlow, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, header};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    ext_plugin::{
        call::{Answers, Called, Caller, Subject, Terms},
        error::CallError,
        message::{Action, Entry, RequestCall, Rewrite, Stop},
        runner::{Runner, Runners},
    },
    net::{
        args,
        escape::{Escape, escape_into},
        lossless,
    },
    plugin::{
        body::{self, BodyState},
        env::{BuildEnv, Carry},
        exchange::Exchange,
        ext_calls::{self, ExtCall},
        reply::{CONTINUE, Flow, Reply, ReplyBody},
    },
    vars::var::Var,
};

/// The configuration.
#[derive(Clone, Debug, Deserialize)]
pub struct Config {
    /// The runner's plugins in running order; none: all of the runner's own choice.
    #[serde(default)]
    pub conf: Vec<Entrance>,
    /// Go on without the runner's plugins when it fails.
    #[serde(default)]
    pub allow_degradation: bool,
    /// The name of the runner; the first of config.yaml if there is none.
    pub runner: Option<String>,
    /// For a whole call, in milliseconds; `ext-plugin.timeout.call` of config.yaml if there is none.
    pub timeout_ms: Option<u64>,
}

/// One of the runner's plugins.
#[derive(Clone, Debug, Deserialize)]
pub struct Entrance {
    /// Its name in the runner.
    pub name: String,
    /// Its configuration, which only it understands.
    pub value: String,
}

/// The schema of all three plugins.
pub fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "conf": {
                "description": "the runner's plugins, in running order",
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {
                        "name": {
                            "description": "its name in the runner",
                            "type": "string",
                            "maxLength": 128,
                            "minLength": 1
                        },
                        "value": {"description": "its configuration, as it understands it", "type": "string"}
                    },
                    "required": ["name", "value"]
                },
                "minItems": 1
            },
            "allow_degradation": {
                "description": "go on without the runner when it fails",
                "type": "boolean",
                "default": false
            },
            "runner": {
                "description": "the runner's name in config.yaml; the first one when absent",
                "type": "string",
                "minLength": 1
            },
            "timeout_ms": {
                "description": "for a whole call, in milliseconds; ext-plugin.timeout.call when absent",
                "type": "integer",
                "minimum": 1
            }
        }
    })
}

/// The runners of config.yaml, as the assembler left them.
pub fn runners(carry: &Carry) -> Arc<Runners> {
    carry.state("ext-plugin", Runners::default)
}

/// Finds a configuration's runner and binds it to that; ext-plugin-post-resp does the same.
///
/// # Errors
/// There is no runner of that name.
pub fn caller(config: &Config, plugin: &str, env: &BuildEnv<'_>) -> Result<Caller, String> {
    let runner: Option<Arc<Runner>> = match &config.runner {
        None => runners(env.carry).find(None).cloned(),
        Some(name) => match runners(env.carry).find(Some(name)) {
            Some(runner) => Some(runner.clone()),
            None => {
                return Err(format!("no runner is called {name:?} in ext-plugin.runners of config.yaml"));
            }
        },
    };
    let entries = config.conf.iter().map(|entry| (entry.name.clone(), entry.value.clone())).collect();
    let terms =
        Terms { limit: config.timeout_ms.map(Duration::from_millis), optional: config.allow_degradation };
    Ok(Caller::new(runner, &env.origin.to_string(), plugin, entries, terms))
}

/// What the logs say of a call; `name` is a word for its reply.
pub fn call<T>(
    caller: &Caller,
    called: &Called<T>,
    name: impl FnOnce(&T) -> &'static str,
) -> Option<ExtCall> {
    let runner = caller.runner()?.clone();
    let status = called.reply.as_ref().map_or_else(CallError::kind, name);
    Some(ExtCall { runner, took: called.took, status })
}

/// What a failed call means for the client: nothing when the configuration allows for it.
pub fn failed(error: &CallError, allow_degradation: bool) -> Flow {
    if allow_degradation {
        tracing::debug!(%error, "the runner failed; the request goes on without it");
        return CONTINUE;
    }
    Reply::status(error.status()).because(error.to_string()).into()
}

/// ext-plugin-pre-req or ext-plugin-post-req.
pub struct RequestPlugin {
    caller: Caller,
    allow_degradation: bool,
}

impl RequestPlugin {
    /// Compiles a configuration.
    ///
    /// # Errors
    /// See [`caller`].
    pub fn build(config: Config, plugin: &'static str, env: &BuildEnv<'_>) -> Result<Self, String> {
        let caller = caller(&config, plugin, env)?;
        Ok(Self { caller, allow_degradation: config.allow_degradation })
    }

    /// Asks the runner and does what it says.
    pub async fn run(&self, x: &mut Exchange<'_>) -> Flow {
        let sent = Sent::new(x);
        let called = self.caller.request(&mut Passing { asked: Asked { x }, sent: &sent }).await;
        if let Some(call) = call(&self.caller, &called, Action::name) {
            ext_calls::note(x, call);
        }
        let done = match called.reply {
            Ok(Action::None) => return CONTINUE,
            Ok(Action::Stop(stop)) => answer(stop, x),
            Ok(Action::Rewrite(rewrite)) => apply(rewrite, &sent, x).await.map(|()| CONTINUE),
            Err(error) => Err(error),
        };
        done.unwrap_or_else(|error| failed(&error, self.allow_degradation))
    }
}

/// What was sent of the target, to tell changes by.
struct Sent {
    path: Bytes,
    args: String,
    host: Option<HeaderValue>,
}

impl Sent {
    /// A query that an earlier plugin put into the URI takes the place of the request's.
    fn new(x: &mut Exchange<'_>) -> Self {
        let path = match &x.ctx.edits.uri {
            None => Bytes::copy_from_slice(&lossless::to_bytes(x.path())),
            Some(uri) => {
                let (path, query) = match uri.split_once('?') {
                    Some((path, query)) => (path, Some(query.to_owned())),
                    None => (uri.as_str(), None),
                };
                let path = Bytes::copy_from_slice(&lossless::to_bytes(path));
                if query.is_some() {
                    x.ctx.edits.args = query;
                }
                path
            }
        };
        let host = match &x.ctx.edits.host {
            Some(host) => Some(host.clone()),
            None => x.http_host().and_then(|host| HeaderValue::from_str(host).ok()),
        };
        Self { path, args: x.args().to_owned(), host }
    }
}

/// Answers the runner's questions about a request.
pub struct Asked<'a, 'x> {
    /// The request.
    pub x: &'a mut Exchange<'x>,
}

impl Asked<'_, '_> {
    async fn body(&mut self) -> Result<Bytes, CallError> {
        let refused = |reply: Reply| CallError::Unanswerable {
            status: reply.status,
            why: reply.reason.unwrap_or_default(),
        };
        self.x.body().await.map_err(refused)
    }
}

impl Answers for Asked<'_, '_> {
    async fn var(&mut self, name: &str) -> Result<Option<Bytes>, CallError> {
        let var = Var::parse(name);
        if var.needs_body() {
            self.body().await?;
        }
        Ok(self.x.var(&var).map(|text| Bytes::copy_from_slice(&lossless::to_bytes(&text))))
    }

    async fn request_body(&mut self) -> Result<Option<Bytes>, CallError> {
        Ok(Some(self.body().await?).filter(|body| !body.is_empty()))
    }

    async fn response_body(&mut self) -> Result<Option<Bytes>, CallError> {
        tracing::debug!("a runner asked for the body of a response in a call for a request");
        Ok(None)
    }
}

/// A request that passes through a runner's plugins.
struct Passing<'a, 'x> {
    asked: Asked<'a, 'x>,
    sent: &'a Sent,
}

impl Subject for Passing<'_, '_> {
    fn request(&self) -> RequestCall<'_> {
        let x = &*self.asked.x;
        RequestCall {
            client: x.client_ip(),
            method: x.method(),
            path: &self.sent.path,
            args: &self.sent.args,
            headers: &x.session.req_header().headers,
            host: self.sent.host.as_ref().map(HeaderValue::as_bytes),
        }
    }
}

impl Answers for Passing<'_, '_> {
    async fn var(&mut self, name: &str) -> Result<Option<Bytes>, CallError> {
        self.asked.var(name).await
    }

    async fn request_body(&mut self) -> Result<Option<Bytes>, CallError> {
        self.asked.request_body().await
    }

    async fn response_body(&mut self) -> Result<Option<Bytes>, CallError> {
        self.asked.response_body().await
    }
}

/// The answer that the runner gives in place of the upstream.
fn answer(stop: Stop, x: &mut Exchange<'_>) -> Result<Flow, CallError> {
    let status = if stop.status == 0 { 200 } else { stop.status };
    if !(200..=999).contains(&status) {
        return Err(CallError::Absurd(format!("with status {status}")));
    }
    const OURS: [HeaderName; 5] =
        [header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::CONNECTION, header::SERVER, header::DATE];
    set_response_headers(&stop.headers, &OURS, x);
    // APISIX has no way to say that the body is empty: then it is the one that the status has by itself.
    let body = if stop.body.is_empty() { ReplyBody::Default } else { ReplyBody::Bytes(stop.body) };
    let mut reply = Reply::status(status);
    reply.body = body;
    Ok(ControlFlow::Break(reply.because("a plugin in the runner answered")))
}

/// Headers of a response that a plugin in front of the upstream cannot know. APISIX: `exclude_resp_header`.
const UPSTREAMS: [HeaderName; 10] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::LOCATION,
    header::SERVER,
    header::WWW_AUTHENTICATE,
    header::CONTENT_ENCODING,
    header::CONTENT_TYPE,
    header::CONTENT_LOCATION,
    header::CONTENT_LANGUAGE,
];

/// Changes the request; in APISIX's order.
async fn apply(rewrite: Rewrite, sent: &Sent, x: &mut Exchange<'_>) -> Result<(), CallError> {
    let path = rewrite.path.filter(|path| *path != sent.path).map(|path| {
        let mut escaped = String::with_capacity(path.len() + 8);
        escape_into(&mut escaped, &lossless::from_bytes(&path), Escape::Path);
        escaped
    });
    for entry in &rewrite.headers {
        set_request_header(entry, x);
    }
    if !rewrite.body.is_empty() {
        replace_body(rewrite.body, x).await?;
    }
    set_response_headers(&rewrite.response_headers, &UPSTREAMS, x);
    let args = (!rewrite.args.is_empty()).then(|| new_args(&sent.args, &rewrite.args));
    let rewritten = x.ctx.edits.uri.is_some();
    if path.is_some() || (rewritten && args.is_some()) {
        let earlier = || lossless::from_bytes(&sent.path).into_owned();
        let mut uri = path.unwrap_or_else(earlier);
        let args = args.as_deref().unwrap_or(&sent.args);
        if !args.is_empty() {
            uri.push('?');
            uri.push_str(args);
        }
        x.ctx.edits.uri = Some(uri);
    }
    if args.is_some() {
        x.ctx.edits.args = args;
    }
    Ok(())
}

/// A name and a value that HTTP has; the inner `None` deletes.
fn field(entry: &Entry) -> Option<(HeaderName, Option<HeaderValue>)> {
    let name = HeaderName::from_bytes(&entry.name).ok()?;
    let value = match &entry.value {
        Some(value) => Some(HeaderValue::from_maybe_shared(value.clone()).ok()?),
        None => None,
    };
    Some((name, value))
}

fn set_request_header(entry: &Entry, x: &mut Exchange<'_>) {
    let Some((name, value)) = field(entry) else { return };
    if name == header::CONTENT_LENGTH || name == header::TRANSFER_ENCODING {
        return;
    }
    match value {
        Some(value) => {
            x.set_header(&name, value.clone());
            if name == header::HOST {
                x.ctx.edits.host = Some(value);
            }
        }
        // A request without a Host is none.
        None if name == header::HOST => {}
        None => x.remove_header(&name),
    }
}

/// The letters in which a response's header leaves that a runner set. APISIX: `str_lower(entry:Name())`.
pub fn in_lower_case(name: &HeaderName) -> Bytes {
    Bytes::copy_from_slice(name.as_str().as_bytes())
}

/// Sets headers of the response to come: the first of a name replaces, later ones stand beside it, one without a
/// value removes. Those in `not` are left alone.
fn set_response_headers(entries: &[Entry], not: &[HeaderName], x: &mut Exchange<'_>) {
    let mut seen: Vec<HeaderName> = Vec::new();
    for entry in entries {
        let Some((name, value)) = field(entry).filter(|(name, _)| !not.contains(name)) else { continue };
        let (first, letters) = (!seen.contains(&name), in_lower_case(&name));
        match value {
            Some(value) if first => x.set_response_header_as(letters, name.clone(), value),
            Some(value) => x.add_response_header_as(letters, name.clone(), value),
            None => x.ctx.response_headers.retain(|other| other.name != name),
        }
        if first {
            seen.push(name);
        }
    }
}

/// The old body is read first: what is still on the connection would be taken for the next request.
async fn replace_body(new: Bytes, x: &mut Exchange<'_>) -> Result<(), CallError> {
    let had_none = x.ctx.body == BodyState::Unread && x.session.as_mut().is_body_empty();
    let http1 = x.session.as_downstream().as_http1().is_some();
    if had_none && !http1 {
        let why = "a body cannot be given to an HTTP/2 request that has none".to_owned();
        return Err(CallError::Unanswerable { status: 503, why });
    }
    Asked { x }.body().await?;
    if !http1 {
        x.set_header(&header::CONTENT_LENGTH, new.len().into());
    }
    body::replace(x.ctx, new);
    Ok(())
}

/// The query with the runner's changes: without a value an argument is deleted, the first mention of a name
/// replaces all its values, later ones stand beside it; what is not mentioned stays.
fn new_args(old: &str, changes: &[Entry]) -> String {
    let text = |bytes: &Bytes| lossless::from_bytes(bytes).into_owned();
    let mut pairs: Vec<(String, Option<String>)> = args::pairs(old.as_bytes())
        .map(|(name, value)| (name.into_owned(), value.map(std::borrow::Cow::into_owned)))
        .collect();
    let mut mentioned: Vec<String> = Vec::new();
    for change in changes {
        let name = text(&change.name);
        let Some(value) = &change.value else {
            pairs.retain(|(other, _)| *other != name);
            continue;
        };
        let place = pairs.iter().position(|(other, _)| *other == name);
        match place {
            Some(place) if !mentioned.contains(&name) => {
                pairs[place].1 = Some(text(value));
                let mut at = 0;
                pairs.retain(|(other, _)| {
                    at += 1;
                    at - 1 <= place || *other != name
                });
            }
            _ => pairs.push((name.clone(), Some(text(value)))),
        }
        mentioned.push(name);
    }
    args::encode(pairs.iter().map(|(name, value)| (name.as_str(), value.as_deref())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::{
        request::ResponseField,
        testing::{Kit, headers},
    };

    fn entries(list: &[(&str, Option<&str>)]) -> Vec<Entry> {
        let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        list.iter().map(|(name, value)| Entry { name: bytes(name), value: value.map(bytes) }).collect()
    }

    #[track_caller]
    fn check_args(old: &str, changes: &[(&str, Option<&str>)], expected: &str) {
        assert_eq!(new_args(old, &entries(changes)), expected, "{old} {changes:?}");
    }

    #[test]
    fn arguments() {
        check_args("a=1&b=2&a=3", &[("a", Some("x"))], "a=x&b=2");
        check_args("a=1&b=2", &[("a", None)], "b=2");
        check_args("a=1", &[("c", Some("x")), ("c", Some("y"))], "a=1&c=x&c=y");
        check_args("a=1&a=2", &[("a", Some("x")), ("a", Some("y"))], "a=x&a=y");
        check_args("z&y=&x=%20", &[("a", Some(""))], "z&y=&x=%20&a=");
        check_args("a=1", &[("a", Some("x")), ("a", None)], "");
        check_args("a=1", &[("a", None), ("a", Some("x"))], "a=x");
        check_args("", &[("a b", Some("c&d"))], "a%20b=c%26d");
    }

    /// Applies a rewrite to `GET /a%20b?x=1` and shows the target that the upstream would see.
    #[track_caller]
    fn check_target(before: Option<&str>, path: Option<&str>, args: &[(&str, Option<&str>)], expected: &str) {
        let seen = Kit::get("/a?x=1&y", &[]).run(async |x| {
            x.ctx.path = Some("/a b".into());
            x.ctx.edits.uri = before.map(str::to_owned);
            let sent = Sent::new(x);
            let path = path.map(|path| Bytes::copy_from_slice(path.as_bytes()));
            let rewrite = Rewrite { path, args: entries(args), ..Rewrite::default() };
            apply(rewrite, &sent, x).await.unwrap();
            let args = x.ctx.edits.args.clone().map(|args| format!("args {args}"));
            x.ctx.edits.uri.clone().or(args).unwrap_or_default()
        });
        assert_eq!(seen, expected, "{before:?} {path:?} {args:?}");
    }

    #[test]
    fn targets() {
        check_target(None, None, &[], "");
        check_target(None, Some("/a b"), &[], "");
        check_target(None, Some("/c?d%"), &[], "/c%3Fd%25?x=1&y");
        check_target(None, Some("/c"), &[("x", None)], "/c?y");
        check_target(None, Some("/c"), &[("x", None), ("y", None)], "/c");
        check_target(None, None, &[("x", Some("2"))], "args x=2&y");
        check_target(Some("/r"), None, &[], "/r");
        check_target(Some("/r?q=1"), None, &[("q", Some("2"))], "/r?q=2");
        check_target(Some("/r?q=1"), Some("/r"), &[], "/r?q=1");
        check_target(Some("/r?q=1"), Some("/s"), &[], "/s?q=1");
    }

    #[test]
    fn request_headers() {
        let list = entries(&[
            ("X-A", Some("1")),
            ("x-a", Some("2")),
            ("x-gone", None),
            ("Host", Some("b.com")),
            ("content-length", Some("9")),
            ("bad name", Some("x")),
            ("x-bad", Some("a\r\nb")),
        ]);
        let seen = Kit::get("/", &[("X-Gone", "1"), ("X-Kept", "1")]).run(async |x| {
            let sent = Sent::new(x);
            apply(Rewrite { headers: list, ..Rewrite::default() }, &sent, x).await.unwrap();
            assert_eq!(x.ctx.edits.host, Some(HeaderValue::from_static("b.com")));
            let mut seen: Vec<String> = headers(x)
                .iter()
                .map(|(name, value)| format!("{name}={}", value.to_str().unwrap()))
                .collect();
            seen.sort();
            seen
        });
        assert_eq!(seen, ["host=b.com", "x-a=2", "x-kept=1"]);
    }

    #[test]
    fn response_headers() {
        let list = entries(&[
            ("X-A", Some("1")),
            ("x-a", Some("2")),
            ("Content-Type", Some("x")),
            ("x-gone", Some("1")),
            ("X-Gone", None),
        ]);
        let seen = Kit::get("/", &[]).run(async |x| {
            x.set_response_header(HeaderName::from_static("x-a"), HeaderValue::from_static("0"));
            let sent = Sent::new(x);
            apply(Rewrite { response_headers: list, ..Rewrite::default() }, &sent, x).await.unwrap();
            let show = |field: &ResponseField| format!("{}={}", field.name, field.value.to_str().unwrap());
            x.ctx.response_headers.iter().map(show).collect::<Vec<_>>()
        });
        assert_eq!(seen, ["x-a=1", "x-a=2"]);
    }

    #[test]
    fn bodies() {
        let replaced = |kit: Kit| {
            kit.run(async |x| {
                let sent = Sent::new(x);
                let rewrite = Rewrite { body: Bytes::from_static(b"new"), ..Rewrite::default() };
                apply(rewrite, &sent, x).await.unwrap();
                x.ctx.body.clone()
            })
        };
        let expected = BodyState::Read(Bytes::from_static(b"new"));
        assert_eq!(replaced(Kit::post("/", "text/plain", "old body")), expected);
        assert_eq!(replaced(Kit::get("/", &[])), expected);
    }

    #[track_caller]
    fn check_stop(status: u16, body: &'static str, expected: &str) {
        let stop = Stop { status, headers: Vec::new(), body: Bytes::from_static(body.as_bytes()) };
        let said = Kit::get("/", &[]).run(async |x| match answer(stop, x) {
            Ok(flow) => crate::plugin::testing::answer(&flow),
            Err(error) => error.to_string(),
        });
        assert_eq!(said, expected);
    }

    #[test]
    fn stops() {
        check_stop(0, "", "200");
        check_stop(201, "hi", "201 hi");
        check_stop(404, "", "404");
        check_stop(100, "", "the runner answered with status 100");
        check_stop(1000, "", "the runner answered with status 1000");
    }
}
