//! PCRE patterns as configuration writes them, run as safely as possible.
//!
//! APISIX matches bytes with PCRE2 (`ngx.re`, no UTF mode). A pattern is first tried on the `regex` crate, in
//! byte mode and with PCRE's spelling translated: linear time, so no request can make it slow. Only patterns
//! with look-around, back-references or possessive quantifiers go to the backtracking `fancy_regex`, whose
//! steps are limited; past the limit there is no match, as with PCRE's own limit.
//! Invariant: patterns are compiled with configuration, never per request.

use std::borrow::Cow;
use std::ops::Range;

use crate::net::lossless;

/// Whether letters match either case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    /// Letters match themselves.
    Sensitive,
    /// ASCII letters match both cases (`i`).
    Insensitive,
}

/// A compiled pattern.
#[derive(Clone, Debug)]
pub struct Pcre {
    engine: Engine,
    /// The pattern has a `$`, which in PCRE also matches before a newline that ends the subject.
    has_dollar: bool,
}

#[derive(Clone, Debug)]
enum Engine {
    Linear(regex::bytes::Regex),
    Backtracking(Box<fancy_regex::Regex>),
}

/// What a match found. Group 0 is the whole match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Captures {
    groups: Vec<Option<String>>,
    span: Range<usize>,
}

/// The template of `ngx.re.sub`: `$1`, `${1}`, `$$`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replacement {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Group(usize),
}

impl Pcre {
    /// Compiles a pattern.
    ///
    /// # Errors
    /// What is wrong with it, in the words of the engine (not PCRE's).
    pub fn new(pattern: &str, case: Case) -> Result<Self, String> {
        let translated = translate(pattern);
        let insensitive = case == Case::Insensitive;
        let has_dollar = translated.has_dollar;
        if !translated.possessive {
            for unicode in [false, true] {
                let built = regex::bytes::RegexBuilder::new(&translated.pattern)
                    .unicode(unicode)
                    .case_insensitive(insensitive)
                    .build();
                if let Ok(regex) = built {
                    return Ok(Self { engine: Engine::Linear(regex), has_dollar });
                }
            }
        }
        // The original spelling would mean other things there: `\h` is a hex digit.
        let built = fancy_regex::RegexBuilder::new(&translated.pattern).case_insensitive(insensitive).build();
        let engine = Engine::Backtracking(Box::new(built.map_err(|e| e.to_string())?));
        Ok(Self { engine, has_dollar })
    }

    /// Whether the pattern occurs in the text.
    #[must_use]
    pub fn is_match(&self, text: &str) -> bool {
        if self.matches(text) {
            return true;
        }
        self.before_last_newline(text).is_some_and(|text| self.matches(text))
    }

    /// The first occurrence and its groups.
    #[must_use]
    pub fn captures(&self, text: &str) -> Option<Captures> {
        self.find(text).or_else(|| self.find(self.before_last_newline(text)?))
    }

    /// Replaces the first occurrence, or gives `None` when there is none. APISIX: `ngx.re.sub`.
    #[must_use]
    pub fn replace_first(&self, text: &str, replacement: &Replacement) -> Option<(String, Captures)> {
        let captures = self.captures(text)?;
        let bytes = lossless::to_bytes(text);
        let mut out = lossless::from_bytes(bytes.get(..captures.span.start)?).into_owned();
        replacement.expand(&captures, &mut out);
        out.push_str(&lossless::from_bytes(bytes.get(captures.span.end..)?));
        Some((out, captures))
    }

    /// The parts of the text between occurrences. APISIX: `ngx.re.split`, but for empty parts at the end.
    #[must_use]
    pub fn split(&self, text: &str) -> Vec<String> {
        match &self.engine {
            Engine::Linear(regex) => {
                let bytes = lossless::to_bytes(text);
                regex.split(&bytes).map(|part| lossless::from_bytes(part).into_owned()).collect()
            }
            // A search that gives up ends the text.
            Engine::Backtracking(regex) => {
                regex.split(text).map_while(Result::ok).map(str::to_owned).collect()
            }
        }
    }

    fn matches(&self, text: &str) -> bool {
        match &self.engine {
            Engine::Linear(regex) => regex.is_match(&lossless::to_bytes(text)),
            Engine::Backtracking(regex) => regex.is_match(text).unwrap_or(false),
        }
    }

