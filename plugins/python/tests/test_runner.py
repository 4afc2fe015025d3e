"""The program as a gateway starts it."""

import pathlib
import subprocess
import sys
import threading
import time

import gateway
import pytest
from apisix.runner import __version__

HERE = pathlib.Path(__file__).resolve().parent
PROGRAM = [sys.executable, str(HERE.parent / "bin" / "py-runner")]


def runner(tmp_path, source, *options, name="plugin.py"):
    (tmp_path / name).write_text("import apisix\nfrom apisix.runner.plugin.core import PluginBase\n" + source)
    return gateway.Runner([*PROGRAM, "start", "--plugins", str(tmp_path), *options])


def call(one, plugin, conf="{}", kind=gateway.HTTP_REQ_CALL, **more):
    with one.connect() as connection:
        token = connection.prepare("route#1", [(plugin, conf)])
        message = gateway.req_call if kind == gateway.HTTP_REQ_CALL else gateway.resp_call
        return connection.call(kind, message(token), **more)


def test_the_examples_as_apache_starts_them():
    with gateway.Runner([*PROGRAM, "start"]) as one:
        one.eventually_printed("with plugins: response, rewrite, stop")
        reply = call(one, "stop", '{"body":"hello"}', vars={"host": "test.foobar.com"}, body=b"the body")
        assert reply == {
            "kind": "stop",
            "id": 1,
            "status": 201,
            "headers": [("X-Resp-A6-Runner", "Python")],
            "body": b"Hello, Python Runner of APISIX",
        }
        one.eventually_printed('{"body":"hello"}\ntest.foobar.com\nthe body\n')
        assert call(one, "rewrite") == {
            "kind": "rewrite",
            "id": 1,
            "path": "/a6/python/runner",
            "headers": [("X-Resp-A6-Runner", "Python")],
            "args": [("a6_runner", "Python")],
        }
        conf = '{"status": 404, "headers": {"A": "b", "C": null}, "append": "!"}'
        reply = call(one, "response", conf, kind=gateway.HTTP_RESP_CALL, resp_body=b"found")
        assert (reply["status"], reply["headers"], reply["body"]) == (404, [("A", "b"), ("C", None)], b"found!")


def test_the_plugin_of_the_tutorial_unchanged():
    with gateway.Runner([*PROGRAM, "start", "--plugins", str(HERE / "article")]) as one:
        reply = call(one, "stop", vars={"host": "test.foobar.com"})
        assert (reply["status"], reply["body"]) == (201, b"Hello, Python Runner of APISIX")
        one.eventually_printed("test.foobar.com\n")


def test_as_a_module():
    command = [sys.executable, "-m", "apisix.runner", "start"]
    with gateway.Runner(command, cwd=str(HERE.parent)) as one:
        assert call(one, "stop")["status"] == 201


def test_what_a_plugin_writes_comes_out_line_by_line(tmp_path):
    source = """
import logging
class Loud(PluginBase):
    def name(self): return "loud"
    def config(self, conf): return conf
    def filter(self, conf, request, response):
        print("printed", "\\udcff")
        logging.getLogger("mine").warning("warned")
        logging.getLogger("mine").info("not told")
"""
    with runner(tmp_path, source) as one:
        assert call(one, "loud")["kind"] == "none"
        one.eventually_printed("printed \\udcff\n")
        one.eventually_printed("WARNING mine: warned\n")
        assert "not told" not in one.output


FAILING = """
class Failing(PluginBase):
    def name(self): return "failing"
    def config(self, conf): return conf
    def filter(self, conf, request, response):
        if conf == "exit": raise SystemExit(3)
        if conf == "status": response._status = 100000
        if conf == "large": response.set_body("x" * (1 << 24))
        if conf == "object": response.set_body(17)
        if conf == "swallow":
            try: request.get_var("x")
            except Exception: pass
        if conf == "raise": raise ValueError("the plugin's own words")
    def filter_response(self, conf, request, response):
        raise ValueError("in the response")
"""


@pytest.mark.parametrize("conf", ["exit", "status", "large", "object", "raise"])
def test_what_fails_is_an_error(tmp_path, conf):
    with runner(tmp_path, FAILING) as one:
        for _ in range(2):
            reply = call(one, "failing", conf)
            assert (reply["kind"], reply["code"]) == ("error", gateway.SERVICE_UNAVAILABLE)
        reply = call(one, "failing", "", kind=gateway.HTTP_RESP_CALL)
        assert (reply["kind"], reply["code"]) == ("error", gateway.SERVICE_UNAVAILABLE)
        one.eventually_printed("ValueError: in the response")
        if conf == "raise":
            one.eventually_printed("plugin `failing` failed in call 1")
            one.eventually_printed("ValueError: the plugin's own words")


def test_a_plugin_that_swallows_the_end_of_the_connection(tmp_path):
    with runner(tmp_path, FAILING) as one:
        with one.connect() as connection:
            token = connection.prepare("k", [("failing", "swallow")])
            connection.send(gateway.HTTP_REQ_CALL, gateway.req_call(token))
            connection.receive()
        assert call(one, "failing", "")["kind"] == "none"


