"""The gateway's side of the ext-plugin protocol, for tests and measurements of runners.

It shares nothing with the runners of this repository: its messages are built and read with the `flatbuffers` package.
"""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import threading
import time
from typing import Any, Dict, List, Optional, Sequence, Tuple

import flatbuffers
from flatbuffers import number_types as N
from flatbuffers.table import Table

ERROR, PREPARE_CONF, HTTP_REQ_CALL, EXTRA_INFO, HTTP_RESP_CALL = range(5)
BAD_REQUEST, SERVICE_UNAVAILABLE, CONF_TOKEN_NOT_FOUND = range(3)
METHODS = "GET HEAD POST PUT DELETE MKCOL COPY MOVE OPTIONS PROPFIND PROPPATCH LOCK UNLOCK PATCH TRACE".split()

Pair = Tuple[str, Optional[str]]


def frame(kind: int, payload: bytes) -> bytes:
    return (kind << 24 | len(payload)).to_bytes(4, "big") + payload


# ------------------------------------------------------------------------------------------------------------ writing


def _pairs(b: flatbuffers.Builder, pairs: Sequence[Pair]) -> int:
    entries = []
    for name, value in pairs:
        parts = [b.CreateString(name), None if value is None else b.CreateString(value)]
        b.StartObject(2)
        b.PrependUOffsetTRelativeSlot(0, parts[0], 0)
        if parts[1] is not None:
            b.PrependUOffsetTRelativeSlot(1, parts[1], 0)
        entries.append(b.EndObject())
    b.StartVector(4, len(entries), 4)
    for entry in reversed(entries):
        b.PrependUOffsetTRelative(entry)
    return b.EndVector()


def _finish(b: flatbuffers.Builder, count: int, fields: Dict[int, Tuple[str, int]]) -> bytes:
    b.StartObject(count)
    for index, (kind, value) in fields.items():
        getattr(b, "Prepend%sSlot" % kind)(index, value, 0)
    b.Finish(b.EndObject())
    return bytes(b.Output())


def prepare_conf(key: Optional[str], conf: Optional[Sequence[Pair]]) -> bytes:
    b = flatbuffers.Builder(256)
    fields = {}
    if conf is not None:
        fields[0] = ("UOffsetTRelative", _pairs(b, conf))
    if key is not None:
        fields[1] = ("UOffsetTRelative", b.CreateString(key))
    return _finish(b, 2, fields)


def req_call(
    token: int,
    id: int = 1,
    method: str = "GET",
    path: str = "/hello",
    args: Sequence[Pair] = (),
    headers: Sequence[Pair] = (),
    ip: bytes = b"\x7f\0\0\1",
) -> bytes:
    b = flatbuffers.Builder(1024)
    parts = [b.CreateByteVector(ip), b.CreateString(path), _pairs(b, args), _pairs(b, headers)]
    offset = "UOffsetTRelative"
    return _finish(
        b,
        7,
        {
            0: ("Uint32", id),
            1: (offset, parts[0]),
            2: ("Uint8", METHODS.index(method)),
            3: (offset, parts[1]),
            4: (offset, parts[2]),
            5: (offset, parts[3]),
            6: ("Uint32", token),
        },
    )


def resp_call(token: int, id: int = 1, status: int = 200, headers: Sequence[Pair] = ()) -> bytes:
    b = flatbuffers.Builder(512)
    pairs = _pairs(b, headers)
    return _finish(
        b, 4, {0: ("Uint32", id), 1: ("Uint16", status), 2: ("UOffsetTRelative", pairs), 3: ("Uint32", token)}
    )


def extra_info(result: Optional[bytes]) -> bytes:
    b = flatbuffers.Builder(64 + len(result or b""))
    return _finish(b, 1, {} if result is None else {0: ("UOffsetTRelative", b.CreateByteVector(result))})


# ------------------------------------------------------------------------------------------------------------ reading


class Read:
    """A table, by the numbers of its fields."""

    def __init__(self, payload: bytes, at: Optional[int] = None) -> None:
        self.table = Table(payload, N.UOffsetTFlags.py_type(int.from_bytes(payload[:4], "little")) if at is None else at)

    def _place(self, field: int) -> int:
        offset = self.table.Offset(4 + 2 * field)
        return offset + self.table.Pos if offset else 0

    def number(self, field: int, flags: Any) -> int:
        place = self._place(field)
        return int(self.table.Get(flags, place)) if place else 0

    def u8(self, field: int) -> int:
        return self.number(field, N.Uint8Flags)

    def u16(self, field: int) -> int:
        return self.number(field, N.Uint16Flags)

    def u32(self, field: int) -> int:
        return self.number(field, N.Uint32Flags)

    def blob(self, field: int) -> Optional[bytes]:
        place = self._place(field)
        return bytes(self.table.String(place)) if place else None

    def text(self, field: int) -> Optional[str]:
        value = self.blob(field)
        return None if value is None else value.decode("utf-8", "surrogateescape")

    def child(self, field: int) -> "Read":
        return Read(self.table.Bytes, self.table.Indirect(self._place(field)))

    def pairs(self, field: int) -> Optional[List[Pair]]:
        offset = self.table.Offset(4 + 2 * field)
        if not offset:
            return None
        start, found = self.table.Vector(offset), []
        for index in range(self.table.VectorLen(offset)):
            entry = Read(self.table.Bytes, self.table.Indirect(start + 4 * index))
            found.append((entry.text(0) or "", entry.text(1)))
        return found


