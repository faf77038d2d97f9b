# What scripts/install puts where, and whether it may be touched now: sourced by scripts/install and scripts/uninstall.
# shellcheck shell=bash
# shellcheck disable=SC2034 # used by the scripts that source it

# under ROOT: name everything below ROOT ("" for this machine).
under() {
    root=$1
    home=$root/opt/virtagent # tree-*, current -> one of them, conf.sum: what the sample was when it was installed
    current=$home/current
    conf=$root/etc/virtagent/virtagentd.conf
    units=$root/etc/systemd/system
    # One of the two services is installed, and stays the one until the other is asked for.
    service=virtagentd.service other=virtagent-qemu-ga.service
    [ ! -e "$units/$other" ] || be_qemu_ga
    rule=$root/etc/udev/rules.d/60-virtagent.rules
    daemon_link=$root/usr/local/sbin/virtagentd
    # link -> what it leads to below $current; each shell names its completions its own way
    local share=$root/usr/local/share
    declare -gA links=(
        [$daemon_link]=bin/virtagentd
        [$root/usr/local/bin/virtagentctl]=bin/virtagentctl
        [$root/usr/local/sbin/virtagent-qemu-ga]=bin/virtagent-qemu-ga
        [$root/usr/local/lib/systemd/catalog/virtagent.catalog]=share/virtagent.catalog
        [$share/man/man1/virtagentctl.1]=doc/virtagentctl.1
        [$share/man/man8/virtagentd.8]=doc/virtagentd.8
        [$share/man/man8/virtagent-qemu-ga.8]=doc/virtagent-qemu-ga.8
        [$share/man/man5/virtagentd.conf.5]=doc/virtagentd.conf.5
        [$share/bash-completion/completions/virtagentctl]=share/virtagentctl.bash
        [$share/zsh/site-functions/_virtagentctl]=share/virtagentctl.zsh
        [$share/fish/vendor_completions.d/virtagentctl.fish]=share/virtagentctl.fish
    )
    local name
    for name in live mariadb mongodb mysql pair postgresql redis sql vmware; do
        links[$root/etc/virtagent/writers.d/$name.conf.sample]=share/writers.d/$name.conf.sample
    done
}

# be_qemu_ga: the service is the one in the place of qemu-ga.
be_qemu_ga() { service=virtagent-qemu-ga.service other=virtagentd.service; }

# rival: print the unit of the real qemu-ga, unless it is masked or not there.
rival() {
    local folder file
    for folder in etc run usr/local/lib usr/lib lib; do
        file=$root/$folder/systemd/system/qemu-guest-agent.service
        [ -e "$file" ] || [ -L "$file" ] || continue
        [ "$(readlink "$file")" = /dev/null ] || printf '%s\n' "$file"
        return 0
    done
}

# with_systemd: whether systemd runs this machine, and this machine is meant.
with_systemd() { [ -z "$root" ] && [ -d /run/systemd/system ]; }

reload_managers() {
    with_systemd || return 0
    systemctl daemon-reload
    journalctl --update-catalog || say "journalctl could not read its catalogue again: journalctl -x explains nothing of virtagent"
    if command -v udevadm >/dev/null; then
        udevadm control --reload || say "udevadm could not reload its rules: the virtio port starts the agent after the next boot"
    fi
}

# is_ours LINK: whether the link is one that scripts/install made.
is_ours() {
    case $(readlink "$1") in */opt/virtagent/current/"${links[$1]}") ;; *) return 1 ;; esac
}

# is_pristine: whether the configuration file is the sample as it was installed.
is_pristine() { [ -f "$conf" ] && [ "$(checksum <"$conf")" = "$(cat "$home/conf.sum" 2>/dev/null)" ]; }

state_dir() {
    local named
    named=$(sed -nE 's/^[[:space:]]*(--)?state-dir([[:space:]]*=[[:space:]]*|[[:space:]]+)//p' "$conf" 2>/dev/null | tail -n 1)
    printf '%s\n' "$root${named:-/run/virtagent}"
}

# agent_state: print the freeze state that the running agent tells; fail if none answers.
agent_state() {
    local agent answer
    agent=${VIRTAGENT_AGENT:-unix:$(state_dir)/virtagentd.sock}
    answer=$("$current/bin/virtagentctl" --agent "$agent" --timeout 5 --json status 2>/dev/null) || return
    printf '%s' "$answer" | python3 -c 'import json, sys; print(json.load(sys.stdin)["state"])'
}

# holds_state: whether a process has the state directory for its own: an agent, on whatever channels.
holds_state() {
    local lock
    lock=$(state_dir)/lock
    [ -e "$lock" ] && ! flock -n "$lock" true
}

# journal_names: print what the journal of a dead agent says: nothing, or why something may be frozen.
journal_names() {
    python3 - "$(state_dir)/journal" <<'PYTHON'
import json
import sys

try:
    with open(sys.argv[1], encoding="ascii") as file:
        record = json.load(file)
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = file.read().strip()
    mounts = [mount["mountpoint"] for mount in record["plan"]["mounts"]]
    if mounts and record["boot"] == boot:
        print("the journal", sys.argv[1], "names", ", ".join(map(ascii, mounts)))
except FileNotFoundError:
    pass
except (OSError, ValueError, LookupError, TypeError) as error:
    print("the journal", sys.argv[1], "cannot be read:", ascii(error))
PYTHON
}

# refuse_while_frozen: return only if nothing is frozen. What is frozen may be the disk that would be written to now.
refuse_while_frozen() {
    local state why
    if state=$(agent_state); then
        [ "$state" = THAWED ] || refuse "the agent is in state $state, and nothing is changed before it is THAWED: virtagentctl thaw"
        return 0
    fi
    why=$(journal_names)
    [ -n "$why" ] || return 0
    ! holds_state || refuse "an agent runs that has no socket to ask, and $why: have the host thaw, or stop the agent, which thaws"
    refuse "no agent answers, and $why: start the agent, which thaws, then try again"
}
