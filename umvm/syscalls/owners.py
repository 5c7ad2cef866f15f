"""Calls that show or change who owns a file of the host, where guests have another identity.

Served files are left to the families (umvm/syscalls/stat.py, attrs.py), which show their owners by
umvm.syscalls.identity.shown. The supervisor makes the calls here itself: on the place where a path
leads to in the view, or through /proc/TID/fd/N, which leads to exactly the file that is open, also
with O_PATH (proc_pid_fd(5)).
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from umvm.interfaces.filesystem import Attr
from umvm.interfaces.identity import CAP_CHOWN, Identity
from umvm.syscalls.context import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_SYMLINK_NOFOLLOW,
    DONE,
    Reply,
    Request,
    fail,
    host_path,
    locate,
    signed,
)  # fmt: skip
from umvm.syscalls.identity import CALLS, credentials, handles
from umvm.syscalls.stat import AT_EACCESS, AT_FLAGS, STATX_RESERVED, host_call, may_answer
from umvm.vfs.attributes import check_owner
from umvm.vfs.permission import EXEC

if TYPE_CHECKING:
    from umvm.vm import VirtualMachine

NEWFSTATAT, STATX, FACCESSAT2 = 262, 332, 439
_STAT_SIZE, _STAT_OWNER = 144, 28
_STATX_SIZE, _STATX_OWNER = 256, 20
"""Bytes of the structures, and where uid and gid are in them (stat.h, linux/stat.h)."""
_OWNER = struct.Struct("=II")
_DEVICES = (stat.S_IFCHR, stat.S_IFBLK)
_KEEP = 0xFFFFFFFF


@cache
def _own_uid() -> int:
    return os.geteuid()


class Place(NamedTuple):
    """A file of the host: a path for the supervisor, and the AT_* flags to use it with."""

    path: bytes
    flags: int


def _of_fd(vm: VirtualMachine, req: Request, fd: int) -> Place | None:
    """The file behind a descriptor; None: a served one. **Errors** EBADF."""
    path = b"/proc/%d/fd/%d" % (req.tid, fd)
    try:
        link = os.readlink(path) if fd >= 0 else None
    except FileNotFoundError:
        link = None
    if link is None:
        raise fail(errno.EBADF)
    return Place(path, 0) if vm.named(link) is None and may_answer(vm, req) else None


def _place(
    vm: VirtualMachine, req: Request, dirfd: int, addr: int, flags: int, missing: bool = False
) -> Place | None:
    """Where on the host a path argument leads; None: it doesn't, or the kernel must judge."""
    if not may_answer(vm, req):
        return None
    path = req.string(addr) if addr else b""
    if not path:
        if not flags & AT_EMPTY_PATH:
            return None
        if dirfd == AT_FDCWD:
            link = vm.procs.cwd_link(req.tid)
            return Place(b"/proc/%d/cwd" % req.tid, 0) if vm.named(link) is None else None
        return _of_fd(vm, req, dirfd)
    try:
        where = locate(vm, req, dirfd, path, not flags & AT_SYMLINK_NOFOLLOW, missing)
    except OSError:
        return None  # the call's family finds it too, and tells it in its turn
    if where.mount is not None:
        return None
    kept = flags & AT_SYMLINK_NOFOLLOW
    if not path.startswith(b"/") and where.path.endswith(b" (deleted)"):
        base = b"cwd" if dirfd == AT_FDCWD else b"fd/%d" % dirfd  # a directory without a path
        return Place(b"/proc/%d/%s/%s" % (req.tid, base, path), kept)
    return Place(host_path(where), kept)


# --- stat ----------------------------------------------------------------------------------------


def _show(req: Request, identity: Identity, data: bytearray, at: int, out: int) -> Reply:
    _OWNER.pack_into(data, at, *identity.owner(*_OWNER.unpack_from(data, at)))
    req.write(out, data)
    return DONE


def _stat(req: Request, identity: Identity, place: Place, flags: int, out: int) -> Reply:
    buffer = ctypes.create_string_buffer(_STAT_SIZE)
    flags = flags & ~(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH) | place.flags
    host_call(NEWFSTATAT, AT_FDCWD, place.path, buffer, flags)
    return _show(req, identity, bytearray(buffer.raw), _STAT_OWNER, out)


def _stat_at(
    vm: VirtualMachine,
    req: Request,
    identity: Identity,
    dirfd: int,
    addr: int,
    flags: int,
    out: int,
) -> Reply | None:
    place = _place(vm, req, dirfd, addr, flags)
    return None if place is None else _stat(req, identity, place, flags, out)


