"""HTTP with XML-RPC: what is read, what is refused with which code, what is sent. Checked with python's client."""

from __future__ import annotations

import base64
import codecs
import datetime
import math
import os
import tracemalloc
import xmlrpc.client
from collections.abc import Callable
from typing import Any

import pytest
from fakes.counting import assert_linear, calls
from fakes.xmlrpc_cases import BAD_IN_CALLS, BAD_VALUES, BAD_XML, READ, READ_IN_CALLS, UNSENDABLE, WRITTEN
from hypothesis import example, given
from hypothesis import strategies as st
from virtagent.agent.api.errors import Code, Fault
from virtagent.agent.wire import http
from virtagent.agent.wire import xmlrpc as codec
from virtagent.agent.wire.messages import Incoming, Limits, Refused, Request
from virtagent.agent.wire.session import Session

HEAD = "POST /RPC2 HTTP/1.1\r\nHost: guest\r\n"
TEXT_XML = "Content-Type: text/xml\r\n"


def post(body: bytes, head: str = HEAD + TEXT_XML) -> bytes:
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode("latin-1") + body


def chunked(body: bytes, size: int) -> bytes:
    chunks = [body[i : i + size] for i in range(0, len(body), size)] + [b""]
    head = f"{HEAD}{TEXT_XML}Transfer-Encoding: chunked\r\n\r\n".encode()
    return head + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)


def call(params: str) -> bytes:
    """A methodCall around the text that stands in <params>."""
    return f"<methodCall><methodName>m</methodName><params>{params}</params></methodCall>".encode()


def value(inner: str) -> bytes:
    return call(f"<param><value>{inner}</value></param>")


PING = post(xmlrpc.client.dumps((), "va.ping").encode())


def receive(stream: Session, data: bytes) -> list[Incoming]:
    stream.receive_data(data)
    return list(iter(stream.next_event, None))


def written(stream: Session) -> bytes:
    out = b""
    while piece := bytes(stream.pending()):
        out += piece
        stream.wrote(len(piece))
    return out


def refused(stream: Session, data: bytes) -> tuple[int, str, int, str]:
    """What `data` draws: the HTTP status, the header, and code and text of the fault, which the event must match."""
    [event] = receive(stream, data)
    assert isinstance(event, Refused)
    head, _, body = written(stream).partition(b"\r\n\r\n")
    with pytest.raises(xmlrpc.client.Fault) as raised:
        xmlrpc.client.loads(body)
    assert (raised.value.faultCode, raised.value.faultString) == (event.code, event.text)
    assert len(event.text) < 300
    assert f"\r\nContent-Length: {len(body)}".encode() in head
    return int(head.split()[1]), head.decode("latin-1"), event.code, event.text


def still_serves(stream: Session) -> bool:
    """Whether a good request on the same stream still gets its reply."""
    if not (events := receive(stream, PING)):
        assert stream.closing
        return False
    request = events[-1]
    assert isinstance(request, Request)
    assert not stream.closing
    stream.reply(request.token, "dummy")
    [[answer], _] = xmlrpc.client.loads(written(stream).partition(b"\r\n\r\n")[2])
    return bool(answer == "dummy")


def params(body: bytes) -> Any:
    [request] = receive(Session(), post(body))
    assert isinstance(request, Request), request
    return request.params


def sent(result: Any) -> Any:
    """What python's own client makes of the reply with `result`."""
    [[back], _] = xmlrpc.client.loads(b"".join(codec.dump_reply(result)), use_builtin_types=True)
    return back


