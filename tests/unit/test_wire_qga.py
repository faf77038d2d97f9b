"""The QEMU guest agent protocol on the wire: what is read, what is refused in which words, and whose reply is sent.

The texts were read off qemu-ga 7.2; tests/peers asks a real one.
"""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from fakes.counting import assert_linear, calls
from fakes.json_cases import BAD, READ, WRITTEN
from hypothesis import given
from hypothesis import strategies as st
from virtagent.agent.api.errors import Code, Fault
from virtagent.agent.wire import json_values, qmp
from virtagent.agent.wire.messages import Abandoned, Incoming, Limits, Refused, Request
from virtagent.agent.wire.session import WAITING_MAX, Session

FROZEN = "Command guest-x has been disabled: the command is not allowed"


def receive(stream: Session, data: bytes) -> list[Incoming]:
    stream.receive_data(data)
    return list(iter(stream.next_event, None))


def written(stream: Session) -> bytes:
    out = b""
    while piece := bytes(stream.pending()):
        out += piece
        stream.wrote(len(piece))
    return out


def lines(stream: Session) -> list[Any]:
    return [json.loads(line.lstrip(b"\xff")) for line in written(stream).splitlines()]


def say(method: str, **more: Any) -> bytes:
    return json.dumps({"execute": method, **more}).encode()


def desc(data: bytes, limits: Limits = Limits()) -> str:  # noqa: B008 - frozen
    """The one error that these bytes draw."""
    stream = Session(limits)
    [event] = receive(stream, data)
    assert isinstance(event, Refused)
    [reply] = lines(stream)
    assert reply["error"]["class"] == "GenericError"
    assert reply["error"]["desc"].startswith(event.text)
    return str(reply["error"]["desc"])


@pytest.mark.parametrize(
    ("data", "method", "params", "tag"),
    [
        (b'{"execute":"guest-ping"}', "guest-ping", {}, None),
        (b'\n {"execute" : "guest-ping" }\n', "guest-ping", {}, None),
        (b"{'execute':'a\\\"b'}", 'a"b', {}, None),
        (b"{'execute': 'it\\'s \"so\" {'}", 'it\'s "so" {', {}, None),
        (b'{"execute":"a","arguments":{"b":[1,{"c":"}]"}]},"id":null}', "a", {"b": [1, {"c": "}]"}]}, "id"),
        (b'{"execute":"va.fshold","arguments":[30]}', "va.fshold", [30], None),
        (b'{"execute":"va.fsstatus"}', "va.fsstatus", [], None),
        (b'{"execute":"va.fsstatus","arguments":{}}', "va.fsstatus", {}, None),
        (b'{"execute":"\\u00e9\\ud83d\\ude00\xc3\xa9\\/\\""}', 'é😀é/"', {}, None),
    ],
)
def test_a_request_whole_and_byte_by_byte(data: bytes, method: str, params: Any, tag: str | None) -> None:
    wanted = [Request(0, method, params, tag)]
    assert receive(Session(), data) == wanted
    stream = Session()
    assert [event for i in range(len(data)) for event in receive(stream, data[i : i + 1])] == wanted


@pytest.mark.parametrize("given", [None, 0, -1.5, "x\u20ac", [1, [2]], {"a": {"b": None}}, True, 2**64], ids=repr)
def test_the_id_is_echoed_whatever_it_is(given: Any) -> None:
    stream = Session()
    [request] = receive(stream, say("guest-ping", id=given))
    stream.reply(request.token, {})
    receive(stream, say("nope", id=given))
    stream.fault(1, Fault(Code.METHOD, "no"))
    good, bad = lines(stream)
    assert good == {"return": {}, "id": given}
    assert bad == {"id": given, "error": {"class": "CommandNotFound", "desc": "The command nope has not been found"}}


