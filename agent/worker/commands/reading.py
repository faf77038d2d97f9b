"""How the handlers of facts read /proc and /sys: what is not there is unknown, what must be there is a fault.

The faults are in the words of qemu-ga, which hosts show to operators. Text is UTF-8 with lone surrogates for bytes
that are none, as in the reports of workers.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from ...api.errors import Code, Fault


def refused(error: OSError, doing: str) -> Fault:
    """Return the fault FAILED for what the operating system refused, as qemu-ga says it: "`doing`: reason"."""
    return Fault(Code.FAILED, f"{doing}: {error.strerror}")


def read(path: str) -> str:
    """Return the text of a file; raise OSError."""
    with open(path, "rb") as file:  # bytes: a text file would take a lone \r for the end of a line
        return file.read().decode("utf-8", "surrogateescape")


def read_needed(path: str) -> str:
    """Return the text of a file; raise Fault FAILED."""
    try:
        return read(path)
    except OSError as error:
        raise refused(error, f'open("{path}")') from None


def read_if_any(path: str) -> str:
    """Return the text of a file without the newline at its end; "" if it cannot be read: a device may vanish."""
    try:
        return read(path).removesuffix("\n")
    except OSError:
        return ""


def names_in(folder: str) -> list[str]:
    """Return the sorted names in a folder, none if it cannot be read."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def is_number(text: str) -> bool:
    """Return whether the text is a number as the kernel prints those that are not negative."""
    return text.isascii() and text.isdecimal()


def numbered(names: Iterable[str], prefix: str) -> list[int]:
    """Return the sorted numbers N of the names `prefix`N."""
    numbers = (name.removeprefix(prefix) for name in names if name.startswith(prefix))
    return sorted(int(number) for number in numbers if is_number(number))
