# Shared by the scripts of this folder: source it. Makes .venv with the project in it and installs what Debian lacks.
# shellcheck shell=bash

tree=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$tree/.venv

say() { printf '%s\n' "$*" >&2; }

refuse() {
    say "$(basename "$0"): $*"
    exit 2
}

# packages_for PROGRAM:PACKAGE...: print the packages of the programs that are not there.
packages_for() {
    local pair
    for pair in "$@"; do
        PATH=$PATH:/usr/sbin:/sbin command -v "${pair%%:*}" >/dev/null || printf '%s\n' "${pair#*:}"
    done | sort -u
}

# install_packages PACKAGE...: install them as root on Debian; else one sentence and exit 2.
install_packages() {
    [ $# -gt 0 ] || return 0
    [ "$(id -u)" -eq 0 ] || refuse "missing Debian packages: $* (as root: apt-get install $*)"
    command -v apt-get >/dev/null || refuse "missing, and no apt-get to install them: $*"
    say "installing $* ..."
    # A source that cannot be reached does not matter if another one has the package.
    apt-get update -qq >/dev/null || say "apt-get update failed; trying with the lists that are there"
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" >/dev/null ||
        refuse "apt-get could not install $*"
}

# install_unstarted PACKAGE...: install_packages, and no service is started by that (policy-rc.d, invoke-rc.d(8)).
install_unstarted() {
    local policy=/usr/sbin/policy-rc.d
    [ $# -gt 0 ] || return 0
    if [ "$(id -u)" -ne 0 ] || [ -e "$policy" ]; then
        install_packages "$@"
        return
    fi
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    (install_packages "$@") || { rm -f "$policy" && exit 2; }
    rm -f "$policy"
}

# install_vm_packages: what tests/harness/vm needs to make a guest and run it; without root also what takes the place of root.
install_vm_packages() {
    local missing pairs=(qemu-system-x86_64:qemu-system-x86 debootstrap:debootstrap busybox:busybox-static
        mkfs.ext4:e2fsprogs mkfs.xfs:xfsprogs mkfs.btrfs:btrfs-progs depmod:kmod)
    [ "$(id -u)" -eq 0 ] || pairs+=(fakeroot:fakeroot unshare:util-linux)
    mapfile -t missing < <(packages_for "${pairs[@]}")
    install_packages "${missing[@]}"
}

# install_libvirt_packages: a libvirtd that drives QEMU, virsh, and what libvirt-python is built with.
install_libvirt_packages() {
    local missing include
    mapfile -t missing < <(packages_for libvirtd:libvirt-daemon-system virsh:libvirt-clients qemu-img:qemu-utils \
        unshare:util-linux gcc:gcc pkg-config:pkg-config python3:python3)
    compgen -G '/usr/lib/*/libvirt/connection-driver/libvirt_driver_qemu.so' >/dev/null || missing+=(libvirt-daemon-driver-qemu)
    pkg-config --exists libvirt 2>/dev/null || missing+=(libvirt-dev)
    include=$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))' 2>/dev/null) || true
    [ -e "$include/Python.h" ] || missing+=(python3-dev)
    install_packages "${missing[@]}"
}

# deb_packages: print what is missing of that with which scripts/package builds for Debian, and which the packages depend on.
deb_packages() {
    local module
    packages_for dpkg-buildpackage:dpkg-dev dh:debhelper dh_python3:dh-python
    for module in h11 msgpack psutil setproctitle; do
        compgen -G "/usr/lib/python3/dist-packages/$module*" >/dev/null || printf 'python3-%s\n' "$module"
    done
}

# fetch_promtool: put Debian's promtool into .venv if there is none; prometheus is not installed, since it starts a service.
fetch_promtool() {
    local folder get=(apt-get -qq -o APT::Sandbox::User=root)
    if [ -z "$(packages_for promtool:prometheus)" ] || [ -x "$venv/bin/promtool" ]; then
        return
    fi
    folder=$(mktemp -d)
    if (cd "$folder" && { "${get[@]}" download prometheus || { "${get[@]}" update && "${get[@]}" download prometheus; }; } &&
        dpkg-deb --fsys-tarfile prometheus_*.deb | tar x ./usr/bin/promtool) >/dev/null 2>&1; then
        mv "$folder/usr/bin/promtool" "$venv/bin/promtool"
    else
        say "promtool cannot be had from Debian's prometheus: what it says of the alert rules is not tested"
    fi
    rm -rf "$folder"
}

