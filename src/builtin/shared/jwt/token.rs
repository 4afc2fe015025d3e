//! A JSON Web Token in its compact form (RFC 7519, RFC 7515 §3.1), read but not believed.
//!
//! Invariant: nothing here decides whether a token is genuine; never panics on any text.

use std::{borrow::Cow, fmt};

use serde::de::{
    self, Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::{Map, Value};

use crate::builtin::shared::base64;

/// The parts of a token.
pub struct Token<'t> {
    /// What is signed: header, dot, payload, as they arrived.
    pub signed: &'t str,
    /// The signature, still encoded.
    pub signature: &'t str,
    header: Vec<u8>,
    payload: Vec<u8>,
}

/// One member of a JSON object, as far as a plugin looks at it.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Member<'j> {
    /// It is not there.
    #[default]
    Absent,
    /// `false`, which Lua takes for not there.
    False,
    /// A number.
    Number(f64),
    /// A text.
    Text(Cow<'j, str>),
    /// Anything else.
    Other,
}

impl<'t> Token<'t> {
    /// Takes a token apart. `None`: it is not three parts of which two are base64url.
    pub fn parse(text: &'t str) -> Option<Self> {
        let (signed, signature) = text.rsplit_once('.')?;
        let (header, payload) = signed.split_once('.')?;
        if payload.contains('.') || [header, payload, signature].contains(&"") {
            return None;
        }
        let (header, payload) = (base64::decode_url(header)?, base64::decode_url(payload)?);
        Some(Self { signed, signature, header, payload })
    }

    /// Members of the header by name: all absent if it is no object, `None` if it is no JSON.
    pub fn header<const N: usize>(&self, names: [&str; N]) -> Option<[Member<'_>; N]> {
        members(&self.header, names)
    }

    /// Members of the payload by name: all absent if it is no object, `None` if it is no JSON.
    pub fn payload<const N: usize>(&self, names: [&str; N]) -> Option<[Member<'_>; N]> {
        members(&self.payload, names)
    }

    /// The whole header; `None` if it is no JSON object.
    pub fn header_object(&self) -> Option<Map<String, Value>> {
        serde_json::from_slice(&self.header).ok()
    }

    /// The whole payload; `None` if it is no JSON object.
    pub fn claims(&self) -> Option<Map<String, Value>> {
        serde_json::from_slice(&self.payload).ok()
    }
}

fn members<'j, const N: usize>(json: &'j [u8], names: [&str; N]) -> Option<[Member<'j>; N]> {
    let mut reader = serde_json::Deserializer::from_slice(json);
    let found = Names(names).deserialize(&mut reader).ok()?;
    reader.end().ok()?;
    Some(found)
}

struct Names<'n, const N: usize>([&'n str; N]);

impl<'de, const N: usize> DeserializeSeed<'de> for Names<'_, N> {
    type Value = [Member<'de>; N];

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Self::Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de, const N: usize> Visitor<'de> for Names<'_, N> {
    type Value = [Member<'de>; N];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = nothing();
        // Of members with one name the last counts, as in cjson.
        while let Some(name) = map.next_key::<Name<'de>>()? {
            match self.0.iter().position(|wanted| *wanted == name.0) {
                None => drop(map.next_value::<IgnoredAny>()?),
                Some(first) => {
                    let value = map.next_value::<Member<'de>>()?;
                    for (at, wanted) in self.0.iter().enumerate().skip(first) {
                        if *wanted == name.0 {
                            found[at] = value.clone();
                        }
                    }
                }
            }
        }
        Ok(found)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
        skip(seq)?;
        Ok(nothing())
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(nothing())
    }
    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(nothing())
    }
    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(nothing())
    }
    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(nothing())
    }
    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
        Ok(nothing())
    }
    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(nothing())
    }
}

fn nothing<'j, const N: usize>() -> [Member<'j>; N] {
    std::array::from_fn(|_| Member::Absent)
}

fn skip<'de, A: SeqAccess<'de>>(mut seq: A) -> Result<(), A::Error> {
    while seq.next_element::<IgnoredAny>()?.is_some() {}
    Ok(())
}

/// A member's name, borrowed where it has no escapes.
struct Name<'j>(Cow<'j, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        match reader.deserialize_any(AnyMember)? {
            Member::Text(text) => Ok(Self(text)),
            _ => Err(de::Error::custom("a member's name is a text")),
        }
    }
}

