"""One connection of the gateway: whole frames in, whole frames out."""

from __future__ import annotations

import socket
from typing import Optional, Tuple

from apisix.runner import wire

# A call with a few dozen headers fits; what does not is read into a buffer of its own length.
_AT_ONCE = 16384


class Closed(ConnectionError):
    """The gateway has gone, or what it sent cannot be followed any more."""


class Channel:
    """The gateway sends one call and waits for its reply; in between, the runner may ask questions.

    `busy` is true from the arrival of a call to the end of its reply.
    """

    __slots__ = ("busy", "_socket", "_rest")

    def __init__(self, connection: socket.socket) -> None:
        self.busy = False
        self._socket = connection
        self._rest = b""

    def receive(self) -> Tuple[int, wire.Buffer]:
        """The type and the payload of the next frame, in however many pieces it comes.

        :raises Closed: the gateway has closed the connection
        """
        got = self._rest or self._read()
        while len(got) < 4:
            got += self._read()
        kind, length = wire.frame_head(got)
        end = 4 + length
        if len(got) == end:
            self._rest = b""
            return kind, got[4:]
        if len(got) > end:
            self._rest = got[end:]
            return kind, got[4:end]
        self._rest = b""
        return kind, self._fill(got[4:], length)

    def _read(self) -> bytes:
        try:
            got = self._socket.recv(_AT_ONCE)
        except OSError as error:
            raise Closed(str(error)) from None
        if not got:
            raise Closed("the gateway has closed the connection")
        return got

    def _fill(self, begin: bytes, length: int) -> bytearray:
        payload = bytearray(length)
        view = memoryview(payload)
        view[: len(begin)] = begin
        filled = len(begin)
        while filled < length:
            try:
                count = self._socket.recv_into(view[filled:])
            except OSError as error:
                raise Closed(str(error)) from None
            if not count:
                raise Closed("the gateway has closed the connection within a frame")
            filled += count
        return payload

    def send(self, frame: bytes) -> None:
        """:raises Closed: the gateway has gone"""
        try:
            self._socket.sendall(frame)
        except OSError as error:
            raise Closed(str(error)) from None

    def ask(self, question: bytes) -> Optional[bytes]:
        """Asks the gateway for more about the call under way; None for what does not exist.

        :raises Closed: the gateway has gone, or answered something else
        """
        self.send(question)
        kind, payload = self.receive()
        if kind != wire.EXTRA_INFO:
            self.close()
            raise Closed("a frame of type %d came instead of an answer" % kind)
        return wire.Table(payload).blob(0)

    def close(self) -> None:
        """Closes it in both directions; who waits for a frame gets `Closed`."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._socket.close()
