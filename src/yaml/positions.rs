//! On which line of a YAML text a path such as `apisix.node_listen[0].port` stands.
//!
//! `serde_yaml` tells positions of syntax errors only; messages about meaning need them too. This is a scanner, not
//! a parser: it follows indentation, sequences, flow brackets and quotes, and must never fail. Where it cannot
//! follow (complex keys, merged anchors) the nearest known parent answers.

use std::collections::HashMap;

/// Lines of the paths of one document.
#[derive(Debug, Default)]
pub struct Positions {
    lines: HashMap<String, usize>,
    repeat: Option<Repeat>,
}

/// A key written twice in the same mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repeat {
    /// The path of the key.
    pub path: String,
    /// Line of the first one.
    pub first: usize,
    /// Line of the second one.
    pub line: usize,
}

impl Positions {
    /// Scans a document.
    pub fn scan(text: &str) -> Self {
        let mut lines = Vec::new();
        let mut start = 0;
        for line in text.split('\n') {
            lines.push((start, line.strip_suffix('\r').unwrap_or(line)));
            start += line.len() + 1;
        }
        let mut scanner =
            Scanner { text, lines, next: 0, open: Vec::new(), found: Self::default(), spent: 0 };
        while scanner.next < scanner.lines.len() {
            scanner.step();
        }
        scanner.found
    }

    /// The line (counted from 1) of a path, or of its nearest parent that was found.
    pub fn line(&self, path: &str) -> Option<usize> {
        let mut path = path;
        loop {
            if let Some(line) = self.lines.get(path) {
                return Some(*line);
            }
            path = &path[..path.rfind(['.', '['])?];
        }
    }

    /// The first key that stands twice in its mapping.
    pub fn repeat(&self) -> Option<&Repeat> {
        self.repeat.as_ref()
    }

    fn record(&mut self, path: String, line: usize) {
        self.lines.entry(path).or_insert(line);
    }

    fn record_key(&mut self, path: String, line: usize) {
        let Some(first) = self.lines.get(&path).copied() else {
            self.lines.insert(path, line);
            return;
        };
        self.repeat.get_or_insert(Repeat { path, first, line });
    }
}

/// Where a level of nesting stands.
#[derive(Debug)]
enum Spot {
    Key(String),
    Item(usize),
}

#[derive(Debug)]
struct Level {
    indent: usize,
    spot: Spot,
}

/// Where a scan inside brackets is.
struct Flow {
    at: usize,
    line: usize,
    /// The scalar read last.
    token: String,
}

/// Bytes of paths kept at most: nesting and long keys can make them grow with the square of the text. What comes
/// after that has no line of its own.
const BUDGET: usize = 64 << 20;

/// Every level inside brackets has this indent: it is left by its bracket, never by indentation.
const FLOW: usize = usize::MAX;

struct Scanner<'a> {
    text: &'a str,
    /// Start offset and text of each line.
    lines: Vec<(usize, &'a str)>,
    next: usize,
    open: Vec<Level>,
    found: Positions,
    /// Bytes of paths written so far.
    spent: usize,
}

impl<'a> Scanner<'a> {
    /// The path of the innermost level; `None` when the budget is used up.
    fn path(&mut self) -> Option<String> {
        if self.spent > BUDGET {
            return None;
        }
        let mut path = String::new();
        for level in &self.open {
            match &level.spot {
                Spot::Item(index) => path.push_str(&format!("[{index}]")),
                Spot::Key(key) => {
                    if !path.is_empty() {
                        path.push('.');
                    }
                    path.push_str(key);
                }
            }
        }
        self.spent += path.len();
        Some(path)
    }

    fn record(&mut self, line: usize) {
        if let Some(path) = self.path() {
            self.found.record(path, line);
        }
    }

    fn record_key(&mut self, line: usize) {
        if let Some(path) = self.path() {
            self.found.record_key(path, line);
        }
    }

    /// Takes one line, and the lines its value goes on in.
    fn step(&mut self) {
        let (start, line) = self.lines[self.next];
        self.next += 1;
        let number = self.next;
        let mut rest = line.trim_start_matches(' ');
        if rest.starts_with(['#', '%']) || rest.trim().is_empty() || line.starts_with("---") || line == "..."
        {
            return;
        }
        loop {
            let column = line.len() - rest.len();
            if let Some(after) =
                rest.strip_prefix('-').filter(|after| after.is_empty() || after.starts_with(' '))
            {
                self.enter_item(column);
                self.record(number);
                rest = after.trim_start_matches(' ');
                if rest.is_empty() || rest.starts_with('#') {
                    return;
                }
                continue;
            }
            let Some((key, value)) = split_key(rest) else {
                let parent = self.open.last().map_or(0, |level| level.indent);
                self.skip_value(parent, rest, start + column, number);
                return;
            };
            self.enter_key(column, key);
            self.record_key(number);
            self.skip_value(column, value, start + line.len() - value.len(), number);
            return;
        }
    }

