"""The response as plugins see it: `Response` in `filter`, where any change means that the gateway answers at once, and
`PostResponse` in `filter_response`, which changes what the upstream has answered."""

from __future__ import annotations

from typing import Dict, List, Mapping, Optional, Union

from apisix.runner import wire
from apisix.runner.http.request import _Asking, _decode, _encode


class Response:
    """The answer that a plugin gives instead of the upstream. As long as nothing is set, the request goes on. Setters
    refuse what is empty: they give False then."""

    __slots__ = ("_body", "_headers", "_more", "_status", "_id")

    def __init__(self) -> None:
        self._body: Union[str, bytes] = ""
        self._headers: Dict[str, str] = {}
        self._more: List[wire.Pair] = []
        self._status = 0
        self._id = 0

    def get_header(self, key: str) -> Optional[str]:
        """A header that was set."""
        return self._headers.get(key)

    def set_header(self, key: str, value: str) -> bool:
        """Sets a header."""
        if not (key and value):
            return False
        self._headers[key] = value
        return True

    def add_header(self, key: str, value: str) -> bool:
        """Adds one more header of a name, such as a second `Set-Cookie`."""
        if not (key and value):
            return False
        self._more.append((key, value))
        return True

    def get_headers(self) -> Dict[str, str]:
        """The headers that were set, by name. What is changed in it is sent."""
        return self._headers

    def set_headers(self, headers: Dict[str, str]) -> bool:
        """Sets these headers in place of those that were set before."""
        if not headers:
            return False
        self._headers = headers
        return True

    def get_body(self) -> Union[str, bytes]:
        """The body that was set."""
        return self._body

    def set_body(self, body: Union[str, bytes]) -> bool:
        """Sets the body. A text is sent as UTF-8."""
        if not body:
            return False
        self._body = body
        return True

    def get_status_code(self) -> int:
        """The status that was set, 200 if none was."""
        return self._status or 200

    def set_status_code(self, status_code: int) -> bool:
        """Sets the status, 100 to 599."""
        if not (status_code and 100 <= status_code <= 599):
            return False
        self._status = status_code
        return True

    def get_req_id(self) -> int:
        """The gateway's number of this call, for logs."""
        return self._id

    def set_req_id(self, req_id: int) -> bool:
        """Sets what `get_req_id` gives; the reply keeps the gateway's number."""
        if not req_id:
            return False
        self._id = req_id
        return True

    def changed(self) -> bool:
        """Whether anything was set, which ends the request here."""
        return bool(self._body or self._headers or self._status or self._more)

    def _reply(self, id: int) -> bytes:
        body = self._body.encode("utf-8", "surrogateescape") if isinstance(self._body, str) else self._body
        headers: List[wire.Pair] = [(name, str(value)) for name, value in self._headers.items()]
        return wire.stop(id, self.get_status_code(), headers + self._more, body)


class PostResponse(_Asking):
    """What the upstream has answered. Setters refuse what is empty: they give False then."""

    __slots__ = ("_status", "_new_status", "_headers", "_changes", "_new_body")

    def __init__(self, message: wire.Table, channel: object, confs: Mapping[str, str]) -> None:
        super().__init__(message, channel, confs)  # type: ignore[arg-type]
        self._status = message.u16(1)
        self._new_status = 0
        self._headers: Optional[List[wire.Pair]] = None
        self._changes: List[wire.Pair] = []
        self._new_body = b""

    def get_status_code(self) -> int:
        """The status that the client will get."""
        return self._new_status or self._status

    def set_status_code(self, status_code: int) -> bool:
        """Sets the status, 100 to 599."""
        if not (status_code and 100 <= status_code <= 599):
            return False
        self._new_status = status_code
        return True

    def _all(self) -> List[wire.Pair]:
        if self._headers is None:
            self._headers = self._message.pairs(2)
        return self._headers

    def get_header(self, key: str) -> Optional[str]:
        """A header in any case, as the client will get it; the first if there are several."""
        values = self.get_header_values(key)
        return values[0] if values else None

    def get_header_values(self, key: str) -> List[str]:
        """All values of a header, as the client will get them."""
        lower = key.lower()
        return [value or "" for name, value in self._all() if name.lower() == lower]

    def get_headers(self) -> Dict[str, str]:
        """A copy of the headers, as the client will get them, by the names that the upstream wrote."""
        return {name: value or "" for name, value in self._all()}

    def set_header(self, key: str, value: str) -> bool:
        """Sets a header in place of all of that name."""
        if not (key and value):
            return False
        self._replace(key, [(key, str(value))])
        return True

    def add_header(self, key: str, value: str) -> bool:
        """Adds one more header of a name; those of the upstream stay."""
        if not (key and value):
            return False
        values: List[wire.Pair] = [(key, one) for one in self.get_header_values(key)]
        self._replace(key, values + [(key, str(value))])
        return True

    def set_headers(self, headers: Dict[str, str]) -> bool:
        """Sets each of these headers. Others stay as they are."""
        for name, value in headers.items():
            self.set_header(name, value)
        return bool(headers)

    def del_header(self, key: str) -> bool:
        """Takes a header away, so that the client does not get it."""
        if not key:
            return False
        self._replace(key, [])
        return True

    def _replace(self, key: str, pairs: List[wire.Pair]) -> None:
        lower = key.lower()
        self._headers = [pair for pair in self._all() if pair[0].lower() != lower] + pairs
        self._changes = [pair for pair in self._changes if pair[0].lower() != lower] + (pairs or [(key, None)])

    def get_body(self) -> str:
        """The body of the response. The gateway holds it back until the plugins are through."""
        return _decode(self.get_body_bytes())

    def get_body_bytes(self) -> bytes:
        """The same as bytes."""
        if self._body is None:
            self._body = self._ask(wire.ASK_RESPONSE_BODY) or b""
        return self._body

    def set_body(self, body: Union[str, bytes]) -> bool:
        """Sets the body. It cannot be made empty."""
        if not body:
            return False
        self._body = self._new_body = _encode(body) if isinstance(body, str) else bytes(body)
        return True

    def changed(self) -> bool:
        """Whether anything was set."""
        return bool(self._new_status or self._changes or self._new_body)

    def _reply(self, id: int, all_headers: bool) -> bytes:
        if not self.changed():
            return wire.response_unchanged(id)
        headers = self._changes
        if all_headers and headers:
            headers = [(name, value) for name, value in self._all() if name.lower() not in _FRAMING]
        return wire.response_changed(id, self._new_status, headers, self._new_body)


# What belongs to the upstream's connection and to the body that may have been replaced.
_FRAMING = frozenset(("connection", "content-length", "keep-alive", "transfer-encoding"))