# Values, both ways, against python's own codec.

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"), exclude_characters="\ufffe\uffff"))
INT32 = st.integers(-(1 << 31), (1 << 31) - 1)
DOUBLE = st.floats(allow_nan=False, allow_infinity=False)
VALUE = st.recursive(
    st.booleans() | INT32 | DOUBLE | TEXT | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


@given(st.lists(VALUE, max_size=4))
def test_what_pythons_client_sends_is_read(arguments: list[Any]) -> None:
    assert params(xmlrpc.client.dumps(tuple(arguments), "m").encode()) == arguments


@given(VALUE)
def test_what_is_sent_pythons_client_reads(result: Any) -> None:
    assert sent(result) == result


@given(st.integers(-(1 << 63), (1 << 64) - 1).filter(lambda n: not -(1 << 31) <= n < 1 << 31))
@example(1 << 31)
@example(-(1 << 31) - 1)
def test_a_wide_integer_goes_as_a_double(number: int) -> None:
    back = sent(number)
    assert isinstance(back, float)
    assert back == float(number)


def test_tuples_bytearrays_and_enums_go_as_what_they_are() -> None:
    assert sent((1, Code.BUSY, bytearray(b"x"), True, [])) == [1, 4, b"x", True, []]
    assert isinstance(sent(True), bool)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a<b>&\"'c]]>", "a<b>&\"'c]]>"),
        ("two\r\nlines\t\n", "two\r\nlines\t\n"),
        ("\x1b[31mred\x00", r"\x1b[31mred\x00"),
        (os.fsdecode(b"/srv/\xe9t\xe9"), r"/srv/\xe9t\xe9"),
        ("\ud800 \ufffe\uffff", r"\ud800 \ufffe\uffff"),
        ("\x7f\x85\u2028\U0001f9ca", "\x7f\x85\u2028\U0001f9ca"),
    ],
)
def test_text_that_xml_cannot_carry_becomes_visible(text: str, shown: str) -> None:
    assert sent(text) == shown
    assert sent({text: [text]}) == {shown: [shown]}
    with pytest.raises(xmlrpc.client.Fault) as raised:
        xmlrpc.client.loads(b"".join(codec.dump_fault(Fault(Code.FAILED, text))))
    assert raised.value.faultString == shown


@given(st.text(st.characters()))
def test_any_text_makes_a_well_formed_reply(text: str) -> None:
    assert isinstance(sent(text), str)


@pytest.mark.parametrize(("sent", "inside"), WRITTEN)
def test_the_bytes_of_a_value(sent: Any, inside: bytes) -> None:
    reply = b"".join(codec.dump_reply(sent))
    assert reply.partition(b"<param>")[2].partition(b"</param>")[0] == inside
    assert codec.dump_call("m", [sent]).partition(b"<param>")[2].partition(b"</param>")[0] == inside


@pytest.mark.parametrize("result", UNSENDABLE, ids=lambda result: type(result).__name__)
def test_what_has_no_form_becomes_fault_internal(result: Any) -> None:
    stream = Session()
    receive(stream, PING)
    stream.reply(0, result)
    with pytest.raises(xmlrpc.client.Fault, match="cannot be sent") as raised:
        xmlrpc.client.loads(written(stream).partition(b"\r\n\r\n")[2])
    assert raised.value.faultCode == Code.INTERNAL
    assert still_serves(stream)


@pytest.mark.parametrize(("inner", "read"), [*READ, *READ_IN_CALLS])
def test_values_in(inner: str, read: Any) -> None:
    [got] = params(value(inner))
    assert got == read
    assert type(got) is type(read)


def test_not_a_number_is_passed_on() -> None:
    [got] = params(value("<double>nan</double>"))
    assert math.isnan(got)


@pytest.mark.parametrize(
    "body",
    [
        b"<methodCall><methodName>m</methodName></methodCall>",
        b"<methodCall>\n<methodName>m</methodName>\n<params/>\n</methodCall>\n",
        b'<?xml version="1.0"?><methodCall a="b"><methodName>m</methodName><params>\n</params></methodCall>',
    ],
)
def test_no_parameters(body: bytes) -> None:
    assert params(body) == []


@pytest.mark.parametrize(
    ("encoding", "declared"),
    [("utf-8", "utf-8"), ("latin-1", "ISO-8859-1"), ("utf-16", "UTF-16"), ("utf-16", ""), ("utf-8-sig", "")],
)
def test_encodings_that_the_document_declares(encoding: str, declared: str) -> None:
    declaration = f"<?xml version='1.0' encoding='{declared}'?>" if declared else ""
    assert params((declaration + value("é").decode()).encode(encoding)) == ["é"]


