//! Turns a schema document into nodes: reads keywords, follows `$ref`, compiles patterns, prepares sentences.
//!
//! Keywords are read as Lua reads them: an absent or `false` keyword counts as not given, an empty list is an empty
//! table. Invariant: terminates on every document, circles of `$ref` included.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::SchemaError;
use super::lua;
use super::node::{
    Additional, AnyOf, ArrayRule, Condition, Contains, Count, Dependency, Format, Items, JsonType, Node,
    NodeId, NumberKind, NumberRule, ObjectRule, Property, Rules, StringRule, TypeRule,
};
use super::pattern::Pattern;

type Keywords = Map<String, Value>;

/// Longest chain of `$ref` leading to another `$ref`.
const MAX_REFERENCES: usize = 64;

/// Formats the library judges by pattern; it ignores a format it does not know.
const FORMATS: [(&str, &str); 6] = [
    ("email", r"^[A-Za-z0-9_.-]+@[A-Za-z0-9_.-]+\.[A-Za-z]{2,4}$"),
    ("hostname", r"^[a-zA-Z0-9.-]+$"),
    ("uuid", r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"),
    ("date", r"^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])$"),
    (
        "date-time",
        concat!(
            r"^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])[Tt]([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d+)?",
            r"([Zz]|[+-]([01]\d|2[0-3]):[0-5]\d)$"
        ),
    ),
    ("uri", r"^[a-zA-Z][a-zA-Z0-9+.-]*:\S*$"),
];

/// Compiles a document.
pub(super) fn compile(document: &Value) -> Result<(Vec<Node>, NodeId), SchemaError> {
    let mut compiler =
        Compiler { document, anchors: HashMap::new(), nodes: Vec::new(), seen: HashMap::new() };
    collect_anchors(document, &mut compiler.anchors);
    let root = compiler.node(document)?;
    Ok((compiler.nodes, root))
}

struct Compiler<'d> {
    document: &'d Value,
    /// `"$id": "#name"` → the subschema it names.
    anchors: HashMap<&'d str, &'d Value>,
    nodes: Vec<Node>,
    /// Subschemas already compiled, by address: what lets a schema refer to itself.
    seen: HashMap<*const Value, NodeId>,
}

impl<'d> Compiler<'d> {
    fn node(&mut self, schema: &'d Value) -> Result<NodeId, SchemaError> {
        let schema = self.resolve(schema)?;
        let address = std::ptr::from_ref(schema);
        if let Some(id) = self.seen.get(&address) {
            return Ok(*id);
        }
        let id = NodeId(self.nodes.len());
        self.nodes.push(Node::Always);
        self.seen.insert(address, id);
        self.nodes[id.0] = match schema {
            // A list is a table without keywords.
            Value::Bool(true) | Value::Array(_) => Node::Always,
            Value::Bool(false) => Node::Never,
            Value::Object(keywords) => Node::Rules(Box::new(self.rules(keywords)?)),
            _ => return Err(SchemaError::Keyword { keyword: "schema", expected: "object or boolean" }),
        };
        Ok(id)
    }

    fn nodes(&mut self, schemas: &'d [Value]) -> Result<Vec<NodeId>, SchemaError> {
        schemas.iter().map(|schema| self.node(schema)).collect()
    }

    /// A subschema under `keyword`, when the keyword is given.
    fn subschema(&mut self, of: &'d Keywords, keyword: &str) -> Result<Option<NodeId>, SchemaError> {
        given(of, keyword).map(|schema| self.node(schema)).transpose()
    }

    /// Follows `$ref` to a schema that is not one; its siblings do not count.
    fn resolve(&self, schema: &'d Value) -> Result<&'d Value, SchemaError> {
        let mut schema = schema;
        for _ in 0..MAX_REFERENCES {
            let Some(reference) = schema.as_object().and_then(|keywords| given(keywords, "$ref")) else {
                return Ok(schema);
            };
            let Value::String(reference) = reference else {
                return Err(SchemaError::Keyword { keyword: "$ref", expected: "string" });
            };
            schema = self.target(reference).ok_or_else(|| SchemaError::Reference(reference.clone()))?;
        }
        Err(SchemaError::Reference("circle of references".to_owned()))
    }

    fn target(&self, reference: &str) -> Option<&'d Value> {
        let (base, fragment) = reference.split_once('#').unwrap_or((reference, ""));
        let id = self.document.get("id").and_then(Value::as_str).unwrap_or_default();
        if !base.is_empty() && base != id.trim_end_matches('#') {
            return None;
        }
        if let Some(anchored) = self.anchors.get(fragment).filter(|_| !fragment.is_empty()) {
            return Some(anchored);
        }
        let mut target = self.document;
        for part in fragment.split('/').filter(|part| !part.is_empty()) {
            let part = decoded(part);
            target = match target {
                Value::Array(items) => items.get(part.parse::<usize>().ok()?)?,
                other => other.get(&part)?,
            };
        }
        Some(target)
    }