    fn find(&self, text: &str) -> Option<Captures> {
        match &self.engine {
            Engine::Linear(regex) => {
                let bytes = lossless::to_bytes(text);
                let found = regex.captures(&bytes)?;
                let group = |m: regex::bytes::Match<'_>| lossless::from_bytes(m.as_bytes()).into_owned();
                let span = found.get(0)?.range();
                Some(Captures { groups: found.iter().map(|m| m.map(group)).collect(), span })
            }
            Engine::Backtracking(regex) => {
                let found = regex.captures(text).ok()??;
                let span = found.get(0)?.range();
                // Spans are of bytes, and stand-ins are longer than what they stand for.
                let start = lossless::to_bytes(&text[..span.start]).len();
                let len = lossless::to_bytes(&text[span]).len();
                let groups = found.iter().map(|m| m.map(|m| m.as_str().to_owned())).collect();
                Some(Captures { groups, span: start..start + len })
            }
        }
    }

    fn before_last_newline<'t>(&self, text: &'t str) -> Option<&'t str> {
        if self.has_dollar { text.strip_suffix('\n') } else { None }
    }
}

impl Captures {
    /// A group's text; `None` when it took no part in the match or does not exist.
    #[must_use]
    pub fn get(&self, group: usize) -> Option<&str> {
        self.groups.get(group)?.as_deref()
    }
}

impl Replacement {
    /// Parses a template.
    ///
    /// # Errors
    /// ngx_lua's words, for a `$` that is followed by neither a number nor a `$`.
    pub fn parse(template: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = template;
        while let Some((text, tail)) = rest.split_once('$') {
            parts.push(Part::Text(text.to_owned()));
            if let Some(tail) = tail.strip_prefix('$') {
                parts.push(Part::Text("$".to_owned()));
                rest = tail;
                continue;
            }
            let group = group_reference(tail);
            let (group, tail) = group.ok_or("failed to compile the replacement template")?;
            parts.push(Part::Group(group));
            rest = tail;
        }
        parts.push(Part::Text(rest.to_owned()));
        Ok(Self { parts })
    }

    fn expand(&self, captures: &Captures, out: &mut String) {
        for part in &self.parts {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Group(group) => out.push_str(captures.get(*group).unwrap_or_default()),
            }
        }
    }
}

fn group_reference(text: &str) -> Option<(usize, &str)> {
    let bare = text.strip_prefix('{').unwrap_or(text);
    let end = bare.find(|c: char| !c.is_ascii_digit()).unwrap_or(bare.len());
    let group = bare[..end].parse().ok()?;
    let tail = &bare[end..];
    let tail = if text.starts_with('{') { tail.strip_prefix('}')? } else { tail };
    Some((group, tail))
}

struct Translated<'p> {
    pattern: Cow<'p, str>,
    has_dollar: bool,
    possessive: bool,
}

/// Rewrites what PCRE spells differently from the `regex` crate.
fn translate(pattern: &str) -> Translated<'_> {
    let mut out = String::with_capacity(pattern.len() + 8);
    let (mut has_dollar, mut possessive) = (false, false);
    let mut rest = pattern;
    let mut after_quantifier = false;
    while let Some(c) = rest.chars().next() {
        let quantifier = quantifier_length(rest);
        let taken = match c {
            '\\' => escape(rest, &mut out),
            '[' => class(rest, &mut out),
            '(' if rest.starts_with("(?#") => rest.find(')').map_or(rest.len(), |at| at + 1),
            '{' if quantifier.is_none() => {
                out.push_str("\\{");
                1
            }
            _ => {
                has_dollar |= c == '$';
                possessive |= c == '+' && after_quantifier;
                let length = quantifier.unwrap_or(c.len_utf8());
                out.push_str(&rest[..length]);
                length
            }
        };
        after_quantifier = quantifier.is_some() && !after_quantifier;
        rest = &rest[taken..];
    }
    let pattern = if out == pattern { Cow::Borrowed(pattern) } else { Cow::Owned(out) };
    Translated { pattern, has_dollar, possessive }
}

/// The length of the quantifier that the text begins with, if it does.
fn quantifier_length(text: &str) -> Option<usize> {
    if text.starts_with(['*', '+', '?']) {
        return Some(1);
    }
    let (inner, _) = text.strip_prefix('{')?.split_once('}')?;
    let (low, high) = inner.split_once(',').unwrap_or((inner, ""));
    let digits = |t: &str| t.bytes().all(|b| b.is_ascii_digit());
    (!low.is_empty() && digits(low) && digits(high)).then_some(inner.len() + 2)
}

