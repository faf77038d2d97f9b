"""Values and structs do what the dataclasses do that they stand for."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from virtagent.agent.api.structs import Frozen, Struct, Value, field, is_kind, needed, replace


class Mount(Value):
    """The same as `AsMount`."""

    kind: ClassVar[str] = "a mount"
    point: str
    level: int = 0
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class AsMount:
    """What `Mount` stands for."""

    kind: ClassVar[str] = "a mount"
    point: str
    level: int = 0
    notes: tuple[str, ...] = ()


class Named(Mount):
    """With the fields of another class before its own."""

    name: str = ""


class Job(Struct):
    """With a default that is made for each."""

    number: int
    done: list[int] = field(default_factory=list)
    name: str = ""


@dataclasses.dataclass(slots=True)
class AsJob:
    """What `Job` stands for."""

    number: int
    done: list[int] = dataclasses.field(default_factory=list)
    name: str = ""


class Nothing(Value):
    """Without fields."""


GIVEN: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...] = (
    ((), {}),
    (("a",), {}),
    (("a", 2), {}),
    (("a", 2, ("b",)), {}),
    (("a", 2, ("b",), "c"), {}),
    (("a",), {"notes": ("b",)}),
    ((), {"notes": ("b",), "point": "a"}),
    ((), {"level": 1}),
    (("a",), {"point": "a"}),
    (("a",), {"unknown": 1}),
    (("a", 2, ("b",)), {"unknown": 1}),
    (("a", 2, ("b",)), {"level": 3}),
    ((1,), {"number": 1}),
    ((1, [2]), {"name": "c"}),
    ((1, [2], "c"), {}),
    ((1,), {"done": [3]}),
)
PAIRS: tuple[tuple[Callable[..., Any], Callable[..., Any]], ...] = ((Mount, AsMount), (Job, AsJob))


def told(make: Callable[..., Any], given: tuple[Any, ...], named: dict[str, Any]) -> object:
    """Return what comes of it: the values of the fields, and how it is shown, or that it is refused."""
    try:
        made = make(*given, **named)
    except TypeError:
        return TypeError
    shown = repr(made).replace("AsMount", "Mount").replace("AsJob", "Job")
    return dataclasses.asdict(made), shown


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize(("given", "named"), GIVEN)
def test_it_is_made_as_a_dataclass_is(
    pair: tuple[Callable[..., Any], Callable[..., Any]], given: tuple[Any, ...], named: dict[str, Any]
) -> None:
    ours, theirs = pair
    assert told(ours, given, named) == told(theirs, given, named)


@pytest.mark.parametrize(
    ("given", "named", "why"),
    [
        ((), {}, "Mount: no point"),
        (("a",), {"x": 1}, "Mount: unknown: x"),
        ((), {"x": 1}, "Mount: no point, unknown: x"),
        (("a",), {"point": "a"}, "Mount: more is given than there are fields for"),
        (("a", 1, (), 2), {}, "Mount: more is given than there are fields for"),
    ],
)
def test_it_says_what_does_not_fit(given: tuple[Any, ...], named: dict[str, Any], why: str) -> None:
    with pytest.raises(TypeError) as error:
        Mount(*given, **named)
    assert str(error.value) == why


def test_a_value_is_never_changed() -> None:
    mount = Mount("a")
    with pytest.raises(Frozen, match="Mount: level cannot be set"):
        mount.level = 1  # type: ignore[misc]
    with pytest.raises(Frozen, match="Mount: level cannot be deleted"):
        del mount.level
    with pytest.raises(AttributeError):
        mount.other = 1  # type: ignore[attr-defined]
    assert mount == Mount("a", 0)


def test_a_struct_is_changed_but_has_no_room_for_more() -> None:
    job = Job(1)
    job.number = 2
    assert job == Job(2)
    with pytest.raises(AttributeError):
        job.other = 1  # type: ignore[attr-defined]


def test_what_is_made_for_each_is_not_shared() -> None:
    one, other = Job(1), Job(1, name="b")
    one.done.append(3)
    assert (one.done, other.done, Job(1).done) == ([3], [], [])


def test_who_is_equal() -> None:
    assert Mount("a") == Mount("a", 0, ()) != Mount("a", 1)
    assert Named("a") != Mount("a") != AsMount("a")
    assert Nothing() == Nothing()
    assert len({Mount("a"), Mount("a", 0), Mount("b"), Nothing()}) == 3
    with pytest.raises(TypeError, match="unhashable"):
        hash(Job(1))


def test_a_pattern_finds_its_fields() -> None:
    match Named("a", 3, name="n"):
        case Mount(point, level, name="n"):  # type: ignore[misc]
            assert (point, level) == ("a", 3)
        case _:
            pytest.fail("it is a mount")


@pytest.mark.parametrize("made", [Mount("a", 2), Named("a", 2, (), "n"), Job(1, [2]), Nothing()])
@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
def test_a_copy_is_equal(made: Any, again: Callable[[Any], Any]) -> None:
    assert again(made) == made
    assert again(made) is not made


@pytest.mark.parametrize("replaced", [replace, dataclasses.replace])
def test_some_fields_are_replaced(replaced: Callable[..., Any]) -> None:
    assert replaced(Mount("a", 2), level=3) == Mount("a", 3)
    assert replaced(Named("a", 2), name="b") == Named("a", 2, (), "b")
    with pytest.raises(TypeError):
        replaced(Mount("a"), unknown=1)


def test_it_is_a_dataclass_to_those_who_ask() -> None:
    def about(kind: Any) -> list[tuple[str, object, object, bool]]:
        fields = dataclasses.fields(kind)
        return [(one.name, one.type, one.default, one.default_factory is list) for one in fields]

    assert about(Mount) == about(AsMount)
    assert about(Job) == about(AsJob)
    assert [name for name, *_ in about(Named("a"))] == ["point", "level", "notes", "name"]
    assert dataclasses.is_dataclass(Mount)
    assert dataclasses.asdict(Named("a", 2)) == {"point": "a", "level": 2, "notes": (), "name": ""}


def test_which_fields_must_be_given() -> None:
    assert list(needed(Job)) == [("number", True), ("done", False), ("name", False)]
    assert [kind for kind in (Job, Mount, AsMount, int, None) if is_kind(kind)] == [Job, Mount]


def test_no_field_without_a_default_follows_one_that_has_it() -> None:
    with pytest.raises(AssertionError, match="a field after one with a default"):
        type(Mount)("Bad", (Mount,), {"__annotations__": {"more": "int"}})
