"""What the guest boots from: root file system and kernel of Debian's packages, made once, and an initramfs each run.

Everything is made below a cache folder, ~/.cache/virtagent-vm or $VIRTAGENT_VM_CACHE, in a folder named by a checksum
of what it is made from. No root is needed (`rootless`); nothing is mounted and nothing installed on this machine.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import Unmet
from . import rootless

TREE = Path(__file__).resolve().parents[3]
INSIDE = Path(__file__).with_name("inside")
PACKAGES = (
    *("systemd", "systemd-sysv", "udev", "kmod", "procps", "rsyslog", "e2fsprogs", "xfsprogs", "btrfs-progs"),
    *("python3", "python3-psutil", "python3-msgpack", "python3-setproctitle", "python3-h11"),
    *("python3-venv", "qemu-guest-agent", "dbus"),  # which cannot shut down without D-Bus
    *("cryptsetup-bin", "lvm2", "mdadm", "nbd-client", "nbd-server"),
)
KERNEL = "linux-image-cloud-amd64"
RECIPE = 3  # to be raised with a change of what is made from the packages
MODULES = (
    *("virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci"),
    *("virtio_blk", "virtio_console"),
)
PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "debootstrap": "debootstrap",
    "busybox": "busybox-static",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "mkfs.btrfs": "btrfs-progs",
    "depmod": "kmod",
}
ROOT_SIZE, LARGER = "1G", "3G"
UNUSED = ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info")
# Nothing in the guest wakes up by itself, and nothing waits for a network.
MASKED = (
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer"),
    *("systemd-timesyncd.service", "systemd-networkd-wait-online.service", "getty.target", "e2scrub_reap.service"),
    *("systemd-tmpfiles-clean.timer", "systemd-pstore.service", "qemu-guest-agent.service"),
    *("lvm2-monitor.service", "lvm2-lvmpolld.socket", "dm-event.socket", "blk-availability.service"),
    *("mdcheck_start.timer", "mdcheck_continue.timer", "mdmonitor-oneshot.timer", "mdmonitor.service"),
    "nbd-server.service",
)


@dataclass(frozen=True)
class Base:
    """What the packages made: a raw ext4 image, the kernel, its modules for the initramfs, a static busybox."""

    folder: Path

    @property
    def root(self) -> Path:
        return self.folder / "root.img"

    @property
    def kernel(self) -> Path:
        return self.folder / "vmlinuz"


def base(suite: str = "", more: Sequence[str] = ()) -> Base:
    """Return the cached base, made if it is not there (some two minutes, and the network).

    `suite` is a release of Debian, this machine's own if it is not given; `more` are packages that it has, too.
    """
    programs = PROGRAMS if os.geteuid() == 0 else {**PROGRAMS, **rootless.PROGRAMS}
    lacking = sorted({package for program, package in programs.items() if _program(program) is None})
    if lacking:
        raise Unmet(f"needs the Debian packages {' '.join(lacking)}")
    site, own = _mirror()
    suite = suite or own
    kernel = _newest_kernel() if suite == own else ""  # of another release: the newest when it is made
    made_from = "\n".join([str(RECIPE), suite, kernel, *PACKAGES, *more, *MODULES, *UNUSED, *MASKED])
    cache = Path(os.environ.get("VIRTAGENT_VM_CACHE") or Path.home() / ".cache/virtagent-vm")
    folder = cache / f"base-{hashlib.sha256(made_from.encode()).hexdigest()[:16]}"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="making-") as work:
            if os.geteuid() == 0:
                make(Path(work), site, suite, kernel, *more)
            else:
                rootless.make(Path(work), site, suite, kernel, *more)
            Path(work, "base").rename(folder)
    return Base(folder)


def initramfs(made: Base, into: Path, *more: Path, ours: bool = True) -> Path:
    """Write the initramfs: what is in `inside`, this tree's code if `ours`, the trees `more` to lie over the root."""
    folder = into / "initramfs"
    shutil.copytree(made.folder / "initramfs", folder, symlinks=True)
    for name in ("init", "runner.py"):
        shutil.copy(INSIDE / name, folder / name)
    (folder / "init").chmod(0o755)
    over = folder / "over"
    over.mkdir()
    if ours:
        _install(over)
    for tree in more:
        shutil.copytree(tree, over, symlinks=True, dirs_exist_ok=True)
    target = into / "initramfs.cpio"
    names = "".join(f"{path.relative_to(folder)}\n" for path in sorted(folder.rglob("*")))
    with open(target, "wb") as file:
        archive = [str(_program("busybox")), "cpio", "-o", "-H", "newc"]
        subprocess.run(archive, cwd=folder, input=names.encode(), stdout=file, stderr=subprocess.DEVNULL, check=True)
    shutil.rmtree(folder)
    return target


