"""The host's JSON codec: a call to bytes, bytes in any cut to a reply; late, doubled, endless and malformed ones."""

from __future__ import annotations

import collections
import json
import random
import re
from typing import Any

import pytest
from fakes.json_cases import BAD, READ, WRITTEN
from hypothesis import given
from hypothesis import strategies as st
from virtagent.agent.api.errors import Code, Fault
from virtagent.agent.wire.messages import Limits, Request
from virtagent.agent.wire.session import Session
from virtagent.host import qga
from virtagent.host.errors import BadReply, Lost, Unsendable
from virtagent.host.qga import Exchange, Sync
from virtagent.host.xmlrpc import Reply

KNOWN = {"text": 'Zeit "\\ \n é 😀', "whole": 2**62, "real": 0.25, "yes": True, "no": None, "list": [[], {}]}
OURS = b'{"return": 1, "id": "me-1"}\n'


def last_read(data: bytes) -> tuple[str, Any]:
    """Return the last request that our agent reads in the bytes."""
    stream = Session(Limits())
    stream.receive_data(data)
    requests = [event for event in iter(stream.next_event, None) if isinstance(event, Request)]
    return requests[-1].method, requests[-1].params


def exchange(method: str = "va.ping", *params: Any, **options: Any) -> Exchange:
    return Exchange(method, params, tag="me-1", **options)


def line(value: Any, tag: Any = "me-1") -> bytes:
    return json.dumps({"return": value, "id": tag}).encode() + b"\n"


def error(tag: Any = "me-1", **members: Any) -> bytes:
    return json.dumps({"error": members, "id": tag}).encode() + b"\n"


def test_our_agent_reads_the_request() -> None:
    options = {"include": ["/srv/é \x1b"], "wait": 2.5, "big": 2**40}
    sent = exchange("va.fsfreeze", options)
    assert last_read(Sync(7).request + sent.request) == ("va.fsfreeze", [options])


@pytest.mark.parametrize(
    ("method", "params", "arguments"),
    [
        ("guest-ping", (), None),
        ("guest-file-read", ({"handle": 1000},), {"handle": 1000}),
        ("va.ping", (), []),
        ("va.getfile", ("/etc/x",), ["/etc/x"]),
        ("no-such", (), None),
        ("no-such", ({"a": 1},), {"a": 1}),
    ],
)
def test_arguments(method: str, params: tuple[Any, ...], arguments: Any) -> None:
    assert json.loads(exchange(method, *params).request).get("arguments") == arguments


@pytest.mark.parametrize(
    ("method", "param"),
    [("m", object()), ("m", b"x"), ("m", 2**63), ("m", "\udcff"), ("m", {1: 2}), ("m", float("nan")), ("guest-x", 1)],
)
def test_what_cannot_travel_is_refused_before_anything_is_sent(method: str, param: Any) -> None:
    with pytest.raises(Unsendable):
        exchange(method, param)


def test_what_nests_too_deep_is_refused_before_anything_is_sent() -> None:
    deep: Any = []
    for _ in range(900):
        deep = [deep]
    with pytest.raises(Unsendable, match="nest"):
        exchange("va.m", deep)


def test_reply_one_byte_at_a_time() -> None:
    call = exchange()
    data = line(KNOWN)
    for i in range(len(data) - 1):
        assert call.receive(data[i : i + 1]) is None
    assert call.receive(data[-1:]) == Reply(KNOWN)
    assert call.reusable


OTHERS = [line(9, "me-0"), line(9, 7), line(9, None), b'{"return": {}}\n', error("me-0", desc="late"), b"\n", b"\xff\n"]


@given(st.lists(st.sampled_from(OTHERS)), st.lists(st.sampled_from(OTHERS)), st.randoms(use_true_random=False))
def test_late_and_doubled_replies_are_skipped_in_any_cut(
    before: list[bytes], after: list[bytes], random: random.Random
) -> None:
    data = b"".join([*before, line(KNOWN), *after])
    behind = len(b"".join(after))
    call = exchange()
    while data:
        cut = random.randint(1, len(data))
        part, data = data[:cut], data[cut:]
        if (reply := call.receive(part)) is not None:
            assert reply == Reply(KNOWN)
            assert call.reusable == (len(data) == behind)
            return
    pytest.fail("no reply")


