//! Prints faults to standard error: one line each, coloured on a terminal only.

use std::io::{IsTerminal, Write};

use crate::settings::fault::{Fault, Severity};

/// Whether lines are coloured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Colour {
    Never,
    Always,
}

/// Prints every fault.
pub fn faults(faults: &[Fault]) {
    let mut out = std::io::stderr().lock();
    let colour = colour(out.is_terminal(), |name| std::env::var(name).ok());
    for fault in faults {
        // Nobody is left to tell when standard error is closed.
        let _ = writeln!(out, "{}", line(fault, colour));
    }
}

/// https://no-color.org: set and not empty means none.
fn colour(terminal: bool, variable: impl Fn(&str) -> Option<String>) -> Colour {
    let refused = variable("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = variable("TERM").is_some_and(|value| value == "dumb");
    if terminal && !refused && !dumb { Colour::Always } else { Colour::Never }
}

fn line(fault: &Fault, colour: Colour) -> String {
    let severity = fault.severity;
    match (colour, severity) {
        (Colour::Never, _) => format!("{severity} {fault}"),
        (Colour::Always, Severity::Error) => format!("\x1b[1;31m{severity}\x1b[0m {fault}"),
        (Colour::Always, Severity::Warning) => format!("\x1b[1;33m{severity}\x1b[0m {fault}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(terminal: bool, variables: &[(&str, &str)], expected: Colour) {
        let variable = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        assert_eq!(colour(terminal, variable), expected, "{terminal} {variables:?}");
    }

    #[test]
    fn colours() {
        check(true, &[], Colour::Always);
        check(false, &[], Colour::Never);
        check(true, &[("NO_COLOR", "1")], Colour::Never);
        check(true, &[("NO_COLOR", "")], Colour::Always);
        check(true, &[("TERM", "dumb")], Colour::Never);
    }

    #[test]
    fn lines() {
        let fault = Fault {
            severity: Severity::Error,
            file: "a.yaml".to_owned(),
            line: Some(2),
            path: "x".to_owned(),
            what: "unknown key".to_owned(),
            right: String::new(),
            nearest: None,
        };
        assert_eq!(line(&fault, Colour::Never), "error a.yaml:2: x: unknown key");
        assert_eq!(line(&fault, Colour::Always), "\x1b[1;31merror\x1b[0m a.yaml:2: x: unknown key");
    }
}
