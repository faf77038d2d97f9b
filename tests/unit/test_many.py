"""Many file systems, many mounts, long paths: what each more of them costs, and what has a bound."""

from __future__ import annotations

import json
import select
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from fakes.counting import assert_linear, calls
from fakes.drive import Drive
from virtagent.agent.api.options import Rules
from virtagent.agent.api.records import LeftOut, Mount, Plan
from virtagent.agent.api.states import FreezeState
from virtagent.agent.api.text import NAMED_MAX, TITLE_MAX
from virtagent.agent.wire import xmlrpc
from virtagent.agent.worker import messages
from virtagent.agent.worker.mountinfo import MountInfo, parse_mountinfo
from virtagent.agent.worker.plan import BlockDevice, build_plan
from virtagent.supervisor.core import events, status
from virtagent.supervisor.io import journal as journal_of

TYPES = frozenset({"ext4", "xfs", "btrfs"})
ROOT = "1 0 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw"
LAYERS = ":".join(f"/var/lib/docker/overlay2/l/{'ABCDEFGH'[i] * 26}" for i in range(8))
DEVICES = [BlockDevice("sda1", "8:1", disk="sda")]
LONGEST = "/" + "\udcff\n\\ " * 1023 + "\udcfe\x1b"
"""A mount point of 4,095 bytes, hardly any of which is text."""

Shape = Callable[[int], tuple[list[str], list[BlockDevice]]]


def containers(count: int) -> tuple[list[str], list[BlockDevice]]:
    """Return an overlay and a bind mount of the root's for each container."""
    lines = []
    for i in range(count):
        point = f"/var/lib/docker/overlay2/{i:064x}"
        options = f"rw,lowerdir={LAYERS},upperdir={point}/diff,workdir={point}/work"
        lines.append(f"{2 * i + 2} 1 0:{i + 50} / {point}/merged rw,relatime shared:{i} - overlay overlay {options}")
        lines.append(f"{2 * i + 3} 1 8:1 {point} /var/lib/kubelet/pods/{i:032x}/volume rw - ext4 /dev/sda1 rw")
    return lines, []


def loops(count: int) -> tuple[list[str], list[BlockDevice]]:
    """Return file systems on loop devices over images on the root."""
    lines = [f"{i + 2} 1 7:{i} / /mnt/{i} rw - ext4 /dev/loop{i} rw" for i in range(count)]
    return lines, [BlockDevice(f"loop{i}", f"7:{i}", file_on="8:1") for i in range(count)]


def stacked(count: int) -> tuple[list[str], list[BlockDevice]]:
    """Return mounts that cover each other at one place."""
    return [f"{i + 2} {i + 1} 8:1 /a /mnt rw - ext4 /dev/sda1 rw" for i in range(count)], []


def in_each_other(count: int) -> tuple[list[str], list[BlockDevice]]:
    """Return mounts each of which lies in the one before, as deep as a path can be."""
    points = ["/a" * (i + 1) for i in range(count)]
    return [f"{i + 2} {i + 1} 8:1 /b {point} rw - ext4 /dev/sda1 rw" for i, point in enumerate(points)], []


def at_long_paths(count: int) -> tuple[list[str], list[BlockDevice]]:
    """Return what any user may mount by FUSE."""
    paths = [f"/{i}" + "/a" * 1000 for i in range(count)]
    return [f"{i + 2} 1 0:{i + 50} / {path} rw - fuse.x x rw" for i, path in enumerate(paths)], []


def escaped(count: int) -> tuple[list[str], list[BlockDevice]]:
    """Return mount points of characters that the kernel escapes."""
    return [f"{i + 2} 1 8:1 /c /{i}{chr(92)}040{chr(92)}012 rw - ext4 /dev/sda1 rw" for i in range(count)], []


