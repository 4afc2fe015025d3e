"""The command line: `py-runner start`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import List, Optional

import apisix.plugins
from apisix.runner import __version__
from apisix.runner.calls import Calls
from apisix.runner.confs import Confs
from apisix.runner.http import request
from apisix.runner.plugin import core
from apisix.runner.server import Server

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}


def main(arguments: Optional[List[str]] = None) -> None:
    """Runs until a signal. Ends with 1 when it cannot start, with 2 when the command is wrong."""
    options = _options(arguments)
    # a line that a plugin prints shall reach the gateway's log now, not when four kilobytes have come together
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    logging.basicConfig(
        stream=sys.stderr, level=_LEVELS[options.log_level], format="%(levelname)s %(name)s: %(message)s"
    )
    request.set_encoding(options.encoding)
    path = (options.socket or os.environ.get("APISIX_LISTEN_ADDRESS", "")).replace("unix:", "", 1)
    if not path:
        sys.exit("py-runner: set APISIX_LISTEN_ADDRESS=unix:/path/of/the.sock, as the gateway does, or give --socket")
    try:
        life = float(os.environ.get("APISIX_CONF_EXPIRE_TIME") or 3600)
    except ValueError:
        sys.exit("py-runner: APISIX_CONF_EXPIRE_TIME is no number of seconds")
    core.load(options.plugins or [Path(path) for path in apisix.plugins.__path__])
    try:
        server = Server(path, Calls(Confs(life), options.response_headers == "all"))
    except OSError as error:
        sys.exit("py-runner: cannot listen on %s: %s" % (path, error))
    print("listening on unix:%s with plugins: %s" % (path, ", ".join(sorted(core.PLUGINS)) or "none"))
    server.serve()


def _options(arguments: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="py-runner", description="Runs plugins written in Python for an API gateway.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("start", help="listen where APISIX_LISTEN_ADDRESS says, until SIGTERM")
    start.add_argument(
        "--plugins",
        action="append",
        type=Path,
        metavar="DIR",
        help="load plugins from this directory instead of apisix/plugins; may be given several times",
    )
    start.add_argument("--socket", metavar="PATH", help="listen here, whatever APISIX_LISTEN_ADDRESS says")
    start.add_argument("--log-level", choices=sorted(_LEVELS), default="warn", help="least level (default: warn)")
    start.add_argument(
        "--encoding",
        choices=("utf-8", "latin-1"),
        default="utf-8",
        help="what get_var and get_body make of bytes; latin-1 as Apache's runner (default: utf-8)",
    )
    start.add_argument(
        "--response-headers",
        choices=("changed", "all"),
        default="changed",
        help="what an answer to a response call holds; all for Apache APISIX, which drops the others",
    )
    return parser.parse_args(arguments)
