"""What each type of writer that calls programs calls: to hold an application, and to let it go. An empty call is none.

`hook` and `hook-dir` are those of qemu-ga. `vmware` is what VMware's tools call (open-vm-tools,
services/plugins/vmbackup/scriptOps.c): first the two old scripts, then all files of a folder in the order of strcmp(3),
through a shell; back in the opposite order, with `freezeFail` if the freeze or the snapshot failed.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Mapping

from ...api.structs import Value
from ...api.writers import WriterConfig

IGNORED = ("~", ".bak", ".orig", ".rpmnew", ".rpmorig", ".rpmsave", ".sample")
"""The endings that QEMU's own fsfreeze-hook ignores, and names with .dpkg- in them."""
PRE_FREEZE, POST_THAW = "pre-freeze-script", "post-thaw-script"
OLD_SCRIPTS = "/usr/sbin"
"""The folder of VMware's two old scripts."""


class Call(Value):
    """The words of a call that holds, and of its counterparts after a good and after a bad freeze."""

    freeze: tuple[str, ...]
    good: tuple[str, ...]
    bad: tuple[str, ...]
    user: str = ""
    shell: bool = False


def calls(config: WriterConfig) -> list[Call]:
    """Return what the writer calls, in the order of the freeze; raise OSError that names what cannot be called."""
    return list(_CALLS[config.type](config))


def ignored(name: str) -> bool:
    """Return whether a file of this name is none of the hooks in a folder."""
    return name.endswith(IGNORED) or ".dpkg-" in name or name.startswith(".")


def _hook(config: WriterConfig) -> Iterator[Call]:
    check_program(config.path)
    yield _of_qemu(config.path)


def _hook_dir(config: WriterConfig) -> Iterator[Call]:
    for name in sorted(os.listdir(config.path)):
        path = os.path.join(config.path, name)
        if not ignored(name) and _is_file(path) and os.access(path, os.X_OK):
            yield _of_qemu(path)


def _of_qemu(path: str) -> Call:
    return Call((path, "freeze"), (path, "thaw"), (path, "thaw"))


def _pair(config: WriterConfig) -> Iterator[Call]:
    for words in (config.freeze, config.thaw):
        check_program(words[0])
    yield Call(config.freeze, config.thaw, config.thaw, config.user)


def _vmware(config: WriterConfig) -> Iterator[Call]:
    old = [os.path.join(OLD_SCRIPTS, name) for name in (PRE_FREEZE, POST_THAW)]
    if any(map(_is_file, old)):
        for path in filter(_is_file, old):
            check_program(path)
        freeze, thaw = (path if _is_file(path) else "" for path in old)
        yield Call(_words(freeze, "freeze"), _words(thaw, "thaw"), _words(thaw, "freezeFail"), shell=True)
    elif not os.path.isdir(config.path):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), config.path)
    for name in sorted(os.listdir(config.path), key=os.fsencode) if os.path.isdir(config.path) else []:
        path = os.path.join(config.path, name)
        if _is_file(path):
            check_program(path)
            yield Call((path, "freeze"), (path, "thaw"), (path, "freezeFail"), shell=True)


def _words(path: str, word: str) -> tuple[str, ...]:
    return (path, word) if path else ()


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except FileNotFoundError:
        return False  # a link to nothing


def check_program(path: str) -> None:
    """Raise OSError unless it is a program."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "it is no program", path)
    if not os.access(path, os.X_OK):
        raise PermissionError(errno.EACCES, "it may not be executed", path)


_CALLS: Mapping[str, Callable[[WriterConfig], Iterator[Call]]] = {
    "hook": _hook,
    "hook-dir": _hook_dir,
    "pair": _pair,
    "vmware": _vmware,
}
