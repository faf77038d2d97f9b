"""What was written while frozen breaks the freeze: the script, the core, and what is read of sysfs and procfs."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes.drive import Drive
from fakes.driven import Driven, Refused, options, plan_of
from fakes.scenarios import ended
from hypothesis import given
from hypothesis import strategies as st
from virtagent.agent.api.errors import Code, Fault
from virtagent.agent.api.options import Rules
from virtagent.agent.api.records import Last, Mount, Plan
from virtagent.agent.api.text import size
from virtagent.agent.worker import messages, methods, steps, written
from virtagent.agent.worker.freeze import FreezeScript
from virtagent.agent.worker.mountinfo import MountInfo
from virtagent.agent.worker.plan import BlockDevice, build_plan
from virtagent.agent.worker.steps import Gone, Operation, Script, Told
from virtagent.agent.worker.written import WriteCounters, flush_others

GO = [(0.0, Told(messages.Proceed())), (5.0, Told(messages.Thaw()))]
TWO = plan_of((), ())
WROTE = "48 KiB were written to /dev/loop1 while frozen"


def freezing(*sectors: dict[str, int], plan: Plan = TWO, **fields: Any) -> tuple[Driven, int | Refused]:
    driven = Driven(plan, fields.pop("comes", GO), sectors=list(sectors), **fields)
    found = driven.run(FreezeScript(options()).run())
    assert not driven.frozen
    return driven, found


def told(driven: Driven) -> tuple[int, str]:
    (thawing,) = driven.said(messages.Thawing)
    return thawing.written, thawing.wrote


# -- the script


def test_nothing_was_written() -> None:
    driven, found = freezing({"loop0": 7, "loop1": 9})
    assert found == 2
    assert told(driven) == (0, "")


def test_what_was_written_breaks_the_freeze() -> None:
    driven, found = freezing({"loop0": 7, "loop1": 9}, {"loop0": 7, "loop1": 9 + 96})
    assert told(driven) == (48 << 10, WROTE)
    assert found == Refused(Code.FREEZE_BROKEN, WROTE)


def test_all_that_was_written_is_summed_and_named() -> None:
    driven, _ = freezing({"loop0": 7, "loop1": 9}, {"loop0": 8, "loop1": 11})
    assert told(driven) == (1536, "512 bytes were written to /dev/loop0, 1 KiB to /dev/loop1 while frozen")


@pytest.mark.parametrize("before", [{"loop0": 7}, {"loop0": 7, "loop1": 3}])
def test_one_without_evidence_breaks_nothing(before: dict[str, int]) -> None:
    driven, found = freezing(before, {"loop0": 7})
    assert found == 2
    assert told(driven) == (-1, "")
    driven, found = freezing(before, {"loop0": 8})
    assert told(driven) == (512, "512 bytes were written to /dev/loop0 while frozen"), "what another shows counts"


def test_one_of_unknown_devices_gives_no_evidence() -> None:
    bare = replace(TWO, mounts=(TWO.mounts[0], replace(TWO.mounts[1], devices=())))
    assert told(freezing({"loop0": 7, "loop1": 9}, plan=bare)[0]) == (-1, "")


def test_each_member_of_a_file_system_is_evidence() -> None:
    pool = replace(TWO, mounts=(TWO.mounts[0], replace(TWO.mounts[1], devices=("loop1", "loop2"))))
    assert told(freezing({"loop0": 7, "loop1": 9}, plan=pool)[0]) == (-1, "")
    before = {"loop0": 7, "loop1": 9, "loop2": 1}
    assert (
        told(freezing(before, {**before, "loop2": 3}, plan=pool)[0])[1]
        == "1 KiB were written to /dev/loop2 while frozen"
    )


def test_a_mapped_device_is_named_as_operators_know_it() -> None:
    mapped = replace(TWO.mounts[1], devices=("dm-3", "dm-4"), source="/dev/mapper/vg-db")
    before = {"loop0": 1, "dm-3": 1, "dm-4": 1}
    driven, _ = freezing(before, {"loop0": 1, "dm-3": 2, "dm-4": 2}, plan=replace(TWO, mounts=(TWO.mounts[0], mapped)))
    assert told(driven)[1] == "512 bytes were written to /dev/mapper/vg-db, 512 bytes to /dev/dm-4 while frozen"


def test_it_is_read_after_the_last_freeze_and_before_the_first_thaw() -> None:
    driven, _ = freezing({"loop0": 7, "loop1": 9})
    orders = [step for step in driven.did if isinstance(step, steps.Order | steps.ReadWritten)]
    kinds = [step.operation if isinstance(step, steps.Order) else "read" for step in orders]
    assert kinds[-4:] == [Operation.FREEZE, "read", "read", Operation.THAW]


def test_what_patience_thaws_and_freezes_again_counts_only_from_then_on() -> None:
    driven, found = freezing(
        {"loop0": 7, "loop1": 9}, lasts={(1, Operation.FREEZE): [5.0]}, comes=[GO[0], (20.0, GO[1][1])]
    )
    assert found == 2
    assert driven.names().count("FIFREEZE 0") == 2
    assert sum(isinstance(step, steps.ReadWritten) for step in driven.did) == 2
    assert told(driven) == (0, "")


def test_whatever_ends_the_hold_it_is_read() -> None:
    before, after = {"loop0": 7, "loop1": 9}, {"loop0": 7, "loop1": 10}
    for comes in ([GO[0]], [GO[0], (3.0, Gone("the supervisor died"))]):
        driven, found = freezing(before, after, comes=comes)
        assert told(driven)[0] == 512
        assert isinstance(found, Refused)
        assert found.code is Code.FREEZE_BROKEN


def test_a_freeze_that_is_given_up_is_not_read() -> None:
    driven, found = freezing({"loop0": 7}, {"loop0": 9}, errors={(1, Operation.FREEZE): [errno.EIO]})
    assert isinstance(found, Refused)
    assert told(driven) == (-1, "")
    assert not any(isinstance(step, steps.ReadWritten) for step in driven.did)


@pytest.mark.parametrize("nth", [0, 1])
def test_a_reading_that_fails_thaws_all(nth: int) -> None:
    whole, _ = freezing({"loop0": 7, "loop1": 9})
    number = [n for n, step in enumerate(whole.did) if isinstance(step, steps.ReadWritten)][nth]
    driven = Driven(TWO, GO, at_step={number: OSError(errno.EIO, "that")})
    with pytest.raises(OSError, match="that"):
        driven.run(FreezeScript(options()).run())
    assert not driven.frozen
    assert told(driven) == (-1, "")


# -- what writers hear if the supervisor is dead


class Keeper:
    """What a freeze worker may use, and whether it has said that nothing is frozen."""

    told = False

    def tell_thawed(self) -> None:
        """Take note of it."""
        assert not self.told
        self.told = True


def keeps(driven: Driven, monkeypatch: pytest.MonkeyPatch) -> Keeper:
    """Return the keeper of a freeze that was driven to its end, whatever that is."""
    keeper = Keeper()

    def perform(_worker: object, script: Script[int]) -> int:
        found = driven.run(script)
        if isinstance(found, Refused):
            raise Fault(found.code, found.text)
        return found

    monkeypatch.setattr(methods, "perform", perform)
    with contextlib.suppress(Fault, OSError):
        methods.fsfreeze(keeper, {"options": options()})  # type: ignore[arg-type]
    return keeper


def test_whatever_fails_writers_hear_whether_all_is_thawed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With hooks an application stayed held until the next start, though nothing was frozen any more."""
    whole, _ = freezing({"loop0": 7, "loop1": 9})
    assert keeps(Driven(TWO, GO), monkeypatch).told
    for number in (n for n, step in enumerate(whole.did) if not isinstance(step, steps.Order)):
        driven = Driven(TWO, GO, at_step={number: OSError(errno.EIO, "that")})
        assert keeps(driven, monkeypatch).told == (not driven.frozen), whole.did[number]


