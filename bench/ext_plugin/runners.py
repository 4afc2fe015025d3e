#!/usr/bin/env python3
"""Measures runners of external plugins without a gateway: CPU of the runner for a call, and calls per second.

    bench/ext_plugin/runners.py --runner ours='python3 plugins/python/bin/py-runner start --plugins bench/ext_plugin/python' \\
                                --runner other='python3 DIR/bin/py-runner start' [--base other]
    bench/ext_plugin/runners.py --runner ours='node plugins/node/bin/runner.js bench/ext_plugin/node' --plugins noop,body

Each command is started as a gateway starts it and must know the plugins of this directory: `noop` does nothing,
`variable` asks for one variable, `body` for the request's body, `answer` stops the request. The rounds of all runners are
interleaved, so that what else the machine does hits all of them; the median of the rounds is told. Needs the package
`flatbuffers`.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import select
import shlex
import socket
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "plugins" / "conformance"))

import gateway  # noqa: E402

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import machine  # noqa: E402

HEADERS = [
    ("host", "api.example.com"),
    ("user-agent", "curl/8.5.0"),
    ("accept", "*/*"),
    ("authorization", "Bearer " + "x" * 120),
    ("x-request-id", "0b9c1c0e-53a0-4d3e-8a7a-6a2f0f1f8f10"),
    ("accept-encoding", "gzip, br"),
    ("x-forwarded-for", "203.0.113.9"),
    ("cookie", "sid=" + "y" * 64),
]
ARGS = [("a", "1"), ("page", "20")]
ANSWER = gateway.frame(gateway.EXTRA_INFO, gateway.extra_info(b"1"))


def cpu(pid: int) -> float:
    """CPU seconds that a process and its descendants have used."""
    return sum(machine.cpu_seconds(one) for one in machine.family(pid))


class Load:
    """Connections that call one plugin again and again."""

    def __init__(self, runner: gateway.Runner, plugin: str, connections: int) -> None:
        with runner.connect() as connection:
            token = connection.prepare(f"{plugin}#{time.time()}", [(plugin, "{}")])
        self.runner = runner
        self.call = gateway.frame(gateway.HTTP_REQ_CALL, gateway.req_call(token, headers=HEADERS, args=ARGS))
        self.epoll = select.epoll()
        self.sockets = {}
        for _ in range(connections):
            one = socket.socket(socket.AF_UNIX)
            one.connect(runner.path)
            self.sockets[one.fileno()] = one
            self.epoll.register(one.fileno(), select.EPOLLIN)

    def run(self, seconds: float) -> tuple[float, float]:
        """CPU seconds of the runner for a call, and calls per second."""
        buffers = dict.fromkeys(self.sockets, b"")
        begun = time.monotonic()
        end, used, calls = begun + seconds, cpu(self.runner.process.pid), 0
        for one in self.sockets.values():
            one.sendall(self.call)
        waiting = set(self.sockets)
        while waiting:
            for number, _ in self.epoll.poll(30):
                got = buffers[number] + self.sockets[number].recv(65536)
                while len(got) >= 4 and len(got) >= 4 + (length := int.from_bytes(got[1:4], "big")):
                    kind, got = got[0], got[4 + length :]
                    if kind == gateway.EXTRA_INFO:
                        self.sockets[number].sendall(ANSWER)
                        continue
                    if kind != gateway.HTTP_REQ_CALL:
                        raise SystemExit(f"a frame of type {kind} came:\n{self.runner.output}")
                    calls += 1
                    # who is through waits for the others, so that no reply is left behind
                    if time.monotonic() < end:
                        self.sockets[number].sendall(self.call)
                    else:
                        waiting.discard(number)
                buffers[number] = got
        took = time.monotonic() - begun
        return (cpu(self.runner.process.pid) - used) / calls, calls / took

    def close(self) -> None:
        for one in self.sockets.values():
            one.close()
        self.epoll.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runner", action="append", required=True, metavar="NAME=COMMAND")
    parser.add_argument("--base", help="the runner that the others are compared with")
    parser.add_argument("--plugins", default="noop,variable,answer")
    parser.add_argument("--connections", default="1,8,32")
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    runners = {}
    for one in options.runner:
        name, command = one.split("=", 1)
        runners[name] = gateway.Runner(shlex.split(command))
    try:
        print(f"load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        print(f"{'plugin':10}{'connections':>12}  {'runner':12}{'µs CPU/call':>12}{'calls/s':>10}{'times':>8}")
        for plugin in options.plugins.split(","):
            for connections in map(int, options.connections.split(",")):
                measure(runners, plugin, connections, options)
    finally:
        for runner in runners.values():
            runner.stop()


def measure(runners: dict[str, gateway.Runner], plugin: str, connections: int, options: argparse.Namespace) -> None:
    loads = {name: Load(runner, plugin, connections) for name, runner in runners.items()}
    for load in loads.values():
        load.run(min(0.3, options.seconds))
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in runners}
    for _ in range(options.rounds):
        for name, load in loads.items():
            rounds[name].append(load.run(options.seconds))
    for load in loads.values():
        load.close()
    cost = {name: statistics.median(one[0] for one in found) for name, found in rounds.items()}
    for name, found in rounds.items():
        rate = statistics.median(one[1] for one in found)
        times = f"{cost[options.base] / cost[name]:.1f}" if options.base else ""
        print(f"{plugin:10}{connections:>12}  {name:12}{cost[name] * 1e6:>12.1f}{rate:>10.0f}{times:>8}", flush=True)


if __name__ == "__main__":
    main()
