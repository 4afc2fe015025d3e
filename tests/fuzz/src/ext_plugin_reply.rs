//! What runners send: whatever it is, it is read or refused, and what is read lies inside of it.

use bytes::Bytes;
use portcullis::ext_plugin::message::{
    Action, Entry, read_error, read_question, read_request_reply, read_response_reply, read_token,
};

/// Reads bytes as each of the messages that a runner may send.
pub fn run(data: &[u8]) {
    let payload = Bytes::copy_from_slice(data);
    let from = payload.as_ptr() as usize;
    let inside = |part: &Bytes| {
        let at = part.as_ptr() as usize;
        part.is_empty() || (from <= at && at + part.len() <= from + payload.len())
    };
    let all_inside = |entries: &[Entry]| {
        entries.iter().all(|entry| inside(&entry.name) && entry.value.as_ref().is_none_or(inside))
    };
    let _ = (read_token(&payload), read_error(&payload), read_question(&payload));
    match read_request_reply(&payload) {
        Ok((_, Action::Stop(stop))) => assert!(all_inside(&stop.headers) && inside(&stop.body)),
        Ok((_, Action::Rewrite(rewrite))) => {
            assert!(all_inside(&rewrite.headers) && all_inside(&rewrite.args));
            assert!(all_inside(&rewrite.response_headers) && inside(&rewrite.body));
            assert!(rewrite.path.as_ref().is_none_or(inside));
        }
        _ => {}
    }
    if let Ok((_, change)) = read_response_reply(&payload) {
        assert!(all_inside(&change.headers) && inside(&change.body));
    }
}