    fn leave_deeper(&mut self, column: usize) {
        while self.open.last().is_some_and(|level| level.indent > column) {
            self.open.pop();
        }
    }

    fn enter_item(&mut self, column: usize) {
        self.leave_deeper(column);
        if let Some(Level { indent, spot: Spot::Item(index) }) = self.open.last_mut()
            && *indent == column
        {
            *index += 1;
            return;
        }
        self.open.push(Level { indent: column, spot: Spot::Item(0) });
    }

    fn enter_key(&mut self, column: usize, key: String) {
        self.leave_deeper(column);
        // A list may stand at the indent of the key it belongs to; the next key of that indent ends it.
        while self
            .open
            .last()
            .is_some_and(|level| level.indent == column && matches!(level.spot, Spot::Item(_)))
        {
            self.open.pop();
        }
        if self.open.last().is_some_and(|level| level.indent == column) {
            self.open.pop();
        }
        self.open.push(Level { indent: column, spot: Spot::Key(key) });
    }

    /// Goes past a value that starts in this line; looks into brackets.
    fn skip_value(&mut self, parent: usize, value: &str, offset: usize, number: usize) {
        let bare = skip_properties(value);
        let offset = offset + value.len() - bare.len();
        match bare.as_bytes().first() {
            Some(b'|' | b'>') => self.skip_block(parent),
            Some(quote @ (b'"' | b'\'')) => {
                let end = quoted_end(self.text.as_bytes(), offset + 1, *quote);
                self.go_past(end);
            }
            Some(b'{' | b'[') => {
                let end = self.flow(offset, number);
                self.go_past(end);
            }
            _ => {}
        }
    }

    fn skip_block(&mut self, parent: usize) {
        while let Some((_, line)) = self.lines.get(self.next) {
            let indent = line.len() - line.trim_start_matches(' ').len();
            if !line.trim().is_empty() && indent <= parent {
                return;
            }
            self.next += 1;
        }
    }

    /// Continues with the line after the one that holds this offset.
    fn go_past(&mut self, offset: usize) {
        while self.lines.get(self.next).is_some_and(|(start, _)| *start <= offset) {
            self.next += 1;
        }
    }

    /// Scans a bracketed value, records its keys and items, gives the offset of its closing bracket.
    fn flow(&mut self, from: usize, number: usize) -> usize {
        let bytes = self.text.as_bytes();
        let base = self.open.len();
        let mut flow = Flow { at: from, line: number, token: String::new() };
        while let Some(byte) = bytes.get(flow.at) {
            match byte {
                b'\n' => flow.line += 1,
                b'#' if flow.at > 0 && bytes[flow.at - 1].is_ascii_whitespace() => {
                    flow.at = find(bytes, flow.at, b'\n');
                    continue;
                }
                b'[' => self.flow_open(&mut flow, Spot::Item(0)),
                b'{' => self.flow_open(&mut flow, Spot::Key(String::new())),
                b']' | b'}' => {
                    self.open.pop();
                    flow.token.clear();
                    if self.open.len() <= base {
                        return flow.at;
                    }
                }
                b',' => self.flow_next(&mut flow),
                b':' if !flow.token.is_empty() && is_key_end(bytes.get(flow.at + 1)) => {
                    self.flow_key(&mut flow)
                }
                b'"' | b'\'' if flow.token.is_empty() => self.flow_quoted(&mut flow, *byte),
                b' ' | b'\t' | b'\r' if flow.token.is_empty() => {}
                _ => self.flow_letter(&mut flow),
            }
            flow.at += 1;
        }
        self.open.truncate(base);
        flow.at
    }

    fn flow_open(&mut self, flow: &mut Flow, spot: Spot) {
        self.record_item(flow.line);
        self.open.push(Level { indent: FLOW, spot });
        flow.token.clear();
    }

    fn flow_next(&mut self, flow: &mut Flow) {
        if let Some(Level { spot: Spot::Item(index), .. }) = self.open.last_mut() {
            *index += 1;
        }
        flow.token.clear();
    }

