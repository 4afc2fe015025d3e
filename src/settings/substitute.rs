//! `${{NAME}}` and `${{NAME:=default}}` in settings and in resource files.
//!
//! Source: apisix/cli/file.lua `var_sub`. config.yaml is read first and its strings are replaced afterwards (a
//! replaced string that looks like a number or a boolean becomes one); apisix.yaml is replaced as text.
//! Invariant: a variable that is not set is a fault, never an empty text.

use serde_json::{Map, Number, Value};

/// Where variables come from; tests pass a table.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The variables of this process. A value that is not UTF-8 counts as not set.
pub fn process_environment(name: &str) -> Option<String> {
    // The name comes from a file and may hold what the system call refuses.
    if name.is_empty() || name.contains(['=', '\0']) {
        return None;
    }
    std::env::var(name).ok()
}

/// A variable that is not set and has no default, and the path of the value that asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Path of the value, such as `deployment.etcd.host[0]`.
    pub path: String,
    /// Name of the variable.
    pub name: String,
}

/// Replaces every reference in a text.
///
/// # Errors
/// APISIX's message when a variable is not set and has no default; it names all such variables.
pub fn in_text(text: &str, environment: Environment<'_>) -> Result<String, String> {
    let replaced = replace(text, environment);
    if replaced.missing.is_empty() {
        return Ok(replaced.text);
    }
    let names = replaced.missing.join(", ");
    Err(format!("failed to handle configuration: can't find environment variable {names}"))
}

/// [`in_text`] with the variables of this process, as the file store takes it.
///
/// # Errors
/// As [`in_text`].
pub fn in_text_of_process(text: &str) -> Result<String, String> {
    in_text(text, &process_environment)
}

/// Replaces every reference in the strings and keys of a value, and returns the variables that are not set.
pub fn in_value(value: &mut Value, environment: Environment<'_>) -> Vec<Missing> {
    let mut missing = Vec::new();
    walk(value, "", environment, &mut missing);
    missing
}