# What is refused, with which code; a good request on the same connection still works.

DEEP = 100_000
NESTED = "<value><array><data>"
NESTED_STRUCT = "<value><struct><member><name>a</name>"


@pytest.mark.parametrize(
    ("body", "code", "says"),
    [
        *((value(inner), Code.PARAMS, says) for inner, says in [*BAD_VALUES, *BAD_IN_CALLS]),
        *((prolog + value(inner), Code.PARSE, says) for prolog, inner, says in BAD_XML),
        (b"", Code.PARSE, "no element found"),
        (b"not xml", Code.PARSE, "syntax error"),
        (b"<methodCall>", Code.PARSE, "no element found"),
        (b"<methodCall></methodcall>", Code.PARSE, "mismatched tag"),
        (value("") + b"x", Code.PARSE, "junk after document element"),
        (value("é").decode().encode("latin-1"), Code.PARSE, "not well-formed"),
        (b"<html/>", Code.REQUEST, "<html> is not expected as the document"),
        (xmlrpc.client.dumps((1,), methodresponse=True).encode(), Code.REQUEST, "<methodResponse>"),
        (b"<methodCall/>", Code.REQUEST, "<methodName> is missing"),
        (b"<methodCall><params/></methodCall>", Code.REQUEST, "<params> is not expected in <methodCall>"),
        (call("")[:-13] + b"<params/></methodCall>", Code.REQUEST, "<params> is not expected"),
        (call("").replace(b">m<", b"><"), Code.REQUEST, "<methodName> ''"),
        (call("").replace(b">m<", b"> m<"), Code.REQUEST, "A-Z"),
        (call("").replace(b">m<", b">m\n<"), Code.REQUEST, "A-Z"),
        (call("").replace(b">m<", b">rm -rf<"), Code.REQUEST, "'rm -rf'"),
        (call("").replace(b">m<", ">m\u00e9<".encode()), Code.REQUEST, "A-Z"),
        (call("").replace(b">m<", b">" + b"m" * 257 + b"<"), Code.REQUEST, "256"),
        (call("").replace(b">m<", b"><b/>m<"), Code.REQUEST, "<b> is not expected in <methodName>"),
        (call("").replace(b"<params>", b"loose<params>"), Code.REQUEST, "text 'loose'"),
        (call("<value/>"), Code.PARAMS, "<value> is not expected in <params>"),
        (call("<param/>"), Code.PARAMS, "<value> is missing in <param>"),
        (call("<param><value/><value/></param>"), Code.PARAMS, "<value> is not expected in <param>"),
        (b"<array>" * DEEP, Code.REQUEST, "<array> is not expected"),
        (call("<param>" + NESTED * DEEP), Code.REQUEST, "deeper than the limit of 64"),
        (call("<param>" + NESTED_STRUCT * 1000), Code.REQUEST, "deeper than the limit of 64"),
        (call("<param>" + NESTED * 65 + "</data></array></value>" * 65 + "</param>"), Code.REQUEST, "limit of 64"),
    ],
    ids=lambda argument: str(argument)[:40],
)
def test_a_bad_body_draws_a_fault_and_the_connection_goes_on(body: bytes, code: Code, says: str) -> None:
    stream = Session()
    status, head, got, text = refused(stream, post(body))
    assert (status, got) == (200, code)
    assert says in text
    assert "close" not in head
    assert still_serves(stream)


def test_nesting_up_to_the_limit_is_read() -> None:
    [got] = params(call("<param>" + NESTED * 64 + "</data></array></value>" * 64 + "</param>"))
    for _ in range(63):
        [got] = got
    assert got == []


def test_many_arrays_side_by_side_are_not_deep() -> None:
    assert params(value("<array><data>" + "<value><array><data/></array></value>" * 100 + "</data></array>")) == [
        [[]] * 100
    ]