ASYNC = """
import asyncio
loops = set()
class Waiting(PluginBase):
    def name(self): return "waiting"
    def config(self, conf): return conf
    async def filter(self, conf, request, response):
        loops.add(id(asyncio.get_running_loop()))
        await asyncio.sleep(0.01)
        if conf == "fail": raise ValueError("while waiting")
        response.set_body(request.get_var("host") + str(len(loops)))
    async def filter_response(self, conf, request, response):
        await asyncio.sleep(0.01)
        response.set_body(response.get_body() + "!")
"""


def test_filters_may_be_async(tmp_path):
    with runner(tmp_path, ASYNC) as one:
        assert call(one, "waiting", vars={"host": "a"})["body"] == b"a1"
        assert call(one, "waiting", vars={"host": "b"})["body"] == b"b1"
        assert call(one, "waiting", kind=gateway.HTTP_RESP_CALL, resp_body=b"x")["body"] == b"x!"
        reply = call(one, "waiting", "fail")
        assert (reply["kind"], reply["code"]) == ("error", gateway.SERVICE_UNAVAILABLE)


SLOW = """
import threading
both = threading.Barrier(2, timeout=30)
class Slow(PluginBase):
    def name(self): return "slow"
    def config(self, conf): return conf
    def filter(self, conf, request, response):
        both.wait()
        response.set_status_code(200)
"""


def test_a_plugin_that_waits_holds_up_nobody_else(tmp_path):
    with runner(tmp_path, SLOW) as one:
        replies = []
        threads = [threading.Thread(target=lambda: replies.append(call(one, "slow"))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [reply["kind"] for reply in replies] == ["stop", "stop"]


ENDING = """
import time
class Ending(PluginBase):
    def name(self): return "ending"
    def config(self, conf): return conf
    def filter(self, conf, request, response):
        print("begun")
        time.sleep(0.3)
        response.set_status_code(200)
"""


def test_a_call_under_way_is_finished_before_the_end(tmp_path):
    with runner(tmp_path, ENDING) as one:
        with one.connect() as connection:
            token = connection.prepare("k", [("ending", "")])
            connection.send(gateway.HTTP_REQ_CALL, gateway.req_call(token))
            one.eventually_printed("begun")
            one.process.terminate()
            assert gateway.read_reply(*connection.receive())["kind"] == "stop"
        assert one.process.wait(30) == 0


def test_a_successor_keeps_its_socket(tmp_path):
    with runner(tmp_path, "", name="nothing.py") as one:
        old = one.process
        one.start()
        end = time.monotonic() + 30
        while one.output.count("listening on") < 2:
            assert time.monotonic() < end, one.output
            time.sleep(0.01)
        old.terminate()
        assert old.wait(30) == 0
        with one.connect() as connection:
            assert connection.prepare("k", []) != 0


@pytest.mark.parametrize("source, message", [
    ("import no_such_module", b"No module named 'no_such_module'"),
    ("class Broken(:", b"SyntaxError"),
])  # fmt: skip
def test_a_plugin_that_cannot_be_loaded_ends_the_start(tmp_path, source, message):
    (tmp_path / "broken.py").write_text(source)
    command = [*PROGRAM, "start", "--plugins", str(tmp_path), "--socket", str(tmp_path / "sock")]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert done.returncode == 1 and message in done.stderr
    assert not (tmp_path / "sock").exists()


def test_a_directory_that_is_not_there(tmp_path):
    command = [*PROGRAM, "start", "--plugins", str(tmp_path / "none"), "--socket", str(tmp_path / "sock")]
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == 1


def test_packages_and_several_directories(tmp_path):
    (tmp_path / "a" / "pack").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    text = "from apisix.runner.plugin.core import PluginBase\nclass P(PluginBase):\n    def name(self): return %r\n"
    (tmp_path / "a" / "pack" / "__init__.py").write_text("from . import inner\n")
    (tmp_path / "a" / "pack" / "inner.py").write_text(text % "packed")
    (tmp_path / "b" / "flat.py").write_text(text % "flat")
    directories = ["--plugins", str(tmp_path / "a"), "--plugins", str(tmp_path / "b")]
    with gateway.Runner([*PROGRAM, "start", *directories]) as one:
        one.eventually_printed("with plugins: flat, packed")


def test_a_file_that_is_no_socket_is_left_alone(tmp_path):
    (tmp_path / "file").write_text("precious")
    command = [*PROGRAM, "start", "--socket", str(tmp_path / "file")]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert done.returncode == 1 and b"cannot listen on" in done.stderr
    assert (tmp_path / "file").read_text() == "precious"


def test_the_version_is_that_of_the_package():
    done = subprocess.run([*PROGRAM, "--version"], capture_output=True, timeout=60, text=True)
    assert done.stdout.strip() == __version__
    assert 'version = "%s"' % __version__ in (HERE.parent / "pyproject.toml").read_text()


def test_conf_that_expires(tmp_path):
    source = """
class Kept(PluginBase):
    def name(self): return "kept"
    def config(self, conf): return conf
"""
    (tmp_path / "kept.py").write_text("from apisix.runner.plugin.core import PluginBase\n" + source)
    with gateway.Runner([*PROGRAM, "start", "--plugins", str(tmp_path)], expire=1) as one, one.connect() as connection:
        token = connection.prepare("k", [("kept", "")])
        end = time.monotonic() + 30
        while connection.call(gateway.HTTP_REQ_CALL, gateway.req_call(token))["kind"] != "error":
            assert time.monotonic() < end
            time.sleep(0.05)
