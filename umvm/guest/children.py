"""Views that begin as copies of others: `umvm run` in a VM, and unshare(CLONE_NEWNS).

What is mounted when a child view is made is seen in both; what is mounted or unmounted later, in
one of them only. A view ends with its last process, and so do the mounts that only it had.
"""

from __future__ import annotations

import errno
import itertools
import os
import select
import threading
import time
from typing import TYPE_CHECKING, Any

from core_accel.lazy import logger
from umvm import specs
from umvm.errors import Exists, UmvmError
from umvm.guest import roots
from umvm.guest.mounts import MountTable
from umvm.guest.spaces import Space

if TYPE_CHECKING:
    from umvm.vm import VirtualMachine

log = logger(__name__)
AGAIN = 0.05
"""Seconds after which a view without processes is looked at once more: one may just be forked."""


def child(vm: VirtualMachine, pid: int, args: dict[str, Any]) -> dict[str, Any]:
    """Let the guest `pid`, which is `umvm run`, go on in a view of its own: what it asked for.

    **Errors** Exists: the name is in use. Those of mounting.
    """
    outer = vm.spaces.of(pid)
    taken = {vm.name, *(table.name for table in vm.spaces.tables())}
    name = args.get("name") or _new_name(f"{vm.name}.{pid}", taken)
    if name in taken:
        raise Exists(f"a VM named {name!r} is running")
    table = MountTable(outer.table, name)
    inner = vm.spaces.get(table, outer.root)
    try:
        for fstype, source, target, options in args.get("mounts", ()):
            vm.mount(fstype, source, os.fsencode(target), options, inner)
        binds = [specs.BindSpec(*bind) for bind in args.get("binds", ())]
        space = roots.prepare(vm, args.get("root"), binds, bool(args.get("bind_system")), inner)
        chdir = args.get("chdir")
        if args.get("root") is not None:
            chdir = roots.first_directory(vm, space, chdir, str(args.get("cwd", "/")))
        vm.spaces.enter(pid, space)
    except BaseException:
        end(vm, table)
        raise
    _watch(vm, table)
    return {"name": name, "chdir": chdir}


def _new_name(wanted: str, taken: set[str]) -> str:
    numbers = (f"{wanted}.{number}" for number in itertools.count(2))
    return next(name for name in itertools.chain((wanted,), numbers) if name not in taken)


def unshare(vm: VirtualMachine, tid: int) -> None:
    """The process gets a view of its own. OSError: ENOSPC as for namespaces, else `Marks.set`."""
    outer = vm.spaces.of(tid)
    table = MountTable(outer.table, outer.table.name)
    try:
        vm.spaces.enter(tid, vm.spaces.get(table, outer.root))
    except OSError as error:
        vm.spaces.drop(table)
        if error.errno == errno.ENOMEM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise
    _watch(vm, table)


def members(vm: VirtualMachine, table: MountTable) -> list[int]:
    """The processes that have this view."""
    found = []
    for pid in vm.guest_pids():
        try:
            if vm.spaces.of(pid).table is table:
                found.append(pid)
        except OSError:
            continue
    return found


def _watch(vm: VirtualMachine, table: MountTable) -> None:
    threading.Thread(target=_reap, args=(vm, table), daemon=True, name="umvm-view").start()


def _reap(vm: VirtualMachine, table: MountTable) -> None:
    """Wait until a view has no processes any more, and end it."""
    empty = False
    while not vm.closing:
        found = members(vm, table)
        if found:
            empty = False
            _wait_for(found[0])
            continue
        if empty:
            break
        empty = True
        time.sleep(AGAIN)
    if not vm.closing:
        end(vm, table)


def _wait_for(pid: int) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return  # it has just ended
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll()
    finally:
        os.close(pidfd)


def end(vm: VirtualMachine, table: MountTable) -> None:
    """Unmount what only this view has, and forget it."""
    for mount in reversed(list(table.all)):
        try:
            vm.remove(mount, lazy=True, table=table)
        except (OSError, UmvmError):
            log.exception("unmounting %s", os.fsdecode(mount.point))
    vm.spaces.drop(table)


def space_of_peer(vm: Any, pid: int | None) -> Space | None:
    """The space of a guest that asks; None: it is no guest, or all guests have the same."""
    spaces = getattr(vm, "spaces", None)
    if spaces is None or not spaces.several or pid is None or pid not in vm.guest_pids():
        return None
    space: Space = spaces.of(pid)
    return space


def host_source(vm: VirtualMachine, source: str, space: Space) -> str:
    """The path on the host of a mount's source that a guest names; others as they are."""
    try:
        found = vm.walk(os.fsencode(source), space)
    except OSError:
        return source
    return source if found.mount is not None else os.fsdecode(found.host)
