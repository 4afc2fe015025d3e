"""Frames and FlatBuffers of the ext-plugin protocol: only bytes, no sockets and no plugins.

A frame is one byte of type, three bytes of length (big endian) and one FlatBuffer. The reader looks at nothing that it
is not asked for, and takes no offset on trust: what points outside of the buffer raises `BadBuffer`. The writer lays
parents before their children, which FlatBuffers allows and which needs no second pass.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Dict, Iterable, List, Optional, Sequence, Tuple, Union

ERROR, PREPARE_CONF, HTTP_REQ_CALL, EXTRA_INFO, HTTP_RESP_CALL = range(5)
BAD_REQUEST, SERVICE_UNAVAILABLE, CONF_TOKEN_NOT_FOUND = range(3)

#: The length field of a frame has 24 bits.
MAX_PAYLOAD = (1 << 24) - 1

METHODS = (
    "GET", "HEAD", "POST", "PUT", "DELETE", "MKCOL", "COPY", "MOVE",
    "OPTIONS", "PROPFIND", "PROPPATCH", "LOCK", "UNLOCK", "PATCH", "TRACE",
)  # fmt: skip

#: A name with its value; None for a value that is not there.
Pair = Tuple[str, Optional[str]]

#: What holds a message.
Buffer = Union[bytes, bytearray]

_u16 = struct.Struct("<H")
_u32 = struct.Struct("<I")
_i32 = struct.Struct("<i")
_head = struct.Struct(">I")
_entry = struct.Struct("<iII")
_name_only = struct.Struct("<iI")

_read_u16 = _u16.unpack_from
_read_u32 = _u32.unpack_from
_read_i32 = _i32.unpack_from


class BadBuffer(ValueError):
    """The peer sent bytes that are not what the protocol says."""


class TooLarge(ValueError):
    """A frame cannot carry what should be sent."""


# ------------------------------------------------------------------------------------------------------------ reading

# The tables of one kind that one gateway sends nearly all have the same vtable, so its bytes are looked up, not read.
_offsets_of: Dict[bytes, Tuple[int, ...]] = {}


def _offsets(vtable: bytes) -> Tuple[int, ...]:
    """The offsets of a vtable's fields; 0 for fields that are not there."""
    fields = struct.unpack("<%dH" % (len(vtable) // 2), vtable)
    size = fields[1]
    # a field begins behind the table's offset to its vtable and ends inside of the table
    if size < 4 or any(offset and not 4 <= offset < size for offset in fields[2:]):
        raise BadBuffer("a field lies outside of its table")
    if len(_offsets_of) > 512:
        _offsets_of.clear()
    offsets = fields[2:]
    _offsets_of[vtable] = offsets
    return offsets


class Table:
    """One table of a buffer. Its methods take the number of a field."""

    __slots__ = ("_buffer", "_at", "_fields")

    def __init__(self, buffer: Buffer, at: Optional[int] = None) -> None:
        """The buffer's root, or the table at a place.

        :raises BadBuffer: there is no table at that place
        """
        try:
            if at is None:
                at = _read_u32(buffer)[0]
            vtable_at = at - _read_i32(buffer, at)[0]
            if vtable_at < 0:
                raise BadBuffer("a vtable lies before the buffer")
            size = _read_u16(buffer, vtable_at)[0]
        except struct.error:
            raise BadBuffer("a table lies outside of the buffer") from None
        vtable = bytes(buffer[vtable_at : vtable_at + size])
        if len(vtable) != size or size < 4 or size % 2:
            raise BadBuffer("a vtable lies outside of the buffer")
        self._buffer = buffer
        self._at = at
        self._fields = _offsets_of.get(vtable) or _offsets(vtable)

    def _place(self, field: int) -> int:
        fields = self._fields
        offset = fields[field] if field < len(fields) else 0
        return self._at + offset if offset else 0

    def u8(self, field: int) -> int:
        place = self._place(field)
        if not place:
            return 0
        if place >= len(self._buffer):
            raise BadBuffer("a field lies outside of the buffer")
        return self._buffer[place]

    def u16(self, field: int) -> int:
        place = self._place(field)
        return _number(_read_u16, self._buffer, place) if place else 0

    def u32(self, field: int) -> int:
        place = self._place(field)
        return _number(_read_u32, self._buffer, place) if place else 0

    def blob(self, field: int) -> Optional[bytes]:
        """A vector of bytes or the bytes of a text."""
        place = self._place(field)
        return _blob(self._buffer, place) if place else None

    def text(self, field: int) -> Optional[str]:
        """A text. Bytes that are not UTF-8 survive being read and written."""
        place = self._place(field)
        return _blob(self._buffer, place).decode("utf-8", "surrogateescape") if place else None

    def table(self, field: int) -> Optional["Table"]:
        place = self._place(field)
        return Table(self._buffer, place + _number(_read_u32, self._buffer, place)) if place else None

    def pairs(self, field: int) -> List[Pair]:
        """A vector of TextEntry."""
        place = self._place(field)
        if not place:
            return []
        buffer = self._buffer
        try:
            start = place + _read_u32(buffer, place)[0]
            count = _read_u32(buffer, start)[0]
            first = start + 4
            if first + 4 * count > len(buffer):
                raise BadBuffer("a vector is longer than the buffer")
            offsets = struct.unpack_from("<%dI" % count, buffer, first)
        except struct.error:
            raise BadBuffer("a vector lies outside of the buffer") from None
        found: List[Pair] = []
        # A header costs what is written here, so the loop calls nothing that it can do without. Builders let entries
        # share a vtable.
        seen, name_at, value_at = -1, 0, 0
        try:
            for offset in offsets:
                at = first + offset
                first += 4
                vtable_at = at - _read_i32(buffer, at)[0]
                if vtable_at != seen:
                    fields = Table(buffer, at)._fields
                    name_at = fields[0] if fields else 0
                    value_at = fields[1] if len(fields) > 1 else 0
                    seen = vtable_at
                name, value = "", None
                if name_at:
                    start = at + name_at + 4 + _read_u32(buffer, at + name_at)[0]
                    length = _read_u32(buffer, start - 4)[0]
                    raw = buffer[start : start + length]
                    if len(raw) != length:
                        raise BadBuffer("a name is longer than the buffer")
                    name = raw.decode("utf-8", "surrogateescape")
                if value_at:
                    start = at + value_at + 4 + _read_u32(buffer, at + value_at)[0]
                    length = _read_u32(buffer, start - 4)[0]
                    raw = buffer[start : start + length]
                    if len(raw) != length:
                        raise BadBuffer("a value is longer than the buffer")
                    value = raw.decode("utf-8", "surrogateescape")
                found.append((name, value))
        except struct.error:
            raise BadBuffer("an entry lies outside of the buffer") from None
        return found


def _number(read, buffer: Buffer, place: int) -> int:  # type: ignore[no-untyped-def]
    try:
        number: int = read(buffer, place)[0]
        return number
    except struct.error:
        raise BadBuffer("a number lies outside of the buffer") from None


def _blob(buffer: Buffer, place: int) -> bytes:
    try:
        start = place + _read_u32(buffer, place)[0]
        length = _read_u32(buffer, start)[0]
    except struct.error:
        raise BadBuffer("a vector lies outside of the buffer") from None
    start += 4
    found = bytes(buffer[start : start + length])
    if len(found) != length:
        raise BadBuffer("a vector is longer than the buffer")
    return found


# ------------------------------------------------------------------------------------------------------------ writing

# Kinds of fields: how many bytes one takes in its table. An offset leads to a table, a text or a vector.
U8, U16, U32, OFFSET = 1, 2, 4, 5


@lru_cache(maxsize=256)
def _layout(kinds: Sequence[int]) -> Tuple[bytes, int, Tuple[int, ...]]:
    """A table as bytes, all fields 0, for fields of these kinds (0: left out).

    Its vtable comes first. Gives where in the bytes the table begins, and where the fields are.
    """
    size = 4
    offsets = []
    for kind in kinds:
        width = 4 if kind == OFFSET else kind
        if not width:
            offsets.append(0)
            continue
        size += -size % width
        offsets.append(size)
        size += width
    vtable = struct.pack("<%dH" % (2 + len(offsets)), 4 + 2 * len(offsets), size, *offsets)
    # the vtable ends where the table begins, at a multiple of four
    padding = bytes(-len(vtable) % 4)
    table = len(padding) + len(vtable)
    laid = padding + vtable + _i32.pack(len(vtable)) + bytes(size - 4)
    return laid + bytes(-len(laid) % 4), table, tuple(table + offset for offset in offsets)


class Writer:
    """A frame that grows. Every place is counted from the frame's first byte; its head takes four, so that what is
    aligned in the frame is aligned in the buffer."""

    __slots__ = ("bytes",)

    def __init__(self) -> None:
        # the head, and the offset of the root
        self.bytes = bytearray(8)

    def table(self, place: int, kinds: Tuple[int, ...]) -> Tuple[int, ...]:
        """Appends a table and points to it from `place`; gives the places of its fields."""
        laid, table, fields = _layout(kinds)
        frame = self.bytes
        start = len(frame)
        frame += laid
        _u32.pack_into(frame, place, start + table - place)
        return tuple([start + field for field in fields])

    def number(self, place: int, kind: int, value: int) -> None:
        """Sets a field that holds a number.

        :raises struct.error: the number does not fit
        """
        struct.pack_into("<B" if kind == U8 else "<H" if kind == U16 else "<I", self.bytes, place, value)

    def blob(self, place: int, value: bytes) -> None:
        """Appends bytes as a vector, or as a text: behind the bytes there is always a zero."""
        frame = self.bytes
        _u32.pack_into(frame, place, len(frame) - place)
        frame += _u32.pack(len(value))
        frame += value
        frame += bytes(4 - len(value) % 4)

    def pairs(self, place: int, pairs: Iterable[Pair]) -> None:
        """Appends a vector of TextEntry."""
        entries = list(pairs)
        frame = self.bytes
        _u32.pack_into(frame, place, len(frame) - place)
        frame += _u32.pack(len(entries))
        slot = len(frame)
        frame += bytes(4 * len(entries))
        # two vtables serve all entries: one with a value and one without (padded to eight bytes)
        full = len(frame)
        frame += b"\x08\x00\x0c\x00\x04\x00\x08\x00\x06\x00\x08\x00\x04\x00\x00\x00"
        for name, value in entries:
            at = len(frame)
            _u32.pack_into(frame, slot, at - slot)
            slot += 4
            key = name.encode("utf-8", "surrogateescape")
            if value is None:
                frame += _name_only.pack(at - full - 8, 4)
                frame += _text(key)
            else:
                first = _text(key)
                frame += _entry.pack(at - full, 8, 4 + len(first))
                frame += first
                frame += _text(value.encode("utf-8", "surrogateescape"))

    def frame(self, kind: int) -> bytes:
        """The finished frame.

        :raises TooLarge: the length field cannot hold its length
        """
        frame = self.bytes
        length = len(frame) - 4
        if length > MAX_PAYLOAD:
            raise TooLarge("%d bytes do not fit into a frame, which carries at most %d" % (length, MAX_PAYLOAD))
        _head.pack_into(frame, 0, kind << 24 | length)
        return bytes(frame)


def _text(value: bytes) -> bytes:
    return _u32.pack(len(value)) + value + bytes(4 - len(value) % 4)


# ----------------------------------------------------------------------------------------------------- whole messages


@lru_cache(maxsize=8)
def error(code: int) -> bytes:
    """Err.Resp"""
    writer = Writer()
    (place,) = writer.table(4, (U8,))
    writer.number(place, U8, code)
    return writer.frame(ERROR)


def conf_token(token: int) -> bytes:
    """PrepareConf.Resp"""
    writer = Writer()
    (place,) = writer.table(4, (U32,))
    writer.number(place, U32, token)
    return writer.frame(PREPARE_CONF)


def _unchanged(kind: int) -> Tuple[bytes, bytes]:
    """A reply that holds nothing but its id: what comes before the id and what comes behind it."""
    writer = Writer()
    (place,) = writer.table(4, (U32,))
    frame = writer.frame(kind)
    return frame[:place], frame[place + 4 :]


_REQ_BEFORE, _REQ_BEHIND = _unchanged(HTTP_REQ_CALL)
_RESP_BEFORE, _RESP_BEHIND = _unchanged(HTTP_RESP_CALL)


def request_unchanged(id: int) -> bytes:
    """HTTPReqCall.Resp without an action"""
    return _REQ_BEFORE + _u32.pack(id) + _REQ_BEHIND


def response_unchanged(id: int) -> bytes:
    """HTTPRespCall.Resp that changes nothing"""
    return _RESP_BEFORE + _u32.pack(id) + _RESP_BEHIND


def _request_reply(id: int, action: int) -> Tuple[Writer, int]:
    writer = Writer()
    id_at, type_at, action_at = writer.table(4, (U32, U8, OFFSET))
    writer.number(id_at, U32, id)
    writer.number(type_at, U8, action)
    return writer, action_at


def stop(id: int, status: int, headers: Sequence[Pair], body: bytes) -> bytes:
    """HTTPReqCall.Resp with a Stop; what is empty is left out."""
    writer, place = _request_reply(id, 1)
    kinds = (U16, OFFSET if headers else 0, OFFSET if body else 0)
    status_at, headers_at, body_at = writer.table(place, kinds)
    writer.number(status_at, U16, status)
    if headers:
        writer.pairs(headers_at, headers)
    if body:
        writer.blob(body_at, body)
    return writer.frame(HTTP_REQ_CALL)


def rewrite(
    id: int,
    path: Optional[str],
    headers: Sequence[Pair],
    args: Sequence[Pair],
    resp_headers: Sequence[Pair],
    body: bytes,
) -> bytes:
    """HTTPReqCall.Resp with a Rewrite; what is empty is left out."""
    writer, place = _request_reply(id, 2)
    present = (path is not None, headers, args, resp_headers, body)
    places = writer.table(place, tuple([OFFSET if one else 0 for one in present]))
    if path is not None:
        writer.blob(places[0], path.encode("utf-8", "surrogateescape"))
    for at, pairs in zip(places[1:4], (headers, args, resp_headers)):
        if pairs:
            writer.pairs(at, pairs)
    if body:
        writer.blob(places[4], body)
    return writer.frame(HTTP_REQ_CALL)


def response_changed(id: int, status: int, headers: Sequence[Pair], body: bytes) -> bytes:
    """HTTPRespCall.Resp; what is empty is left out, and a status of 0 means the upstream's."""
    writer = Writer()
    kinds = (U32, U16 if status else 0, OFFSET if headers else 0, OFFSET if body else 0)
    id_at, status_at, headers_at, body_at = writer.table(4, kinds)
    writer.number(id_at, U32, id)
    if status:
        writer.number(status_at, U16, status)
    if headers:
        writer.pairs(headers_at, headers)
    if body:
        writer.blob(body_at, body)
    return writer.frame(HTTP_RESP_CALL)


@lru_cache(maxsize=1024)
def ask_variable(name: str) -> bytes:
    """ExtraInfo.Req for a variable of the gateway"""
    writer = Writer()
    type_at, info_at = writer.table(4, (U8, OFFSET))
    writer.number(type_at, U8, 1)
    (name_at,) = writer.table(info_at, (OFFSET,))
    writer.blob(name_at, name.encode("utf-8", "surrogateescape"))
    return writer.frame(EXTRA_INFO)


def _ask(kind: int) -> bytes:
    writer = Writer()
    type_at, info_at = writer.table(4, (U8, OFFSET))
    writer.number(type_at, U8, kind)
    writer.table(info_at, ())
    return writer.frame(EXTRA_INFO)


#: ExtraInfo.Req for the body of the request
ASK_REQUEST_BODY = _ask(2)
#: ExtraInfo.Req for the body of the upstream's response
ASK_RESPONSE_BODY = _ask(3)


def frame_head(four: bytes) -> Tuple[int, int]:
    """The type and the length that a frame's first four bytes tell."""
    head: int = _head.unpack_from(four)[0]
    return head >> 24, head & MAX_PAYLOAD
