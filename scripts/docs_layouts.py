"""The table of docs/what-is-frozen.md: layouts of file systems, what a freeze does with each, the test that shows it.

A row names the test; what it says must be in that test, as far as words can tell (`EVIDENCE`).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

REAL, VM, UNIT = "tests/real/", "tests/vm/", "tests/unit/"
ORDER = "frozen, before what it lies on"
BEFORE_ALL = "frozen, before all that was mounted before it"

ROWS = (
    (
        "What lies on what",
        (
            (
                "an image (loop device) on another file system, eight levels deep",
                ORDER,
                REAL + "test_scale.py",
                "test_levels_upon_levels",
            ),
            (
                "its folder was covered by another disk later",
                ORDER,
                REAL + "test_layouts.py",
                "test_an_image_whose_folder_was_covered",
            ),
            (
                "its folder was covered by a user's FUSE mount",
                ORDER,
                REAL + "test_fuse_layouts.py",
                "test_an_image_whose_folder_a_user_covered",
            ),
            (
                "the image was set up in another mount namespace",
                ORDER,
                REAL + "test_layouts.py",
                "test_an_image_of_another_mount_namespace",
            ),
            (
                "an image on an overlay, also one mounted with relative folders",
                ORDER,
                REAL + "test_layouts.py",
                "test_an_image_on_an_overlay",
            ),
            ("an image in a btrfs subvolume", ORDER, REAL + "test_layouts.py", "test_an_image_in_a_subvolume"),
            (
                "the same, of a subvolume that is mounted nowhere itself",
                BEFORE_ALL,
                REAL + "test_layouts.py",
                "test_an_image_in_a_subvolume_that_is_mounted_nowhere",
            ),
            (
                "an ext4 with its journal on another device",
                "frozen, before what it or its journal lies on",
                REAL + "test_layouts.py",
                "test_an_ext4_with_its_journal_elsewhere",
            ),
            (
                "an image on a pool or mirror by FUSE: mergerfs, bindfs, unionfs-fuse, fuse-overlayfs",
                BEFORE_ALL,
                REAL + "test_fuse_layouts.py",
                "test_an_image_on_a_fuse_file_system",
            ),
            (
                "FUSE file systems whose sources name each other's mount points",
                "frozen; what such a source says counts for nothing",
                REAL + "test_fuse_layouts.py",
                "test_fuse_file_systems_that_name_each_others_mount_points",
            ),
            (
                "dm-crypt, LVM with a snapshot, RAID 1",
                ORDER,
                VM + "test_layers.py",
                "test_layers_of_devices_freeze_inside_out",
            ),
            (
                "nbd, also over a file of the guest's own root",
                BEFORE_ALL,
                VM + "test_layers.py",
                "test_layers_of_devices_freeze_inside_out",
            ),
            (
                "drbd, zvol, ublk, Ceph's rbd, iSCSI, NVMe over fabrics, LIO's tcm_loop",
                "planned before all that was mounted before it (no test freezes one)",
                UNIT + "test_mounts.py",
                "test_what_is_not_understood_lies_on_all_that_was_mounted_before",
            ),
            (
                "file systems that are known to lie on each other in a circle",
                "the freeze is refused and names them",
                UNIT + "test_mounts.py",
                "test_a_circle_is_refused_and_names_the_mount_points",
            ),
        ),
    ),
    (
        "Where it is mounted",
        (
            (
                "several mount points, subvolumes of one btrfs",
                "frozen once",
                REAL + "test_scale.py",
                "test_all_at_once_and_nothing_is_left",
            ),
            (
                "6,000 and 10,000 bind mounts of one file system",
                "frozen once; 8 of them are named",
                REAL + "test_many_mounts.py",
                "test_bind_mounts_of_one_file_system",
            ),
            (
                "all its mount points are covered",
                "frozen, through a mount namespace of that moment",
                REAL + "test_reach.py",
                "test_a_covered_file_system_is_frozen",
            ),
            (
                "covered while it is frozen",
                "thawed all the same",
                REAL + "test_freeze.py",
                "test_mounted_over_while_frozen",
            ),
            (
                "behind a FUSE server that answers",
                "frozen",
                REAL + "test_reach.py",
                "test_a_file_system_behind_a_fuse_server",
            ),
            (
                "behind a FUSE server that does not answer, with no other way",
                "left out as `unreachable`; an error with `strict`",
                REAL + "test_reach.py",
                "test_a_file_system_behind_a_fuse_server",
            ),
            (
                "at a path longer than a system call takes",
                "frozen",
                REAL + "test_reach.py",
                "test_a_path_that_no_system_call_takes_whole",
            ),
            (
                "only a FIFO or a device node of it is mounted",
                "left out as `unreachable`",
                REAL + "test_layouts.py",
                "test_a_file_system_of_which_only_a_fifo_is_mounted",
            ),
            (
                "only in another mount namespace (a container's)",
                "frozen, unless an include by path is given",
                REAL + "test_namespaces.py",
                "test_a_file_system_that_only_another_namespace_has",
            ),
            (
                "the same, with an include by path",
                "left out as `not-included`",
                REAL + "test_namespaces.py",
                "test_an_include_by_path_leaves_it_out",
            ),
            ("in a mount namespace that no process holds", "not seen, and not named", "", ""),
        ),
    ),
    (
        "What it is",
        (
            ("ext4, xfs, btrfs", "frozen", REAL + "test_freeze.py", "test_twenty_times_without_a_leak"),
            (
                "an ext4 that stopped writing after an error",
                "left out as `damaged`",
                REAL + "test_layouts.py",
                "test_a_file_system_that_stopped_writing_after_an_error",
            ),
            (
                "a local disk served by FUSE (fuse2fs), fuseblk (ntfs-3g)",
                "left out as `fuse`; an error with `strict`",
                REAL + "test_fuse_layouts.py",
                "test_a_local_disk_that_a_program_serves",
            ),
            (
                "any other FUSE file system",
                "left out as `fuse`",
                REAL + "test_many_mounts.py",
                "test_hostile_fuse_mounts",
            ),
            (
                "ZFS",
                "left out as `zfs`; an error with `strict`",
                UNIT + "test_mounts.py",
                "test_what_it_is_and_whether_that_is_an_error_under_strict",
            ),
            (
                "NFS, SMB and other network file systems",
                "left out as `network`, never opened",
                UNIT + "test_mounts.py",
                "test_what_it_is_and_whether_that_is_an_error_under_strict",
            ),
            (
                "tmpfs, proc, overlay and others on no disk",
                "left out as `pseudo`",
                REAL + "test_freeze.py",
                "test_plan_tells_what_the_freeze_does",
            ),
            (
                "a read-only superblock",
                "left out as `read-only`",
                UNIT + "test_mounts.py",
                "test_read_only_is_the_superblock_not_the_mount",
            ),
            (
                "vfat, as of an EFI partition, and other types that the kernel cannot freeze",
                "left out as `unsupported`; an error with `strict`",
                UNIT + "test_freeze_script.py",
                "test_one_that_cannot_freeze_is_left_out_unless_strict",
            ),
            (
                "frozen by someone else",
                "it is left alone, and the freeze fails",
                REAL + "test_freeze.py",
                "test_one_frozen_by_someone_else_fails_the_freeze_and_is_left_alone",
            ),
        ),
    ),
    (
        "What is slow, or busy (patience)",
        (
            (
                "a disk that does not answer while the others are frozen",
                "after 1 s the others are thawed, and wait for it running; then all are frozen together",
                REAL + "test_patience.py",
                "test_a_stalled_disk_makes_no_other_stand_still",
            ),
            (
                "the same, until the freeze limit",
                "the freeze fails and names it; the others are thawed after 1 s and run",
                REAL + "test_patience.py",
                "test_a_stalled_disk_is_given_up_at_the_freeze_limit_with_the_others_running",
            ),
            (
                "frozen by someone else for less than 2 s (busy-wait)",
                "frozen; it is tried again until then",
                REAL + "test_patience.py",
                "test_what_someone_else_has_frozen_for_a_moment_is_frozen_after_that",
            ),
            (
                "frozen by someone else for longer",
                "never thawed by the agent; the freeze fails, with `partial` it is left out as `busy`",
                REAL + "test_patience.py",
                "test_what_stays_frozen_by_someone_else_is_never_thawed",
            ),
            (
                "an image that lies on another file system in a way that no device number tells",
                "what it lies on is learnt by the times of the thaws; the next freezes have it in order",
                REAL + "test_patience.py",
                "test_what_a_file_system_lies_on_is_learnt",
            ),
            (
                "another file system, mounted later under the number of one of which that was learnt",
                "what was learnt is gone with the first one",
                REAL + "test_patience.py",
                "test_what_was_learnt_goes_with_the_superblock",
            ),
        ),
    ),
    (
        "What happens to it while it is frozen (evidence)",
        (
            (
                "somebody thaws it, writes, and freezes it again",
                "the freeze is broken, and says how much was written to which device",
                REAL + "test_evidence.py",
                "test_thawed_and_frozen_again_by_someone_else",
            ),
            (
                "somebody writes to a member of a btrfs",
                "the same",
                REAL + "test_evidence.py",
                "test_a_member_of_a_btrfs_is_its_own_device",
            ),
            (
                "somebody writes to an ext4's journal or an xfs's log on another device",
                "the same",
                REAL + "test_evidence.py",
                "test_a_journal_or_log_elsewhere_is_its_own_device",
            ),
            (
                "reads, writes to other file systems, a longer hold",
                "nothing: 0 bytes were written while frozen",
                REAL + "test_evidence.py",
                "test_reads_writes_elsewhere_and_a_longer_hold_are_no_writes",
            ),
            ("discards", "nothing", REAL + "test_evidence.py", "test_discards_are_no_writes"),
            (
                "writes to another partition of its disk",
                "nothing",
                REAL + "test_evidence.py",
                "test_another_partition_of_the_same_disk_is_no_matter",
            ),
            (
                "it has an active swap file",
                "no evidence (-1), which breaks nothing",
                REAL + "test_evidence.py",
                "test_a_swap_file_takes_the_evidence_and_breaks_nothing",
            ),
            (
                "the keeper dies, it is unmounted, and no way to it is left",
                "the state is `ERROR` until it is forgotten (virtagentctl forget)",
                REAL + "test_forget.py",
                "test_one_that_is_unmounted_and_cannot_be_reached",
            ),
        ),
    ),
)
"""Headings, and below each: layout, result, file and test."""

EVIDENCE = {
    "before": r"lies_on|hosts|levels",
    "frozen": r"freezes_and_thaws\(|fsfreeze|frozen",
    "thawed": r"thaw",
    "strict": r"strict",
    "refused": r"raises\(",
}


class NoTest(Exception):
    """A row names a test that is not there, or that does not speak of what the row says."""


def sections(tree: Path) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """Yield each heading with its rows of layout, result and name of the test; raise NoTest."""
    for heading, rows in ROWS:
        yield (
            heading,
            [(layout, result, _shown_by(tree, layout, result, file, test)) for layout, result, file, test in rows],
        )


def _shown_by(tree: Path, layout: str, result: str, file: str, test: str) -> str:
    if not file:
        return "none"
    path = tree / file
    functions = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)]
    source = {node.name: ast.unparse(node) for node in functions}.get(test, "")
    if not source:
        raise NoTest(f"{file} has no {test}, which is to show {layout!r}")
    words = [*re.findall("`([^`]+)`", result), *(evidence for word, evidence in EVIDENCE.items() if word in result)]
    for words_of in words:
        if not re.search(words_of, source):
            raise NoTest(f"{file}: {test} says nothing of {words_of!r}, and is to show {layout!r}: {result}")
    return f"`{file}::{test}`"