def not_understood(count: int) -> tuple[list[str], list[BlockDevice]]:
    """Return one file system on a network block device after many bind mounts and FUSE mounts."""
    lines = [f"{i + 2} 1 8:1 /c /b{i} rw - ext4 /dev/sda1 rw" for i in range(count)]
    lines += [f"{i + count + 2} 1 0:{i + 50} / /f{i} rw - fuse.x x rw" for i in range(count)]
    lines.append(f"{2 * count + 2} 1 43:0 / /nbd rw - ext4 /dev/nbd0 rw")
    return lines, [BlockDevice("nbd0", "43:0", understood=False)]


SHAPES: Sequence[Shape] = (containers, loops, stacked, in_each_other, at_long_paths, escaped, not_understood)


def planned(shape: Shape, count: int) -> Callable[[], Plan]:
    lines, devices = shape(count)
    text = "\n".join([ROOT, *lines]) + "\n"
    return lambda: build_plan(parse_mountinfo(text), TYPES, [*DEVICES, *devices], Rules())


@pytest.mark.parametrize("shape", SHAPES)
def test_the_plan_takes_what_each_mount_takes(shape: Shape) -> None:
    assert_linear(lambda count: planned(shape, count), 100)


def test_a_path_is_looked_at_once_and_not_each_folder_of_it() -> None:
    shallow = [MountInfo(i + 2, 1, "8:1", "/", f"/{i}", "ext4", "x", "rw") for i in range(50)]

    def of(depth: int) -> Callable[[], Plan]:
        deep = [mount._replace(mountpoint=mount.mountpoint + "/a" * depth) for mount in shallow]
        return lambda: build_plan(deep, TYPES, DEVICES, Rules())

    of(1)()  # what is made once is made
    assert calls(of(600)) == calls(of(10))


def test_a_mountinfo_of_one_megabyte() -> None:
    lines, _ = containers(1200)
    text = "\n".join([ROOT, *lines]) + "\n"
    assert len(text) > 1 << 20
    plan = build_plan(parse_mountinfo(text), TYPES, DEVICES, Rules())
    (root,) = plan.mounts
    assert root.mountpoint == "/"
    assert len(root.aliases) == 1200
    assert len(plan.left_out) == 1200


def test_sixty_four_levels_are_ordered_inside_out() -> None:
    deepest = 64
    lines = [f"{i + 2} 1 7:{i} / /mnt/{i} rw - ext4 /dev/loop{i} rw" for i in range(deepest)]
    devices = [BlockDevice(f"loop{i}", f"7:{i}", file_on=f"7:{i - 1}" if i else "8:1") for i in range(deepest)]
    plan = build_plan(parse_mountinfo("\n".join([ROOT, *lines]) + "\n"), TYPES, [*DEVICES, *devices], Rules())
    assert [m.mountpoint for m in plan.mounts] == [*(f"/mnt/{i}" for i in reversed(range(deepest))), "/"]
    assert [m.level for m in plan.mounts] == list(range(deepest + 1))
    assert all(set(m.hosts) == set(range(i + 1, deepest + 1)) for i, m in enumerate(plan.mounts))


def test_the_plan_on_its_way() -> None:
    def there_and_back(count: int) -> Callable[[], object]:
        plan = planned(loops, count)()

        def travel() -> None:
            frames = messages.encode(messages.Plan(plan.dump()))
            (told,) = messages.Decoder(messages.REPORTS).feed(b"".join(frames))
            assert Plan.load(told.plan) == plan

        return travel

    assert_linear(there_and_back, 50)


def test_each_step_costs_the_supervisor_the_same() -> None:
    def steps(count: int) -> Callable[[], object]:
        drive = Drive()
        _, worker = drive.begin(count)

        def play() -> None:
            drive.sync(worker, count)
            drive.freezes(worker, *range(count))
            drive.frozen(worker, *range(count))
            drive.report(worker, messages.Frozen(count, drive.now, drive.now + 60))
            drive.ask("va.fsthaw")
            drive.report(worker, messages.Thawing("", drive.now))
            drive.undo(worker, *range(count))

        return play

    assert_linear(steps, 64)


