"""The order of freezing, over made-up stacks of whatever can carry a file system."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from virtagent.agent.api.options import Rules
from virtagent.agent.api.records import Plan
from virtagent.agent.worker import namespaces
from virtagent.agent.worker.mountinfo import MountInfo, superblocks
from virtagent.agent.worker.namespaces import Namespace
from virtagent.agent.worker.plan import BlockDevice, Survey
from virtagent.agent.worker.view import View

TYPES = frozenset({"ext4", "xfs", "btrfs"})
POINTS = st.sampled_from(["/a", "/a/b", "/a/b/c", "/d"])  # some cover others
UNKNOWN = "unknown"


@dataclass
class Stack:
    """What was made: the truth about what lies on what, by names, and what the agent is shown of it."""

    on: dict[str, set[str]] = field(default_factory=lambda: {"disk": set(), "8:1": {"disk"}})
    devices: list[BlockDevice] = field(default_factory=lambda: [BlockDevice("disk", "8:0"), BlockDevice("p", "8:1")])
    here: list[MountInfo] = field(default_factory=lambda: [MountInfo(1, 0, "8:1", "/", "/", "ext4", "/dev/p", "rw")])
    there: list[MountInfo] = field(default_factory=list)
    uppers: dict[str, str] = field(default_factory=dict)
    free: list[str] = field(default_factory=list)
    """Devices that nothing uses yet."""

    def device(self, draw: st.DrawFn) -> None:
        """Make a block device over something."""
        number = len(self.devices)
        name, kind = f"dev{number}", draw(st.sampled_from(["disk", "partition", "mapped", "loop", "nbd"]))
        made = BlockDevice(name, f"9:{number}")
        on: set[str] = set()
        if kind == "partition" and (disks := [d.name for d in self.devices if not d.disk]):
            on = {draw(st.sampled_from(disks))}
            made = BlockDevice(name, made.number, disk=min(on))
        elif kind == "mapped" and self.free:
            on = set(draw(st.lists(st.sampled_from(self.free), min_size=1, max_size=2, unique=True)))
            made = BlockDevice(name, made.number, slaves=tuple(sorted(on)))
        elif kind == "loop":
            file_on = draw(st.sampled_from([*self.here, *self.there]))
            understood = draw(st.booleans())
            on = {file_on.device if understood else UNKNOWN}
            made = BlockDevice(name, made.number, file_on=file_on.device if understood else "", understood=understood)
        elif kind == "nbd":
            on, made = {UNKNOWN}, BlockDevice(name, made.number, understood=False)
        self.devices.append(made)
        self.on[name] = on
        self.free.append(name)

    def mount(self, draw: st.DrawFn) -> None:
        """Mount something, here or in another namespace."""
        place = self.there if draw(st.booleans()) and draw(st.booleans()) else self.here
        point, mount_id = draw(POINTS), 10 + len(self.here) + len(self.there)
        kind = draw(st.sampled_from(["ext4", "xfs", "btrfs", "overlay", "fuse.x", "nfs4", "again"]))
        anonymous = f"0:{mount_id}"
        if kind == "again":
            place.append(draw(st.sampled_from(self.here))._replace(mount_id=mount_id, mountpoint=point))
        elif kind == "overlay":
            upper = draw(st.sampled_from(self.here)).device
            known = draw(st.booleans())
            self.here.append(MountInfo(mount_id, 1, anonymous, "/", point, kind, "none", "rw,upperdir=/u"))
            self.uppers |= {anonymous: upper} if known else {}
            self.on[anonymous] = {upper if known else UNKNOWN}
        elif kind in ("fuse.x", "nfs4"):
            self.here.append(MountInfo(mount_id, 1, anonymous, "/", point, kind, "/dev/disk", "rw"))
            self.on[anonymous] = {UNKNOWN}
        elif self.free:
            names = [self.free.pop() for _ in range(min(len(self.free), draw(st.integers(1, 2))))]
            number, options = self._number(names[0]), "rw"
            if kind == "btrfs":
                number, pool = anonymous, tuple(sorted(names))
                self.devices = [d if d.name not in pool else _in_pool(d, pool) for d in self.devices]
            elif kind == "xfs" and names[1:]:
                options = f"rw,logdev=/dev/{names[1]}"
            else:
                names = names[:1]
            place.append(MountInfo(mount_id, 1, number, "/", point, kind, f"/dev/{names[0]}", options))
            self.on[number] = {*names}

    def _number(self, name: str) -> str:
        return next(d.number for d in self.devices if d.name == name)

    def below(self, start: str, until: Collection[str] = ()) -> Iterator[str]:
        """Yield all that it lies on, directly or not; what one of `until` lies on is that one's own."""
        seen, pending = {start}, [start]
        while pending:
            for one in self.on.get(pending.pop(), set()) - seen:
                seen.add(one)
                if one not in until:
                    pending.append(one)
                yield one

    def not_understood(self, start: str, until: Collection[str]) -> set[str]:
        """Return the last device on each way down to what is not understood, "" for a way without one."""
        seen, pending, found = set[tuple[str, str]](), [(start, "")], set()
        while pending:
            here, last = pending.pop()
            for one in self.on.get(here, ()):
                step = one, one if one in {d.name for d in self.devices} else last
                if one == UNKNOWN:
                    found.add(last)
                elif step not in seen and one not in until:
                    seen.add(step)
                    pending.append(step)
        return found

    def plan(self) -> Plan:
        known = {m.device for m in self.here}
        elsewhere = namespaces.only_there([Namespace(1 << 30, View(self.there))], known, TYPES)
        return Survey([*superblocks(self.here), *elsewhere], TYPES, self.devices, Rules()).plan(self.uppers)

    def mounted(self) -> list[str]:
        return list(dict.fromkeys(m.device for m in (*self.here, *self.there)))


def _in_pool(device: BlockDevice, pool: tuple[str, ...]) -> BlockDevice:
    return BlockDevice(
        device.name, device.number, "", device.disk, device.file_on, device.slaves, pool, "", device.understood
    )


@st.composite
def stacks(draw: st.DrawFn) -> Stack:
    made = Stack()
    for mounts in draw(st.lists(st.booleans(), max_size=16)):
        (made.mount if mounts else made.device)(draw)
    return made


@settings(max_examples=400)
@given(stacks())
def test_no_two_in_one_level_lie_on_each_other(stack: Stack) -> None:
    plan = stack.plan()
    level = {m.device: m.level for m in plan.mounts}
    for one in level:
        for other in level.keys() & set(stack.below(one)):
            assert level[one] < level[other], f"{one} lies on {other}"


@settings(max_examples=400)
@given(stacks())
def test_what_is_not_understood_is_never_beside_what_was_mounted_before_it(stack: Stack) -> None:
    plan = stack.plan()
    level = {m.device: m.level for m in plan.mounts}
    order = [device for device in stack.mounted() if device in level]
    for at, one in enumerate(order):
        if behind := stack.not_understood(one, until=level):
            before = {level[other] for other in order[:at] if not behind <= {*stack.below(other)}}
            assert level[one] not in before


@given(stacks())
def test_hosts_are_all_that_it_lies_on_and_levels_are_no_more_than_needed(stack: Stack) -> None:
    plan = stack.plan()
    for mount in plan.mounts:
        hosts = {plan.mounts[host].device for host in mount.hosts}
        assert hosts >= {m.device for m in plan.mounts} & set(stack.below(mount.device))
        assert mount.level == 0 or any(
            plan.mounts.index(mount) in above.hosts and above.level == mount.level - 1 for above in plan.mounts
        )
