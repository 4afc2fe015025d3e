//! Prometheus' text format. Invariant: nothing here knows a metric.

use std::fmt::{Display, Write};

/// Begins a metric.
pub fn family(out: &mut String, name: &str, help: &str, kind: &str) {
    // Writing to a String cannot fail, here and below.
    let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
}

/// A metric with what `samples` writes of it; nothing at all when it writes nothing, as APISIX does.
pub fn family_of(out: &mut String, name: &str, help: &str, kind: &str, samples: impl FnOnce(&mut String)) {
    let before = out.len();
    family(out, name, help, kind);
    let begun = out.len();
    samples(out);
    if out.len() == begun {
        out.truncate(before);
    }
}

/// One value of a metric.
pub fn sample(out: &mut String, name: &str, labels: &[(&str, &str)], value: impl Display) {
    out.push_str(name);
    for (at, (label, text)) in labels.iter().enumerate() {
        out.push(if at == 0 { '{' } else { ',' });
        out.push_str(label);
        out.push_str("=\"");
        escape(out, text);
        out.push('"');
    }
    let end = if labels.is_empty() { "" } else { "}" };
    let _ = writeln!(out, "{end} {value}");
}

fn escape(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_and_escapes() {
        let mut out = String::new();
        family(&mut out, "a", "What it is", "gauge");
        sample(&mut out, "a", &[], 1);
        sample(&mut out, "a", &[("x", "say \"a\\b\"\n"), ("y", "")], 2.5);
        let expected =
            "# HELP a What it is\n# TYPE a gauge\na 1\na{x=\"say \\\"a\\\\b\\\"\\n\",y=\"\"} 2.5\n";
        assert_eq!(out, expected);
        family_of(&mut out, "none", "Nothing", "gauge", |_| {});
        assert_eq!(out, expected);
        family_of(&mut out, "b", "One", "gauge", |out| sample(out, "b", &[], 1));
        assert_eq!(out, format!("{expected}# HELP b One\n# TYPE b gauge\nb 1\n"));
    }
}
