"""Parameters: each kind with good and bad values, counts, members, and numbers that no computer should see."""

from __future__ import annotations

import contextlib
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given
from virtagent.agent.api.errors import Code, Fault
from virtagent.agent.api.params import GLOBS_MAX, SECONDS_MAX, TEXT_MAX, Kind, Param, check, seconds

NAN, INF = float("nan"), float("inf")


def refused(signature: tuple[Param, ...], given_: Any) -> str:
    with pytest.raises(Fault) as caught:
        check("va.m", signature, given_)
    assert caught.value.code is Code.PARAMS
    assert caught.value.text.startswith("va.m: ")
    assert len(caught.value.text) < 400
    return caught.value.text


def one(kind: Kind, **more: Any) -> tuple[Param, ...]:
    return (Param("p", kind, "", **more),)


FIELDS = (
    Param("wait", Kind.SECONDS, "", required=False),
    Param("since", Kind.INTEGER, "", required=False),
    Param("must", Kind.STRING, ""),
)
STRUCT = (Param("options", Kind.STRUCT, "", required=False, fields=FIELDS),)

GOOD = [
    (Kind.STRING, "", ""),
    (Kind.STRING, "x" * TEXT_MAX, "x" * TEXT_MAX),
    (Kind.STRING, "\udcff\n", "\udcff\n"),
    (Kind.BOOLEAN, True, True),
    (Kind.BOOLEAN, False, False),
    (Kind.INTEGER, -5, -5),
    (Kind.INTEGER, 2**62, 2**62),
    (Kind.SECONDS, 0, 0.0),
    (Kind.SECONDS, 2.5, 2.5),
    (Kind.SECONDS, SECONDS_MAX, SECONDS_MAX),
    (Kind.GLOBS, [], ()),
    (Kind.GLOBS, ["*", "/srv/[ab]"], ("*", "/srv/[ab]")),
    (Kind.GLOBS, ["*"] * GLOBS_MAX, ("*",) * GLOBS_MAX),
]
BAD: list[tuple[Kind, Any]] = [
    (Kind.STRING, "x" * (TEXT_MAX + 1)),
    (Kind.STRING, "a\0b"),
    (Kind.STRING, b"x"),
    (Kind.STRING, 1),
    (Kind.STRING, None),
    (Kind.BOOLEAN, 1),
    (Kind.BOOLEAN, "true"),
    (Kind.BOOLEAN, None),
    (Kind.INTEGER, True),
    (Kind.INTEGER, 1.0),
    (Kind.INTEGER, "1"),
    (Kind.SECONDS, -1),
    (Kind.SECONDS, -0.1),
    (Kind.SECONDS, NAN),
    (Kind.SECONDS, INF),
    (Kind.SECONDS, -INF),
    (Kind.SECONDS, 1e300),
    (Kind.SECONDS, SECONDS_MAX + 1),
    (Kind.SECONDS, 2**63),
    (Kind.SECONDS, True),
    (Kind.SECONDS, "5"),
    (Kind.GLOBS, "*"),
    (Kind.GLOBS, [""]),
    (Kind.GLOBS, ["a\0"]),
    (Kind.GLOBS, ["x" * (TEXT_MAX + 1)]),
    (Kind.GLOBS, [1]),
    (Kind.GLOBS, [None]),
    (Kind.GLOBS, [["*"]]),
    (Kind.GLOBS, ["*"] * (GLOBS_MAX + 1)),
    (Kind.GLOBS, {"*": 1}),
    (Kind.STRUCT, []),
    (Kind.STRUCT, "x"),
    (Kind.STRUCT, None),
]


@pytest.mark.parametrize(("kind", "value", "made"), GOOD)
def test_good_values(kind: Kind, value: Any, made: Any) -> None:
    found = check("va.m", one(kind), [value])["p"]
    assert found == made
    assert type(found) is type(made)
    assert check("va.m", one(kind), {"p": value}) == {"p": made}


@pytest.mark.parametrize(("kind", "value"), BAD)
def test_bad_values_name_the_parameter(kind: Kind, value: Any) -> None:
    assert "p" in refused(one(kind), [value])


@pytest.mark.parametrize("value", [10**400, -(10**400)])
def test_a_number_beyond_a_double_is_a_bad_value_like_others(value: int) -> None:
    refused(one(Kind.SECONDS), [value])


def test_choices() -> None:
    signature = one(Kind.STRING, choices=("halt", "reboot"))
    assert check("va.m", signature, ["halt"]) == {"p": "halt"}
    for value in ("Halt", "", "halt "):
        assert "halt, reboot" in refused(signature, [value])


@pytest.mark.parametrize("count", [0, 2, 50_000])
def test_a_wrong_count(count: int) -> None:
    assert f"takes 1 parameters, got {count}" in refused(one(Kind.STRING), ["x"] * count)


def test_an_optional_parameter() -> None:
    assert check("va.m", STRUCT, []) == {"options": None}
    assert "0 to 1" in refused(STRUCT, [{}, {}])
    assert check("va.m", (), []) == {}
    refused((), [1])


def test_members_of_a_struct() -> None:
    assert check("va.m", STRUCT, [{"must": "x", "wait": 3}]) == {"options": {"must": "x", "wait": 3.0, "since": None}}
    assert "'must' is missing" in refused(STRUCT, [{"wait": 3}])
    assert "unknown member 'Wait'" in refused(STRUCT, [{"must": "x", "Wait": 3}])
    assert "wait" in refused(STRUCT, [{"must": "x", "wait": -3}])
    assert "wait" in refused(STRUCT, [{"must": "x", "wait": None}])
    refused(STRUCT, [{"x" * 100_000: 1}])


def test_arguments_by_name() -> None:
    assert check("va.m", STRUCT, {"must": "x"}) == {"options": {"must": "x", "wait": None, "since": None}}
    two = (Param("a", Kind.STRING, ""), Param("b", Kind.SECONDS, "", required=False))
    assert check("va.m", two, {"b": 1, "a": "x"}) == {"a": "x", "b": 1.0}
    assert check("va.m", two, {"a": "x"}) == {"a": "x", "b": None}
    assert check("va.m", two, ["x"]) == {"a": "x", "b": None}
    refused(two, {"b": 1})
    refused(two, {"a": "x", "c": 1})
    refused((), {"a": 1})


ANY: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(st.sampled_from(Kind), ANY)
def test_any_value_is_taken_or_refused(kind: Kind, value: Any) -> None:
    for given_ in ([value], value):
        if isinstance(given_, list | dict):
            with contextlib.suppress(Fault):
                check("va.m", one(kind), given_)


@given(st.floats())
def test_seconds_are_seconds(value: float) -> None:
    if 0 <= value <= SECONDS_MAX:
        assert seconds("s", value) == value
    else:
        with pytest.raises(ValueError, match="s is"):
            seconds("s", value)
