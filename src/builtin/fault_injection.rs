//! fault-injection: delays requests, or answers them with a failure, to see how clients cope.
//!
//! <https://apisix.apache.org/docs/apisix/plugins/fault-injection/>

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::shared::header::{self as fields, Field};
use crate::{
    plugin::{
        contract,
        env::{BuildEnv, CheckEnv},
        exchange::Exchange,
        phases::Phases,
        reply::{CONTINUE, Class, Flow, Reply},
    },
    vars::{expr::Expr, template::Template},
};

/// The plugin's configuration.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Answers instead of the upstream.
    pub abort: Option<AbortConfig>,
    /// Waits before the request goes on.
    pub delay: Option<DelayConfig>,
}

/// An answer instead of the upstream's.
#[derive(Clone, Debug, Deserialize)]
pub struct AbortConfig {
    /// Its status.
    pub http_status: i64,
    /// Its body, with variables.
    pub body: Option<String>,
    /// Its headers, with variables.
    pub headers: Option<Map<String, Value>>,
    /// The share of requests that get it, in percent.
    pub percentage: Option<u8>,
    /// Only requests for which one of these expressions holds.
    pub vars: Option<Vec<Value>>,
}

/// A pause before the request goes on.
#[derive(Clone, Debug, Deserialize)]
pub struct DelayConfig {
    /// How long, in seconds.
    pub duration: f64,
    /// The share of requests that wait, in percent.
    pub percentage: Option<u8>,
    /// Only requests for which one of these expressions holds.
    pub vars: Option<Vec<Value>>,
}

/// The compiled plugin.
pub struct Plugin {
    abort: Option<Abort>,
    delay: Option<(Choice, Duration)>,
    /// Some expression looks into the request body.
    needs_body: bool,
}

struct Abort {
    choice: Choice,
    status: u16,
    body: Option<Template>,
    headers: Vec<Field>,
}

/// Which requests are meant.
struct Choice {
    percentage: Option<u8>,
    vars: Option<Vec<Expr>>,
}

impl contract::Plugin for Plugin {
    const NAME: &'static str = "fault-injection";
    const PRIORITY: i32 = 11000;
    const PHASES: Phases = Phases::REWRITE;
    type Config = Config;

    fn schema() -> Value {
        let percentage = json!({"type": "integer", "minimum": 0, "maximum": 100});
        let vars = json!({"type": "array", "maxItems": 20, "items": {"type": "array"}});
        json!({
            "type": "object",
            "properties": {
                "abort": {
                    "type": "object",
                    "properties": {
                        "http_status": {"type": "integer", "minimum": 200},
                        "body": {"type": "string", "minLength": 0},
                        "headers": {
                            "type": "object",
                            "minProperties": 1,
                            "patternProperties": {"^[^:]+$": {"oneOf": [{"type": "string"}, {"type": "number"}]}}
                        },
                        "percentage": percentage,
                        "vars": vars
                    },
                    "required": ["http_status"]
                },
                "delay": {
                    "type": "object",
                    "properties": {
                        "duration": {"type": "number", "minimum": 0},
                        "percentage": percentage,
                        "vars": vars
                    },
                    "required": ["duration"]
                }
            },
            "minProperties": 1
        })
    }

    fn check(conf: &Value, _env: &CheckEnv<'_>) -> Result<(), String> {
        for pointer in ["/abort/vars", "/delay/vars"] {
            let rules = conf.pointer(pointer).and_then(Value::as_array).into_iter().flatten();
            rules.map(Expr::parse).try_for_each(|rule| rule.map(drop))?;
        }
        Ok(())
    }

    fn build(config: Config, _env: &BuildEnv<'_>) -> Result<Self, String> {
        let abort = config.abort.map(Abort::new).transpose()?;
        let delay = match config.delay {
            Some(delay) => {
                let pause = Duration::try_from_secs_f64(delay.duration)
                    .map_err(|e| format!("delay.duration: {e}"))?;
                Some((Choice::new(delay.percentage, delay.vars)?, pause))
            }
            None => None,
        };
        let choices = abort.iter().map(|abort| &abort.choice).chain(delay.iter().map(|(choice, _)| choice));
        let needs_body = choices.filter_map(|choice| choice.vars.as_ref()).flatten().any(Expr::needs_body);
        Ok(Self { abort, delay, needs_body })
    }

    async fn rewrite(&self, x: &mut Exchange<'_>) -> Flow {
        if self.needs_body
            && let Err(reply) = x.body().await
        {
            return reply.into();
        }
        // Both are decided before the pause, as in APISIX: variables such as times do not move on.
        let abort = self.abort.as_ref().filter(|abort| abort.choice.matches(x));
        let delay = self.delay.as_ref().filter(|(choice, _)| choice.matches(x));
        if let Some((choice, pause)) = delay
            && choice.hits()
        {
            tokio::time::sleep(*pause).await;
        }
        match abort {
            Some(abort) if abort.choice.hits() => abort.reply(x).into(),
            _ => CONTINUE,
        }
    }
}

