"""Who is measured, and how each is configured: one worker each, access log off, connections kept on both sides.

Every case sends the same headers, credentials included, so that two cases differ by what the gateway does with a
request and not by its bytes. Signed requests bring tokens and a signature besides, and are compared among themselves.
"""

import base64
import json
import os
import subprocess

import signing
from machine import Failed, Process, free_port, get, wait_until_serving

ANSWER = b"hello\n"
# More than any load opens.
IDLE_CONNECTIONS = 320
# Requests made beforehand; larger tables are visited at random.
MOST_REQUESTS = 100_000


def route_id(i):
    return f"r{i:06}"


def path(i):
    return f"/r/{i:06}"


def credentials(i):
    basic = base64.b64encode(f"user{i:06}:word{i:06}".encode()).decode()
    return {"apikey": f"key{i:06}", "Authorization": f"Basic {basic}"}


def headers(i, route=0, signed=False):
    more = signing.headers("GET", path(route)) if signed else {}
    return {"Host": "bench.example", "User-Agent": "bench", "Accept": "*/*", **credentials(i), **more}


def raw_request(route, consumer, signed=False):
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers(consumer, route, signed).items())
    return f"GET {path(route)} HTTP/1.1\r\n{lines}\r\n"


def write_requests(file, routes=1, consumers=1, signed=False):
    """Every route or every consumer once, in an order without locality."""
    count = min(max(routes, consumers), MOST_REQUESTS)
    # 7919 is a prime that divides none of the sizes: each number comes once.
    spread = [i * 7919 % count for i in range(count)]
    with open(file, "w") as out:
        out.write("\0".join(raw_request(i % routes, i % consumers, signed) for i in spread))
    return file


def upstream(directory, cpus):
    """nginx that answers six bytes from memory."""
    port = free_port()
    server = f"""
        keepalive_requests 1000000000; keepalive_timeout 3600s;
        server {{
            listen 127.0.0.1:{port} backlog=4096;
            location / {{ default_type text/plain; return 200 "hello\\n"; }}
        }}"""
    process = nginx_process("upstream", server, directory, cpus)
    wait_until_serving(process, port, "/")
    return process, port


