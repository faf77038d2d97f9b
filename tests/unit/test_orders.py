"""Orders to a hooked daemon: taken once, or taken back."""

from __future__ import annotations

from pathlib import Path

from harness.orders import Orders


def test_taken_once(tmp_path: Path) -> None:
    given, taker = Orders(tmp_path, "order"), Orders(tmp_path, "order")
    given.give("one")
    given.give("two")
    assert given.waiting() == ["one", "two"]
    assert taker.take(lambda text: text == "three") is None
    taken = taker.take(lambda text: True)
    assert taken is not None
    assert taken.text == "one"
    assert given.under_way()
    taken.done()
    assert not given.under_way()
    assert given.take_back() == ["two"]
    assert taker.take(lambda text: True) is None


def test_kinds_are_apart(tmp_path: Path) -> None:
    Orders(tmp_path, "stall").give("one")
    assert Orders(tmp_path, "order").take(lambda text: True) is None