@pytest.mark.parametrize(
    ("data", "text"),
    [
        *((text, f"JSON parse error, {says}") for text, says in BAD if says),
        (b"{}", "QMP input lacks member 'execute'"),
        (b'{"execute":1}', "QMP input member 'execute' must be a string"),
        (b'{"execute":"guest-ping","arguments":[]}', "QMP input member 'arguments' must be an object"),
        (b'{"execute":"va.ping","arguments":null}', "QMP input member 'arguments' must be an object"),
        (b'{"execute":"a","x":1}', "QMP input member 'x' is unexpected"),
        (b"[1]", "QMP input must be a JSON object"),
        (b'"text"', "QMP input must be a JSON object"),
        (b"17\n", "QMP input must be a JSON object"),
        (b"null\n", "QMP input must be a JSON object"),
        (b"foo\n", "JSON parse error, invalid keyword 'foo'"),
        (b"@", "JSON parse error, stray '@'"),
        (b"\xff{", "JSON parse error, stray '\ufffd'"),
        (b"\x00", "JSON parse error, stray '\x00'"),
        (b"}", "JSON parse error, expecting value"),
        (b",", "JSON parse error, expecting value"),
        (b"{]", "JSON parse error, expecting value"),
        (b'{"a":[1,2}', "JSON parse error, expected separator in list"),
        (b'{"a":1]', "JSON parse error, expected separator in dict"),
        (b'{"a":"\\uD800"}', "JSON parse error, \\uD800 is not a valid Unicode character"),
        (b'{"a":"\\ud800"}', "JSON parse error, \\ud800 is not a valid Unicode character"),
        (b'{"\\udfff\\ud800":1}', "JSON parse error, \\udfff is not a valid Unicode character"),
    ],
)
def test_what_is_wrong_is_told_in_qemu_gas_words(data: bytes, text: str) -> None:
    assert desc(data) == text


@pytest.mark.parametrize("number", [text[5:-1] for text, says in BAD if not says])
def test_what_is_no_number_is_refused(number: bytes) -> None:
    stream = Session()
    events = receive(stream, b'{"execute":"a","id":' + number + b"}")
    assert events
    assert all(isinstance(event, Refused) and event.text.startswith("JSON parse error") for event in events)
    assert receive(stream, b"\n" + say("guest-ping"))[-1] == Request(stream._tokens - 1, "guest-ping", {})


@pytest.mark.parametrize(("text", "read"), READ)
def test_arguments_in(text: bytes, read: Any) -> None:
    assert receive(Session(), b'{"execute":"a","arguments":' + text + b"}") == [Request(0, "a", read)]


@pytest.mark.parametrize(("value", "text"), WRITTEN)
def test_a_value_out(value: Any, text: bytes) -> None:
    stream = Session()
    receive(stream, say("a"))
    stream.reply(0, value)
    assert written(stream) == b'{"return": ' + text + b"}\n"


@pytest.mark.parametrize("half", [b'{"exe', b'{"execute":', b'{"execute":"guest-ping"', b"[[[", b'"', b"{'a\\"])
def test_ff_resets_whatever_was_begun(half: bytes) -> None:
    stream = Session()
    assert receive(stream, half) == []
    assert stream.mid_message
    refused, request = receive(stream, b"\xff" + say("guest-sync-delimited", arguments={"id": 5}))
    assert isinstance(refused, Refused)
    assert not refused.reset
    assert "JSON parse error, stray" in refused.text
    stream.reply(request.token, 5)
    assert written(stream).split(b"\n")[1] == b'\xff{"return": 5}'


def test_the_sentinel_of_2011_is_silent_and_a_reset_is_not() -> None:
    stream = Session()
    assert receive(stream, b"\xff") == []
    assert not stream.mid_message
    assert receive(stream, b"POST / HTTP/1.1\r\n") == []
    assert stream.output_size == 0
    stream = Session()
    assert receive(stream, b"\xff\n") == []
    reset, _ = receive(stream, say("guest-ping"))
    assert isinstance(reset, Refused)
    assert reset.reset


def test_too_deep_and_too_long_are_read_past() -> None:
    limits = Limits(body=4000, nesting=8)
    assert desc(b"[" * 9 + b"]" * 9, limits) == "JSON nesting depth limit exceeded"
    assert desc(b'{"a":"' + b"x" * 5000 + b'"}', limits) == "JSON token size limit exceeded"
    stream = Session(limits)
    kinds = [type(e) for e in receive(stream, b"[" * 5000 + b"]" * 5000 + b'{"a":"' + b"x" * 9000 + b'"}' + say("b"))]
    assert kinds == [Refused, Refused, Request]


