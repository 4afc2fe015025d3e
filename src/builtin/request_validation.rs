//! request-validation: headers and body must be what a JSON schema says, or the request ends here.
//!
//! <https://apisix.apache.org/docs/apisix/plugins/request-validation/>
//!
//! A JSON body goes on as it was understood: written anew, defaults of the schema filled in, of repeated keys only
//! the last. So the upstream cannot read it differently.
//!
//! Differs from APISIX: numbers keep all their digits; texts that are not UTF-8 are no JSON.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, header};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::shared::{header as fields, is_secret_ref};
use crate::{
    net::{args, lossless},
    plugin::{
        body, contract,
        env::{BuildEnv, CheckEnv},
        exchange::Exchange,
        phases::Phases,
        reply::{CONTINUE, Class, Flow, Reply},
    },
    schema::{Schema, cjson},
};

/// The plugin's configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct Config {
    /// What the headers must be: an object of their names.
    pub header_schema: Option<Value>,
    /// What the body must be.
    pub body_schema: Option<Value>,
    /// Largest body that is read, in bytes.
    pub max_req_body_size: usize,
    /// Status of the refusal.
    pub rejected_code: i64,
    /// Body of the refusal, instead of the reason.
    pub rejected_msg: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            header_schema: None,
            body_schema: None,
            max_req_body_size: 67_108_864,
            rejected_code: 400,
            rejected_msg: None,
        }
    }
}

/// The compiled plugin.
pub struct Plugin {
    headers: Option<Headers>,
    body: Option<Schema>,
    limit: usize,
    status: u16,
    message: Option<Arc<str>>,
}

/// What the headers must be.
struct Headers {
    schema: Schema,
    /// Names that the schema writes in another way than headers are looked up.
    aliases: Vec<Box<str>>,
}

impl contract::Plugin for Plugin {
    const NAME: &'static str = "request-validation";
    const PRIORITY: i32 = 2800;
    const PHASES: Phases = Phases::REWRITE;
    type Config = Config;

    fn schema() -> Value {
        json!({
            "type": "object",
            "properties": {
                "header_schema": {"type": "object"},
                "body_schema": {"type": "object"},
                "max_req_body_size": {
                    "description": "bytes of body that are read; larger ones are refused",
                    "type": "integer",
                    "minimum": 1,
                    "default": 67_108_864
                },
                "rejected_code": {"type": "integer", "minimum": 200, "maximum": 599, "default": 400},
                "rejected_msg": {"type": "string", "minLength": 1, "maxLength": 256}
            },
            "anyOf": [{"required": ["header_schema"]}, {"required": ["body_schema"]}]
        })
    }

    fn check(conf: &Value, _env: &CheckEnv<'_>) -> Result<(), String> {
        for key in ["body_schema", "header_schema"] {
            if let Some(schema) = conf.get(key)
                && !schema.as_str().is_some_and(is_secret_ref)
            {
                Schema::compile(schema).map_err(|e| e.to_string())?;
            }
        }
        Ok(())
    }

    fn build(config: Config, _env: &BuildEnv<'_>) -> Result<Self, String> {
        let body = config.body_schema.as_ref().map(Schema::compile).transpose().map_err(|e| e.to_string())?;
        Ok(Self {
            headers: config.header_schema.as_ref().map(Headers::new).transpose()?,
            body,
            limit: config.max_req_body_size,
            status: fields::status("rejected_code", config.rejected_code)?,
            message: config.rejected_msg.map(Into::into),
        })
    }

    async fn rewrite(&self, x: &mut Exchange<'_>) -> Flow {
        if let Some(headers) = &self.headers
            && let Err(reason) = headers.check(&x.session.req_header().headers)
        {
            return self.refuse(reason).into();
        }
        match &self.body {
            Some(schema) => self.check_body(schema, x).await,
            None => CONTINUE,
        }
    }
}

/// How a body is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Json,
    Form,
}

impl Plugin {
    async fn check_body(&self, schema: &Schema, x: &mut Exchange<'_>) -> Flow {
        let body = match self.read(x).await {
            Ok(body) => body,
            Err(why) => return self.refuse_silently(why).into(),
        };
        let Some(format) = Format::of(&x.session.req_header().headers) else {
            return self.refuse_silently("duplicated Content-Type header").into();
        };
        let mut value = match format.parse(&body) {
            Ok(Value::Bool(false)) => return self.refuse_silently("the request body is false").into(),
            Ok(value) => value,
            Err(reason) => return self.refuse(reason).into(),
        };
        if let Err(reason) = schema.check_and_fill(&mut value) {
            return self.refuse(reason).into();
        }
        if format == Format::Json {
            // APISIX: the JSON that was checked is the JSON that the upstream sees.
            body::replace(x.ctx, value.to_string().into());
        }
        CONTINUE
    }

