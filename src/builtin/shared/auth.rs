//! What the auth plugins share: where credentials stand in a request, and how a refusal ends.
//!
//! Invariant: no text made here for the client or the log ever contains a credential.

use std::borrow::Cow;

use http::{HeaderName, HeaderValue, header};
use serde_json::{Value, json};

use crate::{
    compat::Compat,
    net::args,
    plugin::{
        exchange::Exchange,
        reply::{CONTINUE, Class, Flow, Reply},
    },
    vars::cookie,
};

/// The schema of `realm`. APISIX: `schema_def.get_realm_schema`.
pub fn realm_schema(default: &str) -> Value {
    json!({
        "type": "string",
        "pattern": r"^[ -!#-[\]-~]+$",
        "minLength": 1,
        "maxLength": 128,
        "default": default
    })
}

/// The schema of `anonymous_consumer`. APISIX: `schema_def.anonymous_consumer_schema`.
pub fn anonymous_schema() -> Value {
    json!({"type": "string", "minLength": 1})
}

/// Why a request was not recognised.
#[derive(Debug)]
pub struct Failure {
    class: Class,
    message: &'static str,
    reason: Cow<'static, str>,
}

impl Failure {
    /// There are no credentials.
    pub fn missing(message: &'static str) -> Self {
        Self { class: Class::Missing, message, reason: message.into() }
    }

    /// The credentials cannot be read; `reason` is for the log only.
    pub fn malformed(message: &'static str, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { class: Class::Malformed, ..Self::wrong(message, reason) }
    }

    /// The credentials name nobody; `reason` is for the log only.
    pub fn unknown(message: &'static str, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { class: Class::Unknown, ..Self::wrong(message, reason) }
    }

    /// The credentials were right at another time; `reason` is for the log only.
    pub fn expired(message: &'static str, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { class: Class::Expired, ..Self::wrong(message, reason) }
    }

    /// Whoever could judge the credentials does not answer; `reason` is for the log only.
    pub fn unavailable(message: &'static str, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { class: Class::Unavailable, ..Self::wrong(message, reason) }
    }

    /// There are credentials and they are not accepted; `reason` is for the log only.
    pub fn wrong(message: &'static str, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { class: Class::Wrong, message, reason: reason.into() }
    }
}

/// How an auth plugin ends when it recognised nobody: as the anonymous consumer, or with a 401.
pub struct Fallback {
    anonymous: Option<Box<str>>,
    missing: Option<HeaderValue>,
    wrong: Option<HeaderValue>,
}

impl Fallback {
    /// Prepares the challenges of one configuration.
    ///
    /// # Errors
    /// The realm is nothing a header can hold.
    pub fn new(
        plugin: &str,
        scheme: &str,
        realm: &str,
        anonymous: Option<String>,
        compat: Compat,
    ) -> Result<Self, String> {
        let value = |challenge: Option<String>| challenge.map(HeaderValue::try_from).transpose();
        let invalid = |_| "realm cannot stand in a header".to_owned();
        Ok(Self {
            anonymous: anonymous.map(String::into_boxed_str),
            missing: value(compat.challenge_missing(plugin, scheme, realm)).map_err(invalid)?,
            wrong: value(compat.challenge_wrong(scheme, realm)).map_err(invalid)?,
        })
    }

    /// Whether an anonymous consumer stands in for those who fail.
    pub fn is_anonymous(&self) -> bool {
        self.anonymous.is_some()
    }

    /// Ends the hook.
    pub fn settle(&self, x: &mut Exchange<'_>, failure: Failure) -> Flow {
        let Some(anonymous) = &self.anonymous else {
            let challenge = if failure.class == Class::Missing { &self.missing } else { &self.wrong };
            return refuse(failure.message, failure.reason, failure.class, challenge);
        };
        match x.attach_anonymous(anonymous) {
            Ok(()) => CONTINUE,
            Err(reason) => refuse("Invalid user authorization", reason.into(), Class::Internal, &self.wrong),
        }
    }
}

