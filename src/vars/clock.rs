//! Times as logs write them; formatted once a second per thread.

use std::{
    cell::RefCell,
    time::{SystemTime, UNIX_EPOCH},
};

use chrono::{DateTime, Datelike, Local, Utc};

type Last = RefCell<(u64, String)>;

thread_local! {
    static ISO: Last = const { RefCell::new((u64::MAX, String::new())) };
    static COMMON: Last = const { RefCell::new((u64::MAX, String::new())) };
    static HTTP: Last = const { RefCell::new((u64::MAX, String::new())) };
}

/// nginx's `$time_iso8601`: `2026-11-22T08:44:24+00:00`.
#[must_use]
pub fn iso8601(at: SystemTime) -> String {
    ISO.with(|last| once_a_second(last, at, |at| local(at, "%Y-%m-%dT%H:%M:%S%:z")))
}

/// nginx's `$time_local`: `22/Nov/2026:08:44:24 +0000`.
#[must_use]
pub fn common_log(at: SystemTime) -> String {
    COMMON.with(|last| once_a_second(last, at, |at| local(at, "%d/%b/%Y:%H:%M:%S %z")))
}

/// The `Date` header (RFC 9110 §5.6.7): `Sun, 22 Nov 2026 08:44:24 GMT`.
#[must_use]
pub fn http_date(at: SystemTime) -> String {
    let format = |at| DateTime::<Utc>::from(at).format("%a, %d %b %Y %H:%M:%S GMT").to_string();
    HTTP.with(|last| once_a_second(last, at, format))
}

/// `Expires` of a cookie as `ngx.cookie_time` writes it, of seconds since 1970: two digits of the year up to 2037.
#[must_use]
pub fn cookie_time(at: i64) -> String {
    let at = DateTime::<Utc>::from_timestamp(at, 0).unwrap_or_default();
    let format = if at.year() > 2037 { "%a, %d-%b-%Y %H:%M:%S GMT" } else { "%a, %d-%b-%y %H:%M:%S GMT" };
    at.format(format).to_string()
}

/// ISO 8601 without separators, in UTC, as signatures of AWS have it: `20261122T084424Z`.
#[must_use]
pub fn basic_iso8601(at: SystemTime) -> String {
    DateTime::<Utc>::from(at).format("%Y%m%dT%H%M%SZ").to_string()
}

fn local(at: SystemTime, format: &str) -> String {
    DateTime::<Local>::from(at).format(format).to_string()
}

fn once_a_second(last: &Last, at: SystemTime, format: impl Fn(SystemTime) -> String) -> String {
    let second = at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (known, text) = &mut *last.borrow_mut();
    if *known != second {
        *text = format(at);
        *known = second;
    }
    text.clone()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_of_cookies() {
        assert_eq!(cookie_time(1_290_079_655), "Thu, 18-Nov-10 11:27:35 GMT");
        assert_eq!(cookie_time(2_145_916_800), "Fri, 01-Jan-2038 00:00:00 GMT");
        assert_eq!(cookie_time(i64::MAX), "Thu, 01-Jan-70 00:00:00 GMT");
    }

    #[test]
    fn an_http_date_is_the_rfcs_own_example() {
        let at = UNIX_EPOCH + Duration::from_secs(784_111_777);
        assert_eq!(http_date(at), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(http_date(at + Duration::from_secs(1)), "Sun, 06 Nov 1994 08:49:38 GMT");
    }

    #[test]
    fn log_times_have_nginx_shape() {
        let at = UNIX_EPOCH + Duration::from_secs(784_111_777);
        let shape = |text: String| -> String {
            text.chars()
                .map(|c| {
                    if c.is_ascii_digit() {
                        '0'
                    } else if c.is_alphabetic() {
                        'a'
                    } else {
                        c
                    }
                })
                .collect()
        };
        assert_eq!(shape(common_log(at)).replace('-', "+"), "00/aaa/0000:00:00:00 +0000");
        assert_eq!(shape(iso8601(at)).len(), "2026-11-22T08:44:24+00:00".len());
    }
}
