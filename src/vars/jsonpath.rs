//! JSONPath over a request body, for `post_arg.a[*].b`: the grammar of the lua-jsonpath library.
//!
//! Names, indices, wildcards, unions, slices and descendants, and filters that compare a member with a
//! literal. Queries collect every match; nothing here fails at request time.

use serde_json::Value;

use crate::vars::lua::Value as LuaValue;

/// A parsed path, without its leading `$`.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonPath {
    steps: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq)]
struct Step {
    /// Looks at the node and everything below it, not only at the node.
    descend: bool,
    select: Select,
}

#[derive(Clone, Debug, PartialEq)]
enum Select {
    All,
    Name(Box<str>),
    Union(Vec<Member>),
    Filter(Vec<Vec<Condition>>),
}

#[derive(Clone, Debug, PartialEq)]
enum Member {
    Name(Box<str>),
    Index(i64),
    Slice { from: i64, to: Option<i64>, step: i64 },
}

/// `@.a.b`, or `@.a.b OP literal`. Filters are disjunctions of conjunctions of these.
#[derive(Clone, Debug, PartialEq)]
struct Condition {
    path: Vec<Box<str>>,
    test: Option<(Operator, Value)>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Operator {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

impl JsonPath {
    /// Parses a path that begins with `$`.
    ///
    /// # Errors
    /// The library's words: `invalid expression "…" near "…"`.
    /// Differs from APISIX: arithmetic and scripts (`[(@.length-1)]`) are refused.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parser = Parser { rest: text.trim_start_matches(BLANK) };
        let Some(rest) = parser.rest.strip_prefix('$') else {
            return Err(format!("invalid expression \"{text}\""));
        };
        parser.rest = rest;
        let mut steps = Vec::new();
        while let Some(step) = parser.attempt(Parser::step) {
            steps.push(step);
        }
        parser.blank();
        if parser.rest.is_empty() {
            Ok(Self { steps })
        } else {
            Err(format!("invalid expression \"{text}\" near \"{}\"", parser.rest))
        }
    }

    /// Every part of the document that the path leads to, in document order.
    #[must_use]
    pub fn query<'v>(&self, root: &'v Value) -> Vec<&'v Value> {
        let mut nodes = vec![root];
        for step in &self.steps {
            let mut next = Vec::new();
            for node in nodes {
                step.collect(node, &mut next);
            }
            nodes = next;
        }
        nodes
    }
}

impl Step {
    fn collect<'v>(&self, node: &'v Value, out: &mut Vec<&'v Value>) {
        for_each_child(node, |key, child| {
            if self.select.takes(node, key, child) {
                out.push(child);
            }
            if self.descend {
                self.collect(child, out);
            }
        });
    }
}

/// A child's place in its parent.
#[derive(Clone, Copy)]
enum Key<'k> {
    Name(&'k str),
    Index(usize),
}

fn for_each_child<'v>(node: &'v Value, mut visit: impl FnMut(Key<'v>, &'v Value)) {
    match node {
        Value::Array(items) => items.iter().enumerate().for_each(|(i, v)| visit(Key::Index(i), v)),
        Value::Object(map) => map.iter().for_each(|(k, v)| visit(Key::Name(k), v)),
        _ => {}
    }
}

impl Key<'_> {
    fn is_name(self, name: &str) -> bool {
        match self {
            Self::Name(own) => own == name,
            // The library compares keys as text, so `.0` is the first element.
            Self::Index(own) => name.parse() == Ok(own),
        }
    }

    fn is_index(self, wanted: i64) -> bool {
        match self {
            Self::Name(own) => own.parse() == Ok(wanted),
            Self::Index(own) => i64::try_from(own) == Ok(wanted),
        }
    }
}

impl Select {
    fn takes(&self, parent: &Value, key: Key<'_>, child: &Value) -> bool {
        match self {
            Self::All => true,
            Self::Name(name) => key.is_name(name),
            Self::Union(members) => members.iter().any(|m| m.takes(parent, key)),
            Self::Filter(any) => any.iter().any(|all| all.iter().all(|c| c.holds(child))),
        }
    }
}

