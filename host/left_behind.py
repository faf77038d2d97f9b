"""What a dead agent left beside its socket: the journal that says which file systems may be frozen."""

from __future__ import annotations

import json
import os

from ..agent.api.text import brief, listed

_READ_MAX = 16 << 20
_BOOT_ID = "/proc/sys/kernel/random/boot_id"


def frozen_words(socket_path: str) -> str:
    """Return words for the file systems that the journal in the socket's folder names, "" if there is nothing.

    A journal of an earlier boot counts for nothing: what was frozen then is not any more (random(4), boot_id).
    """
    try:
        with open(os.path.join(os.path.dirname(socket_path), "journal"), encoding="ascii", errors="replace") as file:
            record = json.loads(file.read(_READ_MAX))
        with open(_BOOT_ID, encoding="ascii") as file:
            boot = file.read().strip()
        if record["boot"] != boot or not record["plan"]["mounts"]:
            return ""
        points = [brief(str(mount["mountpoint"])) for mount in record["plan"]["mounts"]]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return ""
    which = f"{listed(points)}" if len(points) <= 3 else f"{len(points)} file systems"
    return f"its journal says that {which} may be frozen: start virtagentd, or run `virtagentd --recover`"
