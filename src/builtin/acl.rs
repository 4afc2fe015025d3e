//! acl: who may pass, by the labels of the consumer or of whoever an identity provider vouches for.
//!
//! APISIX: plugins/acl.lua. A label is a text, a list in JSON (`["a","b"]`) or separated by commas (`a,b`).
//!
//! Differs from APISIX: a separator that is no regular expression is refused when it is written, and a path with
//! arithmetic or a script is, too; a parser for text that meets a list finds nothing in it (there it fails with 500).

use std::{borrow::Cow, collections::BTreeMap};

use serde::Deserialize;
use serde_json::{Value, json};

use super::shared::header;
use crate::{
    plugin::{
        contract,
        env::{BuildEnv, CheckEnv},
        exchange::Exchange,
        phases::Phases,
        reply::{CONTINUE, Class, Flow, Reply},
    },
    vars::{
        jsonpath::JsonPath,
        pcre::{Case, Pcre},
    },
};

type Labels = BTreeMap<String, Vec<String>>;

/// The configuration.
#[derive(Deserialize)]
pub struct Config {
    /// Labels of which one lets in; everybody else stays out.
    pub allow_labels: Option<Labels>,
    /// Labels of which one keeps out, before all else.
    pub deny_labels: Option<Labels>,
    /// Where the labels of somebody who is no consumer stand, as a JSONPath.
    #[serde(default = "default_field")]
    pub external_user_label_field: String,
    /// The name that those labels are compared under; without it the path itself.
    pub external_user_label_field_key: Option<String>,
    /// How those labels are read; without it, by their looks.
    pub external_user_label_field_parser: Option<ParserName>,
    /// What separates labels in a text, as a regular expression.
    pub external_user_label_field_separator: Option<String>,
    /// Status of a refusal.
    #[serde(default = "default_code")]
    pub rejected_code: i64,
    /// Message of a refusal.
    pub rejected_msg: Option<String>,
}

fn default_field() -> String {
    "groups".into()
}

fn default_code() -> i64 {
    403
}

/// How labels are read from a value.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParserName {
    /// A text with separators.
    SegmentedText,
    /// A text that is a JSON array.
    Json,
    /// A list.
    Table,
}

enum Parser {
    Segmented(Pcre),
    Json,
    Table,
}

/// The compiled configuration.
pub struct Plugin {
    allow: Option<Labels>,
    deny: Option<Labels>,
    field: JsonPath,
    field_name: Box<str>,
    parser: Option<Parser>,
    commas: Pcre,
    rejected_code: u16,
    rejected_msg: Box<str>,
}

impl contract::Plugin for Plugin {
    const NAME: &'static str = "acl";
    const PRIORITY: i32 = 2410;
    const PHASES: Phases = Phases::ACCESS;
    type Config = Config;

    fn schema() -> Value {
        let labels = json!({
            "type": "object",
            "minProperties": 1,
            "patternProperties": {".*": {"type": "array", "minItems": 1, "items": {"type": "string"}}}
        });
        json!({
            "type": "object",
            "properties": {
                "external_user_label_field": {"type": "string", "default": "groups", "minLength": 1},
                "external_user_label_field_key": {"type": "string", "minLength": 1},
                "external_user_label_field_parser": {
                    "type": "string",
                    "enum": ["segmented_text", "json", "table"]
                },
                "external_user_label_field_separator": {"type": "string", "minLength": 1},
                "allow_labels": labels,
                "deny_labels": labels,
                "rejected_code": {"type": "integer", "minimum": 200, "default": 403},
                "rejected_msg": {"type": "string"}
            },
            "allOf": [{
                "if": {
                    "required": ["external_user_label_field_parser"],
                    "properties": {"external_user_label_field_parser": {"const": "segmented_text"}}
                },
                "then": {"required": ["external_user_label_field_separator"]}
            }],
            "anyOf": [{"required": ["allow_labels"]}, {"required": ["deny_labels"]}]
        })
    }

    fn check(conf: &Value, _env: &CheckEnv<'_>) -> Result<(), String> {
        let field = conf.get("external_user_label_field").and_then(Value::as_str).unwrap_or("groups");
        path(field).map(|_| ())
    }

    fn build(config: Config, _env: &BuildEnv<'_>) -> Result<Self, String> {
        let separated = |by: &str| {
            Pcre::new(&format!("\\s*{by}\\s*"), Case::Sensitive)
                .map_err(|e| format!("invalid external_user_label_field_separator: {e}"))
        };
        let parser = match config.external_user_label_field_parser {
            None => None,
            Some(ParserName::Json) => Some(Parser::Json),
            Some(ParserName::Table) => Some(Parser::Table),
            Some(ParserName::SegmentedText) => {
                let separator = config.external_user_label_field_separator.unwrap_or_default();
                Some(Parser::Segmented(separated(&separator)?))
            }
        };
        let field = config.external_user_label_field;
        Ok(Self {
            allow: config.allow_labels,
            deny: config.deny_labels,
            parser,
            commas: separated(",")?,
            rejected_code: header::status("rejected_code", config.rejected_code)?,
            rejected_msg: config.rejected_msg.unwrap_or_else(|| "The consumer is forbidden.".into()).into(),
            field_name: config.external_user_label_field_key.as_deref().unwrap_or(&field).into(),
            field: path(&field)?,
        })
    }

