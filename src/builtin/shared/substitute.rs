//! Regular-expression substitution as `ngx.re.sub` and `ngx.re.gsub` do it.
//!
//! The linear-time engine runs all it can, over bytes, as PCRE without its UTF mode does; lookaround and
//! back-references fall to a backtracking engine, which sees text only. Patterns and replacements are compiled
//! with the configuration; nothing here compiles at request time or panics on any input. To both engines `$` is
//! the very end; in PCRE it is also the place before a closing line feed, so such a subject is searched twice.

use std::ops::Range;

use super::pcre;
use crate::vars::pcre as text;

/// Compiled size of one pattern, in bytes: a repetition such as `{1,65536}` must fit.
const SIZE_LIMIT: usize = 32 << 20;

/// A compiled pattern with its flags.
#[derive(Debug)]
pub struct Pattern {
    engine: Engine,
    /// Flag `a`: matches where the search begins, or not at all.
    anchored: bool,
    /// It may have a `$` that is not the end of every line (flag `m`).
    has_dollar: bool,
}

#[derive(Debug)]
enum Engine {
    Linear(regex::bytes::Regex),
    Backtracking(Box<fancy_regex::Regex>),
}

/// The groups of one match as ranges of the subject; group 0 is the whole match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Groups(Vec<Option<Range<usize>>>);

/// A compiled replacement: text with `$1`, `${1}` and `$$`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replacement(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(Box<[u8]>),
    Group(usize),
}

/// How many matches are replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The first. `ngx.re.sub`.
    Once,
    /// All. `ngx.re.gsub`.
    Global,
}

/// A pattern and what replaces its first match in a path, as `regex_uri` options write them.
///
/// # Errors
/// In the words of ngx_lua, whichever of the two is wrong.
pub fn of_text(pattern: &str, with: &str) -> Result<(text::Pcre, text::Replacement), String> {
    pcre::compile(pattern)?;
    Ok((text::Pcre::new(pattern, text::Case::Sensitive)?, text::Replacement::parse(with)?))
}

/// A subject, with its text if the backtracking engine can see it.
#[derive(Clone, Copy)]
struct Subject<'s> {
    bytes: &'s [u8],
    text: Option<&'s str>,
}

impl Pattern {
    /// Compiles a PCRE pattern with the flags of `ngx.re`.
    ///
    /// # Errors
    /// An unknown flag or a malformed pattern, in the words of ngx_lua as far as the engines tell.
    pub fn new(pattern: &str, flags: &str) -> Result<Pattern, String> {
        let flags = Flags::parse(flags)?;
        let engine = match flags.linear(pattern) {
            Some(regex) => Engine::Linear(regex),
            None => Engine::Backtracking(Box::new(flags.backtracking(pattern)?)),
        };
        let has_dollar = !flags.lines && pattern.contains('$');
        Ok(Pattern { engine, anchored: flags.anchored, has_dollar })
    }

    /// Whether the pattern is found in the subject.
    pub fn is_match(&self, subject: &[u8]) -> bool {
        match &self.engine {
            Engine::Linear(regex) if !self.anchored && !self.has_dollar => regex.is_match(subject),
            _ => self.find(subject).is_some(),
        }
    }

    /// The first match. A search that exceeds the backtracking limit finds nothing.
    pub fn find(&self, subject: &[u8]) -> Option<Groups> {
        self.find_from(self.subject(subject), 0)
    }

    /// The subject with its matches replaced; `None` when there is no match.
    pub fn replace(&self, subject: &[u8], with: &Replacement, scope: Scope) -> Option<Vec<u8>> {
        let first = self.find(subject)?;
        let mut out = Vec::with_capacity(subject.len() + 32);
        let mut copied = with.splice(subject, 0, &first, &mut out);
        if scope == Scope::Global {
            let whole = self.subject(subject);
            let mut from = after(whole, &first);
            while let Some(next) = self.find_from(whole, from) {
                copied = with.splice(subject, copied, &next, &mut out);
                from = after(whole, &next);
            }
        }
        out.extend_from_slice(&subject[copied..]);
        Some(out)
    }

