//! JSON as APISIX's parser (lua-cjson) reads it: the same words for what is wrong, and the same leniency towards line
//! ends and control characters inside of texts, on which shell scripts with certificates rely.
//!
//! Numbers without a fraction become integers, as after a trip through Lua.
//! Differs from APISIX: bytes that are not UTF-8, hexadecimal numbers, `inf` and `nan` are refused, and so is nesting
//! beyond [`MAX_DEPTH`], which the stores could not read back.

use serde_json::{Map, Number, Value};

use super::lua;

/// How deep lists and objects may be nested.
pub const MAX_DEPTH: usize = 100;

/// Reads a JSON document.
///
/// # Errors
/// What is wrong, in lua-cjson's words.
pub fn parse(body: &[u8]) -> Result<Value, String> {
    let text = std::str::from_utf8(body).map_err(|error| {
        format!("Expected UTF-8 text but found another byte at character {}", error.valid_up_to() + 1)
    })?;
    let mut reader = Reader { text, at: 0, depth: 0 };
    let first = reader.next()?;
    let mut value = reader.value(first)?;
    let last = reader.next()?;
    if last.what != What::End {
        return Err(expected("the end", &last));
    }
    lua::integers(&mut value);
    Ok(value)
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

struct Token {
    what: What,
    /// Offset in bytes.
    at: usize,
}

#[derive(PartialEq)]
enum What {
    ObjectBegin,
    ObjectEnd,
    ArrayBegin,
    ArrayEnd,
    Text(String),
    Number(Number),
    Boolean(bool),
    Null,
    Colon,
    Comma,
    End,
    Error(&'static str),
}

impl What {
    fn name(&self) -> &'static str {
        match self {
            What::ObjectBegin => "T_OBJ_BEGIN",
            What::ObjectEnd => "T_OBJ_END",
            What::ArrayBegin => "T_ARR_BEGIN",
            What::ArrayEnd => "T_ARR_END",
            What::Text(_) => "T_STRING",
            What::Number(_) => "T_NUMBER",
            What::Boolean(_) => "T_BOOLEAN",
            What::Null => "T_NULL",
            What::Colon => "T_COLON",
            What::Comma => "T_COMMA",
            What::End => "T_END",
            What::Error(what) => what,
        }
    }
}

fn expected(what: &str, found: &Token) -> String {
    format!("Expected {what} but found {} at character {}", found.what.name(), found.at + 1)
}

impl Reader<'_> {
    fn value(&mut self, token: Token) -> Result<Value, String> {
        Ok(match token.what {
            What::Text(text) => Value::String(text),
            What::Number(number) => Value::Number(number),
            What::Boolean(bool) => Value::Bool(bool),
            What::Null => Value::Null,
            What::ObjectBegin => self.deeper(Reader::object)?,
            What::ArrayBegin => self.deeper(Reader::array)?,
            _ => return Err(expected("value", &token)),
        })
    }

    fn deeper(&mut self, read: fn(&mut Self) -> Result<Value, String>) -> Result<Value, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!(
                "Found too many nested data structures ({}) at character {}",
                self.depth, self.at
            ));
        }
        let value = read(self);
        self.depth -= 1;
        value
    }

    fn object(&mut self) -> Result<Value, String> {
        let mut members = Map::new();
        let mut token = self.next()?;
        if token.what == What::ObjectEnd {
            return Ok(Value::Object(members));
        }
        loop {
            let What::Text(name) = token.what else { return Err(expected("object key string", &token)) };
            let colon = self.next()?;
            if colon.what != What::Colon {
                return Err(expected("colon", &colon));
            }
            let first = self.next()?;
            members.insert(name, self.value(first)?);
            token = self.next()?;
            match token.what {
                What::ObjectEnd => return Ok(Value::Object(members)),
                What::Comma => token = self.next()?,
                _ => return Err(expected("comma or object end", &token)),
            }
        }
    }

    fn array(&mut self) -> Result<Value, String> {
        let mut items = Vec::new();
        let mut token = self.next()?;
        if token.what == What::ArrayEnd {
            return Ok(Value::Array(items));
        }
        loop {
            items.push(self.value(token)?);
            token = self.next()?;
            match token.what {
                What::ArrayEnd => return Ok(Value::Array(items)),
                What::Comma => token = self.next()?,
                _ => return Err(expected("comma or array end", &token)),
            }
        }
    }

    /// The next token. An unreadable one is a token as well: what was expected instead is for the caller to say.
    fn next(&mut self) -> Result<Token, String> {
        let bytes = self.text.as_bytes();
        while bytes.get(self.at).is_some_and(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
        let at = self.at;
        let Some(byte) = bytes.get(at) else { return Ok(Token { what: What::End, at }) };
        let single = match byte {
            b'{' => Some(What::ObjectBegin),
            b'}' => Some(What::ObjectEnd),
            b'[' => Some(What::ArrayBegin),
            b']' => Some(What::ArrayEnd),
            b':' => Some(What::Colon),
            b',' => Some(What::Comma),
            _ => None,
        };
        if let Some(what) = single {
            self.at += 1;
            return Ok(Token { what, at });
        }
        Ok(match byte {
            b'"' => self.text_token(at),
            b'-' | b'0'..=b'9' => self.number_token(at),
            _ => self.word_token(at),
        })
    }

    fn word_token(&mut self, at: usize) -> Token {
        let words = [("true", What::Boolean(true)), ("false", What::Boolean(false)), ("null", What::Null)];
        for (word, what) in words {
            if self.text[at..].starts_with(word) {
                self.at += word.len();
                return Token { what, at };
            }
        }
        Token { what: What::Error("invalid token"), at }
    }

    fn number_token(&mut self, at: usize) -> Token {
        let invalid = Token { what: What::Error("invalid number"), at };
        let Some(length) = number_length(&self.text.as_bytes()[at..]) else { return invalid };
        let text = &self.text[at..at + length];
        let whole =
            text.parse::<i64>().ok().map(Number::from).or_else(|| text.parse::<u64>().ok().map(Number::from));
        let Some(number) = whole.or_else(|| text.parse::<f64>().ok().and_then(Number::from_f64)) else {
            return invalid;
        };
        self.at += length;
        Token { what: What::Number(number), at }
    }

    fn text_token(&mut self, at: usize) -> Token {
        let mut out = String::new();
        let mut here = at + 1;
        while let Some(c) = self.text[here..].chars().next() {
            match c {
                '"' => {
                    self.at = here + 1;
                    return Token { what: What::Text(out), at };
                }
                // C takes it for the end.
                '\0' => return Token { what: What::Error("unexpected end of string"), at: here },
                '\\' => match escape(&self.text[here..]) {
                    Ok((c, length)) => {
                        out.push(c);
                        here += length;
                    }
                    Err(what) => return Token { what: What::Error(what), at: here },
                },
                c => {
                    out.push(c);
                    here += c.len_utf8();
                }
            }
        }
        Token { what: What::Error("unexpected end of string"), at: self.text.len() }
    }
}

