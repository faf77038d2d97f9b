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
                "drbd, zvol, ublk, Ceph's rbd, iSCSI",
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