def test_writers_do_not_hear_that_what_could_not_be_thawed_is(monkeypatch: pytest.MonkeyPatch) -> None:
    driven = Driven(TWO, GO, errors={(1, Operation.THAW): [errno.EIO]})
    assert not keeps(driven, monkeypatch).told


# -- the core


def last_of(drive: Drive) -> Last:
    """Return how the last freeze ended."""
    last = drive.status().last
    assert last is not None
    return last


def thaws(drive: Drive, keeper: int, written_bytes: int, wrote: str, reason: str = "") -> None:
    """Play the keeper's thaw with these figures, up to its exit."""
    drive.report(keeper, messages.Thawing(reason, drive.now, 0, written_bytes, wrote))
    drive.undo(keeper, 0, 1)
    broken = reason or wrote
    drive.report(keeper, messages.Failed(int(Code.FREEZE_BROKEN), broken) if broken else messages.Done(2))
    drive.exit(keeper)


@pytest.mark.parametrize("figure", [0, -1])
def test_a_freeze_is_good_without_writes_or_without_evidence(drive: Drive, figure: int) -> None:
    _, keeper = drive.hold()
    thaw = drive.ask("va.fsthaw")
    thaws(drive, keeper, figure, "")
    assert thaw.value == 2
    assert last_of(drive).written_while_frozen == figure
    ended(drive, "thawed")