    fn subject<'s>(&self, bytes: &'s [u8]) -> Subject<'s> {
        let text = match self.engine {
            Engine::Linear(_) => None,
            Engine::Backtracking(_) => std::str::from_utf8(bytes).ok(),
        };
        Subject { bytes, text }
    }

    fn find_from(&self, subject: Subject<'_>, from: usize) -> Option<Groups> {
        let whole = self.search(subject, from);
        let Some(line) = subject.before_closing_line_feed().filter(|_| self.has_dollar) else {
            return whole;
        };
        let line = self.search(line, from);
        let start = |found: &Option<Groups>| found.as_ref().map_or(usize::MAX, |found| found.whole().start);
        if start(&line) < start(&whole) { line } else { whole }
    }

    fn search(&self, subject: Subject<'_>, from: usize) -> Option<Groups> {
        if from > subject.bytes.len() {
            return None;
        }
        let groups = match &self.engine {
            Engine::Linear(regex) => {
                let found = regex.captures_at(subject.bytes, from)?;
                Groups(found.iter().map(|group| group.map(|group| group.range())).collect())
            }
            Engine::Backtracking(regex) => {
                let found = regex.captures_from_pos(subject.text?, from).ok()??;
                Groups(found.iter().map(|group| group.map(|group| group.range())).collect())
            }
        };
        let whole = groups.whole();
        // `\K` in a look-behind puts the start back into what is replaced already.
        (whole.start >= from && (!self.anchored || whole.start == from)).then_some(groups)
    }
}

impl<'s> Subject<'s> {
    fn before_closing_line_feed(self) -> Option<Subject<'s>> {
        let text = self.text.and_then(|text| text.strip_suffix('\n'));
        self.bytes.strip_suffix(b"\n").map(|bytes| Subject { bytes, text })
    }
}

impl Groups {
    /// A group's part of the subject; empty if it does not exist or took no part in the match.
    pub fn of<'s>(&self, subject: &'s [u8], group: usize) -> &'s [u8] {
        self.0.get(group).cloned().flatten().and_then(|range| subject.get(range)).unwrap_or_default()
    }

    /// How many groups there are, the whole match included.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    fn whole(&self) -> Range<usize> {
        self.0.first().cloned().flatten().unwrap_or_default()
    }
}

impl Replacement {
    /// Compiles a replacement. nginx: `ngx_http_lua_compile_complex_value`.
    ///
    /// # Errors
    /// A `$` that neither names a group nor is doubled.
    pub fn new(text: &str) -> Result<Replacement, String> {
        let invalid = || "failed to compile the replacement template".to_owned();
        let mut pieces = Vec::new();
        let mut literal = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            literal.extend_from_slice(&rest.as_bytes()[..at]);
            rest = &rest[at + 1..];
            if let Some(tail) = rest.strip_prefix('$') {
                literal.push(b'$');
                rest = tail;
                continue;
            }
            let (group, tail) = group_name(rest).ok_or_else(invalid)?;
            if !literal.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut literal).into()));
            }
            pieces.push(Piece::Group(group));
            rest = tail;
        }
        literal.extend_from_slice(rest.as_bytes());
        if !literal.is_empty() {
            pieces.push(Piece::Text(literal.into()));
        }
        Ok(Replacement(pieces))
    }

    /// Appends what lies before the match and the replacement; tells where the match ends.
    fn splice(&self, subject: &[u8], copied: usize, found: &Groups, out: &mut Vec<u8>) -> usize {
        let whole = found.whole();
        out.extend_from_slice(&subject[copied..whole.start]);
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => out.extend_from_slice(text),
                Piece::Group(group) => out.extend_from_slice(found.of(subject, *group)),
            }
        }
        whole.end
    }
}

/// The flags of `ngx.re`; `j`, `o`, `d` and `J` only choose how PCRE works.
#[derive(Default)]
struct Flags {
    anchored: bool,
    caseless: bool,
    lines: bool,
    dot_all: bool,
    extended: bool,
    unicode: bool,
}

