//! Texts with variables in them: `a-$host-${arg_x ?? none}`.
//!
//! `$name`, where the name is letters, digits, `_` and `.`; `${ name }`; `${name ?? default}`. A variable
//! without a value is empty. A `\` before `$` keeps it from being a variable, and stays in the text, as in
//! APISIX. APISIX: core/utils.lua `resolve_var`.

use std::borrow::Cow;

use crate::vars::pcre::Captures;
use crate::vars::var::{Lookup, Var};

/// A compiled template.
#[derive(Clone, Debug, PartialEq)]
pub struct Template {
    source: Box<str>,
    parts: Box<[Part]>,
}

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Text(Box<str>),
    Var { var: Var, default: Option<Box<str>> },
    Capture(usize),
}

impl Template {
    /// Parses a template; every text is one.
    #[must_use]
    pub fn parse(source: &str) -> Self {
        Self::compile(source, |_| None)
    }

    /// Parses a template in which `$1` and `${1}` are groups of a regular expression, as header values of
    /// proxy-rewrite are. APISIX: core/utils.lua `resolve_var_with_captures`.
    ///
    /// Differs from APISIX: the text of a group is never searched for variables itself, so a client cannot
    /// smuggle `$…` in.
    #[must_use]
    pub fn parse_with_captures(source: &str) -> Self {
        Self::compile(source, capture)
    }

    /// The text as it was written.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the text is the same for every request.
    #[must_use]
    pub fn is_constant(&self) -> bool {
        self.parts.iter().all(|part| matches!(part, Part::Text(_)))
    }

    /// The variables it asks for.
    pub fn vars(&self) -> impl Iterator<Item = &Var> {
        self.parts.iter().filter_map(|part| match part {
            Part::Var { var, .. } => Some(var),
            _ => None,
        })
    }

    /// The text for one request. Allocates only when there is more than one part.
    #[must_use]
    pub fn render<'a>(&'a self, lookup: &'a dyn Lookup) -> Cow<'a, str> {
        match &*self.parts {
            [] | [Part::Text(_)] => Cow::Borrowed(&self.source),
            [Part::Var { var, default }] => {
                lookup.get(var).unwrap_or(Cow::Borrowed(default.as_deref().unwrap_or_default()))
            }
            _ => {
                let mut out = String::with_capacity(self.source.len() + 32);
                self.render_into(&mut out, lookup);
                Cow::Owned(out)
            }
        }
    }

    /// Appends the text for one request. Returns how many variables had a value or a default; plugins fall
    /// back to another key when that is 0.
    pub fn render_into(&self, out: &mut String, lookup: &dyn Lookup) -> usize {
        self.write(out, lookup, &Captures::default(), |text| Cow::Borrowed(text))
    }

    /// [`Self::render`] with groups of a match for `$1`…
    #[must_use]
    pub fn render_with_captures(&self, lookup: &dyn Lookup, captures: &Captures) -> String {
        let mut out = String::with_capacity(self.source.len() + 32);
        self.write(&mut out, lookup, captures, |text| Cow::Borrowed(text));
        out
    }

    /// [`Self::render`] with every value (not the text around it) passed through `escape`.
    #[must_use]
    pub fn render_escaped(&self, lookup: &dyn Lookup, escape: fn(&str) -> Cow<'_, str>) -> String {
        let mut out = String::with_capacity(self.source.len() + 32);
        self.write(&mut out, lookup, &Captures::default(), escape);
        out
    }

    fn write(
        &self,
        out: &mut String,
        lookup: &dyn Lookup,
        captures: &Captures,
        escape: fn(&str) -> Cow<'_, str>,
    ) -> usize {
        let mut resolved = 0;
        for part in &self.parts {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Capture(group) => out.push_str(captures.get(*group).unwrap_or_default()),
                Part::Var { var, default } => {
                    if let Some(value) = lookup.get(var) {
                        out.push_str(&escape(&value));
                        resolved += 1;
                    } else if let Some(default) = default {
                        out.push_str(&escape(default));
                        resolved += 1;
                    }
                }
            }
        }
        resolved
    }

    fn compile(source: &str, special: fn(&str) -> Option<(Part, usize)>) -> Self {
        let mut parts = Vec::new();
        let mut text_start = 0;
        let mut at = 0;
        while let Some(found) = source[at..].find('$') {
            let dollar = at + found;
            at = dollar + 1;
            if source[..dollar].ends_with('\\') {
                continue;
            }
            let Some((part, length)) = special(&source[at..]).or_else(|| variable(&source[at..])) else {
                continue;
            };
            if text_start < dollar {
                parts.push(Part::Text(source[text_start..dollar].into()));
            }
            parts.push(part);
            at += length;
            text_start = at;
        }
        if text_start < source.len() {
            parts.push(Part::Text(source[text_start..].into()));
        }
        Self { source: source.into(), parts: parts.into() }
    }
}

/// Reads the variable that follows a `$`, and says how long it is.
fn variable(text: &str) -> Option<(Part, usize)> {
    if let Some(braced) = text.strip_prefix('{')
        && let Some(end) = braced.find('}')
        && end > 0
    {
        return Some((braced_variable(&braced[..end]), end + 2));
    }
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
    let end = text.find(|c| !is_name(c)).unwrap_or(text.len());
    (end > 0).then(|| (Part::Var { var: Var::parse(&text[..end]), default: None }, end))
}