def test_a_file_write_may_be_large_and_takes_linear_time() -> None:
    small, large = 2 << 20, 48 << 20

    def seconds(size: int) -> float:
        data = say("guest-file-write", arguments={"handle": 1000, "buf-b64": "A" * size})
        stream = Session()
        begun = time.process_time()
        events = []
        for i in range(0, len(data), 65536):
            events += receive(stream, data[i : i + 65536])
        assert [type(event) for event in events] == [Request]
        return time.process_time() - begun

    # Quadratic would be 529 times as long.
    assert seconds(large) < 120 * max(seconds(small), 0.005)
    assert desc(say("guest-exec", arguments={"input-data": "A" * small})) == "JSON token size limit exceeded"
    assert desc(say("guest-file-write", arguments={"b": "A" * (49 << 20)})) == "JSON token size limit exceeded"


# -- replies


def test_a_value_as_json() -> None:
    stream = Session()
    receive(stream, say("va.getfile"))
    stream.reply(0, {"a": b"\x00\xff", "b": (1, 2.5), "c": "\udcff\u20ac", "d": None})
    assert written(stream) == b'{"return": {"a": "AP8=", "b": [1, 2.5], "c": "\\ufffd\\u20ac", "d": null}}\n'
    receive(stream, say("va.x"))
    stream.reply(1, float("nan"))
    [reply] = lines(stream)
    assert reply["error"]["code"] == Code.INTERNAL


@pytest.mark.parametrize("method", sorted(qmp.SILENT))
def test_what_sends_no_reply_when_it_succeeds(method: str) -> None:
    stream = Session()
    receive(stream, say(method))
    stream.reply(0, {})
    assert written(stream) == b""
    receive(stream, say(method))
    stream.fault(1, Fault(Code.FAILED, "shutdown is missing"))
    assert lines(stream) == [{"error": {"class": "GenericError", "desc": "shutdown is missing"}}]


@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [
        (Code.METHOD, "CommandNotFound", "The command guest-x has not been found"),
        (Code.BLOCKED, "CommandNotFound", "Command guest-x has been disabled: the command is not allowed"),
        (Code.WRONG_STATE, "GenericError", "why"),
        (
            Code.REFUSED_WHILE_FROZEN,
            "CommandNotFound",
            FROZEN,
        ),
        (Code.FREEZE_BROKEN, "GenericError", "why"),
        (Code.FAILED, "GenericError", "why"),
    ],
)
def test_class_and_text_of_a_fault(code: Code, kind: str, text: str) -> None:
    stream = Session()
    receive(stream, say("guest-x"))
    stream.fault(0, Fault(code, "why"))
    assert lines(stream) == [{"error": {"class": kind, "desc": text}}]


@pytest.mark.parametrize(
    ("code", "why"), [(Code.BLOCKED, ""), (Code.REFUSED_WHILE_FROZEN, ": the agent is in frozen state")]
)
def test_texts_of_older_versions(code: Code, why: str) -> None:
    stream = Session(Limits(qga=(7, 2)))
    receive(stream, say("guest-x"))
    stream.fault(0, Fault(code, "why"))
    desc = f"Command guest-x has been disabled{why}"
    assert lines(stream) == [{"error": {"class": "CommandNotFound", "desc": desc}}]


def test_a_fault_of_our_own_method_has_its_number() -> None:
    stream = Session()
    receive(stream, say("va.fshold", arguments=[3]))
    stream.fault(0, Fault(Code.WRONG_STATE, "why"))
    error = {"class": "GenericError", "desc": "why", "code": 2, "name": "WRONG_STATE"}
    assert lines(stream) == [{"error": error}]


def test_a_message_of_many_values_is_refused_before_they_are_made() -> None:
    begin, each, end = b'{"execute":"guest-file-write","arguments":{"x":[', b"[],", b"1]}}"
    most = (qmp.ITEMS_MAX - len(b"{,{[]}}")) // len(each)
    assert [type(event) for event in receive(Session(), begin + each * most + end)] == [Request]
    assert desc(begin + each * (most + 1) + end) == "JSON token count limit exceeded"
    hidden = b'{"id":"guest-file-write","execute":"guest-exec","arguments":{"input-data":"' + b"A" * (3 << 20) + b'"}}'
    assert desc(hidden) == "JSON token size limit exceeded"


