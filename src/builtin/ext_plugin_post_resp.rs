//! ext-plugin-post-resp: plugins in a runner see the upstream's answer before the client does.
//!
//! <https://apisix.apache.org/docs/apisix/plugins/ext-plugin-post-resp/>. Configuration and runners are shared with
//! the other two: [`super::shared::ext_plugin`].
//!
//! Differs from APISIX, where this plugin asks the upstream itself and everything else of the gateway is left out:
//! - The request takes the normal way: retries, time limits, TLS, kept connections, health checks, forwarded headers,
//!   request bodies that stream. The upstream is asked once, also when the answer has no body.
//! - Headers of the runner change the upstream's and leave the others; `replace_headers` is for APISIX's way. One
//!   without a value is removed. Without headers in the reply all of the upstream's stay, Content-Type included.
//! - Content-Length, Transfer-Encoding, Connection, Server and Date are the gateway's own: edits of them are not made.
//! - A body streams unless the runner asks for it or replaces it; asked for twice, it is the same.
//! - When the runner fails, the client gets a 503 with an error page and nothing of the upstream's answer; with
//!   `allow_degradation` it gets the answer whole, headers included.
//! - An answer to 101 (an upgrade) is not shown to the runner.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, header};
use pingora::http::ResponseHeader;
use serde::Deserialize;
use serde_json::{Value, json};

use super::shared::{ext_plugin, header as fields};
use crate::{
    ext_plugin::{
        call::{Answers, Caller},
        error::CallError,
        frame::MAX_PAYLOAD,
        message::{Entry, ResponseCall, ResponseChange},
    },
    net::lossless,
    plugin::{
        answer::{Answer, Link},
        contract,
        env::BuildEnv,
        exchange::Exchange,
        ext_calls,
        phases::Phases,
        reply::{CONTINUE, Flow, Reply},
    },
    vars::var::Var,
};

/// What a frame needs around a body, in bytes.
const FRAME_ROOM: usize = 64;

/// The plugin's configuration.
#[derive(Clone, Debug, Deserialize)]
pub struct Config {
    /// What all three have.
    #[serde(flatten)]
    pub shared: ext_plugin::Config,
    /// Headers of the runner's reply, if it has any, take the place of all the upstream's.
    #[serde(default)]
    pub replace_headers: bool,
}

/// The compiled plugin.
pub struct Plugin {
    caller: Caller,
    allow_degradation: bool,
    replace_headers: bool,
}

impl contract::Plugin for Plugin {
    const NAME: &'static str = "ext-plugin-post-resp";
    const PRIORITY: i32 = -4000;
    const PHASES: Phases = Phases::RESPONSE;
    type Config = Config;

    fn schema() -> Value {
        let mut schema = ext_plugin::schema();
        schema["properties"]["replace_headers"] = json!({
            "description": "headers of the reply take the place of all the upstream's",
            "type": "boolean",
            "default": false
        });
        schema
    }

    fn build(config: Config, env: &BuildEnv<'_>) -> Result<Self, String> {
        let Config { shared, replace_headers } = config;
        let caller = ext_plugin::caller(&shared, Self::NAME, env)?;
        Ok(Self { caller, allow_degradation: shared.allow_degradation, replace_headers })
    }

    async fn response(&self, answer: &mut Answer) -> Flow {
        let Answer { head, link } = answer;
        let called = self.caller.response(&ResponseCall { head: &*head }, &mut Asked { link }).await;
        if let Some(call) = ext_plugin::call(&self.caller, &called, ResponseChange::name) {
            link.ask(move |x| ext_calls::note(x, call)).await;
        }
        match called.reply.and_then(|change| apply(change, self.replace_headers, head)) {
            Ok(None) => CONTINUE,
            Ok(Some(body)) => {
                link.replace(body);
                CONTINUE
            }
            Err(error) => ext_plugin::failed(&error, self.allow_degradation),
        }
    }
}

/// Answers the runner's questions.
struct Asked<'a> {
    link: &'a mut Link,
}

fn refused(reply: Reply) -> CallError {
    CallError::Unanswerable { status: reply.status, why: reply.reason.unwrap_or_default() }
}

impl Answers for Asked<'_> {
    async fn var(&mut self, name: &str) -> Result<Option<Bytes>, CallError> {
        let var = Var::parse(name);
        if var.needs_body() {
            self.link.request_body().await.map_err(refused)?;
        }
        let value = move |x: &mut Exchange<'_>| {
            x.var(&var).map(|text| Bytes::copy_from_slice(&lossless::to_bytes(&text)))
        };
        Ok(self.link.ask(value).await)
    }

    async fn request_body(&mut self) -> Result<Option<Bytes>, CallError> {
        let body = self.link.request_body().await.map_err(refused)?;
        Ok(Some(body).filter(|body| !body.is_empty()))
    }

    async fn response_body(&mut self) -> Result<Option<Bytes>, CallError> {
        self.link.body(MAX_PAYLOAD - FRAME_ROOM).await.map(Some).map_err(refused)
    }
}

/// What the gateway writes itself.
const OURS: [HeaderName; 7] = [
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::CONNECTION,
    header::UPGRADE,
    header::TRAILER,
    header::SERVER,
    header::DATE,
];

