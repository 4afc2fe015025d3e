//! mocking: answers with an example, or with something made up after a JSON schema.
//!
//! <https://apisix.apache.org/docs/apisix/plugins/mocking/>
//!
//! Differs from APISIX: made-up objects have their members in the schema's order; a boolean example `false` is kept;
//! texts are escaped in XML; a `response_status` that cannot end an exchange is refused.

use std::time::Duration;

use http::{HeaderValue, header};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::shared::header::{self as fields, Field};
use crate::{
    plugin::{
        contract,
        env::{BuildEnv, CheckEnv},
        exchange::Exchange,
        phases::Phases,
        reply::{Class, Flow, Reply},
    },
    schema::lua,
    vars::{template::Template, var::Var},
};

/// The plugin's configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Seconds to wait before the answer.
    pub delay: i64,
    /// Status of the answer.
    pub response_status: i64,
    /// Its Content-Type.
    pub content_type: String,
    /// Its body, with variables.
    pub response_example: Option<String>,
    /// The schema after which a body is made up, if there is no example.
    pub response_schema: Option<Value>,
    /// Whether a header tells that the answer is made up.
    pub with_mock_header: bool,
    /// Further headers, with variables.
    pub response_headers: Option<Map<String, Value>>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            delay: 0,
            response_status: 200,
            content_type: "application/json;charset=utf8".into(),
            response_example: None,
            response_schema: None,
            with_mock_header: true,
            response_headers: None,
        }
    }
}

/// The compiled plugin.
pub struct Plugin {
    delay: Option<Duration>,
    status: u16,
    content_type: HeaderValue,
    body: Body,
    mock_by: Option<HeaderValue>,
    headers: Vec<Field>,
    /// Some variable is part of the request body.
    needs_body: bool,
}

enum Body {
    Example(Template),
    Json(Shape),
    Xml(Shape),
    /// A schema, but a type in which nothing can be made up.
    Empty,
}

/// What is made up for one part of a schema.
enum Shape {
    Object(Vec<(String, Shape)>),
    Array(Box<Shape>),
    Text(Option<Template>),
    Number(Option<Value>),
    Integer(Option<Value>),
    Boolean(Option<bool>),
    /// Left out.
    Nothing,
}

impl contract::Plugin for Plugin {
    const NAME: &'static str = "mocking";
    const PRIORITY: i32 = 10900;
    const PHASES: Phases = Phases::ACCESS;
    type Config = Config;

    fn schema() -> Value {
        json!({
            "type": "object",
            "properties": {
                "delay": {"type": "integer", "default": 0},
                "response_status": {"type": "integer", "default": 200, "minimum": 100},
                "content_type": {"type": "string", "default": "application/json;charset=utf8"},
                "response_example": {"type": "string"},
                "response_schema": {"type": "object"},
                "with_mock_header": {"type": "boolean", "default": true},
                "response_headers": {
                    "type": "object",
                    "minProperties": 1,
                    "patternProperties": {"^[^:]+$": {"oneOf": [{"type": "string"}, {"type": "number"}]}}
                }
            },
            "anyOf": [{"required": ["response_example"]}, {"required": ["response_schema"]}]
        })
    }

    fn check(conf: &Value, _env: &CheckEnv<'_>) -> Result<(), String> {
        let Some(content_type) = conf.get("content_type").and_then(Value::as_str) else { return Ok(()) };
        match media_type(content_type) {
            "application/xml" | "application/json" | "text/plain" | "text/html" | "text/xml" => Ok(()),
            _ => Err("unsupported content type!".into()),
        }
    }

    fn build(config: Config, env: &BuildEnv<'_>) -> Result<Self, String> {
        let body = match (&config.response_example, &config.response_schema) {
            (Some(example), _) => Body::Example(Template::parse(example)),
            (None, Some(schema)) => Body::made_up(schema, media_type(&config.content_type)),
            (None, None) => Body::Empty,
        };
        let mut headers = config.response_headers.as_ref().map_or_else(|| Ok(Vec::new()), fields::fields)?;
        let mut content_type = fields::value(&config.content_type);
        // There is one Content-Type only, and nginx takes the later one.
        headers.retain(|field| {
            if field.name.key == header::CONTENT_TYPE {
                content_type = fields::value(field.value.source());
            }
            field.name.key != header::CONTENT_TYPE
        });
        let mock_by =
            config.with_mock_header.then(|| fields::value(&format!("APISIX/{}", env.compat.version())));
        let asks_for_body = |template: &Template| template.vars().any(Var::needs_body);
        let example_asks = matches!(&body, Body::Example(example) if asks_for_body(example));
        Ok(Self {
            needs_body: example_asks || headers.iter().any(|field| asks_for_body(&field.value)),
            delay: u64::try_from(config.delay).ok().filter(|delay| *delay > 0).map(Duration::from_secs),
            status: fields::status("response_status", config.response_status)?,
            content_type,
            body,
            mock_by,
            headers,
        })
    }

