"""What plugins may call, and what of it reaches the gateway."""

import gateway
import pytest
from apisix.runner import wire
from apisix.runner.http import request as http_request
from apisix.runner.http.request import PostRequest, Request
from apisix.runner.http.response import PostResponse, Response


class Answers:
    """The gateway's answers by question, and what was asked."""

    def __init__(self, **answers):
        self.answers = {wire.ask_variable(name): value for name, value in answers.items()}
        self.asked = 0

    def ask(self, question):
        self.asked += 1
        return self.answers.get(question)


def request(channel=None, **call):
    return Request(wire.Table(gateway.req_call(5, id=9, **call)), channel or Answers(), {"p": "c"}, 5)


def reply(one, **more):
    return gateway.read_reply(2, one._reply(9, **more)[4:])


def rewrites(one):
    found = reply(one)
    assert found.pop("id") == 9
    return {} if found == {"kind": "none"} else {name: value for name, value in found.items() if name != "kind"}


def test_the_methods_of_apache_are_all_there():
    of_request = (
        "get_header set_header get_headers set_headers get_var set_var get_body set_body get_arg set_arg get_args "
        "set_args get_uri set_uri get_remote_addr set_remote_addr get_conf_token set_conf_token get_id set_id "
        "set_method get_method set_config get_config get_configs set_configs"
    )
    of_response = (
        "get_header set_header get_headers set_headers get_body set_body get_status_code set_status_code "
        "get_req_id set_req_id changed"
    )
    for kind, names in ((Request, of_request), (Response, of_response)):
        assert [name for name in names.split() if not callable(getattr(kind, name, None))] == []


def test_nothing_is_asked_and_nothing_is_sent_by_looking():
    channel = Answers()
    one = request(channel, headers=[("x", "a"), ("x", "b")], args=[("q", "1"), ("q", "2"), ("z", None)], path="/p")
    assert (one.get_id(), one.get_conf_token(), one.get_method(), one.get_uri()) == (9, 5, "GET", "/p")
    assert (one.get_header("X"), one.get_header_values("X"), one.get_header("y")) == ("b", ["a", "b"], None)
    assert (one.get_arg("q"), one.get_arg_values("q"), one.get_arg("z"), one.get_arg("y")) == ("2", ["1", "2"], "", None)
    assert (one.get_headers(), one.get_args()) == ({"x": "b"}, {"q": "2", "z": ""})
    assert (one.get_config("p"), one.get_configs(), one.get_remote_addr()) == ("c", {"p": "c"}, "127.0.0.1")
    assert rewrites(one) == {}
    assert channel.asked == 0


@pytest.mark.parametrize("change", [
    lambda one: one.set_header("", "x"),
    lambda one: one.set_header("x", ""),
    lambda one: one.set_headers({}),
    lambda one: one.set_arg("", "x"),
    lambda one: one.set_arg("x", ""),
    lambda one: one.set_args({}),
    lambda one: one.set_uri("no-slash"),
    lambda one: one.set_uri(""),
    lambda one: one.set_body(""),
    lambda one: one.set_method("NO"),
    lambda one: one.set_remote_addr(""),
    lambda one: one.set_id(0),
    lambda one: one.set_conf_token(0),
    lambda one: one.set_config("", "x"),
    lambda one: one.set_configs({}),
    lambda one: one.set_var("x", ""),
    lambda one: one.del_header(""),
    lambda one: one.del_arg(""),
    lambda one: one.set_resp_header("", "x"),
])  # fmt: skip
def test_what_is_empty_is_refused(change):
    one = request(headers=[("h", "1")], args=[("a", "1")])
    assert change(one) is False
    assert rewrites(one) == {}