def test_an_exotic_encoding_is_refused_without_a_look_at_the_codecs_on_disk() -> None:
    asked: list[str] = []
    search: Callable[[str], None] = asked.append
    codecs.register(search)
    try:
        refused(Session(), post(b"<?xml version='1.0' encoding='x-on-disk'?>" + value("")))
    finally:
        codecs.unregister(search)
    assert asked == []


# HTTP

PING_BODY = xmlrpc.client.dumps((), "va.ping").encode()


@pytest.mark.parametrize(
    "head",
    [
        HEAD,
        HEAD + TEXT_XML,
        HEAD + "Content-Type: Text/XML; charset=utf-8\r\n",
        HEAD + "Content-Type: application/xml\r\n",
        HEAD + "Content-Encoding: identity\r\n",
        HEAD + "Connection: keep-alive\r\n",
        HEAD + "Upgrade: h2c\r\n",
        "POST * HTTP/1.1\nHost: guest\n",
    ],
)
def test_good_headers(head: str) -> None:
    stream = Session()
    assert receive(stream, post(PING_BODY, head)) == [Request(0, "va.ping", [])]
    stream.reply(0, "dummy")
    assert written(stream).startswith(
        b"HTTP/1.1 200 OK\r\nServer: virtagent\r\nContent-Type: text/xml\r\nContent-Length: "
    )
    assert still_serves(stream)


def test_pythons_client_gets_its_answer() -> None:
    stream = Session()

    class Transport(xmlrpc.client.Transport):
        def request(self, host: Any, handler: Any, request_body: Any, verbose: bool = False) -> Any:
            [request] = receive(stream, post(request_body))
            assert isinstance(request, Request)
            stream.reply(request.token, [request.method, request.params])
            parser, unmarshaller = self.getparser()
            parser.feed(written(stream).partition(b"\r\n\r\n")[2])
            parser.close()
            return unmarshaller.close()

    proxy = xmlrpc.client.ServerProxy("http://guest/", Transport(), use_builtin_types=True)
    assert proxy.va.fsfreeze({"include": ["/srv/*"], "wait": 1.5}) == [
        "va.fsfreeze",
        [{"include": ["/srv/*"], "wait": 1.5}],
    ]


@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_a_chunked_body(size: int) -> None:
    stream = Session()
    assert receive(stream, chunked(PING_BODY, size) + PING)[::2] == [
        Request(0, "va.ping", []),
        Request(1, "va.ping", []),
    ]


def test_chunks_win_over_a_declared_length() -> None:
    data = chunked(PING_BODY, 7).replace(b"\r\n\r\n", b"\r\nContent-Length: 99999999999\r\n\r\n", 1)
    assert receive(Session(), data) == [Request(0, "va.ping", [])]


@pytest.mark.parametrize(
    "head", [HEAD + "Connection: close\r\n", "POST / HTTP/1.0\r\n", HEAD + "Connection: Close, a\r\n"]
)
def test_a_host_that_asks_to_close_gets_its_answer_first(head: str) -> None:
    stream = Session()
    assert receive(stream, post(PING_BODY, head) + PING) == [Request(0, "va.ping", [])]
    assert not stream.closing
    stream.reply(0, "dummy")
    assert b"\r\nConnection: close\r\n" in written(stream)
    assert stream.closing


def test_a_host_that_asks_to_close_and_sends_rubbish_gets_the_fault() -> None:
    stream = Session()
    status, head, code, _ = refused(stream, post(b"<", HEAD + "Connection: close\r\n"))
    assert (status, code) == (200, Code.PARSE)
    assert "\r\nConnection: close" in head
    assert stream.closing


def test_a_host_that_waits_for_100_continue_gets_it_before_the_body() -> None:
    stream = Session()
    request = post(PING_BODY, HEAD + "Expect: 100-continue\r\n")
    assert receive(stream, request[: -len(PING_BODY)]) == []
    assert written(stream).startswith(b"HTTP/1.1 100 Continue\r\n")
    assert receive(stream, PING_BODY) == [Request(0, "va.ping", [])]
    stream.reply(0, "dummy")
    assert written(stream).startswith(b"HTTP/1.1 200 OK\r\n")
    assert still_serves(stream)


