//! Regular expressions as APISIX's schemas mean them: PCRE without its UTF mode, searched anywhere in the text.
//!
//! The linear-time `regex` engine runs all it can, over bytes; lookaround and back-references fall to `fancy_regex`.
//! What the two spell differently from PCRE is rewritten first. Invariant: matching never panics and never compiles.

use std::fmt;

/// A compiled pattern.
pub struct Pattern {
    source: String,
    engine: Engine,
}

/// Why a pattern cannot be compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{pattern}\": {reason}")]
pub struct PatternError {
    pattern: String,
    reason: String,
}

enum Engine {
    Linear(regex::bytes::Regex),
    Backtracking(Box<fancy_regex::Regex>),
}

/// Compiled size of one pattern, in bytes: a repetition such as `{1,65536}` must fit.
const SIZE_LIMIT: usize = 32 << 20;

impl Pattern {
    /// Compiles a PCRE pattern.
    ///
    /// # Errors
    /// [`PatternError`] when neither engine understands it.
    pub fn new(source: &str) -> Result<Pattern, PatternError> {
        let rewritten = rewrite(source);
        // Bytes first, as PCRE without UTF; a class with a non-ASCII letter compiles only as Unicode.
        let linear = [false, true].into_iter().find_map(|unicode| {
            let mut builder = regex::bytes::RegexBuilder::new(&rewritten);
            builder.unicode(unicode).size_limit(SIZE_LIMIT).build().ok()
        });
        let engine = match linear {
            Some(regex) => Engine::Linear(regex),
            None => Engine::Backtracking(Box::new(
                fancy_regex::Regex::new(&rewritten)
                    .map_err(|e| PatternError { pattern: source.to_owned(), reason: e.to_string() })?,
            )),
        };
        Ok(Pattern { source: source.to_owned(), engine })
    }

    /// Whether the pattern is found anywhere in `text`. A search that exceeds the backtracking limit finds nothing.
    pub fn is_match(&self, text: &str) -> bool {
        match &self.engine {
            Engine::Linear(regex) => regex.is_match(text.as_bytes()),
            Engine::Backtracking(regex) => regex.is_match(text).unwrap_or(false),
        }
    }

    /// The pattern as written.
    pub fn source(&self) -> &str {
        &self.source
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern({:?})", self.source)
    }
}

/// Rewrites what PCRE accepts and the engines read differently or refuse.
fn rewrite(source: &str) -> String {
    let mut out = String::with_capacity(source.len() + 8);
    // There `$` means the end of any line, to PCRE and to the engines.
    let keep_dollar = has_multiline_flag(source);
    let mut rest = source;
    while let Some(c) = rest.chars().next() {
        let mut used = c.len_utf8();
        match c {
            '\\' => used = rewrite_escape(rest, &mut out),
            '[' => used = rewrite_class(rest, &mut out),
            // PCRE: before a line end that closes the text, too.
            '$' if !keep_dollar => out.push_str(r"(?:\n?\z)"),
            // A brace that is no quantifier stands for itself.
            '{' if !is_quantifier(rest) => out.push_str(r"\{"),
            c => out.push(c),
        }
        rest = &rest[used..];
    }
    out
}

/// Whether the pattern holds `(?m)` or the like.
fn has_multiline_flag(source: &str) -> bool {
    source.split("(?").skip(1).any(|group| {
        let flags = group.split(|c: char| !c.is_ascii_lowercase()).next().unwrap_or_default();
        flags.contains('m') && group[flags.len()..].starts_with([')', ':', '-'])
    })
}

/// Copies one escape outside a class; returns the bytes read.
fn rewrite_escape(rest: &str, out: &mut String) -> usize {
    let Some(escaped) = rest[1..].chars().next() else {
        out.push('\\');
        return 1;
    };
    match escaped {
        // Word boundaries to the engines, themselves to PCRE.
        '<' | '>' => out.push(escaped),
        'Z' => out.push_str(r"(?:\n?\z)"),
        'h' => out.push_str(r"[ \t]"),
        'e' => out.push_str(r"\x1B"),
        c if c.is_ascii() => out.extend(['\\', c]),
        c => out.push(c),
    }
    1 + escaped.len_utf8()
}

