"""Base64 as qemu-ga takes it: the cases are what qemu-ga 7.2 answered."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st
from virtagent.agent.api.errors import Code, Fault
from virtagent.agent.worker.base64_codec import from_base64, octets, to_base64


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("", 0),
        ("a", 0),
        ("aGVsbG8", 3),
        ("aGVsbG8=", 5),
        ("aGVs\nbG8=", 5),
        ("aGVsbG8=\n", 5),
        ("=", 0),
        ("====", 1),
        ("aGVsbG9=", 5),
        ("aG=sbG8=", 4),
        ("aGVsbG8=aGVsbG8=", 10),
        ("YQ==YQ==", 2),
        ("YR==", 1),
        ("YWI=YWI=", 4),
    ],
)
def test_what_qemu_ga_takes(text: str, size: int) -> None:
    assert len(from_base64(text)) == size


@pytest.mark.parametrize("text", ["aGVs!bG8=", "aGVsbG8= ", " ", "-_-_", "aGVs\r\nbG8=", "\u00e4bcd"])
def test_what_qemu_ga_refuses(text: str) -> None:
    with pytest.raises(Fault, match=r"^Base64 data contains invalid characters") as fault:
        from_base64(text)
    assert fault.value.code is Code.PARAMS


@given(st.lists(st.binary(max_size=20)))
def test_pieces_that_were_encoded_one_by_one(pieces: list[bytes]) -> None:
    assert from_base64("".join(base64.b64encode(p).decode() for p in pieces)) == b"".join(pieces)


def test_there_and_back() -> None:
    assert to_base64(bytearray(b"\0\xff")) == "AP8="
    assert to_base64(bytes(1000)).count("\n") == 0
    assert octets("\u00e4\udcff") == b"\xc3\xa4\xff"