impl Abort {
    fn new(config: AbortConfig) -> Result<Abort, String> {
        Ok(Abort {
            choice: Choice::new(config.percentage, config.vars)?,
            status: fields::status("http_status", config.http_status)?,
            body: config.body.as_deref().map(Template::parse),
            headers: config.headers.as_ref().map_or_else(|| Ok(Vec::new()), fields::fields)?,
        })
    }

    fn reply(&self, x: &Exchange<'_>) -> Reply {
        let mut reply = match &self.body {
            Some(body) => Reply::bytes(self.status, body.render(x).into_owned()),
            None => Reply::status(self.status),
        };
        for Field { name, value } in &self.headers {
            let text = value.render(x);
            if !text.is_empty() {
                reply = reply.with_header(name.key.clone(), fields::value(&text));
            }
        }
        reply.because("injected fault").classed(Class::Other)
    }
}

impl Choice {
    fn new(percentage: Option<u8>, vars: Option<Vec<Value>>) -> Result<Choice, String> {
        let vars = vars.map(|rules| rules.iter().map(Expr::parse).collect::<Result<_, _>>()).transpose()?;
        Ok(Choice { percentage, vars })
    }

    /// Whether one of the expressions holds; an empty list never does.
    fn matches(&self, x: &Exchange<'_>) -> bool {
        self.vars.as_ref().is_none_or(|rules| rules.iter().any(|rule| rule.eval(x)))
    }

    fn hits(&self) -> bool {
        self.percentage.is_none_or(|percentage| fastrand::u8(1..=100) <= percentage)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::plugin::testing::{Kit, answer, compile_schemas, plugin, refusal, response_header};

    #[track_caller]
    fn check(conf: Value, target: &str, expected: &str) {
        assert_eq!(Kit::get(target, &[]).rewrite(&plugin::<Plugin>(conf.clone())), expected, "{conf}");
    }

    #[test]
    fn aborts() {
        compile_schemas::<Plugin>();
        check(json!({"abort": {"http_status": 503, "body": "fault $uri"}}), "/p/a", "503 fault /p/a");
        check(json!({"abort": {"http_status": 200}}), "/", "200");
        check(json!({"abort": {"http_status": 200, "body": ""}}), "/", "200 ");
        let vars =
            json!({"abort": {"http_status": 403, "vars": [[["arg_k", "==", "1"]], [["arg_k", "==", "2"]]]}});
        check(vars.clone(), "/?k=1", "403");
        check(vars.clone(), "/?k=2", "403");
        check(vars, "/?k=3", "continue");
        check(json!({"abort": {"http_status": 403, "vars": []}}), "/", "continue");
        check(json!({"abort": {"http_status": 403, "percentage": 0}}), "/", "continue");
        check(json!({"abort": {"http_status": 403, "percentage": 100}}), "/", "403");
        check(json!({"delay": {"duration": 0}}), "/", "continue");
    }

    #[test]
    fn looks_into_bodies() {
        let conf = json!({"abort": {"http_status": 403, "vars": [[["post_arg_a", "==", "1"]]]}});
        let kit = |body| Kit::post("/", "application/x-www-form-urlencoded", body);
        assert_eq!(kit("a=1").rewrite(&plugin::<Plugin>(conf.clone())), "403");
        assert_eq!(kit("a=2").rewrite(&plugin::<Plugin>(conf)), "continue");
    }

    #[test]
    fn headers() {
        let headers = json!({"X-F": "<$arg_k>", "X-N": 1, "X-E": "$arg_none"});
        let plugin = plugin::<Plugin>(json!({"abort": {"http_status": 501, "headers": headers}}));
        Kit::get("/?k", &[]).run(async |x| {
            let flow = contract::Plugin::rewrite(&plugin, x).await;
            assert_eq!(answer(&flow), "501");
            assert_eq!(response_header(&flow, x, "x-f").as_deref(), Some("<true>"));
            assert_eq!(response_header(&flow, x, "x-n").as_deref(), Some("1"));
            assert_eq!(response_header(&flow, x, "x-e"), None);
        });
    }

    #[test]
    fn waits() {
        let plugin = plugin::<Plugin>(json!({"delay": {"duration": 0.05}, "abort": {"http_status": 500}}));
        let began = Instant::now();
        assert_eq!(Kit::get("/", &[]).rewrite(&plugin), "500");
        assert!(began.elapsed() >= Duration::from_millis(50));
    }

    #[test]
    fn a_share_is_hit() {
        let half = Choice { percentage: Some(50), vars: None };
        let hits = (0..2000).filter(|_| half.hits()).count();
        assert!((700..1300).contains(&hits), "{hits}");
    }

    #[test]
    fn refusals() {
        for (conf, expected) in [
            (json!([]), "expect object to have at least 1 properties"),
            (
                json!({"abort": 1}),
                "property \"abort\" validation failed: wrong type: expected object, got number",
            ),
            (
                json!({"abort": {"http_status": 100}}),
                "property \"abort\" validation failed: property \"http_status\" validation failed: expected 100 to be at least 200",
            ),
            (json!({"delay": {"duration": 1, "vars": [["a"]]}}), "rule should be wrapped inside brackets"),
        ] {
            assert_eq!(refusal::<Plugin>(conf.clone()), expected, "{conf}");
        }
        assert!(!refusal::<Plugin>(json!({"abort": {"http_status": 1000}})).is_empty());
    }
}