@pytest.mark.parametrize(
    ("head", "status", "says"),
    [
        ("PUT / HTTP/1.1\r\nHost: a\r\n", 405, "HTTP PUT"),
        (HEAD + "Content-Type: application/json\r\n", 200, "application/json"),
        (HEAD + "Content-Type: " + "x" * 500 + "\r\n", 200, "Content-Type"),
        (HEAD + "Content-Encoding: gzip\r\n", 200, "gzip"),
        (HEAD + "X-Virtagent-Client-Tag: " + "x" * 257 + "\r\n", 200, "256"),
    ],
)
def test_a_whole_message_with_a_bad_header_is_refused_and_the_connection_goes_on(
    head: str, status: int, says: str
) -> None:
    stream = Session()
    got, answer, code, text = refused(stream, post(PING_BODY, head))
    assert (got, code) == (status, Code.REQUEST)
    assert says in text
    assert ("\r\nAllow: POST" in answer) == (status == 405)
    assert still_serves(stream)


@pytest.mark.parametrize(
    ("data", "status", "code", "says"),
    [
        (b"Pfui\r\n\r\n", 400, Code.PARSE, "illegal request line"),
        (b"POST / HTTP/1.1\r\n\r\n", 400, Code.PARSE, "Host"),
        (b"POST / HTTP/1.1\r\nHost\r\n\r\n", 400, Code.PARSE, "illegal header line"),
        (post(b"", HEAD + "Content-Length: 7\r\n"), 400, Code.PARSE, "Content-Length"),
        ((HEAD + "Content-Length: -1\r\n\r\n").encode(), 400, Code.PARSE, "Content-Length"),
        ((HEAD + "Content-Length: " + "9" * 100 + "\r\n\r\n").encode(), 400, Code.PARSE, "Content-Length"),
        ((HEAD + "Transfer-Encoding: gzip\r\n\r\n").encode(), 501, Code.PARSE, "chunked"),
        ((HEAD + "Transfer-Encoding: chunked\r\n\r\nzz\r\n").encode(), 400, Code.PARSE, "illegal chunk header"),
        ((HEAD + "Transfer-Encoding: chunked\r\n\r\n1\r\naXX").encode(), 400, Code.PARSE, "malformed chunk footer"),
        ((HEAD + "Transfer-Encoding: chunked\r\n\r\n1;" + "x" * 5000).encode(), 431, Code.REQUEST, "4096"),
        ((HEAD + "Transfer-Encoding: chunked\r\n\r\n0\r\n" + "a: b\r\n" * 999).encode(), 431, Code.REQUEST, "4096"),
        ((HEAD + "a: b\r\n" * 1000).encode(), 431, Code.REQUEST, "4096"),
        ((HEAD + "a: " + "b" * 5000).encode(), 431, Code.REQUEST, "4096"),
        (b"P" * 5000, 431, Code.REQUEST, "4096"),
        ((HEAD + f"Content-Length: {(64 << 20) + 1}\r\n\r\n").encode(), 413, Code.REQUEST, "far over the limit"),
    ],
    ids=lambda argument: str(argument)[:40],
)
def test_what_is_not_http_or_over_a_limit_ends_the_stream(data: bytes, status: int, code: Code, says: str) -> None:
    stream = Session()
    got, head, fault, text = refused(stream, data)
    assert (got, fault) == (status, code)
    assert says in text
    assert "\r\nConnection: close" in head
    assert stream.closing
    assert not stream.mid_message
    assert not still_serves(stream)


