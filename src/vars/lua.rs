//! The values of Lua as far as variables have them, and Lua's conversions between text and numbers.
//!
//! APISIX compares variables with Lua's operators, so whether `"1"` equals `1` is decided here and nowhere
//! else: [`Value`] keeps the type that the variable has there.

use std::borrow::Cow;
use std::fmt::Write;

/// The value of a variable. Most are text.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    /// A string.
    Text(Cow<'a, str>),
    /// A number, from a JSON body.
    Number(f64),
    /// A boolean, from a JSON body; `true` also is an argument without a value.
    Bool(bool),
    /// JSON's null in a body. It is not the same as no value.
    Null,
    /// An array: from a JSON body, a JSONPath query, or `graphql_root_fields`.
    List(Vec<Value<'a>>),
    /// A JSON object. Nothing equals it.
    Table,
}

impl<'a> Value<'a> {
    /// The value that a part of a JSON body has.
    #[must_use]
    pub fn from_json(json: &'a serde_json::Value) -> Self {
        match json {
            serde_json::Value::Null => Self::Null,
            serde_json::Value::Bool(b) => Self::Bool(*b),
            serde_json::Value::Number(n) => Self::Number(n.as_f64().unwrap_or(f64::NAN)),
            serde_json::Value::String(s) => Self::Text(Cow::Borrowed(s)),
            serde_json::Value::Array(items) => Self::List(items.iter().map(Self::from_json).collect()),
            serde_json::Value::Object(_) => Self::Table,
        }
    }

    /// Lua's `tostring`.
    /// Differs from APISIX: tables show as `table`, without their address in memory.
    #[must_use]
    pub fn into_text(self) -> Cow<'a, str> {
        match self {
            Self::Text(text) => text,
            Self::Number(number) => Cow::Owned(number_to_text(number)),
            Self::Bool(true) => Cow::Borrowed("true"),
            Self::Bool(false) => Cow::Borrowed("false"),
            Self::Null => Cow::Borrowed("userdata: NULL"),
            Self::List(_) | Self::Table => Cow::Borrowed("table"),
        }
    }

    /// Lua's `tonumber`: numbers, and text that spells one.
    #[must_use]
    pub fn to_number(&self) -> Option<f64> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Text(text) => text_to_number(text),
            _ => None,
        }
    }
}

/// LuaJIT's `tonumber` of a string: blanks around, a sign, decimal, hexadecimal (`0x1F`), binary (`0b11`),
/// `inf` and `nan`.
#[must_use]
pub fn text_to_number(text: &str) -> Option<f64> {
    let blank = |c: char| matches!(c, ' ' | '\t'..='\r');
    let text = text.trim_matches(blank);
    let (sign, digits) = match text.as_bytes().first()? {
        b'-' => (-1.0, &text[1..]),
        b'+' => (1.0, &text[1..]),
        _ => (1.0, text),
    };
    if digits.starts_with(['-', '+']) {
        return None;
    }
    let magnitude = match digits.get(..2) {
        Some("0x" | "0X") => hex_number(&digits[2..])?,
        Some("0b" | "0B") => binary_number(&digits[2..])?,
        _ => digits.parse().ok()?,
    };
    Some(sign * magnitude)
}

/// Lua's text of a number: C's `%.14g`.
#[must_use]
pub fn number_to_text(number: f64) -> String {
    if number.is_nan() {
        return "nan".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    // Rounds to 14 significant digits first: the exponent that decides the form is the rounded one.
    let scientific = format!("{number:.13e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let strip = |text: &str| -> String {
        let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { text };
        text.to_owned()
    };
    if !(-4..14).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        let mut text = strip(mantissa);
        // Writing to a String cannot fail.
        let _ = write!(text, "e{sign}{:02}", exponent.unsigned_abs());
        return text;
    }
    let decimals = usize::try_from(13 - exponent).unwrap_or(0);
    strip(&format!("{number:.decimals$}"))
}

fn hex_number(text: &str) -> Option<f64> {
    let (mantissa, exponent) = match text.split_once(['p', 'P']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let mut number = 0.0;
    for c in whole.chars() {
        number = number * 16.0 + f64::from(c.to_digit(16)?);
    }
    let mut weight = 1.0 / 16.0;
    for c in fraction.chars() {
        number += f64::from(c.to_digit(16)?) * weight;
        weight /= 16.0;
    }
    Some(number * 2f64.powi(exponent))
}

fn binary_number(text: &str) -> Option<f64> {
    if text.is_empty() {
        return None;
    }
    text.chars().try_fold(0.0, |number, c| Some(number * 2.0 + f64::from(c.to_digit(2)?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn tonumber() {
        for (text, number) in [
            ("10", Some(10.0)),
            (" 10\n", Some(10.0)),
            ("+1.5", Some(1.5)),
            ("-.5", Some(-0.5)),
            ("1.", Some(1.0)),
            ("1e3", Some(1000.0)),
            ("0x10", Some(16.0)),
            ("-0XfF", Some(-255.0)),
            ("0x1.8p1", Some(3.0)),
            ("0b101", Some(5.0)),
            ("inf", Some(f64::INFINITY)),
            ("", None),
            (" ", None),
            (".", None),
            ("0x", None),
            ("0b2", None),
            ("1e", None),
            ("1 2", None),
            ("--1", None),
            ("+-1", None),
            ("1_0", None),
            ("ten", None),
        ] {
            assert_eq!(text_to_number(text), number, "{text:?}");
        }
        assert!(text_to_number("NaN").is_some_and(f64::is_nan));
    }

    #[test]
    fn tostring() {
        for (number, text) in [
            (1.0, "1"),
            (-0.5, "-0.5"),
            (0.7, "0.7"),
            (100.0, "100"),
            (0.1 + 0.2, "0.3"),
            (1e13, "10000000000000"),
            (99_999_999_999_999.0, "99999999999999"),
            (1e14, "1e+14"),
            (9_007_199_254_740_992.0, "9.007199254741e+15"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1e100, "1e+100"),
            (0.0, "0"),
            (f64::NEG_INFINITY, "-inf"),
        ] {
            assert_eq!(number_to_text(number), text);
        }
    }

    #[test]
    fn json_values() {
        let json: serde_json::Value = serde_json::from_str(r#"[1, "a", true, null, {"x": 1}]"#).unwrap();
        let Value::List(items) = Value::from_json(&json) else { panic!("an array is a list") };
        let texts: Vec<_> = items.into_iter().map(Value::into_text).collect();
        assert_eq!(texts, ["1", "a", "true", "userdata: NULL", "table"]);
    }

    proptest! {
        #[test]
        fn integers_round_trip(n in -99_999_999_999_999i64..=99_999_999_999_999) {
            #[allow(clippy::cast_precision_loss)]
            let number = n as f64;
            prop_assert_eq!(number_to_text(number), n.to_string());
            prop_assert_eq!(text_to_number(&n.to_string()), Some(number));
        }

        #[test]
        fn never_panics(text in "\\PC{0,12}|[-+0-9xXbBpPeE. ]{0,12}") {
            let _ = text_to_number(&text);
        }
    }
}
