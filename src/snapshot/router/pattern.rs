//! What one `uri` of a route asks of a path, and the values it takes out of it.
//!
//! The tree finds a pattern by its literal beginning; this module decides about the rest. APISIX turns a pattern
//! that has an item beginning with `:` or `*` into a PCRE pattern (lua-resty-radixtree `fetch_pat`) and asks
//! that the first match be the whole path. Where every other item is literal text this is done here by walking
//! the segments; the few that contain regular expression syntax are compiled as one. Never compiles or
//! allocates while matching, but for more than four parameters or the compiled kind.

use regex::bytes::Regex;

use super::Mode;
use super::tree::Key;

/// One `uri` of a route, compiled.
pub struct PathPattern {
    text: Box<str>,
    demand: Demand,
}

/// What a pattern asks of a path beyond the literal beginning.
enum Demand {
    /// Nothing: no item is a parameter.
    Nothing,
    /// Nothing either, and what follows `start` is the value of the `*` there.
    Rest {
        start: u32,
    },
    Params(Box<ParamPattern>),
}

/// The values a pattern took out of a path, by name. The values are positions in that path.
#[derive(Clone, Debug, Default)]
pub struct Params<'a> {
    pattern: Option<&'a PathPattern>,
    spans: Spans,
}

struct ParamPattern {
    /// One for each item with a sigil, from left to right.
    names: Box<[Box<str>]>,
    shape: Shape,
}

enum Shape {
    Segments(Segments),
    Regex(Regex),
    /// Not a valid regular expression: APISIX logs an error for each request and matches nothing.
    Never,
}

/// Items separated by `/`, cut at the `*` items. Texts are places in the pattern, to keep them together in memory.
struct Segments {
    /// Where in the path the head begins: behind items that the tree has compared already.
    start: usize,
    /// Before the first `*`; everything when there is none.
    head: Vec<Segment>,
    /// Each `*` with the items up to the next one or the end.
    stars: Vec<Star>,
}

struct Star {
    capture: usize,
    after: Vec<Segment>,
}

enum Segment {
    Text {
        start: u32,
        end: u32,
    },
    /// `[^/]+`
    Param {
        capture: usize,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    start: u32,
    end: u32,
}

#[derive(Clone, Debug)]
enum Spans {
    Few([Span; Spans::FEW]),
    Many(Box<[Span]>),
}

impl PathPattern {
    /// Compiles a pattern. There are no errors: what APISIX accepts and never matches does so here.
    pub fn new(text: &str) -> Self {
        let demand = match (rest_start(text), ParamPattern::new(text)) {
            (Some(start), _) => Demand::Rest { start: start as u32 },
            (None, Some(params)) => Demand::Params(Box::new(params)),
            (None, None) => Demand::Nothing,
        };
        PathPattern { text: text.into(), demand }
    }

    /// The pattern as written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Where the pattern belongs in the tree: up to the first sigil that means something to the router.
    pub(super) fn key(&self, mode: Mode) -> Key<'_> {
        let sigil = match mode {
            // APISIX looks for `:` before it looks for `*`, wherever they are.
            Mode::UriWithParameter => self.text.find(':').or_else(|| self.text.find('*')),
            Mode::HostUri | Mode::Uri => self.text.find('*'),
        };
        match sigil {
            Some(at) => Key::Prefix(&self.text.as_bytes()[..at]),
            None => Key::Exact(self.text.as_bytes()),
        }
    }

    /// Matches a path that begins with the literal beginning of the pattern.
    pub(super) fn matches(&self, path: &[u8]) -> Option<Params<'_>> {
        let mut spans = Spans::new(0);
        let matched = match &self.demand {
            Demand::Nothing => true,
            Demand::Rest { start } => {
                spans.set(0, *start as usize, path.len());
                true
            }
            Demand::Params(params) => {
                spans = Spans::new(params.names.len());
                params.shape.matches(self.text.as_bytes(), path, &mut spans)
            }
        };
        matched.then_some(Params { pattern: Some(self), spans })
    }

    /// The name of the value at a position.
    fn name(&self, at: usize) -> Option<&str> {
        match &self.demand {
            Demand::Rest { start } if at == 0 => name(&self.text[*start as usize..]),
            Demand::Nothing | Demand::Rest { .. } => None,
            Demand::Params(params) => params.names.get(at).map(|name| &**name),
        }
    }
}

impl std::fmt::Debug for PathPattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("PathPattern").field(&self.text).finish()
    }
}

