"""The figures of a sync: what is left, how fast it goes, and how long that takes (U4)."""

from __future__ import annotations

import glob
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from virtagent.agent.api.records import Mount
from virtagent.agent.api.states import Phase
from virtagent.agent.worker import progress
from virtagent.agent.worker.messages import Progress, encode
from virtagent.agent.worker.progress import (
    LEAST,
    ROWS_MAX,
    SECTOR,
    WINDOW,
    Figures,
    WritebackMeter,
    dirty_of,
    open_debugfs,
    stats_of,
    written,
)

MIB = 1 << 20
DISKS = {0: ("vda",), 1: ("vdb",), 2: ("vdc", "vdd"), 3: ("vdc",)}


class Bench:
    """Disks under a hand-held clock, which write as they are told."""

    def __init__(self) -> None:
        self.now = 500.0
        self.written = {"vda": 7 * MIB, "vdb": 0, "vdc": 0, "vdd": 3}
        self.figures = Figures(DISKS)

    def look(
        self, dirty: int, *syncing: int, left: dict[int, int] | None = None, phase: Phase = Phase.SYNC
    ) -> Progress:
        return self.figures.take(self.now, dict(self.written), dirty, left or {}, phase, 1, syncing)

    def passes(self, seconds: float, **speeds: float) -> None:
        self.now += seconds
        for disk, speed in speeds.items():
            self.written[disk] += int(speed * seconds)


def test_a_burst_of_disks_that_are_done_is_not_in_the_rate() -> None:
    """U4: 80 MiB that two fast disks wrote in the first moments made "1 s left" of 10 s."""
    bench = Bench()
    bench.look(160 * MIB)
    bench.passes(0.25, vda=320 * MIB, vdb=4 * MIB)
    bench.look(80 * MIB, 0, 1)
    said = []
    for second in range(1, 10):
        for _ in range(4):
            bench.passes(0.25, vdb=4 * MIB)
            found = bench.look(40 * MIB - second * 4 * MIB, 1)
        said.append(found)
    assert [round(one.bytes_per_second / MIB, 1) for one in said[1:]] == [4.0] * 8
    assert [round(one.eta) for one in said] == [9, 8, 7, 6, 5, 4, 3, 2, 1], "it falls by a second a second"
    assert said[-1].flushed_bytes > 110 * MIB, "and what all have written is all the same told"


def test_nothing_is_estimated_in_the_first_second() -> None:
    bench = Bench()
    assert bench.look(100 * MIB, 0).eta == -1
    bench.passes(LEAST - 0.1, vda=MIB)
    assert (bench.look(99 * MIB, 0).bytes_per_second, bench.look(99 * MIB, 0).eta) == (-1, -1)
    bench.passes(0.2, vda=MIB)
    assert bench.look(99 * MIB, 0).eta > 0


def test_a_disk_that_stands_still_has_no_end_to_be_foretold() -> None:
    bench = Bench()
    bench.look(MIB, 0)
    bench.passes(1, vda=MIB)
    assert bench.look(MIB, 0).eta > 0
    bench.passes(WINDOW + 1)
    bench.look(MIB, 0)
    bench.passes(WINDOW)
    assert (bench.look(MIB, 0).bytes_per_second, bench.look(MIB, 0).eta) == (0, -1)


def test_each_file_system_has_figures_of_its_own_disks_since_its_sync_began() -> None:
    bench = Bench()
    bench.look(100 * MIB)
    bench.passes(5, vda=MIB, vdb=MIB, vdc=MIB)  # nobody knows yet which of them is synced
    bench.look(100 * MIB, 1)
    bench.passes(2, vdb=2 * MIB, vdc=MIB, vdd=MIB)
    bench.look(50 * MIB, 1, 2, left={1: 8 * MIB, 2: 30 * MIB})
    bench.passes(2, vdb=2 * MIB, vdc=MIB, vdd=MIB)
    found = bench.look(50 * MIB, 1, 2, left={1: 4 * MIB, 2: 26 * MIB})
    (first, second) = found.mounts
    assert first[:3] == [1, 5 * MIB + 8 * MIB, 4 * MIB]
    assert first[3] == pytest.approx(2 * MIB)
    assert first[4] == pytest.approx(2)
    assert second[:3] == [2, 8 * MIB, 26 * MIB], "vdc's part was written before its own sync began"
    assert found.dirty_bytes == 30 * MIB, "what these have left, not what the whole guest has"


def test_what_is_not_known_of_one_is_not_known_of_the_sum() -> None:
    bench = Bench()
    assert bench.look(77, 0, 1, left={0: 5, 1: -1}).dirty_bytes == 77
    assert bench.look(77, 0, 1, left={0: 5, 1: 6}).dirty_bytes == 11


def test_no_end_is_foretold_outside_the_sync() -> None:
    bench = Bench()
    bench.look(MIB, 0)
    bench.passes(2, vda=MIB)
    assert bench.look(MIB, 0, phase=Phase.FREEZE).eta == -1
    assert bench.look(MIB, 0).eta > 0
    assert bench.look(MIB).eta == -1, "nothing is being synced at this moment"


