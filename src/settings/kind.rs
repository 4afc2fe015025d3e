//! The types a setting can have, and the one reading of a written value into its normal form.
//!
//! Normal form is what the typed structs expect: times are milliseconds, sizes bytes, addresses bare, a lone value
//! in place of a list is a list of one. Invariant: reading never guesses; a value is read or it is wrong.

use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};

use crate::settings::fault::nearest;
use crate::settings::units;

/// The type of a setting.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// Keys and values; its keys are settings of their own.
    Section,
    /// A section that is `null` unless written.
    OptionalSection,
    /// A list; the setting `PATH[]` is the type of an item.
    List,
    /// A list, or a single item in its place.
    OneOrList,
    /// A port, or a section with a port.
    Listen,
    /// A boolean. `on`, `off`, `yes` and `no` count too: APISIX's YAML reader makes booleans of them.
    Bool,
    /// A whole number in a range.
    Int(i64, i64),
    /// A TCP port; 0 takes any free one.
    Port,
    /// A number of seconds, fractions allowed.
    Seconds,
    /// A size in nginx's notation.
    Size,
    /// A time in nginx's notation.
    Time,
    /// Text; a number is taken as its digits.
    Text,
    /// Text that must not be shown.
    Secret,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// An IP address.
    Ip,
    /// An IP address or CIDR block, or `unix:`.
    Cidr,
    /// The address of a DNS server, port 53 unless written.
    DnsServer,
    /// An `http://` or `https://` address.
    Url,
    /// `auto` or a number of threads.
    Workers,
    /// A key of 16 or 32 bytes.
    EncryptionKey,
    /// Any JSON, checked by its owner.
    Any,
    /// A mapping that is laid over the default, key by key; checked by its owner.
    Overlay,
    /// APISIX's, but without meaning here: reported once, not read.
    Inert,
}

/// A value that is not of its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// What would be right.
    pub right: String,
    /// What is there.
    pub what: String,
    /// The allowed word that looks most like it.
    pub nearest: Option<String>,
}

impl Wrong {
    fn got(right: impl Into<String>, value: &Value) -> Self {
        Self { right: right.into(), what: format!("got {}", brief(value)), nearest: None }
    }
}

/// A value as a message shows it: short, and only as far as it helps.
pub fn brief(value: &Value) -> String {
    match value {
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a mapping".to_owned(),
        Value::String(text) if text.chars().count() > 40 => {
            format!("{:?}…", text.chars().take(40).collect::<String>())
        }
        other => other.to_string(),
    }
}

impl Kind {
    /// Reads a written scalar into its normal form. Sections and lists are walked by their reader and pass as they
    /// are.
    ///
    /// # Errors
    /// What would be right.
    pub fn read(self, value: &Value) -> Result<Value, Wrong> {
        match self {
            Self::Bool => bool(value).map(Value::from).ok_or_else(|| Wrong::got("true or false", value)),
            Self::Int(least, most) => whole(value)
                .filter(|n| (least..=most).contains(n))
                .map(Value::from)
                .ok_or_else(|| Wrong::got(range(least, most), value)),
            Self::Port | Self::Listen => port(value).map(Value::from).ok_or_else(|| Wrong::got(PORT, value)),
            Self::Seconds => seconds(value).map(Value::from).ok_or_else(|| Wrong::got(SECONDS, value)),
            Self::Size => size(value).map(Value::from).ok_or_else(|| Wrong::got(SIZE, value)),
            Self::Time => time(value).map(Value::from).ok_or_else(|| Wrong::got(TIME, value)),
            Self::Text => text(value).map(Value::from).ok_or_else(|| Wrong::got("text", value)),
            Self::Secret => text(value).map(Value::from).ok_or_else(|| hidden("text")),
            Self::Choice(words) => choice(words, value),
            Self::Ip => ip(value).map(Value::from).ok_or_else(|| Wrong::got("an IP address", value)),
            Self::Cidr => cidr(value).map(Value::from).ok_or_else(|| Wrong::got(CIDR, value)),
            Self::DnsServer => dns_server(value).map(Value::from).ok_or_else(|| Wrong::got(DNS, value)),
            Self::Url => {
                // An address may hold a user's password.
                let plain = value.as_str().is_none_or(|text| !text.contains('@'));
                let wrong = |right| if plain { Wrong::got(right, value) } else { hidden(right) };
                url(value).map(Value::from).ok_or_else(|| wrong("http://… or https://…"))
            }
            Self::Workers => Ok(workers(value)),
            Self::EncryptionKey => encryption_key(value),
            Self::Overlay if !value.is_object() => Err(Wrong::got("keys and values", value)),
            Self::Section | Self::OptionalSection | Self::List | Self::OneOrList => Ok(value.clone()),
            Self::Any | Self::Overlay | Self::Inert => Ok(value.clone()),
        }
    }
}

