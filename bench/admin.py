"""What configuration costs: writes through the Admin API, start with many stored routes, memory, and whether memory
grows while configuration changes under load.
"""

import http.client
import itertools
import json
import os
import statistics
import threading
import time

import contenders
import machine

KEY = "bench-admin-key"
WRITERS = 32


class Writer:
    """One connection to the Admin API."""

    def __init__(self, port):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def put(self, path, value):
        """Writes and gives the seconds until the answer."""
        body = json.dumps(value)
        begun = time.perf_counter()
        self.connection.request("PUT", f"/apisix/admin{path}", body, {"X-API-KEY": KEY})
        answer = self.connection.getresponse()
        text = answer.read()
        took = time.perf_counter() - begun
        if answer.status not in (200, 201):
            raise machine.Failed(f"PUT {path}: {answer.status} {text[:300]!r}")
        return took


class Instance:
    """A gateway with its Admin API and the embedded store."""

    def __init__(self, gateway, name):
        self.gateway, self.name = gateway, name
        self.port, self.admin_port = machine.free_port(), machine.free_port()
        self.home, self.config = gateway.settings(name, port=self.port, admin_port=self.admin_port, key=KEY)
        self.start()

    def start(self):
        self.process = self.gateway.run(self.name, self.home, self.config)

    def has_admin(self):
        """Waits for the Admin API; false if this build has none."""
        for _ in range(200):
            try:
                status, _, _ = machine.get(self.admin_port, "/apisix/admin/routes", {"X-API-KEY": KEY})
                return status == 200
            except OSError:
                if self.process.child.poll() is not None:
                    return False
                time.sleep(0.01)
        return False


def run(directory, pinned, build, quick):
    """Gives the figures by name, each with its target, and notes on what could not be measured."""
    origin, upstream_port = contenders.upstream(directory, pinned["upstream"])
    gateway = contenders.Portcullis(build, directory, pinned["proxy"])
    # The writers are Python: on the gateway's core they would measure themselves.
    os.sched_setaffinity(0, pinned["load"] + pinned["upstream"])
    figures, notes = [], {}
    try:
        instance = Instance(gateway, "gateway-admin")
        if instance.has_admin():
            figures += through_admin(instance, upstream_port, quick)
            figures += growth(instance, upstream_port, pinned, directory, quick)
        else:
            notes["Admin API"] = "this build has none: writes are not measured, configuration comes from a file"
            figures += from_file(gateway, upstream_port, quick)
            figures += growth(file_instance(gateway, upstream_port), upstream_port, pinned, directory, quick)
        instance.process.stop()
    finally:
        os.sched_setaffinity(0, sum(pinned.values(), []))
        origin.stop()
    return figures, notes


def figure(name, value, unit, target=None, at_least=False):
    met = None if target is None else (value >= target if at_least else value <= target)
    return {"name": name, "value": value, "unit": unit, "target": target, "at_least": at_least, "met": met}


def through_admin(instance, upstream_port, quick):
    loaded, stored = 10_000, 20_000 if quick else 100_000
    time.sleep(0.5)
    figures = [figure("memory, empty", instance.process.rss_mb(), "MB", 25)]
    rate, times = write_routes(instance, upstream_port, range(loaded))
    figures.append(figure(f"durable writes, {WRITERS} writers, the first {loaded:,} routes", rate, "/s", 500, True))
    figures += one_by_one(instance, upstream_port, loaded, 200 if quick else 1000)
    rate, times = write_routes(instance, upstream_port, range(loaded, stored))
    figures.append(figure(f"durable writes, {WRITERS} writers, up to {stored:,} routes", rate, "/s", 500, True))
    figures.append(figure("their time, p99", percentile(times, 99) * 1e3, "ms"))
    figures.append(figure(f"memory after writing {stored:,} routes", instance.process.rss_mb(), "MB", 300))
    instance.process.stop()
    begun = time.monotonic()
    instance.start()
    machine.wait_until_serving(instance.process, instance.port, contenders.path(stored - 1))
    figures.append(figure(f"start with {stored:,} stored routes", time.monotonic() - begun, "s", 2))
    figures.append(figure(f"memory after a start with {stored:,} routes", instance.process.rss_mb(), "MB", 300))
    return figures


