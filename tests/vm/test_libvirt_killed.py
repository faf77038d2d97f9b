"""virsh, or libvirtd itself, is killed in the middle: the guest thaws by itself and the next command works.

What a stock qemu-ga does there is shown beside it: it stays frozen until somebody thaws it.
"""

from __future__ import annotations

import time

import pytest
from harness import HarnessError
from harness.processes import until
from harness.vm.domain import DEVICES, FREEZE, HOLD, QEMU_GA, SYNC, VIRTAGENT, Domain
from harness.vm.guest import FILE_SYSTEMS
from harness.vm.libvirt import Said
from harness.vm.table import Table

SENT = 'Send command \'{{"execute":"{}"'
FREEZING, THAWING = SENT.format("guest-fsfreeze-freeze"), SENT.format("guest-fsfreeze-thaw")
ANSWERED = f'Line [{{"return": {FILE_SYSTEMS}}}'
SNAPSHOT = ("--disk-only", "--no-metadata", "--atomic", "--quiesce")
SLACK = 30  # seconds more than a limit, on a slow machine
LONGER = HOLD + 4
TRIES = 5
OTHERS = {
    "guestinfo": "guest-get-fsinfo",
    "domfsinfo": "guest-get-fsinfo",
    "domfstrim": "guest-fstrim",
    "domtime --now": "guest-set-time",
    "guestvcpus": "guest-get-vcpus",
    "domifaddr --source agent": "guest-network-get-interfaces",
    "set-user-password tester once-more": "guest-set-user-password",
    "domhostname --source agent": "guest-get-host-name",
}


def kill_at(domain: Domain, line: str, *words: str) -> int:
    """SIGKILL virsh when libvirtd has logged the line; return where its log began."""
    mark = domain.libvirtd.mark()
    process = domain.libvirtd.begin(*domain.words(*words))
    try:
        domain.libvirtd.wait_log(line, mark)
    finally:
        process.kill()
        process.communicate()
    return mark


def comes_back(domain: Domain, agent: str, began: float) -> str:
    """See what becomes of a guest that is frozen and forgotten; return it in words. It is thawed afterwards."""
    if agent == VIRTAGENT:
        domain.wait_writing(HOLD + SLACK)
        seconds = time.monotonic() - began
        until(lambda: domain.agent_status() == "thawed", SLACK, "it says thawed")
        said = domain.virsh("domfsthaw", check=False)
        assert said.code, said
        assert "broke" in said.err, said.err
        return f"written to after {seconds:.0f} s (hold {HOLD} s); `domfsthaw` says that the freeze was broken"
    until(lambda: time.monotonic() - began > LONGER, LONGER + 1, "longer than the hold")
    domain.stands_still()
    assert domain.agent_status() == "frozen"
    assert domain.virsh("domfsthaw") == f"Thawed {FILE_SYSTEMS} filesystem(s)"
    domain.wait_writing()
    return f"frozen until `domfsthaw`, here after {LONGER} s"


def works(domain: Domain) -> None:
    """Freeze and thaw once more."""
    assert domain.virsh("domfsfreeze") == f"Froze {FILE_SYSTEMS} filesystem(s)"
    assert domain.virsh("domfsthaw") == f"Thawed {FILE_SYSTEMS} filesystem(s)"
    domain.wait_writing()


def load(domain: Domain, agent: str) -> None:
    domain.serve(agent)
    domain.write_everywhere()
    domain.wait_writing()


def test_virsh_is_killed_in_a_freeze(domain: Domain, agent: str, table: Table) -> None:
    load(domain, agent)
    mark = kill_at(domain, FREEZING, "domfsfreeze")
    domain.libvirtd.wait_log(ANSWERED, mark)
    began = time.monotonic()
    domain.stands_still()
    table.note("domfsfreeze, virsh killed", agent, comes_back(domain, agent, began))
    works(domain)


@pytest.mark.parametrize("line", [FREEZING, ANSWERED, THAWING], ids=["freezing", "frozen", "thawing"])
def test_virsh_is_killed_in_a_snapshot(domain: Domain, agent: str, line: str, table: Table) -> None:
    """libvirtd carries on without it: the snapshot is taken, the guest thawed."""
    load(domain, agent)
    mark = kill_at(domain, line, "snapshot-create-as", domain.snapshot_name(), *SNAPSHOT)
    domain.libvirtd.wait_log(THAWING, mark)
    domain.wait_writing()
    assert domain.agent_status() == "thawed"
    works(domain)
    table.note("snapshot-create-as --quiesce, virsh killed", agent, "libvirtd carries on, and thaws")


