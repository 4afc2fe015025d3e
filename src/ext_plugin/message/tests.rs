//! What is written reads back; no bytes make a reader fail otherwise than by an error.

use flatbuffers::FlatBufferBuilder;
use http::HeaderValue;
use proptest::prelude::*;

use super::*;

fn headers(list: &[(&'static str, &'static [u8])]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in list {
        map.append(*name, HeaderValue::from_bytes(value).unwrap());
    }
    map
}

fn pairs(
    entries: Option<Vector<'_, flatbuffers::ForwardsUOffset<a6::TextEntry<'_>>>>,
) -> Vec<(String, Option<String>)> {
    let text = |bytes: Vector<'_, u8>| String::from_utf8_lossy(bytes.bytes()).into_owned();
    let entries = entries.into_iter().flat_map(|entries| entries.iter());
    entries.map(|entry| (text(entry.name().unwrap()), entry.value().map(text))).collect()
}

#[track_caller]
fn check_request(args: &str, expected_args: &[(&str, Option<&str>)]) {
    let call = RequestCall {
        client: "1.2.3.4".parse().unwrap(),
        method: &Method::PATCH,
        path: b"/a\xff",
        args,
        headers: &headers(&[("x-a", b"1"), ("host", b"client"), ("x-a", b"\xe9")]),
        host: Some(b"upstream"),
    };
    let mut encoder = Encoder::default();
    for _ in 0..2 {
        let payload = encoder.request(&call, 7, 9).unwrap();
        let read = flatbuffers::root::<httpreq_call::Req<'_>>(payload).unwrap();
        assert_eq!((read.id(), read.conf_token(), read.method()), (7, 9, a6::Method::PATCH));
        assert_eq!(read.src_ip().unwrap().bytes(), [1, 2, 3, 4]);
        assert_eq!(read.path().unwrap().bytes(), b"/a\xff");
        let owned = |(name, value): &(&str, Option<&str>)| ((*name).to_owned(), value.map(str::to_owned));
        assert_eq!(pairs(read.args()), expected_args.iter().map(owned).collect::<Vec<_>>());
        let expected = [("x-a", "1"), ("x-a", "\u{fffd}"), ("host", "upstream")];
        assert_eq!(pairs(read.headers()), expected.map(|(n, v)| (n.to_owned(), Some(v.to_owned()))));
    }
}

#[test]
fn requests() {
    check_request("", &[]);
    check_request("a=1&b&c=&a=%20", &[("a", Some("1")), ("b", None), ("c", Some("")), ("a", Some(" "))]);
}

#[test]
fn texts_end_with_a_zero() {
    let mut encoder = Encoder::default();
    let payload = encoder.prepare_conf(&[("name".into(), "value".into())], "the key");
    let read = flatbuffers::root::<prepare_conf::Req<'_>>(payload).unwrap();
    assert_eq!(read.key().unwrap().bytes(), b"the key");
    assert_eq!(pairs(read.conf()), [("name".to_owned(), Some("value".to_owned()))]);
    assert!(payload.windows(8).any(|bytes| bytes == b"the key\0"));
    assert!(payload.windows(5).any(|bytes| bytes == b"name\0"));
    let payload = encoder.prepare_conf(&[], "");
    assert!(flatbuffers::root::<prepare_conf::Req<'_>>(payload).unwrap().conf().is_none());
}

#[test]
fn methods_without_a_number() {
    let purge = Method::from_bytes(b"PURGE").unwrap();
    let call = RequestCall {
        client: "::1".parse().unwrap(),
        method: &purge,
        path: b"/",
        args: "",
        headers: &HeaderMap::new(),
        host: None,
    };
    let error = Encoder::default().request(&call, 1, 1).unwrap_err();
    assert_eq!(error.to_string(), "the protocol has no number for the method PURGE");
}

#[test]
fn responses_keep_the_case_of_names() {
    let mut head = ResponseHeader::build(404, None).unwrap();
    head.append_header("X-Case", "1").unwrap();
    let mut encoder = Encoder::default();
    let payload = encoder.response(&ResponseCall { head: &head }, 3, 4);
    let read = flatbuffers::root::<httpresp_call::Req<'_>>(payload).unwrap();
    assert_eq!((read.id(), read.conf_token(), read.status()), (3, 4, 404));
    assert_eq!(pairs(read.headers()), [("X-Case".to_owned(), Some("1".to_owned()))]);
}

#[test]
fn answers() {
    let mut encoder = Encoder::default();
    for (given, expected) in [(None, None), (Some(&b""[..]), Some(&b""[..])), (Some(b"x"), Some(b"x"))] {
        let read = flatbuffers::root::<extra_info::Resp<'_>>(encoder.answer(given)).unwrap();
        assert_eq!(read.result().map(|bytes| bytes.bytes().to_vec()).as_deref(), expected);
    }
}

/// A reply with a rewrite, as a runner writes it.
fn rewrite() -> Bytes {
    let mut builder = FlatBufferBuilder::new();
    let name = Some(builder.create_vector(b"x-a"));
    let value = Some(builder.create_vector(b"1"));
    let with = a6::TextEntry::create(&mut builder, &a6::TextEntryArgs { name, value });
    let without = a6::TextEntry::create(&mut builder, &a6::TextEntryArgs { name, value: None });
    let nameless = a6::TextEntry::create(&mut builder, &a6::TextEntryArgs::default());
    let headers = Some(builder.create_vector(&[with, without, nameless]));
    let path = Some(builder.create_vector(b"/p"));
    let args = httpreq_call::RewriteArgs { path, headers, ..httpreq_call::RewriteArgs::default() };
    let action = httpreq_call::Rewrite::create(&mut builder, &args).as_union_value();
    let action_type = httpreq_call::Action::Rewrite;
    let reply = httpreq_call::RespArgs { id: 5, action_type, action: Some(action) };
    let root = httpreq_call::Resp::create(&mut builder, &reply);
    builder.finish(root, None);
    Bytes::copy_from_slice(builder.finished_data())
}

#[test]
fn rewrites() {
    let (id, action) = read_request_reply(&rewrite()).unwrap();
    let entry = |value: Option<&'static str>| Entry {
        name: Bytes::from_static(b"x-a"),
        value: value.map(|value| Bytes::from_static(value.as_bytes())),
    };
    let expected = Rewrite {
        path: Some(Bytes::from_static(b"/p")),
        headers: vec![entry(Some("1")), entry(None)],
        ..Rewrite::default()
    };
    assert_eq!((id, action), (5, Action::Rewrite(expected)));
}

