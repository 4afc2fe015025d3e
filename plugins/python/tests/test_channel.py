"""Frames in any pieces, and ends of connections."""

import socket
import threading

import gateway
import pytest
from apisix.runner import wire
from apisix.runner.channel import Channel, Closed
from hypothesis import given, settings
from hypothesis import strategies as st

frames = st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=60_000)), min_size=1, max_size=5)


@settings(max_examples=50, deadline=None)
@given(frames, st.lists(st.integers(1, 40_000), max_size=12))
def test_frames_in_any_pieces(sent, cuts):
    stream = b"".join(gateway.frame(kind, payload) for kind, payload in sent)
    ours, theirs = socket.socketpair()

    def send():
        begin = 0
        for cut in cuts:
            theirs.sendall(stream[begin : begin + cut])
            begin += cut
        theirs.sendall(stream[begin:])
        theirs.close()

    thread = threading.Thread(target=send)
    thread.start()
    channel = Channel(ours)
    try:
        for kind, payload in sent:
            assert channel.receive() == (kind, payload)
        with pytest.raises(Closed):
            channel.receive()
    finally:
        channel.close()
        thread.join()


@pytest.mark.parametrize("begin", [b"", b"\x02", b"\x02\0\0\x08", b"\x02\0\0\x08abc", b"\x02\x01\0\0" + bytes(20_000)])
def test_an_end_within_a_frame(begin):
    ours, theirs = socket.socketpair()
    threading.Thread(target=lambda: (theirs.sendall(begin), theirs.close())).start()
    with pytest.raises(Closed):
        Channel(ours).receive()
    ours.close()


def test_an_answer_of_another_type_ends_the_connection():
    ours, theirs = socket.socketpair()
    theirs.sendall(gateway.frame(2, b""))
    with pytest.raises(Closed):
        Channel(ours).ask(wire.ASK_REQUEST_BODY)
    theirs.recv(100)
    assert theirs.recv(100) == b""
    theirs.close()


def test_sending_to_nobody():
    ours, theirs = socket.socketpair()
    theirs.close()
    with pytest.raises(Closed):
        Channel(ours).send(wire.error(0))
    ours.close()
