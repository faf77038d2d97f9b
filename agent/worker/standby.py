"""A process that the supervisor forks ahead with each freeze: it thaws when no other process can be had then.

Descriptors, processes or memory may have run out by the time at which the keeper dies (RLIMIT_NOFILE, pids.max), and
the guest must not stay frozen until there are some again (ADR 0029). It has its pipes already, and waits in read(2).
"""

from __future__ import annotations

import os
from typing import Any

import setproctitle

from ..api import records
from . import messages
from .context import TITLE, Args, Job


def order(job: Job) -> messages.Ask:
    """Return the message that makes the process run this job, which is a thaw."""
    mounts = {str(index): records.Plan((mount,)).dump()["mounts"][0] for index, mount in job.args["mounts"].items()}
    return messages.Ask(job.worker, job.rpc, {"mounts": mounts, "expedited": int(job.args["expedited"])})


def job_of(asked: messages.Ask) -> Job:
    """Return the job that was ordered; raise ValueError if it is none."""
    mounts: dict[int, records.Mount] = {}
    for index, mount in asked.args["mounts"].items():
        mounts[int(index)] = records.load(records.Mount, mount, f"mount {index}", exact=True)
    args: Args = {"mounts": mounts, "expedited": bool(asked.args["expedited"])}
    return Job(asked.call, asked.rpc, args)


def wait(control_fd: int) -> Job | None:
    """Wait for an order; return None if there will be none: the supervisor is gone, or needs nobody any more."""
    setproctitle.setproctitle(f"{TITLE}standby [idle]")
    decoder = messages.Decoder(messages.CONTROLS)
    while data := os.read(control_fd, 65536):
        for message in decoder.feed(data):
            asked: Any = message
            assert isinstance(asked, messages.Ask), f"{asked} for a process that stands by"
            return job_of(asked)
    return None