    async fn access(&self, x: &mut Exchange<'_>) -> Flow {
        let (allow, deny) = if let Some(consumer) = x.consumer() {
            let has = |wanted: &Labels| {
                wanted.iter().any(|(name, values)| {
                    consumer.labels.get(name).is_some_and(|label| meets(values, &self.guess(label)))
                })
            };
            (self.allow.as_ref().map(has), self.deny.as_ref().map(has))
        } else if let Some(user) = &x.ctx.external_user {
            let own = self.labels_of(user);
            let has =
                |wanted: &Labels| wanted.get(&*self.field_name).is_some_and(|values| meets(values, &own));
            (self.allow.as_ref().map(has), self.deny.as_ref().map(has))
        } else {
            return Reply::message(401, "Missing authentication.")
                .because("nobody authenticated")
                .classed(Class::Missing)
                .into();
        };
        if deny == Some(true) {
            return self.reject("a denied label");
        }
        if allow == Some(false) {
            return self.reject("no allowed label");
        }
        CONTINUE
    }
}

impl Plugin {
    fn reject(&self, reason: &str) -> Flow {
        Reply::message(self.rejected_code, &*self.rejected_msg)
            .because(reason)
            .classed(Class::Forbidden)
            .into()
    }

    /// The labels of somebody who is no consumer.
    fn labels_of<'v>(&self, user: &'v Value) -> Vec<Cow<'v, str>> {
        let found = self.field.query(user);
        // Of several places only texts go through the parser: a list among them is one already.
        let alone = found.len() == 1;
        let read = |value: &'v Value| match &self.parser {
            Some(parser) if alone || value.is_string() => self.parse(value, parser),
            _ => self.guess(value),
        };
        found.into_iter().flat_map(read).collect()
    }

    /// The labels in a value, which tells by its looks how it is to be read.
    fn guess<'v>(&self, value: &'v Value) -> Vec<Cow<'v, str>> {
        match value {
            Value::Array(_) => self.parse(value, &Parser::Table),
            Value::String(text) if text.starts_with('[') => self.parse(value, &Parser::Json),
            Value::String(text) if text.contains(',') => segments(&self.commas, text),
            Value::String(text) => vec![text.into()],
            _ => Vec::new(),
        }
    }

    fn parse<'v>(&self, value: &'v Value, parser: &Parser) -> Vec<Cow<'v, str>> {
        match (parser, value) {
            (Parser::Segmented(separator), Value::String(text)) => segments(separator, text),
            (Parser::Table, Value::Array(items)) => {
                items.iter().filter_map(Value::as_str).map(Cow::Borrowed).collect()
            }
            (Parser::Json, Value::String(text)) if text.starts_with('[') => {
                let items: Vec<Value> = serde_json::from_str(text).unwrap_or_default();
                let text = |item| if let Value::String(text) = item { Some(Cow::Owned(text)) } else { None };
                items.into_iter().filter_map(text).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// Whether one of the wanted values is among the labels.
fn meets(wanted: &[String], labels: &[Cow<'_, str>]) -> bool {
    wanted.iter().any(|wanted| labels.iter().any(|label| label == wanted))
}

/// The parts of a text. APISIX: `ngx.re.split`, which drops empty parts at the end.
fn segments(separator: &Pcre, text: &str) -> Vec<Cow<'static, str>> {
    let mut parts = separator.split(text);
    while parts.last().is_some_and(String::is_empty) {
        parts.pop();
    }
    parts.into_iter().map(Cow::Owned).collect()
}

/// A path, whose leading `$.` may be missing.
fn path(text: &str) -> Result<JsonPath, String> {
    let whole = match text.as_bytes().first() {
        Some(b'$') => text.to_owned(),
        Some(b'[' | b'.') => format!("${text}"),
        _ => format!("$.{text}"),
    };
    JsonPath::parse(&whole).map_err(|e| format!("invalid external_user_label_field: {e}"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::plugin::{
        consumer::Consumer,
        testing::{self, Kit},
    };

    const NO: &str = r#"403 {"message":"The consumer is forbidden."}"#;

    #[track_caller]
    fn consumer(conf: Value, labels: Value, said: &str) {
        let plugin: Plugin = testing::plugin(conf.clone());
        let kit =
            Kit::get("/", &[]).consumer(Consumer { labels: labels.clone(), ..testing::consumer("jack") });
        kit.run(async |x| {
            x.attach_anonymous("jack").unwrap();
            let answer = testing::answer(&contract::Plugin::access(&plugin, x).await);
            assert_eq!(answer, said, "{conf} {labels}");
        });
    }

    #[track_caller]
    fn external(conf: Value, user: Value, said: &str) {
        let plugin: Plugin = testing::plugin(conf.clone());
        Kit::get("/", &[]).run(async |x| {
            x.ctx.external_user = Some(Arc::new(user.clone()));
            let answer = testing::answer(&contract::Plugin::access(&plugin, x).await);
            assert_eq!(answer, said, "{conf} {user}");
        });
    }

    #[test]
    fn labels_of_consumers() {
        testing::compile_schemas::<Plugin>();
        let allow = || json!({"allow_labels": {"team": ["a", "b"], "org": ["x"]}});
        for labels in [
            json!({"team": "a"}),
            json!({"team": "c,b"}),
            json!({"team": "c , a,"}),
            json!({"team": r#"["c","a"]"#}),
            json!({"team": "c", "org": "x"}),
        ] {
            consumer(allow(), labels, "continue");
        }
        for labels in
            [Value::Null, json!({}), json!({"team": "c"}), json!({"org": "a"}), json!({"team": r#"["a""#})]
        {
            consumer(allow(), labels, NO);
        }
        let deny = || json!({"deny_labels": {"team": ["a"]}, "rejected_code": 401, "rejected_msg": "no"});
        consumer(deny(), json!({"team": "b,a"}), r#"401 {"message":"no"}"#);
        consumer(deny(), json!({"team": "b"}), "continue");
        consumer(deny(), Value::Null, "continue");
        let both = json!({"allow_labels": {"team": ["a"]}, "deny_labels": {"org": ["x"]}});
        consumer(both.clone(), json!({"team": "a"}), "continue");
        consumer(both, json!({"team": "a", "org": "x"}), NO);
    }

    #[test]
    fn nobody() {
        let plugin: Plugin = testing::plugin(json!({"deny_labels": {"a": ["b"]}}));
        assert_eq!(Kit::get("/", &[]).access(&plugin), r#"401 {"message":"Missing authentication."}"#);
    }

    #[test]
    fn labels_of_others() {
        let conf = || json!({"allow_labels": {"groups": ["a"]}});
        external(conf(), json!({"groups": ["b", "a"]}), "continue");
        external(conf(), json!({"groups": "a"}), "continue");
        external(conf(), json!({"groups": "b, a"}), "continue");
        external(conf(), json!({"groups": [1, null]}), NO);
        external(conf(), json!({}), NO);
        external(conf(), json!("groups"), NO);
        let with = |more: Value| {
            let mut conf = json!({"allow_labels": {"team": ["a"]}, "external_user_label_field_key": "team"});
            for (name, value) in more.as_object().unwrap() {
                conf[name] = value.clone();
            }
            conf
        };
        let field = "$.realm.roles[*].name";
        let many = || json!({"realm": {"roles": [{"name": "b|a"}, {"name": ["c"]}]}});
        let piped = json!({
            "external_user_label_field": field,
            "external_user_label_field_parser": "segmented_text",
            "external_user_label_field_separator": "\\|"
        });
        external(with(piped.clone()), many(), "continue");
        external(with(piped), json!({"realm": {"roles": [{"name": ["a"]}]}}), NO);
        external(with(json!({"external_user_label_field": field})), many(), NO);
        let json = json!({"external_user_label_field_parser": "json"});
        external(with(json.clone()), json!({"groups": r#"["a"]"#}), "continue");
        external(with(json), json!({"groups": "a"}), NO);
        let table = json!({"external_user_label_field_parser": "table"});
        external(with(table.clone()), json!({"groups": ["a"]}), "continue");
        external(with(table), json!({"groups": "a"}), NO);
    }

    #[test]
    fn refuses_bad_configurations() {
        let refusal = testing::refusal::<Plugin>;
        assert!(!refusal(json!({})).is_empty());
        assert_eq!(
            refusal(json!({"deny_labels": {"a": ["b"]}, "external_user_label_field": "$["})),
            r#"invalid external_user_label_field: invalid expression "$[" near "[""#
        );
        let lacks =
            json!({"deny_labels": {"a": ["b"]}, "external_user_label_field_parser": "segmented_text"});
        assert!(!refusal(lacks).is_empty());
        let bad = json!({
            "deny_labels": {"a": ["b"]},
            "external_user_label_field_parser": "segmented_text",
            "external_user_label_field_separator": "("
        });
        assert!(refusal(bad).starts_with("invalid external_user_label_field_separator: "));
        assert_eq!(
            refusal(json!({"allow_labels": 1})),
            r#"property "allow_labels" validation failed: wrong type: expected object, got number"#
        );
    }
}
