"""Calls on user ids and group ids where a module gives the guests an identity.

Without one they are the kernel's (umvm/syscalls/process.py). umvm/guest/credentials.py keeps what
threads have, umvm/syscalls/privilege.py has the calls on capabilities, and execve(2).
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from umvm.guest.process import status
from umvm.interfaces.filesystem import Attr
from umvm.interfaces.identity import CAP_SETGID, Credentials, Identity
from umvm.syscalls.context import DONE, Reply, Request, fail, registry, signed
from umvm.vfs import credentials as rules

if TYPE_CHECKING:
    from umvm.vm import VirtualMachine

Handler = Callable[["VirtualMachine", Request, Identity], Reply | None]
CALLS: dict[str, Handler] = {}
"""Asked while an identity is active, after the modules' hooks and before the call's family."""
NGROUPS_MAX = 65536
NONE = 0xFFFFFFFF


handles = registry(CALLS)
"""Register a function for system calls, by name."""


def credentials(vm: VirtualMachine, tid: int, identity: Identity) -> Credentials:
    """The credentials that a guest thread has. OSError(ESRCH) when it is gone."""
    return vm.creds.get(tid)


def may(vm: VirtualMachine, req: Request, capability: int) -> bool:
    """Has the caller a capability in its effective set, as far as guests can see?"""
    if vm.identity is not None:
        return credentials(vm, req.tid, vm.identity).may(capability)
    return bool(int(status(req.tid)[b"CapEff"], 16) >> capability & 1)


def shown(vm: VirtualMachine, attr: Attr) -> Attr:
    """A served file's attributes with the owner that guests are shown."""
    if vm.identity is None:
        return attr
    uid, gid = vm.identity.owner(attr.uid & NONE, attr.gid & NONE)
    return attr._replace(uid=uid, gid=gid)


def change(vm: VirtualMachine, req: Request, identity: Identity, new: Credentials) -> Reply:
    """Give the caller new credentials."""
    old = credentials(vm, req.tid, identity)
    if new != old:
        vm.creds.change(req.tid, rules.committed(old, new))
        vm.procs.forget(req.tid)
    return DONE


def _id(number: int) -> int | None:
    """An id argument; None: -1."""
    number &= NONE
    return None if number == NONE else number


def _valid(number: int) -> int:
    value = _id(number)
    if value is None:
        raise fail(errno.EINVAL)
    return value


# --- one id --------------------------------------------------------------------------------------


def _getter(field: str) -> Handler:
    def get(vm: VirtualMachine, req: Request, identity: Identity) -> Reply:
        return Reply.value(getattr(credentials(vm, req.tid, identity), field))

    return get


for _name, _field in {
    "getuid": "ruid", "geteuid": "euid", "getgid": "rgid", "getegid": "egid",
}.items():  # fmt: skip
    CALLS[_name] = _getter(_field)


@handles("setuid")
def sys_setuid(vm: VirtualMachine, req: Request, identity: Identity) -> Reply:
    """setuid(2)."""
    old = credentials(vm, req.tid, identity)
    ids, privileged = rules.uids(old)
    new = rules.set_id(ids, _valid(req.args[0]), privileged)
    return change(vm, req, identity, rules.with_uids(old, new))


@handles("setgid")
def sys_setgid(vm: VirtualMachine, req: Request, identity: Identity) -> Reply:
    """setgid(2)."""
    old = credentials(vm, req.tid, identity)
    ids, privileged = rules.gids(old)
    new = rules.set_id(ids, _valid(req.args[0]), privileged)
    return change(vm, req, identity, rules.with_gids(old, new))


@handles("setfsuid")
def sys_setfsuid(vm: VirtualMachine, req: Request, identity: Identity) -> Reply:
    """setfsuid(2): the old id, whatever happens."""
    old = credentials(vm, req.tid, identity)
    new = _id(req.args[0])
    if new is not None:
        change(vm, req, identity, rules.with_fsuid(old, new))
    return Reply.value(old.fsuid)


@handles("setfsgid")
def sys_setfsgid(vm: VirtualMachine, req: Request, identity: Identity) -> Reply:
    """setfsgid(2): the old id, whatever happens."""
    old = credentials(vm, req.tid, identity)
    new = _id(req.args[0])
    if new is not None:
        change(vm, req, identity, rules.with_fsgid(old, new))
    return Reply.value(old.fsgid)


# --- several -------------------------------------------------------------------------------------


@handles("setreuid", "setregid")
def sys_setre(vm: VirtualMachine, req: Request, identity: Identity) -> Reply:
    """setreuid(2), setregid(2)."""
    old = credentials(vm, req.tid, identity)
    user = req.nr == 113
    ids, privileged = rules.uids(old) if user else rules.gids(old)
    new = rules.set_re(ids, _id(req.args[0]), _id(req.args[1]), privileged)
    changed = rules.with_uids(old, new) if user else rules.with_gids(old, new)
    return change(vm, req, identity, changed)


@handles("setresuid", "setresgid")
def sys_setres(vm: VirtualMachine, req: Request, identity: Identity) -> Reply:
    """setresuid(2), setresgid(2)."""
    old = credentials(vm, req.tid, identity)
    user = req.nr == 117
    ids, privileged = rules.uids(old) if user else rules.gids(old)
    wanted = (_id(req.args[0]), _id(req.args[1]), _id(req.args[2]))
    new = rules.set_res(ids, wanted, privileged)
    if new == ids and wanted[1] is None:
        return DONE  # not even the file system's id follows
    changed = rules.with_uids(old, new) if user else rules.with_gids(old, new)
    return change(vm, req, identity, changed)


@handles("getresuid", "getresgid")
def sys_getres(vm: VirtualMachine, req: Request, identity: Identity) -> Reply:
    """getresuid(2), getresgid(2)."""
    own = credentials(vm, req.tid, identity)
    ids, _ = rules.uids(own) if req.nr == 118 else rules.gids(own)
    for address, value in zip(req.args, ids, strict=False):
        req.write(address, struct.pack("<I", value))
    return DONE


@handles("getgroups")
def sys_getgroups(vm: VirtualMachine, req: Request, identity: Identity) -> Reply:
    """getgroups(2)."""
    size = signed(req.args[0])
    groups = credentials(vm, req.tid, identity).groups
    if size < 0 or 0 < size < len(groups):
        raise fail(errno.EINVAL)
    if size:
        req.write(req.args[1], struct.pack(f"<{len(groups)}I", *groups))
    return Reply.value(len(groups))


@handles("setgroups")
def sys_setgroups(vm: VirtualMachine, req: Request, identity: Identity) -> Reply:
    """setgroups(2)."""
    old = credentials(vm, req.tid, identity)
    if not old.may(CAP_SETGID):
        raise fail(errno.EPERM)
    size = req.args[0] & 0xFFFFFFFF
    if size > NGROUPS_MAX:
        raise fail(errno.EINVAL)
    groups = struct.unpack(f"<{size}I", req.read(req.args[1], 4 * size))
    if NONE in groups:
        raise fail(errno.EINVAL)
    return change(vm, req, identity, rules.with_groups(old, groups))
