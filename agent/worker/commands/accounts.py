"""guest-set-user-password and guest-ssh-*-authorized-keys.

The keys of a user are read and written with the rights of that user only, as sshd reads them. The agent is root and
the folder is the user's; so whatever the user puts there (a link to /etc/shadow, a FIFO, a mount) leads to nothing
that the user could not reach. Links that the user may follow are followed, and homes on a server that does not trust
root work; but no link of procfs, and no file there: /proc/self is this process, which is root's whoever it acts for.
The cost: a home that only root may enter is refused. Files are opened without waiting, read up to a size, and replaced
by renaming in a folder that is held open, so that sshd never sees half of one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import signal
import stat
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Any

from ...api.errors import Code, Fault
from .. import kernel, programs
from ..base64_codec import from_base64, octets
from ..links import open_plain

if TYPE_CHECKING:
    from ..context import Args, Worker

KEYS_MAX = 16 << 20  # bytes of an authorized_keys
_ABSENT = (errno.ENOENT, errno.ENOTDIR)
_NAME = "authorized_keys"


def set_user_password(worker: Worker, args: Args, *, program: str = "chpasswd") -> dict[str, Any]:
    """Set the password of `username` with chpasswd(8); `password` is base64, and if `crypted` a hash of crypt(3).

    It goes through a pipe, since arguments are public. Raises Fault: PARAMS for what chpasswd could misunderstand,
    FAILED if chpasswd is missing or refuses, with what it said.
    """
    password, username = from_base64(args["password"]), octets(args["username"])
    if b"\n" in password or b"\0" in password:
        raise Fault(Code.PARAMS, "forbidden characters in raw password")
    if b"\n" in username or b":" in username:
        raise Fault(Code.PARAMS, "forbidden characters in username")
    # Not shutil.which: that module costs the supervisor and every worker 0.7 MiB.
    paths = (os.path.join(folder, program) for folder in os.get_exec_path())
    path = next((path for path in paths if os.access(path, os.X_OK)), None)
    if path is None:
        raise Fault(Code.FAILED, f"cannot find '{program}' program in PATH")
    worker.title(f"setting the password of {args['username']}")
    command = [path, *(["-e"] if args["crypted"] else [])]
    code, said = programs.run(command, b"%b:%b\n" % (username, password))
    if code < 0:
        raise Fault(Code.FAILED, f"child process has terminated abnormally: signal {-code}")
    if code:
        raise Fault(Code.FAILED, f"child process has failed to set user password: {said or f'exit status {code}'}")
    return {}


Lookup = Callable[[str], pwd.struct_passwd]


def ssh_get_authorized_keys(_worker: Worker, args: Args, *, lookup: Lookup = pwd.getpwnam) -> dict[str, list[str]]:
    """Return the keys of `username` without comments and empty lines, in qemu-ga's order: the last line first.

    Raises Fault FAILED if there is no such user or the file cannot be read.
    """
    user = _user(args["username"], lookup)
    with _rights_of(user):
        lines = [line.strip() for line in _read(_Place(user))]
    keys = [line.decode(errors="replace") for line in reversed(lines) if line and not line.startswith(b"#")]
    return {"keys": keys}


def ssh_add_authorized_keys(_worker: Worker, args: Args, *, lookup: Lookup = pwd.getpwnam) -> dict[str, Any]:
    """Add those of `keys` that `username` does not have; with `reset`, replace all keys by `keys`.

    Makes ~/.ssh if it is missing. Raises Fault: PARAMS for an invalid key, FAILED if the system refuses.
    """
    keys = _checked(args["keys"])
    user = _user(args["username"], lookup)
    place = _Place(user)
    with _rights_of(user):
        lines = [] if args["reset"] else _read(place, absent=[])
        lines += [key for key in dict.fromkeys(keys) if key not in lines]
        _make_folder(place)
        _write(place, lines)
    return {}


def ssh_remove_authorized_keys(_worker: Worker, args: Args, *, lookup: Lookup = pwd.getpwnam) -> dict[str, Any]:
    """Remove each line that is one of `keys`; do nothing if there is no file.

    Raises Fault: PARAMS for an invalid key, FAILED if the system refuses.
    """
    keys = _checked(args["keys"])
    user = _user(args["username"], lookup)
    place = _Place(user)
    with _rights_of(user):
        lines = _read(place, absent=[])
        if lines:
            _write(place, [line for line in lines if line not in keys])
    return {}


class _Place:
    """The place of a user's keys."""

    def __init__(self, user: pwd.struct_passwd) -> None:
        self.folder = os.path.join(user.pw_dir, ".ssh")
        self.file = os.path.join(self.folder, _NAME)

    def open_folder(self) -> int:
        """Return a descriptor of the folder; raise OSError."""
        return open_off_procfs(self.folder, os.O_PATH | os.O_DIRECTORY)


