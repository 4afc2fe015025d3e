//! Writes the documented `conf/config.yaml` from the table of keys, so that it cannot fall behind the code.
//!
//! Invariant: the text read back has no fault and gives the defaults.

use serde_json::Value;

use crate::settings::keys::{SETTINGS, Setting, Shown};

const HEAD: &str = "\
# Portcullis reads this file once, at start. `portcullis test` checks it and names every fault.
# Every line shows its default: leave out what you do not change. Keys are those of Apache APISIX 3; a
# config.yaml of APISIX is read as it is. Times are 60s or 10ms, sizes 8k or 1m.
# ${{NAME}} is the environment variable NAME, ${{NAME:=value}} has a default.
# Relative paths count from the directory above conf/ (from this file's directory when it is not in conf/).
";

/// Column in which the meaning of a short line starts.
const MEANING: usize = 40;

/// The text of `conf/config.yaml`.
pub fn document() -> String {
    let mut root = Vec::new();
    for setting in SETTINGS.iter().filter(|setting| setting.shown != Shown::No) {
        put(&mut root, setting.path, setting);
    }
    let mut out = String::from(HEAD);
    for entry in &root {
        out.push('\n');
        write(entry, 0, &mut out);
    }
    out
}

enum Entry {
    Section(&'static str, Vec<Entry>),
    Line(&'static str, &'static Setting),
}

fn put(into: &mut Vec<Entry>, path: &'static str, setting: &'static Setting) {
    let Some((name, rest)) = path.split_once('.') else {
        into.push(Entry::Line(path, setting));
        return;
    };
    for entry in into.iter_mut() {
        if let Entry::Section(known, entries) = entry
            && *known == name
        {
            return put(entries, rest, setting);
        }
    }
    let mut entries = Vec::new();
    put(&mut entries, rest, setting);
    into.push(Entry::Section(name, entries));
}

/// A section without a line that is not a comment must be a comment itself, or it would be empty.
fn is_comment(entry: &Entry) -> bool {
    match entry {
        Entry::Section(_, entries) => entries.iter().all(is_comment),
        Entry::Line(_, setting) => setting.shown != Shown::Default,
    }
}

fn write(entry: &Entry, depth: usize, out: &mut String) {
    let indent = "  ".repeat(depth);
    let mark = if is_comment(entry) { "# " } else { "" };
    match entry {
        Entry::Section(name, entries) => {
            out.push_str(&format!("{indent}{mark}{name}:\n"));
            if !mark.is_empty() {
                write_commented(entries, &indent, out);
                return;
            }
            for entry in entries {
                write(entry, depth + 1, out);
            }
        }
        Entry::Line(name, setting) => write_line(&format!("{indent}{mark}{name}"), setting, out),
    }
}

/// The lines of a section that is a comment as a whole; sections inside are not needed.
fn write_commented(entries: &[Entry], indent: &str, out: &mut String) {
    for entry in entries {
        if let Entry::Line(name, setting) = entry {
            write_line(&format!("{indent}#   {name}"), setting, out);
        }
    }
}

fn write_line(key: &str, setting: &Setting, out: &mut String) {
    let value = match setting.shown {
        Shown::Example(example) => example.to_owned(),
        Shown::Default | Shown::No => plain(setting.default),
    };
    let line = format!("{key}: {value}");
    if setting.meaning.is_empty() {
        out.push_str(&format!("{line}\n"));
    } else if line.len() < MEANING {
        out.push_str(&format!("{line:MEANING$}# {}\n", setting.meaning));
    } else {
        let indent = &key[..key.len() - key.trim_start().len()];
        out.push_str(&format!("{indent}# {}\n{line}\n", setting.meaning));
    }
}

/// JSON as people write it in YAML: no quotes where none are needed.
fn plain(json: &str) -> String {
    let value: Value = serde_json::from_str(json).expect("a test reads every default of the table");
    flow(&value)
}

fn flow(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("[{}]", items.iter().map(flow).collect::<Vec<_>>().join(", ")),
        Value::Object(map) => {
            let pairs: Vec<_> = map.iter().map(|(key, value)| format!("{key}: {}", flow(value))).collect();
            format!("{{{}}}", pairs.join(", "))
        }
        Value::String(text) if is_word(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A text YAML reads as a text without quotes.
fn is_word(text: &str) -> bool {
    let number = text.parse::<f64>().is_ok() || text.starts_with("0x") || text.starts_with("0o");
    let start = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    start
        && !number
        && !matches!(text, "true" | "false" | "null" | "on" | "off" | "yes" | "no")
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'/' | b'.'))
}