@pytest.mark.parametrize(("over", "good"), [(0, True), (1, False)])
@pytest.mark.parametrize("at_once", [1, 100, 10_000])
def test_the_header_limit_is_exact_however_the_bytes_are_cut(over: int, good: bool, at_once: int) -> None:
    bare = len(post(b"", HEAD + "a: \r\n"))
    data = post(b"", HEAD + "a: " + "x" * (4096 - bare + over) + "\r\n")
    stream = Session()
    events = [e for i in range(0, len(data), at_once) for e in receive(stream, data[i : i + at_once])]
    assert len(data) == 4096 + over
    assert len(events) == 1
    assert written(stream).startswith(b"HTTP/1.1 200 " if good else b"HTTP/1.1 431 ")


@pytest.mark.parametrize("wrap", [post, lambda body: chunked(body, 1 << 16)], ids=["declared", "chunked"])
def test_a_body_over_the_limit_is_thrown_away_and_the_connection_goes_on(wrap: Callable[[bytes], bytes]) -> None:
    stream = Session()
    status, head, code, text = refused(stream, wrap(bytes(3 << 20)))
    assert (status, code) == (200, Code.REQUEST)
    assert "2097152" in text
    assert "close" not in head
    assert still_serves(stream)


@pytest.mark.parametrize("wrap", [post, lambda body: chunked(body, 1 << 16)], ids=["declared", "chunked"])
def test_a_body_of_exactly_the_limit_is_read(wrap: Callable[[bytes], bytes]) -> None:
    body = PING_BODY + b"\n" * ((2 << 20) - len(PING_BODY))
    assert receive(Session(), wrap(body)) == [Request(0, "va.ping", [])]
    [event] = receive(Session(), wrap(body + b"\n"))
    assert isinstance(event, Refused)


@pytest.mark.parametrize("wrap", [post, lambda body: chunked(body, 1 << 12)], ids=["declared", "chunked"])
def test_a_body_that_is_thrown_away_takes_no_memory(wrap: Callable[[bytes], bytes]) -> None:
    stream = Session(Limits(body=1 << 16))
    data = wrap(bytes(1 << 20))
    events = []
    tracemalloc.start()
    try:
        for i in range(0, len(data), 1 << 13):
            events += receive(stream, data[i : i + (1 << 13)])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(events) == 1
    assert peak < 4 << 16


def test_an_endless_chunked_body_ends_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "DISCARD_MAX", 100_000)
    stream = Session(Limits(body=10_000))
    status, head, code, _ = refused(stream, chunked(bytes(100_001), 10_000))
    assert (status, code) == (413, Code.REQUEST)
    assert "\r\nConnection: close" in head
    assert not still_serves(stream)


@pytest.mark.parametrize("wrap", [post, lambda body: chunked(body, 10_000)], ids=["declared", "chunked"])
def test_a_limit_over_what_is_thrown_away_counts(
    wrap: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "DISCARD_MAX", 100_000)
    body = value(f"<string>{'x' * 150_000}</string>")
    [event] = receive(Session(Limits(body=200_000)), wrap(body))
    assert isinstance(event, Request), event
    status, _, code, _ = refused(Session(Limits(body=200_000)), wrap(bytes(200_001)))
    assert (status, code) == (413, Code.REQUEST)


def test_endless_headers_take_no_memory() -> None:
    stream = Session()
    [event] = receive(stream, HEAD.encode() + b"a: b\r\n" * 100_000)
    assert isinstance(event, Refused)
    for _ in range(100):
        assert receive(stream, b"a: b\r\n" * 1000) == []
    assert len(stream._input) == 0


@pytest.mark.parametrize("tag", ["a", "x" * 256, "\xe9\x01 b"])
def test_a_tag_is_echoed_byte_for_byte(tag: str) -> None:
    stream = Session()
    [request] = receive(stream, post(PING_BODY, HEAD + f"x-virtagent-client-tag: {tag}\r\n"))
    assert request == Request(0, "va.ping", [], tag)
    stream.reply(0, "dummy")
    assert f"\r\nX-Virtagent-Client-Tag: {tag}\r\n".encode("latin-1") in written(stream)


def test_an_empty_tag_is_none() -> None:
    assert receive(Session(), post(PING_BODY, HEAD + "X-Virtagent-Client-Tag:\r\n")) == [Request(0, "va.ping", [])]


