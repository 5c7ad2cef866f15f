"""Capabilities, the prctl(2) options about privilege, and what execve(2) does to credentials.

Asked while a module gives the guests an identity, as umvm/syscalls/identity.py.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from typing import TYPE_CHECKING

from umvm.guest.credentials import auxv_values
from umvm.guest.mounts import Where
from umvm.guest.process import status
from umvm.interfaces.identity import (
    CAP_SETPCAP,
    CAP_SYS_PTRACE,
    Credentials,
    Identity,
    all_capabilities,
)
from umvm.syscalls.context import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_SYMLINK_NOFOLLOW,
    DONE,
    EXECVEAT,
    Reply,
    Request,
    fail,
    locate,
    look,
    signed,
)  # fmt: skip
from umvm.syscalls.execute import MAX_DEPTH, has_agent, may_execute, parse_shebang
from umvm.syscalls.hostfiles import see
from umvm.syscalls.identity import NONE, change, credentials, handles
from umvm.vfs import capabilities as rules

if TYPE_CHECKING:
    from collections.abc import Callable

    from umvm.vm import VirtualMachine

_XATTR = "security.capability"
_PIECE, _ELF_HEADER, _PT_INTERP = 1024, 64, 3

# --- capget, capset ------------------------------------------------------------------------------

_VERSIONS = {0x19980330: 1, 0x20071026: 2, 0x20080522: 2}
"""Version of struct __user_cap_header_struct: number of 32-bit pieces of each set."""
_NEWEST = 0x20080522


def _pieces(req: Request) -> int:
    """32-bit pieces of each set. EINVAL: an unknown version, after telling the newest."""
    (version,) = struct.unpack("<I", req.read(req.args[0], 4))
    if version not in _VERSIONS:
        req.write(req.args[0], struct.pack("<I", _NEWEST))
        raise fail(errno.EINVAL)
    return _VERSIONS[version]


def _pid(req: Request) -> int:
    (pid,) = struct.unpack("<i", req.read(req.args[0] + 4, 4))
    return int(pid)


@handles("capget")
def sys_capget(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """capget(2)."""
    try:
        pieces = _pieces(req)
    except OSError as error:
        if error.errno == errno.EINVAL and not req.args[1]:
            return DONE  # that was a question for the version
        raise
    if not req.args[1]:
        return DONE
    pid = _pid(req)
    if pid < 0:
        raise fail(errno.EINVAL)
    if pid and not is_guest(pid):
        return None
    own = credentials(vm, pid or req.tid, identity)
    sets = (own.effective, own.permitted, own.inheritable)
    words = [caps >> 32 * piece & 0xFFFFFFFF for piece in range(pieces) for caps in sets]
    req.write(req.args[1], struct.pack(f"<{len(words)}I", *words))
    return DONE


def is_guest(pid: int) -> bool:
    """A process under a filter; OSError(ESRCH): there is none."""
    try:
        return status(pid).get(b"Seccomp") == b"2"
    except OSError:
        raise fail(errno.ESRCH) from None


@handles("capset")
def sys_capset(vm: VirtualMachine, req: Request, identity: Identity) -> Reply:
    """capset(2)."""
    pieces = _pieces(req)
    if _pid(req) not in (0, req.tid):
        raise fail(errno.EPERM)
    words = struct.unpack(f"<{3 * pieces}I", req.read(req.args[1], 12 * pieces))
    every = all_capabilities()
    effective, permitted, inheritable = (
        sum(word << 32 * piece for piece, word in enumerate(words[index::3])) & every
        for index in range(3)
    )
    old = credentials(vm, req.tid, identity)
    new = rules.with_capabilities(old, effective, permitted, inheritable)
    return change(vm, req, identity, new)


# --- prctl ---------------------------------------------------------------------------------------

Option = tuple[int, Credentials]
"""A result, and the caller's credentials afterwards."""


def _set_keep(own: Credentials, a: tuple[int, ...]) -> Option:
    return 0, rules.with_keep(own, a[1])


def _set_dumpable(own: Credentials, a: tuple[int, ...]) -> Option:
    if a[1] not in (0, 1):
        raise fail(errno.EINVAL)
    return 0, own._replace(dumpable=a[1])


def _bounding_read(own: Credentials, a: tuple[int, ...]) -> Option:
    if not rules.valid(a[1]):
        raise fail(errno.EINVAL)
    return own.bounding >> a[1] & 1, own


def _set_no_new_privs(own: Credentials, a: tuple[int, ...]) -> Option:
    if a[1] != 1 or any(a[2:5]):
        raise fail(errno.EINVAL)
    return 0, own._replace(no_new_privs=True)


def _get_no_new_privs(own: Credentials, a: tuple[int, ...]) -> Option:
    if any(a[1:5]):
        raise fail(errno.EINVAL)
    return int(own.no_new_privs), own


OPTIONS: dict[int, Callable[[Credentials, tuple[int, ...]], Option]] = {
    3: lambda own, a: (own.dumpable, own),
    4: _set_dumpable,
    7: lambda own, a: (int(own.keep), own),
    8: _set_keep,
    23: _bounding_read,
    24: lambda own, a: (0, rules.without_bounding(own, a[1])),
    27: lambda own, a: (own.securebits, own),
    28: lambda own, a: (0, rules.with_securebits(own, a[1])),
    38: _set_no_new_privs,
    39: _get_no_new_privs,
    47: lambda own, a: rules.ambient(own, a[1], a[2], any(a[3:5])),
}
"""PR_GET_DUMPABLE, PR_SET_DUMPABLE, PR_GET_KEEPCAPS, PR_SET_KEEPCAPS, PR_CAPBSET_READ,
PR_CAPBSET_DROP, PR_GET_SECUREBITS, PR_SET_SECUREBITS, PR_SET_NO_NEW_PRIVS, PR_GET_NO_NEW_PRIVS,
PR_CAP_AMBIENT."""


