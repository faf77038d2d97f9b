"""virtagentctl relay on another host, by ssh: its process, and the records that are exchanged with it.

OpenSSH carries, with the user's keys and configuration and without a question to anybody. The far end thaws when its
standard input ends, so whoever closes this, or dies, leaves nothing frozen there. What it says is bounded and checked:
a hypervisor is trusted with its guests, and not with this host's memory.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import math
import os
import shlex
import socket
import subprocess
from typing import Any

from ..agent.api.errors import Fault
from ..agent.wire import json_values
from .errors import BadReply, HostError, Lost, TimedOut, Unreachable, Unsendable
from .processes import end, gone
from .transports import AGENTS_MAX, RECORD_MAX, Far, parse

ANSWER_MAX = 8 << 20  # bytes of one line, as of a guest's answer
TIME_MAX = 1e11  # seconds since the epoch
STDERR_MAX = 4096  # bytes that are kept, the last ones
CONNECT_SECONDS = 60.0  # until the first answer; nothing is frozen yet, and a busy host starts slowly
LEAVE_SECONDS = 5.0  # that the far end has to thaw and leave when its input has ended
_OPTIONS = (
    *("-T", "-x", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10"),
    *("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"),
)


def command(far: Far) -> list[str]:
    """Return the command that starts the relay there: $VIRTAGENT_SSH is ssh, $VIRTAGENT_RELAY what it runs."""
    ssh = shlex.split(os.environ.get("VIRTAGENT_SSH") or "ssh")
    port = ["-p", str(far.port)] if far.port else []
    relay = os.environ.get("VIRTAGENT_RELAY") or "virtagentctl relay"
    return [*ssh, *_OPTIONS, *port, "--", far.host, relay]


def spawn(far: Far) -> tuple[socket.socket, subprocess.Popen[bytes] | None]:
    """Start ssh; return the socket that is its standard input and output. Raises Unreachable if there is none."""
    words = command(far)
    try:
        ours, theirs = socket.socketpair()
    except OSError as error:
        raise Unreachable(f"no connection to {far.name} ({error.strerror}); allow more open files") from None
    number = theirs.fileno()
    try:
        # A session of its own: a Ctrl-C is for whoever thaws, and not for what carries the thaw.
        process = subprocess.Popen(words, stdin=number, stdout=number, stderr=subprocess.PIPE, start_new_session=True)
    except OSError as error:
        ours.close()
        advice = "install ssh" if isinstance(error, FileNotFoundError) else "see that it can be started"
        raise Unreachable(f"no connection to {far.name} ({words[0]}: {error.strerror}); {advice}") from None
    finally:
        theirs.close()
    return ours, process


class Remote:
    """A relay on another host, for one event loop: `open` it, `ask` it, `close` it."""

    def __init__(self, far: Far) -> None:
        self._far = far
        self._process: subprocess.Popen[bytes] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._listening: asyncio.Future[None] | None = None
        self._pending: collections.deque[asyncio.Future[Any]] = collections.deque()
        self._clocks: collections.deque[asyncio.Future[Any]] = collections.deque()
        self._called: dict[int, asyncio.Future[Any]] = {}
        self._calls = 0
        self._said = b""
        self._heard = False
        self._failure: HostError | None = None
        self.late = False
        """Whether an answer of the relay's own did not come in time."""

    @property
    def open(self) -> bool:
        """Whether the relay can be asked."""
        return self._writer is not None and self._failure is None

    async def start(self) -> None:
        """Start ssh. Raises Unreachable if there is none."""
        ours, self._process = spawn(self._far)
        if self._process is not None:
            assert self._process.stderr is not None
            os.set_blocking(self._process.stderr.fileno(), False)
            asyncio.get_running_loop().add_reader(self._process.stderr.fileno(), self._hear_stderr)
        reader, self._writer = await asyncio.open_connection(sock=ours, limit=ANSWER_MAX)
        self._listening = asyncio.ensure_future(self._listen(reader))

    async def ask(self, within: float, **record: Any) -> dict[str, Any]:
        """Return the answer to a record; raise a HostError, also if it is `{"error": ...}`."""
        return await self._exchange(self._pending, record, within)

    async def clock(self, within: float) -> float:
        """Return the time of day there."""
        answer = await self._exchange(self._clocks, {"clock": {}}, within)
        match answer:
            case {"clock": {"now": float(now) | int(now)}} if not isinstance(now, bool) and 0 < now < TIME_MAX:
                return float(now)
        raise self._fail(BadReply(f"{self._far.name} answered no time; see that virtagent is of one version there"))

    async def agents(self, within: float) -> list[str]:
        """Return which of its agents are meant, one by one, as they are called there."""
        those = {"agents": list(self._far.agents)} if self._far.agents else {}
        answer = await self.ask(within, list=those)
        match answer.get("agents"):
            case [_, *_] as found if len(found) <= AGENTS_MAX and all(isinstance(one, str) for one in found):
                with contextlib.suppress(ValueError):
                    fars = [parse(self._far.guest(one)).far for one in found]
                    if all(far is not None and far.agents == (one,) for far, one in zip(fars, found, strict=True)):
                        return [str(one) for one in found]
        raise self._fail(
            BadReply(f"{self._far.name} answered no list of agents; see that virtagent is of one version there")
        )

    async def call(self, agent: str, text: str, within: float, most: int | None = None) -> str:
        """Return the answer of one of its agents to a command in JSON; any number may be under way at the same time.

        The relay passes on no answer of over `most` characters. Raises Unsendable if it would not take the command.
        """
        self._calls += 1
        number, reply = self._calls, asyncio.get_running_loop().create_future()
        self._called[number] = reply
        try:
            bound = {} if most is None else {"most": most}
            record = {"call": {"id": number, "agent": agent, "text": text, "within": within, **bound}}
            if len(json.dumps(record)) > RECORD_MAX:
                raise Unsendable(
                    f"a command of over {RECORD_MAX} bytes cannot be sent through a relay; send it in parts"
                )
            self._send(record)
            answer = await self._wait(reply, within + 1, "a call")
        finally:
            self._called.pop(number, None)
        match answer:
            case {"text": str(said)}:
                return said
            case {"error": str(why), "kind": str(kind)}:
                kinds = {"Unreachable": Unreachable, "TimedOut": TimedOut, "BadReply": BadReply}
                raise kinds.get(kind, Lost)(f"{self._far.name}: {why}")
        raise self._fail(BadReply(f"{self._far.name} answered a call with neither text nor error"))

    async def _exchange(
        self, waiting: collections.deque[asyncio.Future[Any]], record: dict[str, Any], within: float
    ) -> dict[str, Any]:
        reply = asyncio.get_running_loop().create_future()
        what = next(iter(record))
        self._send(record)
        waiting.append(reply)
        try:
            answer: dict[str, Any] = await self._wait(reply, within, what)
        except TimedOut:
            self.late = True
            raise
        if isinstance(why := answer.get("error"), str):
            raise BadReply(f"{self._far.name} refused {what}: {why[:400]}")
        return answer

    def _send(self, record: dict[str, Any]) -> None:
        if self._failure is not None:
            raise self._failure
        assert self._writer is not None, "not started"
        self._writer.write(json.dumps(record).encode() + b"\n")

    async def _wait(self, reply: asyncio.Future[Any], within: float, what: str) -> Any:
        await asyncio.wait([reply], timeout=None if math.isinf(within) else within)
        if not reply.done():
            # Its place is kept, so that a late answer is not taken for that of another record.
            raise TimedOut(f"{self._far.name} did not answer {what} within {within:g} s")
        return reply.result()

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                line = await reader.readuntil(b"\n")
                if (wrong := self._take(line)) is not None:
                    self._fail(BadReply(f"{self._far.name} {wrong}; see that virtagent is of one version there"))
                    return
        except asyncio.LimitOverrunError:
            self._fail(BadReply(f"{self._far.name} sent a line of over {ANSWER_MAX} bytes; it was hung up on"))
        except (asyncio.IncompleteReadError, OSError):
            await self._explain()

    def _take(self, line: bytes) -> str | None:
        """Give an answer to whoever waits for it; return what is wrong with it."""
        try:
            answer = json_values.load(line, lone_surrogates=True)
        except (Fault, RecursionError):
            return f"sent {line[:60]!r}, which is no JSON"
        if not isinstance(answer, dict) or not answer:
            return "sent a line that is no record"
        self._heard = True
        if isinstance(called := answer.get("called"), dict):
            reply = self._called.get(called.get("id", -1)) if isinstance(called.get("id"), int) else None
            if reply is not None and not reply.done():
                reply.set_result(called)
            return None
        waiting = self._clocks if "clock" in answer else self._pending
        if not waiting:
            return "answered what it was not asked"
        if not (reply := waiting.popleft()).done():
            reply.set_result(answer)
        return None

    async def _explain(self) -> None:
        """Say why the connection has ended, in ssh's own words."""
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(OSError):  # no descriptor is left: what it has said by now must do
                watched = os.pidfd_open(self._process.pid)
                try:
                    await gone(watched, 1.0)
                finally:
                    os.close(watched)
        self._hear_stderr()
        lines = [line.strip() for line in self._said.decode(errors="backslashreplace").splitlines() if line.strip()]
        why = lines[-1][:400] if lines else f"{command(self._far)[0]} ended"
        if self._heard:
            self._fail(Lost(f"{self._far.name}: the relay there has ended ({why})"))
        else:
            advice = "see that `ssh` gets there without a question, and that virtagentctl is installed there"
            self._fail(Unreachable(f"no connection to {self._far.name} ({why}); {advice}"))

    def _fail(self, error: HostError) -> HostError:
        """Have all that wait, and all later ones, get this error."""
        if self._failure is None:
            self._failure = error
            if self._writer is not None:
                self._writer.close()  # so that the far end thaws
        for reply in (*self._pending, *self._clocks, *self._called.values()):
            if not reply.done():
                reply.set_exception(self._failure)
                reply.exception()  # whoever gave up does not fetch it
        self._pending.clear()
        self._clocks.clear()
        return self._failure

    def _hear_stderr(self) -> None:
        if self._process is None or self._process.stderr is None:
            return
        try:
            data = os.read(self._process.stderr.fileno(), 1 << 16)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            data = b""
        self._said = (self._said + data)[-STDERR_MAX:]
        if not data:
            with contextlib.suppress(ValueError):
                asyncio.get_running_loop().remove_reader(self._process.stderr.fileno())

    async def close(self) -> None:
        """End the input there, which thaws, and wait until ssh has ended."""
        if self._failure is None:
            self._fail(Lost(f"{self._far.name}: the connection was closed"))
        try:
            if self._process is not None and self._process.poll() is None:
                try:
                    watched = os.pidfd_open(self._process.pid)
                except OSError:  # no descriptor is left to wait with
                    self._process.kill()
                    return
                try:
                    if not await gone(watched, LEAVE_SECONDS):
                        await end(self._process.pid, watched)
                finally:
                    os.close(watched)
                    self._process.poll()
        finally:
            if self._listening is not None:
                self._listening.cancel()
                await asyncio.wait([self._listening])
            if self._writer is not None:
                with contextlib.suppress(OSError):
                    await self._writer.wait_closed()
            if self._process is not None and self._process.stderr is not None and not self._process.stderr.closed:
                asyncio.get_running_loop().remove_reader(self._process.stderr.fileno())
                self._process.stderr.close()
