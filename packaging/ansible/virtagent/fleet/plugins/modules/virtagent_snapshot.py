#!/usr/bin/python
# Copyright: the virtagent developers
# SPDX-License-Identifier: Apache-2.0
"""The documentation of the action of this name, which runs on the controller."""

from __future__ import absolute_import, division, print_function

__metaclass__ = type

DOCUMENTATION = r"""
module: virtagent_snapshot
short_description: Freeze the guests of many hypervisors at one instant, run a command, thaw them
version_added: 0.1.0
description:
  - Runs C(virtagentctl snapshot) on the controller, once for all hosts of the play. It freezes all guests together or none,
    runs the command while all are frozen, thaws them whatever happens, and reports.
  - The task fails if not all could be frozen, if a guest was not held until the thaw, or if the command failed.
  - The controller needs virtagentctl, and reaches each hypervisor with C(ssh HOST virtagentctl relay), without a question.
options:
  agents:
    description: URLs of the agents, instead of those of the inventory.
    type: list
    elements: str
  hosts:
    description:
      - Hypervisors, or patterns of hosts, from the inventory. The default is all hosts of the play.
      - A host variable C(virtagent_agents) names which of its agents are meant, as URLs or globs; without it all that the
        hypervisor itself names. With C(ansible_connection=local) these are URLs as they are.
    type: list
    elements: str
  command:
    description: Program and arguments, run on the controller while all guests are frozen. No shell is used.
    type: list
    elements: str
  on_each_host:
    description: A shell command that is run on each hypervisor while all guests are frozen.
    type: str
  hold:
    description: A guest thaws by itself after so many seconds.
    type: float
    default: 60
  max_skew:
    description: Thaw all and fail if more seconds than this lie between the first and the last freeze.
    type: float
  timeout:
    description: End the command after so many seconds.
    type: float
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
  executable:
    description: The program virtagentctl on the controller.
    type: path
    default: virtagentctl
attributes:
  check_mode:
    description: Asks each agent for its plan, and freezes nothing.
    support: full
author:
  - The virtagent developers (@virtagent)
"""

EXAMPLES = r"""
- name: Snapshot the zpool of each hypervisor while all guests stand still
  hosts: hypervisors
  gather_facts: false
  tasks:
    - name: Take it
      virtagent.fleet.virtagent_snapshot:
        on_each_host: zfs snapshot tank/vms@nightly
        hold: 60
        max_skew: 0.5
      register: taken
"""

RETURN = r"""
report:
  description: The report of virtagentctl, with each guest, the skew and the window.
  returned: when virtagentctl gave one
  type: dict
agents:
  description: The URLs that were given to virtagentctl.
  returned: always
  type: list
  elements: str
rc:
  description: The exit code of virtagentctl; 5 is a broken freeze.
  returned: always
  type: int
"""