def test_what_is_quoted_to_the_host_is_not_what_the_log_is_told() -> None:
    stream = Session()
    [refused, *_] = receive(stream, b'{"execute":"guest-set-user-password","arguments":{"password":"c2VjcmV0\n"}}')
    assert isinstance(refused, Refused)
    assert "c2VjcmV0" not in refused.text


# -- whose reply is sent


def test_requests_in_one_go_are_done_one_after_another() -> None:
    stream = Session()
    [first] = receive(stream, say("guest-file-open") + say("guest-ping") + b"nonsense\n" + say("guest-info"))
    assert first.method == "guest-file-open"
    assert stream.output_size == 0
    stream.reply(first.token, 1000)
    [ping] = receive(stream, b"")
    stream.reply(ping.token, {})
    refused, info = receive(stream, b"")
    assert isinstance(refused, Refused)
    stream.reply(info.token, {"version": "x"})
    assert [list(line) for line in lines(stream)] == [["return"], ["return"], ["error"], ["return"]]


@pytest.mark.parametrize("sync", sorted(qmp.SYNCS))
@pytest.mark.parametrize("more", [{}, {"id": "s"}])
def test_a_sync_gives_up_on_all_that_is_older_and_what_waited_is_still_done(sync: str, more: dict[str, Any]) -> None:
    stream = Session()
    older = receive(stream, say("guest-get-fsinfo") + say("guest-fsfreeze-thaw") + say("guest-exec", id=1))
    assert [event.method for event in older] == ["guest-get-fsinfo", "guest-exec"]
    thaw, *rest, request = receive(stream, say(sync, arguments={"id": 3}, **more))
    assert (thaw.method, thaw.unheard, request.method) == ("guest-fsfreeze-thaw", True, sync)
    assert sorted(event.token for event in rest) == [0, 2]
    assert {type(event) for event in rest} == {Abandoned}
    for token in (0, 1, 2):
        stream.reply(token, "late")
    assert stream.output_size == 0
    stream.reply(request.token, 3)
    [reply] = lines(stream)
    assert reply["return"] == 3


@pytest.mark.parametrize("waits", [*sorted(qmp.WAITING), "va.fsfreeze", "va.fsstatus"])
def test_behind_what_waits_for_a_freeze_the_next_is_answered_at_once(waits: str) -> None:
    stream = Session()
    receive(stream, say(waits))
    assert receive(stream, say("guest-ping")) == [Abandoned(0), Request(1, "guest-ping", {})]
    stream.reply(1, {})
    stream.reply(0, "late")
    assert lines(stream) == [{"return": {}}]


def test_behind_something_short_a_freeze_and_a_ping_are_not_held_up_by_one_another() -> None:
    stream = Session()
    [fsinfo] = receive(stream, say("guest-get-fsinfo") + say("guest-fsfreeze-freeze") + say("guest-ping"))
    stream.reply(fsinfo.token, [])
    freeze, given_up, ping = receive(stream, b"")
    assert (freeze.method, given_up, ping.method) == ("guest-fsfreeze-freeze", Abandoned(freeze.token), "guest-ping")
    stream.reply(ping.token, {})
    [thaw] = receive(stream, say("guest-fsfreeze-thaw"))
    assert thaw.method == "guest-fsfreeze-thaw"


def test_what_is_answered_on_the_spot_is_not_given_up_for_what_stands_behind_it() -> None:
    stream = Session()
    [fsinfo] = receive(stream, say("guest-get-fsinfo") + say("va.fsstatus") + say("va.ping") + say("guest-ping"))
    stream.reply(fsinfo.token, "first")
    answers = []
    while (event := stream.next_event()) is not None:
        assert isinstance(event, Request)
        stream.reply(event.token, event.method)
        answers.append(event.method)
    assert answers == ["va.fsstatus", "va.ping", "guest-ping"]
    assert [line["return"] for line in lines(stream)] == ["first", *answers]