@pytest.mark.parametrize("change, expected", [
    (lambda one: one.set_uri("/q"), {"path": "/q"}),
    (lambda one: one.set_uri("/p"), {}),
    (lambda one: one.set_header("X", "1"), {"headers": [("X", "1")]}),
    (lambda one: one.set_header("H", "2"), {"headers": [("H", "2")]}),
    (lambda one: one.set_header("h", "2"), {"headers": [("h", "2")]}),
    # of two values one remains, even if it is the one that a reader sees
    (lambda one: one.set_header("h", "b"), {"headers": [("h", "b")]}),
    (lambda one: one.del_header("H"), {"headers": [("H", None)]}),
    (lambda one: one.del_header("H") and one.set_header("h", "b"), {"headers": [("h", "b")]}),
    (lambda one: one.set_header("h", "2") and one.del_header("h"), {"headers": [("h", None)]}),
    (lambda one: one.set_headers({"x": "1"}), {"headers": [("x", "1")]}),
    (lambda one: one.set_headers({"h": "b"}), {}),
    (lambda one: one.get_headers().update(n="v"), {"headers": [("n", "v")]}),
    (lambda one: one.get_headers().clear(), {}),
    (lambda one: one.set_arg("a", "2"), {"args": [("a", "2")]}),
    (lambda one: one.set_arg("A", "2"), {"args": [("A", "2")]}),
    (lambda one: one.del_arg("a"), {"args": [("a", None)]}),
    (lambda one: one.del_arg("a") and one.set_arg("a", "1"), {"args": [("a", "1")]}),
    (lambda one: one.set_args({"b": "1"}), {"args": [("b", "1")]}),
    (lambda one: one.get_args().update(n="v"), {"args": [("n", "v")]}),
    (lambda one: one.set_resp_header("R", "1"), {"resp_headers": [("R", "1")]}),
    (lambda one: one.set_body("ü"), {"body": "ü".encode()}),
    (lambda one: one.set_body(b"\xff"), {"body": b"\xff"}),
    (lambda one: one.set_method("post"), {}),
])  # fmt: skip
def test_what_is_changed_is_sent(change, expected):
    one = request(headers=[("h", "a"), ("h", "b")], args=[("a", "1")], path="/p")
    change(one)
    assert rewrites(one) == expected


def test_what_was_set_is_read_back():
    one = request(headers=[("h", "1")])
    one.set_header("H", "2")
    assert (one.get_header("h"), one.get_header("H")) == ("2", "2")
    one.set_uri("/new")
    one.set_method("post")
    one.set_body("body")
    one.set_var("v", "1")
    one.set_config("p", "d")
    assert (one.get_uri(), one.get_method(), one.get_body(), one.get_var("v")) == ("/new", "post", "body", "1")
    assert (one.get_config("p"), one.get_configs()) == ("d", {"p": "d"})


def test_variables_are_asked_once():
    channel = Answers(host=b"a.com", empty=b"")
    one = request(channel)
    assert [one.get_var(name) for name in ("host", "host", "empty", "empty", "none", "none")] == ["a.com"] * 2 + [""] * 4
    assert (one.get_var_bytes("empty"), one.get_var_bytes("none")) == (b"", None)
    assert channel.asked == 3


@pytest.mark.parametrize("encoding, raw, seen", [
    ("utf-8", "ü".encode(), "ü"),
    ("utf-8", b"\xff\x00a", "\udcff\x00a"),
    ("latin-1", "ü".encode(), "Ã¼"),
])  # fmt: skip
def test_a_body_survives_being_read_and_set(encoding, raw, seen):
    channel = Answers()
    channel.answers[wire.ASK_REQUEST_BODY] = raw
    http_request.set_encoding(encoding)
    try:
        one = request(channel)
        assert one.get_body() == seen
        assert one.get_body_bytes() == raw
        one.set_body(one.get_body())
        assert rewrites(one) == {"body": raw}
    finally:
        http_request.set_encoding("utf-8")
    assert channel.asked == 1


def test_nothing_can_be_asked_when_the_call_is_over():
    one = request()
    one._end()
    with pytest.raises(RuntimeError, match="the call is over"):
        one.get_var("host")


@pytest.mark.parametrize("ip, expected", [
    (b"\x0a\0\0\1", "10.0.0.1"),
    (b"\x20\x01" + bytes(13) + b"\1", "2001:0000:0000:0000:0000:0000:0000:0001"),
    (b"", ""),
])  # fmt: skip
def test_addresses(ip, expected):
    assert request(ip=ip).get_remote_addr() == expected


# ------------------------------------------------------------------------------------------------------------ responses


