"""Facts about the guest as a whole, in qemu-ga's form: its release, users, time and name."""

from __future__ import annotations

import os
import struct
import time
from typing import TYPE_CHECKING, Any

from ...api.errors import Code, Fault
from .reading import not_scarce, read

if TYPE_CHECKING:
    from ..context import Args, Worker

OS_RELEASE = ("/etc/os-release", "/usr/lib/os-release")
UTMP = "/var/run/utmp"
_RELEASE_FIELDS = ("ID", "NAME", "PRETTY_NAME", "VERSION", "VERSION_ID", "VARIANT", "VARIANT_ID")
_USER_PROCESS = 7
# utmp(5): type, pid, line, id, user, host, exit status, session, time. On machines where no 32-bit program ever had to
# read the file, session and time are long.
_UTMP_LONG = frozenset({"aarch64", "alpha", "ia64", "loongarch64", "riscv64"})
_UTMP = {False: struct.Struct("@hi32s4s32s256shhiii36x"), True: struct.Struct("@hi32s4s32s256shhlll36x0l")}


def get_osinfo(_worker: Worker, _args: Args) -> dict[str, str]:
    """Return uname(2) and os-release(5); QGA_OS_RELEASE in the environment names another file to read."""
    kernel = os.uname()
    info = {"kernel-release": kernel.release, "kernel-version": kernel.version, "machine": kernel.machine}
    override = os.environ.get("QGA_OS_RELEASE")
    for path in (override,) if override is not None else OS_RELEASE:
        try:
            text = read(path)
        except OSError as error:
            not_scarce(error, f'open("{path}")')
            continue  # not every system has it; uname alone is an answer, too
        return info | os_release(text)
    return info


def os_release(text: str) -> dict[str, str]:
    """Return the values of an os-release(5) text that QGA has fields for, by the names of these fields."""
    found = {}
    for line in text.split("\n"):
        name, equals, value = line.partition("=")
        if equals and name.strip() in _RELEASE_FIELDS:  # this ignores comments, whose "name" begins with #
            found[name.strip().lower().replace("_", "-")] = unquote(value.strip())
    return found


def unquote(value: str) -> str:
    """Return the value that a shell would assign; an unquoted value ends at a space or semicolon."""
    quote = value[:1] if value[:1] in ("'", '"') else ""
    ends = (quote,) if quote else (" ", "\t", ";")
    special = {"": None, "'": "", '"': "$'\"\\`"}[quote]  # what a backslash escapes; None: everything
    found = []
    characters = iter(value[len(quote) :])
    for character in characters:
        if character in ends:
            break
        if character == "\\" and special != "":
            escaped = next(characters, "")
            found.append(escaped if special is None or escaped in special else f"\\{escaped}")
        else:
            found.append(character)
    return "".join(found)


def get_users(_worker: Worker, _args: Args) -> list[dict[str, Any]]:
    """Return who is logged in, each user once, and since when (seconds since the epoch, the earliest login)."""
    try:
        with open(UTMP, "rb") as file:
            records = file.read()
    except OSError as error:
        not_scarce(error, f'open("{UTMP}")')
        return []  # unknown on systems without utmp; qemu-ga, too, says nobody
    return logins(records, os.uname().machine)


def logins(records: bytes, machine: str) -> list[dict[str, Any]]:
    """Return the users of a utmp file that was written on that machine; a cut-off record is left out."""
    # psutil.users has whole seconds only.
    layout = _UTMP[machine in _UTMP_LONG]
    earliest: dict[str, float] = {}
    for record in layout.iter_unpack(records[: len(records) // layout.size * layout.size]):
        kind, _, _, _, name, _, _, _, _, seconds, microseconds = record
        if kind == _USER_PROCESS:
            user = name.partition(b"\0")[0].decode("utf-8", "surrogateescape")
            since = seconds + microseconds / 1e6
            earliest[user] = min(since, earliest.get(user, since))
    return [{"user": user, "login-time": since} for user, since in earliest.items()]


def get_timezone(_worker: Worker, _args: Args) -> dict[str, Any]:
    """Return the abbreviation of the present time zone, and its seconds east of UTC."""
    time.tzset()  # it may have been changed since the daemon started
    now = time.localtime()
    return {"zone": now.tm_zone, "offset": now.tm_gmtoff}


def get_host_name(_worker: Worker, _args: Args) -> dict[str, str]:
    """Return the host name that the kernel has."""
    return {"host-name": os.uname().nodename}


def get_time(_worker: Worker, _args: Args) -> int:
    """Return the time in nanoseconds since the epoch."""
    return time.time_ns()


def get_load(_worker: Worker, _args: Args) -> dict[str, float]:
    """Return the load averages of 1, 5 and 15 minutes; raise Fault FAILED without procfs."""
    try:
        averages = os.getloadavg()
    except OSError:  # getloadavg(3) sets no errno
        raise Fault(Code.FAILED, "cannot query load average") from None
    return dict(zip(("load1m", "load5m", "load15m"), averages, strict=True))