impl Flags {
    fn parse(text: &str) -> Result<Flags, String> {
        let mut flags = Flags::default();
        for flag in text.chars() {
            match flag {
                'a' => flags.anchored = true,
                'i' => flags.caseless = true,
                'm' => flags.lines = true,
                's' => flags.dot_all = true,
                'x' => flags.extended = true,
                'u' | 'U' => flags.unicode = true,
                'j' | 'J' | 'o' | 'd' | 'D' => {}
                other => return Err(format!("unknown flag \"{other}\" (flags \"{text}\")")),
            }
        }
        Ok(flags)
    }

    /// Bytes first, as PCRE without UTF; a class with a non-ASCII letter compiles only as Unicode.
    fn linear(&self, pattern: &str) -> Option<regex::bytes::Regex> {
        [self.unicode, true].into_iter().find_map(|unicode| {
            regex::bytes::RegexBuilder::new(pattern)
                .unicode(unicode)
                .case_insensitive(self.caseless)
                .multi_line(self.lines)
                .dot_matches_new_line(self.dot_all)
                .ignore_whitespace(self.extended)
                .size_limit(SIZE_LIMIT)
                .build()
                .ok()
        })
    }

    fn backtracking(&self, pattern: &str) -> Result<fancy_regex::Regex, String> {
        let letters = [(self.caseless, 'i'), (self.lines, 'm'), (self.dot_all, 's'), (self.extended, 'x')];
        let inline: String = letters.iter().filter(|(on, _)| *on).map(|(_, letter)| *letter).collect();
        // The line end closes a comment that flag `x` allows at the end of the pattern.
        let close = if self.extended { "\n)" } else { ")" };
        let source =
            if inline.is_empty() { pattern.to_owned() } else { format!("(?{inline}:{pattern}{close}") };
        fancy_regex::Regex::new(&source).map_err(|e| {
            let own =
                || format!("pcre_compile() failed: {} in \"{pattern}\"", e.to_string().replace('\n', " "));
            pcre::compile(pattern).err().unwrap_or_else(own)
        })
    }
}

/// The number of a group after `$`, and what follows it.
fn group_name(text: &str) -> Option<(usize, &str)> {
    let (digits, braced) = match text.strip_prefix('{') {
        Some(inside) => (inside, true),
        None => (text, false),
    };
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    let group = digits[..end].parse().ok()?;
    let tail = &digits[end..];
    Some((group, if braced { tail.strip_prefix('}')? } else { tail }))
}

