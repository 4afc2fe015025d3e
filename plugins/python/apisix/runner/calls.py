"""What the runner does with each frame of the gateway: which plugins run, and what is answered."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any, Coroutine, Optional

from apisix.runner import wire
from apisix.runner.channel import Channel, Closed
from apisix.runner.confs import Chain, Confs
from apisix.runner.http.request import PostRequest, Request
from apisix.runner.http.response import PostResponse, Response

_log = logging.getLogger("apisix.runner")


class _PluginFailed(Exception):
    """A plugin raised something."""


class Calls:
    """Answers frames. Used by all connections at once."""

    def __init__(self, confs: Confs, all_response_headers: bool = False) -> None:
        """
        :param all_response_headers: answer a response call with all headers instead of the changed ones, for a gateway
            that replaces the upstream's headers by those of the answer
        """
        self._confs = confs
        self._all_response_headers = all_response_headers
        self._loop = _Loop()

    def answer(self, kind: int, payload: wire.Buffer, channel: Channel) -> bytes:
        """The reply to one frame.

        :raises Closed: the gateway went away while a plugin asked it for something
        """
        try:
            if kind == wire.HTTP_REQ_CALL:
                return self._request(payload, channel)
            if kind == wire.HTTP_RESP_CALL:
                return self._response(payload, channel)
            if kind == wire.PREPARE_CONF:
                return self._prepare(payload)
            _log.error("a frame of the unknown type %d came", kind)
            return wire.error(wire.BAD_REQUEST)
        except wire.BadBuffer as error:
            _log.error("a frame of type %d cannot be read: %s", kind, error)
            return wire.error(wire.BAD_REQUEST)
        except _PluginFailed:
            return wire.error(wire.SERVICE_UNAVAILABLE)
        except Closed:
            raise
        except Exception:
            # a reply that cannot be written: what a plugin has set is too large, or is no text
            _log.exception("the reply to a frame of type %d cannot be written", kind)
            return wire.error(wire.SERVICE_UNAVAILABLE)

    def _prepare(self, payload: wire.Buffer) -> bytes:
        message = wire.Table(payload)
        key, pairs = message.text(1) or "", message.pairs(0)
        try:
            return wire.conf_token(self._confs.prepare(key, pairs))
        except BaseException:
            _log.exception("the configuration of %s cannot be prepared", key or "a route")
            return wire.error(wire.BAD_REQUEST)

    def _request(self, payload: wire.Buffer, channel: Channel) -> bytes:
        message = wire.Table(payload)
        token = message.u32(6)
        chain = self._confs.get(token)
        if chain is None:
            return wire.error(wire.CONF_TOKEN_NOT_FOUND)
        id = message.u32(0)
        request, response = Request(message, channel, chain.texts, token), Response()
        response.set_req_id(id)
        try:
            for step in chain.steps:
                if not step.filters_requests:
                    continue
                try:
                    waiting = step.instance().filter(step.conf, request, response)
                    if waiting is not None and step.waits:
                        self._loop.finish(waiting)
                except (Closed, wire.BadBuffer):
                    raise
                except BaseException as error:
                    raise _failed(step.name, id) from error
                if response.changed():
                    return response._reply(id)
            return request._reply(id)
        finally:
            request._channel = None

    def _response(self, payload: wire.Buffer, channel: Channel) -> bytes:
        message = wire.Table(payload)
        token = message.u32(3)
        chain: Optional[Chain] = self._confs.get(token)
        if chain is None:
            return wire.error(wire.CONF_TOKEN_NOT_FOUND)
        id = message.u32(0)
        request = PostRequest(message, channel, chain.texts, token)
        response = PostResponse(message, channel, chain.texts)
        try:
            for step in chain.steps:
                if not step.filters_responses:
                    continue
                try:
                    waiting = step.instance().filter_response(step.conf, request, response)
                    if waiting is not None and step.waits:
                        self._loop.finish(waiting)
                except (Closed, wire.BadBuffer):
                    raise
                except BaseException as error:
                    raise _failed(step.name, id) from error
            return response._reply(id, self._all_response_headers)
        finally:
            request._end()
            response._end()


def _failed(plugin: str, id: int) -> _PluginFailed:
    _log.exception("plugin `%s` failed in call %d", plugin, id)
    return _PluginFailed()


class _Loop:
    """One event loop for all plugins with `async` filters, so that they can share clients and pools. It is started by
    the first of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: Optional[asyncio.AbstractEventLoop] = None

    def finish(self, waiting: Coroutine[Any, Any, Any]) -> None:
        """Runs a filter to its end; this connection waits for it, others go on."""
        if not asyncio.iscoroutine(waiting):
            return
        asyncio.run_coroutine_threadsafe(waiting, self._running()).result()

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="plugins", daemon=True).start()
            return self._loop