impl<'a> Params<'a> {
    /// True when there are no values.
    pub fn is_empty(&self) -> bool {
        self.pattern.is_none_or(|pattern| matches!(pattern.demand, Demand::Nothing))
    }

    /// The value of a name in the path that was matched. Of two values with one name the last counts. A `*`
    /// without a name of its own is called `:ext`.
    pub fn get<'p>(&self, name: &str, path: &'p [u8]) -> Option<&'p [u8]> {
        let mut last = None;
        for (known, value) in self.iter(path) {
            if known == name {
                last = Some(value);
            }
        }
        last
    }

    /// Names and values from left to right.
    pub fn iter<'p>(&self, path: &'p [u8]) -> impl Iterator<Item = (&'a str, &'p [u8])> {
        let pattern = self.pattern;
        self.spans.as_slice().iter().enumerate().filter_map(move |(at, span)| {
            let name = pattern?.name(at)?;
            Some((name, path.get(span.start as usize..span.end as usize)?))
        })
    }
}

impl ParamPattern {
    fn new(text: &str) -> Option<Self> {
        let items = items(text);
        let names: Box<[Box<str>]> = items.iter().filter_map(|item| name(item)).map(Box::from).collect();
        if names.is_empty() {
            return None;
        }
        let shape = if items.iter().all(|item| name(item).is_some() || is_literal(item, text)) {
            Shape::Segments(Segments::new(text, &items))
        } else {
            Regex::new(&regex_source(&items)).map_or(Shape::Never, Shape::Regex)
        };
        Some(ParamPattern { names, shape })
    }
}

impl Shape {
    fn matches(&self, text: &[u8], path: &[u8], spans: &mut Spans) -> bool {
        match self {
            Shape::Segments(segments) => segments.matches(text, path, spans),
            Shape::Regex(regex) => matches_regex(regex, path, spans),
            Shape::Never => false,
        }
    }
}

impl Segments {
    fn new(text: &str, items: &[&str]) -> Self {
        let compared = compared_items(text, items);
        let start = items[compared..].first().map_or(0, |item| offset(text, item));
        let mut segments = Segments { start, head: Vec::new(), stars: Vec::new() };
        let mut capture = 0;
        for item in &items[compared..] {
            if item.starts_with('*') {
                segments.stars.push(Star { capture, after: Vec::new() });
                // APISIX: the pattern it makes of `*` has two groups, the second for the last byte; names are
                // given to groups in order, so the one after a `*` gets that byte.
                capture += 2;
                continue;
            }
            let segment = if item.starts_with(':') {
                capture += 1;
                Segment::Param { capture: capture - 1 }
            } else {
                let start = offset(text, item);
                Segment::Text { start: start as u32, end: (start + item.len()) as u32 }
            };
            segments.stars.last_mut().map_or(&mut segments.head, |star| &mut star.after).push(segment);
        }
        segments
    }

    fn matches(&self, text: &[u8], path: &[u8], spans: &mut Spans) -> bool {
        let Some(head) = self.match_head(text, path, spans) else { return false };
        if self.stars.is_empty() {
            return head == path.len();
        }
        // `*` is greedy and the items between two have a fixed number of separators: placing them from the right,
        // each as far right as it goes, makes the first `*` the longest, then the second, as backtracking would.
        let mut end = path.len();
        for (i, star) in self.stars.iter().enumerate().rev() {
            let placed = if i + 1 == self.stars.len() {
                match_back(&star.after, text, &path[..end], spans).map(|left| (left, end))
            } else {
                (head..end)
                    .rev()
                    .filter(|at| path[*at] == b'/')
                    .find_map(|at| Some((match_back(&star.after, text, &path[..at], spans)?, at)))
            };
            let Some((left, right)) = placed else { return false };
            if let Some(next) = self.stars.get(i + 1) {
                next.capture_value(right + 1, end, spans);
            }
            if left < head {
                return false;
            }
            end = left;
        }
        self.stars[0].capture_value(head, end, spans);
        true
    }