/// Where the search for the next match begins: an empty match must not be found again.
fn after(subject: Subject<'_>, found: &Groups) -> usize {
    let whole = found.whole();
    if !whole.is_empty() {
        return whole.end;
    }
    let mut next = whole.end + 1;
    while subject.text.is_some_and(|text| next < text.len() && !text.is_char_boundary(next)) {
        next += 1;
    }
    next
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(pattern: &str, flags: &str, with: &str, subject: &str, scope: Scope, expected: Option<&str>) {
        let pattern = Pattern::new(pattern, flags).unwrap();
        let with = Replacement::new(with).unwrap();
        let got = pattern.replace(subject.as_bytes(), &with, scope);
        assert_eq!(got.map(|bytes| String::from_utf8(bytes).unwrap()).as_deref(), expected);
    }

    #[test]
    fn substitutes() {
        check("a", "jo", "b", "banana", Scope::Once, Some("bbnana"));
        check("a", "jo", "b", "banana", Scope::Global, Some("bbnbnb"));
        check("x", "jo", "b", "banana", Scope::Global, None);
        check("^/p/(.*)", "jo", "/q/$1?k=${1}x$$", "/p/a/b", Scope::Once, Some("/q/a/b?k=a/bx$"));
        check("(a)|(b)", "", "[$1$2$3]", "ab", Scope::Global, Some("[a][b]"));
        check("A", "i", "<$0>", "aA", Scope::Global, Some("<a><A>"));
        check("", "", "-", "ab", Scope::Global, Some("-a-b-"));
        check("a(?=n)", "", "A", "banana", Scope::Global, Some("bAnAna"));
        check("(?=é)", "", "-", "éé", Scope::Global, Some("-é-é"));
        check("a", "a", "x", "aab", Scope::Global, Some("xxb"));
        check("b", "a", "x", "aab", Scope::Once, None);
        check("^.", "m", "x", "ab\ncd", Scope::Global, Some("xb\nxd"));
        check("a.b", "s", "x", "a\nb", Scope::Once, Some("x"));
        check("[é]", "", "e", "é", Scope::Once, Some("e"));
    }

    #[test]
    fn a_dollar_is_also_before_a_closing_line_feed() {
        check(r"\w\S+$", "jo", "*", "hello world\n", Scope::Once, Some("hello *\n"));
        check(r"\w\S+$", "jo", "*", "hello\nworld", Scope::Global, Some("hello\n*"));
        check("o(?=r)..$", "", "*", "hello wor\n", Scope::Once, None);
        check("o(?=r).$", "", "*", "hello wor\n", Scope::Once, Some("hello w*\n"));
        check(r"\s*$", "", "-", "a \n", Scope::Once, Some("a-"));
        check("$", "", "-", "a\n", Scope::Global, Some("a-\n-"));
        check("a$", "", "-", "a\n\n", Scope::Once, None);
        check("$", "m", "-", "a\nb", Scope::Global, Some("a-\nb-"));
        assert!(Pattern::new("a$", "").unwrap().is_match(b"a\n"));
    }

    #[test]
    fn bytes_that_are_not_text_stay() {
        let pattern = Pattern::new("a", "").unwrap();
        let with = Replacement::new("b").unwrap();
        assert_eq!(pattern.replace(b"\xffa", &with, Scope::Once).as_deref(), Some(b"\xffb".as_slice()));
        let lookahead = Pattern::new("a(?=b)", "").unwrap();
        assert_eq!(lookahead.replace(b"\xffab", &with, Scope::Once), None);
    }

    #[test]
    fn what_is_replaced_is_not_found_again() {
        check(r"(?<=\Kban)a", "", "x", "banana", Scope::Global, Some("xna"));
        check(r"(?<=\Kan)a", "", "x", "banana", Scope::Global, Some("bxna"));
        check(r"(?=a)a\Kn", "", "x", "banana", Scope::Global, Some("baxaxa"));
    }

    #[test]
    fn refuses() {
        assert_eq!(Pattern::new("a", "h").unwrap_err(), "unknown flag \"h\" (flags \"h\")");
        assert_eq!(Pattern::new("^/(a", "jo").unwrap_err(), "pcre_compile() failed: missing ) in \"^/(a\"");
        assert!(of_text("^/(a", "x").is_err() && of_text("a", "$x").is_err() && of_text("a", "$1").is_ok());
        for bad in ["$", "$x", "a${1", "${}", "$99999999999999999999999"] {
            assert!(Replacement::new(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn global_agrees_with_the_engine(subject in "[ab-]{0,12}", pattern in "(a|b|ab|a\\*|-|b\\?|\\^a|b\\$){1,2}") {
            let ours = Pattern::new(&pattern, "").unwrap();
            let with = Replacement::new("<$0>").unwrap();
            let expected = regex::bytes::Regex::new(&pattern).unwrap();
            // An empty match right after another one is found by ngx.re.gsub, not by the oracle.
            prop_assume!(!expected.is_match(b""));
            let oracle = expected.replace_all(subject.as_bytes(), b"<$0>".as_slice());
            let got = ours.replace(subject.as_bytes(), &with, Scope::Global);
            prop_assert_eq!(got.unwrap_or_else(|| subject.clone().into_bytes()), oracle.into_owned());
        }

        #[test]
        fn never_panics(pattern in "\\PC{0,8}", with in "[$0-9{}a]{0,6}", subject in proptest::collection::vec(any::<u8>(), 0..16)) {
            if let (Ok(pattern), Ok(with)) = (Pattern::new(&pattern, ""), Replacement::new(&with)) {
                pattern.replace(&subject, &with, Scope::Global);
            }
        }
    }
}
