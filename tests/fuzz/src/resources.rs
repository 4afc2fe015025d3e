//! apisix.yaml: every text is read or refused with a line of it, every resource is judged, and what passes compiles.

use portcullis::{
    compat::Compat,
    resource::{self, Kind, Route, Upstream},
    store::standalone::apply,
    yaml,
};

/// Reads a text as apisix.yaml and judges all its resources.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // What YAML takes for the end of a line.
    let count = text.split(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']).count();
    let document = match yaml::parse(text) {
        Ok(document) => document,
        Err(error) => {
            return assert!(error.line.is_none_or(|line| (1..=count + 1).contains(&line)), "{error}");
        }
    };
    for kind in Kind::ALL {
        let Some(items) = document.get(kind.dir()).and_then(|items| items.as_array()) else { continue };
        for item in items {
            let verdict = resource::check(kind, item, Compat::Now);
            assert_eq!(resource::check(kind, item, Compat::Now), verdict);
            // What is good today was good before.
            assert!(verdict.is_err() || resource::check(kind, item, Compat::V3_2).is_ok());
            let _ = (resource::parse::<Route>(item), resource::parse::<Upstream>(item));
        }
    }
    let _ = apply(&document, "1", 1, None, |_, _| Ok(()));
}