/// Changes the head as the runner said, and gives the new body if there is one. Changes nothing when it cannot.
fn apply(
    change: ResponseChange,
    replace_headers: bool,
    head: &mut ResponseHeader,
) -> Result<Option<Bytes>, CallError> {
    if change.status != 0 {
        if !(200..=999).contains(&change.status) {
            return Err(CallError::Absurd(format!("with status {}", change.status)));
        }
        head.set_status(change.status).map_err(|e| CallError::Absurd(e.to_string()))?;
        // The upstream's words belong to its own status.
        head.set_reason_phrase(None).map_err(|e| CallError::Absurd(e.to_string()))?;
    }
    let new_body = !change.body.is_empty();
    if replace_headers && !change.headers.is_empty() {
        clear(head, new_body);
    }
    if new_body {
        // Of the old body, all of it; the reply may say anew what its own is.
        fields::body_modified(head);
        for name in [header::CONTENT_RANGE, header::ACCEPT_RANGES] {
            head.remove_header(&name);
        }
    }
    set_headers(head, &change.headers);
    Ok(Some(change.body).filter(|_| new_body))
}

/// Removes the upstream's headers, except what its body cannot be read without.
fn clear(head: &mut ResponseHeader, new_body: bool) {
    let names: Vec<HeaderName> = head.headers.keys().cloned().collect();
    for name in names {
        let of_body = !new_body && name == header::CONTENT_ENCODING;
        if !of_body && !OURS.contains(&name) {
            head.remove_header(&name);
        }
    }
}

/// The first of a name replaces, later ones stand beside it, one without a value removes.
fn set_headers(head: &mut ResponseHeader, entries: &[Entry]) {
    for (at, entry) in entries.iter().enumerate() {
        // What HTTP does not have is left out.
        let Ok(name) = HeaderName::from_bytes(&entry.name) else { continue };
        if OURS.contains(&name) {
            continue;
        }
        let Some(value) = &entry.value else {
            head.remove_header(&name);
            continue;
        };
        let Ok(value) = HeaderValue::from_maybe_shared(value.clone()) else { continue };
        let named = |earlier: &Entry| earlier.name.eq_ignore_ascii_case(&entry.name);
        if entries[..at].iter().any(named) {
            // Fails only beyond the 32,768 distinct names a header map can hold: then the header stays out.
            let _ = head.append_header(ext_plugin::in_lower_case(&name), value);
        } else {
            fields::put_as(head, ext_plugin::in_lower_case(&name), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::testing::{compile_schemas, plugin, refusal, response};

    /// Shows status, headers and body of an answer after a change; `!` in front stands for `replace_headers`.
    #[track_caller]
    fn check(
        before: &[(&str, &str)],
        status: u16,
        headers: &[(&str, Option<&str>)],
        body: &str,
        expected: &str,
    ) {
        let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        let entry =
            |(name, value): &(&str, Option<&str>)| Entry { name: bytes(name), value: value.map(bytes) };
        let headers = headers.iter().map(entry).collect();
        let change = ResponseChange { status, headers, body: bytes(body) };
        let (replace, expected) = expected.strip_prefix('!').map_or((false, expected), |rest| (true, rest));
        let mut head = response(200, before);
        let told = match apply(change, replace, &mut head) {
            Err(error) => error.to_string(),
            Ok(body) => {
                let each =
                    head.headers.iter().map(|(name, value)| format!("{name}={}", value.to_str().unwrap()));
                let mut headers: Vec<String> = each.collect();
                headers.sort();
                let body = body.map_or("passes".into(), |body| format!("{body:?}"));
                format!("{} {} {body}", head.status.as_u16(), headers.join(" "))
            }
        };
        assert_eq!(told, expected);
    }

    #[test]
    fn answers_are_changed() {
        let up =
            [("X-A", "1"), ("X-A", "2"), ("ETag", "e"), ("Content-Length", "5"), ("Content-Encoding", "br")];
        let all = "content-encoding=br content-length=5 etag=e x-a=1 x-a=2";
        check(&up, 0, &[], "", &format!("200 {all} passes"));
        check(&up, 0, &[], "", &format!("!200 {all} passes"));
        check(&up, 404, &[], "", &format!("404 {all} passes"));
        check(&up, 99, &[], "", "the runner answered with status 99");
        check(
            &up,
            0,
            &[("x-a", None), ("Content-Length", Some("9"))],
            "",
            "200 content-encoding=br content-length=5 etag=e passes",
        );
        check(
            &up,
            0,
            &[("x-A", Some("3")), ("X-a", Some("4"))],
            "",
            "200 content-encoding=br content-length=5 etag=e x-a=3 x-a=4 passes",
        );
        check(&up, 0, &[], "new", "200 x-a=1 x-a=2 b\"new\"");
        check(&up, 0, &[("ETag", Some("f"))], "new", "200 etag=f x-a=1 x-a=2 b\"new\"");
        check(&up, 0, &[("x-b", Some("1"))], "", "!200 content-encoding=br content-length=5 x-b=1 passes");
        check(&up, 0, &[("x-b", Some("1"))], "new", "!200 x-b=1 b\"new\"");
        check(&[], 0, &[("bad name", Some("1")), ("x-b", Some("a\r\nb"))], "", "200  passes");
    }

    #[test]
    fn configurations() {
        compile_schemas::<Plugin>();
        assert!(plugin::<Plugin>(json!({"replace_headers": true})).replace_headers);
        assert!(!plugin::<Plugin>(json!({"conf": [{"name": "a", "value": "b"}]})).replace_headers);
        assert!(refusal::<Plugin>(json!({"conf": []})).contains("at least 1 items"));
        assert!(refusal::<Plugin>(json!({"replace_headers": 1})).contains("expected boolean"));
    }
}
