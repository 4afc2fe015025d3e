"""Cases under load: all proxies run side by side, one at a time gets requests, round after round.

A machine drifts; what is compared is measured seconds apart, and ratios are taken within a round.
"""

import os
import statistics
import sys
import time

import contenders
import machine
from cases import CASES


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
        running.append((case, started, requests, []))
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
        # Each round begins elsewhere, so that nobody always follows the same neighbour.
        turn = number * len(running) // rounds
        for case, contender, requests, samples in running[turn:] + running[:turn]:
            samples.append(sample(contender, requests, pinned, seconds, connections))
    records = [record(case, contender, samples) for case, contender, _, samples in running]
    for _, contender, _, _ in running:
        contender.process.stop()
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
    cpu, wall = process.cpu_seconds(), time.monotonic()
    said = machine.wrk(pinned["load"], contender.port, requests, seconds, connections)
    cpu, wall = process.cpu_seconds() - cpu, time.monotonic() - wall
    if said["failed"] or not said["requests"]:
        raise machine.Failed(f"{process.name}: {said} \n{process.said()}")
    return {
        "cpu_us": cpu / said["requests"] * 1e6,
        "per_second": said["requests"] / said["seconds"],
        "busy": cpu / wall,
        "p50_us": said["p50"],
        "p99_us": said["p99"],
        "p999_us": said["p999"],
        "rss_mb": process.rss_mb(),
    }


def record(case, contender, samples):
    columns = {name: spread([one[name] for one in samples]) for name in samples[0]}
    return {
        "name": case.name, "group": case.group, "who": case.who, "beside": case.beside, "at_most": case.at_most,
        "ready_seconds": contender.ready_seconds, **columns,
    }


def compare(records):
    """Adds the ratios: to the row that the target names, to the floor, and to the floor with duties."""
    by_name = {one["name"]: one for one in records}
    for one in records:
        for column, name in (("ratio", one["beside"]), ("to_floor", "floor"), ("to_duties", "floor with duties")):
            other = by_name.get(name)
            if other is not None:
                pairs = zip(one["cpu_us"]["rounds"], other["cpu_us"]["rounds"])
                one[column] = spread([mine / theirs for mine, theirs in pairs])
