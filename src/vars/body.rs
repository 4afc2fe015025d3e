//! Request bodies as variables see them: `post_arg_name` and `post_arg.path`.
//!
//! A body is parsed at most once per request, and only when a variable of it is asked for; whoever implements
//! [`crate::vars::var::Lookup`] keeps the [`PostBody`].

use std::borrow::Cow;

use serde_json::{Map, Value as Json};

use crate::net::{args, lossless};
use crate::vars::jsonpath::JsonPath;
use crate::vars::lua::Value;

const JSON: &str = "application/json";
const FORM: &str = "application/x-www-form-urlencoded";
const MULTIPART: &str = "multipart/form-data";

/// Why a body has no variables. The texts are those that APISIX logs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// The Content-Type is missing or none of the three known ones.
    #[error("unsupported content-type: {0}, supported types are: {JSON}, {FORM}, {MULTIPART}")]
    ContentType(String),
    /// There is no body.
    #[error("could not get body: request body is empty")]
    Empty,
    /// The body is not JSON although its type says so.
    #[error("could not parse JSON request body: {0}")]
    Json(String),
}

/// A parsed request body.
#[derive(Clone, Debug, PartialEq)]
pub struct PostBody {
    content: Json,
    /// `post_arg_name` looks at urlencoded forms only.
    is_form: bool,
}

/// What follows `post_arg.`, parsed.
#[derive(Clone, Debug, PartialEq)]
pub enum PostPath {
    /// Names from object to object. Array elements cannot be named this way, as in APISIX.
    Names(Box<[Box<str>]>),
    /// A path with `[`, `*` or `..`: a JSONPath query whose value is the list of all matches.
    Query(JsonPath),
    /// A path that does not parse; it has no value.
    Never,
}

impl PostPath {
    /// Parses what follows `post_arg.`. APISIX: core/ctx.lua.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        if text.contains(['[', '*']) || text.contains("..") {
            return JsonPath::parse(&format!("$.{text}")).map_or(Self::Never, Self::Query);
        }
        // The separator class of the source is `(.)`, parentheses included.
        Self::Names(text.split(['(', '.', ')']).filter(|n| !n.is_empty()).map(Into::into).collect())
    }
}

impl PostBody {
    /// Parses a body by its Content-Type. APISIX: core/request.lua `get_request_body_table`.
    ///
    /// # Errors
    /// [`BodyError`]; the variables of such a body have no value.
    pub fn parse(content_type: Option<&str>, body: &[u8]) -> Result<Self, BodyError> {
        let content_type = content_type.unwrap_or_default();
        let content = if content_type.contains(JSON) {
            parse_json(body)?
        } else if content_type.contains(FORM) {
            parse_form(body)
        } else if content_type.contains(MULTIPART) {
            if body.is_empty() {
                return Err(BodyError::Empty);
            }
            parse_multipart(content_type, body)
        } else {
            return Err(BodyError::ContentType(content_type.to_owned()));
        };
        Ok(Self { content, is_form: content_type.starts_with(FORM) })
    }

    /// The value of `post_arg_name`: the first field of that name in an urlencoded form.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<Value<'_>> {
        if !self.is_form {
            return None;
        }
        match self.content.get(name)? {
            Json::Array(values) => values.first().map(Value::from_json),
            value => Some(Value::from_json(value)),
        }
    }

    /// The value of `post_arg.path`.
    #[must_use]
    pub fn path(&self, path: &PostPath) -> Option<Value<'_>> {
        match path {
            PostPath::Never => None,
            PostPath::Names(names) => {
                let mut at = &self.content;
                for name in names {
                    at = at.get(&**name)?;
                }
                Some(Value::from_json(at))
            }
            PostPath::Query(query) => {
                let matches = query.query(&self.content);
                let values: Vec<_> = matches.into_iter().map(Value::from_json).collect();
                (!values.is_empty()).then_some(Value::List(values))
            }
        }
    }
}

fn parse_json(body: &[u8]) -> Result<Json, BodyError> {
    if body.is_empty() {
        return Err(BodyError::Empty);
    }
    serde_json::from_str(&lossless::from_bytes(body)).map_err(|e| BodyError::Json(e.to_string()))
}

fn parse_form(body: &[u8]) -> Json {
    let mut fields = Map::new();
    for (name, value) in args::pairs(body) {
        let value = value.map_or(Json::Bool(true), |v| Json::String(v.into_owned()));
        match fields.get_mut(&*name) {
            None => {
                fields.insert(name.into_owned(), value);
            }
            Some(Json::Array(values)) => values.push(value),
            Some(single) => *single = Json::Array(vec![single.take(), value]),
        }
    }
    Json::Object(fields)
}

/// Fields of a multipart form; of several with one name the last counts.
fn parse_multipart(content_type: &str, body: &[u8]) -> Json {
    let mut fields = Map::new();
    let Some(boundary) = boundary(content_type) else { return Json::Object(fields) };
    let delimiter = format!("--{boundary}");
    let mut part: Option<usize> = None;
    let mut line_start = 0;
    for line in body.split_inclusive(|b| *b == b'\n') {
        let line_end = line_start + line.len();
        if line.starts_with(delimiter.as_bytes()) {
            if let Some(start) = part {
                let bytes = &body[start..line_start];
                let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
                read_part(bytes.strip_suffix(b"\r").unwrap_or(bytes), &mut fields);
            }
            part = Some(line_end);
        }
        line_start = line_end;
    }
    if let Some(start) = part {
        read_part(&body[start..], &mut fields);
    }
    Json::Object(fields)
}

