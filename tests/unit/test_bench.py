"""What scripts/bench makes of what it saw: counts from strace, growth beyond the room, tables of figures."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from benching import counts, traced
from benching.figures import Figures

LOG = """\
100 10.000001 epoll_wait(4, [], 8, -1) = 1
100 10.000002 recvfrom(9, ""..., 65536, 0, NULL, NULL) = 30
101 10.000003 ioctl(7, FIFREEZE, 0 <unfinished ...>
102 10.000004 ioctl(8, FIFREEZE, 0) = 0
101 10.000005 <... ioctl resumed>) = 0
101 10.000006 newfstatat(3, ""..., {}, 0) = 0
101 10.000007 +++ exited with 0 +++
100 10.500000 write(2, ""..., 30) = 30
100 20.000001 recvfrom(9, ""..., 65536, 0, NULL, NULL) = 30
100 20.000002 recvfrom(9, ""..., 65536, 0, NULL, NULL) = 30
103 20.000003 ioctl(7, FIFREEZE, 0) = 0
"""


def test_the_least_of_each_kind_within_the_spans() -> None:
    supervisor, workers = traced._least(LOG, 100, [(9.9, 10.1), (19.9, 20.1)])
    assert supervisor == {"recvfrom": 1}
    assert workers == {"ioctl FIFREEZE": 1}


def test_a_call_that_was_interrupted_counts_once() -> None:
    assert traced._least(LOG, 100, [(9.9, 10.1)])[1] == {"ioctl FIFREEZE": 2, "stat": 1}


CALLS = "system calls of a freeze and thaw of 8: worker"


@pytest.mark.parametrize(
    ("section", "name", "was", "now", "grew"),
    [
        (CALLS, "ioctl FIFREEZE", 8, 8, False),
        (CALLS, "ioctl FIFREEZE", 8, 9, True),
        (CALLS, "fork", 0, 1, True),
        (CALLS, "read", 40, 53, False),
        (CALLS, "read", 40, 54, True),
        (CALLS, "openat", 60, 64, False),
        (CALLS, "openat", 60, 68, True),
        (CALLS, "futex", 100, 220, False),
        (CALLS, "futex", 100, 221, True),
        ("idle", "wake-ups in 5 s", 0, 1, True),
        ("modules at start", "ssl", 0, 1, True),
        ("texts compiled at start", "virtagent.agent.api.records", 0, 6, True),
        ("modules at start", "json", 1, 1, False),
    ],
)
def test_what_grew(section: str, name: str, was: int, now: int, grew: bool) -> None:
    assert bool(list(counts._grown({section: {name: was}}, {section: {name: now}}))) == grew


def test_the_kept_counts_are_those_that_are_counted() -> None:
    kept = json.loads(counts.KEPT.read_text(encoding="utf-8"))
    assert len(kept) == 10
    assert kept[CALLS]["ioctl FIFREEZE"] == kept[CALLS]["ioctl FITHAW"] == counts.MOUNTS
    assert kept["idle"]["wake-ups in 5 s"] == 0
    assert kept["idle"]["threads"] == 1


def test_left_out_mounts_and_digits_do_not_count() -> None:
    mount = b"<value><struct><member><name>state</name><value>%s</value></member></struct></value>"
    answer = mount % b"frozen" + mount % b"left-out" + mount % b"thawed"
    assert counts._LEFT_OUT.sub(b"", answer) == mount % b"frozen" + mount % b"thawed"
    assert counts._NUMBER.sub(b"0", b"-1 2.5e-05 17") == b"0 0 0"


def made() -> Figures:
    figures = Figures()
    figures.add("stall", "8 ext4", "virtagentd", "ms", [60, 50, 70])
    figures.add("stall", "8 ext4", "qemu-ga", "ms", [600])
    figures.add("stall", "8 xfs", "virtagentd", "ms", [0.25])
    return figures


def test_a_table_tells_how_many_times_longer_the_peer_takes() -> None:
    assert made().table("stall").splitlines() == [
        "|  | virtagentd | qemu-ga | qemu-ga / virtagentd |",
        "|---|---|---|---|",
        "| 8 ext4, ms | **60.0** (50.0 - 70.0) | **600** | 10.0 |",
        "| 8 xfs, ms | **0.25** |  |  |",
    ]


def test_a_percentile_is_a_value_that_was_measured() -> None:
    figure = Figures().add("answers", "ping", "virtagentd", "ms", [float(n) for n in range(1, 201)])
    assert (figure.at(0.5), figure.at(0.99), figure.at(1.0)) == (100, 198, 200)
