"""Every error that a host may see. The numbers serve every protocol; the advice goes into docs/faults.md."""

from __future__ import annotations

import enum
import errno


class Code(enum.IntEnum):
    """An XML-RPC faultCode; the negative ones come from the XML-RPC fault code interoperability specification."""

    PARSE = -32700
    REQUEST = -32600
    METHOD = -32601
    PARAMS = -32602
    INTERNAL = -32603
    IN_PROGRESS = 1
    WRONG_STATE = 2
    REFUSED_WHILE_FROZEN = 3
    BUSY = 4
    OVERRUN = 5
    WORKER_DIED = 6
    FREEZE_FAILED = 7
    FREEZE_BROKEN = 8
    VETOED = 9
    BLOCKED = 10
    AUDIT_FULL = 11
    FAILED = 12


MEANING: dict[Code, tuple[str, str]] = {
    Code.PARSE: ("the message is not well-formed", "mend the client; nothing was done"),
    Code.REQUEST: (
        "well-formed, but not a request, or over a limit",
        "mend the client; the text names the limit; nothing was done",
    ),
    Code.METHOD: ("no such method", "call system.listMethods; a newer agent may have it"),
    Code.PARAMS: ("a parameter has the wrong type, count or value", "the text names the parameter; nothing was done"),
    Code.INTERNAL: ("a defect of the agent", "report it with the agent's log; the freeze state is still true"),
    Code.IN_PROGRESS: (
        "the call's `wait` passed; the job goes on",
        "poll va.fsstatus with `since`, or call va.fsthaw to cancel",
    ),
    Code.WRONG_STATE: ("not possible in the present freeze state", "look at va.fsstatus; thaw first, or freeze first"),
    Code.REFUSED_WHILE_FROZEN: ("would write to a frozen file system", "thaw first, then call again"),
    Code.BUSY: ("too many workers or clients at once", "call again when one has ended"),
    Code.OVERRUN: (
        "a limit passed; the worker was killed and what it did undone",
        "the text names the mount; its disk is too slow or stuck: raise the limit or exclude it",
    ),
    Code.WORKER_DIED: (
        "the worker died before it had an answer; what it did was undone",
        "the text names the signal or exit code; look for the out-of-memory killer; call again",
    ),
    Code.FREEZE_FAILED: (
        "a file system could not be frozen, or the freeze was cancelled; all others were thawed",
        "the text names mount and errno; no snapshot was possible",
    ),
    Code.FREEZE_BROKEN: (
        "the file systems were not held frozen without a break",
        "throw the snapshot away; the text says what broke the freeze; raise the hold limit if it passed",
    ),
    Code.VETOED: ("a participant refused the freeze", "the text names the participant"),
    Code.BLOCKED: (
        "the method is blocked by the agent's configuration",
        "change allow-rpcs or block-rpcs in the guest",
    ),
    Code.AUDIT_FULL: (
        "the ring that keeps audit records during a freeze is full",
        "thaw; only the essential methods are admitted until then",
    ),
    Code.FAILED: ("the operating system refused", "the text names the path and the errno"),
}


NO_MORE = "no more threads or processes; raise pids.max (TasksMax) or the limit of processes"


class VirtagentError(Exception):
    """Whatever goes wrong between a host and an agent."""


class Fault(VirtagentError):
    """An error reply: a code and one sentence for an operator.

    `text` says which mount or path, which errno and what was undone.
    """

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text

    def __str__(self) -> str:
        return f"{self.text} [{self.code.name} {self.code.value}]"


def failed(error: OSError, doing: str) -> Fault:
    """Return fault FAILED for an error of the operating system while `doing` (a verb and a path)."""
    name = errno.errorcode.get(error.errno or 0, "errno 0")
    return Fault(Code.FAILED, f"{doing}: {error.strerror} ({name})")


def no_more(error: Exception) -> OSError | None:
    """Return the error in words if it says that the system has no more threads or processes to give, else None.

    fork(2) answers EAGAIN then, at RLIMIT_NPROC, pids.max or threads-max; of a thread Python says only RuntimeError.
    """
    thread = isinstance(error, RuntimeError) and "start new thread" in str(error)
    return OSError(errno.EAGAIN, NO_MORE) if thread or isinstance(error, BlockingIOError) else None


def from_number(code: int, text: str) -> Fault:
    """Return the fault with that number; INTERNAL if no fault has it, which is a defect of the sender."""
    try:
        return Fault(Code(code), text)
    except ValueError:
        return Fault(Code.INTERNAL, text)


def reported_by_other(code: int, text: str) -> Fault:
    """Return the fault that the other side reported; FAILED, with the number in its text, if this side is too old."""
    try:
        return Fault(Code(code), text)
    except ValueError:
        return Fault(Code.FAILED, f"{text} (fault {code}, which this client is too old to name)")
