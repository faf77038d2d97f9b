"""The codec of the report pipe: any message, any cut, any rubbish; nothing over PIPE_BUF, no memory without bound."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from typing import Any

import hypothesis.strategies as st
import msgpack
import pytest
from hypothesis import example, given
from virtagent.agent.api.structs import Value
from virtagent.agent.worker import messages
from virtagent.agent.worker.messages import CONTROLS, MESSAGE_MAX, PIPE_BUF, REPORTS, Decoder, Rubbish, encode

TEXT = st.text(st.characters(codec=None), max_size=60).map(
    lambda t: t.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")
)
NUMBER = st.integers(-(2**31), 2**40) | st.floats(allow_nan=False, allow_infinity=False)
INTEGER = st.integers(-(2**63), 2**64 - 1)
VALUE: Any = st.recursive(
    TEXT | st.binary(max_size=60) | st.booleans() | INTEGER | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)
FIELD: dict[Any, Any] = {
    int: INTEGER,
    str: TEXT,
    list: st.lists(VALUE, max_size=4),
    dict: st.dictionaries(TEXT, VALUE, max_size=4),
    (int, float): NUMBER,
    object: VALUE,
}


def any_of(kinds: dict[str, Any]) -> Any:
    return st.one_of([st.builds(kind, *(FIELD[shape] for shape in kind.shape)) for kind in kinds.values()])


def decode(kinds: dict[str, Any], data: bytes, cuts: list[int]) -> list[Any]:
    decoder, found, begin = Decoder(kinds), [], 0
    for cut in [*sorted(c for c in cuts if c < len(data)), len(data)]:
        found += decoder.feed(data[begin:cut])
        begin = cut
    return found


@given(st.lists(any_of(REPORTS), max_size=6), st.lists(st.integers(0, 2000), max_size=12))
def test_reports_survive_the_pipe_in_any_cut(said: list[Any], cuts: list[int]) -> None:
    frames = [frame for message in said for frame in encode(message)]
    assert all(0 < len(frame) <= PIPE_BUF for frame in frames)
    assert decode(REPORTS, b"".join(frames), cuts) == said


@given(st.lists(any_of(CONTROLS), max_size=6), st.lists(st.integers(0, 200), max_size=12))
def test_controls_survive_the_pipe_in_any_cut(said: list[Any], cuts: list[int]) -> None:
    frames = [frame for message in said for frame in encode(message)]
    assert decode(CONTROLS, b"".join(frames), cuts) == said


@given(any_of(REPORTS))
def test_one_byte_at_a_time(message: Any) -> None:
    data = b"".join(encode(message))
    assert decode(REPORTS, data, list(range(len(data)))) == [message]


@pytest.mark.parametrize("size", [0, 1, 4000, PIPE_BUF - 9, PIPE_BUF - 8, PIPE_BUF, PIPE_BUF + 1, 100_000, 5 << 20])
def test_long_messages_travel_in_frames_that_a_pipe_takes_whole(size: int) -> None:
    message = messages.Done(b"x" * size)
    frames = encode(message)
    assert all(len(frame) <= PIPE_BUF for frame in frames)
    assert Decoder(REPORTS).feed(b"".join(frames)) == [message]


@given(st.lists(any_of(REPORTS), max_size=8), st.integers(0, 8))
def test_short_messages_may_stand_between_the_parts_of_a_long_one(short: list[Any], before: int) -> None:
    long = encode(messages.Done("y" * (6 * PIPE_BUF)))
    frames = []
    for i, part in enumerate(long):
        frames.append(part)
        if before <= i < before + len(short):
            frames += [f for f in encode(short[i - before]) if len(encode(short[i - before])) == 1]
    heard = Decoder(REPORTS).feed(b"".join(frames))
    assert messages.Done("y" * (6 * PIPE_BUF)) in heard
    assert [m for m in heard if m != messages.Done("y" * (6 * PIPE_BUF))] == [
        short[i - before] for i in range(len(long)) if before <= i < before + len(short)
    ]


def test_a_message_over_the_limit_is_not_sent() -> None:
    with pytest.raises(ValueError, match="over"):
        encode(messages.Done(b"x" * MESSAGE_MAX))


@pytest.mark.parametrize("value", [object(), 1 << 64, {1, 2}])
def test_what_encode_raises_is_what_it_says(value: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        encode(messages.Done(value))


def packed(value: Any) -> bytes:
    data: bytes = msgpack.packb(value)
    return data


STEP = ["Step", 0, "frozen", 0, "", 0.0]
BAD = {
    "not msgpack": b"\xc1",
    "a number": packed(5),
    "a map": packed({"Step": 1}),
    "a text": packed("Done"),
    "an empty array": packed([]),
    "a name that is no text": packed([5, 6]),
    "no such name": packed(["Melt"]),
    "a control on the report pipe": packed(["Thaw"]),
    "a field too few": packed(STEP[:-1]),
    "a field too many": packed([*STEP, 1]),
    "a text for a number": packed(["Step", "0", "frozen", 0, "", 0.0]),
    "a boolean for a number": packed(["Step", True, "frozen", 0, "", 0.0]),
    "bytes for a text": packed(["Step", 0, b"frozen", 0, "", 0.0]),
    "nil": packed(["Step", None, "frozen", 0, "", 0.0]),
    "a double for an int": packed(["Step", 0.5, "frozen", 0, "", 0.0]),
    "a list for a plan": packed(["Plan", []]),
    "whole of nothing": packed(["Whole"]),
    "whole with a field": packed(["Whole", 1]),
    "a part of text": packed(["Part", "x"]),
    "a part in a part": packed(["Part", packed(["Part", b"x"])]) + packed(["Whole"]),
    "rubbish in parts": packed(["Part", b"\xc1"]) + packed(["Whole"]),
    "half a message in parts": packed(["Part", b"\x95\xa4Step"]) + packed(["Whole"]),
    "a text that is not utf-8": b"\x91\xa1\xff",
    "an array of 4 Gi": b"\x92\xa4Done\xdd\xff\xff\xff\xff",
    "a map of 4 Gi": b"\x92\xa4Done\xdf\xff\xff\xff\xff",
    "deep": b"\x92\xa4Done" + b"\x91" * 100_000,
    "a map with numbers for keys": b"\x92\xa4Done\x81\x01\x01",
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
def test_rubbish_is_refused(data: bytes) -> None:
    with pytest.raises(Rubbish):
        Decoder(REPORTS).feed(data)


@given(st.binary(max_size=300))
@example(b"\xd6\xff\xff\xff\xff\xff")
@example(b"\xc7\x0c\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")
def test_any_bytes_are_messages_or_rubbish(data: bytes) -> None:
    found: list[Any] = []
    with contextlib.suppress(Rubbish):
        found = Decoder(REPORTS).feed(data)
    assert all(type(m) in REPORTS.values() for m in found)


@given(st.binary(max_size=40), any_of(REPORTS), st.integers(0, 100))
def test_bytes_that_were_damaged_on_the_way(noise: bytes, message: Any, at: int) -> None:
    data = b"".join(encode(message))
    with contextlib.suppress(Rubbish):
        Decoder(REPORTS).feed(data[:at] + noise + data[at:])


@pytest.mark.parametrize("value", [msgpack.ExtType(5, b"x"), msgpack.Timestamp(1), {b"x": 1}], ids=repr)
def test_a_value_is_one_of_the_types_that_the_rpcs_have(value: object) -> None:
    with pytest.raises(Rubbish):
        Decoder(REPORTS).feed(packed(["Done", value]))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_seconds_are_numbers(number: float) -> None:
    for name, shape in ((n, c.shape) for n, c in REPORTS.items()):
        if (int, float) in shape:
            fields = [{int: 0, str: ""}.get(kind, number) for kind in shape]  # type: ignore[call-overload]
            with pytest.raises(Rubbish):
                Decoder(REPORTS).feed(packed([name, *fields]))


def feed(decoder: Decoder, data: bytes, times: int) -> None:
    for _ in range(times):
        decoder.feed(data)


def held(decoder: Decoder) -> int:
    return sys.getsizeof(decoder._parts)


def test_parts_are_bounded() -> None:
    decoder = Decoder(REPORTS, message_max=10_000)
    with pytest.raises(Rubbish, match="over"):
        feed(decoder, packed(["Part", b"x" * 1000]), 100)
    with pytest.raises(Rubbish, match="over"):
        Decoder(REPORTS, message_max=10_000).feed(b"".join(encode(messages.Done(b"x" * 10_000))))


@pytest.mark.parametrize("size", [0, 2])
def test_small_parts_are_bounded_too(size: int) -> None:
    decoder = Decoder(REPORTS, message_max=10_000)
    frame = packed(["Part", b"x" * size])
    try:
        for _ in range(4500):
            decoder.feed(frame)
    except Rubbish:
        return
    assert held(decoder) < 20_000


@pytest.mark.parametrize("size", [126_976, (1 << 32) - 1])
@pytest.mark.parametrize("kind", [0xC6, 0xDB])
def test_a_message_that_never_ends_is_bounded(size: int, kind: int) -> None:
    decoder = Decoder(REPORTS)
    head = b"\x92\xa4Done" + bytes([kind]) + size.to_bytes(4, "big")
    with pytest.raises(Rubbish):
        feed(decoder, head.ljust(PIPE_BUF, b"x"), 100)


def test_long_and_many_messages_in_one_read_are_no_rubbish() -> None:
    said = [messages.Step(i, "frozen") for i in range(20_000)]
    assert Decoder(REPORTS).feed(b"".join(encode(m)[0] for m in said)) == said


def test_every_message_has_a_shape_for_each_field() -> None:
    for kind in (*REPORTS.values(), *CONTROLS.values()):
        assert len(kind.shape) == len(dataclasses.fields(kind))
        assert issubclass(kind, Value)
