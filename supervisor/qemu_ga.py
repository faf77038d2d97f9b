"""virtagent-qemu-ga: virtagentd with the command line of qemu-ga, to replace it.

The options and the key file of qemu-ga are translated into options of virtagentd. Options that only virtagentd has are
in virtagentd.conf, or in the file that VIRTAGENT_CONF names.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import sys
from collections.abc import Callable, Mapping, Sequence

from ..agent.api import qemu
from ..agent.api.methods import RPCS
from . import ga_options, state_dir, taking_part
from .config import BESIDE, CONFIG_FILE, BadConfig, Config, build, read_file
from .ga_options import METHODS, STATE, BadUsage, Settings, load, usage
from .io import journal, process
from .io.log_writer import have_nothing_at
from .io.ours import why_not_ours
from .main import ensure_fd, put, serve


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the agent; return its exit code: 0 and 1 as in qemu-ga, 2 for what only virtagentd refuses."""
    for fd in range(3):
        ensure_fd(fd)
    try:
        settings, asked = load(sys.argv[1:] if arguments is None else arguments, os.environ)
        if asked:
            return put(_answer(settings, asked, os.environ))
        config, notes = configure(settings, os.environ)
    except BadUsage as error:
        if error.options:
            put("Unknown option, try 'virtagent-qemu-ga --help' for more information.\n")
        return _say(str(error), 1)
    except BadConfig as error:
        return _say(str(error), 2)
    if settings.daemon:
        return daemonize(settings, config, notes)
    # As qemu-ga, only a daemon leaves the folder: guest-file-open and guest-exec take relative paths from there.
    return serve(config, process.System(), notes=notes, folder=None)


def _answer(settings: Settings, asked: str, environment: Mapping[str, str]) -> str:
    """Return what to print; raise BadConfig if it depends on virtagentd.conf, which cannot be read."""
    if asked == "help":
        return usage()
    version = settings.qga_version or _configured_version(environment)
    match asked:
        case "version":
            return f"QEMU Guest Agent {version}\n"
        case "rpcs":
            since = qemu.version(version)
            return "".join(f"{row.name}\n" for row in RPCS.values() if row.public and row.since <= since)
    return settings.dump(version)


def _configured_version(environment: Mapping[str, str]) -> str:
    from_file, _ = _read(environment.get("VIRTAGENT_CONF") or CONFIG_FILE, needed=False)
    return from_file.get("qga-version", [qemu.NEWEST])[-1]


def configure(settings: Settings, environment: Mapping[str, str]) -> tuple[Config, list[str]]:
    """Return the configuration, and notes about it for the log. Raises BadUsage, BadConfig."""
    path = environment.get("VIRTAGENT_CONF") or CONFIG_FILE
    from_file, there = _read(path, needed="VIRTAGENT_CONF" in environment)
    notes: list[str] = []
    given = {"channel": [_channel(settings)]}
    if settings.statedir != STATE or "state-dir" not in from_file:
        try:
            folder, note = state_dir.place(settings.statedir)
        except state_dir.NoPlace as error:
            raise BadConfig(str(error)) from None
        given["state-dir"] = [folder]
        notes += [note] if note else []
    if settings.logfile is not None:
        given["log-target"] = [f"file:{os.path.abspath(settings.logfile)}"]
    elif settings.daemon:
        given["log-target"] = ["syslog"]  # a daemonized process has no stderr
    if settings.qga_version:
        given["qga-version"] = [settings.qga_version]
    if settings.hook is not None:
        usual = settings.hook == ga_options.HOOK
        given["hook"] = [taking_part.HOOK if usual else os.path.abspath(settings.hook) if settings.hook else ""]
    if settings.verbose:
        given["log-level"] = ["debug"]
    for option, names, name in (("block-rpcs", settings.block, BESIDE), ("allow-rpcs", settings.allow, "allow-rpcs")):
        if known := _known(option, names, notes):
            given[name] = [",".join(known)]
    config = build(given, from_file, (os.path.abspath(path), there))
    if settings.daemon and not journal.in_memory(os.path.dirname(os.path.abspath(settings.pidfile))):
        notes.append(f"pidfile {settings.pidfile} is not on tmpfs: the start waits if its file system is frozen")
    return config, notes


def _read(path: str, *, needed: bool) -> tuple[dict[str, list[str]], bool]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return read_file(file.read(), path), True
    except FileNotFoundError as error:
        if needed:
            raise BadConfig(f"config {path}: {error.strerror}") from None
        return {}, False
    except OSError as error:
        raise BadConfig(f"config {path}: {error.strerror}") from None


def _channel(settings: Settings) -> str:
    method, path = settings.method or "", settings.path or ""
    if method not in METHODS:
        raise BadUsage(f"unsupported channel method/type: {method}")
    if method == "vsock-listen":
        cid, colon, port = path.partition(":")
        if not colon or not cid.removeprefix("-").isdecimal():
            raise BadUsage(f"error parsing address '{path}'")
        return f"vsock:{port}"
    return f"{METHODS[method]}:{os.path.abspath(path)}"


def _known(option: str, names: Sequence[str], notes: list[str]) -> list[str]:
    """Return the names that virtagentd knows. qemu-ga ignores others; but an empty list would allow everything."""
    found: list[str] = []
    for name in filter(None, names):
        if name in RPCS and RPCS[name].public:
            found.append(name)
        else:
            notes.append(f"{option}: there is no RPC {name!r:.80}")
    if option == "allow-rpcs" and names and not found:
        raise BadUsage(f"allow-rpcs: none of {','.join(names)!r:.200} is here, so that nothing would be allowed")
    return list(dict.fromkeys(found))


def daemonize(settings: Settings, config: Config, notes: Sequence[str]) -> int:
    """Serve in a process without a terminal, in a new session; return in the caller when it is ready or has failed."""
    read, write = os.pipe()
    if os.fork():
        os.close(write)
        set_up = os.read(read, 1)
        os.wait()
        return 0 if set_up else 1
    os.close(read)
    os.setsid()
    if os.fork():
        os._exit(0)
    path = os.path.abspath(settings.pidfile)
    try:
        _lock_pid_file(path)
    except OSError as error:
        return _say(f"pidfile {path}: {error.strerror}", 1)
    try:
        return serve(config, process.System(), notes=notes, ready=_detach(write))
    finally:
        with contextlib.suppress(OSError):  # somebody has removed it, or its file system is read-only by now
            os.unlink(path)


def _lock_pid_file(path: str) -> None:
    """Write the pid file and lock it for the life of this process. Raises OSError, EAGAIN if another process has it."""
    if wrong := why_not_ours(path):
        raise OSError(errno.EPERM, f"{wrong}; anybody there could name another process in it")
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    about = os.fstat(fd)
    if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid() or about.st_nlink > 1:
        raise OSError(errno.EPERM, "it is there already, and is not ours")
    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.ftruncate(fd, 0)
    os.write(fd, f"{os.getpid()}\n".encode())


def _detach(write: int) -> Callable[[], None]:
    def detach() -> None:
        have_nothing_at(0, 1, 2)
        os.write(write, b".")
        os.close(write)

    return detach


def _say(text: str, code: int) -> int:
    if sys.stderr is not None:
        sys.stderr.write(f"virtagent-qemu-ga: {text}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