    fn rules(&mut self, schema: &'d Keywords) -> Result<Rules, SchemaError> {
        let one_of_values = match given(schema, "enum") {
            Some(_) => Some(enumeration(schema)?),
            None => None,
        };
        Ok(Rules {
            admits_secret: given(schema, "type").is_none_or(|name| name == "string"),
            types: types(schema)?,
            object: self.object(schema)?,
            array: self.array(schema)?,
            string: string(schema)?,
            numbers: numbers(schema)?,
            one_of_values,
            all_of: self.nodes(list(schema, "allOf")?.unwrap_or_default())?,
            any_of: self.any_of(schema)?,
            one_of: list(schema, "oneOf")?.map(|schemas| self.nodes(schemas)).transpose()?,
            condition: self.condition(schema)?,
            not: self.subschema(schema, "not")?,
            property_names: schema.get("propertyNames").and_then(Value::as_bool),
            format: format(schema)?,
            constant: schema.get("const").cloned(),
            contains: match schema.get("contains") {
                Some(Value::Bool(true)) => Some(Contains::True),
                Some(Value::Bool(false)) => Some(Contains::False),
                Some(schema) => Some(Contains::Schema(self.node(schema)?)),
                None => None,
            },
        })
    }

    fn object(&mut self, schema: &'d Keywords) -> Result<Option<ObjectRule>, SchemaError> {
        const KEYWORDS: [&str; 6] =
            ["properties", "patternProperties", "minProperties", "maxProperties", "dependencies", "required"];
        let any = KEYWORDS.iter().any(|keyword| given(schema, keyword).is_some());
        if !any && !schema.contains_key("additionalProperties") {
            return Ok(None);
        }
        let mut required = strings(schema, "required")?.unwrap_or_default();
        let only_empty = required.is_empty() && given(schema, "required").is_some();
        let mut dependencies = Vec::new();
        for (name, dependency) in table(schema, "dependencies")? {
            dependencies.push((name.clone(), self.dependency(dependency)?));
        }
        let mut properties = Vec::new();
        for (name, subschema) in table(schema, "properties")? {
            let dependency =
                dependencies.iter().position(|(of, _)| of == name).map(|at| dependencies.remove(at).1);
            let is_required = required.contains(name);
            required.retain(|other| other != name);
            properties.push(Property {
                name: name.clone(),
                node: self.node(subschema)?,
                required: is_required,
                default: subschema.get("default").filter(|default| !default.is_null()).cloned(),
                dependency,
            });
        }
        let mut patterns = Vec::new();
        for (pattern, subschema) in table(schema, "patternProperties")? {
            patterns.push((Pattern::new(pattern)?, self.node(subschema)?));
        }
        Ok(Some(ObjectRule {
            properties,
            required,
            dependencies,
            patterns,
            additional: self.additional(schema.get("additionalProperties"))?,
            min: count(schema, "minProperties")?,
            max: count(schema, "maxProperties")?,
            only_empty,
        }))
    }

    fn dependency(&mut self, dependency: &'d Value) -> Result<Dependency, SchemaError> {
        match dependency {
            Value::Array(names) if !names.is_empty() => Ok(Dependency::Names(texts(names, "dependencies")?)),
            schema => Ok(Dependency::Schema(self.node(schema)?)),
        }
    }

    fn additional(&mut self, schema: Option<&'d Value>) -> Result<Additional, SchemaError> {
        match schema {
            None | Some(Value::Bool(true)) => Ok(Additional::Allowed),
            Some(schema @ (Value::Object(_) | Value::Array(_))) => Ok(Additional::Schema(self.node(schema)?)),
            Some(_) => Ok(Additional::Forbidden),
        }
    }