/// Translates the escape at the start of the text, outside a class; returns how much it took.
fn escape(text: &str, out: &mut String) -> usize {
    let Some(c) = text[1..].chars().next() else {
        out.push('\\');
        return 1;
    };
    if c == 'Q' {
        let quoted = &text[2..];
        let (literal, taken) = match quoted.find("\\E") {
            Some(end) => (&quoted[..end], end + 4),
            None => (quoted, text.len()),
        };
        out.push_str(&regex::escape(literal));
        return taken;
    }
    match c {
        'E' => {}
        // Spelled out, because the backtracking engine would take letters of all scripts.
        'd' => out.push_str("[0-9]"),
        'D' => out.push_str("[^0-9]"),
        'w' => out.push_str("[0-9A-Za-z_]"),
        'W' => out.push_str("[^0-9A-Za-z_]"),
        's' => out.push_str("[\\t-\\r ]"),
        'S' => out.push_str("[^\\t-\\r ]"),
        'h' => out.push_str("[\\t ]"),
        'H' => out.push_str("[^\\t ]"),
        'N' => out.push_str("[^\\n]"),
        'R' => out.push_str("(?:\\r\\n|[\\n\\x0b\\f\\r])"),
        _ => return simple_escape(text, c, out),
    }
    2
}

/// Escapes that are the same inside and outside a class.
fn simple_escape(text: &str, c: char, out: &mut String) -> usize {
    match c {
        'e' => out.push_str("\\x1b"),
        '<' | '>' => out.push(c),
        'x' => return hex_escape(text, out),
        c if !c.is_ascii() => out.push(c),
        c => {
            out.push('\\');
            out.push(c);
        }
    }
    1 + c.len_utf8()
}

/// `\x` takes none, one or two digits in PCRE, and exactly two here.
fn hex_escape(text: &str, out: &mut String) -> usize {
    let tail = &text[2..];
    if tail.starts_with('{') {
        out.push_str("\\x");
        return 2;
    }
    let digits = tail.bytes().take(2).take_while(u8::is_ascii_hexdigit).count();
    out.push_str("\\x");
    out.push_str(&"00"[digits..]);
    out.push_str(&tail[..digits]);
    2 + digits
}

/// Translates the class at the start of the text; returns how much it took. `[`, `&` and `~` have a meaning in
/// classes of the `regex` crate that they lack in PCRE.
fn class(text: &str, out: &mut String) -> usize {
    let mut at = 1;
    out.push('[');
    for lead in ['^', ']'] {
        if text[at..].starts_with(lead) {
            out.push_str(if lead == ']' { "\\]" } else { "^" });
            at += 1;
        }
    }
    while let Some(c) = text[at..].chars().next() {
        let rest = &text[at..];
        at += match c {
            ']' => {
                out.push(']');
                return at + 1;
            }
            '\\' => class_escape(rest, out),
            '[' => match posix_length(rest) {
                Some(length) => {
                    out.push_str(&rest[..length]);
                    length
                }
                None => {
                    out.push_str("\\[");
                    1
                }
            },
            '&' | '~' => {
                out.push('\\');
                out.push(c);
                1
            }
            c => {
                out.push(c);
                c.len_utf8()
            }
        };
    }
    at
}

fn class_escape(text: &str, out: &mut String) -> usize {
    match text[1..].chars().next() {
        None => {
            out.push('\\');
            1
        }
        Some('b') => {
            out.push_str("\\x08");
            2
        }
        Some('h') => {
            out.push_str("\\t ");
            2
        }
        Some(c) => simple_escape(text, c, out),
    }
}

