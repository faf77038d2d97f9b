"""A real libvirtd drives the guest: what each command of virsh does in it, with virtagentd and with a stock qemu-ga."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.vm.domain import ADDRESS, DEVICES, VIRTAGENT, Domain
from harness.vm.guest import FILE_SYSTEMS, SIZES
from harness.vm.libvirt import Said
from harness.vm.table import Table

TIMES = 5
HOUR = 3600
SNAPSHOT = ("--disk-only", "--no-metadata", "--atomic")
ALL = {"root": "/", **{kind: f"/srv/{kind}" for kind in SIZES}}
CRYPT = (
    "import ctypes, sys; crypt = ctypes.CDLL('libcrypt.so.1').crypt; crypt.restype = ctypes.c_char_p; "
    "sys.exit(crypt(b'{word}', b'{hash}') != b'{hash}')"
)


def rows(said: Said) -> list[list[str]]:
    """Return the words of the lines below the head of a table of virsh's."""
    return [line.split() for line in said.splitlines()[2:] if line.strip()]


def needs_recovery(image: Path) -> bool:
    dumpe2fs = shutil.which("dumpe2fs") or "/usr/sbin/dumpe2fs"
    text = subprocess.run([dumpe2fs, "-h", str(image)], capture_output=True, text=True, check=True).stdout
    return "needs_recovery" in text


# -- what it tells


def state(domain: Domain, said: Said) -> None:
    assert said == "running"


def ping(domain: Domain, said: Said) -> None:
    assert said == '{"return":{}}'


def info(domain: Domain, said: Said) -> None:
    told = dict(re.split(r"\s*: ", line, maxsplit=1) for line in said.splitlines())
    assert told["hostname"] == "guest"
    assert told["os.id"] == "debian"
    assert told["fs.count"] == str(FILE_SYSTEMS)
    assert {told[f"fs.{n}.disk.0.alias"] for n in range(FILE_SYSTEMS)} == set(DEVICES.values())
    assert ADDRESS in told.values()


def hostname(domain: Domain, said: Said) -> None:
    assert said == "guest"


def file_systems(domain: Domain, said: Said) -> None:
    kinds = {"root": "ext4", **{kind: kind for kind in SIZES}}
    assert sorted(rows(said)) == sorted([ALL[k], DEVICES[k], kinds[k], DEVICES[k]] for k in ALL)


def addresses(domain: Domain, said: Said) -> None:
    mac = str(domain.sh("cat /sys/class/net/eth0/address")).strip()
    assert ["eth0", mac, "ipv4", f"{ADDRESS}/24"] in rows(said)


def clock(domain: Domain, said: Said) -> None:
    assert abs(int(said.split()[1]) - int(domain.sh("date +%s"))) < 10


def processors(domain: Domain, said: Said) -> None:
    assert dict(line.split() for line in said.replace(":", "").splitlines())["online"] == "0-1"


TOLD: dict[str, Callable[[Domain, Said], None]] = {
    "virsh domstate (asks no agent)": state,
    "qemu-agent-command guest-ping": ping,
    "guestinfo": info,
    "domhostname --source agent": hostname,
    "domfsinfo": file_systems,
    "domifaddr --source agent": addresses,
    "domtime": clock,
    "guestvcpus": processors,
}
WORDS = {
    "virsh domstate (asks no agent)": ("domstate",),
    "qemu-agent-command guest-ping": ("qemu-agent-command", '{"execute": "guest-ping"}'),
}


@pytest.mark.parametrize("row", TOLD)
def test_what_the_guest_tells(domain: Domain, agent: str, row: str, table: Table) -> None:
    domain.serve(agent)
    seconds = []
    for _ in range(TIMES):
        said = domain.virsh(*WORDS.get(row) or row.split())
        seconds.append(said.seconds)
        TOLD[row](domain, said)
    table.time(row, agent, seconds)


# -- what it does


def test_domtime_sets_the_clock_and_back(domain: Domain, agent: str, table: Table) -> None:
    domain.serve(agent)
    there = int(domain.sh("date +%s")) + HOUR
    said = domain.virsh("domtime", "--time", str(there))
    assert 0 <= int(domain.sh("date +%s")) - there < 30
    table.time("domtime --time", agent, [said.seconds])
    domain.virsh("domtime", "--now")
    assert abs(int(domain.sh("date +%s")) - time.time()) < 30


def test_guestvcpus_takes_a_processor_away_and_gives_it_back(domain: Domain, agent: str, table: Table) -> None:
    domain.serve(agent)
    said = domain.virsh("guestvcpus", "--cpulist", "1", "--disable")
    assert domain.sh("cat /sys/devices/system/cpu/online") == "0\n"
    table.time("guestvcpus --disable", agent, [said.seconds])
    domain.virsh("guestvcpus", "--cpulist", "1", "--enable")
    assert domain.sh("cat /sys/devices/system/cpu/online") == "0-1\n"


