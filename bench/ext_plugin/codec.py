#!/usr/bin/env python3
"""Measures the Python runner's own reader and writer beside the `flatbuffers` package, on the same messages."""

from __future__ import annotations

import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "plugins" / part) for part in ("python", "conformance")] + [str(ROOT / "bench" / "ext_plugin")]

import gateway  # noqa: E402
from apisix.runner import wire  # noqa: E402
from runners import ARGS, HEADERS  # noqa: E402

CALL = gateway.req_call(7, 1, headers=HEADERS, args=ARGS)


def cost(work) -> float:
    """Microseconds of CPU, the best of five."""
    best = float("inf")
    for _ in range(5):
        begun = time.process_time()
        for _ in range(5000):
            work()
        best = min(best, time.process_time() - begun)
    return best / 5000 * 1e6


def package_stop() -> bytes:
    b = gateway.flatbuffers.Builder(256)
    headers, body = gateway._pairs(b, [("X-Resp-A6-Runner", "Python")]), b.CreateByteVector(b"Hello")
    b.StartObject(3)
    b.PrependUint16Slot(0, 201, 0)
    b.PrependUOffsetTRelativeSlot(1, headers, 0)
    b.PrependUOffsetTRelativeSlot(2, body, 0)
    action = b.EndObject()
    return gateway._finish(b, 3, {0: ("Uint32", 1), 1: ("Uint8", 1), 2: ("UOffsetTRelative", action)})


def package_numbers() -> None:
    table = gateway.Read(CALL)
    table.u32(0), table.u32(6)


def own_numbers() -> None:
    table = wire.Table(CALL)
    table.u32(0), table.u32(6)


def main() -> None:
    rows = {
        "id and token of a call": (package_numbers, own_numbers),
        "its eight headers": (lambda: gateway.Read(CALL).pairs(5), lambda: wire.Table(CALL).pairs(5)),
        "a reply with a Stop": (package_stop, lambda: wire.stop(1, 201, [("X-Resp-A6-Runner", "Python")], b"Hello")),
    }
    print(f"{'µs CPU':26}{'package':>10}{'own':>8}{'times':>8}")
    for name, (package, own) in rows.items():
        theirs, ours = cost(package), cost(own)
        print(f"{name:26}{theirs:>10.1f}{ours:>8.1f}{theirs / ours:>8.1f}")


if __name__ == "__main__":
    main()