/// How many bytes C's `strtod` takes for a number.
fn number_length(text: &[u8]) -> Option<usize> {
    let digits = |from: usize| text.iter().skip(from).take_while(|byte| byte.is_ascii_digit()).count();
    let signed = usize::from(text.first() == Some(&b'-'));
    let mut end = signed + Some(digits(signed)).filter(|count| *count > 0)?;
    if text.get(end) == Some(&b'.') {
        end += 1 + digits(end + 1);
    }
    if matches!(text.get(end), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(text.get(end + 1), Some(b'+' | b'-')));
        // Without digits the letter is no part of the number.
        let exponent = digits(end + 1 + sign);
        end += if exponent == 0 { 0 } else { 1 + sign + exponent };
    }
    Some(end)
}

/// Reads an escape sequence; gives the character and how many bytes it took.
fn escape(text: &str) -> Result<(char, usize), &'static str> {
    let c = match text.as_bytes().get(1) {
        Some(b'"') => '"',
        Some(b'\\') => '\\',
        Some(b'/') => '/',
        Some(b'b') => '\u{8}',
        Some(b't') => '\t',
        Some(b'n') => '\n',
        Some(b'f') => '\u{c}',
        Some(b'r') => '\r',
        Some(b'u') => return unicode_escape(text).ok_or("invalid unicode escape code"),
        _ => return Err("invalid escape code"),
    };
    Ok((c, 2))
}

