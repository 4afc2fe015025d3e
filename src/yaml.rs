//! YAML text to JSON values: the only file that names `serde_yaml`.
//!
//! Invariant: it never invents a value. A document that JSON cannot carry (a tag, an infinite number, a mapping
//! as a key) is an error, and so is a key written twice. Scalars are read by the YAML 1.2 core schema, so `1` stays
//! a number and `"1"` a string.
//!
//! Differs from APISIX: its reader takes the last of two equal keys and reads unquoted `yes`, `no`, `on` and `off`
//! as booleans; here a repeated key is an error and these words are strings (settings that want a boolean accept
//! them).

pub mod positions;

use serde_json::{Map, Value};
use serde_yaml::Value as Tree;

use crate::yaml::positions::Positions;

/// What is wrong with a YAML document, and on which line (counted from 1) where that is known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{what}", line.map(|n| format!("line {n}: ")).unwrap_or_default())]
pub struct YamlError {
    /// Line of the fault, counted from 1.
    pub line: Option<usize>,
    /// The fault, without the line.
    pub what: String,
}

/// Reads one YAML document. An empty document is `null`; `<<` merges are carried out.
///
/// # Errors
/// Syntax errors, repeated keys, and what JSON has no form for.
pub fn parse(text: &str) -> Result<Value, YamlError> {
    let mut tree: Tree = serde_yaml::from_str(text).map_err(|error| explain(text, &error))?;
    if text.contains("<<") {
        tree.apply_merge().map_err(|error| explain(text, &error))?;
    }
    to_json(tree).map_err(|what| YamlError { line: repeated_line(text, &what), what })
}

fn to_json(tree: Tree) -> Result<Value, String> {
    Ok(match tree {
        Tree::Null => Value::Null,
        Tree::Bool(bool) => Value::Bool(bool),
        Tree::String(text) => Value::String(text),
        Tree::Number(number) => number_to_json(&number)?,
        Tree::Sequence(items) => Value::Array(items.into_iter().map(to_json).collect::<Result<_, _>>()?),
        Tree::Mapping(pairs) => {
            let mut object = Map::new();
            for (key, value) in pairs {
                let key = key_text(key)?;
                if object.contains_key(&key) {
                    return Err(format!("{REPEATED} {key:?} twice"));
                }
                object.insert(key, to_json(value)?);
            }
            Value::Object(object)
        }
        Tree::Tagged(tagged) => return Err(format!("the tag {} is not understood", tagged.tag)),
    })
}

fn number_to_json(number: &serde_yaml::Number) -> Result<Value, String> {
    if let Some(whole) = number.as_i64() {
        return Ok(Value::from(whole));
    }
    if let Some(whole) = number.as_u64() {
        return Ok(Value::from(whole));
    }
    let real = number.as_f64().and_then(serde_json::Number::from_f64);
    real.map(Value::Number).ok_or_else(|| format!("{number} is not a finite number"))
}

fn key_text(key: Tree) -> Result<String, String> {
    match key {
        Tree::String(text) => Ok(text),
        Tree::Number(number) => Ok(number.to_string()),
        Tree::Bool(bool) => Ok(bool.to_string()),
        Tree::Null => Ok("null".to_owned()),
        Tree::Sequence(_) | Tree::Mapping(_) | Tree::Tagged(_) => {
            Err("a key must be a plain word, not a list or a mapping".to_owned())
        }
    }
}

const REPEATED: &str = "the key";

fn explain(text: &str, error: &serde_yaml::Error) -> YamlError {
    let bare = without_places(&error.to_string());
    if bare.contains("duplicate entry") {
        let repeat = Positions::scan(text).repeat().cloned();
        if let Some(repeat) = repeat {
            let what = format!("{} is already written on line {}", repeat.path, repeat.first);
            return YamlError { line: Some(repeat.line), what };
        }
    }
    YamlError { line: error.location().map(|at| at.line()), what: bare }
}

/// Leaves out every ` at line 2 column 3`: the line is told once, in front.
fn without_places(message: &str) -> String {
    let mut parts = message.split(" at line ");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let place = |c: char| c.is_ascii_digit();
        let rest = part.trim_start_matches(place);
        let rest = rest.strip_prefix(" column ").map_or(rest, |rest| rest.trim_start_matches(place));
        out.push_str(rest);
    }
    out
}

fn repeated_line(text: &str, what: &str) -> Option<usize> {
    if !what.starts_with(REPEATED) {
        return None;
    }
    Positions::scan(text).repeat().map(|repeat| repeat.line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn check(text: &str, expected: Value) {
        assert_eq!(parse(text).unwrap(), expected, "{text}");
    }

    #[track_caller]
    fn check_error(text: &str, expected: &str) {
        assert_eq!(parse(text).unwrap_err().to_string(), expected, "{text}");
    }

    #[test]
    fn values() {
        check("", Value::Null);
        check("# only a comment\n", Value::Null);
        check(
            "a: 1\nb: \"1\"\nc: 1.5\nd: true\ne: ~\n",
            json!({"a": 1, "b": "1", "c": 1.5, "d": true, "e": null}),
        );
        check("id: 18446744073709551615", json!({"id": u64::MAX}));
        check("nodes:\n  127.0.0.1:1980: 1\n  8080: 2\n", json!({"nodes": {"127.0.0.1:1980": 1, "8080": 2}}));
        check("a: [1, x]\nb: {c: d}\n", json!({"a": [1, "x"], "b": {"c": "d"}}));
        check("x: &x {a: 1}\ny:\n  <<: *x\n  b: 2\n", json!({"x": {"a": 1}, "y": {"a": 1, "b": 2}}));
        check("a: on\n", json!({"a": "on"}));
        check("---\na: |\n  x: y\n  z\n", json!({"a": "x: y\nz\n"}));
    }

    #[test]
    fn faults_have_a_line() {
        check_error("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n", "line 5: b.c is already written on line 3");
        check_error("8: 1\n\"8\": 2\n", "line 2: the key \"8\" twice");
        check_error("a: .inf\n", ".inf is not a finite number");
        check_error("a: !secret x\n", "the tag !secret is not understood");
        assert_eq!(parse("a: 1\nb: [1\nc: 2\n").unwrap_err().line, Some(3));
        assert_eq!(parse("a: 1\n\tb: 2\n").unwrap_err().line, Some(2));
    }

    #[test]
    fn expansion_is_bounded() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
        for n in 1..12 {
            let before = vec![format!("*a{}", n - 1); 9].join(", ");
            text.push_str(&format!("a{n}: &a{n} [{before}]\n"));
        }
        assert!(parse(&text).is_err());
        assert!(parse(&"[".repeat(100_000)).is_err());
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "[-a: \n\\[\\]{}\"'|>&*!#0-9,.]{0,80}") {
            let _ = parse(&text);
        }

        #[test]
        fn json_is_yaml(text in "[a-z0-9 :#'\"\\\\]{0,12}", number in proptest::prelude::any::<i64>()) {
            let value = json!({"a": [text, {"b": number}], "c": null});
            proptest::prop_assert_eq!(parse(&value.to_string()).unwrap(), value);
        }
    }
}
