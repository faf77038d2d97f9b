# Copyright: the virtagent developers
# SPDX-License-Identifier: Apache-2.0
"""Holds the guests of all hosts of a play frozen while a command runs: one process on the controller."""

from __future__ import absolute_import, division, print_function

__metaclass__ = type

import json
import shutil
import subprocess

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

_OPTIONS = {
    "agents": {"type": "list", "elements": "str"},
    "hosts": {"type": "list", "elements": "str"},
    "command": {"type": "list", "elements": "str"},
    "on_each_host": {"type": "str"},
    "hold": {"type": "float", "default": 60.0},
    "max_skew": {"type": "float"},
    "timeout": {"type": "float"},
    "include": {"type": "list", "elements": "str", "default": []},
    "exclude": {"type": "list", "elements": "str", "default": []},
    "executable": {"type": "path", "default": "virtagentctl"},
}


class ActionModule(ActionBase):
    """Runs once, whatever the number of hosts."""

    BYPASS_HOST_LOOP = True
    TRANSFERS_FILES = False

    def run(self, tmp=None, task_vars=None):
        """Freeze, run the command, thaw; return the report."""
        result = super(ActionModule, self).run(tmp, task_vars)
        dummy, asked = self.validate_argument_spec(
            argument_spec=_OPTIONS, required_one_of=[("command", "on_each_host")], mutually_exclusive=[("agents", "hosts")]
        )
        agents = asked["agents"] or self._inventory(asked["hosts"], task_vars or {})
        program = shutil.which(asked["executable"])
        if program is None:
            raise AnsibleActionFail("no program %s on the controller; install virtagent-host there" % asked["executable"])
        command = _command(program, agents, asked, self._play_context.check_mode or self._task.check_mode)
        done = _run(command)
        result.update(changed=True, rc=done.returncode, agents=agents, stderr=done.stderr, stderr_lines=done.stderr.splitlines())
        try:
            result["report"] = json.loads(done.stdout)
        except ValueError:
            result["stdout"] = done.stdout
        if done.returncode:
            result.update(failed=True, msg=_why(result, done))
        return result

    def _inventory(self, patterns, task_vars):
        """Return the URLs of the agents of these hosts, of all hosts of the play if none are named."""
        names = task_vars.get("ansible_play_hosts") or []
        if patterns:
            loader = self._task.get_variable_manager()._inventory
            names = [host.name for pattern in patterns for host in loader.get_hosts(pattern)]
        if not names:
            raise AnsibleActionFail("no hosts; name them with hosts, or agents")
        known = task_vars["hostvars"]
        return [url for name in dict.fromkeys(names) for url in urls(name, known[name])]


def urls(name, known):
    """Return the URLs for one host of the inventory, with its variables. Raises AnsibleActionFail."""
    agents = known.get("virtagent_agents") or []
    if not isinstance(agents, list) or not all(isinstance(one, str) for one in agents):
        raise AnsibleActionFail("virtagent_agents of %s is no list of URLs" % name)
    if known.get("ansible_connection") == "local":
        if not agents:
            raise AnsibleActionFail("%s is this host and names no virtagent_agents" % name)
        return list(agents)
    host = str(known.get("ansible_host") or known.get("ansible_ssh_host") or name)
    host = "[%s]" % host if ":" in host else host
    user, port = (known.get("ansible_" + one) or known.get("ansible_ssh_" + one) for one in ("user", "port"))
    where = ("%s@" % user if user else "") + host + (":%s" % port if port else "")
    return ["ssh:" + where + ("?" + "&".join("agents=" + one for one in agents) if agents else "")]


def _run(command):
    """Run the command; return what became of it. If this is interrupted, it thaws first."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="backslashreplace",
        universal_newlines=True,
    )
    try:
        out, err = process.communicate()
    except BaseException:
        # The task's timeout, or Ctrl-C. A SIGKILL would leave what this host reaches itself frozen until its hold ends.
        process.terminate()
        process.communicate()
        raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _command(program, agents, asked, check):
    command = [program, "--json"]
    for url in agents:
        command += ["--agent", url]
    command += ["snapshot", "--hold", "%g" % asked["hold"]]
    for name in ("max_skew", "timeout"):
        if asked[name] is not None:
            command += ["--" + name.replace("_", "-"), "%g" % asked[name]]
    for name in ("include", "exclude"):
        for selector in asked[name]:
            command += ["--" + name, selector]
    if check:
        command.append("--dry-run")
    if asked["on_each_host"]:
        command += ["--on-each-host", asked["on_each_host"]]
    return command + ["--"] + list(asked["command"] or []) if asked["command"] else command


def _why(result, done):
    report = result.get("report")
    if isinstance(report, dict) and report.get("error"):
        return str(report["error"])
    return (done.stderr.strip().splitlines() or ["virtagentctl ended with %d" % done.returncode])[-1]
