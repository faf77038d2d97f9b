"""URLs, and the ways behind them: Firecracker's socket, libvirt-python (of the test's making), a stock qemu-ga."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from xmlrpc import client as xmlrpc

import pytest
from fakes.agent_socket import GUEST_INFO, FakeAgent, introduce, json_line, read_line
from virtagent.agent.api.errors import Code, Fault
from virtagent.host import (
    Agent,
    AsyncAgent,
    BadReply,
    FreezeBroken,
    HostError,
    Lost,
    TimedOut,
    Unreachable,
    Unsendable,
    Unsupported,
)
from virtagent.host.transports import Endpoint, parse


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("unix:/a", Endpoint("unix:/a", socket.AF_UNIX, "/a")),
        ("vsock:3:1024", Endpoint("vsock:3:1024", socket.AF_VSOCK, (3, 1024))),
        ("firecracker:/v:s:52", Endpoint("firecracker:/v:s:52", socket.AF_UNIX, "/v:s", b"CONNECT 52\n")),
        ("libvirt:vm 1", Endpoint("libvirt:vm 1", domain="vm 1")),
        (
            "libvirt:vm?connect=qemu+ssh://h/system?no_verify=1",
            Endpoint(
                "libvirt:vm?connect=qemu+ssh://h/system?no_verify=1",
                domain="vm",
                connect="qemu+ssh://h/system?no_verify=1",
            ),
        ),
        ("qemu-ga:unix:/q", Endpoint("qemu-ga:unix:/q", socket.AF_UNIX, "/q", stock=True)),
    ],
)
def test_a_url(url: str, endpoint: Endpoint) -> None:
    parsed = parse(url)
    assert (parsed.url, parsed.family, parsed.address, parsed.hello) == (
        url,
        endpoint.family,
        endpoint.address,
        endpoint.hello,
    )
    assert (parsed.domain, parsed.connect, parsed.stock) == (endpoint.domain, endpoint.connect, endpoint.stock)


@pytest.mark.parametrize(
    ("url", "wrong"),
    [
        ("tcp:1", "no agent's URL"),
        ("vsock:3", "port"),
        ("vsock:x:1", "'x' for the CID"),
        ("vsock:3:4294967295", "port"),
        ("vsock:-1:1", "CID"),
        ("vsock:3:1:2", "port"),
        ("firecracker:/v", "port"),
        ("firecracker::5", "names no socket"),
        ("libvirt:", "names no domain"),
        ("libvirt:vm?", "after the domain"),
        ("libvirt:vm?connect=", "after the domain"),
        ("libvirt:vm?uri=x", "after the domain"),
        ("qemu-ga:/q", "qemu-ga:unix:PATH"),
        ("qemu-ga:qemu-ga:unix:/q", "qemu-ga:unix:PATH"),
        ("qemu-ga:unix:", "names no socket"),
    ],
)
def test_a_bad_url_says_what_is_wrong(url: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        parse(url)


# -- both ways of waiting


def sync_do(url: str, do: Callable[[Any], Any], **options: Any) -> Any:
    with Agent(url, **options) as agent:
        return do(agent)


def async_do(url: str, do: Callable[[Any], Any], **options: Any) -> Any:
    async def run() -> Any:
        async with AsyncAgent(url, **options) as agent:
            return await do(agent)

    return asyncio.run(run())


both = pytest.mark.parametrize("use", [sync_do, async_do])
Use = Callable[..., Any]


@both
def test_every_call_has_its_time(tmp_path: Path, use: Use) -> None:
    def silent(sock: socket.socket) -> None:
        introduce(sock)
        while read_line(sock):
            pass

    with FakeAgent(tmp_path / "a", script=silent) as fake, pytest.raises(TimedOut):
        use(fake.url, lambda agent: agent.ping(), timeout=0.2)
    with pytest.raises(Unreachable, match="No such file"):
        use(fake.url + "x", lambda agent: agent.ping())


@both
def test_a_large_reply_and_a_closing_guest(tmp_path: Path, use: Use) -> None:
    text = "x" * (3 << 20)
    with FakeAgent(tmp_path / "a", lambda method, params: text) as fake:
        assert use(fake.url, lambda agent: agent.call("va.x")) == text
    with FakeAgent(tmp_path / "b", script=lambda sock: None) as fake, pytest.raises(Lost):
        use(fake.url, lambda agent: agent.ping())


@both
def test_a_listener_without_room_is_tried_until_the_time_is_up(tmp_path: Path, use: Use) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(tmp_path / "a"))
        listener.listen(0)
        first.connect(str(tmp_path / "a"))
        with pytest.raises(Unreachable, match="none within"):
            use(f"unix:{tmp_path}/a", lambda agent: agent.ping(), connect_timeout=0.05)


@both
def test_a_vsock_port_where_nobody_listens(use: Use) -> None:
    with pytest.raises(Unreachable, match="no connection to vsock:1:9"):
        use("vsock:1:9", lambda agent: agent.ping(), connect_timeout=0.1)


@both
def test_firecracker(tmp_path: Path, use: Use) -> None:
    ports: list[bytes] = []

    def script(sock: socket.socket) -> None:
        ports.append(read_line(sock))
        sock.sendall(b"OK 1073741824\n")
        fake._serve(sock)

    with FakeAgent(tmp_path / "v", lambda method, params: "dummy", script) as fake:
        assert use(f"firecracker:{tmp_path}/v:52", lambda agent: agent.ping()) == "dummy"
    assert ports == [b"CONNECT 52\n"]


# -- a stock qemu-ga


class Stock:
    """What a qemu-ga answers."""

    def __init__(self) -> None:
        self.frozen = False

    def __call__(self, method: str, params: list[Any]) -> Any:
        match method:
            case "guest-info":
                commands = [{"name": "guest-ping", "enabled": True}, {"name": "guest-exec", "enabled": False}]
                return {"version": "7.2.0", "supported_commands": commands}
            case "guest-ping":
                return {}
            case "guest-fsfreeze-status":
                return "frozen" if self.frozen else "thawed"
            case "guest-fsfreeze-freeze" | "guest-fsfreeze-freeze-list":
                self.frozen = True
                return 2
            case "guest-fsfreeze-thaw":
                was, self.frozen = self.frozen, False
                return 2 if was else 0
        raise xmlrpc.Fault(1, f"The command {method} has not been found")


@pytest.fixture(params=["unix", "qemu-ga:unix"])
def stock(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[FakeAgent, str]]:
    with FakeAgent(tmp_path / "q", Stock(), stock=True) as fake:
        yield fake, f"{request.param}:{tmp_path}/q"


@both
def test_a_stock_agent_does_what_it_can(stock: tuple[FakeAgent, str], use: Use) -> None:
    _, url = stock
    assert use(url, lambda agent: agent.ping()) == "dummy"
    able = use(url, lambda agent: agent.capabilities())
    assert (able.version, able.methods) == ("stock qemu-ga 7.2.0", ("guest-ping",))
    assert use(url, lambda agent: agent.freeze(["/srv/a"])) == 2
    status = use(url, lambda agent: agent.status())
    assert (status.state, status.code, status.freeze_id, status.hold_left, status.stock) == ("FROZEN", 2, -1, -1, True)
    assert use(url, lambda agent: agent.state()) == 2
    assert use(url, lambda agent: agent.thaw()) == 2
    assert use(url, lambda agent: agent.call("guest-ping")) == {}
    with pytest.raises(Fault, match="guest-x"):
        use(url, lambda agent: agent.call("guest-x", {"a": 1}))
    with pytest.raises(Unsendable):
        use(url, lambda agent: agent.call("guest-x", 1))


@pytest.mark.parametrize(
    ("do", "why"),
    [
        (lambda a: a.plan(), "va.fsplan is not known"),
        (lambda a: a.hold(5), "va.fshold is not known"),
        (lambda a: a.sync(), "va.fssync is not known"),
        (lambda a: a.status(since=1), "cannot wait"),
        (lambda a: a.freeze(hold_limit=5), "hold limit"),
        (lambda a: a.freeze(["/srv/*"]), "globs"),
        (lambda a: a.freeze(exclude=["/srv"]), "exclude"),
        (lambda a: a.freeze(strict=True), "strict"),
        (lambda a: a.thaw(freeze_id=3), "does not number"),
    ],
)
def test_what_a_stock_agent_cannot_do_is_said_and_not_asked(
    stock: tuple[FakeAgent, str], do: Callable[[Agent], Any], why: str
) -> None:
    fake, url = stock
    with Agent(url) as agent:
        agent.ping()
        while not fake.asked.empty():
            fake.asked.get()
        with pytest.raises(Unsupported, match=why):
            do(agent)
        assert fake.asked.empty()


def test_frozen_on_a_stock_agent(stock: tuple[FakeAgent, str]) -> None:
    _, url = stock
    with Agent(url) as agent:
        with agent.frozen(["/srv/a"], extend=True) as freeze:
            assert (freeze.count, freeze.freeze_id) == (2, -1)
        assert freeze.broken is None
        with pytest.raises(FreezeBroken), agent.frozen():
            agent.thaw()


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("guest-info", 1),
        ("guest-info", {"version": 1}),
        ("guest-fsfreeze-status", "melting"),
        ("guest-fsfreeze-status", 1),
        ("guest-fsfreeze-thaw", -1),
        ("guest-fsfreeze-thaw", True),
        ("guest-fsfreeze-freeze", "2"),
    ],
)
def test_a_stock_agent_is_not_trusted(tmp_path: Path, method: str, answer: Any) -> None:
    asking = {
        "guest-info": lambda a: a.capabilities(),
        "guest-fsfreeze-status": lambda a: a.status(),
        "guest-fsfreeze-thaw": lambda a: a.thaw(),
        "guest-fsfreeze-freeze": lambda a: a.freeze(),
    }
    with (
        FakeAgent(tmp_path / "q", lambda m, p: answer if m == method else Stock()(m, p), stock=True) as fake,
        Agent(f"qemu-ga:{fake.url}") as agent,
        pytest.raises(BadReply),
    ):
        asking[method](agent)


# -- libvirt


class LibvirtError(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code, self.text = code, text

    def get_error_code(self) -> int:
        return self.code

    def get_error_message(self) -> str:
        return self.text


class Libvirt:
    """The two modules of libvirt-python, as far as they are used, over an agent of ours."""

    def __init__(self) -> None:
        self.opened: list[str | None] = []
        self.closed = 0
        self.timeouts: list[int] = []
        self.error: Exception | None = None
        self.hangs: threading.Event | None = None
        self.libvirt: Any = ModuleType("libvirt")
        self.qemu: Any = ModuleType("libvirt_qemu")
        self.libvirt.libvirtError = LibvirtError
        self.libvirt.VIR_ERR_NO_DOMAIN, self.libvirt.VIR_ERR_AGENT_UNRESPONSIVE = 42, 86
        self.libvirt.open = self.open
        self.libvirt.registerErrorHandler = self.handle
        self.handler: Any = None
        self.alive, self.dies = True, False
        self.open_error: Exception | None = None
        self.qemu.qemuAgentCommand = self.command

    def handle(self, handler: Any, context: Any) -> None:
        self.handler = handler

    def getLibVersion(self) -> int:
        if not self.alive:
            raise LibvirtError(38, "Cannot write data: Broken pipe")
        return 9000000

    def open(self, uri: str | None) -> Any:
        self.opened.append(uri)
        if self.open_error:
            raise self.open_error
        self.alive = True
        return self

    def lookupByName(self, name: str) -> Any:
        if name != "vm":
            raise LibvirtError(42, f"Domain not found: no domain with matching name '{name}'")
        return self

    def close(self) -> None:
        self.closed += 1
        if not self.alive:
            raise LibvirtError(38, "Cannot recv data: Connection reset by peer")

    def command(self, domain: Any, text: str, timeout: int, flags: int) -> str:
        assert (domain, flags) == (self, 0)
        self.timeouts.append(timeout)
        self.alive = self.alive and not self.dies
        self.dies = False
        if not self.alive:
            raise LibvirtError(38, "Cannot recv data: Connection reset by peer")
        request = json.loads(text)
        if request["execute"] == "guest-info":
            return json_line({"return": GUEST_INFO, "id": request["id"]}).decode()
        if self.hangs:
            self.hangs.wait(10)
        if self.error:
            raise self.error
        return json_line({"return": "dummy", "id": request["id"]}).decode()


@pytest.fixture
def libvirt(monkeypatch: pytest.MonkeyPatch) -> Libvirt:
    made = Libvirt()
    monkeypatch.setitem(sys.modules, "libvirt", made.libvirt)
    monkeypatch.setitem(sys.modules, "libvirt_qemu", made.qemu)
    return made


@both
def test_libvirt_passes_commands_on(libvirt: Libvirt, use: Use) -> None:
    assert use("libvirt:vm?connect=test:///x", lambda agent: agent.ping(), timeout=7) == "dummy"
    assert libvirt.opened == ["test:///x"]
    assert libvirt.timeouts == [7, 7]


@both
@pytest.mark.parametrize(
    ("error", "raised", "words"),
    [
        (
            LibvirtError(1, "internal error: unable to execute QEMU agent command 'va.ping': the hold: passed"),
            Fault,
            "^the hold: passed",
        ),
        (LibvirtError(86, "Guest agent is not responding"), TimedOut, "no answer"),
        (LibvirtError(38, "cannot write"), Lost, "cannot write"),
    ],
)
def test_errors_of_libvirt(libvirt: Libvirt, use: Use, error: Exception, raised: type[Exception], words: str) -> None:
    libvirt.error = error
    with pytest.raises(raised, match=words) as info:
        use("libvirt:vm", lambda agent: agent.ping())
    if isinstance(info.value, Fault):
        assert info.value.code is Code.FAILED


@both
def test_a_broken_freeze_is_known_behind_libvirt(libvirt: Libvirt, use: Use) -> None:
    """By the sentence: libvirt drops the code. The sentence is the agent's own."""
    sentence = "freeze 3 was broken: the hold limit of 8 s passed"
    libvirt.error = LibvirtError(1, f"internal error: unable to execute QEMU agent command 'va.fsthaw': {sentence}")
    with pytest.raises(Fault, match=f"^{sentence}") as info:
        use("libvirt:vm", lambda agent: agent.thaw())
    assert info.value.code is Code.FREEZE_BROKEN