@handles("prctl")
def sys_prctl(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """prctl(2): none of these options reaches the kernel, where the guest has other credentials."""
    option = OPTIONS.get(req.args[0] & NONE)
    if option is None:
        return None
    result, new = option(credentials(vm, req.tid, identity), req.args)
    change(vm, req, identity, new)
    return Reply.value(result)


# --- threads, exec -------------------------------------------------------------------------------

CLONE_THREAD = 0x00010000


@handles("clone", "clone3")
def sys_clone(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """clone(2), clone3(2): only noted, and only in a process whose threads differ."""
    if vm.creds.splits:
        flags = req.args[0] if req.nr == 56 else 0
        if req.nr != 56 and req.args[1] >= 8:
            (flags,) = struct.unpack("<Q", req.read(req.args[0], 8))
        vm.creds.cloned(req.tid, bool(flags & CLONE_THREAD))
    return None


@handles("execve", "execveat")
def sys_execve(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """execve(2): no answer, but the program will have other credentials. **Errors** EPERM."""
    found = _program(vm, req, identity)
    if found is not None:
        program, linked = found
        old = credentials(vm, req.tid, identity)
        new, secure = rules.after_exec(old, program, _traced(vm, req, identity))
        tgid = vm.creds.exec_begins(req.tid, new, secure)
        if secure or not linked or has_agent(vm):
            vm.engine.watch_exec(req.tid, tgid, auxv_values(new, secure))
    served = len(vm.files) or has_agent(vm) or any(table.all for table in vm.spaces.tables())
    asked = served or not vm.spaces.of(req.tid).plain or _has_followers(vm, req)
    return None if asked else Reply.run()


def _has_followers(vm: VirtualMachine, req: Request) -> bool:
    """Does anybody ask to be told of programs that are executed (umvm_process_exec)?"""
    return vm.calls.listened(req.nr)


def _traced(vm: VirtualMachine, req: Request, identity: Identity) -> bool:
    tracer = vm.procs.task(req.tid).tracer
    return bool(tracer) and not credentials(vm, tracer, identity).may(CAP_SYS_PTRACE)


def _program(
    vm: VirtualMachine, req: Request, identity: Identity
) -> tuple[rules.Program, bool] | None:
    """What the caller executes, of a script its interpreter, and has it an ELF interpreter, which
    makes calls before the program does. None: it can't be executed."""
    at = int(req.nr == EXECVEAT)
    dirfd = signed(req.args[0]) if at else AT_FDCWD
    flags = req.args[4] if at else 0
    try:
        path = req.string(req.args[at])
        if not path and flags & AT_EMPTY_PATH:
            path, dirfd = b"/proc/%d/fd/%d" % (req.tid, dirfd), AT_FDCWD
        for _ in range(MAX_DEPTH + 1):
            where = locate(vm, req, dirfd, path, not flags & AT_SYMLINK_NOFOLLOW)
            head = _head(where)
            script = parse_shebang(head) if head.startswith(b"#!") else None
            if script is None:
                return _of(vm, identity, where), _is_linked(head)
            path, dirfd, flags = script.interpreter, AT_FDCWD, 0
    except OSError:
        pass  # the kernel, or the call's family, tells it
    return None


def _is_linked(head: bytes) -> bool:
    """Has a program a dynamic linker (PT_INTERP)?"""
    if len(head) < _ELF_HEADER or not head.startswith(b"\x7fELF"):
        return True
    (offset,) = struct.unpack_from("<Q", head, 32)
    size, count = struct.unpack_from("<HH", head, 54)
    places = range(offset, min(offset + size * count, len(head) - 3), max(size, 1))
    return any(struct.unpack_from("<I", head, at)[0] == _PT_INTERP for at in places)


def _head(where: Where) -> bytes:
    """The first bytes of a program. OSError: it can't be executed, or read."""
    mount = where.mount
    if mount is not None:
        if not stat.S_ISREG(look(where).mode):
            raise fail(errno.EACCES)
        fh = mount.fs.open(where.inside, os.O_RDONLY)
        try:
            head = bytes(mount.fs.read(where.inside, fh, _PIECE, 0))
        finally:
            mount.fs.release(where.inside, fh)
    else:
        if not may_execute(where.host):
            raise fail(errno.EACCES)
        try:
            fd = os.open(where.host, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except PermissionError:
            return b""
        try:
            head = os.read(fd, _PIECE)
        finally:
            os.close(fd)
    return head


def _of(vm: VirtualMachine, identity: Identity, where: Where) -> rules.Program:
    """What about a file matters: its owner as guests see it, and its capabilities."""
    mount = where.mount
    kept: dict[bytes, bytes] = {}
    if mount is None:
        seen = see(vm, identity, where.host)
        mode, uid, gid = seen.mode, seen.uid, seen.gid
        kept = vm.owners.attributes_of(seen)
        nosuid = bool(os.statvfs(where.host).f_flag & os.ST_NOSUID)
    else:
        attr = look(where)
        mode, uid, gid = attr.mode, *identity.owner(attr.uid & NONE, attr.gid & NONE)
        nosuid = "nosuid" in mount.options
    if nosuid:
        return rules.PLAIN
    try:
        if mount is None:
            value = kept.get(_XATTR.encode()) or os.getxattr(where.host, _XATTR)
        else:
            value = mount.fs.getxattr(where.inside, _XATTR.encode())
        caps = rules.parse_capabilities(value)
    except OSError:
        caps = None
    return rules.Program(mode, uid, gid, caps)


__all__ = ["CAP_SETPCAP", "OPTIONS"]
