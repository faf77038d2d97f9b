"""The stream: which reply may still be sent, when it ends, and how its output is taken. It speaks XML-RPC here."""

from __future__ import annotations

import xmlrpc.client

import pytest
from virtagent.agent.api.errors import Code, Fault
from virtagent.agent.wire.messages import Abandoned, Incoming, Refused, Request
from virtagent.agent.wire.session import Session


def post(method: str, *headers: str) -> bytes:
    body = xmlrpc.client.dumps((), method).encode()
    head = "\r\n".join(["POST /RPC2 HTTP/1.1", "Host: guest", *headers, f"Content-Length: {len(body)}", "", ""])
    return head.encode() + body


def tagged(method: str, tag: str) -> bytes:
    return post(method, f"X-Virtagent-Client-Tag: {tag}")


def receive(stream: Session, data: bytes) -> list[Incoming]:
    stream.receive_data(data)
    return list(iter(stream.next_event, None))


def one(stream: Session, data: bytes) -> Request:
    [request] = receive(stream, data)
    assert isinstance(request, Request)
    return request


def written(stream: Session, at_once: int = 1 << 16) -> bytes:
    out = b""
    while piece := stream.pending()[:at_once]:
        out += piece
        stream.wrote(len(piece))
    assert stream.output_size == 0
    return out