@given(
    st.lists(
        st.tuples(
            st.floats(0.0, 5.0),
            st.dictionaries(st.sampled_from(["vda", "vdb", "vdc", "vdd"]), st.integers(0, 1 << 30)),
            st.integers(-1, 1 << 40),
            st.sets(st.integers(0, 3)),
            st.dictionaries(st.integers(0, 3), st.integers(-1, 1 << 40)),
            st.sampled_from([Phase.SYNC, Phase.SYNC, Phase.FREEZE]),
        ),
        max_size=30,
    )
)
def test_an_estimate_is_never_below_what_rate_and_bytes_left_say(
    looks: list[tuple[float, dict[str, int], int, set[int], dict[int, int], Phase]],
) -> None:
    bench = Bench()
    begun = bench.now
    for seconds, wrote, dirty, syncing, left, phase in looks:
        bench.passes(seconds)
        for disk, more in wrote.items():
            bench.written[disk] += more
        begun = bench.now if bench.figures._samples == () else begun
        found = bench.look(dirty, *sorted(syncing), left=left, phase=phase)
        for rate, eta, rest in (
            (found.bytes_per_second, found.eta, found.dirty_bytes),
            *((row[3], row[4], row[2]) for row in found.mounts),
        ):
            assert rate == -1 or rate >= 0
            assert eta == -1 or (eta >= 0 and rate > 0 and eta * rate >= rest * (1 - 1e-9))
        assert found.eta == -1 or (phase is Phase.SYNC and syncing)
        assert bench.now - begun >= LEAST or found.eta == -1


def test_a_report_of_many_fits_into_one_write() -> None:
    figures = Figures({index: (f"vd{index}",) for index in range(300)})
    counters = {f"vd{index}": 1 << 50 for index in range(300)}
    left = dict.fromkeys(range(300), 1 << 50)
    for now in (1.0, 2.0, 3.0):
        found = figures.take(now, counters, 1 << 60, left, Phase.SYNC, 1, range(300))
        counters = {name: count + 12345 for name, count in counters.items()}
    assert len(found.mounts) == ROWS_MAX
    assert len(encode(found)) == 1


def test_what_a_device_has_dirty_is_what_debugfs_says(tmp_path: Path) -> None:
    stats = tmp_path / "stats"
    folder = os.open(tmp_path, os.O_PATH)
    stats.write_text("BdiWriteback:               48 kB\nBdiReclaimable:          36708 kB\nb_dirty: 2965\n")
    assert dirty_of(folder, "stats") == -1, "a kernel that tells only of the root cgroup"
    (tmp_path / "wb_stats").write_text("")
    assert dirty_of(folder, "stats") == (48 + 36708) << 10
    for text in (
        "",
        "BdiWriteback: 1 kB\n",
        "BdiWriteback: x kB\nBdiReclaimable: 1 kB\n",
        "BdiWriteback:\nBdiReclaimable: 1\n",
    ):
        stats.write_text(text)
        assert dirty_of(folder, "stats") == -1
    assert dirty_of(folder, "none") == dirty_of(folder, "") == dirty_of(-1, "stats") == -1
    os.close(folder)


def test_debugfs_need_not_be_mounted() -> None:
    """Of a superblock's own block device the kernel tells what is dirty, to root."""
    folder = open_debugfs()
    if folder < 0:
        pytest.skip("needs root, and a kernel with debugfs")
    if not glob.glob("*/wb_stats", root_dir=f"/proc/self/fd/{folder}/bdi"):
        os.close(folder)
        pytest.skip("needs a kernel that counts what each cgroup has dirtied (6.10)")
    disks = [Path(path).read_text().strip() for path in glob.glob("/sys/class/block/*/dev")]
    assert any(dirty_of(folder, stats_of(device)) >= 0 for device in disks)
    assert dirty_of(folder, stats_of("0:99999")) == -1
    os.close(folder)


def test_what_each_disk_has_written_is_read_of_diskstats() -> None:
    text = (
        b"   7       0 loop0 14 0 36 6 8 3 2048 5 0 17 12 0 0 0 0 0 0\n"
        b" 259       0 nvme0n1 14 0 36 6 8 3 16 5 0 17 12\n"  # as before Linux 4.18
        b"   8       0 sda 14\n"
    )
    assert written(text) == {"loop0": MIB, "nvme0n1": 16 * SECTOR}


def test_a_sync_has_figures_only_when_it_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most are over before that, and a freeze of many disks would wait for what nobody reads."""
    texts = [f" 254 0 vda 0 0 0 0 0 0 {sectors} 0 0 0 0\n".encode() for sectors in (2048, 6144, 8192)]
    monkeypatch.setattr(progress, "_diskstats", lambda: texts.pop(0))
    meter = WritebackMeter({0: Mount("/srv", device="254:0", disks=("vda",))})
    assert meter.progress(Phase.SYNC, 1) == Progress("sync", 1)
    assert meter.progress(Phase.SYNC, 1, {0}).flushed_bytes == 2 * MIB, "since the sync began"
    assert meter.progress(Phase.FREEZE, 0).flushed_bytes == 3 * MIB