@pytest.mark.parametrize("garbage", [b"\0", b"nonsense\n", b'{"a" 1}'])
def test_garbage_does_not_throw_away_the_reply_of_a_freeze(garbage: bytes) -> None:
    stream = Session()
    [freeze] = receive(stream, say("guest-fsfreeze-freeze"))
    assert receive(stream, garbage) == []
    assert stream.output_size == 0
    stream.reply(freeze.token, 3)
    assert all(isinstance(event, Refused) for event in receive(stream, b""))
    assert [list(line) for line in lines(stream)] == [["return"], ["error"]]


def test_a_fault_lets_the_next_have_its_turn_as_a_value_does() -> None:
    stream = Session()
    [first] = receive(stream, say("guest-file-open") + say("guest-ping"))
    stream.fault(first.token, Fault(Code.FAILED, "no"))
    [ping] = receive(stream, b"")
    assert ping.method == "guest-ping"


def test_an_http_message_gives_up_on_what_waits_too() -> None:
    stream = Session()
    receive(stream, say("guest-file-flush") + say("guest-ping"))
    post = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
    ping, given_up, refused = receive(stream, post)
    assert isinstance(ping, Request)
    assert ping.unheard
    assert given_up == Abandoned(0)
    assert isinstance(refused, Refused)
    assert [event.method for event in receive(stream, say("guest-ping"))] == ["guest-ping"]


def test_of_a_host_that_is_gone_what_waited_is_done() -> None:
    stream = Session()
    receive(stream, say("guest-get-fsinfo") + say("guest-fsfreeze-thaw"))
    assert stream.owing
    [thaw] = stream.give_up()
    assert isinstance(thaw, Request)
    assert (thaw.method, thaw.unheard) == ("guest-fsfreeze-thaw", True)
    stream.reset()
    assert [event.method for event in receive(stream, say("guest-ping"))] == ["guest-ping"]
    assert not stream.full


def test_many_bytes_that_wait_fill_the_stream_too() -> None:
    stream = Session()
    large = say("guest-file-write", arguments={"buf-b64": "A" * (1 << 20)})
    receive(stream, say("guest-get-fsinfo") + large + large)
    assert stream.full


def test_requests_with_an_id_are_answered_as_they_finish() -> None:
    stream = Session()
    receive(stream, say("guest-get-fsinfo", id=1) + say("guest-exec", id=2) + say("guest-ping"))
    for token in (2, 1, 0):
        stream.reply(token, token)
    assert [line["return"] for line in lines(stream)] == [2, 1, 0]


def test_no_more_are_read_than_may_wait() -> None:
    stream = Session()
    assert len(receive(stream, say("guest-get-fsinfo") + say("guest-ping") * 1000)) == 1
    assert stream.full
    served = 0
    while served <= 1000:
        stream.reply(served, {})
        served += 1
        assert len(receive(stream, b"")) == (served <= 1000)
    assert not stream.full
    assert WAITING_MAX < 1000
    assert len(lines(stream)) == 1001


def test_half_a_message_that_grows_old_is_told_and_another_host_is_served() -> None:
    stream = Session()
    receive(stream, b'{"execute": "guest-shut')
    stream.expire()
    assert isinstance(stream.next_event(), Refused)
    assert not stream.closing
    assert len(lines(stream)) == 1
    assert receive(stream, say("guest-ping")) == [Request(1, "guest-ping", {})]


# -- linear work: counted, not timed