@pytest.mark.parametrize(
    ("method", "members", "code"),
    [
        ("va.x", {"class": "GenericError", "desc": "no", "code": 4, "name": "BUSY"}, Code.BUSY),
        ("va.x", {"class": "GenericError", "desc": "no", "code": 4711}, Code.FAILED),
        ("guest-x", {"class": "GenericError", "desc": "no"}, Code.FAILED),
        ("guest-x", {"class": "CommandNotFound", "desc": "The command x has not been found"}, Code.METHOD),
        ("guest-x", {"class": "CommandNotFound", "desc": "Command x has been disabled: not allowed"}, Code.BLOCKED),
        (
            "guest-x",
            {"class": "CommandNotFound", "desc": "Command x has been disabled: the agent is in frozen state"},
            Code.REFUSED_WHILE_FROZEN,
        ),
        (
            "guest-fsfreeze-freeze",
            {"class": "CommandNotFound", "desc": "x has been disabled: the agent is in frozen state"},
            Code.WRONG_STATE,
        ),
    ],
)
def test_errors(method: str, members: dict[str, Any], code: Code) -> None:
    call = exchange(method)
    with pytest.raises(Fault) as raised:
        call.receive(error(**members))
    assert (raised.value.code, raised.value.text[:2]) == (code, members["desc"][:2])
    assert call.reusable


def test_an_error_without_an_id_is_about_the_request_that_could_not_be_read() -> None:
    with pytest.raises(Fault, match="size limit"):
        exchange().receive(b'{"error": {"class": "GenericError", "desc": "JSON token size limit exceeded"}}\n')


@pytest.mark.parametrize(("text", "read"), READ)
def test_values_in(text: bytes, read: Any) -> None:
    assert exchange().receive(b'{"return": ' + text + b', "id": "me-1"}\n') == Reply(read)


@pytest.mark.parametrize(("value", "text"), WRITTEN)
def test_a_parameter_out(value: Any, text: bytes) -> None:
    assert exchange("va.m", value).request == b'{"execute": "va.m", "id": "me-1", "arguments": [' + text + b"]}\n"


@pytest.mark.parametrize(("text", "says"), BAD)
def test_what_is_no_json_is_told_in_qemu_gas_words(text: bytes, says: str) -> None:
    with pytest.raises(BadReply, match=re.escape(f"JSON parse error, {says}")):
        exchange().receive(b'{"return": ' + text + b', "id": "me-1"}\n')


@pytest.mark.parametrize(
    "rubbish",
    [
        b"HTTP/1.1 200 OK\r\n",
        b"[1]\n",
        b"{}\n",
        b'{"error": "no", "id": "me-1"}\n',
        b'{"error": {"desc": 7}, "id": "me-1"}\n',
        b'{"return": ' + b"[" * 999 + b"]" * 999 + b', "id": "me-1"}\n',
        b'{"return": 1, "id": "me-1"\n',
        b'{"return": "\n',
        b"\x00\n",
    ],
)
def test_rubbish(rubbish: bytes) -> None:
    call = exchange()
    with pytest.raises(BadReply):
        call.receive(rubbish)
    assert not call.ended, "the stream may be resynchronised"


@given(st.binary(max_size=200))
def test_any_bytes_end_in_a_reply_or_an_error_that_says_so(data: bytes) -> None:
    call = exchange()
    try:
        call.receive(data)
        call.receive(b"\n")
        call.receive(b"")
    except (BadReply, Lost, Fault):
        pass
    else:
        pytest.fail("the end was not noticed")


def test_an_endless_reply_ends_at_the_limit() -> None:
    call = exchange(reply_max=1000)
    with pytest.raises(BadReply, match="over 1000"):
        collections.deque(map(call.receive, [b" " * 64] * 100))
    assert call.ended


@pytest.mark.parametrize("many", [b"[],", b"0,", b'"",'])
def test_values_that_would_fill_the_memory_are_refused_before_they_are_made(
    many: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qga, "VALUES_MAX", 1000)
    assert qga.load(b"[" + many * 400 + b"0]")
    with pytest.raises(BadReply, match="over 1000 values"):
        qga.load(b"[" + many * 1100 + b"0]")


DEEP = Limits().nesting + 2