def killed_in_a_snapshot(domain: Domain) -> float:
    """SIGKILL libvirtd between the answer to its freeze and its thaw; return when, or 0 if it was quicker.

    Before that answer nobody knows on the host whether the guest has got the freeze at all.
    """
    mark = domain.libvirtd.mark()
    process = domain.libvirtd.begin(*domain.words("snapshot-create-as", domain.snapshot_name(), *SNAPSHOT))
    domain.libvirtd.wait_log(ANSWERED, mark)
    domain.libvirtd.kill()
    began = time.monotonic()
    process.communicate(timeout=20)
    quicker = THAWING in domain.libvirtd.log(mark)
    domain.libvirtd.start()
    domain.wait_answer()
    return 0 if quicker else began


def test_libvirtd_is_killed_in_a_snapshot(domain: Domain, agent: str, table: Table) -> None:
    load(domain, agent)
    for _ in range(TRIES):
        if began := killed_in_a_snapshot(domain):
            break
        domain.virsh("domfsthaw", check=False)
        domain.wait_writing()
    else:
        raise HarnessError(f"libvirtd was quicker than its end {TRIES} times")
    table.note("snapshot-create-as --quiesce, libvirtd killed", agent, comes_back(domain, agent, began))
    works(domain)


def test_virsh_is_killed_in_a_thaw(domain: Domain, agent: str) -> None:
    load(domain, agent)
    domain.virsh("domfsfreeze")
    kill_at(domain, THAWING, "domfsthaw")
    domain.wait_writing()
    assert domain.agent_status() == "thawed"
    works(domain)


def test_virsh_is_killed_in_any_other_command(domain: Domain, agent: str, table: Table) -> None:
    load(domain, agent)
    slowest = 0.0
    for words, command in OTHERS.items():
        kill_at(domain, SENT.format(command), *words.split())
        said = domain.ping()
        assert said.code == 0, (words, said.err)
        slowest = max(slowest, said.seconds)
    domain.wait_writing()
    works(domain)
    table.note("any other, virsh killed", agent, f"the next command is answered within {slowest:.2f} s")


def test_a_freeze_with_a_stuck_disk(domain: Domain, agent: str, table: Table) -> None:
    """libvirt waits for a freeze without limit, and keeps all others from the agent; the agent's limit ends that."""
    load(domain, agent)
    domain.virsh("blkdeviotune", DEVICES["ext4"], "--write-bytes-sec", "1")
    domain.sh("dd if=/dev/zero of=/srv/ext4/stuck bs=1M count=4 2>/dev/null")
    began = time.monotonic()
    limit = SYNC + FREEZE + SLACK if agent == VIRTAGENT else SYNC
    said: Said | None = None
    try:
        said = domain.virsh("domfsfreeze", check=False, timeout=limit)
    except TimeoutError:
        assert agent == QEMU_GA
    seconds = time.monotonic() - began
    if agent == VIRTAGENT:
        assert said is not None
        assert said.code
        assert "/srv/ext4" in said.err, said.err
        assert domain.ping().code == 0
        domain.sh("touch /root/written /srv/xfs/written /srv/btrfs/written")
        note = f"refused after {seconds:.0f} s (limit {SYNC} s), names /srv/ext4; nothing is frozen, pings are answered"
    else:
        assert said is None
        note = f"waits as long as the disk is stuck, here for over {seconds:.0f} s"
    table.note("domfsfreeze, a disk is stuck", agent, note)
    domain.virsh("blkdeviotune", DEVICES["ext4"], "--write-bytes-sec", "0")
    domain.wait_answer()
    domain.virsh("domfsthaw", check=False)
    domain.wait_writing()
    until(lambda: domain.virsh("domfsfreeze", check=False).code == 0, SLACK, "it freezes again")
    assert domain.virsh("domfsthaw") == f"Thawed {FILE_SYSTEMS} filesystem(s)"
