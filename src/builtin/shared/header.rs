//! Header fields as plugins' configurations write them, and response heads as plugins edit them.
//!
//! Invariant: no text of a request or a configuration reaches a header unescaped; see [`value`].

use bytes::Bytes;
use http::{HeaderName, HeaderValue, header};
use pingora::http::ResponseHeader;
use serde_json::{Map, Value};

use crate::{
    net::{letters, lossless},
    plugin::exchange::Exchange,
    schema::lua,
    vars::template::Template,
};

/// A header's name as somebody wrote it: APISIX's clients see it in these letters.
pub struct Name {
    /// Whatever its letters.
    pub key: HeaderName,
    /// In which it leaves in HTTP/1.
    pub letters: Bytes,
}

impl Name {
    /// `None`: it is none that HTTP allows.
    pub fn parse(text: &str) -> Option<Name> {
        let key = HeaderName::from_bytes(text.as_bytes()).ok()?;
        Some(Name { key, letters: Bytes::copy_from_slice(text.as_bytes()) })
    }

    /// Sets this header of the response to come.
    pub fn set(&self, value: HeaderValue, x: &mut Exchange<'_>) {
        x.set_response_header_as(self.letters.clone(), self.key.clone(), value);
    }
}

/// A header whose value may hold variables.
pub struct Field {
    /// Its name.
    pub name: Name,
    /// Its value.
    pub value: Template,
}

impl Field {
    /// Compiles a header of a configuration.
    ///
    /// # Errors
    /// The name is none that HTTP allows.
    pub fn new(name_text: &str, value: &str) -> Result<Field, String> {
        Ok(Field { name: written(name_text)?, value: Template::parse(value) })
    }
}

/// The headers of a map from names to strings or numbers, in its order; other values are left out.
///
/// # Errors
/// A name is none that HTTP allows.
pub fn fields(map: &Map<String, Value>) -> Result<Vec<Field>, String> {
    map.iter().filter_map(|(name, value)| scalar(value).map(|text| Field::new(name, &text))).collect()
}

/// A header's name.
///
/// # Errors
/// It is none that HTTP allows.
pub fn name(text: &str) -> Result<HeaderName, String> {
    written(text).map(|name| name.key)
}

/// The same with its letters.
///
/// # Errors
/// As [`name`].
pub fn written(text: &str) -> Result<Name, String> {
    Name::parse(text).ok_or_else(|| format!("invalid field character in header \"{text}\""))
}

/// Whether a header frames messages or rules the connection, so that no plugin may copy it from one message to
/// another. RFC 9110 §7.6.1.
#[must_use]
pub fn frames(name: &HeaderName) -> bool {
    const FRAMING: [&str; 9] = [
        "connection",
        "content-length",
        "expect",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    FRAMING.contains(&name.as_str())
}

/// Sets a header of the response to come, with all its values; a Content-Type takes the place of the usual one.
pub fn tell_client(x: &mut Exchange<'_>, name: &HeaderName, values: impl IntoIterator<Item = HeaderValue>) {
    for (nth, value) in values.into_iter().enumerate() {
        if nth == 0 {
            x.set_response_header(name.clone(), value);
        } else {
            x.add_response_header(name.clone(), value);
        }
    }
}

/// A header's value. Control characters are percent-encoded, so that no value can end its line.
/// ngx_lua: `NGX_HTTP_LUA_ESCAPE_HEADER_VALUE`.
pub fn value(text: &str) -> HeaderValue {
    let bytes = lossless::to_bytes(text);
    if let Ok(value) = HeaderValue::from_bytes(&bytes) {
        return value;
    }
    let mut escaped = Vec::with_capacity(bytes.len() + 16);
    for byte in bytes.iter() {
        match byte {
            b'\t' => escaped.push(b'\t'),
            byte if byte.is_ascii_control() => escaped.extend_from_slice(format!("%{byte:02X}").as_bytes()),
            byte => escaped.push(*byte),
        }
    }
    HeaderValue::from_bytes(&escaped).expect("no control character is left")
}

/// A string or a number as Lua's `tostring` writes it; `None` for anything else.
pub fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(match (number.as_i64(), number.as_f64()) {
            // Lua has doubles only; below 1e14 their text is that of the integer.
            (Some(integer), _) if integer.unsigned_abs() < 100_000_000_000_000 => integer.to_string(),
            (_, Some(float)) => lua::number_text(float),
            _ => number.to_string(),
        }),
        _ => None,
    }
}