checksum() { sha256sum | cut -d' ' -f1; }

stamped() { [ "$(cat "$venv/stamp.$1" 2>/dev/null)" = "$2" ]; }

# has_extras EXTRA,...: whether all of them are installed already.
has_extras() {
    local extra
    for extra in ${1//,/ }; do
        case ,$(cat "$venv/stamp.extras" 2>/dev/null), in *",$extra,"*) ;; *) return 1 ;; esac
    done
}

# interpreters: print those that work, one "MAJOR.MINOR PATH" a line, the oldest first: on the PATH and in pyenv.
interpreters() {
    local found
    for found in $(compgen -c python3. | grep -E '^python3\.[0-9]+$' | sort -u) ~/.pyenv/versions/3.*/bin/python3; do
        found=$(command -v "$found") || continue
        "$found" -c 'import ensurepip, sys, venv; print("%d.%d" % sys.version_info[:2], sys.executable)' 2>/dev/null || true
    done | sort -t. -k1,1n -k2,2n -u
}

# other_interpreters: print of those the oldest that is supported, and 3.14 or else the newest; never what .venv is made of.
other_interpreters() {
    local own every
    own=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    every=$(interpreters)
    {
        grep -m1 '^3\.10 ' <<<"$every" || say "no python3.10 here: the oldest supported Python is not tested"
        grep -m1 '^3\.14 ' <<<"$every" || {
            say "no python3.14 here: the newest other one takes its place"
            grep -E '^3\.1[0-9] ' <<<"$every" | tail -1
        }
    } | sort -u | grep -v "^$own " || true
}

# set_up EXTRA,... [PYTHON]: have .venv with the project, its extras included, as a user would get it (not editable).
set_up() {
    local extras=$1 python=${2:-} wants sources copy
    [ -n "$(packages_for python3:python3)" ] && install_packages python3 python3-venv
    [ -n "$python" ] || python=$(command -v python3)
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        refuse "needs python3 3.10 or newer, $python is $("$python" -c 'import platform; print(platform.python_version())')"
    exec 9<"$tree"
    flock 9 # two scripts at once in one tree
    wants=$({ "$python" -VV && echo "$tree" && cat "$tree/setup.cfg" "$tree/pyproject.toml"; } | checksum)
    sources=$({ cd "$tree" && find agent supervisor host kube -type f ! -path '*/__pycache__/*' -print0 |
        sort -z | xargs -0 sha256sum; } | checksum)
    if ! stamped wants "$wants" || ! "$venv/bin/python" -c '' 2>/dev/null; then
        # Debian's python3 has venv only with the package python3-venv.
        "$python" -c 'import ensurepip, venv' 2>/dev/null || install_packages python3-venv
        say "making .venv ..."
        rm -rf "$venv"
        "$python" -m venv "$venv"
        pip_install 'setuptools>=70.1'
    fi
    if stamped sources "$sources" && has_extras "$extras"; then
        exec 9<&-
        return
    fi
    # From a copy: setuptools leaves build/ in the tree, and takes from it files that were deleted since.
    copy=$venv/source
    rm -rf "$copy" && mkdir "$copy"
    (cd "$tree" && cp -r --parents agent supervisor host kube setup.cfg pyproject.toml "$copy")
    (cd "$tree" && cp README.md LICENSE "$copy" 2>/dev/null) || true
    if ! has_extras "$extras"; then
        pip_install --no-build-isolation "${copy}[$extras]"
        echo "$extras" >"$venv/stamp.extras"
    fi
    pip_install --no-build-isolation --no-deps --force-reinstall "$copy"
    echo "$wants" >"$venv/stamp.wants"
    echo "$sources" >"$venv/stamp.sources"
    rm -rf "$copy"
    exec 9<&-
}

pip_install() {
    "$venv/bin/pip" install -qq --disable-pip-version-check --root-user-action=ignore "$@"
}