fn boundary(content_type: &str) -> Option<&str> {
    let (_, parameters) = content_type.split_once(';')?;
    let (_, rest) = parameters.split_once("boundary=")?;
    let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
    let boundary = &rest[..end];
    let bare = ['"', '\''].into_iter().find_map(|q| boundary.strip_prefix(q)?.strip_suffix(q));
    Some(bare.unwrap_or(boundary)).filter(|b| !b.is_empty())
}

/// Adds one part: header lines, a blank line, the value. A part without a name is no field.
fn read_part(part: &[u8], fields: &mut Map<String, Json>) {
    let mut name = None;
    let mut rest = part;
    while !rest.is_empty() {
        let end = rest.iter().position(|b| *b == b'\n').map_or(rest.len(), |at| at + 1);
        let line = lossless::from_bytes(&rest[..end]);
        let line = line.trim_end_matches(['\r', '\n']);
        rest = &rest[end..];
        if line.is_empty() {
            break;
        }
        name = name.or_else(|| disposition_name(line));
    }
    if let Some(name) = name {
        fields.insert(name, Json::String(lossless::from_bytes(rest).into_owned()));
    }
}

fn disposition_name(line: &str) -> Option<String> {
    const HEADER: &str = "content-disposition";
    if !line.get(..HEADER.len())?.eq_ignore_ascii_case(HEADER) {
        return None;
    }
    line.split(';').skip(1).find_map(|parameter| {
        let (key, value) = parameter.trim().split_once('=')?;
        key.eq_ignore_ascii_case("name").then(|| {
            let quoted: Cow<str> = value.trim().into();
            quoted.trim_matches('"').to_owned()
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(content_type: &str, body: &str, path: &str, expected: Option<Value<'_>>) {
        let body = PostBody::parse(Some(content_type), body.as_bytes()).unwrap();
        assert_eq!(body.path(&PostPath::parse(path)), expected, "{path}");
    }

    fn text(text: &str) -> Option<Value<'_>> {
        Some(Value::Text(text.into()))
    }

    const DOCUMENT: &str = r#"{"model": {"name": "m", "big": true, "none": null},
        "list": [{"t": "a"}, {"t": "b"}], "n": 1.5}"#;

    #[test]
    fn json_bodies() {
        check(JSON, DOCUMENT, "model.name", text("m"));
        check(JSON, DOCUMENT, "model.big", Some(Value::Bool(true)));
        check(JSON, DOCUMENT, "model.none", Some(Value::Null));
        check(JSON, DOCUMENT, "model", Some(Value::Table));
        check(JSON, DOCUMENT, "n", Some(Value::Number(1.5)));
        check(JSON, DOCUMENT, "model.name.x", None);
        check(JSON, DOCUMENT, "list.0", None);
        check(JSON, DOCUMENT, "list[*].t", Some(Value::List(vec![text("a").unwrap(), text("b").unwrap()])));
        check(JSON, DOCUMENT, "list[5].t", None);
        check(JSON, DOCUMENT, "list[.t", None);
        check("application/json; charset=utf-8", "{\"a\":\"b\"}", "a", text("b"));
    }

    #[test]
    fn forms() {
        check(FORM, "model=m&x&y=1&y=2&a%20b=c+d", "model", text("m"));
        check(FORM, "x", "x", Some(Value::Bool(true)));
        check(FORM, "y=1&y=2", "y", Some(Value::List(vec![text("1").unwrap(), text("2").unwrap()])));
        let body = PostBody::parse(Some(FORM), b"y=1&y=2&z").unwrap();
        assert_eq!(body.field("y"), text("1"));
        assert_eq!(body.field("z"), Some(Value::Bool(true)));
        assert_eq!(body.field("none"), None);
        assert_eq!(PostBody::parse(Some(JSON), b"{\"y\":1}").unwrap().field("y"), None);
    }

    #[test]
    fn multipart_forms() {
        let kind = "multipart/form-data; boundary=xy";
        let body = "--xy\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nopenai\r\n--xy\r\n\
            content-disposition: form-data; filename=\"f\"; NAME=file\r\nContent-Type: text/plain\r\n\r\n\
            two\r\nlines\r\n--xy--\r\n";
        check(kind, body, "model", text("openai"));
        check(kind, body, "file", text("two\r\nlines"));
        check(kind, body, "other", None);
        check(kind, &body.replace("\r\n", "\n"), "file", text("two\nlines"));
        check("multipart/form-data; boundary=\"xy\"", body, "model", text("openai"));
        check("multipart/form-data", body, "model", None);
        check(kind, "--xy\nContent-Disposition: form-data; name=\"a\"\n\nopen end", "a", text("open end"));
    }

    #[test]
    fn refusals() {
        assert_eq!(PostBody::parse(None, b"x"), Err(BodyError::ContentType(String::new())));
        assert_eq!(PostBody::parse(Some(JSON), b""), Err(BodyError::Empty));
        assert!(matches!(PostBody::parse(Some(JSON), b"{"), Err(BodyError::Json(_))));
    }

    proptest! {
        #[test]
        fn never_panics(
            kind in prop_oneof![Just(JSON), Just(FORM), Just("multipart/form-data; boundary=b")],
            body in proptest::collection::vec(any::<u8>(), 0..64),
            form in "(--b|name=|Content-Disposition:|;|\r\n|[a\"=]){0,16}",
        ) {
            let _ = PostBody::parse(Some(kind), &body);
            let _ = PostBody::parse(Some(kind), form.as_bytes());
        }
    }
}