def _checked(keys: list[str]) -> list[bytes]:
    for key in keys:
        if key.startswith("#") or "\n" in key:
            raise Fault(Code.PARAMS, f"invalid OpenSSH public key: '{key}'")
    return [octets(key) for key in keys]


def _user(name: str, lookup: Lookup) -> pwd.struct_passwd:
    try:
        return lookup(name)
    except KeyError:
        raise Fault(Code.FAILED, f"failed to lookup user '{name}': Success") from None  # so says qemu-ga


@contextlib.contextmanager
def _rights_of(user: pwd.struct_passwd) -> Iterator[None]:
    """Take the rights of `user` on files. The real uid stays, so that the user gets no rights on this process."""
    if os.geteuid() == user.pw_uid:
        yield
        return
    uid, gid, groups = os.geteuid(), os.getegid(), os.getgroups()
    try:
        os.setgroups(os.getgrouplist(user.pw_name, user.pw_gid))
        os.setegid(user.pw_gid)
        os.seteuid(user.pw_uid)
        kernel.die_with_parent(signal.SIGKILL)  # again: a change of rights undoes it
        yield
    finally:
        os.seteuid(uid)
        os.setegid(gid)
        os.setgroups(groups)
        kernel.die_with_parent(signal.SIGKILL)


def open_off_procfs(path: str, flags: int) -> int:
    """Open what is no file of procfs, without a magic link on the way; raise OSError."""
    fd = open_plain(os.fsencode(path), flags)
    try:
        if kernel.is_procfs(fd):
            raise OSError(errno.EACCES, "it leads to procfs, where the agent itself is")
    except OSError:
        os.close(fd)
        raise
    return fd


def _file(fd: int, mode: str) -> IO[bytes]:
    """Return a file that owns the descriptor; close that and raise OSError if there can be none."""
    try:
        return open(fd, mode)
    except OSError:
        os.close(fd)
        raise


def _read(place: _Place, absent: list[bytes] | None = None) -> list[bytes]:
    """Return the lines of the file; `absent`, if given, when there is no file."""
    try:
        with _file(open_off_procfs(place.file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise Fault(Code.FAILED, f"failed to read '{place.file}': not a regular file")
            text = file.read(KEYS_MAX + 1)
    except OSError as error:
        if absent is not None and error.errno in _ABSENT:
            return absent
        why = f"Failed to open file “{place.file}”: {error.strerror}"
        raise Fault(Code.FAILED, f"failed to read '{place.file}': {why}") from None
    if len(text) > KEYS_MAX:
        raise Fault(Code.FAILED, f"failed to read '{place.file}': over {KEYS_MAX} bytes")
    return text.removesuffix(b"\n").split(b"\n") if text else []


def _make_folder(place: _Place) -> None:
    try:
        os.close(place.open_folder())
        return
    except OSError as error:
        if error.errno not in _ABSENT:
            raise _uncreated(place, error) from None
    try:
        os.mkdir(place.folder, 0o700)
    except OSError as error:
        raise _uncreated(place, error) from None


def _uncreated(place: _Place, error: OSError) -> Fault:
    return Fault(Code.FAILED, f"failed to create directory '{place.folder}': {error.strerror}")


def _write(place: _Place, lines: list[bytes]) -> None:
    """Replace the file by one with these lines."""
    new = f".{_NAME}.{os.urandom(6).hex()}"
    try:
        folder = place.open_folder()
        try:
            _write_in(folder, new, b"".join(line + b"\n" for line in lines))
        finally:
            os.close(folder)
    except OSError as error:
        raise Fault(Code.FAILED, f"failed to write to '{place.file}': {error.strerror}") from None


def _write_in(folder: int, new: str, text: bytes) -> None:
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
    try:
        with _file(fd, "wb") as file:
            os.fchmod(fd, 0o600)
            file.write(text)
            file.flush()
            os.fsync(fd)
        os.rename(new, _NAME, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        with contextlib.suppress(OSError):  # what went wrong first is told
            os.unlink(new, dir_fd=folder)
        raise