def quoted(size: int, inside: bytes = b"A") -> bytes:
    return (
        b"{\"execute\":\"guest-file-write\",'arguments':{'handle':1,'buf-b64':'"
        + inside * (size // len(inside))
        + b"'}}"
    )


def fed(data: bytes, at_once: int = 16 << 10) -> Incoming:
    """Have it come as a channel reads it; return the one event that it is."""
    stream = Session()
    found: list[Incoming] = []
    for at in range(0, len(data), at_once):
        found += receive(stream, data[at : at + at_once])
    [event] = found
    return event


@pytest.mark.parametrize("inside", [b"A", b"\\\\", b"\\'", b'\\"', b"\\u0041"])
def test_single_quotes_take_linear_work_and_less_than_four_times_the_memory(inside: bytes) -> None:
    scale = 1024 if inside == b"A" else 64  # an escape is a step, a plain run is one a slice
    assert_linear(lambda size: lambda: fed(quoted(size * scale, inside)), 300)
    data = quoted(3072 * scale, inside)
    tracemalloc.start()
    try:
        event = fed(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(event, Request)
    assert peak < 4 * len(data), f"{peak / len(data):.1f} times the message"


@given(
    st.lists(st.sampled_from(["a", "'", '"', "\\", "\u00e9", "\n", "/"]), max_size=30).map("".join), st.integers(1, 9)
)
def test_a_string_in_single_quotes_is_the_same_in_double_ones(text: str, at_once: int) -> None:
    single = "'" + "".join({"'": "\\'", "\\": "\\\\", "\n": "\\n"}.get(c, c) for c in text) + "'"
    event = fed(f"{{'execute':'x','arguments':{{'a':{single}}}}}".encode(), at_once)
    assert isinstance(event, Request)
    assert event.params == {"a": text}


@pytest.mark.parametrize(
    "data", [quoted(3 << 20).replace(b"'handle'", "'\u00e9'".encode()), quoted(3 << 20, b'"')], ids=["letter", "quotes"]
)
def test_a_large_message_that_would_grow_is_refused_for_its_memory(data: bytes) -> None:
    event = fed(data)
    assert isinstance(event, Refused)
    assert event.text == "JSON token size limit exceeded"


@pytest.mark.parametrize("inside", [b"A", b"\\\\", b'\\"', b"\\n"])
@pytest.mark.parametrize("wrong", [b'{"a":"%b" "b":1}', b'{"a":["%b" "b"]}', b'{"a":"%b","b":1]'])
def test_what_is_wrong_behind_a_long_string_is_found_in_less_than_four_times_the_memory(
    wrong: bytes, inside: bytes
) -> None:
    data = wrong % (inside * (1_900_000 // len(inside)))
    tracemalloc.start()
    try:
        event = fed(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(event, Refused)
    assert peak < 4 * len(data), f"{peak / len(data):.1f} times the message"


@pytest.mark.parametrize("string", ['"["', r'"\\"', r'"\\\"["', r'"\n\\\\"', r'"\"{"', '"]}"'])
@pytest.mark.parametrize("at_once", [1, 2, 3, 64])
def test_brackets_in_strings_are_none(string: str, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_values, "_PIECE", at_once)
    for text, inside in ((f'{{"a":[{string} 1]}}', "list"), (f'{{"a":[{string}],"b":{{{string}:1 2}}}}', "dict")):
        with pytest.raises(Fault, match=rf"expected separator in {inside} \["):
            json_values.load(text.encode())


def test_escapes_in_a_string_are_looked_at_many_at_once() -> None:
    data = b'{"execute":"guest-file-write","arguments":{"handle":1,"buf-b64":"' + b"\\n" * 500_000 + b'"}}'
    assert calls(lambda: fed(data)) < 100_000


@given(
    st.text(
        st.sampled_from(
            [
                "a",
                "\\",
                "u",
                "d",
                "8",
                '"',
                "\ud83d",
                "\ude00",
                "\udcff",
                "\U0001f600",
                "\ud000",
                "\ud55c",
                "\ud7ff",
                "\ue000",
                "\n",
            ]
        ),
        max_size=20,
    )
)
def test_what_is_no_text_becomes_a_question_mark_and_nothing_else_changes(text: str) -> None:
    line = json_values.dump({text: [text]})
    plain = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert json.loads(line) == {plain: [plain]}


def test_one_path_that_is_no_text_does_not_make_each_value_a_step() -> None:
    mounts = [{"mountpoint": "/\udcff", "index": index} for index in range(1000)]
    assert calls(lambda: json_values.dump(mounts)) < 4000


def test_each_of_many_messages_costs_what_it_costs_alone() -> None:
    """All of them stand in the input at once; today's mistake would be to copy the rest for each."""

    def words(count: int) -> Callable[[], object]:
        return lambda: receive(Session(), b"no " * count)

    assert_linear(words, 1000)
    message = qmp.Message(0, Limits(), lambda _data: None)
    source = bytearray(b"no " * 500_000)
    before = len(source)
    tracemalloc.start()
    try:
        assert message.read(source) is not None
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert before - len(source) <= 3
    assert peak < 64 << 10, "the rest was copied"