    /// Matches the items before the first `*` and returns where that begins, or the end without one.
    fn match_head(&self, text: &[u8], path: &[u8], spans: &mut Spans) -> Option<usize> {
        let mut at = self.start;
        path.get(at..)?;
        for (i, segment) in self.head.iter().enumerate() {
            match segment {
                Segment::Text { start, end } => {
                    let item = &text[*start as usize..*end as usize];
                    path[at..].strip_prefix(item)?;
                    at += item.len();
                }
                Segment::Param { capture } => {
                    let len = path[at..].iter().position(|b| *b == b'/').unwrap_or(path.len() - at);
                    if len == 0 {
                        return None;
                    }
                    spans.set(*capture, at, at + len);
                    at += len;
                }
            }
            let last = i + 1 == self.head.len() && self.stars.is_empty();
            if !last {
                path[at..].strip_prefix(b"/")?;
                at += 1;
            }
        }
        Some(at)
    }
}

impl Star {
    fn capture_value(&self, start: usize, end: usize, spans: &mut Spans) {
        spans.set(self.capture, start, end);
        if start < end {
            spans.set(self.capture + 1, end - 1, end);
        }
    }
}

impl Span {
    /// Outside every path.
    const UNSET: Span = Span { start: u32::MAX, end: u32::MAX };
}

impl Spans {
    const FEW: usize = 4;

    fn new(len: usize) -> Self {
        if len > Self::FEW {
            return Spans::Many(vec![Span::UNSET; len].into());
        }
        Spans::Few([Span::UNSET; Self::FEW])
    }

    fn as_slice(&self) -> &[Span] {
        match self {
            Spans::Few(spans) => spans,
            Spans::Many(spans) => spans,
        }
    }

    /// Captures without a name are dropped here or, when they fit, never shown.
    fn set(&mut self, capture: usize, start: usize, end: usize) {
        let spans = match self {
            Spans::Few(spans) => &mut spans[..],
            Spans::Many(spans) => spans,
        };
        if let Some(span) = spans.get_mut(capture) {
            *span = Span { start: start as u32, end: end as u32 };
        }
    }
}

impl Default for Spans {
    fn default() -> Self {
        Spans::new(0)
    }
}

/// Matches items that end where the path does, each with a `/` before it, and returns where the first of these is.
fn match_back(segments: &[Segment], text: &[u8], path: &[u8], spans: &mut Spans) -> Option<usize> {
    let mut rest = path;
    for segment in segments.iter().rev() {
        match segment {
            Segment::Text { start, end } => {
                rest = rest.strip_suffix(&text[*start as usize..*end as usize])?
            }
            Segment::Param { capture } => {
                let start = rest.iter().rposition(|b| *b == b'/').map_or(0, |slash| slash + 1);
                if start == rest.len() {
                    return None;
                }
                spans.set(*capture, start, rest.len());
                rest = &rest[..start];
            }
        }
        rest = rest.strip_suffix(b"/")?;
    }
    Some(rest.len())
}

fn matches_regex(regex: &Regex, path: &[u8], spans: &mut Spans) -> bool {
    let Some(captures) = regex.captures(path) else { return false };
    let groups: Vec<_> = captures.iter().collect();
    if groups[0].is_none_or(|whole| whole.range() != (0..path.len())) {
        return false;
    }
    for (i, group) in groups[1..].iter().enumerate() {
        if let Some(group) = group {
            spans.set(i, group.start(), group.end());
        }
    }
    true
}

/// Where the `*` is in a pattern like `/a/*` or `/a/*name`, of which the tree compares all that stands before it
/// in every mode.
fn rest_start(text: &str) -> Option<usize> {
    let start = text.find('*')?;
    let begins_item = start == 0 || text.as_bytes()[start - 1] == b'/';
    let plain = begins_item && !text[start..].contains('/') && !text.contains(':');
    let same_as_regex = text[..start].split('/').all(|item| is_literal(item, text));
    (plain && same_as_regex).then_some(start)
}

/// The items between the slashes, without empty ones at the end but one when the pattern ends with a slash.
/// APISIX: `ngx.re.split` drops them, `fetch_pat` puts one back.
fn items(text: &str) -> Vec<&str> {
    let mut items: Vec<&str> = text.split('/').collect();
    while items.last().is_some_and(|item| item.is_empty()) {
        items.pop();
    }
    if text.ends_with('/') {
        items.push(&text[text.len()..]);
    }
    items
}

/// The name an item gives to its value; None for text.
fn name(item: &str) -> Option<&str> {
    if let Some(name) = item.strip_prefix(':') {
        return Some(name);
    }
    let name = item.strip_prefix('*')?;
    Some(if name.is_empty() { ":ext" } else { name })
}