def test_writes_are_told_to_the_thaw_and_then_as_news(drive: Drive) -> None:
    _, keeper = drive.hold()
    thaw = drive.ask("va.fsthaw")
    thaws(drive, keeper, 48 << 10, WROTE)
    thaw.refused(Code.FREEZE_BROKEN, f"freeze 1 was broken: {WROTE}")
    assert thaw.fault.text.count("written to") == 1
    last = last_of(drive)
    assert (last.written_while_frozen, last.consistency, last.verdict) == (48 << 10, "none", "bad")
    ended(drive, "broken")


def test_writes_break_the_freeze_although_the_keeper_dies_thereafter(drive: Drive) -> None:
    _, keeper = drive.hold()
    thaw = drive.ask("va.fsthaw")
    drive.report(keeper, messages.Thawing("", drive.now, 0, 48 << 10, WROTE))
    drive.die(keeper)
    drive.compensates()
    thaw.refused(Code.FREEZE_BROKEN, WROTE)
    assert last_of(drive).written_while_frozen == 48 << 10
    ended(drive, "broken")


@pytest.mark.parametrize("asked", [True, False])
def test_nothing_is_known_if_the_keeper_dies_before_it_tells(drive: Drive, asked: bool) -> None:
    _, keeper = drive.hold()
    if asked:
        drive.ask("va.fsthaw")
    drive.die(keeper)
    drive.compensates()
    last = last_of(drive)
    assert last.written_while_frozen == -1
    assert last.held_continuously is False


def test_a_freeze_that_is_broken_already_tells_both(drive: Drive) -> None:
    _, keeper = drive.hold()
    drive.wait(59)
    reason = "va.fsfreeze worker 1 got SIGTERM"
    thaws(drive, keeper, 48 << 10, WROTE, reason)
    last = last_of(drive)
    assert last.error.count(WROTE) == last.error.count(reason) == 1
    assert last.written_while_frozen == 48 << 10
    ended(drive, "broken", tells=[reason, WROTE])


def test_a_hold_that_expires_says_both_and_stays_expired(drive: Drive) -> None:
    _, keeper = drive.hold()
    drive.wait(60)
    thaws(drive, keeper, 48 << 10, WROTE, "the hold limit of 60 s passed")
    ended(drive, "expired", tells=["fsfreeze is limited", WROTE])


@pytest.mark.parametrize(("figure", "wrote"), [(-2, ""), (0, WROTE), (-1, WROTE), (512, "")])
def test_figures_that_contradict_each_other_are_rubbish(drive: Drive, figure: int, wrote: str) -> None:
    _, keeper = drive.hold()
    drive.report(keeper, messages.Thawing("", drive.now, 0, figure, wrote))
    assert keeper in drive.killed