@handles("stat", "lstat")
def sys_stat(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """stat(2), lstat(2)."""
    flags = AT_SYMLINK_NOFOLLOW if req.nr == 6 else 0
    return _stat_at(vm, req, identity, AT_FDCWD, req.args[0], flags, req.args[1])


@handles("newfstatat")
def sys_newfstatat(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """fstatat(2)."""
    dirfd, addr, out, flags, *_ = req.args
    if flags & 0xFFFFFFFF & ~AT_FLAGS:
        return None
    return _stat_at(vm, req, identity, signed(dirfd), addr, flags & 0xFFFFFFFF, out)


@handles("fstat")
def sys_fstat(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """fstat(2)."""
    place = _of_fd(vm, req, signed(req.args[0]))
    return None if place is None else _stat(req, identity, place, 0, req.args[1])


@handles("statx")
def sys_statx(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """statx(2): the kernel fills in what the mask asks for, and owners always."""
    dirfd, addr, flags, mask, out, _ = req.args
    if flags & 0xFFFFFFFF & ~AT_FLAGS or mask & STATX_RESERVED:
        return None
    place = _place(vm, req, signed(dirfd), addr, flags)
    if place is None:
        return None
    buffer = ctypes.create_string_buffer(_STATX_SIZE)
    flags = flags & 0xFFFFFFFF & ~(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH) | place.flags
    host_call(STATX, AT_FDCWD, place.path, flags, mask & 0xFFFFFFFF, buffer)
    return _show(req, identity, bytearray(buffer.raw), _STATX_OWNER, out)


# --- access --------------------------------------------------------------------------------------


def _access(
    vm: VirtualMachine,
    req: Request,
    identity: Identity,
    dirfd: int,
    addr: int,
    mask: int,
    flags: int,
) -> Reply | None:
    """What root may do to files of the real user; of others' files the kernel says the truth."""
    if mask & ~7 or flags & ~(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH | AT_EACCESS):
        return None
    own = credentials(vm, req.tid, identity)
    if (own.euid if flags & AT_EACCESS else own.ruid) != 0:
        return None
    place = _place(vm, req, dirfd, addr, flags)
    if place is None:
        return None
    flags = flags & ~(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH) | place.flags
    try:
        host_call(FACCESSAT2, AT_FDCWD, place.path, mask, flags)
    except OSError as error:
        if error.errno != errno.EACCES:
            raise
        st = os.stat(place.path, follow_symlinks=not place.flags)
        allowed = not mask & EXEC or stat.S_ISDIR(st.st_mode) or st.st_mode & 0o111
        if st.st_uid != _own_uid() or not allowed:
            raise
    return DONE


@handles("access")
def sys_access(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """access(2)."""
    return _access(vm, req, identity, AT_FDCWD, req.args[0], signed(req.args[1]), 0)


@handles("faccessat", "faccessat2")
def sys_faccessat(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """faccessat2(2)."""
    a = req.args
    flags = a[3] & 0xFFFFFFFF if req.nr == FACCESSAT2 else 0
    return _access(vm, req, identity, signed(a[0]), a[1], signed(a[2]), flags)


# --- owners --------------------------------------------------------------------------------------


def _chown(
    vm: VirtualMachine, req: Request, identity: Identity, place: Place | None, uid: int, gid: int
) -> Reply | None:
    if place is None:
        return None
    follow = not place.flags & AT_SYMLINK_NOFOLLOW
    st = os.stat(place.path, follow_symlinks=follow)
    now = identity.owner(st.st_uid, st.st_gid)
    if not credentials(vm, req.tid, identity).may(CAP_CHOWN):
        attr = Attr(st.st_mode, uid=now[0], gid=now[1])
        check_owner(attr, vm.procs.caller(req.tid), uid, gid)
    wanted = identity.on_host(uid, gid)
    new_uid = -1 if uid in (-1, now[0]) else wanted[0]
    new_gid = -1 if gid in (-1, now[1]) else wanted[1]
    if (new_uid, new_gid) == (-1, -1) and st.st_uid != _own_uid():
        return DONE
    try:
        os.chown(place.path, new_uid, new_gid, follow_symlinks=follow)
    except PermissionError as error:
        if error.errno != errno.EPERM or not identity.lenient:
            raise
    return DONE


@handles("chown", "lchown")
def sys_chown(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """chown(2), lchown(2)."""
    addr, uid, gid, *_ = req.args
    place = _place(vm, req, AT_FDCWD, addr, AT_SYMLINK_NOFOLLOW if req.nr == 94 else 0)
    return _chown(vm, req, identity, place, signed(uid), signed(gid))


@handles("fchownat")
def sys_fchownat(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """fchownat(2)."""
    dirfd, addr, uid, gid, flags, _ = req.args
    if flags & 0xFFFFFFFF & ~(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH):
        raise fail(errno.EINVAL)
    place = _place(vm, req, signed(dirfd), addr, flags)
    return _chown(vm, req, identity, place, signed(uid), signed(gid))


@handles("fchown")
def sys_fchown(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """fchown(2). **Errors** EBADF: O_PATH."""
    fd = signed(req.args[0])
    place = _of_fd(vm, req, fd)
    if place is not None and _flags(req, fd) & os.O_PATH:
        raise fail(errno.EBADF)
    return _chown(vm, req, identity, place, signed(req.args[1]), signed(req.args[2]))


def _flags(req: Request, fd: int) -> int:
    """The flags of a guest's descriptor (proc_pid_fdinfo(5))."""
    with open(b"/proc/%d/fdinfo/%d" % (req.tid, fd), "rb") as file:
        for line in file:
            if line.startswith(b"flags:"):
                return int(line.split()[1], 8)
    return 0


@handles("mknod", "mknodat")
def sys_mknod(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """mknod(2) of a device, if the identity is lenient: an empty file takes its place.

    Everything else is the kernel's, which gives EPERM for devices.
    """
    a = req.args
    at = int(req.nr == 259)
    mode = a[at + 1]
    if not identity.lenient or stat.S_IFMT(mode) not in _DEVICES or _own_uid() == 0:
        return None
    if credentials(vm, req.tid, identity).euid != 0:
        return None
    place = _place(vm, req, signed(a[0]) if at else AT_FDCWD, a[at], AT_SYMLINK_NOFOLLOW, True)
    if place is None:
        return None
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    wanted = stat.S_IMODE(mode) & ~vm.procs.caller(req.tid).umask
    fd = os.open(place.path, flags, 0o600)
    try:
        os.fchmod(fd, wanted & 0o777)
    finally:
        os.close(fd)
    return DONE


__all__ = ["CALLS"]
