//! What lua-cjson says of a text that is no JSON: clients see these sentences.
//!
//! Only the first mistake is looked for, and only after the real parser refused the text. Invariant: never
//! panics, never recurses deeper than [`DEPTH`].

/// Deepest nesting that cjson reads.
const DEPTH: usize = 1000;

/// Why cjson does not read a text; `None` if it would.
pub fn mistake(text: &[u8]) -> Option<String> {
    let mut scanner = Scanner { text, at: 0 };
    let first = scanner.next();
    let ended = scanner.value(first, 0).and_then(|()| match scanner.next() {
        Token { kind: Kind::End, .. } => Ok(()),
        other => Err(expected("the end", other)),
    });
    ended.err()
}

struct Scanner<'t> {
    text: &'t [u8],
    at: usize,
}

#[derive(Clone, Copy)]
struct Token {
    kind: Kind,
    at: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    ObjectBegin,
    ObjectEnd,
    ArrayBegin,
    ArrayEnd,
    Text,
    Number,
    Boolean,
    Null,
    Colon,
    Comma,
    End,
    Error(&'static str),
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::ObjectBegin => "T_OBJ_BEGIN",
            Kind::ObjectEnd => "T_OBJ_END",
            Kind::ArrayBegin => "T_ARR_BEGIN",
            Kind::ArrayEnd => "T_ARR_END",
            Kind::Text => "T_STRING",
            Kind::Number => "T_NUMBER",
            Kind::Boolean => "T_BOOLEAN",
            Kind::Null => "T_NULL",
            Kind::Colon => "T_COLON",
            Kind::Comma => "T_COMMA",
            Kind::End => "T_END",
            Kind::Error(why) => why,
        }
    }
}

fn expected(what: &str, found: Token) -> String {
    format!("Expected {what} but found {} at character {}", found.kind.name(), found.at + 1)
}

impl Scanner<'_> {
    fn value(&mut self, token: Token, depth: usize) -> Result<(), String> {
        match token.kind {
            Kind::Text | Kind::Number | Kind::Boolean | Kind::Null => Ok(()),
            Kind::ObjectBegin | Kind::ArrayBegin if depth >= DEPTH => {
                Err(format!("Found too many nested data structures ({}) at character {}", depth + 1, self.at))
            }
            Kind::ObjectBegin => self.object(depth + 1),
            Kind::ArrayBegin => self.array(depth + 1),
            _ => Err(expected("value", token)),
        }
    }

    fn object(&mut self, depth: usize) -> Result<(), String> {
        let mut token = self.next();
        if token.kind == Kind::ObjectEnd {
            return Ok(());
        }
        loop {
            if token.kind != Kind::Text {
                return Err(expected("object key string", token));
            }
            let colon = self.next();
            if colon.kind != Kind::Colon {
                return Err(expected("colon", colon));
            }
            let first = self.next();
            self.value(first, depth)?;
            match self.next() {
                Token { kind: Kind::ObjectEnd, .. } => return Ok(()),
                Token { kind: Kind::Comma, .. } => token = self.next(),
                other => return Err(expected("comma or object end", other)),
            }
        }
    }

    fn array(&mut self, depth: usize) -> Result<(), String> {
        let mut token = self.next();
        if token.kind == Kind::ArrayEnd {
            return Ok(());
        }
        loop {
            self.value(token, depth)?;
            match self.next() {
                Token { kind: Kind::ArrayEnd, .. } => return Ok(()),
                Token { kind: Kind::Comma, .. } => token = self.next(),
                other => return Err(expected("comma or array end", other)),
            }
        }
    }

    fn next(&mut self) -> Token {
        while matches!(self.text.get(self.at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
        let at = self.at;
        let Some(byte) = self.text.get(at) else { return Token { kind: Kind::End, at } };
        let single = match byte {
            b'{' => Some(Kind::ObjectBegin),
            b'}' => Some(Kind::ObjectEnd),
            b'[' => Some(Kind::ArrayBegin),
            b']' => Some(Kind::ArrayEnd),
            b':' => Some(Kind::Colon),
            b',' => Some(Kind::Comma),
            _ => None,
        };
        if let Some(kind) = single {
            self.at += 1;
            return Token { kind, at };
        }
        match byte {
            b'"' => self.string(),
            b'-' | b'0'..=b'9' => self.number(),
            _ => self.word(),
        }
    }

    fn string(&mut self) -> Token {
        let at = self.at;
        self.at += 1;
        loop {
            match self.text.get(self.at) {
                None | Some(0) => {
                    return Token { kind: Kind::Error("unexpected end of string"), at: self.at };
                }
                Some(b'"') => break,
                Some(b'\\') => match self.escape() {
                    Ok(length) => self.at += length,
                    Err(why) => return Token { kind: Kind::Error(why), at: self.at },
                },
                Some(_) => self.at += 1,
            }
        }
        self.at += 1;
        Token { kind: Kind::Text, at }
    }

    /// The length of the escape at the cursor.
    fn escape(&self) -> Result<usize, &'static str> {
        let rest = &self.text[self.at + 1..];
        match rest.first() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Ok(2),
            Some(b'u') if rest.get(1..5).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit)) => Ok(6),
            Some(b'u') => Err("invalid unicode escape code"),
            _ => Err("invalid escape code"),
        }
    }

    fn number(&mut self) -> Token {
        let at = self.at;
        let rest = &self.text[at..];
        let signed = usize::from(rest[0] == b'-');
        if !rest.get(signed).is_some_and(u8::is_ascii_digit) {
            return Token { kind: Kind::Error("invalid number"), at };
        }
        let mut end = signed + digits(&rest[signed..]);
        if rest.get(end) == Some(&b'.') {
            end += 1 + digits(&rest[end + 1..]);
        }
        if matches!(rest.get(end), Some(b'e' | b'E')) {
            let sign = usize::from(matches!(rest.get(end + 1), Some(b'+' | b'-')));
            let exponent = digits(rest.get(end + 1 + sign..).unwrap_or_default());
            // Without digits the letter is no part of the number, as for C's strtod.
            end += if exponent == 0 { 0 } else { 1 + sign + exponent };
        }
        self.at += end;
        Token { kind: Kind::Number, at }
    }

    fn word(&mut self) -> Token {
        let at = self.at;
        for (word, kind) in [("true", Kind::Boolean), ("false", Kind::Boolean), ("null", Kind::Null)] {
            if self.text[at..].starts_with(word.as_bytes()) {
                self.at += word.len();
                return Token { kind, at };
            }
        }
        Token { kind: Kind::Error("invalid token"), at }
    }
}

