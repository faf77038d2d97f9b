"""Inputs made from a corpus (tests/data/fuzz) by a seed: entries cut, repeated, spliced, flipped, nested."""

from __future__ import annotations

import ast
import random
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "data" / "fuzz"
MOST = 1 << 20  # bytes of one input
_ODD = (
    b"\0",
    b"\xff",
    b"\r\n\r\n",
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b"'",
    b"\\",
    b"<",
    b">",
    b"&lt;",
    b"POST ",
    b"0x",
    b"-",
)
_ODD_NUMBERS = (b"0", b"-1", b"9" * 20, b"1e999", b"2147483648", b"18446744073709551616", b"NaN")


def corpus(name: str) -> list[bytes]:
    """Return the entries of a file of the corpus: each line is a Python bytes literal; # begins a comment line."""
    lines = (FOLDER / f"{name}.txt").read_text(encoding="ascii").splitlines()
    return [ast.literal_eval(line) for line in lines if line and not line.startswith("#")]


def mutated(chance: random.Random, entries: list[bytes]) -> bytes:
    """Return one input: an entry as it is, or changed up to four times."""
    data = chance.choice(entries)
    for _ in range(chance.choice((0, 0, 1, 1, 2, 4))):
        data = _changed(chance, data, entries)[:MOST]
    return data


def _changed(chance: random.Random, data: bytes, entries: list[bytes]) -> bytes:
    at, end = sorted((chance.randint(0, len(data)), chance.randint(0, len(data))))
    match chance.randrange(9):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + data[end:]
        case 2:
            return data[:at] + data[at:end] * chance.choice((2, 3, 50)) + data[end:]
        case 3:
            other = chance.choice(entries)
            return data[:at] + other[chance.randint(0, len(other)) :]
        case 4:
            return data[:at] + chance.choice(entries) + data[at:]
        case 5:
            return data[:at] + chance.choice(_ODD) * chance.choice((1, 1, 2, 70, 2000)) + data[at:]
        case 6:
            return data[:at] + chance.choice(_ODD_NUMBERS) + data[end:]
        case 7:
            return data[:at] + chance.randbytes(chance.choice((1, 2, 9))) + data[end:]
        case _:
            flipped = bytearray(data)
            for _ in range(min(len(data), chance.choice((1, 1, 3)))):
                flipped[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            return bytes(flipped)
