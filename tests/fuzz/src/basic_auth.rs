//! `Authorization: Basic`: a user name has no colon, and neither it nor the password has white space.

use portcullis::builtin::shared::{
    base64,
    basic::{split, token},
};

/// Reads a header as strictly and as leniently as the plugin can.
pub fn run(data: &[u8]) {
    for any_case in [false, true] {
        let Some(token) = token(data, any_case) else { continue };
        assert!(!token.is_empty() && data.ends_with(token));
        let Some(decoded) = base64::decode(token) else { continue };
        let Some((user, password)) = split(&decoded) else { continue };
        assert!(!user.contains(&b':') && user.len() + password.len() < decoded.len());
        let space = |byte: &u8| *byte == b' ' || (9..=13).contains(byte);
        assert!(!user.iter().any(space) && !password.iter().any(space));
    }
}
