"""Reading /proc and /sys for the handlers of facts: what is missing is unknown, or a fault if it must be there.

The faults are in qemu-ga's words, which hosts show to operators. Text is UTF-8 with lone surrogates for undecodable
bytes, as in the reports of workers.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable

from ...api.errors import Code, Fault

_SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def refused(error: OSError, doing: str) -> Fault:
    """Return fault FAILED for an error of the operating system in qemu-ga's words: "`doing`: reason"."""
    return Fault(Code.FAILED, f"{doing}: {error.strerror}")


def read(path: str) -> str:
    """Return the text of a file; raise OSError."""
    with open(path, "rb") as file:  # as bytes: a text file would treat a lone \r as the end of a line
        return file.read().decode("utf-8", "surrogateescape")


def read_needed(path: str) -> str:
    """Return the text of a file; raise Fault FAILED if it cannot be read."""
    try:
        return read(path)
    except OSError as error:
        raise refused(error, f'open("{path}")') from None


def read_if_any(path: str) -> str:
    """Return the text of a file without its last newline; "" if it cannot be read, since a device may vanish.

    Raises Fault FAILED if the system is short of descriptors or memory: what is there is not to be left out.
    """
    try:
        return read(path).removesuffix("\n")
    except OSError as error:
        not_scarce(error, f'open("{path}")')
        return ""


def names_in(folder: str) -> list[str]:
    """Return the sorted names in a folder, [] if it cannot be read; raise Fault as `read_if_any`."""
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        not_scarce(error, f'Can\'t open directory "{folder}"')
        return []


def not_scarce(error: OSError, doing: str) -> None:
    """Raise Fault FAILED if the error says that the system is short of descriptors or memory."""
    if error.errno in _SCARCE:
        raise refused(error, doing) from None


def is_number(text: str) -> bool:
    """Return whether the text is a number that is not negative, as the kernel prints it."""
    return text.isascii() and text.isdecimal()


def numbered(names: Iterable[str], prefix: str) -> list[int]:
    """Return the sorted numbers N of the names that are `prefix`N."""
    numbers = (name.removeprefix(prefix) for name in names if name.startswith(prefix))
    return sorted(int(number) for number in numbers if is_number(number))
