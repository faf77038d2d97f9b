"""The body of a forked child: it runs one RPC, reports over its pipe and ends.

It never returns into the supervisor's code.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from ..api.errors import Code, Fault, failed, no_more
from ..api.methods import RPCS
from . import kernel, messages, resource, standby
from .context import Job, Worker
from .handlers import HANDLERS, RESOURCE_HANDLERS


def run(job: Job, report_fd: int, control_fd: int, supervisor: int, lifeline_fd: int = -1) -> NoReturn:
    """Run the job's handler in this newly forked process, report its value or fault, and end the process."""
    _begin(lambda: job, report_fd, control_fd, supervisor, lifeline_fd)


def stand_by(report_fd: int, control_fd: int, supervisor: int, _lifeline_fd: int = -1) -> NoReturn:
    """Run the job that comes by the control pipe, if one does, and end the process (`standby`)."""
    _begin(lambda: standby.wait(control_fd), report_fd, control_fd, supervisor, -1)


def _begin(
    get_job: Callable[[], Job | None], report_fd: int, control_fd: int, supervisor: int, lifeline_fd: int
) -> NoReturn:
    code = 1
    try:
        gc.disable()
        _leave_the_supervisor(report_fd, control_fd, *(fd for fd in (lifeline_fd,) if fd >= 0))
        job = get_job()
        if job is None:
            os._exit(0)
        worker = Worker(job, report_fd, control_fd, supervisor, lifeline_fd)
        row = RPCS[job.rpc]
        worker.title(f"running, limit {row.limit:g} s" if row.limit else "starting")
        if not row.outlives:
            kernel.die_with_parent(signal.SIGKILL)
            if os.getppid() != supervisor:
                os._exit(1)  # the supervisor died before that
        if not row.outlives or row.holds:
            kernel.be_killed_like_others()
        worker.reporter.send(messages.Started(os.getpid()))
        outcome: messages.Report
        try:
            value = HANDLERS[row.handler](worker, job.args)
            if isinstance(value, resource.Resource):
                resource.serve(worker, value, RPCS, RESOURCE_HANDLERS)
                value = None
            outcome = messages.Done(value)
        except Fault as fault:
            outcome = messages.Failed(int(fault.code), fault.text)
        except Exception as error:  # noqa: BLE001 - whatever it is, the supervisor is told
            unforeseen = fault_of(job.rpc, error)
            outcome = messages.Failed(int(unforeseen.code), unforeseen.text)
        worker.reporter.send(outcome)
        code = 0
    finally:
        if code:
            traceback.print_exc(file=sys.stderr)
        os._exit(code)


def fault_of(rpc: str, error: Exception) -> Fault:
    """Return the fault for what a handler did not expect: what the system refused; or a defect, with its place."""
    if refused := no_more(error):
        return failed(refused, rpc)
    if isinstance(error, OSError) and error.errno is not None:
        path = error.filename if isinstance(error.filename, str) else os.fsdecode(error.filename or b"")
        return failed(error, f"{rpc}: {path}" if path else rpc)
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{os.path.basename(last.filename)}:{last.lineno}"
    return Fault(Code.INTERNAL, f"{rpc}: {type(error).__name__}: {error} ({place})")


def _leave_the_supervisor(*mine: int) -> None:
    """Drop what a worker inherits and must not have: signal handling, session, descriptors but `mine`."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    # A Ctrl-C on the supervisor's terminal must not kill the keeper: the supervisor tells it to thaw.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.setsid()
    first = 3
    for fd in sorted(mine):
        os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))
