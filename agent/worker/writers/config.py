"""Reading the files of writers: NAME.conf in a folder, owned by root and writable by nobody else."""

from __future__ import annotations

import os
import stat

from ...api.writers import NAME, BadWriter
from .latch import BEGUN, LOCK, NEW, UNDONE

FILE_MAX = 64 << 10


def read_folder(folder: str) -> dict[str, str]:
    """Return the texts of the files `NAME.conf` of a folder by their names; none if it is missing, or /dev/null.

    A link to /dev/null masks a name. Raises BadWriter that names the file.
    """
    if folder == os.devnull:
        return {}
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise BadWriter(f"writers-dir {folder}: {error.strerror}") from None
    found = {name.removesuffix(".conf"): _read(os.path.join(folder, name)) for name in names if name.endswith(".conf")}
    return {name: text for name, text in found.items() if text is not None}


def _read(path: str) -> str | None:
    """Return the text of a file; None if it is masked."""
    if not NAME.fullmatch(os.path.basename(path).removesuffix(".conf")):
        means = "has letters, digits, dots, underscores and hyphens, at most 64"
        ends = f"{', '.join((LOCK, NEW, BEGUN))} or {UNDONE}"
        raise BadWriter(f"{path}: a writer's name {means}, and does not end in {ends}")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        with open(fd, "rb") as opened:
            about = os.fstat(fd)
            if stat.S_ISCHR(about.st_mode) and about.st_rdev == os.makedev(1, 3):
                return None  # /dev/null
            if not stat.S_ISREG(about.st_mode):
                raise BadWriter(f"{path} is no regular file")
            # Whoever may write it decides what root runs.
            if about.st_uid not in (0, os.geteuid()) or about.st_mode & 0o022:
                raise BadWriter(f"{path} must be owned by root and writable by nobody else")
            data = opened.read(FILE_MAX + 1)
    except OSError as error:
        raise BadWriter(f"{path}: {error.strerror}") from None
    if len(data) > FILE_MAX:
        raise BadWriter(f"{path} is over {FILE_MAX} bytes")
    return data.decode(errors="surrogateescape")