fn digits(text: &[u8]) -> usize {
    text.iter().take_while(|byte| byte.is_ascii_digit()).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        assert_eq!(mistake(text.as_bytes()).unwrap_or_default(), expected, "{text}");
    }

    #[test]
    fn sentences() {
        check("x=1&y=2", "Expected value but found invalid token at character 1");
        check("{", "Expected object key string but found T_END at character 2");
        check("", "Expected value but found T_END at character 1");
        check("{\"a\"}", "Expected colon but found T_OBJ_END at character 5");
        check("{\"a\":1,}", "Expected object key string but found T_OBJ_END at character 8");
        check("{\"a\":1 2}", "Expected comma or object end but found T_NUMBER at character 8");
        check("[1,]", "Expected value but found T_ARR_END at character 4");
        check("[1 true]", "Expected comma or array end but found T_BOOLEAN at character 4");
        check("1 null", "Expected the end but found T_NULL at character 3");
        check("\"abc", "Expected value but found unexpected end of string at character 5");
        check("\"\\x\"", "Expected value but found invalid escape code at character 2");
        check("\"\\u12\"", "Expected value but found invalid unicode escape code at character 2");
        check("-", "Expected value but found invalid number at character 1");
        check("[{\"a\":[1.5e3,\"\\u0041\"]}]", "");
        let deep = mistake("[".repeat(2000).as_bytes()).unwrap();
        assert!(deep.starts_with("Found too many nested data structures (1001)"), "{deep}");
    }

    proptest! {
        #[test]
        fn agrees_with_the_parser_on_json(text in "[\\[\\]{}:, \"a1.\\-truenl]{0,16}") {
            if serde_json::from_str::<serde_json::Value>(&text).is_ok() {
                prop_assert_eq!(mistake(text.as_bytes()), None);
            }
        }

        #[test]
        fn never_panics(text in proptest::collection::vec(any::<u8>(), 0..32)) {
            let _ = mistake(&text);
        }
    }
}