impl<'de> Deserialize<'de> for Member<'de> {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        reader.deserialize_any(AnyMember)
    }
}

struct AnyMember;

impl<'de> Visitor<'de> for AnyMember {
    type Value = Member<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(if value { Member::Other } else { Member::False })
    }
    fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
        Ok(Member::Number(value as f64))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
        Ok(Member::Number(value as f64))
    }
    fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
        Ok(Member::Number(value))
    }
    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Member::Text(Cow::Borrowed(text)))
    }
    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Member::Text(Cow::Owned(text.to_owned())))
    }
    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Member::Other)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
        skip(seq)?;
        Ok(Member::Other)
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Member::Other)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token(header: &str, payload: &str) -> String {
        format!("{}.{}.c2ln", base64::encode_url(header.as_bytes()), base64::encode_url(payload.as_bytes()))
    }

    #[track_caller]
    fn refuses(text: &str) {
        assert!(Token::parse(text).is_none(), "{text}");
    }

    #[test]
    fn takes_three_parts() {
        for text in ["", "abc", "Bearer", "a.b.c", "..", "a..b", "!.!.!"] {
            refuses(text);
        }
        let good = token(r#"{"alg":"HS256"}"#, r#"{"key":"k"}"#);
        assert!(Token::parse(&good).is_some());
        refuses(&format!("{good}.x"));
        refuses(good.trim_end_matches("c2ln"));
    }

    #[track_caller]
    fn check(payload: &str, key: Member<'_>, exp: Member<'_>) {
        let text = token("{}", payload);
        let token = Token::parse(&text).expect(payload);
        assert_eq!(token.payload(["key", "exp"]), Some([key, exp]), "{payload}");
    }

    #[test]
    fn picks_members() {
        let text = |text: &'static str| Member::Text(text.into());
        check(r#"{"key":"k","exp":12}"#, text("k"), Member::Number(12.0));
        check(r#"{"exp":-1.5,"x":{"key":"no"},"key":"a\u00e9\n"}"#, text("aé\n"), Member::Number(-1.5));
        check(r#"{"k\u0065y":"k"}"#, text("k"), Member::Absent);
        check(r#"{"key":false,"exp":"soon"}"#, Member::False, text("soon"));
        check(r#"{"key":null,"exp":[1]}"#, Member::Other, Member::Other);
        check(r#"{"key":1,"exp":{"a":1}}"#, Member::Number(1.0), Member::Other);
        check(r#"{"key":"a","key":"b"}"#, text("b"), Member::Absent);
        for odd in ["[1,{}]", "1", "-1", "1.5", "\"key\"", "null", "true"] {
            check(odd, Member::Absent, Member::Absent);
        }
    }

    #[test]
    fn whole_documents() {
        let text = token(r#"{"alg":"x"}"#, "[1]");
        let token = Token::parse(&text).unwrap();
        assert_eq!(token.header_object().map(Value::Object), Some(serde_json::json!({"alg": "x"})));
        assert_eq!(token.claims(), None);
    }

    #[test]
    fn one_member_may_be_wanted_twice() {
        let text = token("{}", r#"{"exp":1}"#);
        let token = Token::parse(&text).unwrap();
        assert_eq!(token.payload(["exp", "exp"]), Some([Member::Number(1.0), Member::Number(1.0)]));
    }

    proptest! {
        #[test]
        fn reads_any_text(text in "[a-zA-Z0-9_.=-]{0,60}") {
            if let Some(token) = Token::parse(&text) {
                let _ = (token.header(["alg"]), token.payload(["key", "exp"]));
            }
        }

        #[test]
        fn reads_any_payload(json in "[\\[\\]{}\"a:,0-9. ntrufls\\\\-]{0,20}") {
            let whole = serde_json::from_str::<serde_json::Value>(&json).is_ok();
            let text = token("{}", &json);
            let picked = Token::parse(&text).is_some_and(|token| token.payload(["a"]).is_some());
            prop_assert_eq!(picked, whole && !json.is_empty());
        }

        #[test]
        fn agrees_with_a_whole_parse(key in "\\PC{0,8}", exp in any::<i32>()) {
            let payload = serde_json::json!({"a": [1, {"key": 2}], "key": key, "exp": exp}).to_string();
            let text = token("{}", &payload);
            let token = Token::parse(&text).unwrap();
            prop_assert_eq!(
                token.payload(["key", "exp"]),
                Some([Member::Text(key.into()), Member::Number(f64::from(exp))])
            );
        }
    }
}
