//! PCRE patterns: whatever compiles can be run on any bytes; what captures also matches; quoted text matches itself.

use portcullis::{
    builtin::shared::substitute,
    vars::pcre::{Case, Pcre, Replacement},
};

/// Runs the pattern of the first line on the bytes that follow, with itself as replacement.
pub fn run(data: &[u8]) {
    let Some(at) = data.iter().position(|byte| *byte == b'\n').filter(|at| *at < 64) else { return };
    let (Ok(pattern), subject) = (std::str::from_utf8(&data[..at]), &data[at + 1..]) else { return };
    let text = portcullis::net::lossless::from_bytes(subject);
    if let Ok(pcre) = Pcre::new(pattern, Case::Insensitive) {
        assert!(pcre.captures(&text).is_none() || pcre.is_match(&text));
        if let Ok(replacement) = Replacement::parse(pattern) {
            let _ = pcre.replace_first(&text, &replacement);
        }
    }
    if let (Ok(search), Ok(with)) =
        (substitute::Pattern::new(pattern, "i"), substitute::Replacement::new(pattern))
    {
        let replaced = search.replace(subject, &with, substitute::Scope::Global);
        assert!(replaced.is_none() || search.is_match(subject));
    }
    let _ = portcullis::schema::pattern::Pattern::new(pattern).map(|pattern| pattern.is_match(&text));
    let quoted = Pcre::new(&format!("^\\Q{}\\E", pattern.replace("\\E", "")), Case::Sensitive);
    assert!(quoted.is_err() || quoted.is_ok_and(|quoted| quoted.is_match(&pattern.replace("\\E", ""))));
}