fn walk(value: &mut Value, path: &str, environment: Environment<'_>, missing: &mut Vec<Missing>) {
    match value {
        Value::String(text) => {
            let replaced = replace(text, environment);
            note(&replaced, path, missing);
            if !replaced.missing.is_empty() {
                // The default stands in, so that one missing variable is one fault.
                *value = Value::Null;
            } else if replaced.used {
                *value = infer(replaced.text);
            } else {
                *text = replaced.text;
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                walk(item, &format!("{path}[{index}]"), environment, missing);
            }
        }
        Value::Object(map) => {
            let mut renamed = Map::new();
            for (key, mut item) in std::mem::take(map) {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                walk(&mut item, &path, environment, missing);
                let replaced = replace(&key, environment);
                note(&replaced, &path, missing);
                renamed.insert(replaced.text, item);
            }
            *map = renamed;
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn note(replaced: &Replaced, path: &str, missing: &mut Vec<Missing>) {
    for name in &replaced.missing {
        missing.push(Missing { path: path.to_owned(), name: name.clone() });
    }
}

struct Replaced {
    text: String,
    /// True when at least one variable or default was put in.
    used: bool,
    missing: Vec<String>,
}

fn replace(text: &str, environment: Environment<'_>) -> Replaced {
    let mut out = Replaced { text: String::with_capacity(text.len()), used: false, missing: Vec::new() };
    let mut rest = text;
    while let Some(start) = rest.find("${{") {
        let (before, reference) = rest.split_at(start);
        out.text.push_str(before);
        let Some((inner, after)) = split_reference(reference) else {
            // The dollar alone is passed over: `$${{NAME}}` still holds a reference.
            out.text.push('$');
            rest = &reference[1..];
            continue;
        };
        rest = after;
        let (name, default) = match inner.split_once(":=") {
            Some((name, default)) => (name, Some(default.trim_matches(is_space))),
            None => (inner, None),
        };
        match environment(name).or_else(|| default.map(str::to_owned)) {
            Some(value) => {
                out.used = true;
                out.text.push_str(&value);
            }
            None => out.missing.push(name.to_owned()),
        }
    }
    out.text.push_str(rest);
    out
}

/// The inside of a reference that starts this text, and what follows it.
fn split_reference(text: &str) -> Option<(&str, &str)> {
    let body = text.strip_prefix("${{")?.trim_start_matches(is_space);
    let word = body.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(body.len());
    if word == 0 {
        return None;
    }
    let end = word + body[word..].find("}}")?;
    Some((body[..end].trim_end_matches(is_space), &body[end + 2..]))
}

/// Lua's `%s` in the C locale.
fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c')
}

fn infer(text: String) -> Value {
    match text.as_str() {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        _ => number(text.trim_matches(is_space)).map_or(Value::String(text), Value::Number),
    }
}

/// What Lua's `tonumber` reads, but for `inf` and `nan`, which JSON cannot carry.
fn number(text: &str) -> Option<Number> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    if let Some(hexadecimal) = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        let plain = hexadecimal.bytes().all(|byte| byte.is_ascii_hexdigit());
        return plain
            .then(|| i64::from_str_radix(hexadecimal, 16).ok())
            .flatten()
            .map(|n| Number::from(sign * n));
    }
    if !digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    if let Ok(whole) = text.parse::<i64>() {
        return Some(Number::from(whole));
    }
    let real: f64 = text.parse().ok()?;
    Number::from_f64(real)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn environment(name: &str) -> Option<String> {
        let value = match name {
            "HOST" => "etcd",
            "PORT" => "2379",
            "EMPTY" => "",
            "YES" => "true",
            "HEX" => "0x10",
            "HALF" => " 0.5 ",
            "KEY" => "nodes",
            "NESTED" => "${{HOST}}",
            "INF" => "inf",
            _ => return None,
        };
        Some(value.to_owned())
    }

    #[track_caller]
    fn check(text: &str, expected: &str) {
        assert_eq!(in_text(text, &environment).as_deref(), Ok(expected), "{text}");
    }

    #[track_caller]
    fn check_value(text: &str, expected: Value) {
        let mut value = json!(text);
        assert_eq!(in_value(&mut value, &environment), [], "{text}");
        assert_eq!(value, expected, "{text}");
    }

    #[test]
    fn references() {
        check("http://${{HOST}}:${{PORT}}", "http://etcd:2379");
        check("${{ HOST }}", "etcd");
        check("${{HOST:=x}}", "etcd");
        check("${{NONE:= a b }}", "a b");
        check("${{NONE:=}}.", ".");
        check("${{EMPTY:=x}}.", ".");
        check("${{NONE:=a:=b}}", "a:=b");
        check("${{NONE :=x}}", "x");
        check("${{HOST :=x}}", "x");
        check("$${{HOST}}", "$etcd");
        check("${{NESTED}}", "${{HOST}}");
        check("${{NONE:=a}}}", "a}");
        check("${{-HOST}} ${{}} ${HOST} $HOST ${{HOST", "${{-HOST}} ${{}} ${HOST} $HOST ${{HOST");
        check("${{NONE:=\n}}é", "é");
    }

    #[test]
    fn missing_variables_are_all_named() {
        let text = in_text("${{A}} ${{B=}}", &environment);
        let expected = "failed to handle configuration: can't find environment variable A, B=";
        assert_eq!(text, Err(expected.to_owned()));
        let mut value = json!({"a": [{"b": "${{A}}"}], "${{B}}": 1});
        let missing = in_value(&mut value, &environment);
        let found: Vec<_> = missing.iter().map(|m| (m.path.as_str(), m.name.as_str())).collect();
        assert_eq!(found, [("a[0].b", "A"), ("${{B}}", "B")]);
    }

    #[test]
    fn replaced_values_take_their_type() {
        check_value("${{PORT}}", json!(2379));
        check_value("${{YES}}", json!(true));
        check_value("${{HEX}}", json!(16));
        check_value("${{HALF}}", json!(0.5));
        check_value("${{INF}}", json!("inf"));
        check_value("${{NONE:=-7}}", json!(-7));
        check_value("${{NONE:=1e3}}", json!(1000.0));
        check_value("${{HOST}}", json!("etcd"));
        check_value("2379", json!("2379"));
        let mut value = json!({"${{KEY}}": ["${{PORT}}"]});
        assert_eq!(in_value(&mut value, &environment), []);
        assert_eq!(value, json!({"nodes": [2379]}));
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "[${}A:= \né-]{0,40}") {
            let _ = in_text(&text, &environment);
            let mut value = json!({text.clone(): text});
            let _ = in_value(&mut value, &environment);
        }

        #[test]
        fn text_without_references_stays(text in "[^$]{0,40}") {
            proptest::prop_assert_eq!(in_text(&text, &environment), Ok(text));
        }

        #[test]
        fn the_text_around_stays(before in "[a-z{}]{0,9}", after in "[a-z{}]{0,9}", value in "[a-z]{0,5}") {
            let text = format!("{before}${{{{NONE:={value}}}}}{after}");
            proptest::prop_assert_eq!(in_text(&text, &environment), Ok(format!("{before}{value}{after}")));
        }
    }
}
