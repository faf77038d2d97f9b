"""The host's codec: a call to bytes, bytes in any cut to a reply, and no trust in them."""

from __future__ import annotations

import random
import re
from typing import Any
from xmlrpc import client as xmlrpc

import pytest
from fakes.agent_socket import http, reply_bytes
from fakes.xmlrpc_cases import BAD_IN_REPLIES, BAD_VALUES, BAD_XML, READ, UNSENDABLE
from hypothesis import given, settings
from hypothesis import strategies as st
from virtagent.agent.api.errors import Code, Fault
from virtagent.host.errors import BadReply, Lost, Unsendable
from virtagent.host.xmlrpc import Exchange, Reply

KNOWN = {
    "text": "Zeit & <Raum> \n é",
    "whole": 2**31 - 1,
    "real": 0.25,
    "yes": True,
    "bytes": b"\0\xff",
    "list": [[], {}],
}


def exchange(**options: Any) -> Exchange:
    return Exchange("va.ping", (), tag="me-1", **options)


def pour(call: Exchange, drop: bytes) -> None:
    for _ in range(1000):
        assert call.receive(drop) is None


def xml(inside: str) -> bytes:
    return http(f"<methodResponse>{inside}</methodResponse>".encode())


def body_of(inner: str) -> bytes:
    return f"<methodResponse><params><param><value>{inner}</value></param></params></methodResponse>".encode()


def value_xml(inner: str) -> bytes:
    return http(body_of(inner))


def test_request_is_what_the_standard_library_reads() -> None:
    sent = Exchange("va.fsfreeze", ({"include": ["/srv/é & <"], "wait": 2.5, "big": 2**40},), tag="me-1").request
    head, _, body = sent.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /RPC2 HTTP/1.1\r\nHost: virtagent\r\n")
    assert b"X-Virtagent-Client-Tag: me-1" in head.replace(b"X-virtagent-client-tag", b"X-Virtagent-Client-Tag")
    assert f"Content-Length: {len(body)}".encode() in head
    assert xmlrpc.loads(body) == (({"include": ["/srv/é & <"], "wait": 2.5, "big": float(2**40)},), "va.fsfreeze")


@pytest.mark.parametrize(
    "param", [*UNSENDABLE, "\x1b[2J", "a\rb", "\udcff", float, "\ufffe", {"\0": 1}], ids=lambda p: type(p).__name__
)
def test_what_cannot_travel_is_refused_before_anything_is_sent(param: Any) -> None:
    with pytest.raises(Unsendable):
        Exchange("m", (param,), tag="me-1")


def test_what_nests_too_deep_is_refused_before_anything_is_sent() -> None:
    deep: Any = []
    for _ in range(900):
        deep = [deep]
    with pytest.raises(Unsendable, match="nest"):
        Exchange("m", (deep,), tag="me-1")


def test_reply_one_byte_at_a_time() -> None:
    call = exchange()
    data = reply_bytes(KNOWN, "me-1")
    for i in range(len(data) - 1):
        assert call.receive(data[i : i + 1]) is None
    assert call.receive(data[-1:]) == Reply(KNOWN)
    assert call.reusable


@given(st.randoms(use_true_random=False))
def test_reply_in_random_cuts(random: random.Random) -> None:
    data = reply_bytes([KNOWN] * 3)
    call, at, reply = exchange(), 0, None
    while reply is None:
        size = random.randint(1, 200)
        reply = call.receive(data[at : at + size])
        at += size
    assert reply == Reply([KNOWN] * 3)
    assert at >= len(data)


def test_chunked_reply_and_interim_responses() -> None:
    body = xmlrpc.dumps((5,), methodresponse=True).encode()
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:7], body[7:]))
    call = exchange()
    head = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert call.receive(head + chunks + b"0\r\n\r\n") == Reply(5)
    assert call.reusable


def test_a_reply_without_length_ends_with_the_connection() -> None:
    call = exchange()
    body = xmlrpc.dumps((5,), methodresponse=True).encode()
    assert call.receive(b"HTTP/1.0 200 OK\r\n\r\n" + body) is None
    assert call.receive(b"") == Reply(5)
    assert not call.reusable


def test_replies_to_other_calls_are_skipped() -> None:
    data = reply_bytes("late", "me-0") + reply_bytes("other", "you-1") + reply_bytes("mine", "me-1")
    assert exchange().receive(data) == Reply("mine")
    call = exchange()
    replies = [call.receive(data[i : i + 1]) for i in range(len(data))]
    assert replies[-1] == Reply("mine")
    assert not any(replies[:-1])


def test_a_stream_with_more_than_the_reply_is_not_used_again() -> None:
    call = exchange()
    assert call.receive(reply_bytes(1, "me-1") * 2) == Reply(1)
    assert not call.reusable
    call = exchange()
    assert call.receive(reply_bytes(1).replace(b"Content-Type", b"Connection: close\r\nContent-Type")) == Reply(1)
    assert not call.reusable