    async fn access(&self, x: &mut Exchange<'_>) -> Flow {
        if self.needs_body
            && let Err(reply) = x.body().await
        {
            return reply.into();
        }
        let reply = Reply::bytes(self.status, self.body.render(x));
        let mut reply = reply.because("made-up answer").classed(Class::Other);
        reply.headers.push((header::CONTENT_TYPE, self.content_type.clone()));
        if let Some(mock_by) = &self.mock_by {
            reply.headers.push((header::HeaderName::from_static("x-mock-by"), mock_by.clone()));
        }
        for Field { name, value } in &self.headers {
            let text = value.render(x);
            if !text.is_empty() {
                let value = fields::value(&text);
                x.add_response_header_as(name.letters.clone(), name.key.clone(), value);
            }
        }
        if let Some(delay) = self.delay {
            tokio::time::sleep(delay).await;
        }
        reply.into()
    }
}

impl Body {
    fn made_up(schema: &Value, media_type: &str) -> Body {
        // The root is an object whatever its type says.
        let shape = || Shape::object(schema);
        match media_type {
            "application/json" | "text/plain" => Body::Json(shape()),
            "application/xml" | "text/xml" => Body::Xml(shape()),
            _ => Body::Empty,
        }
    }

    fn render(&self, x: &Exchange<'_>) -> String {
        match self {
            Body::Example(example) => example.render(x).into_owned(),
            Body::Json(shape) => shape.make(x).unwrap_or_default().to_string(),
            Body::Xml(shape) => {
                let mut out = String::new();
                xml(&mut out, "data", &shape.make(x).unwrap_or_default());
                out
            }
            Body::Empty => String::new(),
        }
    }
}

impl Shape {
    fn new(schema: &Value) -> Shape {
        let example = schema.get("example");
        let kind = schema.get("type").and_then(Value::as_str).unwrap_or_default().to_ascii_lowercase();
        match kind.as_str() {
            "object" => Shape::object(schema),
            "array" => {
                schema.get("items").map_or(Shape::Nothing, |items| Shape::Array(Box::new(Shape::new(items))))
            }
            "string" => Shape::Text(example.and_then(Value::as_str).map(Template::parse)),
            "number" => Shape::Number(example.filter(|example| example.is_number()).cloned()),
            "integer" => {
                Shape::Integer(example.and_then(Value::as_f64).map(|example| whole(example.floor())))
            }
            "boolean" => Shape::Boolean(example.and_then(Value::as_bool)),
            _ => Shape::Nothing,
        }
    }

    fn object(schema: &Value) -> Shape {
        let properties = schema.get("properties").and_then(Value::as_object).into_iter().flatten();
        Shape::Object(properties.map(|(name, schema)| (name.clone(), Shape::new(schema))).collect())
    }

    /// Makes something up; `None` where nothing can be.
    fn make(&self, x: &Exchange<'_>) -> Option<Value> {
        Some(match self {
            Shape::Object(members) => {
                let made = members.iter().filter_map(|(name, shape)| Some((name.clone(), shape.make(x)?)));
                Value::Object(made.collect())
            }
            Shape::Array(items) => (0..fastrand::usize(1..=3)).filter_map(|_| items.make(x)).collect(),
            Shape::Text(Some(example)) => example.render(x).into(),
            Shape::Text(None) => {
                (0..fastrand::usize(1..=10)).map(|_| fastrand::lowercase()).collect::<String>().into()
            }
            Shape::Number(Some(example)) | Shape::Integer(Some(example)) => example.clone(),
            Shape::Number(None) => lua::number_text(fastrand::f64() * 10_000.0).parse::<f64>().ok()?.into(),
            Shape::Integer(None) => fastrand::i64(1..=10_000).into(),
            Shape::Boolean(example) => example.unwrap_or_else(fastrand::bool).into(),
            Shape::Nothing => return None,
        })
    }
}

/// A number without a fraction, written as one.
fn whole(number: f64) -> Value {
    let mut value = json!(number);
    lua::integers(&mut value);
    value
}

/// What stands before the last `;`.
fn media_type(content_type: &str) -> &str {
    content_type.rsplit_once(';').map_or(content_type, |(media_type, _)| media_type)
}

/// Writes a value as an element; a list as one element for each item.
fn xml(out: &mut String, tag: &str, value: &Value) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| xml(out, tag, item)),
        Value::Object(members) => {
            out.push_str(&format!("<{tag}>\n"));
            members.iter().for_each(|(name, member)| xml(out, name, member));
            out.push_str(&format!("</{tag}>\n"));
        }
        scalar => {
            out.push_str(&format!("<{tag}>"));
            match scalar.as_str() {
                Some(text) => escape_xml(out, text),
                None => out.push_str(&scalar.to_string()),
            }
            out.push_str(&format!("</{tag}>\n"));
        }
    }
}