def write_routes(instance, upstream_port, numbers):
    """Writes routes with many writers; gives writes per second and the time of each."""
    remaining, times, faults = iter(numbers), [], []
    lock = threading.Lock()

    def work():
        writer, own = Writer(instance.admin_port), []
        try:
            while True:
                with lock:
                    i = next(remaining, None)
                if i is None:
                    break
                own.append(writer.put(f"/routes/{contenders.route_id(i)}", contenders.route(i, upstream_port)))
        except (OSError, http.client.HTTPException, machine.Failed) as error:
            faults.append(error)
        with lock:
            times.extend(own)

    threads = [threading.Thread(target=work) for _ in range(WRITERS)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise machine.Failed(f"writing routes: {faults[0]}")
    return len(times) / (time.perf_counter() - begun), times


def one_by_one(instance, upstream_port, loaded, count):
    """A lone writer's time, and whether requests see each write as soon as it is answered."""
    writer = Writer(instance.admin_port)
    client = http.client.HTTPConnection("127.0.0.1", instance.port, timeout=10)
    times, late = [], 0
    for i in range(count):
        value = contenders.route(loaded, upstream_port)
        value["id"], value["uri"] = "moving", f"/moving/{i}"
        times.append(writer.put("/routes/moving", value))
        client.request("GET", f"/moving/{i}", headers={"Host": "bench.example"})
        answer = client.getresponse()
        answer.read()
        late += answer.status != 200
    return [
        figure(f"Admin write with {loaded:,} routes, p50", percentile(times, 50) * 1e3, "ms"),
        figure(f"Admin write with {loaded:,} routes, p99", percentile(times, 99) * 1e3, "ms", 10),
        figure("writes not in effect when answered", late, f"of {count}", 0),
    ]


def percentile(values, part):
    return statistics.quantiles(values, n=100, method="inclusive")[part - 1]


class FileInstance:
    """A gateway that reads its routes from a file."""

    def __init__(self, gateway, contender):
        self.gateway, self.process, self.port, self.home = gateway, contender.process, contender.port, contender.home

    def change(self, upstream_port, turn):
        resources = contenders.resources(upstream_port, 2_000)
        for one in resources["routes"][1000:]:
            one["name"] = f"turn {turn}"
        self.gateway.write_resources(self.home, resources)


def file_instance(gateway, upstream_port):
    contender = gateway.start("gateway-growth", contenders.resources(upstream_port, 2_000))
    contender.prove()
    return FileInstance(gateway, contender)


def from_file(gateway, upstream_port, quick):
    many = 20_000 if quick else 100_000
    empty = gateway.start("gateway-empty", {"routes": []})
    time.sleep(1)
    figures = [figure("memory, empty", empty.process.rss_mb(), "MB", 25)]
    empty.process.stop()
    full = gateway.start("gateway-full", contenders.resources(upstream_port, many))
    full.prove()
    figures.append(figure(f"start with {many:,} routes in a file", full.ready_seconds, "s", 2))
    figures.append(figure(f"memory after a start with {many:,} routes in a file", full.process.rss_mb(), "MB", 300))
    full.process.stop()
    return figures


def growth(instance, upstream_port, pinned, directory, quick):
    """Memory before and after a number of requests while configuration changes all the time."""
    aim = 100_000 if quick else 1_000_000
    requests = contenders.write_requests(os.path.join(directory, "growth.requests"), 1_000)
    stop, faults, changes = threading.Event(), [], itertools.count()

    def churn():
        try:
            writer = Writer(instance.admin_port) if isinstance(instance, Instance) else None
            while not stop.is_set():
                turn = next(changes)
                if writer is None:
                    instance.change(upstream_port, turn)
                    stop.wait(1)
                    continue
                i = 1_000 + turn % 1_000
                value = {**contenders.route(i, upstream_port), "name": f"turn {turn}"}
                writer.put(f"/routes/{contenders.route_id(i)}", value)
                stop.wait(0.01)
        except (OSError, http.client.HTTPException, machine.Failed) as error:
            faults.append(error)

    thread = threading.Thread(target=churn)
    thread.start()
    done, sizes = 0, []
    try:
        while done < aim and not faults:
            said = machine.wrk(pinned["load"], instance.port, requests, 2, 50)
            if said["failed"]:
                raise machine.Failed(f"requests failed while configuration changed: {said}")
            done += said["requests"]
            sizes.append((done, instance.process.rss_mb()))
    finally:
        stop.set()
        thread.join()
        instance.process.stop()
    if faults:
        raise machine.Failed(f"changing configuration: {faults[0]}")
    # The first fifth fills pools and caches.
    base = next(size for requests, size in sizes if requests >= done / 5)
    name = f"growth over {done:,} requests with {next(changes):,} changes"
    return [{**figure(name, sizes[-1][1] - base, "MB", max(2.0, base * 0.02)), "sizes": sizes}]