@both
def test_a_domain_that_is_not_there(libvirt: Libvirt, use: Use) -> None:
    with pytest.raises(Unreachable, match="no domain with matching name 'x'"):
        use("libvirt:x", lambda agent: agent.ping())


@both
def test_a_libvirtd_that_is_not_there(libvirt: Libvirt, use: Use) -> None:
    libvirt.open_error = LibvirtError(38, "Failed to connect socket to '/x': No such file or directory")
    with pytest.raises(Unreachable, match="Failed to connect socket"):
        use("libvirt:vm", lambda agent: agent.ping())


def test_a_libvirtd_that_was_started_again_is_connected_to_again(libvirt: Libvirt) -> None:
    with Agent("libvirt:vm") as agent:
        assert agent.ping() == "dummy"
        libvirt.alive = False
        assert agent.ping() == "dummy"
    assert len(libvirt.opened) == 2


def test_a_libvirtd_that_ends_during_a_call_is_connected_to_again(libvirt: Libvirt) -> None:
    with Agent("libvirt:vm") as agent:
        assert agent.ping() == "dummy"
        libvirt.dies = True
        with pytest.raises(Lost, match="reset by peer"):
            agent.ping()
        assert agent.ping() == "dummy"
    assert len(libvirt.opened) == 2


@both
def test_libvirt_prints_nothing_of_its_own(libvirt: Libvirt, use: Use, capfd: pytest.CaptureFixture[str]) -> None:
    use("libvirt:vm", lambda agent: agent.ping())
    libvirt.handler(None, (38, "what it prints without a handler"))
    assert capfd.readouterr() == ("", "")


@both
def test_libvirt_that_hangs_ends_in_time(libvirt: Libvirt, use: Use) -> None:
    libvirt.hangs = threading.Event()
    with pytest.raises(TimedOut):
        use("libvirt:vm", lambda agent: agent.ping(), timeout=0.2)
    libvirt.hangs.set()


@both
def test_without_libvirt_python_one_sentence_says_what_to_install(use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libvirt", None)
    with pytest.raises(HostError, match=r"install virtagent\[libvirt\]"):
        use("libvirt:vm", lambda agent: agent.ping())
