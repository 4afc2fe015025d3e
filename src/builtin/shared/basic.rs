//! `Authorization: Basic` (RFC 7617) as APISIX reads it.
//!
//! APISIX: plugins/basic-auth.lua, plugins/ldap-auth.lua `extract_auth_header`. Invariant: nothing panics on any input.

use std::borrow::Cow;

/// What follows the first `Basic` and one white space, wherever it stands.
pub fn token(header: &[u8], any_case: bool) -> Option<&[u8]> {
    let is_scheme =
        |word: &[u8]| if any_case { word.eq_ignore_ascii_case(b"Basic") } else { word == b"Basic" };
    let at = header.windows(6).position(|window| is_scheme(&window[..5]) && is_space(window[5]))?;
    Some(&header[at + 6..]).filter(|token| !token.is_empty())
}

/// User name and password.
pub type Pair<'d> = (Cow<'d, [u8]>, Cow<'d, [u8]>);

/// User name and password, without any white space; `None` if there is no colon or nothing after it.
pub fn split(decoded: &[u8]) -> Option<Pair<'_>> {
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    let (username, password) = (&decoded[..colon], &decoded[colon + 1..]);
    (!password.is_empty()).then(|| (without_space(username), without_space(password)))
}

fn without_space(text: &[u8]) -> Cow<'_, [u8]> {
    if text.iter().copied().any(is_space) {
        return text.iter().copied().filter(|byte| !is_space(*byte)).collect::<Vec<u8>>().into();
    }
    text.into()
}

/// `\s` of PCRE.
fn is_space(byte: u8) -> bool {
    byte == b' ' || (9..=13).contains(&byte)
}

#[cfg(test)]
mod tests {
    use ::base64::{Engine, engine::general_purpose::STANDARD};
    use proptest::prelude::*;

    use super::*;
    use crate::builtin::shared::base64;

    proptest! {
        #[test]
        fn reads_any_header(header in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Some(decoded) = token(&header, true).and_then(base64::decode) {
                let _ = split(&decoded);
            }
        }

        #[test]
        fn reads_what_was_written(user in "[^: \t\n\r\x0b\x0c]{0,8}", password in "[^ \t\n\r\x0b\x0c]{1,8}") {
            let header = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
            let decoded = base64::decode(token(header.as_bytes(), false).unwrap()).unwrap();
            let (u, p) = split(&decoded).unwrap();
            prop_assert_eq!((u.as_ref(), p.as_ref()), (user.as_bytes(), password.as_bytes()));
        }
    }
}
