"""One table of behaviours, run against the runners of all languages over real sockets.

Each runner brings the plugins `stop`, `rewrite`, `response` and `inspect`, which do what their configuration says; the
`README.md` of this directory has the details. Where a language's official module does something else, that is what is
tested for it, because the gateway has to live with it.
"""

import contextlib
import ipaddress
import json
import os
import pathlib
import signal
import subprocess
import threading

import pytest

import gateway
from gateway import HTTP_REQ_CALL, HTTP_RESP_CALL, Connection, Runner

PLUGINS = pathlib.Path(__file__).resolve().parent.parent
JAVA = ["java", "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-jar", str(PLUGINS / "java/target/plugins.jar")]

COMMANDS = {
    "python": ["python3", str(PLUGINS / "python/bin/py-runner"), "start", "--plugins", str(PLUGINS / "conformance/python")],
    "node": ["node", str(PLUGINS / "node/bin/runner.js"), str(PLUGINS / "node/examples")],
    "node-2": ["node", str(PLUGINS / "node/bin/runner.js"), "--processes", "2", str(PLUGINS / "node/examples")],
    "go": [str(PLUGINS / "go/runner"), "run"],
    "java": JAVA,
}
OURS = {"python", "node", "node-2"}
OFFICIAL = {"go", "java"}
CHOSEN = os.environ.get("RUNNERS", "python,node,node-2,go,java").split(",")


#: Of a larger frame the Go module may get less with its only read, as chance has it; with so much sent and no more it
#: surely does.
ONE_READ = 100_000


@pytest.fixture(scope="module", params=CHOSEN)
def runner(request, deviations):
    with Runner(COMMANDS[request.param], cwd=str(PLUGINS), patience=120) as one:
        one.language, one.deviations = request.param, deviations
        yield one


def deviates(runner, languages, words):
    """Whether it is one of those which do otherwise than the table says; the words are printed in the end."""
    if runner.language not in languages:
        return False
    runner.deviations.add((runner.language, words))
    return True


def is_cut(runner, size):
    """Whether a frame of that size is lost. v0.5.0 reads each frame with a single `Read`: internal/server/server.go in
    `handleConn`, internal/http/request.go and response.go in `askExtraInfo`."""
    return size > ONE_READ and deviates(runner, {"go"}, "a frame that does not come at once is cut, and its connection ends")


def begins(connection, kind, payload):
    """Sends the beginning of a frame, and no more until somebody has answered. A runner that got less with its only
    read may have closed before all of it is sent: `ends` sees that as well."""
    with contextlib.suppress(ConnectionError):
        connection.socket.sendall(gateway.frame(kind, payload)[:ONE_READ])


def ends(connection):
    """The runner closes the connection although more of a frame would come."""
    with pytest.raises((gateway.Closed, ConnectionError)):
        connection.receive()


def prepared(runner, key, conf):
    """A token, asked for on a connection of its own as APISIX does: the Java runner answers twice."""
    with runner.connect() as connection:
        return connection.prepare(key, conf)


def token(runner, plugin, conf):
    text = json.dumps(conf)
    return prepared(runner, "route#1#%s#%d" % (plugin, hash(text)), [(plugin, text)])


def call(runner, plugin, conf, kind=HTTP_REQ_CALL, vars=None, body=None, resp_body=None, **request):
    message = gateway.req_call if kind == HTTP_REQ_CALL else gateway.resp_call
    payload = message(token(runner, plugin, conf), **request)
    with runner.connect() as connection:
        reply = connection.call(kind, payload, vars=vars, body=body, resp_body=resp_body)
        reply["asked"] = connection.asked
        return reply


def lower(pairs):
    return sorted((name.lower(), value) for name, value in pairs or [])


# --------------------------------------------------------------------------------------------------------- the request


@pytest.mark.parametrize(
    "conf, status, headers, body",
    [
        ({"status": 401, "body": "no"}, 401, [], b"no"),
        ({"status": 204, "headers": {"X-A": "b"}}, 204, [("x-a", "b")], b""),
        ({"status": 200, "headers": {"X-A": "b", "X-C": "d"}, "body": "grüße"}, 200, [("x-a", "b"), ("x-c", "d")], "grüße".encode()),
        ({"body": "only a body"}, 200, [], b"only a body"),
    ],
)
def test_stop(runner, conf, status, headers, body):
    reply = call(runner, "stop", conf, id=7)
    assert (reply["kind"], reply["id"], reply["status"] or 200) == ("stop", 7, status)
    assert lower(reply.get("headers")) == headers
    assert (reply.get("body") or b"") == body


