"""The socket of the runner: a thread for each connection of the gateway, until a signal ends it.

Threads, because a filter may wait for a database as plain Python code does, and because a question to the gateway is
asked in the middle of a filter. The gateway bounds the number of connections.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import stat
import threading
import time
from types import FrameType
from typing import Optional, Set

from apisix.runner.calls import Calls
from apisix.runner.channel import Channel, Closed

_log = logging.getLogger("apisix.runner")

# The gateway may run its workers as another user than the process that started us, which made the directory.
_MODE = 0o766

# APISIX kills a second after it has asked to stop.
_FAREWELL = 0.8


class Server:
    """Listens on a path and answers until `stop`."""

    def __init__(self, path: str, calls: Calls) -> None:
        """Binds the path. A socket that an earlier runner left there is removed.

        :raises OSError: the path cannot be bound
        """
        self._path = path
        self._calls = calls
        self._channels: Set[Channel] = set()
        _remove_socket(path)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(path)
        os.chmod(path, _MODE)
        self._inode = os.stat(path).st_ino
        self._listener.listen(1024)

    def serve(self) -> None:
        """Accepts until SIGTERM or SIGINT; the calls under way then get the time that the gateway gives them."""
        signal.signal(signal.SIGTERM, self._interrupt)
        signal.signal(signal.SIGINT, self._interrupt)
        try:
            while True:
                connection, _ = self._listener.accept()
                channel = Channel(connection)
                self._channels.add(channel)
                threading.Thread(target=self._converse, args=(channel,), daemon=True).start()
        except _Interrupted:
            self._leave()

    @staticmethod
    def _interrupt(number: int, frame: Optional[FrameType]) -> None:
        raise _Interrupted

    def _converse(self, channel: Channel) -> None:
        answer = self._calls.answer
        try:
            while True:
                kind, payload = channel.receive()
                channel.busy = True
                channel.send(answer(kind, payload, channel))
                channel.busy = False
        except Closed as error:
            _log.debug("a connection ends: %s", error)
        finally:
            self._channels.discard(channel)
            channel.close()

    def _leave(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self._listener.close()
        try:
            # a successor may have bound the path in the meantime
            if os.stat(self._path).st_ino == self._inode:
                os.unlink(self._path)
        except OSError:
            pass
        end = time.monotonic() + _FAREWELL
        while time.monotonic() < end and any(channel.busy for channel in list(self._channels)):
            time.sleep(0.01)


class _Interrupted(Exception):
    """A signal asked to stop."""


def _remove_socket(path: str) -> None:
    try:
        if stat.S_ISSOCK(os.stat(path).st_mode):
            os.unlink(path)
    except FileNotFoundError:
        pass
