"""The reader and the writer against the `flatbuffers` package, and against bytes that nobody meant."""

import gateway
import pytest
from apisix.runner import wire
from hypothesis import given, settings
from hypothesis import strategies as st

# what JSON and HTTP bring, and bytes that are no UTF-8
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
pairs = st.lists(st.tuples(text, st.none() | text), max_size=12)
u32 = st.integers(0, 0xFFFFFFFF)


def reply(frame):
    kind, length = wire.frame_head(frame[:4])
    assert length == len(frame) - 4
    return gateway.read_reply(kind, frame[4:])


@given(u32, st.sampled_from(gateway.METHODS), text, pairs, pairs, u32, st.sampled_from([4, 16]))
def test_a_request_call_is_read(id, method, path, args, headers, token, length):
    address = bytes(range(length))
    table = wire.Table(gateway.req_call(token, id, method, path, args, headers, address))
    assert (table.u32(0), table.blob(1), wire.METHODS[table.u8(2)]) == (id, address, method)
    assert (table.text(3), table.pairs(4), table.pairs(5), table.u32(6)) == (path, args, headers, token)


@given(text, pairs)
def test_a_preparation_is_read(key, conf):
    table = wire.Table(gateway.prepare_conf(key, conf))
    assert (table.text(1), table.pairs(0)) == (key, conf)


def test_what_is_not_there():
    table = wire.Table(gateway.prepare_conf(None, None))
    assert (table.text(1), table.pairs(0), table.blob(1), table.u8(7), table.u16(7), table.u32(7), table.table(7)) == (
        None,
        [],
        None,
        0,
        0,
        0,
        None,
    )
    assert wire.Table(gateway.extra_info(None)).blob(0) is None
    assert wire.Table(gateway.extra_info(b"")).blob(0) == b""


@given(st.binary(max_size=200))
def test_bytes_that_are_no_text_survive(value):
    b = gateway.extra_info(value)
    read = wire.Table(b).text(0)
    assert read.encode("utf-8", "surrogateescape") == value
    written = wire.ask_variable(read)
    question = gateway.Read(written[4:])
    assert (question.u8(0), question.child(1).blob(0)) == (1, value)


@given(u32, st.integers(0, 0xFFFF), pairs, st.binary(max_size=300))
def test_a_stop_is_written(id, status, headers, body):
    expected = {"kind": "stop", "id": id, "status": status}
    expected.update({"headers": headers} if headers else {}, **({"body": body} if body else {}))
    assert reply(wire.stop(id, status, headers, body)) == expected


@given(u32, st.none() | text, pairs, pairs, pairs, st.binary(max_size=300))
def test_a_rewrite_is_written(id, path, headers, args, resp_headers, body):
    parts = {"headers": headers, "args": args, "resp_headers": resp_headers, "body": body}
    expected = {"kind": "rewrite", "id": id, **{name: value for name, value in parts.items() if value}}
    if path is not None:
        expected["path"] = path
    assert reply(wire.rewrite(id, path, headers, args, resp_headers, body)) == expected


@given(u32, st.integers(0, 0xFFFF), pairs, st.binary(max_size=300))
def test_a_response_is_written(id, status, headers, body):
    parts = {"status": status, "headers": headers, "body": body}
    expected = {"kind": "response", "id": id, **{name: value for name, value in parts.items() if value}}
    assert reply(wire.response_changed(id, status, headers, body)) == expected


@given(u32)
def test_small_replies(number):
    assert reply(wire.request_unchanged(number)) == {"kind": "none", "id": number}
    assert reply(wire.response_unchanged(number)) == {"kind": "response", "id": number}
    assert reply(wire.conf_token(number)) == {"kind": "token", "token": number}
    assert reply(wire.error(number % 3)) == {"kind": "error", "code": number % 3}


def test_questions():
    for question, kind in ((wire.ASK_REQUEST_BODY, 2), (wire.ASK_RESPONSE_BODY, 3)):
        assert wire.frame_head(question)[0] == wire.EXTRA_INFO
        read = gateway.Read(question[4:])
        assert read.u8(0) == kind
        assert read.child(1).blob(0) is None


@given(pairs, st.binary(max_size=300))
def test_everything_is_aligned(headers, body):
    """Readers in other languages refuse numbers that do not stand at a multiple of their size."""
    frame = wire.rewrite(1, "/x", headers, headers, headers, body)[4:]

    def aligned(at, places):
        assert at % 4 == 0
        vtable = at - int.from_bytes(frame[at : at + 4], "little", signed=True)
        assert vtable % 2 == 0 and 0 < vtable < len(frame)
        for place in places:
            assert place % 4 == 0

    root = gateway.Read(frame)
    action = root.child(2)
    aligned(root.table.Pos, [root._place(0), root._place(2)])
    aligned(action.table.Pos, [place for place in map(action._place, range(5)) if place])
    for field in (1, 2, 3):
        offset = action.table.Offset(4 + 2 * field)
        if offset:
            start = action.table.Vector(offset)
            assert start % 4 == 0
            for index in range(action.table.VectorLen(offset)):
                entry = gateway.Read(frame, action.table.Indirect(start + 4 * index))
                aligned(entry.table.Pos, [place for place in map(entry._place, range(2)) if place])


@pytest.mark.parametrize("length", [wire.MAX_PAYLOAD - 63, wire.MAX_PAYLOAD])
def test_a_frame_that_is_too_large(length):
    if length < wire.MAX_PAYLOAD:
        assert len(wire.stop(1, 200, [], b"x" * (length - 40))) <= wire.MAX_PAYLOAD + 4
    else:
        with pytest.raises(wire.TooLarge):
            wire.stop(1, 200, [], b"x" * length)


def read_everything(table, depth=0):
    for field in range(9):
        for read in (table.u8, table.u16, table.u32, table.blob, table.text, table.pairs):
            try:
                read(field)
            except wire.BadBuffer:
                pass
        if depth < 2:
            try:
                child = table.table(field)
            except wire.BadBuffer:
                continue
            if child is not None:
                read_everything(child, depth + 1)


@given(st.binary(max_size=120))
def test_any_bytes_are_read_or_refused(payload):
    try:
        table = wire.Table(payload)
    except wire.BadBuffer:
        return
    read_everything(table)


CALL = gateway.req_call(7, headers=[("host", "a.com"), ("x", None)], args=[("a", "1")])


@settings(max_examples=400)
@given(st.lists(st.tuples(st.integers(0, len(CALL) - 1), st.integers(0, 255)), max_size=4), st.integers(0, len(CALL)))
def test_a_damaged_call_is_read_or_refused(changes, length):
    damaged = bytearray(CALL)
    for place, byte in changes:
        damaged[place] = byte
    try:
        table = wire.Table(bytes(damaged[:length]))
    except wire.BadBuffer:
        return
    read_everything(table)
