"""The timer heap: what is due comes earliest first and once, whatever was armed anew or cancelled."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from virtagent.supervisor.io.timers import STALE_MAX, Timers

KEYS = [("core", "call", 1), ("core", "retry"), ("connection", 1), ("connection", 2), ("watchdog",)]


def test_deadlines_come_due_earliest_first_and_once() -> None:
    timers = Timers()
    a, b, c, d = KEYS[:4]
    assert timers.nearest() is None
    assert timers.take_due(1e9) is None
    timers.arm(b, 2.0)
    timers.arm(a, 1.0)
    timers.arm(c, 9.0)
    timers.arm(c, 3.0)
    assert timers.nearest() == 1.0
    assert timers.take_due(0.99) is None
    assert [timers.take_due(3.0) for _ in range(4)] == [a, b, c, None]
    assert timers.take_due(9.0) is None, "when it was to be due before it was armed anew"
    timers.arm(d, 4.0)
    assert timers.left(d, 3.0) == 1.0
    assert timers.left(d, 5.0) == 0.0
    timers.cancel(d)
    timers.cancel(d)
    assert timers.left(d, 3.0) == -1.0
    assert timers.nearest() is None


def test_what_is_due_at_the_same_moment_comes_as_it_was_armed() -> None:
    timers = Timers()
    for key in reversed(KEYS):
        timers.arm(key, 1.0)
    assert [timers.take_due(1.0) for _ in KEYS] == KEYS[::-1]


def test_one_owners_keys_are_taken_and_the_others_stay() -> None:
    timers = Timers()
    for at, key in enumerate(KEYS):
        timers.arm(key, -float(at))
    assert [timers.take_due(0.0, "core") for _ in range(3)] == [KEYS[1], KEYS[0], None]
    assert [timers.take_due(0.0) for _ in range(4)] == [KEYS[4], KEYS[3], KEYS[2], None]


def test_arming_again_and_again_does_not_fill_the_heap() -> None:
    timers = Timers()
    for at in range(10_000):
        timers.arm(KEYS[0], float(at))
        timers.arm(KEYS[1], float(at))
        timers.cancel(KEYS[1])
    assert len(timers._heap) <= STALE_MAX + 2
    assert timers.nearest() == 9999.0


_Act = st.tuples(st.sampled_from(["arm", "cancel", "take", "take core"]), st.sampled_from(KEYS), st.integers(0, 9))


@given(st.lists(_Act, max_size=200))
def test_it_does_what_a_list_that_is_searched_does(acts: list[tuple[str, tuple[object, ...], int]]) -> None:
    timers = Timers()
    model: list[tuple[float, tuple[object, ...]]] = []
    for act, key, number in acts:
        if act in ("arm", "cancel"):
            model = [item for item in model if item[1] != key]
        if act == "arm":
            timers.arm(key, float(number))
            model.append((float(number), key))
        elif act == "cancel":
            timers.cancel(key)
        else:
            owner = "core" if act == "take core" else ""
            due = [item for item in model if item[0] <= number and item[1][0] == (owner or item[1][0])]
            expected = min(due, key=lambda item: item[0], default=None)
            assert timers.take_due(float(number), owner) == (expected and expected[1])
            model = [item for item in model if item is not expected]
        assert timers.nearest() == min((at for at, _ in model), default=None)
        assert {k: timers.left(k, 0.0) for k in KEYS} == dict.fromkeys(KEYS, -1.0) | {k: at for at, k in model}
