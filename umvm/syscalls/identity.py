"""Calls on user ids, group ids and capabilities where a module gives the guests an identity.

Without one they are the kernel's (umvm/syscalls/process.py). What a process changed is its mark,
which its children inherit (umvm/guest/marks.py). Credentials belong to a process here, not to a
thread.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from umvm.guest.process import status
from umvm.interfaces.filesystem import Attr
from umvm.interfaces.identity import CAP_SETGID, Credentials, Identity, all_capabilities
from umvm.syscalls.context import DONE, Reply, Request, fail, program_of, signed
from umvm.vfs import credentials as rules

if TYPE_CHECKING:
    from umvm.vm import VirtualMachine

Handler = Callable[["VirtualMachine", Request, Identity], Reply | None]
CALLS: dict[str, Handler] = {}
"""Asked while an identity is active, after the modules' hooks and before the call's family."""
NGROUPS_MAX = 65536
PR_SET_KEEPCAPS = 8
_NONE = 0xFFFFFFFF


def handles(*names: str) -> Callable[[Handler], Handler]:
    """Register a function for system calls, by name."""

    def register(function: Handler) -> Handler:
        for name in names:
            CALLS[name] = function
        return function

    return register


def credentials(vm: VirtualMachine, tid: int, identity: Identity) -> Credentials:
    """The credentials that a guest thread has. OSError(ESRCH) when it is gone."""
    changed: Credentials | None = vm.marks.get(tid, identity)
    return changed or identity.first()


def shown(vm: VirtualMachine, attr: Attr) -> Attr:
    """A served file's attributes with the owner that guests are shown."""
    if vm.identity is None:
        return attr
    uid, gid = vm.identity.owner(attr.uid & _NONE, attr.gid & _NONE)
    return attr._replace(uid=uid, gid=gid)


def _change(vm: VirtualMachine, req: Request, identity: Identity, new: Credentials) -> Reply:
    if new != credentials(vm, req.tid, identity):
        vm.marks.set(req.tid, identity, new if new != identity.first() else None)
        vm.procs.forget(req.tid)
    return DONE


def _id(number: int) -> int | None:
    """An id argument; None: -1."""
    number &= _NONE
    return None if number == _NONE else number


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
    return _change(vm, req, identity, rules.with_uids(old, new))


@handles("setgid")
def sys_setgid(vm: VirtualMachine, req: Request, identity: Identity) -> Reply:
    """setgid(2)."""
    old = credentials(vm, req.tid, identity)
    ids, privileged = rules.gids(old)
    new = rules.set_id(ids, _valid(req.args[0]), privileged)
    return _change(vm, req, identity, rules.with_gids(old, new))


@handles("setfsuid")
def sys_setfsuid(vm: VirtualMachine, req: Request, identity: Identity) -> Reply:
    """setfsuid(2): the old id, whatever happens."""
    old = credentials(vm, req.tid, identity)
    new = _id(req.args[0])
    if new is not None:
        _change(vm, req, identity, rules.with_fsuid(old, new))
    return Reply.value(old.fsuid)


@handles("setfsgid")
def sys_setfsgid(vm: VirtualMachine, req: Request, identity: Identity) -> Reply:
    """setfsgid(2): the old id, whatever happens."""
    old = credentials(vm, req.tid, identity)
    new = _id(req.args[0])
    if new is not None:
        _change(vm, req, identity, rules.with_fsgid(old, new))
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
    return _change(vm, req, identity, changed)


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
    return _change(vm, req, identity, changed)


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
    if _NONE in groups:
        raise fail(errno.EINVAL)
    return _change(vm, req, identity, rules.with_groups(old, groups))


# --- what else changes them -----------------------------------------------------------------------


@handles("execve", "execveat")
def sys_execve(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """execve(2): saved ids and capabilities follow, if a program is there; no answer."""
    old = credentials(vm, req.tid, identity)
    new = rules.after_exec(old, all_capabilities())
    if new != old and program_of(vm, req) is not None:
        _change(vm, req, identity, new)
    return None


@handles("prctl")
def sys_prctl(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """prctl(PR_SET_KEEPCAPS): the kernel does it too, for whoever asks it."""
    option, value, *_ = req.args
    if option & _NONE == PR_SET_KEEPCAPS and value in (0, 1):
        own = credentials(vm, req.tid, identity)
        _change(vm, req, identity, own._replace(keep=bool(value)))
    return None


# --- capabilities --------------------------------------------------------------------------------

_VERSIONS = {0x19980330: 1, 0x20071026: 2, 0x20080522: 2}
"""Version of struct __user_cap_header_struct: number of 32-bit pieces of each set."""
_NEWEST = 0x20080522


def _header(req: Request) -> tuple[int, int]:
    """(pieces, pid). OSError(EINVAL) for an unknown version, after telling the newest."""
    version, pid = struct.unpack("<Ii", req.read(req.args[0], 8))
    if version not in _VERSIONS:
        req.write(req.args[0], struct.pack("<I", _NEWEST))
        raise fail(errno.EINVAL)
    return _VERSIONS[version], pid


@handles("capget")
def sys_capget(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """capget(2)."""
    try:
        pieces, pid = _header(req)
    except OSError as error:
        if error.errno == errno.EINVAL and not req.args[1]:
            return DONE  # that was a question for the version
        raise
    if pid < 0:
        raise fail(errno.EINVAL)
    if pid and not _is_guest(pid):
        return None
    own = credentials(vm, pid or req.tid, identity)
    sets = (own.effective, own.permitted, own.inheritable)
    words = [caps >> 32 * piece & 0xFFFFFFFF for piece in range(pieces) for caps in sets]
    if req.args[1]:
        req.write(req.args[1], struct.pack(f"<{len(words)}I", *words))
    return DONE


def _is_guest(pid: int) -> bool:
    """A process under a filter; OSError(ESRCH): there is none."""
    try:
        return status(pid).get(b"Seccomp") == b"2"
    except OSError:
        raise fail(errno.ESRCH) from None


@handles("capset")
def sys_capset(vm: VirtualMachine, req: Request, identity: Identity) -> Reply:
    """capset(2)."""
    pieces, pid = _header(req)
    if pid not in (0, req.tid):
        raise fail(errno.EPERM)
    words = struct.unpack(f"<{3 * pieces}I", req.read(req.args[1], 12 * pieces))
    every = all_capabilities()
    effective, permitted, inheritable = (
        sum(word << 32 * piece for piece, word in enumerate(words[index::3])) & every
        for index in range(3)
    )
    old = credentials(vm, req.tid, identity)
    new = rules.with_capabilities(old, effective, permitted, inheritable, every)
    return _change(vm, req, identity, new)
