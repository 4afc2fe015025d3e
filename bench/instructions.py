#!/usr/bin/env python3
"""`make bench-instructions`: how many instructions a proxy's own code takes for one request, counted by valgrind.

The kernel's part is not in it and waiting for memory costs nothing, so the figures are no times. But they are the same
on a busy machine, today and tomorrow: what they show of a change is the change. Each case runs twice, with few requests
and with more, and the difference is what the additional ones took. valgrind has none of the processor's instructions
for hashes: what verifies signatures looks dearer than it is. Needs valgrind and nginx; a quarter of an hour for all cases.
"""

import argparse
import os
import re
import shutil
import signal
import socket
import tempfile

import contenders
import load
import machine
from cases import CASES
from run import build

CONNECTIONS = 8
FEW, MORE = 400, 2000
WRAPPER = """#!/bin/sh
# The gateway begins once more in its process.
exec valgrind -q --trace-children=yes --tool=callgrind --callgrind-out-file={out}.%p {program} "$@"
"""


def wrapped(programs, directory, out):
    """A directory like that of the programs, whose gateway and floor run under valgrind."""
    os.makedirs(os.path.join(directory, "examples"))
    for name in ("portcullis", "examples/floor"):
        script = os.path.join(directory, name)
        with open(script, "w") as text:
            text.write(WRAPPER.format(out=out, program=os.path.join(programs, name)))
        os.chmod(script, 0o755)
    return directory


def ask(port, requests, count):
    """Sends requests over some connections at a time and reads every answer."""
    connections = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(CONNECTIONS)]
    for sent in range(0, count, CONNECTIONS):
        for i, one in enumerate(connections):
            one.sendall(requests[(sent + i) % len(requests)])
        for one in connections:
            answer = b""
            while not answer.endswith(contenders.ANSWER):
                more = one.recv(65536)
                if not more:
                    raise machine.Failed(f"port {port} closed after {answer!r}")
                answer += more
            if not answer.startswith(b"HTTP/1.1 200"):
                raise machine.Failed(f"port {port} answered {answer!r}")
    for one in connections:
        one.close()


def total(out, process):
    """All instructions of a process that has ended."""
    with open(f"{out}.{process.pid}") as file:
        return int(re.search(r"^(?:summary|totals): (\d+)", file.read(), re.M).group(1))


def count(case, directory, programs, upstream_port, requests):
    """The instructions of a run with so many requests."""
    everywhere = {"proxy": sorted(os.sched_getaffinity(0))}
    gateway = contenders.Portcullis(programs, directory, everywhere["proxy"])
    started = load.start(case, directory, everywhere, programs, upstream_port, gateway)
    if isinstance(started, str):
        raise machine.Failed(f"{case.name}: {started}")
    # Everything takes fifty times as long, and the largest table is compiled that way.
    started.prove(limit=600)
    file = os.path.join(directory, "requests")
    contenders.write_requests(file, case.routes, max(case.consumers, 1), case.signed)
    with open(file, "rb") as text:
        ask(started.port, text.read().split(b"\0"), requests)
    # The floor waits for a grace period when it is asked to terminate.
    started.process.child.send_signal(signal.SIGTERM if case.who == "portcullis" else signal.SIGINT)
    started.process.child.wait(60)
    return total(os.path.join(directory, "callgrind"), started.process)


def measure(case, programs):
    with tempfile.TemporaryDirectory(prefix="portcullis-bench-") as directory:
        out = os.path.join(directory, "callgrind")
        under = wrapped(programs, os.path.join(directory, "programs"), out)
        origin, upstream_port = contenders.upstream(directory, sorted(os.sched_getaffinity(0)))
        few, more = (count(case, directory, under, upstream_port, FEW + extra) for extra in (0, MORE))
        origin.stop()
        return (more - few) / MORE


def main():
    parser = argparse.ArgumentParser(description="Counts the instructions of a request in user mode.")
    parser.add_argument("--only", nargs="+", help="cases whose name has one of these words")
    parser.add_argument("--build", help="directory of finished programs; nothing is built then")
    given = parser.parse_args()
    for program in ("valgrind", "nginx"):
        if not shutil.which(program):
            raise machine.Failed(f"{program} is not installed")
    programs = os.path.abspath(given.build or build())
    found = {}
    print(f"{'case':28} {'instructions':>12}  beside")
    for case in CASES:
        wanted = not given.only or any(word in case.name for word in given.only)
        if case.who not in ("floor", "duties", "portcullis") or not wanted:
            continue
        found[case.name] = measure(case, programs)
        beside = found.get(case.beside)
        ratio = f"{found[case.name] / beside:.3f} × {case.beside}" if beside else ""
        print(f"{case.name:28} {found[case.name]:12.0f}  {ratio}", flush=True)


if __name__ == "__main__":
    machine.guarded(main)
