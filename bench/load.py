"""Cases under load: all proxies run side by side, one at a time gets requests, round after round.

A machine drifts, and its neighbours take turns of seconds: what is compared is measured one right after the other, in
every round, and the ratio of the two is one sample. The row of the ratios is their median.
"""

import os
import statistics
import sys
import time
from dataclasses import dataclass, field

import contenders
import machine
from cases import CASES


@dataclass
class Running:
    """A case whose contender runs, and what was measured of it."""

    case: object
    contender: object
    requests: str
    samples: list = field(default_factory=list)
    # CPU per request beside that of the case it is compared with, measured next to it.
    ratios: list = field(default_factory=list)


def spread(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "rounds": values}


def start(case, directory, pinned, build, upstream_port, gateway):
    """The contender of a case, or why there is none."""
    cpus = pinned["proxy"]
    if case.who == "nginx":
        return contenders.nginx(directory, cpus, upstream_port)
    if case.who == "haproxy":
        return contenders.haproxy(directory, cpus, upstream_port)
    if case.who == "floor":
        return contenders.floor(directory, cpus, upstream_port, build)
    if case.who == "duties":
        return contenders.floor(directory, cpus, upstream_port, build, "duties")
    missing = [plugin for plugin in case.plugins if not gateway.has(plugin)]
    if missing:
        return f"this build has no {', '.join(missing)}"
    resources = contenders.resources(upstream_port, case.routes, case.consumers, case.plugins, case.signed)
    name = "gateway-" + "".join(letter if letter.isalnum() else "-" for letter in case.name)
    started = gateway.start(name, resources, case.expect, access_log=case.access_log)
    started.signed = case.signed
    return started


def run(directory, pinned, build, rounds, seconds, connections, only):
    """Measures every case and gives one record for each, and the notes of cases that could not run."""
    origin, upstream_port = contenders.upstream(directory, pinned["upstream"])
    gateway = contenders.Portcullis(build, directory, pinned["proxy"])
    running, notes = [], {}
    for case in CASES:
        if only and not any(word in case.name for word in only):
            continue
        if case.who == "upstream":
            started = contenders.Contender(origin, upstream_port)
        else:
            started = start(case, directory, pinned, build, upstream_port, gateway)
        if isinstance(started, str):
            notes[case.name] = started
            continue
        started.prove()
        requests = os.path.join(directory, f"{started.process.name}.requests")
        contenders.write_requests(requests, case.routes, max(case.consumers, 1), case.signed)
        machine.wrk(pinned["load"], started.port, requests, 1, connections)
        if case.access_log and not writes_log(started):
            notes[case.name] = "this build writes no access log"
            started.process.stop()
            continue
        running.append(Running(case, started, requests))
    by_name = {one.case.name: one for one in running}
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
        # Each round begins elsewhere, so that nobody always follows the same neighbour.
        turn = number * len(running) // rounds
        for one in running[turn:] + running[:turn]:
            other = by_name.get(one.case.beside)
            # Who goes first may have the warmer or the cooler machine.
            pair = [one] if other is None else [other, one] if number % 2 == 0 else [one, other]
            for each in pair:
                each.samples.append(sample(each.contender, each.requests, pinned, seconds, connections))
            if other is not None:
                one.ratios.append(one.samples[-1]["cpu_us"] / other.samples[-1]["cpu_us"])
    records = [record(one) for one in running]
    for one in running:
        one.contender.process.stop()
    origin.stop()
    compare(records)
    return records, notes


def writes_log(contender):
    """Lines may lie in a buffer for a second."""
    time.sleep(2)
    file = os.path.join(contender.home, "access.log")
    return os.path.exists(file) and os.path.getsize(file) > 0


def sample(contender, requests, pinned, seconds, connections):
    """One turn of one contender."""
    process = contender.process
    cpu = process.cpu_seconds()
    said = machine.wrk(pinned["load"], contender.port, requests, seconds, connections)
    cpu = process.cpu_seconds() - cpu
    if said["failed"] or not said["requests"]:
        raise machine.Failed(f"{process.name}: {said} \n{process.said()}")
    return {
        "cpu_us": cpu / said["requests"] * 1e6,
        "per_second": said["requests"] / said["seconds"],
        "busy": cpu / said["seconds"],
        "p50_us": said["p50"],
        "p99_us": said["p99"],
        "p999_us": said["p999"],
        "rss_mb": process.rss_mb(),
    }


def record(one):
    case = one.case
    columns = {name: spread([each[name] for each in one.samples]) for name in one.samples[0]}
    if one.ratios:
        columns["ratio"] = spread(one.ratios)
    return {
        "name": case.name, "group": case.group, "who": case.who, "beside": case.beside, "at_most": case.at_most,
        "ready_seconds": one.contender.ready_seconds, **columns,
    }


def compare(records):
    """Adds how each stands to the floor, and to the floor with duties: of medians, as they were not measured together."""
    by_name = {one["name"]: one for one in records}
    for one in records:
        for column, name in (("to_floor", "floor"), ("to_duties", "floor with duties")):
            if name in by_name and name != one["name"]:
                one[column] = one["cpu_us"]["median"] / by_name[name]["cpu_us"]["median"]
