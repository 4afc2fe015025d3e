//! What is wrong with a file the user wrote: where, what, what would be right, and the nearest known name.
//!
//! Invariant: a fault never holds the value of a secret.

use std::fmt;

/// How bad a fault is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The gateway runs, but not as the text may suggest.
    Warning,
    /// The gateway does not start with this.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// One fault. Its `Display` is `FILE:LINE: PATH: expected RIGHT, WHAT; did you mean NEAREST?`, each part only where
/// it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// How bad it is.
    pub severity: Severity,
    /// The file, as the user named it.
    pub file: String,
    /// The line, counted from 1.
    pub line: Option<usize>,
    /// Path inside the file, such as `apisix.node_listen[0].port`; empty for the whole file.
    pub path: String,
    /// What stands there: `got "abc"`, `unknown key`.
    pub what: String,
    /// What would be right; empty where `what` says it all.
    pub right: String,
    /// The known name or value that looks most like the one written.
    pub nearest: Option<String>,
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(out, ":{line}")?;
        }
        if !self.path.is_empty() {
            write!(out, ": {}", self.path)?;
        }
        if self.right.is_empty() {
            write!(out, ": {}", self.what)?;
        } else {
            write!(out, ": expected {}, {}", self.right, self.what)?;
        }
        match &self.nearest {
            Some(nearest) => write!(out, "; did you mean {nearest}?"),
            None => Ok(()),
        }
    }
}

/// The candidate most like a written name, if one is like it at all: a third of its letters may be wrong, and two
/// in any case, but never all.
pub fn nearest<'a>(written: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let written = written.to_lowercase();
    let length = written.chars().count();
    let allowed = (length / 3).max(2).min(length.saturating_sub(1));
    let mut best: Option<(usize, &str)> = None;
    for candidate in candidates {
        let distance = distance(&written, &candidate.to_lowercase());
        if distance <= allowed && best.is_none_or(|(least, _)| distance < least) {
            best = Some((distance, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

/// Optimal string alignment: insertions, deletions, changes and swaps of neighbours.
fn distance(one: &str, other: &str) -> usize {
    let (one, other): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
    let mut rows = vec![(0..=other.len()).collect::<Vec<_>>()];
    for i in 1..=one.len() {
        let mut row = vec![i];
        for j in 1..=other.len() {
            let changed = usize::from(one[i - 1] != other[j - 1]);
            let mut least = (rows[i - 1][j] + 1).min(row[j - 1] + 1).min(rows[i - 1][j - 1] + changed);
            if i > 1 && j > 1 && one[i - 1] == other[j - 2] && one[i - 2] == other[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[one.len()][other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(written: &str, expected: Option<&str>) {
        let known = ["node_listen", "enable_admin", "enable_control", "ssl", "status"];
        assert_eq!(nearest(written, known), expected, "{written}");
    }

    #[test]
    fn nearest_names() {
        check("node_listne", Some("node_listen"));
        check("nodeListen", Some("node_listen"));
        check("Enable_Admin", Some("enable_admin"));
        check("enable_contol", Some("enable_control"));
        check("sll", Some("ssl"));
        check("tls", Some("ssl"));
        check("x", None);
        check("", None);
        check("plugins", None);
    }

    #[test]
    fn display() {
        let mut fault = Fault {
            severity: Severity::Error,
            file: "conf/config.yaml".to_owned(),
            line: Some(12),
            path: "apisix.node_listen".to_owned(),
            what: "got \"abc\"".to_owned(),
            right: "a port".to_owned(),
            nearest: None,
        };
        assert_eq!(
            fault.to_string(),
            "conf/config.yaml:12: apisix.node_listen: expected a port, got \"abc\""
        );
        fault.nearest = Some("ssl".to_owned());
        fault.right.clear();
        "unknown key".clone_into(&mut fault.what);
        fault.line = None;
        assert_eq!(fault.to_string(), "conf/config.yaml: apisix.node_listen: unknown key; did you mean ssl?");
    }

    proptest::proptest! {
        #[test]
        fn distance_is_symmetric_and_bounded(a in "[ab]{0,6}", b in "[ab]{0,6}") {
            let d = distance(&a, &b);
            proptest::prop_assert_eq!(d, distance(&b, &a));
            proptest::prop_assert!(d <= a.len().max(b.len()));
            proptest::prop_assert_eq!(d == 0, a == b);
        }
    }
}