def values(output: bytes) -> list[object]:
    """The values of all replies, in order; each must say its own length."""
    found: list[object] = []
    while output:
        head, _, rest = output.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n"), head
        [length] = [int(line.partition(b":")[2]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length")]
        [[value], _] = xmlrpc.client.loads(rest[:length])
        found.append(value)
        output = rest[length:]
    return found


def test_a_request_and_its_reply() -> None:
    stream = Session()
    assert receive(stream, post("va.ping")) == [Request(0, "va.ping", [])]
    assert stream.output_size == 0
    stream.reply(0, "dummy")
    assert stream.output_size == len(stream.pending())
    assert values(written(stream)) == ["dummy"]
    assert not stream.closing


def test_pipelined_requests_that_are_answered_on_the_spot_all_get_their_reply_in_order() -> None:
    stream = Session()
    stream.receive_data(b"".join(post(f"m{i}") for i in range(50)))
    while (event := stream.next_event()) is not None:
        assert isinstance(event, Request)
        stream.reply(event.token, event.method)
    assert values(written(stream)) == [f"m{i}" for i in range(50)]


def test_nothing_is_parsed_before_it_is_asked_for() -> None:
    stream = Session()
    stream.receive_data(post("first") + b"rubbish\n")
    assert isinstance(stream.next_event(), Request)
    assert stream.output_size == 0
    stream.reply(0, 1)
    assert isinstance(stream.next_event(), Refused)


def test_a_newer_untagged_request_abandons_the_older() -> None:
    stream = Session()
    old = one(stream, post("va.fsfreeze"))
    assert receive(stream, post("va.ping")) == [Abandoned(old.token), Request(1, "va.ping", [])]
    stream.reply(old.token, "too late")
    assert stream.output_size == 0
    stream.reply(1, "dummy")
    assert values(written(stream)) == ["dummy"]


def test_of_three_unanswered_each_abandons_the_one_before_it() -> None:
    assert receive(Session(), post("a") + post("b") + post("c")) == [
        Request(0, "a", []),
        Abandoned(0),
        Request(1, "b", []),
        Abandoned(1),
        Request(2, "c", []),
    ]


def test_half_a_request_abandons_nothing_yet() -> None:
    stream = Session()
    old = one(stream, post("va.fsfreeze"))
    assert receive(stream, post("va.ping")[:-1]) == []
    stream.reply(old.token, 3)
    assert values(written(stream)) == [3]
    assert receive(stream, post("va.ping")[-1:]) == [Request(1, "va.ping", [])]


def test_a_refused_untagged_message_abandons_too() -> None:
    stream = Session()
    one(stream, post("va.fsfreeze"))
    abandoned, refused = receive(stream, post("no/method?"))
    assert abandoned == Abandoned(0)
    assert isinstance(refused, Refused)


def test_tagged_requests_are_answered_as_they_finish_and_not_abandoned() -> None:
    stream = Session()
    assert receive(stream, tagged("a", "A") + tagged("b", "B") + post("c") + tagged("no method", "D"))[:3] == [
        Request(0, "a", [], "A"),
        Request(1, "b", [], "B"),
        Request(2, "c", []),
    ]
    written(stream)  # the fault for D
    for token, tag in ((1, b"B"), (0, b"A")):
        stream.reply(token, token)
        reply = written(stream)
        assert b"\r\nX-Virtagent-Client-Tag: " + tag + b"\r\n" in reply
        assert values(reply) == [token]
    stream.fault(2, Fault(Code.BUSY, "later"))
    reply = written(stream)
    assert b"Client-Tag" not in reply
    assert b"later" in reply


def test_an_untagged_request_does_not_abandon_a_tagged_one() -> None:
    stream = Session()
    assert receive(stream, tagged("a", "A") + post("b") + post("c")) == [
        Request(0, "a", [], "A"),
        Request(1, "b", []),
        Abandoned(1),
        Request(2, "c", []),
    ]


@pytest.mark.parametrize("token", [-1, 1, 99])
def test_a_token_that_was_never_given_out_is_a_defect(token: int) -> None:
    stream = Session()
    one(stream, post("a"))
    with pytest.raises(KeyError):
        stream.reply(token, 0)
    with pytest.raises(KeyError):
        stream.fault(token, Fault(Code.BUSY, "busy"))


def test_a_second_reply_is_not_sent() -> None:
    stream = Session()
    one(stream, post("a"))
    stream.reply(0, 1)
    stream.reply(0, 2)
    assert values(written(stream)) == [1]


@pytest.mark.parametrize("between", [b"\xff", b"\xff\xff", b"\r\n", b" \t\n", b"\n\xff\n"])
def test_sentinel_and_white_space_before_a_message_are_skipped(between: bytes) -> None:
    stream = Session()
    assert receive(stream, between) == []
    assert not stream.mid_message
    assert receive(stream, post("a") + between + post("b"))[::2] == [Request(0, "a", []), Request(1, "b", [])]
    assert not stream.mid_message


@pytest.mark.parametrize("start", [b"G", b"p", b"<", b"\x00", b"\x16", b"\x80"])
def test_a_byte_that_begins_no_message_is_told_in_json_and_costs_nothing_else(start: bytes) -> None:
    stream = Session()
    refused, request = receive(stream, start + b"ET / HTTP/1.1\r\n\r\n" + post("va.ping"))
    assert isinstance(refused, Refused)
    assert refused.code == Code.PARSE
    assert request == Request(1, "va.ping", [])
    assert not stream.closing
    assert b"JSON parse error" in written(stream)


def test_the_stream_closes_only_when_the_last_request_is_answered() -> None:
    stream = Session()
    assert receive(stream, tagged("a", "A") + post("b", "Connection: close") + post("c")) == [
        Request(0, "a", [], "A"),
        Request(1, "b", []),
    ]
    closing = [stream.closing]
    for token in (1, 0):
        stream.reply(token, token)
        closing.append(stream.closing)
    assert closing == [False, False, True]
    assert values(written(stream)) == [1, 0]


def test_mid_message_is_true_from_the_first_byte_to_the_last() -> None:
    stream = Session()
    data = post("a")
    for i in range(len(data)):
        assert stream.mid_message == (i > 0)
        events = receive(stream, data[i : i + 1])
    assert events == [Request(0, "a", [])]
    assert not stream.mid_message


@pytest.mark.parametrize("length", [1, 30, -1])
def test_half_a_message_expires(length: int) -> None:
    stream = Session()
    one(stream, post("va.fsfreeze"))
    receive(stream, post("va.ping")[:length])
    stream.expire()
    assert not stream.mid_message
    abandoned, refused = receive(stream, post("va.ping")[length:])
    assert abandoned == Abandoned(0)
    assert isinstance(refused, Refused)
    assert refused.code == Code.REQUEST
    assert stream.closing
    assert written(stream).startswith(b"HTTP/1.1 400 ")


def test_between_messages_nothing_expires() -> None:
    stream = Session()
    one(stream, post("a"))
    stream.expire()
    stream.reply(0, 1)
    assert values(written(stream)) == [1]
    assert receive(stream, post("b")) == [Request(1, "b", [])]


def test_after_a_reset_the_stream_starts_afresh() -> None:
    stream = Session()
    one(stream, tagged("a", "A"))
    receive(stream, post("b") + b"rubbish")
    stream.reset()
    assert (stream.closing, stream.mid_message, stream.output_size) == (False, False, 0)
    stream.reply(0, "for the host before")
    assert stream.output_size == 0
    request = one(stream, post("c"))
    assert request.token > 1
    stream.reply(request.token, "c")
    assert values(written(stream)) == ["c"]


def test_a_reset_in_mid_message_forgets_the_half() -> None:
    stream = Session()
    receive(stream, post("a")[:50])
    stream.reset()
    assert one(stream, post("b")).method == "b"


def test_partial_writes_of_a_long_reply_copy_nothing() -> None:
    stream = Session()
    one(stream, post("va.getfile"))
    stream.reply(0, bytes(16 << 20))
    whole = stream.pending().obj
    assert isinstance(whole, bytes)
    assert stream.output_size == len(whole) > (16 << 20) * 4 // 3
    seen = 0
    while piece := stream.pending():
        assert piece.obj is whole  # a view of the one object that the reply is, never a copy of its rest
        assert piece[:64] == whole[seen : seen + 64]
        count = min(len(piece), 1 << 16)
        stream.wrote(count)
        seen += count
        assert stream.output_size == len(whole) - seen
    assert seen == len(whole)


def test_writes_of_any_size_give_the_same_bytes() -> None:
    outputs = []
    for at_once in (1, 7, 1 << 16):
        stream = Session()
        for token in range(3):
            one(stream, post("a"))
            stream.reply(token, [token, "text"])
        outputs.append(written(stream, at_once))
    assert outputs[0] == outputs[1] == outputs[2]
    stream.wrote(0)
    assert len(stream.pending()) == 0
