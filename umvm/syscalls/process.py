"""Calls that change what a process is: namespaces, credentials, umask.

The kernel runs most of them; the supervisor only has to know.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

from umvm.interfaces.identity import CAP_SYS_ADMIN
from umvm.syscalls.context import DONE, Reply, Request, fail, handles
from umvm.syscalls.identity import may

if TYPE_CHECKING:
    from umvm.vm import VirtualMachine

CLONE_FS, CLONE_THREAD = 0x200, 0x10000
CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
PR_SET_DUMPABLE, UMASK = 4, 95


def _no_new_view(flags: int) -> None:
    """In a mount or user namespace of its own a guest could mount what the view can't see."""
    if flags & (CLONE_NEWNS | CLONE_NEWUSER):
        raise fail(errno.EPERM)


def _no_child_view(flags: int) -> None:
    """The same for a new process or thread, after what copy_process() of kernel/fork.c refuses."""
    if flags & CLONE_FS and flags & (CLONE_NEWNS | CLONE_NEWUSER):
        raise fail(errno.EINVAL)
    if flags & CLONE_THREAD and flags & CLONE_NEWUSER:
        raise fail(errno.EINVAL)
    _no_new_view(flags)


@handles("unshare")
def sys_unshare(vm: VirtualMachine, req: Request) -> Reply | None:
    """unshare(2): a mount namespace is a view of the guest's own, for guests that have
    CAP_SYS_ADMIN; user namespaces are EPERM."""
    flags = req.args[0]
    if not flags & CLONE_NEWNS or flags & CLONE_NEWUSER or not may(vm, req, CAP_SYS_ADMIN):
        _no_new_view(flags)
        return None
    from umvm.guest.children import unshare

    unshare(vm, req.tid)
    rest = flags & ~CLONE_NEWNS
    return req.rewrite({0: rest}) if rest else DONE


@handles("clone")
def sys_clone(vm: VirtualMachine, req: Request) -> Reply | None:
    """clone(2), only with namespace flags: EPERM for mount and user namespaces, EINVAL where they
    can't be shared."""
    _no_child_view(req.args[0])
    return None


@handles("clone3")
def sys_clone3(vm: VirtualMachine, req: Request) -> Reply | None:
    """clone3(2): as clone(2)."""
    if req.args[1] >= 8:
        (flags,) = struct.unpack("<Q", req.read(req.args[0], 8))
        _no_child_view(flags)
    return None


@handles("setns")
def sys_setns(vm: VirtualMachine, req: Request) -> Reply | None:
    """setns(2): EPERM, as the namespace entered may have other mounts."""
    raise fail(errno.EPERM)


@handles("prctl")
def sys_prctl(vm: VirtualMachine, req: Request) -> Reply | None:
    """prctl(PR_SET_DUMPABLE): accepted, not done, as the supervisor must be able to read guests."""
    if req.args[0] == PR_SET_DUMPABLE and req.args[1] == 0:
        return DONE
    return None


@handles(
    "umask", "setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid", "setfsuid",
    "setfsgid", "setgroups", "capset",
)  # fmt: skip
def sys_credentials(vm: VirtualMachine, req: Request) -> Reply | None:
    """The kernel changes the credentials; what we know of them is void."""
    vm.procs.forget(req.tid)
    if req.nr != UMASK:
        vm.engine.set_answers(False)
    return None