def read_reply(kind: int, payload: bytes) -> Dict[str, Any]:
    """A reply as a dictionary, without the fields that it lacks."""
    root = Read(payload)
    if kind == ERROR:
        reply: Dict[str, Any] = {"kind": "error", "code": root.u8(0)}
    elif kind == PREPARE_CONF:
        reply = {"kind": "token", "token": root.u32(0)}
    elif kind == HTTP_RESP_CALL:
        reply = {"kind": "response", "id": root.u32(0), "status": root.u16(1) or None}
        reply.update(headers=root.pairs(2), body=root.blob(3))
    elif root.u8(1) == 1:
        stop = root.child(2)
        reply = {"kind": "stop", "id": root.u32(0), "status": stop.u16(0)}
        reply.update(headers=stop.pairs(1), body=stop.blob(2))
    elif root.u8(1) == 2:
        rewrite = root.child(2)
        reply = {"kind": "rewrite", "id": root.u32(0), "path": rewrite.text(0), "headers": rewrite.pairs(1)}
        reply.update(args=rewrite.pairs(2), resp_headers=rewrite.pairs(3), body=rewrite.blob(4))
    else:
        reply = {"kind": "none", "id": root.u32(0)}
    return {name: value for name, value in reply.items() if value is not None}


# ------------------------------------------------------------------------------------------------------- conversations


class Closed(Exception):
    """The runner closed the connection."""


class Connection:
    """One connection to a runner."""

    def __init__(self, path: str, patience: float = 30) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(patience)
        self.socket.connect(path)
        #: What the runner asked for in the last call.
        self.asked: List[str] = []

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _exactly(self, count: int) -> bytes:
        got = bytearray()
        while len(got) < count:
            more = self.socket.recv(min(count - len(got), 1 << 20))
            if not more:
                raise Closed("after %d of %d bytes" % (len(got), count))
            got += more
        return bytes(got)

    def receive(self) -> Tuple[int, bytes]:
        head = int.from_bytes(self._exactly(4), "big")
        return head >> 24, self._exactly(head & 0xFFFFFF)

    def send(self, kind: int, payload: bytes) -> None:
        self.socket.sendall(frame(kind, payload))

    def prepare(self, key: Optional[str], conf: Optional[Sequence[Pair]]) -> int:
        """The token; a reply that is none fails."""
        reply = self.try_prepare(key, conf)
        assert reply["kind"] == "token", reply
        return int(reply["token"])

    def try_prepare(self, key: Optional[str], conf: Optional[Sequence[Pair]]) -> Dict[str, Any]:
        self.send(PREPARE_CONF, prepare_conf(key, conf))
        return read_reply(*self.receive())

    def call(
        self,
        kind: int,
        payload: bytes,
        vars: Optional[Dict[str, str]] = None,
        body: Optional[bytes] = None,
        resp_body: Optional[bytes] = None,
    ) -> Dict[str, Any]:
        """One call with the answers to what the runner asks."""
        self.asked = []
        self.send(kind, payload)
        while True:
            got, reply = self.receive()
            if got != EXTRA_INFO:
                assert got in (kind, ERROR), "a frame of type %d answers one of type %d" % (got, kind)
                return read_reply(got, reply)
            question = Read(reply)
            what = question.u8(0)
            if what == 1:
                name = question.child(1).text(0) or ""
                self.asked.append(name)
                value = (vars or {}).get(name)
                answer = None if value is None else value.encode()
            else:
                self.asked.append({2: "<body>", 3: "<response body>"}[what])
                answer = body if what == 2 else resp_body
            self.send(EXTRA_INFO, extra_info(answer))


class Runner:
    """A runner as the gateway starts it."""

    def __init__(self, command: Sequence[str], cwd: Optional[str] = None, expire: int = 3600, patience: float = 60) -> None:
        self.directory = tempfile.TemporaryDirectory(prefix="runner-")
        self.path = os.path.join(self.directory.name, "runner.sock")
        self.output = ""
        self.environment = {
            **os.environ,
            "APISIX_LISTEN_ADDRESS": "unix:" + self.path,
            "APISIX_CONF_EXPIRE_TIME": str(expire),
        }
        self._command, self._cwd, self._patience = command, cwd, patience
        self.start()

    def start(self) -> None:
        """Starts it; also anew, after its end, on the same path."""
        self.process = subprocess.Popen(
            self._command, cwd=self._cwd, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._wait(self._patience)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line.decode("utf-8", "backslashreplace")

    def _wait(self, patience: float) -> None:
        """Until it answers, as the gateway does: a socket alone is no promise."""
        end = time.monotonic() + patience
        while True:
            try:
                with Connection(self.path) as connection:
                    connection.try_prepare("ready", [])
                return
            except (OSError, Closed):
                died = self.process.poll() is not None
                if died or time.monotonic() > end:
                    self.stop()
                    raise AssertionError("the runner does not answer:\n" + self.output) from None
                time.sleep(0.02)

    def connect(self) -> Connection:
        return Connection(self.path)

    def eventually_printed(self, text: str, patience: float = 30) -> None:
        end = time.monotonic() + patience
        while text not in self.output:
            assert time.monotonic() < end, "%r was not printed:\n%s" % (text, self.output)
            time.sleep(0.01)

    def stop(self) -> int:
        """Ends it as the gateway does; gives its exit code."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
        code = self.process.wait()
        self._reader.join(5)
        self.directory.cleanup()
        return code

    def __enter__(self) -> "Runner":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
