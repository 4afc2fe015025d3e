//! How Lua words a value: the pieces of APISIX's sentences that come from its runtime rather than from a schema.
//!
//! Invariant: pure text; every function is total.

use serde_json::Value;

/// Lua's name of a JSON value's type (`type()`): a list and an object are both `table`, null is `userdata`.
pub fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "userdata",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) | Value::Object(_) => "table",
    }
}

/// A number as `tostring` writes it: fourteen significant digits (C's `%.14g`).
pub fn number_text(number: f64) -> String {
    const DIGITS: i32 = 14;
    if !number.is_finite() {
        let sign = if number.is_sign_negative() { "-" } else { "" };
        return format!("{sign}{}", if number.is_nan() { "nan" } else { "inf" });
    }
    let scientific = format!("{number:.13e}");
    let Some((mantissa, exponent)) = scientific.split_once('e') else {
        return scientific;
    };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..DIGITS).contains(&exponent) {
        let decimals = usize::try_from(DIGITS - 1 - exponent).unwrap_or(0);
        return without_trailing_zeros(&format!("{number:.decimals$}")).to_owned();
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{}e{sign}{:02}", without_trailing_zeros(mantissa), exponent.abs())
}

/// A string as `string.format("%q")` writes it: in double quotes, quotes, backslashes and line ends after a
/// backslash, control characters as decimal escapes.
pub fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '"' | '\\' | '\n' => quoted.extend(['\\', c]),
            c if c.is_ascii_control() => {
                let before_digit = rest.peek().is_some_and(char::is_ascii_digit);
                let code = u32::from(c);
                // All three digits when the next character would otherwise be read as part of the escape.
                quoted.push_str(&if before_digit { format!("\\{code:03}") } else { format!("\\{code}") });
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// Rewrites every number with no fraction as an integer (`1.0` becomes `1`), as a trip through Lua's JSON does.
pub fn integers(value: &mut Value) {
    match value {
        Value::Number(number) => {
            let Some(float) = number.as_f64().filter(|_| number.is_f64()) else {
                return;
            };
            // Doubles hold integers exactly up to 2^53; beyond, the float stays as it is.
            if float.fract() == 0.0 && float.abs() <= 9_007_199_254_740_992.0 {
                *value = Value::from(float as i64);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(integers),
        Value::Object(members) => members.values_mut().for_each(integers),
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

fn without_trailing_zeros(digits: &str) -> &str {
    if !digits.contains('.') {
        return digits;
    }
    digits.trim_end_matches('0').trim_end_matches('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(number: f64, expected: &str) {
        assert_eq!(number_text(number), expected);
    }

    #[test]
    fn numbers_have_fourteen_digits() {
        check(0.0, "0");
        check(-0.0, "-0");
        check(1.0, "1");
        check(-17.0, "-17");
        check(0.001, "0.001");
        check(0.0001, "0.0001");
        check(0.00001, "1e-05");
        check(1.5, "1.5");
        check(1.0 / 3.0, "0.33333333333333");
        check(99_999_999_999_999.0, "99999999999999");
        check(1e14, "1e+14");
        check(1.25e20, "1.25e+20");
        check(1e100, "1e+100");
        check(f64::INFINITY, "inf");
    }

    #[test]
    fn strings_are_quoted_as_source() {
        assert_eq!(quoted("a\"b\\c"), "\"a\\\"b\\\\c\"");
        assert_eq!(quoted("\u{1} bad"), "\"\\1 bad\"");
        assert_eq!(quoted("\u{1}2"), "\"\\0012\"");
        assert_eq!(quoted("a\nb"), "\"a\\\nb\"");
        assert_eq!(quoted("\u{7f}é"), "\"\\127é\"");
    }

    #[test]
    fn whole_floats_become_integers() {
        let mut value = serde_json::json!({"a": [1.0, 1.5, -2.0, 1e300], "b": "1.0"});
        integers(&mut value);
        assert_eq!(value, serde_json::json!({"a": [1, 1.5, -2, 1e300], "b": "1.0"}));
    }
}