/// How many items the tree has compared in every mode: those before the first parameter, when no sigil hides in them.
fn compared_items(text: &str, items: &[&str]) -> usize {
    let first = items.iter().position(|item| name(item).is_some()).unwrap_or(items.len());
    let hidden = items[..first].iter().any(|item| item.contains([':', '*']));
    let start = items.get(first).map_or(text.len(), |item| offset(text, item));
    if hidden || start == text.len() { 0 } else { first }
}

/// Where an item, which is a piece of the pattern, begins in it.
fn offset(text: &str, item: &str) -> usize {
    item.as_ptr() as usize - text.as_ptr() as usize
}

/// True when an item means itself as a regular expression. A dot does so in the beginning that the tree has
/// already compared byte for byte.
fn is_literal(item: &str, pattern: &str) -> bool {
    let compared = pattern.find([':', '*']).unwrap_or(pattern.len());
    let dot_is_literal = offset(pattern, item) + item.len() <= compared;
    item.bytes().enumerate().all(|(i, b)| match b {
        b'.' => dot_is_literal,
        b'\\' | b'^' | b'$' | b'[' | b'|' | b'(' | b')' | b'?' | b'*' | b'+' => false,
        b'{' => !is_quantifier(&item[i..]),
        _ => true,
    })
}

/// True for `{2}`, `{2,}` and `{2,3}` at the beginning; every other brace is literal in PCRE.
fn is_quantifier(text: &str) -> bool {
    let Some((inner, _)) = text.strip_prefix('{').and_then(|rest| rest.split_once('}')) else { return false };
    let (low, high) = inner.split_once(',').unwrap_or((inner, ""));
    let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    !low.is_empty() && digits(low) && digits(high)
}

/// The pattern `fetch_pat` makes, in the syntax of `regex`.
/// Differs from APISIX: look-around, back references and possessive quantifiers in a `uri` match nothing.
fn regex_source(items: &[&str]) -> String {
    let parts: Vec<String> = items.iter().map(|item| regex_item(item)).collect();
    // APISIX compiles without the UTF flag: `.` is one byte.
    format!("(?-u){}", parts.join("/"))
}