@pytest.mark.parametrize(
    ("text", "measured"),
    [
        (OURS, False),
        (b'{"return": [' + b"{}," * (DEEP - 3) + b"{}]}", False),
        (b"[" * DEEP + b"]" * DEEP, False),
        (b'"' + b"[{" * DEEP + b'"', True),
        (b"[" + b"[]," * DEEP + b"0]", True),
    ],
)
def test_only_what_may_be_over_a_limit_is_measured(
    text: bytes, measured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each reply of a thousand guests is looked at: to measure it takes four times as long as to read it."""
    seen = []
    measure = qga._measure
    monkeypatch.setattr(qga, "_measure", lambda line: (seen.append(line), measure(line)))
    assert qga.load(text) == json.loads(text)
    assert seen == [text] * measured


@pytest.mark.parametrize("text", [b"[" * (DEEP + 1), b'["]",' + b"[" * DEEP, b'{"a":' * (DEEP + 1)])
def test_what_nests_too_deep_is_refused(text: bytes) -> None:
    with pytest.raises(BadReply, match=f"nests deeper than {DEEP}"):
        qga.load(text)


@pytest.mark.parametrize(
    "text", [b'"' + b"\\" * (1 << 20), b'"\\"' * (1 << 18), b'"' + b"ab" * (1 << 20), b'\\"' * (1 << 18)]
)
def test_strings_that_do_not_end_cost_no_more_than_their_length(text: bytes) -> None:
    with pytest.raises(BadReply):
        qga.load(text)


@given(
    st.recursive(
        st.text() | st.integers(-(2**60), 2**60) | st.booleans() | st.none(),
        lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(), x, max_size=4),
        max_leaves=20,
    )
)
def test_any_value_is_read_as_json_says(value: Any) -> None:
    assert qga.load(json.dumps(value).encode()) == value


def test_the_end_of_the_stream() -> None:
    with pytest.raises(Lost):
        exchange().receive(b"")
    for cut in range(1, len(OURS)):
        call = exchange()
        assert call.receive(OURS[:cut]) is None
        with pytest.raises(BadReply, match="breaks off"):
            call.receive(b"")
        assert call.ended


# -- resynchronising

OLD = [
    b'{"return": {}}\n',
    b'{"error": {"class": "GenericError", "desc": "JSON parse error"}}\n',
    b'\xff{"return": 41}\n',
    b'"half a string',
    b"\xff" * 5,
    b"\xff" + b"x" * 3000,
    b'{"return": 43}\n',
    b"HTTP/1.1 400 Bad Request\r\n\r\n",
]


@given(st.lists(st.sampled_from(OLD)), st.randoms(use_true_random=False))
def test_sync_skips_what_is_old_in_any_cut(old: list[bytes], random: random.Random) -> None:
    data = b"".join([*old, b'\xff{"return": 42}\n'])
    sync = Sync(42)
    while data:
        cut = random.randint(1, len(data))
        part, data = data[:cut], data[cut:]
        assert sync.receive(part) == (not data)


def test_our_agent_reads_the_sync_whatever_came_before() -> None:
    asked = ("guest-sync-delimited", {"id": 42})
    assert last_read(b'{"execute": "guest-p' + Sync(42).request) == asked
    assert last_read(Sync(42).request) == asked


def test_a_sync_that_never_comes_ends_at_the_limit() -> None:
    sync = Sync(42, 1000)
    with pytest.raises(BadReply, match="over 1000"):
        collections.deque(map(sync.receive, [b'\xff{"return": 41}\n'] * 100))
    with pytest.raises(Lost):
        Sync(42).receive(b"")


@pytest.mark.parametrize("tag", [42, 41])
def test_a_sync_that_is_refused_is_one_too(tag: int) -> None:
    parse_error = b'{"error": {"class": "GenericError", "desc": "JSON parse error"}}\n'
    refusal = {"error": {"class": "CommandNotFound", "desc": "has been disabled"}, "id": tag}
    assert Sync(42).receive(parse_error + json.dumps(refusal).encode() + b"\n") == (tag == 42)


def test_sync_notices_an_agent_that_speaks_xmlrpc_alone() -> None:
    sync = Sync(42)
    for byte in b"HTTP/1.1 400 Bad Request\r\n":
        assert not sync.receive(bytes([byte]))
    assert sync.http