    fn flow_key(&mut self, flow: &mut Flow) {
        let key = std::mem::take(&mut flow.token);
        let Some(Level { spot: Spot::Key(name), .. }) = self.open.last_mut() else { return };
        key.trim_end().clone_into(name);
        self.record_key(flow.line);
    }

    /// Leaves the place at the closing quote.
    fn flow_quoted(&mut self, flow: &mut Flow, quote: u8) {
        self.record_item(flow.line);
        let bytes = self.text.as_bytes();
        let end = quoted_end(bytes, flow.at + 1, quote);
        flow.token = unquote(&self.text[flow.at + 1..end]);
        flow.line += bytes[flow.at..end].iter().filter(|byte| **byte == b'\n').count();
        flow.at = end;
    }

    /// Leaves the place at the last byte of the letter.
    fn flow_letter(&mut self, flow: &mut Flow) {
        if flow.token.is_empty() {
            self.record_item(flow.line);
        }
        let letter = self.text[flow.at..].chars().next().unwrap_or_default();
        flow.token.push(letter);
        flow.at += letter.len_utf8() - 1;
    }

    fn record_item(&mut self, line: usize) {
        if let Some(Level { spot: Spot::Item(_), .. }) = self.open.last() {
            self.record(line);
        }
    }
}

fn is_key_end(next: Option<&u8>) -> bool {
    next.is_none_or(|byte| {
        matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | b',' | b']' | b'}' | b'"' | b'\'' | b'[' | b'{')
    })
}

fn find(bytes: &[u8], from: usize, wanted: u8) -> usize {
    bytes[from..].iter().position(|byte| *byte == wanted).map_or(bytes.len(), |at| from + at)
}

/// The offset of the closing quote, or the end of the text.
fn quoted_end(bytes: &[u8], from: usize, quote: u8) -> usize {
    let mut at = from;
    while at < bytes.len() {
        let escape = quote == b'"' && bytes[at] == b'\\';
        let doubled = quote == b'\'' && bytes[at] == quote && bytes.get(at + 1) == Some(&quote);
        if escape || doubled {
            at += 2;
        } else if bytes[at] == quote {
            return at;
        } else {
            at += 1;
        }
    }
    bytes.len()
}

fn unquote(inner: &str) -> String {
    inner.replace("\\\"", "\"").replace("''", "'").replace("\\\\", "\\")
}

/// Leaves out anchors and tags before a value.
fn skip_properties(value: &str) -> &str {
    let mut rest = value.trim_start();
    while rest.starts_with(['&', '!']) {
        rest = rest.split_once(char::is_whitespace).map_or("", |(_, after)| after.trim_start());
    }
    rest
}