/// The length of a POSIX class such as `[:alpha:]`.
fn posix_length(text: &str) -> Option<usize> {
    let (name, _) = text.strip_prefix("[:")?.split_once(":]")?;
    name.bytes().all(|b| b.is_ascii_lowercase() || b == b'^').then_some(name.len() + 4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(pattern: &str, text: &str, expected: bool) {
        let pcre = Pcre::new(pattern, Case::Sensitive).unwrap();
        assert_eq!(pcre.is_match(text), expected, "{pattern} on {text:?}, {:?}", pcre.engine);
    }

    #[test]
    fn splits() {
        for (pattern, text, parts) in [
            ("\\s*,\\s*", "a , b,,c", vec!["a", "b", "", "c"]),
            ("(?=x),", "a,b", vec!["a,b"]),
            ("(?<!x),", "a,b", vec!["a", "b"]),
            (",", "", vec![""]),
        ] {
            assert_eq!(Pcre::new(pattern, Case::Sensitive).unwrap().split(text), parts, "{pattern} {text}");
        }
    }

    #[test]
    fn pcre_spelling() {
        check("^[a-z]{1,4}$", "abc", true);
        check("[0-9]+", "a1", true);
        check("/a/{id}", "/a/{id}", true);
        check("{", "{", true);
        check("a{,b", "a{,b", true);
        check("[[a]", "[", true);
        check("[a&&b]", "a", true);
        check("[~~]", "~", true);
        check("[[:digit:]x]", "7", true);
        check("[]a]", "]", true);
        check("[^]a]", "]", false);
        check(r"\<a\>", "<a>", true);
        check(r"\/a\_b\-\:", "/a_b-:", true);
        check(r"\h", "\t", true);
        check(r"\Qa.b\E+", "a.bb", true);
        check(r"\Qa.b", "axb", false);
        check(r"\x2f\x9", "/\t", true);
        check(r"a(?#note)b", "ab", true);
        check(r"[\b]", "\u{8}", true);
        check(r"(?i)ABC", "abc", true);
        check("", "", true);
    }

    #[test]
    fn bytes_not_characters() {
        check("^..$", "ü", true);
        check(r"^\w+$", "ü", false);
        check("ü", "ü", true);
        check(r"\xff", &lossless::from_bytes(b"\xff"), true);
        check("^[ü]$", "ü", true);
    }

    #[test]
    fn dollar_matches_before_a_last_newline() {
        check("a$", "a\n", true);
        check("a$", "a\n\n", false);
        check(r"a\z", "a\n", false);
        check("a$|b", "a\nc", false);
    }

    #[test]
    fn backtracking_when_needed() {
        check("^(?!admin)", "user", true);
        check("^(?!admin)", "admin", false);
        check(r"(a)\1", "aa", true);
        check("a++b", "aab", true);
        check("^a*+a", "aaa", false);
        check("(?<=a)b", "ab", true);
        check(r"(?>a+)\h", "a b", true);
        check(r"^\w(?!x)", "ü", false);
        assert!(Pcre::new("(", Case::Sensitive).is_err());
        // Past the limit of steps there is no match, and no endless loop.
        let slow = Pcre::new(r"^(?=(a+)+$)\1", Case::Sensitive).unwrap();
        assert!(!slow.is_match(&format!("{}b", "a".repeat(64))));
    }

    #[test]
    fn case() {
        assert!(Pcre::new("A", Case::Insensitive).unwrap().is_match("a"));
        assert!(!Pcre::new("A", Case::Sensitive).unwrap().is_match("a"));
        assert!(Pcre::new("(?!x)A", Case::Insensitive).unwrap().is_match("a"));
    }

    #[test]
    fn replaces_like_ngx_re_sub() {
        for (pattern, template, text, expected) in [
            ("^/a/(.*)", "/b/$1", "/a/x", Some("/b/x")),
            ("^/a/(.*)", "/b/${1}2$$", "/a/x", Some("/b/x2$")),
            ("(b)|(c)", "[$1$2$9]", "abc", Some("a[b]c")),
            ("b", "$0$0", "abcb", Some("abbcb")),
            ("x", "y", "abc", None),
            ("^/(?!b)(.*)", "/ü/$1", "/aü", Some("/ü/aü")),
            ("$", "!", "a\n", Some("a\n!")),
        ] {
            let replacement = Replacement::parse(template).unwrap();
            let got = Pcre::new(pattern, Case::Sensitive).unwrap().replace_first(text, &replacement);
            assert_eq!(got.as_ref().map(|(text, _)| text.as_str()), expected, "{pattern}");
        }
        for template in ["$", "$a", "${1", "${a}", "a$ "] {
            let expected = Err("failed to compile the replacement template".to_owned());
            assert_eq!(Replacement::parse(template), expected, "{template}");
        }
    }

    #[test]
    fn groups() {
        let pcre = Pcre::new("(a)(x)?", Case::Sensitive).unwrap();
        let captures = pcre.captures("ba").unwrap();
        assert_eq!((captures.get(0), captures.get(1), captures.get(2)), (Some("a"), Some("a"), None));
    }

    proptest! {
        #[test]
        fn never_panics(
            pattern in "(\\PC|[\\\\\\[\\](){}?*+^$|&~xQEhb-]){0,12}",
            bytes in proptest::collection::vec(any::<u8>(), 0..24),
        ) {
            if let Ok(pcre) = Pcre::new(&pattern, Case::Insensitive) {
                let text = lossless::from_bytes(&bytes);
                let found = pcre.captures(&text);
                prop_assert_eq!(found.is_some(), pcre.is_match(&text));
                let _ = pcre.replace_first(&text, &Replacement::parse("$1").unwrap());
            }
        }

        #[test]
        fn escaped_text_matches_itself(text in "[ -~ü\n]{0,16}") {
            let pcre = Pcre::new(&format!("^{}$", regex::escape(&text)), Case::Sensitive).unwrap();
            prop_assert!(pcre.is_match(&text));
        }
    }
}
