"""What `umvm ps` and `umvm mounts` show."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from umvm.guest.mounts import MountTable
from umvm.guest.process import status
from umvm.guest.spaces import Space

if TYPE_CHECKING:
    from umvm.vm import VirtualMachine


def processes(vm: VirtualMachine, table: MountTable | None) -> list[dict[str, Any]]:
    """The guests, or those with a table of mounts."""
    rows: list[dict[str, Any]] = []
    for pid in vm.guest_pids():
        try:
            fields = status(pid)
            space = vm.spaces.of(pid)
            if table is not None and space.table is not table:
                continue
            cwd = vm.shown(vm.procs.cwd_link(pid), space, vm.spaces.cwd_mount(pid))
            rows.append(
                {
                    "pid": pid,
                    "ppid": int(fields[b"PPid"]),
                    "uid": vm.uid_of(pid, fields),
                    "state": fields[b"State"][:1].decode(),
                    "comm": os.fsdecode(fields[b"Name"]),
                    "cwd": os.fsdecode(cwd),
                }
            )
        except (OSError, KeyError):
            continue
    return rows


def mounts(space: Space) -> list[dict[str, Any]]:
    """The mounts of a space in mount order, with paths from its root."""
    return [
        {
            "type": mount.fstype,
            "source": mount.source,
            "target": os.fsdecode(space.inner(mount.point) or mount.point),
            "options": mount.options,
            "module": mount.module,
            "uses": mount.uses,
        }
        for mount in list(space.table.all)
        if space.inner(mount.point) is not None and not mount.glue
    ]
