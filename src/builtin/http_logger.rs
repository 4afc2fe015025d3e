//! http-logger: sends what happened to an HTTP server, in batches.
//!
//! APISIX: plugins/http-logger.lua. Invariant: no request waits for the server; see [`super::shared::batch`].
//!
//! Differs from APISIX: the text of an error answer is not logged; `Host` has the port where it is not the usual one;
//! credentials are masked in whole entries; what waits is sent when the process ends; TLS certificates are verified against the system's authorities.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, header};
use serde::Deserialize;
use serde_json::{Value, json};

use super::shared::{
    batch::{self, Batch, Deliver, Failure, Sending},
    http_call::{Call, Client, Options},
    log_entry::{self, LogEntry},
};
use crate::plugin::{
    contract,
    env::{BuildEnv, CheckEnv},
    exchange::Exchange,
    phases::Phases,
    reply::Flow,
};

/// The plugin's configuration.
#[derive(Deserialize)]
pub struct Config {
    /// Where batches are sent.
    pub uri: String,
    /// The Authorization header of what is sent.
    pub auth_header: Option<String>,
    /// Seconds that a try may take.
    #[serde(default = "default_timeout")]
    pub timeout: u64,
    /// How the entries of a batch are put together.
    #[serde(default)]
    pub concat_method: Concat,
    /// Whether the server's certificate is verified.
    #[serde(default)]
    pub ssl_verify: bool,
    /// What an entry has.
    #[serde(flatten)]
    pub entry: log_entry::Config,
    /// When a batch leaves.
    #[serde(flatten)]
    pub batch: batch::Config,
}

fn default_timeout() -> u64 {
    3
}

/// How the entries of a batch are put together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Concat {
    /// A JSON list.
    #[default]
    Json,
    /// One entry on each line.
    NewLine,
}

/// The compiled plugin.
pub struct Plugin {
    entry: LogEntry,
    batch: Batch,
}

/// Where batches go.
struct Collector {
    client: Client,
    uri: String,
    authorization: Option<HeaderValue>,
    concat: Concat,
    single: bool,
}

impl contract::Plugin for Plugin {
    const NAME: &'static str = "http-logger";
    const PRIORITY: i32 = 410;
    const PHASES: Phases = Phases::ACCESS.and(Phases::BODY_FILTER).and(Phases::LOG);
    const ENCRYPT: &'static [&'static str] = &["auth_header"];
    type Config = Config;

    fn schema() -> Value {
        let schema = json!({
            "type": "object",
            "properties": {
                "auth_header": {"type": "string"},
                "log_format_extra": {"type": "object"},
                "include_req_body": {"type": "boolean", "default": false},
                "include_req_body_expr": {"type": "array", "minItems": 1, "items": {"type": "array"}},
                "include_resp_body": {"type": "boolean", "default": false},
                "include_resp_body_expr": {"type": "array", "minItems": 1, "items": {"type": "array"}},
                "max_req_body_bytes": {"type": "integer", "minimum": 1, "default": 524_288},
                "max_resp_body_bytes": {"type": "integer", "minimum": 1, "default": 524_288},
                "concat_method": {"type": "string", "default": "json", "enum": ["json", "new_line"]},
                "ssl_verify": {"type": "boolean", "default": false},
                "uri": {
                    "type": "string",
                    "pattern": r"^[^\/]+:\/\/([\da-zA-Z.-]+|\[[\da-fA-F:]+\])(:\d+)?"
                },
                "timeout": {"type": "integer", "minimum": 1, "default": 3},
                "log_format": {"type": "object"}
            },
            "encrypt_fields": ["auth_header"],
            "required": ["uri"]
        });
        batch::wrap_schema(schema, "http logger")
    }

    fn metadata_schema() -> Option<Value> {
        let schema = json!({
            "type": "object",
            "properties": {"log_format_extra": {"type": "object"}, "log_format": {"type": "object"}}
        });
        Some(batch::wrap_metadata_schema(schema))
    }

    fn check(conf: &Value, _env: &CheckEnv<'_>) -> Result<(), String> {
        log_entry::check(conf)
    }

    fn build(config: Config, env: &BuildEnv<'_>) -> Result<Self, String> {
        let options = Options {
            verify: config.ssl_verify,
            timeout: Duration::from_secs(config.timeout),
            ..Options::default()
        };
        let authorization = config.auth_header.map(HeaderValue::try_from).transpose();
        let mut authorization =
            authorization.map_err(|_| "auth_header cannot stand in a header".to_owned())?;
        if let Some(authorization) = &mut authorization {
            authorization.set_sensitive(true);
        }
        let collector = Collector {
            client: Client::new(&options)?,
            uri: config.uri,
            authorization,
            concat: config.concat_method,
            single: config.batch.batch_max_size == 1,
        };
        Ok(Self {
            entry: LogEntry::new(&config.entry, env.metadata)?,
            batch: Batch::new(Self::NAME, config.batch, env, collector),
        })
    }

    fn phases(&self) -> Phases {
        self.entry.phases()
    }

    async fn access(&self, x: &mut Exchange<'_>) -> Flow {
        self.entry.read_body(x).await
    }

    fn body_filter(&self, x: &mut Exchange<'_>, chunk: &mut Option<Bytes>, _last: bool) {
        self.entry.look(x, chunk);
    }

    fn log(&self, x: &mut Exchange<'_>) {
        let mut entry = self.entry.entry(x);
        entry.entry("route_id").or_insert_with(|| json!("no-matched"));
        self.batch.push(Value::Object(entry).to_string(), x);
    }
}