    /// The body, if there is one of allowed size. APISIX: `core.request.get_body`.
    async fn read(&self, x: &mut Exchange<'_>) -> Result<Bytes, &'static str> {
        let allowed = x.ctx.body_limit;
        x.ctx.body_limit = allowed.min(self.limit);
        let read = x.body().await;
        x.ctx.body_limit = allowed;
        match read {
            Ok(body) if body.is_empty() => Err("the request has no body"),
            Ok(body) if body.len() > self.limit => Err("the request body is too large"),
            Ok(body) => Ok(body),
            Err(_) => Err("the request body is too large or broke off"),
        }
    }

    /// The refusal whose body is the reason, unless the configuration has one.
    fn refuse(&self, reason: String) -> Reply {
        let text = self.message.as_deref().unwrap_or(&reason).to_owned();
        Reply::bytes(self.status, text).because(reason).classed(Class::Malformed)
    }

    /// The refusal that tells no reason.
    fn refuse_silently(&self, reason: &str) -> Reply {
        let reply = match self.message.as_deref() {
            Some(message) => Reply::bytes(self.status, message.to_owned()),
            None => Reply::status(self.status),
        };
        reply.because(reason).classed(Class::Malformed)
    }
}

impl Format {
    /// `None` when it is ambiguous: APISIX and the upstream might read the body differently.
    fn of(headers: &HeaderMap) -> Option<Format> {
        const FORM: &[u8] = b"application/x-www-form-urlencoded";
        let mut values = headers.get_all(header::CONTENT_TYPE).iter();
        let Some(value) = values.next() else { return Some(Format::Json) };
        let is_form = value.as_bytes().get(..FORM.len()).is_some_and(|head| head.eq_ignore_ascii_case(FORM));
        values.next().is_none().then_some(if is_form { Format::Form } else { Format::Json })
    }

    fn parse(self, body: &[u8]) -> Result<Value, String> {
        match self {
            Format::Form => Ok(form(body)),
            // The words of APISIX's parser, and its leniency towards control characters in texts.
            Format::Json => serde_json::from_slice(body).or_else(|_| cjson::parse(body)),
        }
    }
}

impl Headers {
    fn new(schema: &Value) -> Result<Headers, String> {
        let keys = |key| {
            schema.get(key).and_then(Value::as_object).into_iter().flatten().map(|(name, _)| name.as_str())
        };
        let required =
            schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        let names = required.chain(keys("properties")).chain(keys("dependencies"));
        let mut aliases: Vec<Box<str>> =
            names.filter(|name| canonical(name) != **name).map(Into::into).collect();
        aliases.sort();
        aliases.dedup();
        Ok(Headers { schema: Schema::compile(schema).map_err(|e| e.to_string())?, aliases })
    }

