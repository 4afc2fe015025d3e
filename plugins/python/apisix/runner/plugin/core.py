"""What a plugin is, and the list of those that were loaded."""

from __future__ import annotations

import importlib
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Dict, Iterable, Type

from apisix import plugins
from apisix.runner.http.request import PostRequest, Request
from apisix.runner.http.response import PostResponse, Response

#: The classes of plugins by the names that routes use.
PLUGINS: Dict[str, Type["PluginBase"]] = {}


class PluginBase:
    """A plugin: a class in a module of the plugins' directory that inherits from this one. `name`, `config` and one of
    the filters are written by its author.

    An instance is made and its `config` called when a route is prepared; each call gets a shallow copy of that
    instance, so that what a filter keeps in `self` is seen by no other call.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # the name is asked of the class: an instance is made for each route
        name = cls.name(cls)  # type: ignore[arg-type]
        if name:
            PLUGINS.setdefault(name, cls)

    def name(self) -> str:
        """The name by which routes choose this plugin."""
        return ""

    def config(self, conf: Any) -> Any:
        """Makes of a route's text what the filters get. Called once for a route, not once for a request. What it raises
        makes the gateway refuse the route's requests."""

    def filter(self, conf: Any, request: Request, response: Response) -> Any:
        """Called for a request, before it goes to the upstream. May be `async`."""

    def filter_response(self, conf: Any, request: PostRequest, response: PostResponse) -> Any:
        """Called for a response of the upstream, where a route has `ext-plugin-post-resp`. May be `async`."""


def load(directories: Iterable[Path]) -> None:
    """Imports every module of these directories as a module of `apisix.plugins`. What an import raises is raised: a
    plugin that is missing without a word would let requests pass that it should stop.

    :raises FileNotFoundError: there is no such directory
    """
    paths = [str(directory.resolve(strict=True)) for directory in directories]
    plugins.__path__[:] = paths
    for _, name, _ in iter_modules(paths):
        importlib.import_module("%s.%s" % (plugins.__name__, name))