def test_a_status_record_costs_what_each_mount_costs() -> None:
    def recording(count: int) -> Callable[[], object]:
        drive = Drive()
        drive.hold(count)
        return lambda: status.dump(drive.status(), lambda pid: "sleeping")

    assert_linear(recording, 64)


def long_plan(count: int) -> Plan:
    """Return a plan with mount points as long as can be, and as many left out."""
    paths = [LONGEST[:-6] + f"{i:06}" for i in range(2 * count)]
    return Plan(
        tuple(
            Mount(path, (path + "x",), f"7:{i}", "ext4", f"/dev/loop{i}", 0, (), (f"loop{i}",))
            for i, path in enumerate(paths[:count])
        ),
        tuple(LeftOut(path, (), f"0:{i}", "fuse", "network") for i, path in enumerate(paths[count:])),
    )


def test_a_plan_of_the_longest_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(LONGEST.encode("utf-8", "surrogateescape")) == 4095
    plan = long_plan(64)
    frames = messages.encode(messages.Plan(plan.dump()))
    assert sum(map(len, frames)) > 1 << 19
    assert max(map(len, frames)) <= select.PIPE_BUF
    (told,) = messages.Decoder(messages.REPORTS).feed(b"".join(frames))
    assert Plan.load(told.plan) == plan

    drive = Drive()
    drive.ask("va.fsfreeze")
    worker = drive.newest
    drive.report(worker, messages.Started(1), messages.Progress("plan"), told)
    drive.sync(worker, 64)
    drive.freezes(worker, *range(64))
    record = status.dump(drive.status(), lambda pid: "sleeping")
    assert len(b"".join(xmlrpc.dump_reply(record))) > 1 << 20
    assert json.loads(json.dumps(record))["mounts"][0]["mountpoint"] == plan.mounts[0].mountpoint
    title = drive.of(events.SetTitle)[-1].text
    assert len(title) < 4 * TITLE_MAX
    assert title.isprintable()
    assert title.endswith("and 61 more")

    monkeypatch.setattr(journal_of, "kinds", lambda path: {"tmpfs"})
    journal = journal_of.Journal(str(tmp_path))
    assert drive.journal is not None
    journal.write(1, drive.journal)
    found = journal.read()
    assert found is not None
    assert found.plan.mounts == plan.mounts


def test_a_sentence_names_some_and_counts_the_rest() -> None:
    drive = Drive()
    drive.ask("va.fsfreeze")
    keeper = drive.newest
    plan = long_plan(256)
    drive.report(keeper, messages.Started(1), messages.Progress("plan"), messages.Plan(plan.dump()))
    drive.sync(keeper, 256)
    drive.freezes(keeper, *range(256))
    drive.die(keeper)
    drive.refuses()
    assert drive.state is FreezeState.ERROR
    (call,) = [a for a in drive.asked if a.method == "va.fsfreeze"]
    assert f", {256 - NAMED_MAX} more;" in call.fault.text
    assert len(call.fault.text) < (NAMED_MAX + 4) * 4096


def test_what_has_been_done_the_longest_is_named_first() -> None:
    drive = Drive()
    _, worker = drive.begin(5)
    drive.sync(worker, 5)
    drive.freezes(worker, 4, 0, 1, 2, 3)
    assert "freezing /srv/4, freezing /srv/0, freezing /srv/1 and 2 more" in drive.of(events.SetTitle)[-1].text
    drive.frozen(worker, 0, 1, 2)
    assert drive.of(events.SetTitle)[-1].text == "freeze freezing /srv/4, freezing /srv/3"


def test_the_counts_are_those_of_the_marks() -> None:
    drive = Drive()
    _, keeper = drive.hold(4)
    assert drive.of(events.SetTitle)[-1].text == "frozen 4/4, thaws at"
    drive.ask("va.fsthaw")
    drive.report(keeper, messages.Thawing("", drive.now))
    drive.undo(keeper, 2, 3)
    assert drive.of(events.SetTitle)[-1].text == "thawing 2/4"
    drive.undo(keeper, 0, 1)
    assert drive.of(events.SetTitle)[-1].text == "thawing 4/4"