def test_domfstrim_discards(domain: Domain, agent: str, table: Table) -> None:
    domain.serve(agent)
    discards = f"awk '{{print $12}}' /sys/block/{DEVICES['ext4']}/stat"
    domain.sh("dd if=/dev/zero of=/srv/ext4/big bs=1M count=16 conv=fsync 2>/dev/null; rm /srv/ext4/big; sync")
    before = int(domain.sh(discards))
    table.time("domfstrim", agent, [domain.virsh("domfstrim").seconds])
    assert int(domain.sh(discards)) > before


def test_set_user_password_sets_it(domain: Domain, agent: str, table: Table) -> None:
    domain.serve(agent)
    word = f"of-{agent}"
    table.time("set-user-password", agent, [domain.virsh("set-user-password", "tester", word).seconds])
    hashed = str(domain.sh("awk -F: '$1 == \"tester\" {print $2}' /etc/shadow")).strip()
    domain.sh(f'python3 -c "{CRYPT.format(word=word, hash=hashed).replace("$", chr(92) + "$")}"')


def test_domfsfreeze_and_domfsthaw(domain: Domain, agent: str, table: Table) -> None:
    domain.serve(agent)
    domain.write_everywhere()
    froze, thawed = [], []
    for _ in range(TIMES):
        domain.wait_writing()
        froze.append(said := domain.virsh("domfsfreeze"))
        assert said == f"Froze {FILE_SYSTEMS} filesystem(s)"
        domain.stands_still()
        thawed.append(said := domain.virsh("domfsthaw"))
        assert said == f"Thawed {FILE_SYSTEMS} filesystem(s)"
    domain.wait_writing()
    table.time("domfsfreeze", agent, [said.seconds for said in froze])
    table.time("domfsthaw", agent, [said.seconds for said in thawed])


def test_domfsfreeze_of_one(domain: Domain, agent: str, table: Table) -> None:
    domain.serve(agent)
    domain.write_everywhere()
    domain.wait_writing()
    said = domain.virsh("domfsfreeze", "--mountpoint", "/srv/ext4")
    assert said == "Froze 1 filesystem(s)"
    table.time("domfsfreeze --mountpoint /srv/ext4", agent, [said.seconds])
    before = domain.written()
    domain.sh("touch /srv/xfs/goes-on /srv/btrfs/goes-on /goes-on")
    assert domain.virsh("domfsthaw") == "Thawed 1 filesystem(s)"
    after = domain.written()
    assert all(after[name] > before[name] for name in ("root", "xfs", "btrfs"))
    domain.wait_writing()


@pytest.mark.parametrize("quiesce", [True, False], ids=["quiesce", "not"])
def test_a_snapshot(domain: Domain, agent: str, quiesce: bool, table: Table) -> None:
    """Without --quiesce it needs recovery: else the other case would show nothing."""
    if not quiesce and agent != VIRTAGENT:
        return  # the agent has no part in it
    domain.serve(agent)
    domain.write_everywhere(durably=True)
    domain.wait_writing()
    images = domain.files()
    said = domain.virsh("snapshot-create-as", domain.snapshot_name(), *SNAPSHOT, *(["--quiesce"] if quiesce else []))
    domain.wait_writing()
    assert domain.files() != images
    found = {name: needs_recovery(domain.raw(images[DEVICES[name]])) for name in ("root", "ext4")}
    assert found == {"root": not quiesce, "ext4": not quiesce}
    if quiesce:
        table.time("snapshot-create-as --disk-only --quiesce", agent, [said.seconds])


def test_how_long_writers_stand_still_for_a_snapshot(domain: Domain, agent: str, table: Table) -> None:
    """With much that no disk has yet: who syncs only while frozen makes them wait for it."""
    domain.serve(agent)
    gaps = []
    for _ in range(3):
        for kind in SIZES:
            domain.sh(f"dd if=/dev/zero of=/srv/{kind}/dirty bs=1M count=16 2>/dev/null")
        domain.watch_gaps()
        domain.virsh("snapshot-create-as", domain.snapshot_name(), *SNAPSHOT, "--quiesce")
        gaps.append(domain.longest_gap())
        domain.end_writers()
    table.time("the same, writers stood still", agent, gaps)


def test_reboot(domain: Domain, agent: str, table: Table) -> None:
    domain.serve(agent)
    before = domain.boot_id()
    domain.machine.expect_boot()
    said = domain.virsh("reboot", "--mode", "agent")
    domain.again()
    table.time("reboot --mode agent", agent, [said.seconds])
    assert domain.boot_id() != before


def test_shutdown(domain: Domain, agent: str, table: Table) -> None:
    domain.serve(agent)
    began = time.monotonic()
    said = domain.virsh("shutdown", "--mode", "agent")
    domain.wait_off()
    off = time.monotonic() - began
    table.note("shutdown --mode agent", agent, f"{said.seconds:.2f} s; off after {off:.0f} s")
    domain.start()