fn regex_item(item: &str) -> String {
    if item.starts_with(':') {
        return "([^/]+)".to_owned();
    }
    if item.starts_with('*') {
        return r"((.|\n)*)".to_owned();
    }
    let mut source = String::with_capacity(item.len());
    for (i, c) in item.char_indices() {
        // Braces that PCRE takes literally are errors in `regex`.
        if c == '{' && !is_quantifier(&item[i..]) && !item[..i].ends_with('\\') {
            source.push('\\');
        }
        source.push(c);
    }
    source
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn values(pattern: &PathPattern, path: &[u8]) -> Option<Vec<(String, String)>> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let params = pattern.matches(path)?;
        Some(params.iter(path).map(|(name, value)| (name.to_owned(), text(value))).collect())
    }

    #[track_caller]
    fn check(pattern: &str, path: &str, expected: Option<&[(&str, &str)]>) {
        let expected: Option<Vec<_>> =
            expected.map(|pairs| pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect());
        assert_eq!(values(&PathPattern::new(pattern), path.as_bytes()), expected, "{pattern} on {path}");
    }

    #[test]
    fn values_of_parameters() {
        check("/name/*name", "/name/json", Some(&[("name", "json")]));
        check("/name/*name", "/name/", Some(&[("name", "")]));
        check("/name/*", "/name/json/foo/bar", Some(&[(":ext", "json/foo/bar")]));
        check("/name/:name/id/:id", "/name/json/id/1", Some(&[("name", "json"), ("id", "1")]));
        check("/name/:name/id/:id", "/name/json/id/", None);
        check("/name/:name/id/:id", "/name/json", None);
        check("/n/:n/id/:id/*o", "/n/j/id/1/foo/bar", Some(&[("n", "j"), ("id", "1"), ("o", "foo/bar")]));
        check("/:name/foo", "/json/", None);
        check("/:name/foo", "/json/foo", Some(&[("name", "json")]));
        check("/:name/foo", "/json/foo/bar", None);
        check("/:name/foo", "/json/foobar", None);
        check("/file/:f", "/file/123&45@dd:d=test;", Some(&[("f", "123&45@dd:d=test;")]));
        check("/file/:f", "/file/t!e*s't,(file)", Some(&[("f", "t!e*s't,(file)")]));
        check("/name/:name/", "/name/json/", Some(&[("name", "json")]));
        check("/name/:name/", "/name/json", None);
        check("/a/:x", "/a/\u{e4}\n", Some(&[("x", "\u{e4}\n")]));
    }

    #[test]
    fn patterns_without_parameters_ask_for_their_beginning_only() {
        check("/foo*", "/foobar", Some(&[]));
        check("/foo*bar", "/foo", Some(&[]));
        check("/x:y", "/xz", Some(&[]));
    }

    #[test]
    fn stars_in_the_middle() {
        check("/a/*/b", "/a/x/b/c/b", Some(&[(":ext", "x/b/c")]));
        check("/a/*/b", "/a/x/b/c", None);
        check("/a/*/b", "/a/b", None);
        check("/a/*/b", "/a//b", Some(&[(":ext", "")]));
        check("/*x/a/*y", "/1/a/2/a/3", Some(&[("x", "1/a/2"), ("y", "2")]));
        check("/*x/*y", "/1/2/3", Some(&[("x", "1/2"), ("y", "2")]));
    }

    #[test]
    fn the_name_after_a_star_gets_its_last_byte() {
        check("/*x/:id", "/abc/7", Some(&[("x", "abc"), ("id", "c")]));
        check("/*x/:id", "//7", Some(&[("x", "")]));
        check("/*x/:id/:z", "/abc/7/8", Some(&[("x", "abc"), ("id", "c"), ("z", "7")]));
    }

    #[test]
    fn slashes_at_the_end_count_once() {
        check("/:x//", "/a/", Some(&[("x", "a")]));
        check("/:x//", "/a//", None);
    }

    #[test]
    fn regular_expression_syntax_is_one() {
        check("/v1.0/:x", "/v1.0/a", Some(&[("x", "a")]));
        check("/:x/a.b", "/1/a-b", Some(&[("x", "1")]));
        check("/:x/nodes/?", "/1/nodes", Some(&[("x", "1")]));
        check("/:x/nodes/?", "/1/nodes/", Some(&[("x", "1")]));
        check("/:x/(a|b)", "/1/b", Some(&[("x", "1")]));
        check("/:x/(a", "/1/(a", None);
        check("/{id}/:x", "/{id}/1", Some(&[("x", "1")]));
        check("/:x/{id}.json", "/1/{id}.json", Some(&[("x", "1")]));
        check("/:x/a{2}", "/1/aa", Some(&[("x", "1")]));
        check("/:x/a{2}", "/1/a{2}", None);
    }

    #[test]
    fn more_than_four_parameters() {
        let expected = [("a", "1"), ("b", "2"), ("c", "3"), ("d", "4"), ("e", "5")];
        check("/:a/:b/:c/:d/:e", "/1/2/3/4/5", Some(&expected));
    }

    #[test]
    fn the_last_of_two_values_counts() {
        let (pattern, path) = (PathPattern::new("/:a/:a"), b"/1/2");
        let params = pattern.matches(path).expect("two segments");
        assert_eq!(params.get("a", path), Some(&b"2"[..]));
        assert_eq!(params.get("b", path), None);
    }

    fn by_regex(text: &str, path: &[u8]) -> Option<Vec<(String, String)>> {
        let names = items(text).into_iter().filter_map(name).map(Box::from).collect();
        let shape = Shape::Regex(Regex::new(&regex_source(&items(text))).expect("only literals and sigils"));
        let demand = Demand::Params(Box::new(ParamPattern { names, shape }));
        values(&PathPattern { text: text.into(), demand }, path)
    }

    proptest! {
        #[test]
        fn walking_segments_is_what_the_regex_does(
            items in proptest::collection::vec("(:x|:y|:|\\*|\\*z|a|b|ab||)", 1..7),
            path in "(/|a|b|c){0,12}",
        ) {
            let text = format!("/{}", items.join("/"));
            prop_assume!(super::items(&text).iter().any(|item| name(item).is_some()));
            let pattern = PathPattern::new(&text);
            if let Demand::Params(params) = &pattern.demand {
                prop_assert!(matches!(params.shape, Shape::Segments(_)));
            }
            // a path that begins as the tree has seen to
            let (Key::Prefix(beginning) | Key::Exact(beginning)) = pattern.key(Mode::UriWithParameter);
            let path = [beginning, path.as_bytes()].concat();
            prop_assert_eq!(values(&pattern, &path), by_regex(&text, &path), "{}", text);
        }

        #[test]
        fn no_pattern_panics(text in "[/:*a{}().\\\\,0-9\u{e4}]{1,12}", path in "[/a.0\u{e4}]{0,12}") {
            PathPattern::new(&text).matches(path.as_bytes());
        }
    }
}