@pytest.mark.parametrize("id", [0, 1, 0xFFFFFFFF])
def test_the_reply_has_the_id_of_the_call(runner, id):
    assert call(runner, "stop", {"status": 403}, id=id)["id"] == id


def test_rewrite_of_the_path(runner):
    reply = call(runner, "rewrite", {"path": "/a6/ü"}, path="/hello")
    assert (reply["kind"], reply["path"]) == ("rewrite", "/a6/ü")
    assert not reply.get("headers") and not reply.get("args")


def test_rewrite_of_headers(runner):
    headers = [("host", "a.com"), ("x-old", "1"), ("x-stays", "2")]
    reply = call(runner, "rewrite", {"headers": {"X-New": "n", "x-old": "o", "host": "b.com"}}, headers=headers)
    assert lower(reply["headers"]) == [("host", "b.com"), ("x-new", "n"), ("x-old", "o")]


def test_deletion_of_a_header(runner):
    reply = call(runner, "rewrite", {"headers": {"X-Old": None}}, headers=[("x-old", "1"), ("x-stays", "2")])
    assert lower(reply["headers"]) == [("x-old", None)]


def test_rewrite_of_arguments(runner):
    reply = call(runner, "rewrite", {"args": {"a": "new", "c": "3"}}, args=[("a", "1"), ("b", "2")])
    assert sorted(reply["args"]) == [("a", "new"), ("c", "3")]


def test_deletion_of_an_argument(runner):
    reply = call(runner, "rewrite", {"args": {"a": None}}, args=[("a", "1"), ("b", "2")])
    assert reply["args"] == [("a", None)]


def test_headers_of_the_response_set_before_it_comes(runner):
    reply = call(runner, "rewrite", {"resp_headers": {"X-Before": "1"}})
    missing = deviates(runner, {"java"}, "a request's filter cannot set headers of the response to come")
    assert lower(reply.get("resp_headers")) == ([] if missing else [("x-before", "1")])


@pytest.mark.parametrize("size", [1, 9_000, 1_000_000, 15_000_000])
def test_rewrite_of_the_body(runner, size):
    if is_cut(runner, size):
        with runner.connect() as connection:
            conf = [("rewrite", json.dumps({"body": "x" * size}))]
            begins(connection, gateway.PREPARE_CONF, gateway.prepare_conf("route#large", conf))
            ends(connection)
        return
    reply = call(runner, "rewrite", {"body": "x" * size})
    missing = deviates(runner, OFFICIAL, "a filter cannot change the body of the request")
    assert (reply.get("body") or b"") == (b"" if missing else b"x" * size)


def test_a_plugin_that_changes_nothing(runner):
    reply = call(runner, "rewrite", {}, id=3, headers=[("x", "a"), ("x", "b")], args=[("q", "1"), ("q", "2"), ("e", "")])
    assert reply["id"] == 3
    if not deviates(runner, OFFICIAL, "a filter that changes nothing may still answer a rewrite, an empty one"):
        assert reply["kind"] == "none"
    assert not any(reply.get(part) for part in ("path", "headers", "args", "resp_headers", "body"))


def test_what_a_plugin_sees(runner):
    reply = call(
        runner,
        "inspect",
        {},
        method="PATCH",
        path="/a b/ü",
        args=[("a", "1"), ("empty", "")],
        headers=[("host", "a.com"), ("x-one", "1")],
        ip=b"\x0a\x01\x02\x03",
        vars={"route_id": "17"},
        body=b"abc",
    )
    seen = json.loads(reply["body"])
    assert seen["method"] == "PATCH"
    assert seen["path"] == "/a b/ü"
    assert seen["args"] == {"a": "1", "empty": ""}
    assert {name.lower(): value for name, value in seen["headers"].items()} == {"host": "a.com", "x-one": "1"}
    assert seen["remote_addr"] == "10.1.2.3"
    assert seen["route_id"] == "17"
    assert seen["body_length"] == 3
    assert sorted(reply["asked"]) == ["<body>", "route_id"]


def test_an_ipv6_address(runner):
    seen = json.loads(call(runner, "inspect", {}, ip=b"\x20\x01\x0d\xb8" + bytes(11) + b"\x01")["body"])
    if deviates(runner, {"java"}, "an IPv6 address is shown as sixteen decimal numbers"):
        assert seen["remote_addr"] == "32.1.13.184.0.0.0.0.0.0.0.0.0.0.0.1"
        return
    assert ipaddress.ip_address(seen["remote_addr"]) == ipaddress.ip_address("2001:db8::1")