    fn array(&mut self, schema: &'d Keywords) -> Result<Option<ArrayRule>, SchemaError> {
        let any =
            ["minItems", "maxItems", "uniqueItems"].iter().any(|keyword| given(schema, keyword).is_some());
        if !any && !schema.contains_key("items") {
            return Ok(None);
        }
        let items = match schema.get("items") {
            None => Items::Any,
            Some(Value::Bool(true)) => Items::True,
            Some(Value::Bool(false)) => Items::False,
            Some(Value::Array(items)) if !items.is_empty() => {
                let additional = match schema.get("additionalItems") {
                    Some(Value::Bool(false)) => Additional::Forbidden,
                    Some(schema @ (Value::Object(_) | Value::Array(_))) => {
                        Additional::Schema(self.node(schema)?)
                    }
                    _ => Additional::Allowed,
                };
                Items::Tuple { items: self.nodes(items)?, additional }
            }
            Some(schema) => Items::Each(self.node(schema)?),
        };
        let unique = given(schema, "uniqueItems").is_some();
        Ok(Some(ArrayRule {
            items,
            min: count(schema, "minItems")?,
            max: count(schema, "maxItems")?,
            unique,
        }))
    }

    fn any_of(&mut self, schema: &'d Keywords) -> Result<Option<AnyOf>, SchemaError> {
        let Some(schemas) = list(schema, "anyOf")? else {
            return Ok(None);
        };
        if schemas.is_empty() {
            return Err(SchemaError::Keyword { keyword: "anyOf", expected: "at least one schema" });
        }
        let required: Vec<String> = schemas
            .iter()
            .filter_map(|branch| given(branch.as_object()?, "required"))
            // Lua's JSON writer escapes slashes.
            .map(|names| names.to_string().replace('/', "\\/"))
            .collect();
        let mut message = "object matches none of the required".to_owned();
        if !required.is_empty() {
            message.push_str(": ");
            message.push_str(&required.join(" or "));
        }
        Ok(Some(AnyOf { branches: self.nodes(schemas)?, message }))
    }

    fn condition(&mut self, schema: &'d Keywords) -> Result<Option<Condition>, SchemaError> {
        let Some(test) = self.subschema(schema, "if")? else {
            return Ok(None);
        };
        let then = self.subschema(schema, "then")?;
        Ok(Some(Condition { test, then, otherwise: self.subschema(schema, "else")? }))
    }
}

fn collect_anchors<'d>(schema: &'d Value, anchors: &mut HashMap<&'d str, &'d Value>) {
    match schema {
        Value::Object(members) => {
            if let Some(name) = members.get("$id").and_then(Value::as_str).and_then(|id| id.strip_prefix('#'))
            {
                anchors.insert(name, schema);
            }
            members.values().for_each(|member| collect_anchors(member, anchors));
        }
        Value::Array(items) => items.iter().for_each(|item| collect_anchors(item, anchors)),
        _ => {}
    }
}

/// One part of a JSON pointer in a URI fragment: percent and tilde escapes undone.
fn decoded(part: &str) -> String {
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped = match tail {
            [high, low, ..] if *first == b'%' => {
                std::str::from_utf8(&[*high, *low]).ok().and_then(|hex| u8::from_str_radix(hex, 16).ok())
            }
            _ => None,
        };
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).replace("~1", "/").replace("~0", "~")
}

/// A keyword Lua would find true: neither absent nor `false`.
fn given<'d>(schema: &'d Keywords, keyword: &str) -> Option<&'d Value> {
    schema.get(keyword).filter(|value| !matches!(value, Value::Bool(false)))
}

/// The members of a keyword that maps names to schemas.
fn table<'d>(
    schema: &'d Keywords,
    keyword: &'static str,
) -> Result<Vec<(&'d String, &'d Value)>, SchemaError> {
    match given(schema, keyword) {
        None => Ok(Vec::new()),
        Some(Value::Object(members)) => Ok(members.iter().collect()),
        Some(Value::Array(items)) if items.is_empty() => Ok(Vec::new()),
        Some(other) => Err(SchemaError::NoTable { keyword, got: lua::type_name(other) }),
    }
}

/// The elements of a keyword that lists schemas or values.
fn list<'d>(schema: &'d Keywords, keyword: &'static str) -> Result<Option<&'d [Value]>, SchemaError> {
    match given(schema, keyword) {
        None => Ok(None),
        Some(Value::Array(items)) => Ok(Some(items)),
        // A table without a list part.
        Some(Value::Object(_)) => Ok(Some(&[])),
        Some(other) => Err(SchemaError::NoTable { keyword, got: lua::type_name(other) }),
    }
}

fn strings(schema: &Keywords, keyword: &'static str) -> Result<Option<Vec<String>>, SchemaError> {
    list(schema, keyword)?.map(|names| texts(names, keyword)).transpose()
}

