"""The configurations that the gateway has prepared, by their tokens."""

from __future__ import annotations

import copy
import inspect
import secrets
import threading
import time
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from apisix.runner import wire
from apisix.runner.plugin.core import PLUGINS, PluginBase

# The gateway renews what it knows before it is this old; a call may be on its way at that moment.
_GRACE = 1.2


class UnknownPlugin(LookupError):
    """A route names a plugin that was not loaded."""


class Step:
    """One plugin of a route with its configuration."""

    __slots__ = ("name", "conf", "filters_requests", "filters_responses", "waits", "_plugin", "_class", "_state")

    def __init__(self, name: str, value: str) -> None:
        """
        :raises UnknownPlugin: nothing was loaded under that name
        :raises Exception: whatever the plugin's `config` raises
        """
        found = PLUGINS.get(name)
        if found is None:
            raise UnknownPlugin("no plugin `%s` is loaded; there are: %s" % (name, ", ".join(sorted(PLUGINS))))
        self.name = name
        self._class = found
        self._plugin = found()
        self.conf = self._plugin.config(value)
        self.filters_requests = found.filter is not PluginBase.filter
        self.filters_responses = found.filter_response is not PluginBase.filter_response
        self.waits = inspect.iscoroutinefunction(found.filter) or inspect.iscoroutinefunction(found.filter_response)
        state = getattr(self._plugin, "__dict__", None)
        # a class with __slots__ is copied by the slow way
        self._state: Optional[Dict[str, Any]] = state if not hasattr(found, "__slots__") else None

    def instance(self) -> PluginBase:
        """The plugin for one call."""
        if self._state is None:
            return copy.copy(self._plugin)
        plugin = object.__new__(self._class)
        if self._state:
            plugin.__dict__.update(self._state)
        return plugin


class Chain:
    """The plugins of one route, in its order."""

    __slots__ = ("steps", "texts", "expires")

    def __init__(self, pairs: Sequence[wire.Pair], expires: float) -> None:
        self.steps = [Step(name, value or "") for name, value in pairs]
        #: The configurations as the route has them.
        self.texts = {name: value or "" for name, value in pairs}
        #: When it is forgotten, on the clock of `Confs`.
        self.expires = expires


class Confs:
    """Chains by token. A token says nothing about its number: after a restart an old one finds nothing, rather than the
    chain of another route."""

    def __init__(self, life: float, clock: Callable[[], float] = time.monotonic) -> None:
        """
        :param life: how many seconds the gateway uses a token
        """
        self._life = life * _GRACE
        self._clock = clock
        self._lock = threading.Lock()
        self._last = secrets.randbelow(1 << 31)
        self._chains: Dict[int, Chain] = {}
        self._tokens: Dict[Tuple[str, Tuple[wire.Pair, ...]], int] = {}

    def prepare(self, key: str, pairs: List[wire.Pair]) -> int:
        """The token for a route's plugins. The same key with the same plugins gives the same token, which lives anew.

        :raises UnknownPlugin: nothing was loaded under a name
        :raises Exception: whatever a plugin's `config` raises
        """
        known = (key, tuple(pairs))
        now = self._clock()
        with self._lock:
            self._forget(now)
            token = self._tokens.get(known)
            if key and token is not None:
                self._chains[token].expires = now + self._life
                return token
        # plugins may take their time: nobody waits for them but this call
        chain = Chain(pairs, now + self._life)
        with self._lock:
            self._last = self._last % 0xFFFFFFFF + 1
            token = self._last
            self._chains[token] = chain
            if key:
                self._tokens[known] = token
            return token

    def _forget(self, now: float) -> None:
        for token in [token for token, chain in self._chains.items() if chain.expires < now]:
            del self._chains[token]
        for known in [known for known, token in self._tokens.items() if token not in self._chains]:
            del self._tokens[known]

    def get(self, token: int) -> Optional[Chain]:
        """The chain of a token, unless it is unknown or too old."""
        chain = self._chains.get(token)
        return chain if chain is not None and chain.expires >= self._clock() else None

    def __len__(self) -> int:
        return len(self._chains)
