//! attach-consumer-label: labels of the consumer as headers of the upstream request.
//!
//! APISIX: plugins/attach-consumer-label.lua. A configured header that a client sent is dropped whoever the client is.

use std::collections::HashMap;

use http::{HeaderName, HeaderValue};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::plugin::{
    contract,
    env::BuildEnv,
    exchange::Exchange,
    phases::Phases,
    reply::{CONTINUE, Flow},
};

/// The configuration.
#[derive(Deserialize)]
pub struct Config {
    /// Labels, each with `$` before it, by the name of the header.
    pub headers: HashMap<String, String>,
}

/// The compiled configuration.
pub struct Plugin {
    /// In the order of their names, so that what happens never depends on how an object was written.
    headers: Vec<(HeaderName, Box<str>)>,
}

impl contract::Plugin for Plugin {
    const NAME: &'static str = "attach-consumer-label";
    const PRIORITY: i32 = 2399;
    const PHASES: Phases = Phases::BEFORE_PROXY;
    type Config = Config;

    fn schema() -> Value {
        json!({
            "type": "object",
            "properties": {
                "headers": {
                    "type": "object",
                    "additionalProperties": {"type": "string", "pattern": "^\\$.*"},
                    "minProperties": 1
                }
            },
            "required": ["headers"]
        })
    }

    fn build(config: Config, _env: &BuildEnv<'_>) -> Result<Self, String> {
        let mut headers = Vec::with_capacity(config.headers.len());
        for (name, label) in config.headers {
            let header =
                HeaderName::try_from(&name).map_err(|_| format!("{name:?} is no name of a header"))?;
            headers.push((header, label.strip_prefix('$').unwrap_or(&label).into()));
        }
        headers.sort_by(|(a, _), (b, _)| a.as_str().cmp(b.as_str()));
        Ok(Self { headers })
    }

    async fn before_proxy(&self, x: &mut Exchange<'_>) -> Flow {
        let consumer = x.consumer().cloned();
        for (header, label) in &self.headers {
            let value = consumer.as_ref().and_then(|consumer| consumer.labels.get(&**label));
            let value = value.and_then(Value::as_str).and_then(|text| HeaderValue::from_str(text).ok());
            match value {
                Some(value) => x.set_header(header, value),
                None => x.remove_header(header),
            }
        }
        CONTINUE
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::{
        consumer::Consumer,
        testing::{self, Kit},
    };

    #[track_caller]
    fn check(labels: Option<Value>, expected: [Option<&str>; 2]) {
        let plugin: Plugin = testing::plugin(json!({"headers": {"X-Team": "$team", "X-Room": "$room"}}));
        let mut kit = Kit::get("/", &[("X-Team", "forged"), ("X-Room", "forged")]);
        let known = labels.is_some();
        if let Some(labels) = labels {
            kit = kit.consumer(Consumer { labels, ..testing::consumer("jack") });
        }
        kit.run(async |x| {
            if known {
                x.attach_anonymous("jack").unwrap();
            }
            assert!(contract::Plugin::before_proxy(&plugin, x).await.is_continue());
            assert_eq!([x.header("x-team"), x.header("x-room")], expected);
        });
    }

    #[test]
    fn labels_become_headers() {
        testing::compile_schemas::<Plugin>();
        check(None, [None, None]);
        check(Some(Value::Null), [None, None]);
        check(Some(json!({"team": "a", "other": "b"})), [Some("a"), None]);
        check(Some(json!({"team": "a", "room": "1"})), [Some("a"), Some("1")]);
        check(Some(json!({"team": 1, "room": "a\nb"})), [None, None]);
    }

    #[test]
    fn refuses_bad_configurations() {
        let refusal = testing::refusal::<Plugin>;
        assert_eq!(refusal(json!({})), r#"property "headers" is required"#);
        assert!(refusal(json!({"headers": {"a": "team"}})).contains("failed to match pattern"));
        assert!(refusal(json!({"headers": {}})).contains("headers"));
        assert_eq!(refusal(json!({"headers": {"a b": "$team"}})), r#""a b" is no name of a header"#);
    }
}