const PORT: &str = "a port from 0 to 65535";
const SECONDS: &str = "a number of seconds";
const SIZE: &str = "a size such as 8k, 1m or a number of bytes";
const TIME: &str = "a time such as 60s, 10ms, 1h30m or a number of seconds";
const CIDR: &str = "an IP address or a CIDR block such as 10.0.0.0/8";
const DNS: &str = "the IP address of a DNS server, with or without a port";

fn hidden(right: &str) -> Wrong {
    Wrong { right: right.to_owned(), what: "got something else (not shown)".to_owned(), nearest: None }
}

fn range(least: i64, most: i64) -> String {
    if most == i64::MAX {
        format!("a whole number from {least}")
    } else {
        format!("a whole number from {least} to {most}")
    }
}

fn bool(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(bool) => Some(*bool),
        Value::String(text) => match text.to_ascii_lowercase().as_str() {
            "on" | "yes" => Some(true),
            "off" | "no" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

/// A whole number; `9.0` is one, as in Lua, and so is a text of digits: nginx directives take both.
fn whole(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => number.as_i64().or_else(|| {
            let real = number.as_f64()?;
            (real.fract() == 0.0 && real.abs() < 9e15).then_some(real as i64)
        }),
        Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

fn port(value: &Value) -> Option<u16> {
    u16::try_from(whole(value)?).ok()
}

fn seconds(value: &Value) -> Option<f64> {
    let seconds = match value {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) => text.parse().ok()?,
        _ => return None,
    };
    (0.0..=1e9).contains(&seconds).then_some(seconds)
}

fn size(value: &Value) -> Option<u64> {
    match value {
        Value::Number(_) => u64::try_from(whole(value)?).ok(),
        Value::String(text) => units::parse_size(text),
        _ => None,
    }
}

fn time(value: &Value) -> Option<u64> {
    match value {
        Value::Number(_) => u64::try_from(whole(value)?).ok()?.checked_mul(1000),
        Value::String(text) => u64::try_from(units::parse_time(text)?.as_millis()).ok(),
        _ => None,
    }
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn choice(words: &[&str], value: &Value) -> Result<Value, Wrong> {
    let written = text(value).unwrap_or_default();
    if words.contains(&written.as_str()) {
        return Ok(Value::String(written));
    }
    let near = nearest(&written, words.iter().copied()).map(str::to_owned);
    let right = match words {
        [] => String::new(),
        [only] => (*only).to_owned(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    };
    Err(Wrong { nearest: near, ..Wrong::got(right, value) })
}

fn ip(value: &Value) -> Option<String> {
    let text = value.as_str()?;
    let bare = text.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(text);
    bare.parse::<IpAddr>().ok().map(|ip| ip.to_string())
}

fn cidr(value: &Value) -> Option<String> {
    let text = value.as_str()?;
    let known = text == "unix:" || text.parse::<IpAddr>().is_ok() || text.parse::<ipnet::IpNet>().is_ok();
    known.then(|| text.to_owned())
}

fn dns_server(value: &Value) -> Option<String> {
    if let Some(ip) = ip(value) {
        return ip.parse().ok().map(|ip: IpAddr| SocketAddr::new(ip, 53).to_string());
    }
    value.as_str()?.parse::<SocketAddr>().ok().map(|server| server.to_string())
}

fn url(value: &Value) -> Option<String> {
    let text = value.as_str()?;
    let host = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"))?;
    (!host.is_empty()).then(|| text.to_owned())
}

/// APISIX takes everything that is not a number for `auto`.
fn workers(value: &Value) -> Value {
    whole(value).filter(|n| (1..=4096).contains(n)).map_or(Value::Null, Value::from)
}

fn encryption_key(value: &Value) -> Result<Value, Wrong> {
    match text(value) {
        Some(key) if matches!(key.len(), 16 | 32) => Ok(Value::String(key)),
        Some(key) => {
            let what = format!("got one of {} bytes", key.len());
            Err(Wrong { right: "a key of 16 or 32 bytes".to_owned(), what, nearest: None })
        }
        None => Err(hidden("a key of 16 or 32 bytes")),
    }
}

/// A listen address written as a bare port, as the section it stands for.
pub fn listen_section(port: &Value) -> Value {
    json!({ "port": port })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(kind: Kind, written: Value, expected: Value) {
        assert_eq!(kind.read(&written), Ok(expected), "{kind:?} {written}");
    }

    #[track_caller]
    fn check_wrong(kind: Kind, written: Value, message: &str) {
        let wrong = kind.read(&written).unwrap_err();
        assert_eq!(format!("expected {}, {}", wrong.right, wrong.what), message, "{kind:?} {written}");
    }

    #[test]
    fn right_values() {
        check(Kind::Bool, json!(true), json!(true));
        check(Kind::Bool, json!("on"), json!(true));
        check(Kind::Bool, json!("Off"), json!(false));
        check(Kind::Int(0, 9), json!(9.0), json!(9));
        check(Kind::Int(0, 9), json!("7"), json!(7));
        check(Kind::Port, json!(9080), json!(9080));
        check(Kind::Seconds, json!(0.5), json!(0.5));
        check(Kind::Size, json!("8k"), json!(8192));
        check(Kind::Size, json!(0), json!(0));
        check(Kind::Time, json!("10ms"), json!(10));
        check(Kind::Time, json!(60), json!(60_000));
        check(Kind::Text, json!(42), json!("42"));
        check(Kind::Choice(&["3.2", "now"]), json!(3.2), json!("3.2"));
        check(Kind::Ip, json!("[::1]"), json!("::1"));
        check(Kind::Cidr, json!("127.0.0.0/24"), json!("127.0.0.0/24"));
        check(Kind::Cidr, json!("unix:"), json!("unix:"));
        check(Kind::DnsServer, json!("1.1.1.1"), json!("1.1.1.1:53"));
        check(Kind::DnsServer, json!("[::1]:5353"), json!("[::1]:5353"));
        check(Kind::DnsServer, json!("::1"), json!("[::1]:53"));
        check(Kind::Url, json!("http://127.0.0.1:2379"), json!("http://127.0.0.1:2379"));
        check(Kind::Workers, json!("auto"), json!(null));
        check(Kind::Workers, json!(4), json!(4));
        check(Kind::EncryptionKey, json!("qeddd145sfvddff3"), json!("qeddd145sfvddff3"));
    }

    #[test]
    fn wrong_values() {
        check_wrong(Kind::Bool, json!("true"), "expected true or false, got \"true\"");
        check_wrong(Kind::Int(1, 9), json!(0), "expected a whole number from 1 to 9, got 0");
        check_wrong(Kind::Int(1, i64::MAX), json!(1.5), "expected a whole number from 1, got 1.5");
        check_wrong(Kind::Port, json!(65536), "expected a port from 0 to 65535, got 65536");
        check_wrong(Kind::Seconds, json!(-1), "expected a number of seconds, got -1");
        check_wrong(Kind::Text, json!(["x"]), "expected text, got a list");
        check_wrong(
            Kind::Choice(&["http", "stream", "http&stream"]),
            json!("tcp"),
            "expected http, stream or http&stream, got \"tcp\"",
        );
        check_wrong(
            Kind::Url,
            json!("htp://user:sesame@etcd:2379"),
            "expected http://… or https://…, got something else (not shown)",
        );
        check_wrong(
            Kind::Url,
            json!("127.0.0.1:2379"),
            "expected http://… or https://…, got \"127.0.0.1:2379\"",
        );
        check_wrong(
            Kind::EncryptionKey,
            json!("short"),
            "expected a key of 16 or 32 bytes, got one of 5 bytes",
        );
        check_wrong(Kind::Secret, json!({"a": "b"}), "expected text, got something else (not shown)");
    }

    #[test]
    fn choices_name_the_nearest_word() {
        let wrong = Kind::Choice(&["traditional", "data_plane"]).read(&json!("dataplane")).unwrap_err();
        assert_eq!(wrong.nearest.as_deref(), Some("data_plane"));
    }
}
