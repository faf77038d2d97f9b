"""Whom a program of a writer runs as: the groups, and the home in which it looks for its own settings."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass

from .step import Refused


@dataclass(frozen=True, slots=True)
class Account:
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