/// Copies a bracketed class; returns the bytes read. PCRE knows neither nested classes nor set operations.
fn rewrite_class(class: &str, out: &mut String) -> usize {
    let mut at = 1;
    out.push('[');
    if class[at..].starts_with('^') {
        out.push('^');
        at += 1;
    }
    if class[at..].starts_with(']') {
        out.push_str(r"\]");
        at += 1;
    }
    while let Some(c) = class[at..].chars().next() {
        let rest = &class[at..];
        if c == ']' {
            out.push(']');
            return at + 1;
        }
        if let Some(name) = posix_class(rest) {
            out.push_str(name);
            at += name.len();
            continue;
        }
        at += match c {
            '\\' => class_escape(rest, out),
            '[' | '&' | '~' => {
                out.extend(['\\', c]);
                1
            }
            '-' if rest[1..].starts_with('-') => {
                out.push_str(r"-\-");
                2
            }
            c => {
                out.push(c);
                c.len_utf8()
            }
        };
    }
    at
}

/// Copies one escape inside a class; returns the bytes read.
fn class_escape(rest: &str, out: &mut String) -> usize {
    let Some(escaped) = rest[1..].chars().next() else {
        out.push('\\');
        return 1;
    };
    match escaped {
        '<' | '>' => out.push(escaped),
        'h' => out.push_str(r" \t"),
        'e' => out.push_str(r"\x1B"),
        'b' => out.push_str(r"\x08"),
        // A dash after a class of characters opens no range.
        'd' | 'D' | 'w' | 'W' | 's' | 'S' if rest[2..].starts_with('-') && !rest[3..].starts_with(']') => {
            out.extend(['\\', escaped, '\\', '-']);
            return 3;
        }
        c if c.is_ascii() => out.extend(['\\', c]),
        c => out.push(c),
    }
    1 + escaped.len_utf8()
}

/// `[:alpha:]` at the start of `rest`, brackets included.
fn posix_class(rest: &str) -> Option<&str> {
    let inner = rest.strip_prefix("[:")?;
    let end = inner.find(":]")?;
    let name = inner[..end].strip_prefix('^').unwrap_or(&inner[..end]);
    let is_name = !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase());
    is_name.then(|| &rest[..end + 4])
}

/// Whether the brace at the start of `rest` opens `{n}`, `{n,}` or `{n,m}`.
fn is_quantifier(rest: &str) -> bool {
    let Some((inside, _)) = rest[1..].split_once('}') else {
        return false;
    };
    let (low, high) = inside.split_once(',').unwrap_or((inside, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    !low.is_empty() && digits(low) && digits(high)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(pattern: &str, text: &str, expected: bool) {
        let compiled = Pattern::new(pattern).expect(pattern);
        assert_eq!(
            compiled.is_match(text),
            expected,
            "{pattern} on {text:?}, rewritten {}",
            rewrite(pattern)
        );
    }

    #[test]
    fn patterns_of_the_api() {
        check(r"^[a-zA-Z0-9-_.]+$", "a-b_c.d", true);
        check(r"^[a-zA-Z0-9-_.]+$", "a b", false);
        check(r"^\*$|^\*?[0-9a-zA-Z-._\[\]:]+$", "*.a.com", true);
        check(r"^\*$|^\*?[0-9a-zA-Z-._\[\]:]+$", "\u{1} bad value!", false);
        check(r"^[^\/]+:\/\/([\da-zA-Z.-]+|\[[\da-fA-F:]+\])(:\d+)?", "http://[::1]:80/x", true);
        check("^[ -!#-[\\]-~]+$", "a[b", true);
        check("^[ -!#-[\\]-~]+$", "a\"b", false);
        check(r"^(?!admin).*$", "administrator", false);
        check(r"^(a)\1$", "aa", true);
    }

    #[test]
    fn pcre_is_not_the_engines() {
        check("^a$", "a\n", true);
        check("^a$", "a\nb", false);
        check("(?im)^A$", "a\nb", true);
        check("(?i)^A$", "a\nb", false);
        check("^.$", "é", false);
        check("^..$", "é", true);
        check(r"^\w$", "ß", false);
        check(r"^\S+$", "größe", true);
        check("a{", "a{", true);
        check("a{,2}", "a{,2}", true);
        check("^a{2}$", "aa", true);
        check("[[]", "[", true);
        check("[a&&b]", "&", true);
        check("[+--]", ",", true);
        check(r"^[\w-.]+$", "a-b.c", true);
        check(r"^[\w-]+$", "a-b", true);
        check("[]a]", "]", true);
        check("[^]a]", "]", false);
        check("^[[:digit:]]+$", "12", true);
        check(r"\<a\>", "<a>", true);
        check("[é]", "é", true);
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(Pattern::new("(").is_err());
        assert!(Pattern::new("[a").is_err());
    }

    proptest! {
        #[test]
        fn any_pattern_meets_any_text(pattern in r"[\[\]^$a-c\\(){}?*+|.,&~<>:-]{0,12}|\PC{0,8}", text in "\\PC{0,12}") {
            if let Ok(compiled) = Pattern::new(&pattern) {
                compiled.is_match(&text);
            }
        }
    }
}