def nginx_process(name, server, directory, cpus):
    home = os.path.join(directory, name)
    os.makedirs(home, exist_ok=True)
    temporary = "".join(
        f"{kind}_temp_path {home}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    conf = f"""daemon off; master_process off; worker_processes 1; pid {home}/pid; error_log stderr crit;
        events {{ worker_connections 8192; }}
        http {{ access_log off; {temporary} {server} }}"""
    file = os.path.join(home, "nginx.conf")
    with open(file, "w") as out:
        out.write(conf)
    return Process(name, ["nginx", "-e", "stderr", "-p", home, "-c", file], cpus, home)


def nginx(directory, cpus, upstream_port):
    """The forwarding headers are those that APISIX has its nginx send."""
    port = free_port()
    server = f"""
        keepalive_requests 1000000000; keepalive_timeout 3600s;
        upstream backend {{
            server 127.0.0.1:{upstream_port};
            keepalive {IDLE_CONNECTIONS}; keepalive_requests 1000000000;
        }}
        server {{
            listen 127.0.0.1:{port} backlog=4096;
            location / {{
                proxy_pass http://backend; proxy_http_version 1.1;
                proxy_set_header Connection ""; proxy_set_header Host $http_host;
                proxy_set_header X-Real-IP $remote_addr;
                proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
                proxy_set_header X-Forwarded-Proto $scheme;
                proxy_set_header X-Forwarded-Host $host;
                proxy_set_header X-Forwarded-Port $server_port;
            }}
        }}"""
    return Contender(nginx_process("nginx", server, directory, cpus), port)


def haproxy(directory, cpus, upstream_port):
    port = free_port()
    file = os.path.join(directory, "haproxy.cfg")
    with open(file, "w") as out:
        out.write(f"""
global
    nbthread 1
    maxconn 8192
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    option http-keep-alive
    option forwardfor
    http-reuse always
frontend front
    bind 127.0.0.1:{port} backlog 4096
    default_backend back
backend back
    server one 127.0.0.1:{upstream_port} pool-max-conn {IDLE_CONNECTIONS}
""")
    return Contender(Process("haproxy", ["haproxy", "-db", "-f", file], cpus, directory), port)


def floor(directory, cpus, upstream_port, build, *modes):
    port = free_port()
    command = [os.path.join(build, "examples", "floor"), f"127.0.0.1:{port}", f"127.0.0.1:{upstream_port}", *modes]
    return Contender(Process("-".join(["floor", *modes]), command, cpus, directory), port)


class Contender:
    """A running proxy."""

    def __init__(self, process, port, expect=None):
        self.process, self.port = process, port
        # What a right answer's headers must hold, to prove that the case does what it says.
        self.expect = expect or {}
        self.signed = False

    def prove(self, limit=60):
        """Answers as the upstream does, and the case's plugin shows itself."""
        sent = headers(0, signed=self.signed)
        self.ready_seconds = wait_until_serving(self.process, self.port, path(0), sent, limit)
        _, got, body = get(self.port, path(0), sent)
        if body != ANSWER:
            raise Failed(f"{self.process.name} answers {body!r}")
        for name, value in self.expect.get("headers", {}).items():
            if value not in (None, got.get(name)) or name not in got:
                raise Failed(f"{self.process.name}: header {name} is {got.get(name)!r}")
        if "without_credentials" in self.expect:
            status, *_ = get(self.port, path(0), {"Host": "bench.example"})
            if status != self.expect["without_credentials"]:
                raise Failed(f"{self.process.name}: {status} without credentials")


class Portcullis:
    """Starts the gateway with a configuration of its own, in a directory of its own."""

    def __init__(self, build, directory, cpus):
        self.program = os.path.join(build, "portcullis")
        self.directory, self.cpus = directory, cpus

    def has(self, plugin):
        return subprocess.run([self.program, "schema", plugin], capture_output=True).returncode == 0

    def settings(self, name, **changes):
        """Writes a config.yaml; JSON is YAML."""
        home = os.path.join(self.directory, name)
        os.makedirs(os.path.join(home, "conf"), exist_ok=True)
        settings = {
            "apisix": {
                "node_listen": [{"ip": "127.0.0.1", "port": changes["port"]}],
                "ssl": {"enable": False},
                "enable_control": False,
                "enable_admin": "admin_port" in changes,
            },
            "deployment": {"role": "data_plane", "role_data_plane": {"config_provider": "json"}},
            "nginx_config": {
                "worker_processes": 1,
                "http": {"enable_access_log": changes.get("access_log", False), "access_log": "access.log"},
            },
            "plugin_attr": {"prometheus": {"enable_export_server": False}},
        }
        if "runner" in changes:
            settings["ext-plugin"] = {"path_for_test": changes["runner"]}
        if "admin_port" in changes:
            settings["deployment"] = {
                "role": "traditional",
                "role_traditional": {"config_provider": "embedded"},
                "admin": {
                    "admin_key": [{"name": "admin", "key": changes["key"], "role": "admin"}],
                    "admin_listen": {"ip": "127.0.0.1", "port": changes["admin_port"]},
                },
            }
        file = os.path.join(home, "conf", "config.yaml")
        with open(file, "w") as out:
            json.dump(settings, out)
        return home, file

    def write_resources(self, home, resources):
        """Replaces the resource file at once, so that it is never read half-written."""
        file = os.path.join(home, "conf", "apisix.json")
        with open(file + ".new", "w") as out:
            json.dump(resources, out)
        os.replace(file + ".new", file)

    def run(self, name, home, config):
        return Process(name, [self.program, "run", "-c", config], self.cpus, home)

    def start(self, name, resources, expect=None, **changes):
        """The gateway in file mode."""
        port = free_port()
        home, config = self.settings(name, port=port, **changes)
        self.write_resources(home, resources)
        contender = Contender(self.run(name, home, config), port, expect)
        contender.home = home
        return contender


def route(i, upstream_port, plugins=None):
    value = {
        "id": route_id(i),
        "uri": path(i),
        "upstream": {"type": "roundrobin", "nodes": {f"127.0.0.1:{upstream_port}": 1}},
    }
    if plugins:
        value["plugins"] = plugins
    return value


def consumer(i):
    return {
        "username": f"user{i:06}",
        "plugins": {
            "key-auth": {"key": f"key{i:06}"},
            "basic-auth": {"username": f"user{i:06}", "password": f"word{i:06}"},
        },
    }


def resources(upstream_port, routes=1, consumers=0, plugins=None, signed=False):
    return {
        "routes": [route(i, upstream_port, plugins) for i in range(routes)],
        "consumers": [consumer(i) for i in range(consumers)] + (signing.consumers() if signed else []),
    }