impl Member {
    fn takes(&self, parent: &Value, key: Key<'_>) -> bool {
        match self {
            Self::Name(name) => key.is_name(name),
            Self::Index(index) => key.is_index(*index),
            Self::Slice { from, to, step } => {
                let Key::Index(own) = key else { return false };
                let (Ok(own), Ok(len)) = (i64::try_from(own), i64::try_from(length(parent))) else {
                    return false;
                };
                let from = if *from < 0 { len.saturating_add(*from) } else { *from };
                let to = match to {
                    Some(to) if *to < 0 => len.saturating_add(*to),
                    Some(to) => *to,
                    None => len,
                };
                own >= from && own < to && own.saturating_sub(from) % step == 0
            }
        }
    }
}

impl Condition {
    fn holds(&self, node: &Value) -> bool {
        let mut at = node;
        for name in &self.path {
            match at.get(&**name) {
                Some(child) => at = child,
                None => return false,
            }
        }
        match &self.test {
            None => !matches!(at, Value::Bool(false)),
            Some((operator, literal)) => operator.compare(at, literal),
        }
    }
}

impl Operator {
    /// The library turns the literal into the type of the member before it compares.
    fn compare(self, member: &Value, literal: &Value) -> bool {
        let ordering = match member {
            Value::Number(n) => {
                let right = LuaValue::from_json(literal).to_number();
                n.as_f64().zip(right).and_then(|(l, r)| l.partial_cmp(&r))
            }
            Value::String(text) => {
                Some(text.as_bytes().cmp(LuaValue::from_json(literal).into_text().as_bytes()))
            }
            Value::Bool(b) => Some(b.cmp(&!matches!(literal, Value::Bool(false)))),
            _ => None,
        };
        let Some(ordering) = ordering else { return self == Self::NotEqual };
        match self {
            Self::Equal => ordering.is_eq(),
            Self::NotEqual => ordering.is_ne(),
            Self::Less => ordering.is_lt(),
            Self::LessEqual => ordering.is_le(),
            Self::Greater => ordering.is_gt(),
            Self::GreaterEqual => ordering.is_ge(),
        }
    }
}

fn length(node: &Value) -> usize {
    match node {
        Value::Array(items) => items.len(),
        Value::Object(map) => map.len(),
        _ => 0,
    }
}

const BLANK: [char; 3] = [' ', '\t', '\n'];

/// A recursive-descent reader; every method consumes what it accepts.
struct Parser<'t> {
    rest: &'t str,
}

impl<'t> Parser<'t> {
    /// Runs a rule and takes back what it consumed when it fails.
    fn attempt<T>(&mut self, rule: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        let before = self.rest;
        let result = rule(self);
        if result.is_none() {
            self.rest = before;
        }
        result
    }

    fn blank(&mut self) {
        self.rest = self.rest.trim_start_matches(BLANK);
    }

    fn eat(&mut self, token: &str) -> Option<()> {
        self.rest = self.rest.strip_prefix(token)?;
        Some(())
    }

    fn take_while(&mut self, accept: impl Fn(char) -> bool) -> Option<&'t str> {
        let end = self.rest.find(|c| !accept(c)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(end);
        self.rest = rest;
        (!taken.is_empty()).then_some(taken)
    }

    fn step(&mut self) -> Option<Step> {
        let descend = self.eat("..").is_some();
        if descend || self.eat(".").is_some() {
            if let Some(select) = self.attempt(Self::child_name) {
                return Some(Step { descend, select });
            }
            if !descend {
                return None;
            }
        }
        Some(Step { descend, select: self.subscript()? })
    }

    fn child_name(&mut self) -> Option<Select> {
        if let Some(index) = self.attempt(Self::index) {
            return Some(Select::Union(vec![Member::Index(index)]));
        }
        if self.eat("*").is_some() {
            return Some(Select::All);
        }
        Some(Select::Name(self.name()?.into()))
    }