def test_an_answer():
    one = Response()
    assert not one.changed() and one.get_status_code() == 200
    assert one.set_header("A", "1") and one.add_header("Set-Cookie", "a") and one.add_header("Set-Cookie", "b")
    assert one.set_body("ü") and one.changed() and one.set_status_code(299)
    assert (one.get_header("A"), one.get_headers(), one.get_body()) == ("1", {"A": "1"}, "ü")
    expected = [("A", "1"), ("Set-Cookie", "a"), ("Set-Cookie", "b")]
    assert reply(one) == {"kind": "stop", "id": 9, "status": 299, "headers": expected, "body": "ü".encode()}


@pytest.mark.parametrize("change", [
    lambda one: one.set_header("", "x"),
    lambda one: one.set_header("x", ""),
    lambda one: one.set_headers({}),
    lambda one: one.add_header("x", ""),
    lambda one: one.set_body(""),
    lambda one: one.set_status_code(0),
    lambda one: one.set_status_code(99),
    lambda one: one.set_status_code(600),
    lambda one: one.set_req_id(0),
])  # fmt: skip
def test_an_answer_refuses_what_is_empty(change):
    one = Response()
    assert change(one) is False and not one.changed()


def upstream(channel=None, headers=(("Content-Type", "a"), ("Set-Cookie", "1"), ("Set-Cookie", "2"))):
    message = wire.Table(gateway.resp_call(5, id=9, status=404, headers=headers))
    return PostResponse(message, channel or Answers(), {})


def answer(one, all_headers=False):
    found = gateway.read_reply(4, one._reply(9, all_headers)[4:])
    assert (found.pop("kind"), found.pop("id")) == ("response", 9)
    return found


def test_a_response_is_read():
    one = upstream()
    assert (one.get_status_code(), one.get_header("content-type"), one.get_header("no")) == (404, "a", None)
    assert one.get_header_values("set-cookie") == ["1", "2"]
    assert one.get_headers() == {"Content-Type": "a", "Set-Cookie": "2"}
    assert not one.changed() and answer(one) == {} and answer(one, True) == {}


@pytest.mark.parametrize("change, expected", [
    (lambda one: one.set_status_code(200), {"status": 200}),
    (lambda one: one.set_header("X", "1"), {"headers": [("X", "1")]}),
    (lambda one: one.set_header("X", "1") and one.set_header("x", "2"), {"headers": [("x", "2")]}),
    (lambda one: one.add_header("set-cookie", "3"), {"headers": [("set-cookie", one) for one in "123"]}),
    (lambda one: one.del_header("Set-Cookie"), {"headers": [("Set-Cookie", None)]}),
    (lambda one: one.set_headers({"A": "1", "B": "2"}), {"headers": [("A", "1"), ("B", "2")]}),
    (lambda one: one.set_body("ü"), {"body": "ü".encode()}),
    (lambda one: one.set_body("") or one.set_status_code(0) or one.set_header("", ""), {}),
])  # fmt: skip
def test_a_response_is_changed(change, expected):
    one = upstream()
    change(one)
    assert answer(one) == expected


def test_all_headers_for_gateways_that_drop_the_others():
    one = upstream(headers=[("Content-Type", "a"), ("Content-Length", "3"), ("X", "1")])
    one.set_header("X", "2")
    assert answer(one, True) == {"headers": [("Content-Type", "a"), ("X", "2")]}


def test_the_request_of_a_response_is_asked_for():
    channel = Answers(http_user_agent=b"curl", arg_a=b"1", uri=b"/p", request_method=b"GET", remote_addr=b"::1")
    message = wire.Table(gateway.resp_call(5, id=9))
    one = PostRequest(message, channel, {"p": "c"}, 5)
    assert (one.get_id(), one.get_conf_token(), one.get_config("p")) == (9, 5, "c")
    assert (one.get_header("User-Agent"), one.get_header("no"), one.get_arg("a"), one.get_arg("b")) == ("curl", None, "1", None)
    assert (one.get_uri(), one.get_method(), one.get_remote_addr(), one.get_body()) == ("/p", "GET", "::1", "")