fn refuse(message: &str, reason: Cow<'static, str>, class: Class, challenge: &Option<HeaderValue>) -> Flow {
    let reply = Reply::message(401, message).because(reason).classed(class);
    match challenge {
        Some(challenge) => reply.with_header(header::WWW_AUTHENTICATE, challenge.clone()),
        None => reply,
    }
    .into()
}

/// The value of a query argument that should hold a credential.
#[derive(Debug, PartialEq)]
pub enum QueryValue<'q> {
    /// The only value of the name.
    One(Cow<'q, str>),
    /// The argument has no value or is given more than once: nothing a credential could equal.
    Unusable,
}

/// A query argument as `get_uri_args()[name]` has it; `None` if it is not there.
pub fn query<'q>(args: &'q str, name: &str) -> Option<QueryValue<'q>> {
    let mut values = args::pairs(args.as_bytes()).filter(|(other, _)| other == name).map(|(_, value)| value);
    let first = values.next()?;
    match (first, values.next()) {
        (Some(value), None) => Some(QueryValue::One(value)),
        _ => Some(QueryValue::Unusable),
    }
}

/// Removes a query argument. The others stay in order, encoded as `ngx.encode_args` does.
pub fn hide_query(x: &mut Exchange<'_>, name: &str) {
    let kept: Vec<_> = args::pairs(x.args().as_bytes()).filter(|(other, _)| other != name).collect();
    let kept = args::encode(kept.iter().map(|(name, value)| (&**name, value.as_deref())));
    x.ctx.edits.args = Some(kept);
}

/// A request header's first value as bytes; empty counts as present. APISIX: `core.request.header`.
pub fn header<'x>(x: &'x Exchange<'_>, name: Option<&HeaderName>) -> Option<&'x [u8]> {
    x.session.req_header().headers.get(name?).map(HeaderValue::as_bytes)
}

/// What follows `Bearer ` or `bearer `, or the whole header.
pub fn bare_token(header: &[u8]) -> &[u8] {
    header.strip_prefix(b"Bearer ").or_else(|| header.strip_prefix(b"bearer ")).unwrap_or(header)
}

/// The Cookie headers that are text.
pub fn cookies<'x>(x: &'x Exchange<'_>) -> impl Iterator<Item = &'x str> {
    let headers = x.session.req_header().headers.get_all(header::COOKIE);
    headers.into_iter().filter_map(|value| std::str::from_utf8(value.as_bytes()).ok())
}

/// A cookie; of several with one name the last counts.
pub fn cookie<'x>(x: &'x Exchange<'_>, name: &str) -> Option<&'x str> {
    cookies(x).filter_map(|header| cookie::find(header, name)).last()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::testing::Kit;

    #[test]
    fn reads_query_arguments() {
        let one = |text: &'static str| Some(QueryValue::One(text.into()));
        assert_eq!(query("a=1&k=v", "k"), one("v"));
        assert_eq!(query("k=", "k"), one(""));
        assert_eq!(query("k=%20x+y", "k"), one(" x y"));
        assert_eq!(query("k", "k"), Some(QueryValue::Unusable));
        assert_eq!(query("k=1&k=1", "k"), Some(QueryValue::Unusable));
        assert_eq!(query("K=1", "k"), None);
        assert_eq!(query("", "k"), None);
    }

    #[track_caller]
    fn hidden(target: &str, expected: &str) {
        Kit::get(target, &[]).run(async |x| {
            hide_query(x, "k");
            assert_eq!(x.args(), expected, "{target}");
        });
    }

    #[test]
    fn hides_query_arguments() {
        hidden("/x?a=1&k=s&b", "a=1&b");
        hidden("/x?k=s", "");
        hidden("/x?k=s&k=t&z=a+b", "z=a%20b");
        hidden("/x?a=%2F", "a=%2F");
    }
}