fn texts(names: &[Value], keyword: &'static str) -> Result<Vec<String>, SchemaError> {
    let text = |name: &Value| name.as_str().map(str::to_owned);
    names.iter().map(text).collect::<Option<_>>().ok_or(SchemaError::Keyword { keyword, expected: "strings" })
}

fn number(schema: &Keywords, keyword: &'static str) -> Result<Option<f64>, SchemaError> {
    match given(schema, keyword) {
        None => Ok(None),
        Some(value) => match value.as_f64() {
            Some(number) => Ok(Some(number)),
            None => Err(SchemaError::Keyword { keyword, expected: "number" }),
        },
    }
}

fn count(schema: &Keywords, keyword: &'static str) -> Result<Option<Count>, SchemaError> {
    // The comparison drops a fraction, the sentence keeps it.
    Ok(number(schema, keyword)?.map(|limit| Count { limit: limit as i64, text: lua::number_text(limit) }))
}

fn types(schema: &Keywords) -> Result<Option<TypeRule>, SchemaError> {
    match schema.get("type") {
        None => Ok(None),
        Some(Value::String(name)) => {
            Ok(Some(TypeRule { types: vec![json_type(name)?], expected: format!("expected {name}") }))
        }
        Some(Value::Array(names)) => {
            let names = texts(names, "type")?;
            let types = names.iter().map(|name| json_type(name)).collect::<Result<_, _>>()?;
            Ok(Some(TypeRule { types, expected: format!("expected one of {}", names.join(", ")) }))
        }
        Some(_) => Err(SchemaError::Keyword { keyword: "type", expected: "string or array" }),
    }
}

fn json_type(name: &str) -> Result<JsonType, SchemaError> {
    Ok(match name {
        "object" => JsonType::Object,
        "array" => JsonType::Array,
        "table" => JsonType::Table,
        "integer" => JsonType::Integer,
        "number" => JsonType::Number,
        "string" => JsonType::String,
        "boolean" => JsonType::Boolean,
        "null" => JsonType::Null,
        "function" => JsonType::Function,
        other => return Err(SchemaError::Type(other.to_owned())),
    })
}

fn string(schema: &Keywords) -> Result<Option<StringRule>, SchemaError> {
    let pattern = match given(schema, "pattern") {
        None => None,
        Some(Value::String(pattern)) => Some(Pattern::new(pattern)?),
        Some(_) => return Err(SchemaError::Keyword { keyword: "pattern", expected: "string" }),
    };
    let limit = |keyword| Ok::<_, SchemaError>(number(schema, keyword)?.map(|limit| limit as i64));
    let rule = StringRule { min: limit("minLength")?, max: limit("maxLength")?, pattern };
    Ok((rule.min.is_some() || rule.max.is_some() || rule.pattern.is_some()).then_some(rule))
}

fn numbers(schema: &Keywords) -> Result<Vec<NumberRule>, SchemaError> {
    const KINDS: [(&str, NumberKind); 5] = [
        ("minimum", NumberKind::Minimum),
        ("exclusiveMinimum", NumberKind::ExclusiveMinimum),
        ("maximum", NumberKind::Maximum),
        ("exclusiveMaximum", NumberKind::ExclusiveMaximum),
        ("multipleOf", NumberKind::MultipleOf),
    ];
    let mut rules = Vec::new();
    for (keyword, kind) in KINDS {
        rules.extend(number(schema, keyword)?.map(|reference| NumberRule { kind, reference }));
    }
    Ok(rules)
}

fn enumeration(schema: &Keywords) -> Result<Vec<Value>, SchemaError> {
    let values = list(schema, "enum")?.unwrap_or_default();
    if values.is_empty() {
        return Err(SchemaError::Keyword { keyword: "enum", expected: "at least one value" });
    }
    if values.contains(&Value::Null) {
        return Err(SchemaError::EnumNull);
    }
    Ok(values.to_vec())
}

fn format(schema: &Keywords) -> Result<Option<Format>, SchemaError> {
    let name = match schema.get("format").and_then(Value::as_str) {
        Some("ipv4") => return Ok(Some(Format::Ipv4)),
        Some("ipv6") => return Ok(Some(Format::Ipv6)),
        Some(name) => name,
        None => return Ok(None),
    };
    let Some((name, pattern)) = FORMATS.iter().find(|(known, _)| *known == name) else {
        return Ok(None);
    };
    Ok(Some(Format::Pattern { name: (*name).to_owned(), pattern: Pattern::new(pattern)? }))
}