    fn name(&mut self) -> Option<&'t str> {
        if !self.rest.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
            return None;
        }
        let name = self.take_while(|c| c.is_ascii_alphanumeric() || c == '_')?;
        self.blank();
        Some(name)
    }

    fn index(&mut self) -> Option<i64> {
        let negative = self.eat("-").is_some();
        if !negative {
            let _ = self.eat("+");
        }
        let digits: i64 = self.take_while(|c| c.is_ascii_digit())?.parse().ok()?;
        self.blank();
        Some(if negative { -digits } else { digits })
    }

    fn subscript(&mut self) -> Option<Select> {
        self.eat("[")?;
        let select = if self.eat("*").is_some() {
            Select::All
        } else if self.eat("?(").is_some() {
            self.blank();
            let filter = self.filter()?;
            self.eat(")")?;
            Select::Filter(filter)
        } else {
            let mut members = vec![self.member()?];
            while self.eat(",").is_some() {
                self.blank();
                members.push(self.member()?);
            }
            Select::Union(members)
        };
        self.eat("]")?;
        Some(select)
    }

    fn member(&mut self) -> Option<Member> {
        if let Some(slice) = self.attempt(Self::slice) {
            return Some(slice);
        }
        if let Some(text) = self.attempt(Self::string) {
            return Some(Member::Name(text.into()));
        }
        self.index().map(Member::Index)
    }

    fn slice(&mut self) -> Option<Member> {
        let from = self.attempt(Self::index).unwrap_or(0);
        self.eat(":")?;
        self.blank();
        let to = self.attempt(Self::index);
        let step = self
            .attempt(|p| {
                p.eat(":")?;
                p.blank();
                p.index()
            })
            .unwrap_or(1);
        (step > 0).then_some(Member::Slice { from, to, step })
    }

    fn string(&mut self) -> Option<String> {
        let quote = self.rest.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
        let mut text = String::new();
        let mut chars = self.rest.char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            if c == quote {
                self.rest = &self.rest[at + 1..];
                self.blank();
                return Some(text);
            }
            // Only the quote itself loses its backslash.
            if c == '\\' {
                let (_, escaped) = chars.next()?;
                if escaped != quote {
                    text.push('\\');
                }
                text.push(escaped);
            } else {
                text.push(c);
            }
        }
        None
    }

    fn filter(&mut self) -> Option<Vec<Vec<Condition>>> {
        let mut any = vec![vec![self.condition()?]];
        loop {
            if self.word(&["&&", "and"]).is_some() {
                let condition = self.condition()?;
                any.last_mut()?.push(condition);
            } else if self.word(&["||", "or"]).is_some() {
                any.push(vec![self.condition()?]);
            } else {
                return Some(any);
            }
        }
    }

    fn word(&mut self, words: &[&str]) -> Option<()> {
        let found = words
            .iter()
            .find(|w| self.rest.get(..w.len()).is_some_and(|start| start.eq_ignore_ascii_case(w)))?;
        self.rest = &self.rest[found.len()..];
        self.blank();
        Some(())
    }

    fn condition(&mut self) -> Option<Condition> {
        self.eat("@")?;
        let mut path = Vec::new();
        loop {
            if self.eat(".").is_some() {
                path.push(self.name()?.into());
            } else if path.is_empty() && self.eat("[").is_some() {
                self.blank();
                path.push(self.string()?.into());
                self.eat("]")?;
            } else {
                break;
            }
        }
        self.blank();
        if path.is_empty() {
            return None;
        }
        let test = match self.operator() {
            Some(operator) => Some((operator, self.literal()?)),
            None => None,
        };
        Some(Condition { path, test })
    }

    fn operator(&mut self) -> Option<Operator> {
        const OPERATORS: [(&str, Operator); 8] = [
            ("<=", Operator::LessEqual),
            (">=", Operator::GreaterEqual),
            ("<>", Operator::NotEqual),
            ("!=", Operator::NotEqual),
            ("==", Operator::Equal),
            ("=", Operator::Equal),
            ("<", Operator::Less),
            (">", Operator::Greater),
        ];
        let (token, operator) = OPERATORS.iter().find(|(token, _)| self.rest.starts_with(token))?;
        self.eat(token)?;
        self.blank();
        Some(*operator)
    }

    fn literal(&mut self) -> Option<Value> {
        if let Some(text) = self.attempt(Self::string) {
            return Some(Value::String(text));
        }
        for (word, value) in [("true", true), ("false", false)] {
            if self.word(&[word]).is_some() {
                return Some(Value::Bool(value));
            }
        }
        let number = self.take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '+' | '-'))?;
        self.blank();
        let number = crate::vars::lua::text_to_number(number)?;
        serde_json::Number::from_f64(number).map(Value::Number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn document() -> Value {
        json!({
            "model": "m",
            "n": [10, 11, 12, 13],
            "messages": [
                {"role": "system", "content": [{"type": "text"}]},
                {"role": "user", "content": [{"type": "text"}, {"type": "image_url"}], "size": 3},
            ],
            "odd key": {"type": "deep"},
        })
    }

    #[track_caller]
    fn check(path: &str, expected: Value) {
        let document = document();
        let got: Vec<Value> = JsonPath::parse(path).unwrap().query(&document).into_iter().cloned().collect();
        assert_eq!(Value::Array(got), expected, "{path}");
    }

    #[test]
    fn queries() {
        check("$.model", json!(["m"]));
        check("$.missing", json!([]));
        check("$.messages[*].role", json!(["system", "user"]));
        check("$.messages[*].content[*].type", json!(["text", "text", "image_url"]));
        check("$.messages[1].content[0].type", json!(["text"]));
        check("$.messages.*.role", json!(["system", "user"]));
        check("$..type", json!(["text", "text", "image_url", "deep"]));
        check("$..content[0].type", json!(["text", "text"]));
        check("$['odd key'].type", json!(["deep"]));
        check("$[\"odd key\"]['type','x']", json!(["deep"]));
        check("$.n[0,2]", json!([10, 12]));
        check("$.n.1", json!([11]));
        check("$.n[1:3]", json!([11, 12]));
        check("$.n[::2]", json!([10, 12]));
        check("$.n[-1:]", json!([13]));
        check("$.messages[?(@.role == 'user')].size", json!([3]));
        check("$.messages[?(@.size)].role", json!(["user"]));
        check("$.messages[?(@.size > 2 && @.role=='user' || @.role == 'x')].role", json!(["user"]));
        check("$.messages[?(@.role != 'user')].role", json!(["system"]));
        check("$.n[?(@.x)]", json!([]));
    }

    #[test]
    fn refusals_say_where() {
        for (path, near) in [
            ("$.messages[.content[*].type", "[.content[*].type"),
            ("$.a-b", "-b"),
            ("$.", "."),
            ("$.a[", "["),
            ("$.a['x", "['x"),
            ("$.a[]", "[]"),
            ("$.ü", ".ü"),
        ] {
            let expected = format!("invalid expression \"{path}\" near \"{near}\"");
            assert_eq!(JsonPath::parse(path), Err(expected));
        }
        assert_eq!(JsonPath::parse(""), Err("invalid expression \"\"".to_owned()));
    }

    proptest! {
        #[test]
        fn never_panics(path in "\\$(\\PC|[.\\[\\]*?@()'a0:,-]){0,24}") {
            if let Ok(path) = JsonPath::parse(&path) {
                let _ = path.query(&document());
            }
        }

        #[test]
        fn dotted_names_are_member_access(names in proptest::collection::vec("[a-c_]{1,2}", 1..4)) {
            let value = names.iter().rev().fold(json!(7), |inner, name| json!({name.as_str(): inner}));
            let path = JsonPath::parse(&format!("$.{}", names.join("."))).unwrap();
            let seven = json!(7);
            prop_assert_eq!(path.query(&value), vec![&seven]);
        }
    }
}
