//! Session cookies: nothing opens that was not sealed, and no login that opens is half a one.

use portcullis::builtin::{
    openid_connect::session::Login,
    shared::{cookie, seal::Sealer},
};

/// Takes bytes as a `Cookie` header, as a sealed text, and as what is in one.
pub fn run(data: &[u8]) {
    let sealer = Sealer::new("0123456789abcdef", "fuzz");
    if let Ok(text) = std::str::from_utf8(data) {
        for (name, value) in cookie::pairs(text) {
            assert!(!name.contains(';') && !value.contains(';'));
            assert_eq!(sealer.open(b"", value), None);
        }
    }
    let sealed = sealer.seal(b"", data).expect("random numbers");
    assert_eq!(sealer.open(b"", &sealed).as_deref(), Some(data));
    if let Ok(login) = serde_json::from_slice::<Login>(data) {
        let again = serde_json::to_vec(&login).expect("it is JSON");
        assert!(serde_json::from_slice::<Login>(&again).is_ok());
    }
}
