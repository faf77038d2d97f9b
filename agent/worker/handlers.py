"""The functions that a worker calls, by the names that the rows of the RPC table give to handlers."""

from __future__ import annotations

from collections.abc import Mapping

from ..api.methods import RPCS
from ..api.rpc import Runs
from . import methods, queues
from .commands import accounts, cpus, disks, exec, files, machine, network, system
from .context import WorkerHandler
from .resource import ResourceHandler
from .writers import life

HANDLERS: Mapping[str, WorkerHandler] = {
    "accounts.set_user_password": accounts.set_user_password,
    "accounts.ssh_add_authorized_keys": accounts.ssh_add_authorized_keys,
    "accounts.ssh_get_authorized_keys": accounts.ssh_get_authorized_keys,
    "accounts.ssh_remove_authorized_keys": accounts.ssh_remove_authorized_keys,
    "cpus.get_cpustats": cpus.get_cpustats,
    "cpus.get_memory_block_info": cpus.get_memory_block_info,
    "cpus.get_memory_blocks": cpus.get_memory_blocks,
    "cpus.get_vcpus": cpus.get_vcpus,
    "disks.get_disks": disks.get_disks,
    "disks.get_diskstats": disks.get_diskstats,
    "disks.get_fsinfo": disks.get_fsinfo,
    "exec.guest_exec": exec.guest_exec,
    "files.file_open": files.file_open,
    "machine.fstrim": machine.fstrim,
    "machine.set_memory_blocks": machine.set_memory_blocks,
    "machine.set_time": machine.set_time,
    "machine.set_vcpus": machine.set_vcpus,
    "machine.shutdown": machine.shutdown,
    "machine.suspend_disk": machine.suspend_disk,
    "machine.suspend_hybrid": machine.suspend_hybrid,
    "machine.suspend_ram": machine.suspend_ram,
    "methods.fsfreeze": methods.fsfreeze,
    "methods.fsplan": methods.fsplan,
    "methods.fssync": methods.fssync,
    "methods.getdmesg": methods.getdmesg,
    "methods.getfile": methods.getfile,
    "methods.read_options": methods.read_options,
    "methods.shutdown": methods.shutdown,
    "methods.thaw": methods.thaw,
    "network.network_get_interfaces": network.network_get_interfaces,
    "network.network_get_route": network.network_get_route,
    "queues.put_back": queues.put_back,
    "system.get_host_name": system.get_host_name,
    "system.get_load": system.get_load,
    "system.get_osinfo": system.get_osinfo,
    "system.get_time": system.get_time,
    "system.get_timezone": system.get_timezone,
    "system.get_users": system.get_users,
    "writers.serve": life.serve,
    "writers.unlatch": life.unlatch,
}

RESOURCE_HANDLERS: Mapping[str, ResourceHandler] = {
    "exec.exec_status": exec.exec_status,
    "files.file_close": files.file_close,
    "files.file_flush": files.file_flush,
    "files.file_read": files.file_read,
    "files.file_seek": files.file_seek,
    "files.file_write": files.file_write,
}


def prove_bound() -> None:
    """Raise ValueError if a row has no handler here, or a handler no row; it names the row or the handler."""
    for bound, runs in ((HANDLERS, Runs.WORKER), (RESOURCE_HANDLERS, Runs.RESOURCE)):
        named = {row.handler for row in RPCS.values() if row.runs is runs}
        if named != bound.keys():
            raise ValueError(f"not bound, or bound in vain: {', '.join(sorted(named ^ bound.keys()))}")
