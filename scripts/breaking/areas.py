"""Where what can be broken stands, and which tests concern it: globs, so that they fit more than one layout."""

from __future__ import annotations

import fnmatch
from pathlib import Path

_CORE = "core freezing thawing transaction workers state calls polls keeping audit status titles options deadlines"
CORE = ["supervisor/core/*.py", *(f"supervisor/{name}.py" for name in _CORE.split())]
_FREEZE = "worker/freeze worker/steps worker/mount_threads freeze hands"
FREEZE = [f"agent/{name}.py" for name in _FREEZE.split()]
_CHANNELS = ["hosts", "ports", "listeners", "channel"]
CHANNELS = ["supervisor/channels/*.py", *(f"supervisor/{name}.py" for name in _CHANNELS)]
WIRE = ["agent/wire/*.py"]
TABLES = ["agent/states.py", "agent/api/*.py", *CORE]
ROWS = ["agent/*.py", "agent/api/*.py"]

_TESTS = {
    "core": "states core_* workers many rpcs freeze_state* ledger* turn* engine* status*",
    "freeze": "worker* freeze* mount_threads* report messages* steps* mounts* many guest_machine",
    "channels": "ports watch path_watch* char_device* listen* connection* channel*",
    "wire": "wire_* session* codec* many",
    "rpc": "rpcs params core_* guest_* states",
}
"""The names of the test files of an area, without test_; a file that no line here names belongs to every area."""
_OTHERS = "config ga_options guest_* journal log mounts octets base64* sysfs plan*"
_NEVER = "docs packaging house host_* bench orders verdict harness*"
"""What compares text with text, or is about the host or the tests themselves."""


def tests_of(tree: Path, area: str) -> list[str]:
    """Return the test files that concern the area."""
    known = " ".join([*_TESTS.values(), _OTHERS, _NEVER])
    files = sorted((tree / "tests" / "unit").glob("test_*.py"))
    names = [path.stem.removeprefix("test_") for path in files]
    return [f"tests/unit/test_{n}.py" for n in names if _fits(n, _TESTS[area]) or not _fits(n, known)]


def _fits(name: str, globs: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in globs.split())