def test_a_refused_request_keeps_its_tag() -> None:
    _, head, _, _ = refused(Session(), post(b"<", HEAD + "X-Virtagent-Client-Tag: t7\r\n"))
    assert "\r\nX-Virtagent-Client-Tag: t7" in head


def test_a_long_binary_reply() -> None:
    content = bytes(range(256)) * 4096
    stream = Session()
    receive(stream, PING)
    stream.reply(0, {"content": content})
    body = written(stream).partition(b"\r\n\r\n")[2]
    assert base64.b64encode(content) in body
    assert xmlrpc.client.loads(body, use_builtin_types=True)[0] == ({"content": content},)


def test_a_date_is_not_sent() -> None:
    with pytest.raises(TypeError, match="datetime has no form"):
        codec.dump_reply(datetime.datetime(2011, 10, 1))


def test_as_many_elements_as_items_of_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "ITEMS_MAX", 1000)
    for count, good in ((1000 - 7, True), (1000 - 6, False)):
        body = value(f"<array><data>{'<value/>' * count}</data></array>")
        [event] = receive(Session(), post(body))
        assert isinstance(event, Request if good else Refused)
        if isinstance(event, Refused):
            assert event == Refused(Code.REQUEST, "more elements than the limit of 1000")


def test_a_body_of_many_elements_or_chunks_takes_linear_work_in_slices() -> None:
    def elements(count: int) -> Callable[[], object]:
        return lambda: receive(Session(), post(value(f"<array><data>{'<value/>' * count}</data></array>")))

    def chunks(count: int) -> Callable[[], object]:
        return lambda: receive(Session(), chunked(value("A" * count), 1))

    assert_linear(elements, 1000)
    assert_linear(chunks, 1000)
    # Half of it has come, and is read as far as that.
    body = value(f"<array><data>{'<value/>' * 20_000}</data></array>")
    whole = calls(lambda: receive(Session(), post(body)))
    stream = Session()
    data = post(body)
    worst = max(calls(lambda at=at: receive(stream, data[at : at + 16384])) for at in range(0, len(data), 16384))  # type: ignore[misc]
    assert worst < 3 * whole / (len(data) / 16384)


@pytest.mark.parametrize(
    "tag",
    [
        "<methodName " + " ".join(f'a{i:x}=""' for i in range(200_000)) + ">m</methodName>",
        f"<methodName><!--{'-' * 5 + ' ' * 1_900_000}--></methodName>".replace("-----", ""),
        f"<methodName><?x {'y' * 1_900_000}?>m</methodName>",
        f"<{'m' * 1_900_000}/>",
    ],
    ids=["attributes", "comment", "instruction", "name"],
)
def test_what_expat_would_read_at_one_go_is_short(tag: str) -> None:
    """It keeps a tag until that is whole, and then makes Python objects of all its attributes at once."""
    data = post(f"<methodCall>{tag}</methodCall>".encode())
    stream = Session()
    [event] = [event for at in range(0, len(data), 16384) for event in receive(stream, data[at : at + 16384])]
    assert event == Refused(Code.REQUEST, "a tag or comment is over the limit of 16384 bytes")
    assert receive(stream, PING), "the connection goes on"


@pytest.mark.parametrize("at_once", [1000, 16384, 1 << 20])
@pytest.mark.parametrize("form", ["{}", "<string>{}</string>", "<![CDATA[{}]]>", "<string a='{:.16000}'>{}</string>"])
def test_long_texts_and_a_tag_that_is_nearly_too_long_are_read(form: str, at_once: int) -> None:
    text, space = "ABC \n" * 100_000, " \n" * 20_000
    inner = form.format(text) if form.count("{") == 1 else form.format(text, text)
    data = post(space.encode() + value(f"{space * inner.startswith('<str')}{inner}") + space.encode())
    stream = Session()
    [event] = [event for at in range(0, len(data), at_once) for event in receive(stream, data[at : at + at_once])]
    assert isinstance(event, Request), event
    assert event.params == [text]