def test_an_argument_without_a_value(runner):
    seen = json.loads(call(runner, "inspect", {}, args=[("z", None)])["body"])
    hidden = deviates(runner, {"java"}, "an argument without a value is not shown")
    assert seen["args"] == ({} if hidden else {"z": ""})


@pytest.mark.parametrize("size", [0, 9_000, 1_000_000, 15_000_000])
def test_the_body_of_the_request(runner, size):
    if is_cut(runner, size):
        with runner.connect() as connection:
            connection.send(HTTP_REQ_CALL, gateway.req_call(token(runner, "inspect", {})))
            connection.receive()  # the variable
            connection.send(gateway.EXTRA_INFO, gateway.extra_info(b"17"))
            connection.receive()  # the body
            begins(connection, gateway.EXTRA_INFO, gateway.extra_info(b"z" * size))
            # the plugin gets an error, and must not let the request pass
            assert gateway.read_reply(*connection.receive())["status"] == 503
        return
    seen = json.loads(call(runner, "inspect", {}, body=b"z" * size)["body"])
    assert seen["body_length"] == size


def test_there_is_no_body(runner):
    assert json.loads(call(runner, "inspect", {}, body=None)["body"])["body_length"] == 0


def test_an_unknown_variable(runner):
    assert not json.loads(call(runner, "inspect", {}, vars={})["body"])["route_id"]


def test_many_headers(runner):
    headers = [("x%d" % number, "v" * 1000) for number in range(60)]
    assert call(runner, "stop", {"status": 418}, headers=headers)["status"] == 418


# -------------------------------------------------------------------------------------------------------- the response


def test_response_status_and_headers(runner):
    reply = call(
        runner,
        "response",
        {"status": 202, "headers": {"X-New": "1"}},
        kind=HTTP_RESP_CALL,
        id=9,
        headers=[("Content-Type", "text/plain")],
    )
    assert (reply["kind"], reply["id"], reply["status"]) == ("response", 9, 202)
    assert lower(reply["headers"]) == [("x-new", "1")]


def test_response_unchanged(runner):
    reply = call(runner, "response", {}, kind=HTTP_RESP_CALL, id=9, status=404, headers=[("Content-Type", "text/plain")])
    assert (reply["kind"], reply["id"], reply.get("status")) in (("response", 9, None), ("response", 9, 404))
    assert not reply.get("headers") and not reply.get("body")


def test_response_header_deleted(runner):
    reply = call(runner, "response", {"headers": {"server": None}}, kind=HTTP_RESP_CALL, headers=[("Server", "x")])
    emptied = deviates(runner, {"go"}, "a header of the response that is deleted becomes empty")
    assert lower(reply["headers"]) == [("server", "" if emptied else None)]


@pytest.mark.parametrize("size", [0, 9_000, 1_000_000, 15_000_000])
def test_response_body(runner, size):
    if is_cut(runner, size):
        with runner.connect() as connection:
            connection.send(HTTP_RESP_CALL, gateway.resp_call(token(runner, "response", {"append": "!"})))
            connection.receive()  # the body
            begins(connection, gateway.EXTRA_INFO, gateway.extra_info(b"z" * size))
            assert gateway.read_reply(*connection.receive())["status"] == 502
        return
    reply = call(runner, "response", {"append": "!"}, kind=HTTP_RESP_CALL, resp_body=b"z" * size)
    assert reply["body"] == b"z" * size + b"!"


# ------------------------------------------------------------------------------------------------------------- failures


def test_an_exception_in_a_plugin_is_an_error(runner):
    if deviates(runner, {"go"}, "a panic in a filter ends the connection"):
        with pytest.raises((gateway.Closed, ConnectionError)):
            call(runner, "inspect", {"fail": True})
    else:
        reply = call(runner, "inspect", {"fail": True})
        assert (reply["kind"], reply["code"]) == ("error", gateway.SERVICE_UNAVAILABLE)
    assert call(runner, "stop", {"status": 403})["status"] == 403


def test_an_unknown_token(runner):
    for kind, message in ((HTTP_REQ_CALL, gateway.req_call), (HTTP_RESP_CALL, gateway.resp_call)):
        with runner.connect() as connection:
            reply = connection.call(kind, message(4_000_000_000))
            assert (reply["kind"], reply["code"]) == ("error", gateway.CONF_TOKEN_NOT_FOUND)
    assert call(runner, "stop", {"status": 403})["status"] == 403