#[test]
fn an_action_that_nobody_knows_is_none() {
    let mut builder = FlatBufferBuilder::new();
    let action = Some(httpreq_call::Stop::create(&mut builder, &Default::default()).as_union_value());
    let reply = httpreq_call::RespArgs { id: 1, action_type: httpreq_call::Action(77), action };
    let root = httpreq_call::Resp::create(&mut builder, &reply);
    builder.finish(root, None);
    let payload = Bytes::copy_from_slice(builder.finished_data());
    assert_eq!(read_request_reply(&payload).unwrap(), (1, Action::None));
}

#[test]
fn more_entries_than_anybody_means_are_refused() {
    let read = |count: usize| {
        let mut builder = FlatBufferBuilder::new();
        let name = builder.create_string("a");
        let name = Some(WIPOffset::new(name.value()));
        let entry = a6::TextEntry::create(&mut builder, &a6::TextEntryArgs { name, value: None });
        let headers = Some(builder.create_vector(&vec![entry; count]));
        let args = httpresp_call::RespArgs { headers, ..Default::default() };
        let root = httpresp_call::Resp::create(&mut builder, &args);
        builder.finish(root, None);
        read_response_reply(&Bytes::copy_from_slice(builder.finished_data()))
    };
    assert_eq!(read(16_384).unwrap().1.headers.len(), 16_384);
    assert!(matches!(read(16_385), Err(CallError::Malformed(_))));
}

#[test]
fn errors() {
    for (code, expected) in [
        (0, "the runner answered: bad request"),
        (1, "the runner answered: service unavailable"),
        (2, "the runner answered: conf token not found"),
        (200, "the runner answered: unknown err 200"),
    ] {
        let mut builder = FlatBufferBuilder::new();
        let args = a6::err::RespArgs { code: a6::err::Code(code) };
        let root = a6::err::Resp::create(&mut builder, &args);
        builder.finish(root, None);
        assert_eq!(read_error(&Bytes::copy_from_slice(builder.finished_data())).to_string(), expected);
    }
    assert!(matches!(read_error(&Bytes::new()), CallError::Malformed(_)));
}

/// Reads bytes as everything that a runner may send; what is read lies inside of them.
fn read_all(bytes: &[u8]) {
    let payload = Bytes::copy_from_slice(bytes);
    let inside = |part: &Bytes| {
        let (from, to) = (payload.as_ptr() as usize, payload.as_ptr() as usize + payload.len());
        let at = part.as_ptr() as usize;
        part.is_empty() || (from <= at && at + part.len() <= to)
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
        }
        _ => {}
    }
    if let Ok((_, change)) = read_response_reply(&payload) {
        assert!(all_inside(&change.headers) && inside(&change.body));
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        read_all(&bytes);
    }

    #[test]
    fn a_damaged_message_is_read_or_refused(
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<proptest::sample::Index>(),
    ) {
        let mut bytes = rewrite().to_vec();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        read_all(&bytes);
        bytes.truncate(cut.index(bytes.len()));
        read_all(&bytes);
    }
}