@given(
    st.sampled_from([(0, ""), (-1, ""), (512, "512 bytes were written to /dev/loop0 while frozen")]),
    st.sampled_from(["", "va.fsfreeze worker 1 got SIGTERM"]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_whatever_happens_it_is_said_once(
    figures: tuple[int, str], reason: str, asked: bool, someone: bool, dies: bool
) -> None:
    """Whoever thawed, died or asked: writes break the freeze, and the fault says each thing once."""
    drive = Drive()
    _, keeper = drive.hold()
    drive.wait(1)
    if asked:
        drive.ask("va.fsthaw")
        drive.wait(1)
    drive.report(keeper, messages.Thawing(reason, drive.now, 0, *figures))
    drive.undo(keeper, 0, refused=errno.EINVAL if someone else 0)
    drive.undo(keeper, 1)
    if dies:
        drive.die(keeper)
        for thawer in drive.workers("thaw"):
            drive.compensates(thawer, dict.fromkeys(drive.suspected(thawer), errno.EINVAL))
    else:
        broken = reason or figures[1]
        drive.report(keeper, messages.Failed(int(Code.FREEZE_BROKEN), broken) if broken else messages.Done(2))
        drive.exit(keeper)
    last = last_of(drive)
    assert last.written_while_frozen == figures[0]
    assert last.held_continuously == (last.outcome == "thawed") == (last.error == "")
    if figures[1]:
        assert last.outcome == "broken"
        assert last.error.count(figures[1]) == 1
    assert last.error.count("was broken") <= 1
    if reason and not asked:
        assert last.error.count(reason) == 1


# -- which devices


def planned(info: MountInfo, *devices: BlockDevice) -> Mount:
    """Return the only file system of a plan."""
    (mount,) = build_plan([info], frozenset({"ext4", "xfs", "btrfs", "bcachefs"}), devices, Rules()).mounts
    return mount


def info(device: str, fstype: str, source: str, options: str = "rw") -> MountInfo:
    return MountInfo(1, 0, device, "/", "/srv", fstype, source, options)


VDB, VDB1 = BlockDevice("vdb", "254:16"), BlockDevice("vdb1", "254:17", disk="vdb")
A, B, SEED = (BlockDevice(f"vd{letter}", f"254:{n}") for n, letter in enumerate("cde", 32))


def test_a_partition_not_its_disk() -> None:
    assert planned(info("254:17", "ext4", "/dev/vdb1"), VDB, VDB1).devices == ("vdb1",)


def test_journal_log_and_members_belong_to_it() -> None:
    journal = replace(VDB1, journal="vdc")
    assert planned(info("254:17", "ext4", "/dev/vdb1"), VDB, journal, A).devices == ("vdb1", "vdc")
    log = info("254:17", "xfs", "/dev/vdb1", "rw,logdev=/dev/vdc")
    assert planned(log, VDB, VDB1, A).devices == ("vdb1", "vdc")
    assert planned(log, VDB, VDB1).devices == (), "its log is not known"
    pool = [replace(one, pool=("vdc", "vdd")) for one in (A, B)]
    assert planned(info("0:40", "btrfs", "/dev/vdd"), *pool).devices == ("vdd", "vdc")
    assert planned(info("0:40", "bcachefs", "/dev/vdc:/dev/vdd"), A, B).devices == ("vdc", "vdd")
    odd = BlockDevice("cciss!c0d0", "104:0")
    assert planned(info("104:0", "ext4", "/dev/cciss/c0d0"), odd).devices == ("cciss/c0d0",)


def test_a_btrfs_whose_members_are_not_known_for_sure_has_none() -> None:
    pool = [replace(one, pool=("vdc", "vdd")) for one in (A, B)]
    assert planned(info("0:40", "btrfs", "/dev/root"), *pool).devices == ()
    assert planned(info("0:40", "btrfs", "/dev/vdc"), A).devices == ()
    assert planned(info("0:40", "btrfs", "/dev/vdc"), *pool[:1]).devices == ()


def test_a_seed_belongs_to_several() -> None:
    own = (replace(A, pool=("vdc", "vde")), replace(B, pool=("vdd", "vde")), replace(SEED, pool=("vdc", "vdd", "vde")))
    assert planned(info("0:40", "btrfs", "/dev/vdc"), *own).devices == ("vdc", "vde")
    assert planned(info("0:40", "btrfs", "/dev/vde"), *own).devices == ()


# -- the counters


class Tree:
    """A sysfs and procfs with disks, their partitions and swaps; counters are text as of the kernel."""

    def __init__(self, root: Path) -> None:
        self.sysfs, self.procfs = root / "sys", root / "proc"
        (self.sysfs / "class/block").mkdir(parents=True)
        self.procfs.mkdir()
        self.swaps()

    def disk(self, name: str, sectors: int, *, iostats: str = "1\n", part: str = "") -> None:
        folder = self.sysfs / "devices" / name
        (folder / "queue").mkdir(parents=True)
        (folder / "queue/iostats").write_text(iostats)
        self._device(folder, sectors)
        if part:
            (folder / part).mkdir()
            self._device(folder / part, sectors + 1000)

    def _device(self, folder: Path, sectors: int) -> None:
        (self.sysfs / "class/block" / folder.name).symlink_to(folder)
        self.count(folder.name, sectors)

    def count(self, name: str, sectors: int) -> None:
        text = f"     115        0     1832       21       31       12 {sectors:8}       20        0       40       41"
        (self.sysfs / "class/block" / name / "stat").write_text(
            f"{text}       5        0   999999        1        2        3\n"
        )

    def swaps(self, *lines: str) -> None:
        head = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
        (self.procfs / "swaps").write_text(
            head + "".join(f"{line}\t\t1048572\t\t{len(lines)}\t\t-2\n" for line in lines)
        )

    def counters(self, *devices: str) -> WriteCounters:
        mounts = [Mount(f"/srv/{n}", device=f"9:{n}", devices=(name,)) for n, name in enumerate(devices)]
        return WriteCounters(mounts, str(self.sysfs), str(self.procfs))

    def holds(self, monkeypatch: pytest.MonkeyPatch, found: frozenset[str] | None) -> None:
        monkeypatch.setattr(written, "_superblocks_of", lambda _: found)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def same(found: Mapping[str, int], **expected: int) -> None:
    assert dict(found) == expected


def test_the_sectors_written_of_each_device(tree: Tree) -> None:
    tree.disk("vda", 5)
    tree.disk("vdb", 7, part="vdb1")
    counters = tree.counters("vda", "vdb1", "gone")
    same(counters.read(), vda=5, vdb1=1007)
    tree.count("vda", 6)
    same(counters.read(), vda=6, vdb1=1007)


def test_a_name_with_a_slash(tree: Tree) -> None:
    tree.disk("cciss!c0d0", 5)
    assert dict(tree.counters("cciss/c0d0").read()) == {"cciss/c0d0": 5}


def test_no_evidence_of_counters_that_are_off_or_odd(tree: Tree) -> None:
    tree.disk("vda", 5, iostats="0\n")
    tree.disk("vdb", 7, iostats="0\n", part="vdb1")
    tree.disk("vdc", 7)
    (tree.sysfs / "class/block/vdc/stat").write_text("1 2 3\n")
    same(tree.counters("vda", "vdb1", "vdc").read())


def test_a_swap_file_takes_the_evidence_of_its_file_system_only(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree.disk("vda", 5)
    tree.disk("vdb", 7)
    tree.swaps("/srv/0/swap\\040file\tfile")
    tree.holds(monkeypatch, frozenset({"9:0"}))
    same(tree.counters("vda", "vdb").read(), vdb=7)
    tree.holds(monkeypatch, None)
    same(tree.counters("vda", "vdb").read())


def test_a_swap_partition_is_no_matter(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree.disk("vda", 5)
    tree.swaps("/dev/vdb2\tpartition")
    tree.holds(monkeypatch, None)
    same(tree.counters("vda").read(), vda=5)


def test_a_swap_file_that_comes_meanwhile_takes_all_evidence(tree: Tree) -> None:
    tree.disk("vda", 5)
    counters = tree.counters("vda")
    tree.swaps("/dev/vdb2\tpartition")
    same(counters.read(), vda=5)
    tree.swaps("/dev/vdb2\tpartition", "/srv/0/swap\tfile")
    same(counters.read())


def test_a_kernel_without_swap(tree: Tree) -> None:
    tree.disk("vda", 5)
    (tree.procfs / "swaps").unlink()
    same(tree.counters("vda").read(), vda=5)


def test_swap_files_that_may_not_be_known_take_all_evidence_and_end_no_freeze(tree: Tree) -> None:
    tree.disk("vda", 5)
    counters = tree.counters("vda")
    (tree.procfs / "swaps").unlink()
    (tree.procfs / "swaps").mkdir()  # any other error than a missing file
    same(counters.read())
    same(tree.counters("vda").read())


def test_counters_leave_room_for_the_file_systems(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree.disk("vda", 5)
    tree.disk("vdb", 5)
    monkeypatch.setattr(written.resource, "getrlimit", lambda _: (7, 7))
    same(tree.counters("vda", "vdb").read())
    same(tree.counters("vda").read(), vda=5)


@pytest.mark.parametrize("path", ["relative/swap", "/srv/gone\\040(deleted)"])
def test_a_swap_file_that_cannot_be_placed(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(written, "read_mountinfo", lambda: [info("254:17", "ext4", "/dev/vdb1")])
    assert written._superblocks_of([path]) is None


@pytest.mark.parametrize(("number", "words"), [(512, "512 bytes"), (48 << 10, "48 KiB"), (3 << 19, "1.5 MiB")])
def test_sizes(number: int, words: str) -> None:
    assert size(number) == words


def test_only_what_syncfs_does_not_flush_is_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []

    def fsync(fd: int) -> None:
        flushed.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
        raise OSError(errno.EIO, "which is no error of the file system")

    monkeypatch.setattr(os, "fsync", fsync)
    names = tuple(f"..{tmp_path}/{name}" for name in ("own", "gone", "journal"))
    for name in ("own", "journal"):
        (tmp_path / name).touch()
    flush_others(Mount("/srv", devices=names))
    assert flushed == ["own", "journal"]
    flush_others(Mount("/srv", devices=names[:1]))
    flush_others(Mount("/srv"))
    assert flushed == ["own", "journal"], "syncfs does that"