def _install(over: Path) -> None:
    """Lay this tree out as scripts/install does; what it depends on are the guest's packages."""
    home = over / "opt/virtagent"
    code = home / "current/lib/virtagent"
    for package in ("agent", "supervisor", "host"):
        shutil.copytree(TREE / package, code / package, ignore=shutil.ignore_patterns("__pycache__"))
    programs = home / "current/bin"
    programs.mkdir()
    for name in ("virtagentd", "virtagentctl", "virtagent-qemu-ga"):
        shutil.copy(TREE / "packaging/launcher", programs / name)
        (programs / name).chmod(0o755)
    (programs / "python").symlink_to("/usr/bin/python3")
    found = over / "usr/lib/python3/dist-packages"  # Debian's, for any version
    found.mkdir(parents=True)
    (found / "virtagent.pth").write_text("/opt/virtagent/current/lib\n")
    for target, source in (
        ("etc/systemd/system/virtagentd.service", "packaging/virtagentd.service"),
        ("etc/udev/rules.d/60-virtagent.rules", "packaging/60-virtagent.rules"),
    ):
        (over / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(TREE / source, over / target)
    for where, name in (("sbin", "virtagentd"), ("bin", "virtagentctl"), ("sbin", "virtagent-qemu-ga")):
        link = over / "usr/local" / where / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(f"/opt/virtagent/current/bin/{name}")


def make(work: Path, site: str, suite: str, kernel: str, *more: str) -> None:
    """Make the base in `work`, as root, or as one who is taken for root. Raises Unmet."""
    done, tree, unpacked = work / "base", work / "tree", work / "kernel"
    done.mkdir()
    with rootless.prepared(tree):
        _run("debootstrap", "--variant=minbase", f"--include={','.join((*PACKAGES, *more))}", suite, str(tree), site)
    of_suite = [] if kernel else _apt_options(work, site, suite)
    _run(
        "apt-get", *of_suite, "-o", "APT::Sandbox::User=root", "download", kernel or _newest_kernel(*of_suite), cwd=work
    )
    (package,) = work.glob("linux-image-*.deb")
    _run("dpkg-deb", "-x", str(package), str(unpacked))
    (modules,) = unpacked.glob("**/lib/modules/*")
    (image,) = (unpacked / "boot").glob("vmlinuz-*")
    shutil.move(image, done / "vmlinuz")
    shutil.copytree(modules, tree / "lib/modules" / modules.name)
    _run("depmod", "-b", str(tree), modules.name)
    initial = done / "initramfs"
    (initial / "modules").mkdir(parents=True)
    (initial / "bin").mkdir()
    shutil.copy(str(_program("busybox")), initial / "bin/busybox")
    found = {name: _module(modules, name) for name in MODULES}
    for name, contents in found.items():
        if contents is not None:
            (initial / f"modules/{name}.ko").write_bytes(contents)
    (initial / "modules/order").write_text("".join(f"{name}\n" for name in MODULES if found[name] is not None))
    _trim(tree)
    _run("mkfs.ext4", "-q", "-d", str(tree), str(done / "root.img"), ROOT_SIZE if not more else LARGER)


def _trim(tree: Path) -> None:
    for name in UNUSED:
        shutil.rmtree(tree / name, ignore_errors=True)
    units = tree / "etc/systemd/system"
    for name in MASKED:
        link = units / name
        link.unlink(missing_ok=True)
        link.symlink_to("/dev/null")
    (units / "vm-test.service").write_text(_RUNNER)
    wants = units / "sysinit.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / "vm-test.service").symlink_to("/etc/systemd/system/vm-test.service")
    (tree / "etc/hostname").write_text("guest\n")
    (tree / "etc/fstab").write_text("")
    (tree / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")


_RUNNER = """\
[Unit]
Description=Commands of the tests
DefaultDependencies=no
[Service]
ExecStart=/usr/bin/python3 -I -B /run/ram/runner.py
KillMode=process
Restart=always
OOMScoreAdjust=-1000
"""


def _mirror() -> tuple[str, str]:
    """Return where this machine's Debian comes from, and which it is."""
    shown = _run("apt-get", "indextargets", "--format", "$(SITE) $(CODENAME) $(COMPONENT)", "Created-By: Packages")
    with open("/etc/os-release", encoding="utf-8") as file:
        system = dict(line.rstrip().split("=", 1) for line in file if "=" in line)
    suite = system.get("VERSION_CODENAME", "").strip('"')
    for line in shown.splitlines():
        site, codename, component = line.split(" ")
        if codename == suite and component == "main":
            return site, suite
    raise Unmet("needs a Debian whose apt sources name its own release")


def _apt_options(work: Path, site: str, suite: str) -> list[str]:
    """Return the options with which apt knows the packages of that release, and no others."""
    for name in ("lists/partial", "archives/partial"):
        (work / name).mkdir(parents=True)
    (work / "sources.list").write_text(f"deb {site} {suite} main\n")
    settings = {
        "Dir::Etc::sourcelist": f"{work}/sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": f"{work}/lists",
        "Dir::Cache": str(work),
    }
    options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    _run("apt-get", *options, "-o", "APT::Sandbox::User=root", "update", cwd=work)
    return options


def _module(modules: Path, name: str) -> bytes | None:
    """Return a module of the kernel as insmod takes it; None if it is built in. Raises Unmet."""
    for path in modules.rglob(f"{name}.ko*"):
        return lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
    if f"/{name}.ko\n" in (modules / "modules.builtin").read_text():
        return None
    raise Unmet(f"the kernel {modules.name} has no {name}")


def _newest_kernel(*options: str) -> str:
    for line in _run("apt-cache", *options, "depends", KERNEL).splitlines():
        name = line.strip().removeprefix("Depends: ")
        if name.startswith("linux-image-") and name != KERNEL:
            return name
    raise Unmet(f"needs Debian's package {KERNEL} in the apt sources (apt-get update)")


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


def _run(program: str, *arguments: str, cwd: Path | None = None) -> str:
    found = _program(program)
    if found is None:
        raise Unmet(f"needs {program}")
    done = subprocess.run([found, *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unmet(f"{program} failed: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    try:
        make(Path(sys.argv[1]), *sys.argv[2:])
    except Unmet as reason:
        sys.exit(str(reason))