impl Collector {
    fn body(&self, entries: &[String]) -> String {
        match (self.concat, entries) {
            (_, [entry]) if self.single => entry.clone(),
            (Concat::Json, _) => format!("[{}]", entries.join(",")),
            (Concat::NewLine, _) => entries.join("\n"),
        }
    }

    async fn send(&self, entries: &[String]) -> Result<(), Failure> {
        let kind = match self.concat {
            Concat::Json => "application/json",
            Concat::NewLine => "text/plain",
        };
        let mut call = Call::post(&self.uri).body(kind, self.body(entries));
        if let Some(authorization) = &self.authorization {
            call = call.header(header::AUTHORIZATION, authorization.clone());
        }
        let answer = self.client.send(call).await.map_err(|error| error.to_string())?;
        match answer.status.as_u16() {
            status @ 400.. => Err(format!("server returned status code[{status}]").into()),
            _ => Ok(()),
        }
    }
}

impl Deliver for Collector {
    fn deliver<'b>(&'b self, entries: &'b [String]) -> Sending<'b> {
        Box::pin(self.send(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::testing::{compile_schemas, plugin, refusal};

    const URI: &str = "http://127.0.0.1:1/logs";

    #[track_caller]
    fn check(conf: Value, expected: &str) {
        assert_eq!(refusal::<Plugin>(conf.clone()), expected, "{conf}");
    }

    #[test]
    fn configurations() {
        compile_schemas::<Plugin>();
        check(json!({"uri": URI}), "");
        check(json!({}), "property \"uri\" is required");
        check(
            json!({"uri": URI, "concat_method": "xml"}),
            "property \"concat_method\" validation failed: matches none of the enum values",
        );
        let refused = refusal::<Plugin>(json!({"uri": URI, "include_resp_body_expr": [["a", "nope", 1]]}));
        assert!(
            refused.starts_with("failed to validate the 'include_resp_body_expr' expression: "),
            "{refused}"
        );
    }

    #[test]
    fn hooks_that_are_not_needed_are_left_out() {
        let phases = |conf: Value| contract::Plugin::phases(&plugin::<Plugin>(conf));
        assert_eq!(phases(json!({"uri": URI})), Phases::LOG);
        let all = json!({"uri": URI, "include_req_body": true, "include_resp_body": true});
        assert_eq!(phases(all), <Plugin as contract::Plugin>::PHASES);
    }

    #[test]
    fn batches() {
        #[track_caller]
        fn check(concat: Concat, single: bool, entries: &[&str], expected: &str) {
            let client = Client::new(&Options::default()).unwrap();
            let collector = Collector { client, uri: URI.into(), authorization: None, concat, single };
            let entries: Vec<String> = entries.iter().map(|entry| (*entry).to_owned()).collect();
            assert_eq!(collector.body(&entries), expected);
        }
        check(Concat::Json, false, &["{}", "1"], "[{},1]");
        check(Concat::Json, false, &["{}"], "[{}]");
        check(Concat::Json, true, &["{}"], "{}");
        check(Concat::NewLine, false, &["{}", "1"], "{}\n1");
        check(Concat::NewLine, true, &["{}"], "{}");
    }
}
