"""The machine and its processes: cores, ports, children, what /proc says of them.

Invariant: a process is ended by its own number and only if it was started here.
"""

import http.client
import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import time

TICKS = os.sysconf("SC_CLK_TCK")


class Failed(Exception):
    """Something that the run needs does not work; the text is for whoever started it."""


def cores():
    """The core of the measured proxy, and the cores of the load and of the upstream."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        raise Failed("two cores are needed: one for the proxy, one for load and upstream")
    proxy, others = allowed[-1], allowed[:-1]
    # With three cores or more the upstream does not share one with the load.
    return {"proxy": [proxy], "load": others[:1], "upstream": others[1:2] or others[:1]}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Process:
    """A child on given cores, its output in a file."""

    started = []

    def __init__(self, name, command, cpus, directory, environment=None):
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("APISIX_")}
        environment = {**inherited, **(environment or {})}
        self.name, self.log = name, os.path.join(directory, f"{name}.log")
        with open(self.log, "wb") as log:
            self.child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=directory, env=environment,
                preexec_fn=lambda: os.sched_setaffinity(0, cpus))
        self.pid = self.child.pid
        Process.started.append(self)

    def cpu_seconds(self):
        """User and system time of all its threads so far."""
        return cpu_seconds(self.pid)

    def family_cpu_seconds(self):
        """The same with all its descendants."""
        return sum(cpu_seconds(pid) for pid in family(self.pid))

    def rss_mb(self):
        with open(f"/proc/{self.pid}/status") as status:
            return int(re.search(r"VmRSS:\s+(\d+) kB", status.read()).group(1)) / 1024

    def said(self):
        with open(self.log, errors="replace") as log:
            return log.read()[-2000:]

    def stop(self):
        if self.child.poll() is None:
            self.child.terminate()
            try:
                self.child.wait(15)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()
        if self in Process.started:
            Process.started.remove(self)

    @staticmethod
    def stop_all():
        for process in list(Process.started):
            process.stop()


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def family(pid):
    """A process with all its descendants."""
    found = [pid]
    for one in found:
        for task in os.listdir(f"/proc/{one}/task"):
            with open(f"/proc/{one}/task/{task}/children") as children:
                found += [int(child) for child in children.read().split()]
    return found


def get(port, path, headers=None, method="GET", body=None, timeout=5):
    """One request on a connection of its own: status, headers, body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, dict((name.lower(), value) for name, value in answer.getheaders()), answer.read()
    finally:
        connection.close()


def wait_until_serving(process, port, path, headers=None, limit=60):
    """Seconds until the path is answered 200."""
    begun = time.monotonic()
    last = "no answer"
    while time.monotonic() - begun < limit:
        if process.child.poll() is not None:
            raise Failed(f"{process.name} ended with {process.child.returncode}:\n{process.said()}")
        try:
            status, _, body = get(port, path, headers)
            if status == 200:
                return time.monotonic() - begun
            last = f"{status} {body[:200]!r}"
        except OSError as error:
            last = str(error)
        time.sleep(0.003)
    raise Failed(f"{process.name} does not serve {path} within {limit} s: {last}\n{process.said()}")


def version_of(*command):
    try:
        out = subprocess.run(command, capture_output=True, text=True, timeout=10)
        return (out.stdout + out.stderr).strip().splitlines()[0]
    except (OSError, IndexError, subprocess.TimeoutExpired):
        return "not there"


def describe(pinned):
    """What the figures were taken on."""
    with open("/proc/cpuinfo") as info:
        model = re.search(r"model name\s*: (.*)", info.read())
    return {
        "cpu": model.group(1) if model else platform.machine(),
        "cores": os.cpu_count(),
        "pinned": pinned,
        "kernel": platform.release(),
        "load_average": os.getloadavg(),
        "rustc": version_of("rustc", "--version"),
        "nginx": version_of("nginx", "-v"),
        "haproxy": version_of("haproxy", "-v"),
        "commit": version_of("git", "describe", "--always", "--dirty"),
    }


def wrk(cpus, port, requests, seconds, connections):
    """Runs wrk on the requests of a file and gives what wrk.lua printed."""
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "wrk.lua")
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s", script,
               f"http://127.0.0.1:{port}/", "--", requests]
    out = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60,
                         preexec_fn=lambda: os.sched_setaffinity(0, cpus))
    line = out.stdout.strip().splitlines()[-1] if out.stdout.strip() else ""
    if not line.startswith("{"):
        raise Failed(f"wrk: {out.stdout}{out.stderr}")
    return json.loads(line)


def guarded(main):
    """Runs a program of the benchmarks: no process that it started outlives it, and a failure is one line."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        main()
    except Failed as failed:
        sys.exit(f"bench: {failed}")
    finally:
        Process.stop_all()
