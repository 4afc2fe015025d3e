//! Sizes and times in nginx's notation: `8k`, `1m`, `60s`, `10ms`, `1h 30m`.
//!
//! Invariant: a text nginx would refuse is refused here; nothing is rounded.

use std::time::Duration;

/// Reads a size in bytes. Units: `k`, `m`, `g` in either case; without a unit it is bytes.
///
/// Source: nginx's "Configuration file measurement units". `g` is allowed everywhere here, in nginx only for some
/// directives.
pub fn parse_size(text: &str) -> Option<u64> {
    let (digits, factor) = match text.as_bytes().last()? {
        b'k' | b'K' => (&text[..text.len() - 1], 1 << 10),
        b'm' | b'M' => (&text[..text.len() - 1], 1 << 20),
        b'g' | b'G' => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1),
    };
    whole(digits)?.checked_mul(factor)
}

/// Reads a time. Units, from large to small and each at most once: `y`, `M` (30 days), `w`, `d`, `h`, `m`, `s`,
/// `ms`; a number without a unit is seconds and comes last.
///
/// Source: nginx's "Configuration file measurement units".
pub fn parse_time(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total: u64 = 0;
    let mut smallest = u64::MAX;
    if rest.is_empty() || rest.starts_with(' ') {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let number = whole(&rest[..digits])?;
        let (unit, after) = split_unit(&rest[digits..])?;
        if unit >= smallest {
            return None;
        }
        smallest = unit;
        total = total.checked_add(number.checked_mul(unit)?)?;
        rest = after;
    }
    Some(Duration::from_millis(total))
}

/// The unit in milliseconds and what follows it and its spaces.
fn split_unit(text: &str) -> Option<(u64, &str)> {
    const SECOND: u64 = 1000;
    const DAY: u64 = 24 * 3600 * SECOND;
    const UNITS: [(&str, u64); 8] = [
        ("ms", 1),
        ("y", 365 * DAY),
        ("M", 30 * DAY),
        ("w", 7 * DAY),
        ("d", DAY),
        ("h", 3600 * SECOND),
        ("m", 60 * SECOND),
        ("s", SECOND),
    ];
    for (name, milliseconds) in UNITS {
        if let Some(after) = text.strip_prefix(name) {
            return Some((milliseconds, after.trim_start_matches(' ')));
        }
    }
    let after = text.trim_start_matches(' ');
    if !text.is_empty() && after.len() == text.len() {
        return None;
    }
    Some((SECOND, after))
}

fn whole(digits: &str) -> Option<u64> {
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_size(text: &str, expected: Option<u64>) {
        assert_eq!(parse_size(text), expected, "{text:?}");
    }

    #[track_caller]
    fn check_time(text: &str, milliseconds: Option<u64>) {
        assert_eq!(parse_time(text), milliseconds.map(Duration::from_millis), "{text:?}");
    }

    #[test]
    fn sizes() {
        check_size("0", Some(0));
        check_size("8k", Some(8192));
        check_size("1m", Some(1 << 20));
        check_size("1M", Some(1 << 20));
        check_size("2G", Some(2 << 30));
        for wrong in
            ["", "k", "-1", "1 k", "1kb", "1.5m", "+1", "99999999999999999999", "18446744073709551615k"]
        {
            check_size(wrong, None);
        }
    }

    #[test]
    fn times() {
        check_time("60s", Some(60_000));
        check_time("10ms", Some(10));
        check_time("60", Some(60_000));
        check_time("1h30m", Some(5_400_000));
        check_time("1h 30m", Some(5_400_000));
        check_time("1d 5", Some(86_405_000));
        check_time("1M", Some(30 * 86_400_000));
        check_time("1s500ms", Some(1500));
        check_time("0", Some(0));
        for wrong in
            ["", "s", " 1s", "1x", "-1s", "1.5s", "30m1h", "1s1s", "1 1", "1s 1", "9999999999999999y"]
        {
            check_time(wrong, None);
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "[0-9kKmMgGsyhdw é-]{0,24}") {
            let _ = (parse_size(&text), parse_time(&text));
        }

        #[test]
        fn what_is_written_is_read(n in 0u64..1 << 30) {
            proptest::prop_assert_eq!(parse_size(&format!("{n}k")), Some(n * 1024));
            proptest::prop_assert_eq!(parse_time(&format!("{n}ms")), Some(Duration::from_millis(n)));
            proptest::prop_assert_eq!(parse_time(&format!("1y {n}ms")).is_some(), true);
        }
    }
}