def test_an_unknown_plugin_is_refused_when_it_is_prepared(runner):
    with runner.connect() as connection:
        reply = connection.try_prepare("k", [("no-such-plugin", "{}")])
        if deviates(runner, OFFICIAL, "an unknown plugin is left out: requests pass without it"):
            assert reply["kind"] == "token"
            return
        assert (reply["kind"], reply["code"]) == ("error", gateway.BAD_REQUEST)
        # the connection goes on
        assert connection.prepare("k", [("stop", "{}")])


def test_a_configuration_that_cannot_be_read_is_refused(runner):
    with runner.connect() as connection:
        reply = connection.try_prepare("k2", [("stop", "{")])
        if deviates(runner, OFFICIAL, "a configuration that cannot be read gets a token"):
            assert reply["kind"] == "token"
            return
        assert (reply["kind"], reply["code"]) == ("error", gateway.BAD_REQUEST)


@pytest.mark.parametrize("kind", [0, 3, 9, 255])
def test_an_unknown_type(runner, kind):
    with runner.connect() as connection:
        connection.send(kind, b"xx")
        assert gateway.read_reply(*connection.receive()) == {"kind": "error", "code": gateway.BAD_REQUEST}
        assert connection.prepare("k", [("stop", "{}")])


@pytest.mark.parametrize("kind", [1, 2, 4])
@pytest.mark.parametrize("payload", [b"", b"\0", b"\xff" * 40, bytes(40), b"\x04\0\0\0\xff\xff\xff\x7f"], ids=len)
def test_a_bad_buffer(runner, kind, payload):
    if deviates(runner, OFFICIAL, "a payload that is no message may end the connection, or be read as zeros"):
        # the others are still served
        with runner.connect() as connection:
            connection.send(kind, payload)
            try:
                assert gateway.read_reply(*connection.receive())["kind"] in ("error", "token")
            except (gateway.Closed, ConnectionError):
                pass
        assert call(runner, "stop", {"status": 403})["status"] == 403
        return
    with runner.connect() as connection:
        connection.send(kind, payload)
        reply = gateway.read_reply(*connection.receive())
        assert reply["kind"] == "error" and reply["code"] == gateway.BAD_REQUEST
        assert connection.prepare("k", [("stop", "{}")])


def test_a_frame_in_pieces(runner):
    payload = gateway.frame(HTTP_REQ_CALL, gateway.req_call(token(runner, "stop", {"status": 403}), headers=[("x", "y" * 500)]))
    if deviates(runner, {"go"}, "a frame that does not come at once is cut, and its connection ends"):
        for so_much in (1, 3, 5, len(payload) - 1):
            with runner.connect() as connection:
                connection.socket.sendall(payload[:so_much])
                ends(connection)
        return
    with runner.connect() as connection:
        for at in list(range(0, 12)) + list(range(12, len(payload), 97)):
            end = at + 1 if at < 12 else at + 97
            connection.socket.sendall(payload[at:end])
        assert gateway.read_reply(*connection.receive())["status"] == 403


def test_calls_in_a_row_without_waiting(runner):
    one = token(runner, "stop", {"status": 403})
    with runner.connect() as connection:
        connection.socket.sendall(b"".join(gateway.frame(HTTP_REQ_CALL, gateway.req_call(one, id=id)) for id in (1, 2, 3)))
        assert [gateway.read_reply(*connection.receive())["id"] for _ in range(3)] == [1, 2, 3]


def test_a_gateway_that_goes_away_in_the_middle(runner):
    one = token(runner, "inspect", {})
    for _ in range(5):
        connection = Connection(runner.path)
        connection.send(HTTP_REQ_CALL, gateway.req_call(one))
        connection.receive()  # the first question
        connection.close()
        connection = Connection(runner.path)
        connection.socket.sendall(b"\x02\x00\x01")
        connection.close()
    assert call(runner, "stop", {"status": 403})["status"] == 403


def test_something_else_than_an_answer(runner):
    with runner.connect() as connection:
        connection.send(HTTP_REQ_CALL, gateway.req_call(token(runner, "inspect", {})))
        connection.receive()
        connection.send(HTTP_REQ_CALL, gateway.req_call(1))
        if deviates(runner, OFFICIAL, "another call in place of an answer is taken for one, or waited past"):
            # nobody else may notice
            connection.close()
            assert call(runner, "stop", {"status": 403})["status"] == 403
            return
        with pytest.raises((gateway.Closed, ConnectionError)):
            connection.receive()  # it may have asked twice
            connection.receive()
    assert call(runner, "stop", {"status": 403})["status"] == 403


