"""The request as plugins see it: `Request` in `filter`, `PostRequest` in `filter_response`.

Nothing is read from the gateway's message before a plugin asks for it, and only what a plugin changed is sent back.
"""

from __future__ import annotations

from typing import Dict, List, Mapping, Optional, Union

from apisix.runner import wire
from apisix.runner.channel import Channel

_ID, _ADDRESS, _METHOD, _PATH, _ARGS, _HEADERS, _TOKEN = range(7)

#: How variables and bodies become texts. The option `--encoding` sets it.
_encoding = "utf-8"


def set_encoding(encoding: str) -> None:
    """Chooses how variables and bodies become texts: `utf-8`, or `latin-1` with one character for each byte."""
    global _encoding
    _encoding = encoding


def _decode(value: bytes) -> str:
    return value.decode(_encoding, "surrogateescape")


def _encode(text: str) -> bytes:
    """The bytes of a text that may have come from `_decode`."""
    try:
        return text.encode(_encoding, "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


class _Asking:
    """What both kinds of request have: questions to the gateway, while the call lasts."""

    __slots__ = ("_message", "_channel", "_confs", "_vars", "_body")

    def __init__(self, message: wire.Table, channel: Channel, confs: Mapping[str, str]) -> None:
        self._message = message
        self._channel: Optional[Channel] = channel
        self._confs = confs
        self._vars: Optional[Dict[str, Optional[bytes]]] = None
        self._body: Optional[bytes] = None

    def _ask(self, question: bytes) -> Optional[bytes]:
        if self._channel is None:
            raise RuntimeError("the call is over: the gateway cannot be asked any more")
        return self._channel.ask(question)

    def _end(self) -> None:
        """The reply is on its way: a question asked now would be taken for the next reply."""
        self._channel = None

    def get_var(self, key: str) -> str:
        """A variable of the gateway by its name without `$`, such as `remote_addr` or `route_id`; "" if it has none.
        Asked once in a call."""
        return _decode(self.get_var_bytes(key) or b"")

    def get_var_bytes(self, key: str) -> Optional[bytes]:
        """The same as bytes; None if the gateway does not have it."""
        if self._vars is None:
            self._vars = {}
        elif key in self._vars:
            return self._vars[key]
        value = self._ask(wire.ask_variable(key))
        self._vars[key] = value
        return value

    def set_var(self, key: str, val: str) -> bool:
        """Sets what `get_var` gives from now on, in this runner only."""
        if not (key and val):
            return False
        if self._vars is None:
            self._vars = {}
        self._vars[key] = _encode(val)
        return True

    def get_body(self) -> str:
        """The body of the request, "" if there is none. Bytes that are no UTF-8 survive `set_body(get_body())`."""
        return _decode(self.get_body_bytes())

    def get_body_bytes(self) -> bytes:
        """The same as bytes."""
        if self._body is None:
            self._body = self._ask(wire.ASK_REQUEST_BODY) or b""
        return self._body

    def get_config(self, key: str) -> Optional[str]:
        """The configuration of a plugin of this call, as it stands in the route."""
        return self._confs.get(key)

    def get_configs(self) -> Dict[str, str]:
        """The configurations of all plugins of this call, by name."""
        return dict(self._confs)


class Request(_Asking):
    """The request of a client. Setters refuse what is empty: they give False then."""

    __slots__ = (
        "_id",
        "_token",
        "_address",
        "_method",
        "_uri",
        "_headers",
        "_sent_headers",
        "_args",
        "_sent_args",
        "_gone_headers",
        "_gone_args",
        "_resp_headers",
        "_new_body",
        "_touched",
    )

    def __init__(self, message: wire.Table, channel: Channel, confs: Mapping[str, str], token: int) -> None:
        self._message = message
        self._channel = channel
        self._confs = confs
        self._vars = None
        self._body = None
        self._id = message.u32(_ID)
        self._token = token
        self._address: Optional[str] = None
        self._method: Optional[str] = None
        self._uri: Optional[str] = None
        self._headers: Optional[Dict[str, str]] = None
        self._args: Optional[Dict[str, str]] = None
        # Whether anything may have to be sent back. Everything below is only there when it is set.
        self._touched = False

    def _touch(self) -> None:
        if not self._touched:
            self._touched = True
            self._sent_headers: Dict[str, str] = {}
            self._sent_args: Dict[str, str] = {}
            self._gone_headers: List[str] = []
            self._gone_args: List[str] = []
            self._resp_headers: List[wire.Pair] = []
            self._new_body = b""

    # -------------------------------------------------------------------------------------------------------- headers

    def _all_headers(self) -> Dict[str, str]:
        if self._headers is None:
            self._touch()
            self._sent_headers = {name: value or "" for name, value in self._message.pairs(_HEADERS)}
            self._headers = dict(self._sent_headers)
        return self._headers

    def get_header(self, key: str) -> Optional[str]:
        """A header, in any case; the last one if there are several. None if there is none."""
        headers = self._all_headers()
        value = headers.get(key)
        if value is None:
            lower = key.lower()
            for name in headers:
                if name.lower() == lower:
                    return headers[name]
        return value

    def get_header_values(self, key: str) -> List[str]:
        """All values that the client sent for a header."""
        key = key.lower()
        return [value or "" for name, value in self._message.pairs(_HEADERS) if name.lower() == key]

    def set_header(self, key: str, value: str) -> bool:
        """Sets a header for the upstream in place of all of that name. `host` changes the host that it sees."""
        if not (key and value):
            return False
        self._drop_header(key)
        self._all_headers()[key] = value
        return True

    def _drop_header(self, key: str) -> None:
        """Forgets a header in every spelling, so that it is sent whatever value it gets."""
        headers, lower = self._all_headers(), key.lower()
        for name in [name for name in headers if name.lower() == lower]:
            del headers[name]
            self._sent_headers.pop(name, None)

    def del_header(self, key: str) -> bool:
        """Takes a header away, so that the upstream does not get it."""
        if not key:
            return False
        self._drop_header(key)
        self._gone_headers.append(key)
        return True

    def get_headers(self) -> Dict[str, str]:
        """All headers by name. What is added or changed in it is sent; what is missing in it stays as it was."""
        return self._all_headers()

    def set_headers(self, headers: Dict[str, str]) -> bool:
        """Sets these headers. Others stay as they are: `del_header` takes one away."""
        if not headers:
            return False
        self._all_headers()
        self._headers = headers
        return True

    def set_resp_header(self, key: str, value: str) -> bool:
        """Adds a header to the response that the client will get from the upstream."""
        if not (key and value):
            return False
        self._touch()
        self._resp_headers.append((key, value))
        return True

    # ------------------------------------------------------------------------------------------------------ arguments

    def _all_args(self) -> Dict[str, str]:
        if self._args is None:
            self._touch()
            self._sent_args = {name: value or "" for name, value in self._message.pairs(_ARGS)}
            self._args = dict(self._sent_args)
        return self._args

    def get_arg(self, key: str) -> Optional[str]:
        """An argument of the query; the last one if there are several, "" if it has no value, None if there is none."""
        return self._all_args().get(key)

    def get_arg_values(self, key: str) -> List[str]:
        """All values of an argument."""
        return [value or "" for name, value in self._message.pairs(_ARGS) if name == key]

    def set_arg(self, key: str, value: str) -> bool:
        """Sets an argument in place of all of that name."""
        if not (key and value):
            return False
        self._all_args()[key] = value
        # of several values only this one shall remain, even if it is the last of them
        self._sent_args.pop(key, None)
        return True

    def del_arg(self, key: str) -> bool:
        """Takes an argument away."""
        if not key:
            return False
        self._all_args().pop(key, None)
        self._sent_args.pop(key, None)
        self._gone_args.append(key)
        return True

    def get_args(self) -> Dict[str, str]:
        """All arguments by name. What is added or changed in it is sent; what is missing in it stays as it was."""
        return self._all_args()

    def set_args(self, args: Dict[str, str]) -> bool:
        """Sets these arguments. Others stay as they are: `del_arg` takes one away."""
        if not args:
            return False
        self._all_args()
        self._args = args
        return True

    # ---------------------------------------------------------------------------------------------------- what remains

    def get_uri(self) -> str:
        """The path, decoded and without arguments."""
        return self._message.text(_PATH) or "" if self._uri is None else self._uri

    def set_uri(self, uri: str) -> bool:
        """Sets the path, which must begin with `/`. It is encoded as a path: a `?` in it begins no query."""
        if not (uri and uri.startswith("/")):
            return False
        self._touch()
        self._uri = uri
        return True

    def set_body(self, body: Union[str, bytes]) -> bool:
        """Sets the body that the upstream gets. It cannot be made empty."""
        if not body:
            return False
        self._touch()
        self._body = self._new_body = _encode(body) if isinstance(body, str) else bytes(body)
        return True

    def get_method(self) -> str:
        """`GET`, `POST` …"""
        if self._method is None:
            number = self._message.u8(_METHOD)
            if number >= len(wire.METHODS):
                raise wire.BadBuffer("there is no method %d" % number)
            self._method = wire.METHODS[number]
        return self._method

    def set_method(self, method: str) -> bool:
        """Sets what `get_method` gives from now on: the protocol cannot change the method."""
        if not (method and method.upper() in wire.METHODS):
            return False
        self._method = method
        return True

    def get_remote_addr(self) -> str:
        """The client's address; of IPv6 all eight groups with all their digits."""
        if self._address is None:
            raw = self._message.blob(_ADDRESS) or b""
            if len(raw) == 16:
                digits = raw.hex()
                self._address = ":".join([digits[at : at + 4] for at in range(0, 32, 4)])
            else:
                self._address = ".".join([str(byte) for byte in raw])
        return self._address

    def set_remote_addr(self, remote_addr: str) -> bool:
        """Sets what `get_remote_addr` gives from now on, in this runner only."""
        if not remote_addr:
            return False
        self._address = remote_addr
        return True

    def get_id(self) -> int:
        """The gateway's number of this call, for logs."""
        return self._id

    def set_id(self, id: int) -> bool:
        """Sets what `get_id` gives from now on; the reply keeps the gateway's number."""
        if not id:
            return False
        self._id = id
        return True

    def get_conf_token(self) -> int:
        """The token of the configuration that this call has."""
        return self._token

    def set_conf_token(self, conf_token: int) -> bool:
        """Sets what `get_conf_token` gives from now on."""
        if not conf_token:
            return False
        self._token = conf_token
        return True

    def set_config(self, key: str, value: str) -> bool:
        """Sets what `get_config` gives from now on in this call."""
        if not key:
            return False
        self._confs = {**self._confs, key: value}
        return True

    def set_configs(self, configs: Dict[str, str]) -> bool:
        """Sets what `get_configs` gives from now on in this call."""
        if not configs:
            return False
        self._confs = configs
        return True

    # ------------------------------------------------------------------------------------------------------- the reply

    def _reply(self, id: int) -> bytes:
        """What has changed, as a frame."""
        if not self._touched:
            return wire.request_unchanged(id)
        headers = _changes(self._headers, self._sent_headers, self._gone_headers, str.lower)
        args = _changes(self._args, self._sent_args, self._gone_args, str)
        path = self._uri if self._uri is not None and self._uri != self._message.text(_PATH) else None
        if path is None and not (headers or args or self._resp_headers or self._new_body):
            return wire.request_unchanged(id)
        return wire.rewrite(id, path, headers, args, self._resp_headers, self._new_body)


def _changes(now: Optional[Dict[str, str]], sent: Dict[str, str], gone: List[str], same) -> List[wire.Pair]:  # type: ignore[no-untyped-def]
    """The entries that make of what the gateway has what the plugin wants."""
    if now is None:
        return []
    changes: List[wire.Pair] = [(name, str(value)) for name, value in now.items() if sent.get(name) != value]
    if gone:
        set_again = {same(name) for name in now}
        return [(name, None) for name in dict.fromkeys(gone) if same(name) not in set_again] + changes
    return changes


class PostRequest(_Asking):
    """The request that a response belongs to. The gateway does not send it along: each of these asks for a variable."""

    __slots__ = ("_id", "_token")

    def __init__(self, message: wire.Table, channel: Channel, confs: Mapping[str, str], token: int) -> None:
        super().__init__(message, channel, confs)
        self._id = message.u32(0)
        self._token = token

    def get_id(self) -> int:
        """The gateway's number of this call, for logs."""
        return self._id

    def get_conf_token(self) -> int:
        """The token of the configuration that this call has."""
        return self._token

    def get_header(self, key: str) -> Optional[str]:
        """A header of the request."""
        value = self.get_var_bytes("http_" + key.lower().replace("-", "_"))
        return None if value is None else _decode(value)

    def get_arg(self, key: str) -> Optional[str]:
        """An argument of the query."""
        value = self.get_var_bytes("arg_" + key)
        return None if value is None else _decode(value)

    def get_uri(self) -> str:
        """The path, without arguments."""
        return self.get_var("uri")

    def get_method(self) -> str:
        """`GET`, `POST` …"""
        return self.get_var("request_method")

    def get_remote_addr(self) -> str:
        """The client's address."""
        return self.get_var("remote_addr")