/// Sets a response header; an empty value removes it, as in nginx.
pub fn set(head: &mut ResponseHeader, field: &Field, text: &str) {
    if text.is_empty() {
        head.remove_header(&field.name.key);
    } else {
        put_as(head, field.name.letters.clone(), value(text));
    }
}

/// Adds a response header beside others of its name; nothing for an empty value, as in nginx.
pub fn add(head: &mut ResponseHeader, field: &Field, text: &str) {
    if !text.is_empty() {
        // Fails only beyond the 32,768 distinct names a header map can hold: then the header stays out.
        let _ = head.append_header(field.name.letters.clone(), value(text));
    }
}

/// Sets a response header to a value made before.
pub fn put(head: &mut ResponseHeader, name: &HeaderName, value: HeaderValue) {
    put_as(head, letters::of(name), value);
}

/// The same, with its name in these letters in HTTP/1.
pub fn put_as(head: &mut ResponseHeader, letters: Bytes, value: HeaderValue) {
    let _ = head.insert_header(letters, value);
}

/// Removes what described a body that is about to be changed.
/// APISIX: `core.response.clear_header_as_body_modified`.
pub fn body_modified(head: &mut ResponseHeader) {
    for name in [header::CONTENT_LENGTH, header::CONTENT_ENCODING, header::LAST_MODIFIED, header::ETAG] {
        head.remove_header(&name);
    }
}

/// A status that a configuration gives to a reply.
///
/// # Errors
/// It is none that can end an exchange. Differs from APISIX: there it is accepted and the response is malformed.
pub fn status(field: &str, code: i64) -> Result<u16, String> {
    u16::try_from(code)
        .ok()
        .filter(|code| (200..=999).contains(code))
        .ok_or_else(|| format!("property \"{field}\" validation failed: {code} is no status of a response"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn scalars_are_written_as_lua_does() {
        for (value, expected) in [
            (json!("a"), Some("a")),
            (json!(1), Some("1")),
            (json!(-2), Some("-2")),
            (json!(1.0), Some("1")),
            (json!(1.5), Some("1.5")),
            (json!(1e20), Some("1e+20")),
            (json!(true), None),
            (json!(["a"]), None),
        ] {
            assert_eq!(scalar(&value).as_deref(), expected, "{value}");
        }
    }

    #[test]
    fn empty_values_remove() {
        let mut head = ResponseHeader::build(200, None).unwrap();
        let field = Field::new("x-a", "").unwrap();
        let name = &field.name.key;
        add(&mut head, &field, "1");
        add(&mut head, &field, "");
        add(&mut head, &field, "2");
        assert_eq!(head.headers.get_all(name).iter().count(), 2);
        set(&mut head, &field, "3");
        assert_eq!(head.headers.get_all(name).iter().count(), 1);
        set(&mut head, &field, "");
        assert!(head.headers.get(name).is_none());
    }

    #[test]
    fn statuses() {
        assert_eq!(status("s", 418), Ok(418));
        for bad in [199, 1000, -1] {
            assert!(status("s", bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_value(text in "\\PC{0,8}[\\x00-\\x7f]{0,8}") {
            let value = value(&text);
            prop_assert!(value.as_bytes().iter().all(|b| *b == b'\t' || !b.is_ascii_control()));
        }
    }
}
