//! One cookie out of a Cookie header, as lua-resty-cookie reads it.

/// The value of a cookie. Names are case-sensitive, values are neither unquoted nor decoded, and of several
/// cookies with one name the last counts.
///
/// A value ends at `;` or a tab; a name runs up to the next `=`, whatever is in between.
#[must_use]
pub fn find<'h>(header: &'h str, name: &str) -> Option<&'h str> {
    let mut found = None;
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t']);
        let Some((key, tail)) = rest.split_once('=') else { return found };
        let (value, next) = match tail.find([';', '\t']) {
            Some(end) => (&tail[..end], Some(&tail[end + 1..])),
            None => (tail, None),
        };
        if key == name {
            found = Some(value);
        }
        match next {
            Some(next) => rest = next,
            None => return found,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(header: &str, name: &str, expected: Option<&str>) {
        assert_eq!(find(header, name), expected, "{name} in {header}");
    }

    #[test]
    fn finds() {
        check("a=1; b=2", "a", Some("1"));
        check("a=1; b=2", "b", Some("2"));
        check("a=1;b=2", "b", Some("2"));
        check("a=1; b=2", "c", None);
        check("a=1; a=2", "a", Some("2"));
        check("A=1", "a", None);
        check("a=", "a", Some(""));
        check("a=b=c", "a", Some("b=c"));
        check("a=x y; b=2", "a", Some("x y"));
        check("a=%20", "a", Some("%20"));
        check("", "a", None);
        check("a", "a", None);
        // A name without `=` swallows what follows, up to the next `=`.
        check("x; a=1", "a", None);
        check("x; a=1", "x; a", Some("1"));
    }

    proptest! {
        #[test]
        fn reads_what_was_joined(values in proptest::collection::vec("[a-z0-9=%]{0,6}", 1..6)) {
            let header: Vec<String> = values.iter().enumerate().map(|(i, v)| format!("k{i}={v}")).collect();
            let header = header.join("; ");
            for (i, value) in values.iter().enumerate() {
                prop_assert_eq!(find(&header, &format!("k{i}")), Some(value.as_str()));
            }
        }

        #[test]
        fn never_panics(header in "\\PC{0,24}|[a=; \\t]{0,24}") {
            let _ = find(&header, "a");
        }
    }
}
