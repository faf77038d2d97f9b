#!/usr/bin/python
# Copyright: the virtagent developers
# SPDX-License-Identifier: Apache-2.0
"""What a freeze of this guest would do."""

from __future__ import absolute_import, division, print_function

__metaclass__ = type

DOCUMENTATION = r"""
module: virtagent_plan
short_description: Ask virtagent which file systems a freeze would hold
version_added: 0.1.0
description:
  - Asks the agent of a guest for its plan, which freezes nothing, and returns it, as a fact too.
  - Fails if no agent answers, or if a file system that must be frozen would not be.
options:
  agent:
    description: URL of the agent, as virtagentctl has it.
    type: str
    default: unix:/run/virtagent/virtagentd.sock
  include:
    description: Only file systems that these selectors match.
    type: list
    elements: str
    default: []
  exclude:
    description: No file system that these selectors match.
    type: list
    elements: str
    default: []
  must_freeze:
    description: Mount points that have to be in the plan.
    type: list
    elements: str
    default: []
  executable:
    description: The program virtagentctl.
    type: path
    default: virtagentctl
attributes:
  check_mode:
    description: Changes nothing, so that check mode is the same.
    support: full
author:
  - The virtagent developers (@virtagent)
"""

EXAMPLES = r"""
- name: See that the database would be frozen
  virtagent.fleet.virtagent_plan:
    must_freeze:
      - /var/lib/postgresql
"""

RETURN = r"""
plan:
  description: The plan as the agent tells it.
  returned: success
  type: dict
file_systems:
  description: Mount points that a freeze would hold, in the order of the plan.
  returned: success
  type: list
  elements: str
ansible_facts:
  description: The same as facts.
  returned: success
  type: dict
  contains:
    virtagent_file_systems:
      description: Mount points that a freeze would hold.
      type: list
      elements: str
"""

import json

from ansible.module_utils.basic import AnsibleModule


def names(plan):
    """Return the mount points of all planned file systems, aliases too, and those of the plan's order."""
    mounts = plan.get("mounts") if isinstance(plan, dict) else None
    if not isinstance(mounts, list):
        raise ValueError("it has no mounts")
    order = [mount["mountpoint"] for mount in mounts if mount.get("state") != "left-out"]
    known = set(order)
    for mount in mounts:
        if mount.get("state") != "left-out":
            known.update(mount.get("aliases") or [])
    return order, known


def main():
    """Ask, and tell Ansible."""
    module = AnsibleModule(
        argument_spec={
            "agent": {"type": "str", "default": "unix:/run/virtagent/virtagentd.sock"},
            "include": {"type": "list", "elements": "str", "default": []},
            "exclude": {"type": "list", "elements": "str", "default": []},
            "must_freeze": {"type": "list", "elements": "str", "default": []},
            "executable": {"type": "path", "default": "virtagentctl"},
        },
        supports_check_mode=True,
    )
    asked = module.params
    program = module.get_bin_path(asked["executable"], required=True)
    command = [program, "--json", "--agent", asked["agent"], "plan"]
    for what in ("include", "exclude"):
        for selector in asked[what]:
            command += ["--" + what, selector]
    code, out, err = module.run_command(command)
    if code:
        module.fail_json(msg="virtagentctl plan: " + (err.strip() or out.strip()), rc=code)
    try:
        plan = json.loads(out)
        order, known = names(plan)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        module.fail_json(msg="virtagentctl plan answered no plan (%s)" % error, stdout=out[:1000])
    missing = [one for one in asked["must_freeze"] if one not in known]
    if missing:
        module.fail_json(msg="a freeze would leave out " + ", ".join(missing), plan=plan, file_systems=order)
    module.exit_json(changed=False, plan=plan, file_systems=order, ansible_facts={"virtagent_file_systems": order})


if __name__ == "__main__":
    main()
