"""Orders to a hooked daemon: taken once, or taken back."""

from __future__ import annotations

import os
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


def test_a_dead_taker_has_nothing_under_way(tmp_path: Path) -> None:
    orders = Orders(tmp_path, "order")
    orders.give("one")
    pid = os.fork()
    if pid == 0:
        os._exit(orders.take(lambda text: True) is None)
    assert os.waitpid(pid, 0)[1] == 0
    assert not orders.waiting()
    assert not orders.under_way()


def test_kinds_are_apart(tmp_path: Path) -> None:
    Orders(tmp_path, "stall").give("one")
    assert Orders(tmp_path, "order").take(lambda text: True) is None
