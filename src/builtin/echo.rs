//! echo: puts text before, behind or in place of the response's body. A plugin to try things with.
//!
//! <https://apisix.apache.org/docs/apisix/plugins/echo/>
//!
//! Differs from APISIX: a header whose value is neither string nor number is left out alone; there it drops the
//! headers behind it, too, and only on the first request.

use bytes::{Bytes, BytesMut};
use http::HeaderValue;
use pingora::http::ResponseHeader;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::shared::header as fields;
use crate::plugin::{contract, env::BuildEnv, exchange::Exchange, phases::Phases};

/// The plugin's configuration.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Goes before the body.
    pub before_body: Option<String>,
    /// Replaces the body.
    pub body: Option<String>,
    /// Goes behind the body.
    pub after_body: Option<String>,
    /// Headers to set.
    pub headers: Option<Value>,
}

/// The compiled plugin.
pub struct Plugin {
    text: Text,
    headers: Vec<(fields::Name, HeaderValue)>,
}

enum Text {
    /// Replaces everything.
    Whole(Bytes),
    /// Surrounds what there is.
    Around { before: Bytes, after: Bytes },
}

/// Whether the first piece of the body has passed.
#[derive(Default)]
struct Begun(bool);

impl contract::Plugin for Plugin {
    const NAME: &'static str = "echo";
    const PRIORITY: i32 = 412;
    const PHASES: Phases = Phases::HEADER_FILTER.and(Phases::BODY_FILTER);
    type Config = Config;

    fn schema() -> Value {
        json!({
            "type": "object",
            "properties": {
                "before_body": {"description": "goes before the body", "type": "string"},
                "body": {"description": "replaces the body", "type": "string"},
                "after_body": {"description": "goes behind the body", "type": "string"},
                "headers": {"description": "headers to set", "type": "object", "minProperties": 1}
            },
            "anyOf": [{"required": ["before_body"]}, {"required": ["body"]}, {"required": ["after_body"]}],
            "minProperties": 1
        })
    }

    fn build(config: Config, _env: &BuildEnv<'_>) -> Result<Self, String> {
        let before = config.before_body.unwrap_or_default();
        let after = config.after_body.unwrap_or_default();
        let text = match config.body {
            Some(body) => Text::Whole(format!("{before}{body}{after}").into()),
            None => Text::Around { before: before.into(), after: after.into() },
        };
        let none = Map::new();
        let headers = config.headers.as_ref().and_then(Value::as_object).unwrap_or(&none);
        let scalars = headers.iter().filter_map(|(name, value)| Some((name, fields::scalar(value)?)));
        let headers = scalars.map(|(name, text)| Ok((fields::written(name)?, fields::value(&text))));
        Ok(Self { text, headers: headers.collect::<Result<_, String>>()? })
    }

    fn header_filter(&self, _x: &mut Exchange<'_>, head: &mut ResponseHeader) {
        fields::body_modified(head);
        for (name, value) in &self.headers {
            if value.is_empty() {
                head.remove_header(&name.key);
            } else {
                fields::put_as(head, name.letters.clone(), value.clone());
            }
        }
    }

    fn body_filter(&self, x: &mut Exchange<'_>, chunk: &mut Option<Bytes>, last: bool) {
        let first = !std::mem::replace(&mut x.local::<Begun>().0, true);
        match &self.text {
            Text::Whole(body) => *chunk = first.then(|| body.clone()),
            Text::Around { before, after } => {
                let before = if first { &before[..] } else { &[] };
                let after = if last { &after[..] } else { &[] };
                if !before.is_empty() || !after.is_empty() {
                    *chunk = Some(surround(before, chunk.as_deref().unwrap_or_default(), after));
                }
            }
        }
    }
}

fn surround(before: &[u8], piece: &[u8], after: &[u8]) -> Bytes {
    let mut whole = BytesMut::with_capacity(before.len() + piece.len() + after.len());
    whole.extend_from_slice(before);
    whole.extend_from_slice(piece);
    whole.extend_from_slice(after);
    whole.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::testing::{Kit, compile_schemas, plugin, refusal, response};

    #[track_caller]
    fn check(conf: Value, pieces: &[&'static str], expected: &str) {
        let plugin = plugin::<Plugin>(conf.clone());
        let got = Kit::get("/", &[]).run(async |x| {
            let mut out = String::new();
            for (at, piece) in pieces.iter().enumerate() {
                let mut chunk = (!piece.is_empty()).then(|| Bytes::from_static(piece.as_bytes()));
                contract::Plugin::body_filter(&plugin, x, &mut chunk, at + 1 == pieces.len());
                out.push_str(std::str::from_utf8(&chunk.unwrap_or_default()).unwrap());
            }
            out
        });
        assert_eq!(got, expected, "{conf}");
    }

    #[test]
    fn bodies() {
        compile_schemas::<Plugin>();
        check(json!({"body": "only"}), &["a", "b", ""], "only");
        check(json!({"body": "only"}), &[""], "only");
        check(json!({"before_body": "<", "body": "B", "after_body": ">"}), &["a", "b"], "<B>");
        check(json!({"before_body": "<"}), &["a", "b", ""], "<ab");
        check(json!({"after_body": ">"}), &["a", "b", ""], "ab>");
        check(json!({"before_body": "<", "after_body": ">"}), &["ab"], "<ab>");
        check(json!({"before_body": "<", "after_body": ">"}), &[""], "<>");
    }

    #[test]
    fn headers() {
        let plugin =
            plugin::<Plugin>(json!({"body": "b", "headers": {"X-A": "1", "X-B": 2, "X-C": "", "X-D": true}}));
        Kit::get("/", &[]).run(async |x| {
            let mut head =
                response(200, &[("Content-Length", "1"), ("X-A", "0"), ("X-C", "0"), ("X-D", "0")]);
            contract::Plugin::header_filter(&plugin, x, &mut head);
            let value = |name: &str| head.headers.get(name).map(|value| value.to_str().unwrap());
            assert_eq!(value("x-a"), Some("1"));
            assert_eq!(value("x-b"), Some("2"));
            assert_eq!(value("x-c"), None);
            assert_eq!(value("x-d"), Some("0"));
            assert_eq!(value("content-length"), None);
        });
    }

    #[test]
    fn refusals() {
        let none = "object matches none of the required: [\"before_body\"] or [\"body\"] or [\"after_body\"]";
        assert_eq!(refusal::<Plugin>(json!({"headers": {"X-Echo": "1"}})), none);
        assert!(refusal::<Plugin>(json!({"body": "b", "headers": {"X A": "1"}})).contains("X A"));
    }
}