def test_many_routes(runner):
    few = deviates(runner, {"java"}, "no more than a thousand configurations are kept, and some are thrown away before")
    count = 500 if few else 1000
    tokens = {}
    for number in range(count):
        conf = json.dumps({"status": 200, "body": "route %d" % number})
        tokens[number] = prepared(runner, "route#%d#ext-plugin-pre-req#1" % number, [("stop", conf)])
    assert len(set(tokens.values())) == count
    with runner.connect() as connection:
        for number in (0, 1, count // 2, count - 1):
            reply = connection.call(HTTP_REQ_CALL, gateway.req_call(tokens[number]))
            assert reply["body"] == b"route %d" % number


def test_the_same_key_gives_the_same_token(runner):
    if deviates(runner, {"java"}, "a key that is known gets a new token"):
        assert prepared(runner, "route#same", [("stop", "{}")]) != prepared(runner, "route#same", [("stop", "{}")])
        return
    with runner.connect() as connection:
        first = connection.prepare("route#same", [("stop", "{}")])
        assert connection.prepare("route#same", [("stop", "{}")]) == first
    with runner.connect() as connection:
        assert connection.prepare("route#same", [("stop", "{}")]) == first


def test_the_same_key_with_another_configuration(runner):
    first = prepared(runner, "route#key", [("stop", '{"status": 401}')])
    second = prepared(runner, "route#key", [("stop", '{"status": 402}')])
    if deviates(runner, {"go"}, "a key that is known keeps its configuration, whatever the new one says"):
        # the gateway never uses a key twice
        assert first == second
        return
    assert first != second
    with runner.connect() as connection:
        assert connection.call(HTTP_REQ_CALL, gateway.req_call(first))["status"] == 401
        assert connection.call(HTTP_REQ_CALL, gateway.req_call(second))["status"] == 402


def test_several_plugins_run_in_order_and_the_first_answer_ends_it(runner):
    conf = [
        ("rewrite", json.dumps({"path": "/rewritten"})),
        ("stop", json.dumps({"status": 403})),
        ("inspect", json.dumps({"fail": True})),
    ]
    one, two = prepared(runner, "route#several", conf), prepared(runner, "route#two", conf[:1])
    with runner.connect() as connection:
        assert connection.call(HTTP_REQ_CALL, gateway.req_call(one))["status"] == 403
        assert connection.call(HTTP_REQ_CALL, gateway.req_call(two))["path"] == "/rewritten"


def test_many_connections_at_once(runner):
    one, failed = token(runner, "stop", {"status": 403}), []

    def work():
        try:
            with runner.connect() as connection:
                for id in range(1, 100):
                    reply = connection.call(HTTP_REQ_CALL, gateway.req_call(one, id=id))
                    assert (reply["id"], reply["status"]) == (id, 403)
        except Exception as error:  # noqa: BLE001
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


# ------------------------------------------------------------------------------------------------------------- processes


@pytest.mark.parametrize("language", [one for one in CHOSEN if one in OURS])
class TestProcess:
    def test_it_ends_at_sigterm_and_takes_its_socket_along(self, language):
        runner = Runner(COMMANDS[language], cwd=str(PLUGINS))
        runner.process.send_signal(signal.SIGTERM)
        assert runner.process.wait(30) == 0
        assert not os.path.exists(runner.path)
        runner.stop()

    def test_it_takes_the_place_of_a_dead_one(self, language):
        runner = Runner(COMMANDS[language], cwd=str(PLUGINS))
        runner.process.kill()
        runner.process.wait(30)
        with pytest.raises(OSError):
            runner.connect()
        runner.start()
        assert call(runner, "stop", {"status": 403})["status"] == 403
        assert runner.stop() == 0

    def test_a_configuration_that_is_too_old_is_unknown(self, language):
        with Runner(COMMANDS[language], cwd=str(PLUGINS), expire=1) as runner:
            with runner.connect() as connection:
                one = connection.prepare("route#old", [("stop", "{}")])
                deadline = threading.Event()
                for _ in range(300):
                    reply = connection.call(HTTP_REQ_CALL, gateway.req_call(one))
                    if reply["kind"] == "error":
                        break
                    deadline.wait(0.1)
                assert (reply["kind"], reply.get("code")) == ("error", gateway.CONF_TOKEN_NOT_FOUND)
                assert connection.prepare("route#old", [("stop", "{}")]) != one

    def test_it_does_not_start_without_an_address(self, language):
        environment = {name: value for name, value in os.environ.items() if name != "APISIX_LISTEN_ADDRESS"}
        done = subprocess.run(COMMANDS[language], cwd=str(PLUGINS), env=environment, capture_output=True, timeout=60)
        assert done.returncode != 0
        assert b"APISIX_LISTEN_ADDRESS" in done.stderr