fn braced_variable(inner: &str) -> Part {
    let blank = |c: char| matches!(c, ' ' | '\t'..='\r');
    let mut segments = inner.trim_matches(blank).split("??").map(|s| s.trim_matches(blank));
    let var = Var::parse(segments.next().unwrap_or_default());
    Part::Var { var, default: segments.next().map(Into::into) }
}

/// Reads the group reference that follows a `$`: digits, maybe in braces, neither of which must pair up.
fn capture(text: &str) -> Option<(Part, usize)> {
    let digits = text.strip_prefix('{').unwrap_or(text);
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    let group = digits[..end].parse().ok()?;
    let closed = usize::from(digits[end..].starts_with('}'));
    Some((Part::Capture(group), text.len() - digits.len() + end + closed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vars::pcre::{Case, Pcre};
    use proptest::prelude::*;

    struct People;

    impl Lookup for People {
        fn get(&self, var: &Var) -> Option<Cow<'_, str>> {
            match &*var.name() {
                "you" => Some("John".into()),
                "me" => Some("David".into()),
                "host" => Some("a?b$c".into()),
                "a.b" => Some("dotted".into()),
                "empty" => Some("".into()),
                _ => None,
            }
        }
    }

    #[track_caller]
    fn check(source: &str, expected: &str, resolved: usize) {
        let template = Template::parse(source);
        assert_eq!(template.render(&People), expected, "{source}");
        let mut out = "> ".to_owned();
        assert_eq!(template.render_into(&mut out, &People), resolved, "{source}");
        assert_eq!(out, format!("> {expected}"), "{source}");
    }

    #[test]
    fn apisix_table() {
        check("", "", 0);
        check("xx", "xx", 0);
        check("$me", "David", 1);
        check("talk with $me", "talk with David", 1);
        check("$you and $me", "John and David", 2);
        check("$eva and $me", " and David", 1);
        check("$you and \\$me", "John and \\$me", 1);
        check("${you}_${me}", "John_David", 2);
        check("${you}$me", "JohnDavid", 2);
        check("${you??}$me", "JohnDavid", 2);
        check("${you??Rose}$me", "JohnDavid", 2);
        check("${she??Rose}$me", "RoseDavid", 2);
        check("${ she ?? Rose }$me", "RoseDavid", 2);
        check("${she   ??     Rose}$me", "RoseDavid", 2);
        check("${you ?? Rose}$he??Jack", "John??Jack", 1);
    }

    #[test]
    fn edges() {
        check("$", "$", 0);
        check("a$", "a$", 0);
        check("$$me", "$David", 1);
        check("${}", "${}", 0);
        check("${me", "${me", 0);
        check("${ }x", "x", 0);
        check("$-$me", "$-David", 1);
        check("$a.b-", "dotted-", 1);
        check("$me.x", "", 0);
        check("[$empty]", "[]", 1);
        check("ü$me/ü", "üDavid/ü", 1);
        check("$müe", "üe", 0);
    }

    #[test]
    fn allocates_only_when_it_must() {
        for source in ["plain", "\\$me", "$me", "${x ?? plain}"] {
            assert!(matches!(Template::parse(source).render(&People), Cow::Borrowed(_)), "{source}");
        }
        assert!(Template::parse("pl\\$ain").is_constant());
        assert!(!Template::parse("$me").is_constant());
    }

    #[test]
    fn captures() {
        let pcre = Pcre::new("^/(.*?)/(x)?(.*)$", Case::Sensitive).unwrap();
        let groups = pcre.captures("/a/$me").unwrap();
        for (source, expected) in [
            ("$1-$3-$me", "a-$me-David"),
            ("${1}b$2", "ab"),
            ("$0", "/a/$me"),
            ("$1.5", "a.5"),
            ("$9$me", "David"),
            ("\\$1", "\\$1"),
            ("${1x", "ax"),
        ] {
            let template = Template::parse_with_captures(source);
            assert_eq!(template.render_with_captures(&People, &groups), expected, "{source}");
        }
        assert_eq!(Template::parse("$1").render(&People), "");
    }

    #[test]
    fn escapes_values_only() {
        let escape = |text: &str| Cow::Owned(text.replacen('?', "%3F", 1));
        assert_eq!(Template::parse("/$host?x=$host").render_escaped(&People, escape), "/a%3Fb$c?x=a%3Fb$c");
    }

    proptest! {
        #[test]
        fn text_without_variables_is_itself(source in "[^$]{0,24}") {
            let template = Template::parse(&source);
            prop_assert!(template.is_constant());
            prop_assert_eq!(template.render(&People), source);
        }

        #[test]
        fn never_panics(source in "(\\PC|[${}?\\\\ 1me.]){0,24}") {
            let template = Template::parse_with_captures(&source);
            let _ = template.render_with_captures(&People, &Captures::default());
            let plain = Template::parse(&source);
            let mut out = String::new();
            plain.render_into(&mut out, &People);
            prop_assert_eq!(plain.render(&People), out);
        }
    }
}
