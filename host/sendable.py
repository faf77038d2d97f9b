"""What can be sent to an agent: values are checked before anything is sent, in the same way for both protocols."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from ..agent.wire import json_values, xmlrpc
from ..agent.wire.messages import Limits
from .errors import Unsendable

T = TypeVar("T")

_INT64 = range(-(1 << 63), 1 << 63)
_NESTING = Limits().nesting


@dataclass(frozen=True, slots=True)
class Carrier:
    """What a protocol can carry: `no_text` finds what texts must not contain; `binary`: bytes may be sent.

    Integers that are not in `integers` are refused; if it is None, the codec decides.
    """

    name: str
    no_text: re.Pattern[str]
    binary: bool
    integers: range | None


XML = Carrier("XML", xmlrpc.UNSENDABLE, binary=True, integers=None)
JSON = Carrier("JSON", json_values.LONE_SURROGATE, binary=False, integers=_INT64)


def dumped(carrier: Carrier, values: Iterable[Any], dump: Callable[[], T]) -> T:
    """Return what `dump` makes of the values; raise Unsendable if one of them cannot be sent."""
    try:
        for value in values:
            _check(carrier, value, _NESTING)
        return dump()
    except Unsendable:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise Unsendable(f"{carrier.name} carries no such value: {error}") from None


def _check(carrier: Carrier, value: object, nesting: int) -> None:
    if nesting < 0:
        raise Unsendable(f"values nest deeper than {_NESTING}")
    match value:
        case str() if carrier.no_text.search(value):
            raise Unsendable(f"{carrier.name} carries no {value!r:.80}")
        case bytes() if not carrier.binary:
            raise Unsendable(f"{carrier.name} carries no bytes")
        case int() if carrier.integers is not None and value not in carrier.integers:
            raise Unsendable("an integer is too big for the agent's 64 bits")
        case list() | tuple():
            for item in value:
                _check(carrier, item, nesting - 1)
        case dict():
            for name, item in value.items():
                if not isinstance(name, str):
                    raise Unsendable(f"a struct's members have names, not {type(name).__name__}")
                _check(carrier, name, nesting)
                _check(carrier, item, nesting - 1)