    /// Judges the headers as a table of lower-case names, in which a name is found whatever its case and with `_`
    /// for `-`. ngx_lua: the metatable of `ngx.req.get_headers`.
    fn check(&self, headers: &HeaderMap) -> Result<(), String> {
        let mut table = Map::new();
        for name in headers.keys() {
            let mut values =
                headers.get_all(name).iter().map(|value| lossless::from_bytes(value.as_bytes()).into());
            let first: Value = values.next().unwrap_or_default();
            let mut rest: Vec<Value> = values.collect();
            let value = if rest.is_empty() {
                first
            } else {
                rest.insert(0, first);
                Value::Array(rest)
            };
            table.insert(name.as_str().to_owned(), value);
        }
        for alias in &self.aliases {
            if let Some(value) = table.get(&canonical(alias)).cloned() {
                table.insert(alias.to_string(), value);
            }
        }
        self.schema.check_and_fill(&mut Value::Object(table))
    }
}

fn canonical(name: &str) -> String {
    name.to_ascii_lowercase().replace('_', "-")
}

/// The table that `ngx.decode_args` makes of a form: names without `=` are `true`, repeated ones a list.
fn form(body: &[u8]) -> Value {
    let mut table = Map::new();
    for (name, value) in args::pairs(body) {
        let value = value.map_or(Value::Bool(true), |text| Value::String(text.into_owned()));
        match table.get_mut(&*name) {
            Some(Value::Array(values)) => values.push(value),
            Some(one) => *one = Value::Array(vec![one.take(), value]),
            None => drop(table.insert(name.into_owned(), value)),
        }
    }
    Value::Object(table)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::testing::{Kit, answer, compile_schemas, plugin, refusal};

    const JSON: &str = "application/json";
    const FORM: &str = "application/x-www-form-urlencoded; charset=utf-8";

    /// What the plugin says, or the body that goes on.
    #[track_caller]
    fn check(conf: Value, kind: &str, body: &str, expected: &str) {
        let plugin = plugin::<Plugin>(conf.clone());
        let got =
            Kit::post("/", kind, body).run(async |x| match contract::Plugin::rewrite(&plugin, x).await {
                CONTINUE => String::from_utf8(x.body().await.unwrap().to_vec()).unwrap(),
                flow => answer(&flow),
            });
        assert_eq!(got, expected, "{conf} {body}");
    }

    #[test]
    fn bodies() {
        compile_schemas::<Plugin>();
        let a = json!({"body_schema": {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}});
        check(a.clone(), JSON, "{\"a\": 1, \"a\": 2}", "{\"a\":2}");
        check(a.clone(), JSON, "{}", "400 property \"a\" is required");
        check(
            a.clone(),
            JSON,
            "{\"a\":\"x\"}",
            "400 property \"a\" validation failed: wrong type: expected integer, got string",
        );
        check(
            a.clone(),
            "text/plain",
            "x=1&y=2",
            "400 Expected value but found invalid token at character 1",
        );
        check(a.clone(), JSON, "{", "400 Expected object key string but found T_END at character 2");
        check(a.clone(), JSON, "", "400");
        check(a.clone(), JSON, "false", "400");
        let with = |key: &str, value: Value| {
            let mut conf = a.clone();
            conf[key] = value;
            conf
        };
        check(with("rejected_code", json!(422)), JSON, "", "422");
        check(with("rejected_msg", json!("bad body")), JSON, "", "400 bad body");
        check(with("rejected_msg", json!("bad body")), JSON, "{}", "400 bad body");
        check(with("max_req_body_size", json!(7)), JSON, "{\"a\":12}", "400");
        check(with("max_req_body_size", json!(8)), JSON, "{\"a\":12}", "{\"a\":12}");
        let filled = json!({"body_schema": {"type": "object", "properties": {"b": {"type": "string", "default": "x"}}}});
        check(filled, JSON, "{\"a\": 1.50}", "{\"a\":1.5,\"b\":\"x\"}");
    }

    #[test]
    fn forms() {
        let schema = |schema: Value| json!({"body_schema": {"type": "object", "properties": {"a": schema}}});
        check(schema(json!({"type": "string"})), FORM, "a=1&b", "a=1&b");
        check(schema(json!({"type": "boolean"})), FORM, "a", "a");
        check(schema(json!({"type": "array"})), FORM, "a=1&a=2&a", "a=1&a=2&a");
        check(
            schema(json!({"type": "string", "maxLength": 1})),
            FORM,
            "a=%41+b",
            "400 property \"a\" validation failed: string too long, expected at most 1, got 3",
        );
    }

    #[track_caller]
    fn check_headers(schema: Value, expected: &str) {
        let plugin = plugin::<Plugin>(json!({"header_schema": schema}));
        let kit = Kit::get("/", &[("X-K", "abc"), ("X-Two", "1"), ("X-Two", "2")]);
        assert_eq!(kit.rewrite(&plugin), expected, "{schema}");
    }

    #[test]
    fn headers() {
        check_headers(json!({"type": "object", "required": ["x-k"]}), "continue");
        check_headers(json!({"type": "object", "required": ["X-K", "X_Two"]}), "continue");
        check_headers(json!({"type": "object", "required": ["X-A"]}), "400 property \"X-A\" is required");
        check_headers(
            json!({"type": "object", "properties": {"X-K": {"type": "string", "maxLength": 2}}}),
            "400 property \"X-K\" validation failed: string too long, expected at most 2, got 3",
        );
        check_headers(json!({"type": "object", "properties": {"x-two": {"type": "array"}}}), "continue");
    }

    #[test]
    fn an_ambiguous_content_type_is_refused() {
        let plugin = plugin::<Plugin>(json!({"body_schema": {"type": "object"}}));
        let kit = |second: &str| {
            Kit::new(format!(
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Type: {JSON}\r\n{second}Content-Length: 2\r\n\r\n{{}}"
            ))
        };
        assert_eq!(kit("").rewrite(&plugin), "continue");
        assert_eq!(kit("Content-Type: text/plain\r\n").rewrite(&plugin), "400");
    }

    #[test]
    fn refusals() {
        let none = "object matches none of the required: [\"header_schema\"] or [\"body_schema\"]";
        assert_eq!(refusal::<Plugin>(json!({})), none);
        let bad = json!({"properties": {"a": {"type": "test"}}});
        for key in ["body_schema", "header_schema"] {
            assert_eq!(refusal::<Plugin>(json!({key: bad})), "invalid JSON type: test", "{key}");
        }
    }
}