fn escape_xml(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::testing::{Kit, Setup, answer, compile_schemas, plugin, refusal, response_header};

    #[track_caller]
    fn check(conf: Value, expected: &str) {
        assert_eq!(Kit::get("/p/x?k=1", &[]).access(&plugin::<Plugin>(conf.clone())), expected, "{conf}");
    }

    #[test]
    fn examples() {
        compile_schemas::<Plugin>();
        check(json!({"response_example": "ex $uri", "content_type": "text/plain"}), "200 ex /p/x");
        check(json!({"response_status": 418, "response_example": "{\"a\":1}"}), "418 {\"a\":1}");
        check(json!({"response_example": "none:$arg_none"}), "200 none:");
    }

    #[test]
    fn looks_into_bodies() {
        let plugin = plugin::<Plugin>(json!({"response_example": "<$post_arg_a>"}));
        assert_eq!(Kit::post("/", "application/x-www-form-urlencoded", "a=1").access(&plugin), "200 <1>");
    }

    #[test]
    fn headers() {
        let conf = json!({"response_example": "h", "response_headers": {"X-M": "$arg_k", "X-E": "$arg_none", "X-N": 2}});
        let told = |conf: &Value, setup: Setup| {
            let plugin = setup.build::<Plugin>(conf.clone()).unwrap();
            Kit::get("/?k=1", &[]).run(async |x| {
                let flow = contract::Plugin::access(&plugin, x).await;
                assert_eq!(answer(&flow), "200 h");
                let names = ["content-type", "x-mock-by", "x-m", "x-e", "x-n"];
                names.map(|name| response_header(&flow, x, name).unwrap_or_default())
            })
        };
        let expected = ["application/json;charset=utf8", "APISIX/3.18.0", "1", "", "2"];
        assert_eq!(told(&conf, Setup::new()), expected);
        let old = told(&conf, Setup::new().compat(crate::compat::Compat::V3_2));
        assert_eq!(old[1], "APISIX/3.2.0");
        let mut bare = conf;
        bare["with_mock_header"] = json!(false);
        bare["response_headers"]["content-type"] = json!("text/own");
        assert_eq!(told(&bare, Setup::new()), ["text/own", "", "1", "", "2"]);
    }

    #[test]
    fn given_examples_in_schemas() {
        let schema = json!({
            "type": "object",
            "properties": {
                "text": {"type": "string", "example": "<$arg_k>"},
                "number": {"type": "number", "example": 1.5},
                "integer": {"type": "integer", "example": 2.7},
                "yes": {"type": "boolean", "example": true},
                "no": {"type": "boolean", "example": false},
                "deep": {"type": "object", "properties": {"a": {"type": "STRING", "example": "b"}}},
                "empty": {"type": "array"},
                "odd": {"type": "null"}
            }
        });
        let json = "{\"text\":\"<1>\",\"number\":1.5,\"integer\":2,\"yes\":true,\"no\":false,\"deep\":{\"a\":\"b\"}}";
        check(json!({"response_schema": schema}), &format!("200 {json}"));
        let xml = "<data>\n<text>&lt;1&gt;</text>\n<number>1.5</number>\n<integer>2</integer>\n<yes>true</yes>\n\
                   <no>false</no>\n<deep>\n<a>b</a>\n</deep>\n</data>\n";
        check(json!({"response_schema": schema, "content_type": "text/xml"}), &format!("200 {xml}"));
        check(json!({"response_schema": schema, "content_type": "text/html"}), "200 ");
    }

    #[test]
    fn made_up_values_fit_the_schema() {
        let schema = json!({
            "type": "object",
            "required": ["s", "n", "i", "b", "l"],
            "properties": {
                "s": {"type": "string", "minLength": 1, "maxLength": 10, "pattern": "^[a-z]+$"},
                "n": {"type": "number", "minimum": 0, "maximum": 10000},
                "i": {"type": "integer", "minimum": 1, "maximum": 10000},
                "b": {"type": "boolean"},
                "l": {"type": "array", "minItems": 1, "maxItems": 3, "items": {"type": "integer"}}
            }
        });
        let judge = crate::schema::Schema::compile(&schema).unwrap();
        let plugin = plugin::<Plugin>(json!({"response_schema": schema}));
        Kit::get("/", &[]).run(async |x| {
            for _ in 0..100 {
                let made: Value = serde_json::from_str(&plugin.body.render(x)).unwrap();
                assert_eq!(judge.check(&made), Ok(()), "{made}");
            }
        });
    }

    #[test]
    fn refusals() {
        let none = "object matches none of the required: [\"response_example\"] or [\"response_schema\"]";
        for (conf, expected) in [
            (json!([]), none),
            (json!({"response_example": "a", "content_type": "image/png"}), "unsupported content type!"),
            (
                json!({"response_example": "a", "response_status": 99}),
                "property \"response_status\" validation failed: expected 99 to be at least 100",
            ),
        ] {
            assert_eq!(refusal::<Plugin>(conf.clone()), expected, "{conf}");
        }
        assert!(!refusal::<Plugin>(json!({"response_example": "a", "response_status": 101})).is_empty());
    }
}