/// Splits `key: value`; both are parts of the line, the value reaches to its end.
fn split_key(rest: &str) -> Option<(String, &str)> {
    let quote = rest.as_bytes().first().copied().filter(|byte| matches!(byte, b'"' | b'\''));
    if let Some(quote) = quote {
        let end = quoted_end(rest.as_bytes(), 1, quote);
        let after = rest.get(end + 1..)?.trim_start();
        let value =
            after.strip_prefix(':').filter(|value| value.is_empty() || value.starts_with([' ', '\t']))?;
        return Some((unquote(&rest[1..end]), value));
    }
    if rest.starts_with(['{', '[', '#', '|', '>', '?']) {
        return None;
    }
    let bytes = rest.as_bytes();
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'#' if at > 0 && bytes[at - 1] == b' ' => return None,
            b':' if at > 0 && bytes.get(at + 1).is_none_or(|next| matches!(next, b' ' | b'\t')) => {
                return Some((rest[..at].trim_end().to_owned(), &rest[at + 1..]));
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    const TEXT: &str = r#"# head
apisix:
  node_listen:          # ports
    - 9080
    - ip: 127.0.0.1
      port: 9081
  "quoted key": {a: 1, b: [x, {c: "}"}],
     d: 2}
  snippet: |
    not: a key
      - nor: this

    nor: this
  after: 'two
    lines: here'
plugins:
- a
-   b: 1
    c:
    - d
- e # x: y
nodes:
  127.0.0.1:1980: 1
  "[::1]:80": 2
url: http://x:80/ # c: d
last: &anchor !tag
  deep: é: [
"#;

    #[track_caller]
    fn check(path: &str, line: usize) {
        assert_eq!(Positions::scan(TEXT).line(path), Some(line), "{path}");
    }

    #[test]
    fn lines_of_paths() {
        check("apisix", 2);
        check("apisix.node_listen", 3);
        check("apisix.node_listen[0]", 4);
        check("apisix.node_listen[1].ip", 5);
        check("apisix.node_listen[1].port", 6);
        check("apisix.quoted key.b[1].c", 7);
        check("apisix.quoted key.d", 8);
        check("apisix.snippet", 9);
        check("apisix.after", 14);
        check("plugins[0]", 17);
        check("plugins[1].b", 18);
        check("plugins[1].c[0]", 20);
        check("plugins[2]", 21);
        check("nodes.127.0.0.1:1980", 23);
        check("nodes.[::1]:80", 24);
        check("url", 25);
        check("last.deep", 27);
    }

    #[test]
    fn parents_answer_for_what_is_not_written() {
        check("apisix.node_listen[7].port", 3);
        check("apisix.ssl.enable", 2);
        assert_eq!(Positions::scan(TEXT).line("nothing.here"), None);
        assert_eq!(Positions::scan(TEXT).line("lines"), None);
    }

    #[test]
    fn repeats() {
        let found = Positions::scan("a:\n  b: 1\nc: {d: 1,\n d: 2}\n");
        assert_eq!(found.repeat(), Some(&Repeat { path: "c.d".to_owned(), first: 3, line: 4 }));
        assert_eq!(Positions::scan("- a: 1\n- a: 2\n").repeat(), None);
    }

    /// Writes a value in block style, one scalar a line, and notes the line of each path.
    fn write(
        value: &Value,
        indent: usize,
        path: &str,
        out: &mut Vec<String>,
        paths: &mut Vec<(String, usize)>,
    ) {
        let pad = " ".repeat(indent);
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    out.push(format!("{pad}{key}:"));
                    paths.push((path.clone(), out.len()));
                    write(value, indent + 2, &path, out, paths);
                }
            }
            Value::Array(items) => {
                for (index, value) in items.iter().enumerate() {
                    out.push(format!("{pad}-"));
                    let path = format!("{path}[{index}]");
                    paths.push((path.clone(), out.len()));
                    write(value, indent + 2, &path, out, paths);
                }
            }
            other => {
                let last = out.last_mut().expect("a scalar follows its key");
                last.push_str(&format!(" {other}"));
            }
        }
    }

    fn trees() -> impl proptest::strategy::Strategy<Value = Value> {
        use proptest::prelude::*;
        let leaf = any::<i32>().prop_map(Value::from);
        let tree = leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 1..4).prop_map(Value::Array),
                proptest::collection::btree_map("[a-z]{1,3}", inner, 1..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        });
        proptest::collection::btree_map("[a-z]{1,3}", tree, 1..4)
            .prop_map(|map| Value::Object(map.into_iter().collect()))
    }

    #[test]
    fn a_hostile_text_costs_no_more_than_the_budget() {
        let key = "k".repeat(1 << 20);
        for text in [
            format!("first: 1\n{key}:\n{}", "- 1\n".repeat(1 << 16)),
            format!("first: 1\nb: {}", "[".repeat(1 << 16)),
            format!("first: 1\n{}", "- ".repeat(1 << 16)),
        ] {
            let found = Positions::scan(&text);
            let kept: usize = found.lines.keys().map(String::len).sum();
            assert!(kept <= BUDGET + (2 << 20), "{kept}");
            assert_eq!(found.line("first"), Some(1));
        }
    }

    proptest::proptest! {
        #[test]
        fn finds_every_path_of_block_style(tree in trees()) {
            let (mut out, mut paths) = (Vec::new(), Vec::new());
            write(&tree, 0, "", &mut out, &mut paths);
            let found = Positions::scan(&out.join("\n"));
            for (path, line) in paths {
                proptest::prop_assert_eq!(found.line(&path), Some(line), "{} in\n{}", path, out.join("\n"));
            }
        }

        #[test]
        fn finds_every_key_of_flow_style(tree in trees()) {
            let found = Positions::scan(&serde_json::to_string_pretty(&tree).unwrap());
            let text = serde_json::to_string_pretty(&tree).unwrap();
            for key in tree.as_object().unwrap().keys() {
                let wanted = text.lines().position(|line| line.starts_with(&format!("  \"{key}\":"))).unwrap() + 1;
                proptest::prop_assert_eq!(found.line(key), Some(wanted));
            }
        }

        #[test]
        fn never_panics(text in "[-a: \n\\[\\]{}\"'|>&*!#é\\\\,.\r\t]{0,80}") {
            let _ = Positions::scan(&text).line("a.a[0]");
        }
    }
}