@pytest.mark.parametrize("status", ["HTTP/1.1 200 OK", "HTTP/1.1 400 Bad Request"])
def test_fault_with_any_http_status(status: str) -> None:
    call = exchange()
    fault = xmlrpc.dumps(xmlrpc.Fault(8, "the keeper died"), methodresponse=True).encode()
    with pytest.raises(Fault) as caught:
        call.receive(http(fault, head=status))
    assert (caught.value.code, caught.value.text) == (Code.FREEZE_BROKEN, "the keeper died")
    assert call.reusable


def test_fault_of_a_newer_agent_keeps_its_number() -> None:
    with pytest.raises(Fault, match=r"the moon.*99") as caught:
        exchange().receive(http(xmlrpc.dumps(xmlrpc.Fault(99, "the moon"), methodresponse=True).encode()))
    assert caught.value.code is Code.FAILED


FAULT = "<fault><value><struct>{}</struct></value></fault>"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "not HTTP"),
        (b"\xff\xfe\x00" * 99 + b"\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 99999, "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999\r\n\r\n", "announces"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "not HTTP"),
        (b"HTTP/1.1 101 Switching\r\n\r\n", "not HTTP"),
        (http(b"<html>no</html>", head="HTTP/1.1 404 Not Found"), "HTTP status 404"),
        (reply_bytes(1).replace(b"200 OK", b"500 No"), "HTTP status 500"),
        (http(b""), "not XML-RPC"),
        (http(b"<methodResponse>"), "not XML-RPC"),
        (http(b"dummy"), "not XML-RPC"),
        *((http(prolog + body_of(inner)), says) for prolog, inner, says in BAD_XML),
        (http(b"<?xml version='1.0' encoding='klingon'?><methodResponse/>"), "not XML-RPC"),
        *((value_xml(inner), re.escape(says)) for inner, says in [*BAD_VALUES, *BAD_IN_REPLIES]),
        (value_xml("<array><data><value>" * 99999), "deeper than the limit of 64"),
        (xml("<params></params>"), "<param> is missing in <params>"),
        (
            xml("<params><param><value>1</value></param><param><value>1</value></param></params>"),
            "<param> is not expected in <params>",
        ),
        (xml("<fault><value>no</value></fault>"), "not XML-RPC"),
        (xml("<fault></fault>"), "not XML-RPC"),
        (xml("<methodName>a</methodName>"), "<methodName> is not expected in <methodResponse>"),
        (
            xml(
                FAULT.format(
                    "<member><name>faultCode</name><value>8</value></member>"
                    "<member><name>faultString</name><value>8</value></member>"
                )
            ),
            "without a number",
        ),
        (xml(FAULT.format("<member><name>faultCode</name><value><int>8</int></value></member>")), "not XML-RPC"),
    ],
)
def test_what_is_no_reply(data: bytes, why: str) -> None:
    with pytest.raises(BadReply, match=why):
        exchange().receive(data)


@pytest.mark.parametrize(("inner", "read"), READ)
def test_values_in(inner: str, read: Any) -> None:
    reply = exchange().receive(value_xml(inner))
    assert reply == Reply(read)
    assert type(reply.value) is type(read)


def test_64_levels_are_read() -> None:
    deep = "<array><data><value>" * 63 + "</value></data></array>" * 63
    reply = exchange().receive(value_xml(deep))
    assert reply is not None
    depth, value = 0, reply.value
    while isinstance(value, list):
        depth, value = depth + 1, value[0]
    assert (depth, value) == (63, "")


def test_an_endless_reply_ends_at_the_limit() -> None:
    call = exchange(reply_max=100_000)
    call.receive(b"HTTP/1.1 200 OK\r\n\r\n<methodResponse><params><param><value>")
    with pytest.raises(BadReply, match="over 100000 bytes"):
        pour(call, b"x" * 1000)


@pytest.mark.parametrize("drop", [b"HTTP/1.1 100 Continue\r\n\r\n", reply_bytes(1, "another")])
def test_endless_responses_that_are_not_the_reply_end_at_the_limit(drop: bytes) -> None:
    call = exchange(reply_max=10_000)
    with pytest.raises(BadReply, match="over 10000 bytes"):
        pour(call, drop)


def test_an_end_at_each_byte() -> None:
    data = reply_bytes(KNOWN)
    for size in range(len(data)):
        call = exchange()
        if size:
            assert call.receive(data[:size]) is None
        with pytest.raises(BadReply if size else Lost, match="breaks off" if size else "without an answer"):
            call.receive(b"")
        assert not call.reusable


@settings(max_examples=300)
@given(st.data())
def test_no_bytes_raise_anything_else(data: st.DataObject) -> None:
    good = bytearray(reply_bytes(KNOWN))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(good)))
        cut = data.draw(st.integers(0, 9))
        good[at : at + cut] = data.draw(st.binary(max_size=6) | st.sampled_from([b"<", b"</value>", b"<i4>", b"&#0;"]))
    call = exchange(reply_max=4000)
    try:
        call.receive(bytes(good) or b"\n")
        call.receive(b"")
    except (BadReply, Fault):
        pass
