"""Any bytes, cut anywhere: the codec never raises, means the same, and keeps no more than its limits allow."""

from __future__ import annotations

import itertools
import tracemalloc
import xmlrpc.client

from hypothesis import example, given, settings
from hypothesis import strategies as st
from virtagent.agent.api.errors import Code, Fault
from virtagent.agent.wire.messages import Incoming, Limits, Refused, Request
from virtagent.agent.wire.session import Session

CALL = xmlrpc.client.dumps(([1, 2.5, "x", {"a": True}, xmlrpc.client.Binary(b"bytes")], "é"), "va.m").encode()
JSON = b'{"execute": "va.m", "arguments": [1, -2.5e1, "\\u00e9\\"\xc3\xa9", {"a": true}, null], "id": {"x": "}"}}'
HEAD = b"POST /RPC2 HTTP/1.1\r\nHost: guest\r\n"
LIMITS = Limits(header=256, body=1024, nesting=4)


def post(body: bytes, *headers: bytes) -> bytes:
    return b"\r\n".join([HEAD[:-2], *headers, b"Content-Length: %d" % len(body), b"", body])


WHOLE = st.sampled_from(
    [
        post(CALL),
        post(CALL, b"X-Virtagent-Client-Tag: t"),
        post(CALL, b"Connection: close"),
        post(CALL, b"Expect: 100-continue"),
        post(CALL, b"Content-Type: text/plain"),
        post(CALL[:-1]),
        post(b"<!DOCTYPE a>" + CALL),
        post(b"x" * 1025),
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(CALL), CALL),
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n401\r\n" + b"x" * 1025 + b"\r\n0\r\na: b\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nxyz",
        post(b"", b"a: " + b"b" * 300),
        JSON,
        JSON + b"\n",
        b'{"execute": "guest-ping"}',
        b'{"execute": "guest-fsfreeze-status", "id": [1]}',
        b'{"execute": "guest-sync", "arguments": {"id": 1}}\n',
        b'\xff{"execute": "guest-sync-delimited", "arguments": {"id": 2}}\n',
        b"{'execute': 'it\\'s \"so\"'}",
        b'{"execute": "' + b"x" * 1100 + b'"}\n',
        b'{"execute": [[[[[]]]]]}',
        b'{"a": [1, 2}',
        b"[1]",
        b"nonsense\n",
        b"PUT / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\xff",
        b"\r\n",
    ]
)
PART = st.sampled_from(
    [
        HEAD,
        b"P",
        b"\xff",
        b"\r\n",
        b"\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Content-Length: 9\r\n",
        b"5\r\nabcde\r\n",
        b"0\r\n",
        b"a: b\r\n",
        b"<value>",
        b"<array><data>",
        CALL,
        JSON,
        b"{}",
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b"'",
        b"\\",
        b":",
        b",",
        b"0",
        b'"execute"',
        b'"guest-ping"',
        b" ",
        b"x",
    ]
)
MESSAGES = st.lists(WHOLE, max_size=5).map(b"".join)
NOISE = (
    st.binary()
    | st.binary().map(b"P".__add__)
    | st.binary().map(b"{".__add__)
    | st.binary().map(HEAD.__add__)
    | st.binary().map(post)
    | st.lists(PART, max_size=20).map(b"".join)
    | st.tuples(st.lists(PART, max_size=4), PART, st.integers(1, 200)).map(lambda p: b"".join(p[0]) + p[1] * p[2])
)


def answer(stream: Session, event: Incoming) -> None:
    """Answer what is answered on the spot: here every even token."""
    if isinstance(event, Request) and event.token % 4 == 0:
        stream.reply(event.token, event.params)
    elif isinstance(event, Request) and event.token % 2 == 0:
        stream.fault(event.token, Fault(Code.BUSY, event.method))


def conversation(pieces: list[bytes]) -> tuple[list[Incoming], bytes, bool, bool]:
    stream = Session(LIMITS)
    events: list[Incoming] = []
    for piece in pieces:
        stream.receive_data(piece)
        while (event := stream.next_event()) is not None:
            events.append(event)
            answer(stream, event)
    output = b""
    while part := bytes(stream.pending()):
        output += part
        stream.wrote(len(part))
    return events, output, stream.closing, stream.mid_message


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@given(MESSAGES | NOISE, st.lists(st.integers(0, 1 << 16), max_size=12))
def test_how_the_bytes_are_cut_changes_nothing(data: bytes, places: list[int]) -> None:
    assert conversation(cut(data, places)) == conversation([data])


@given(MESSAGES | NOISE)
@example(post(CALL) * 3)
def test_one_byte_at_a_time_is_the_same_as_all_at_once(data: bytes) -> None:
    assert conversation([data[i : i + 1] for i in range(len(data))]) == conversation([data])


@given(NOISE)
def test_whatever_comes_a_stream_that_is_not_closing_can_expire_or_serve(data: bytes) -> None:
    stream = Session(LIMITS)
    stream.receive_data(data)
    while (event := stream.next_event()) is not None:
        answer(stream, event)
    if stream.mid_message:
        stream.expire()
        assert isinstance(list(iter(stream.next_event, None))[-1], Refused)
        stream.reset()
    elif not stream.closing:
        stream.receive_data(b"\xff")  # of garbage that goes on for ever
    if not stream._ended:
        stream.receive_data(post(CALL))
        assert isinstance(list(iter(stream.next_event, None))[-1], Request)


@settings(max_examples=25)  # each takes up to 0.2 s, since all that is allocated is traced
@given(st.lists(PART, max_size=4), PART, st.integers(1, 1000))
def test_half_a_message_takes_no_more_than_the_limits(begin: list[bytes], again: bytes, times: int) -> None:
    pieces = [*begin, *[again] * times]
    stream = Session(LIMITS)
    tracemalloc.start()
    try:
        for piece in pieces:
            stream.receive_data(piece)
            while (event := stream.next_event()) is not None:
                if isinstance(event, Request):
                    stream.fault(event.token, Fault(Code.BUSY, "busy"))
            while pending := len(stream.pending()):
                stream.wrote(pending)
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert kept < LIMITS.header + 2 * LIMITS.body + (32 << 10)
