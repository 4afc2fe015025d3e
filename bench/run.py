#!/usr/bin/env python3
"""`make bench`: everything that is measured, on one machine, in one run.

Builds the gateway and the floor with the release profile, runs the cases under load (load.py), the configuration
side (admin.py) and the micro-benchmarks, prints the outcome beside the targets and keeps it in bench/results.
Needs wrk, nginx and haproxy. BENCH_QUICK=1 takes some minutes and says less. The exit status does not depend on
targets: a busy machine must not break a build.
"""

import argparse
import datetime
import os
import shutil
import subprocess
import tempfile

import admin
import load
import machine
import report

HERE = os.path.dirname(os.path.abspath(__file__))
PARTS = ["load", "admin", "micro"]


def arguments():
    quick = os.environ.get("BENCH_QUICK") == "1"
    parser = argparse.ArgumentParser(description="Measures the gateway beside the framework's floor, nginx, haproxy.")
    parser.add_argument("--quick", action="store_true", default=quick, help="fewer and shorter rounds")
    parser.add_argument("--rounds", type=int, help="rounds of load (11; quick: 3)")
    parser.add_argument("--seconds", type=int, help="seconds of each turn (1)")
    parser.add_argument("--connections", type=int, default=50, help="connections of the load")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure")
    parser.add_argument("--only", nargs="+", help="cases whose name has one of these words")
    parser.add_argument("--build", help="directory of finished programs; nothing is built then")
    parser.add_argument("--results", default=os.path.join(HERE, "results"), help="where the outcome goes")
    given = parser.parse_args()
    given.rounds = given.rounds or (3 if given.quick else 11)
    given.seconds = given.seconds or 1
    return given


def build():
    """Gateway and floor with the same flags; gives their directory."""
    root = os.path.dirname(HERE)
    command = ["cargo", "build", "--release", "--locked", "--bin", "portcullis", "--example", "floor"]
    if subprocess.run(command, cwd=root).returncode != 0:
        raise machine.Failed("the build failed")
    target = os.environ.get("CARGO_TARGET_DIR", "target")
    return os.path.join(root, target, "release")


def micro():
    """The micro-benchmarks' own tables."""
    command = ["cargo", "bench", "--locked", "--bench", "router", "--bench", "chain", "--bench", "verify"]
    out = subprocess.run(command, cwd=os.path.dirname(HERE), capture_output=True, text=True)
    if out.returncode != 0:
        raise machine.Failed(f"micro-benchmarks: {out.stderr[-2000:]}")
    return out.stdout.strip()


def main():
    given = arguments()
    for program in ("wrk", "nginx", "haproxy"):
        if not shutil.which(program):
            raise machine.Failed(f"{program} is not installed")
    programs = os.path.abspath(given.build or build())
    pinned = machine.cores()
    now = datetime.datetime.now(datetime.timezone.utc)
    document = {"date": now.isoformat(timespec="seconds"), "quick": given.quick, "rounds": given.rounds,
                "seconds": given.seconds, "connections": given.connections, "machine": machine.describe(pinned)}
    with tempfile.TemporaryDirectory(prefix="portcullis-bench-") as directory:
        if "load" in given.parts:
            document["cases"], document["notes"] = load.run(
                directory, pinned, programs, given.rounds, given.seconds, given.connections, given.only)
            print(report.table(document["cases"], document["notes"]), flush=True)
        if "admin" in given.parts:
            document["figures"], document["figure_notes"] = admin.run(directory, pinned, programs, given.quick)
            print("\n" + report.figures_table(document["figures"], document["figure_notes"]), flush=True)
    if "micro" in given.parts:
        document["micro"] = micro()
        print(f"\n{document['micro']}\ntargets: a lookup takes ≤ 1000 ns; RS256 for the first time ≤ 1.5 × OpenSSL, "
              "where an HMAC costs less than what is around it", flush=True)
    document["machine"]["load_average_after"] = os.getloadavg()
    keep(given, document, now)


def keep(given, document, now):
    os.makedirs(given.results, exist_ok=True)
    name = os.path.join(given.results, now.strftime("%Y-%m-%d-%H%M") + ("-quick" if given.quick else ""))
    report.write_json(f"{name}.json", document)
    print(f"\n{name}.json")
    if "cases" not in document:
        return
    where = document["machine"]
    report.write_svg(
        f"{name}.svg", document["cases"], "CPU time per request",
        f"{now:%Y-%m-%d}, {where['cpu']}, one worker on one core, median of {given.rounds} interleaved rounds of "
        f"{given.seconds} s, whiskers: best and worst round")
    print(f"{name}.svg")


if __name__ == "__main__":
    machine.guarded(main)
