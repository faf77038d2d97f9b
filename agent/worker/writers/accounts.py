"""Whom a program of a writer runs as, with the home in which it looks for its settings; and files that are secret."""

from __future__ import annotations

import os
import pwd
import stat

from ...api.structs import Value
from .step import Refused


class Account(Value):
    """A user; `env` is what a program of that user finds in its environment besides what the agent has."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    env: dict[str, str]

    def become(self) -> None:
        """Give up all rights but those of this user, for good; raise OSError."""
        if self.uid != os.geteuid():
            os.setgroups(self.groups)
            os.setgid(self.gid)
            os.setuid(self.uid)


def account(user: str) -> Account:
    """Return the user of that name, "" for the agent's own; raise Refused if there is none."""
    try:
        found = pwd.getpwnam(user) if user else pwd.getpwuid(os.geteuid())
    except KeyError:
        raise Refused(f"there is no user {user or os.geteuid()}") from None
    groups = tuple(os.getgrouplist(found.pw_name, found.pw_gid))
    # A service of the system has no HOME, and without it a client does not find ~/.my.cnf or ~/.pgpass.
    env = {"HOME": found.pw_dir, "USER": found.pw_name, "LOGNAME": found.pw_name}
    return Account(found.pw_uid, found.pw_gid, groups, env)


def check_secret(path: str) -> None:
    """Raise Refused unless the file is root's and only root may read it: it may hold a password."""
    try:
        about = os.stat(path)
    except OSError as error:
        raise Refused(f"{path}: {error.strerror}") from None
    if not stat.S_ISREG(about.st_mode) or about.st_uid not in (0, os.geteuid()) or about.st_mode & 0o077:
        raise Refused(f"{path} must be a file that is owned by root and that nobody else may read")