fn unicode_escape(text: &str) -> Option<(char, usize)> {
    let high = code_unit(text)?;
    if !(0xD800..0xE000).contains(&high) {
        return Some((char::from_u32(high)?, 6));
    }
    let low = code_unit(text.get(6..)?)?;
    if high >= 0xDC00 || !(0xDC00..0xE000).contains(&low) {
        return None;
    }
    let both = 0x1_0000 + ((high - 0xD800) << 10) + (low - 0xDC00);
    Some((char::from_u32(both)?, 12))
}

fn code_unit(text: &str) -> Option<u32> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    digits.bytes().all(|byte| byte.is_ascii_hexdigit()).then(|| u32::from_str_radix(digits, 16).ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(body: &str, wanted: Result<Value, &str>) {
        assert_eq!(parse(body.as_bytes()), wanted.map_err(str::to_owned), "{body}");
    }

    #[test]
    fn documents() {
        check(
            r#" {"a": [1, 2.0, 1.5, -3e2, true, false, null], "b": {}} "#,
            Ok(json!({"a": [1, 2, 1.5, -300, true, false, null], "b": {}})),
        );
        check(r#"{"a":1,"a":2}"#, Ok(json!({"a": 2})));
        check(r#""\u00e9\ud83d\ude00\n\/""#, Ok(json!("é😀\n/")));
        check("[]", Ok(json!([])));
        check("{\"cert\":\"-----BEGIN\nline\t2\"}", Ok(json!({"cert": "-----BEGIN\nline\t2"})));
        check("18446744073709551615", Ok(json!(u64::MAX)));
    }

    #[test]
    fn faults_in_the_words_of_cjson() {
        check(r#"{"uri":"/x","#, Err("Expected object key string but found T_END at character 13"));
        check("", Err("Expected value but found T_END at character 1"));
        check("not json", Err("Expected value but found invalid token at character 1"));
        check(r#"{"a" 1}"#, Err("Expected colon but found T_NUMBER at character 6"));
        check(r#"{"a":1 "b":2}"#, Err("Expected comma or object end but found T_STRING at character 8"));
        check("[1 2]", Err("Expected comma or array end but found T_NUMBER at character 4"));
        check("[1,]", Err("Expected value but found T_ARR_END at character 4"));
        check("{} x", Err("Expected the end but found invalid token at character 4"));
        check("{1:2}", Err("Expected object key string but found T_NUMBER at character 2"));
        check(r#""abc"#, Err("Expected value but found unexpected end of string at character 5"));
        check(r#""\x""#, Err("Expected value but found invalid escape code at character 2"));
        check(r#""\ud800""#, Err("Expected value but found invalid unicode escape code at character 2"));
        check("-", Err("Expected value but found invalid number at character 1"));
        check("x=1&y=2", Err("Expected value but found invalid token at character 1"));
        check(r#"{"a":1,}"#, Err("Expected object key string but found T_OBJ_END at character 8"));
        check("[1 true]", Err("Expected comma or array end but found T_BOOLEAN at character 4"));
        check("1 null", Err("Expected the end but found T_NULL at character 3"));
        check("1-2", Err("Expected the end but found T_NUMBER at character 2"));
        check("1e", Err("Expected the end but found invalid token at character 2"));
        check("\"a\0b\"", Err("Expected value but found unexpected end of string at character 3"));
        check(r#""\u12""#, Err("Expected value but found invalid unicode escape code at character 2"));
    }

    #[test]
    fn nesting_is_bounded() {
        assert!(parse(("[".repeat(MAX_DEPTH) + "]".repeat(MAX_DEPTH).as_str()).as_bytes()).is_ok());
        let error = parse("[".repeat(100_000).as_bytes()).unwrap_err();
        assert_eq!(error, "Found too many nested data structures (101) at character 101");
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            let list = prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from);
            let members = prop::collection::vec((any::<String>(), inner), 0..5);
            prop_oneof![list, members.prop_map(|all| Value::Object(all.into_iter().collect()))]
        })
    }

    proptest! {
        #[test]
        fn what_serde_writes_is_read_back(value in any_json(), pretty: bool) {
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) };
            prop_assert_eq!(parse(text.unwrap().as_bytes()), Ok(value));
        }

        #[test]
        fn what_serde_accepts_is_accepted_alike(text in r#"[\[\]{}:,"\\a1.\-e u0-9tfn ]{0,24}"#) {
            if let Ok(mut value) = serde_json::from_str::<Value>(&text) {
                lua::integers(&mut value);
                prop_assert_eq!(parse(text.as_bytes()), Ok(value));
            }
        }

        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }
    }
}
