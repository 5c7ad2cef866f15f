"""stat, statx, access, readlink, statfs and their descriptor forms."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from functools import cache
from typing import TYPE_CHECKING

from umvm.guest.proc import mount_id
from umvm.interfaces.filesystem import Attr, Caller, set_caller
from umvm.syscalls.context import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_NO_AUTOMOUNT,
    AT_SYMLINK_NOFOLLOW,
    DONE,
    Mount,
    Opened,
    Reply,
    Request,
    Where,
    attributes,
    enter,
    fail,
    handles,
    host_path,
    inode,
    locate,
    look,
    opened,
    run_host,
    signed,
    target_empty,
)  # fmt: skip
from umvm.syscalls.identity import shown
from umvm.syscalls.readonly import check_access
from umvm.vfs.permission import EXEC, permit

if TYPE_CHECKING:
    from umvm.vm import VirtualMachine

AT_EACCESS = 0x200
AT_STATX_SYNC_TYPE = 0x6000
STATX_BASIC_STATS, STATX_BTIME, STATX_MNT_ID, STATX_MNT_ID_UNIQUE = 0x7FF, 0x800, 0x1000, 0x4000
STATX_RESERVED = 0x80000000
STATX_ATTR_AUTOMOUNT, STATX_ATTR_MOUNT_ROOT, STATX_ATTR_DAX = 0x1000, 0x2000, 0x200000
ATTRIBUTES = STATX_ATTR_AUTOMOUNT | STATX_ATTR_MOUNT_ROOT | STATX_ATTR_DAX
"""The attributes that the VFS itself can tell (vfs_getattr_nosec)."""
FUSE_SUPER_MAGIC = 0x65735546
_MOUNT_FLAGS = {"nosuid": 2, "nodev": 4, "noexec": 8, "noatime": 1024, "nodiratime": 2048}
ST_RDONLY, ST_VALID, ST_RELATIME = 1, 0x20, 4096
_STAT = struct.Struct("<QQQIIIIQqqqqQqQqQ24x")
"""struct stat of x86-64 (arch/x86/include/uapi/asm/stat.h)."""
_STATX = struct.Struct("<IIQIIIHHQQQQqIiqIiqIiqIiIIIIQ104x")
"""struct statx (include/uapi/linux/stat.h): mask … attribute mask; a, b, c, mtime; devices."""
_STATFS = struct.Struct("<qqQQQQQiiqqq32x")
SECOND = 10**9
AT_FLAGS = AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_EMPTY_PATH | AT_STATX_SYNC_TYPE
_libc = ctypes.CDLL(None, use_errno=True)


def pack_stat(mount: Mount, inside: bytes, a: Attr) -> bytes:
    """struct stat."""
    atime, mtime, ctime = a.atime_ns, a.mtime_ns, a.ctime_ns
    return _STAT.pack(
        mount.dev, a.ino or inode(mount, inside, a), a.nlink, a.mode, a.uid & 0xFFFFFFFF,
        a.gid & 0xFFFFFFFF, 0, a.rdev, a.size, a.blksize,
        a.blocks if a.blocks >= 0 else (a.size + 511) // 512,
        atime // SECOND, atime % SECOND, mtime // SECOND, mtime % SECOND, ctime // SECOND,
        ctime % SECOND,
    )  # fmt: skip


def pack_statx(mount: Mount, inside: bytes, a: Attr, mask: int = 0) -> bytes:
    """struct statx; `mask` is what the caller asked for."""
    unique = mask & STATX_MNT_ID_UNIQUE
    got = STATX_BASIC_STATS | (unique or STATX_MNT_ID)
    if a.btime_ns:
        got |= mask & STATX_BTIME
    dev = mount.dev
    return _STATX.pack(
        got, a.blksize, STATX_ATTR_MOUNT_ROOT if inside == b"/" else 0, a.nlink,
        a.uid & 0xFFFFFFFF, a.gid & 0xFFFFFFFF, a.mode, 0, inode(mount, inside, a), a.size,
        a.blocks if a.blocks >= 0 else (a.size + 511) // 512, ATTRIBUTES,
        a.atime_ns // SECOND, a.atime_ns % SECOND, 0, a.btime_ns // SECOND, a.btime_ns % SECOND, 0,
        a.ctime_ns // SECOND, a.ctime_ns % SECOND, 0, a.mtime_ns // SECOND, a.mtime_ns % SECOND, 0,
        os.major(a.rdev), os.minor(a.rdev), os.major(dev), os.minor(dev), mount_id(mount),
    )  # fmt: skip


# --- stat ----------------------------------------------------------------------------------------


def _stat_path(
    vm: VirtualMachine, req: Request, dirfd: int, addr: int, flags: int, out: int, index: int
) -> Reply | None:
    path = req.string(addr) if addr else b""
    if not path:
        if not flags & AT_EMPTY_PATH:
            raise fail(errno.ENOENT if addr else errno.EFAULT)
        target = target_empty(vm, req, dirfd)
        if target is None:
            return None
        req.write(out, pack_stat(target.mount, target.path, shown(vm, target.attr)))
        return DONE
    where = locate(vm, req, dirfd, path, not flags & AT_SYMLINK_NOFOLLOW)
    mount = where.mount
    if mount is None:
        return _stat_host(vm, req, where, flags, out, index)
    attr = where.attr or look(where)
    req.write(out, pack_stat(mount, where.inside, shown(vm, attr)))
    return DONE


def _stat_host(
    vm: VirtualMachine, req: Request, where: Where, flags: int, out: int, index: int
) -> Reply | None:
    """A file of the host: the kernel, or the supervisor where that saves changing arguments."""
    if not where.changed or not may_answer(vm, req):
        return run_host(vm, req, (index, where))
    buffer = ctypes.create_string_buffer(_STAT.size)
    kept = flags & (AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT)
    host_call(262, AT_FDCWD, host_path(where), buffer, kept)
    req.write(out, buffer.raw)
    return DONE


@cache
def _own_ids() -> tuple[int, int, frozenset[int]]:
    return os.geteuid(), os.getegid(), frozenset(os.getgroups())


def may_answer(vm: VirtualMachine, req: Request) -> bool:
    """Would the host kernel tell the guest the same as the supervisor?"""
    task = vm.procs.task(req.tid)
    task = task.kernel or task
    uid, gid, groups = _own_ids()
    caller = task.caller
    return (
        caller.uid == uid and caller.gid == gid and groups.issuperset(caller.groups)
        and len(groups) == len(caller.groups) and task.real is caller
    )  # fmt: skip


def host_call(number: int, *args: int | bytes | ctypes.Array[ctypes.c_char]) -> int:
    """A system call of the supervisor's own. OSError."""
    plain = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    result: int = _libc.syscall(ctypes.c_long(number), *plain)
    if result < 0:
        raise fail(ctypes.get_errno())
    return result


@handles("stat")
def sys_stat(vm: VirtualMachine, req: Request) -> Reply | None:
    """stat(2)."""
    a = req.args
    return _stat_path(vm, req, AT_FDCWD, a[0], 0, a[1], 0)


@handles("lstat")
def sys_lstat(vm: VirtualMachine, req: Request) -> Reply | None:
    """lstat(2)."""
    a = req.args
    return _stat_path(vm, req, AT_FDCWD, a[0], AT_SYMLINK_NOFOLLOW, a[1], 0)


@handles("newfstatat")
def sys_newfstatat(vm: VirtualMachine, req: Request) -> Reply | None:
    """fstatat(2)."""
    dirfd, addr, out, flags, *_ = req.args
    if flags & 0xFFFFFFFF & ~AT_FLAGS:
        raise fail(errno.EINVAL)
    return _stat_path(vm, req, signed(dirfd), addr, flags, out, 1)


@handles("statx")
def sys_statx(vm: VirtualMachine, req: Request) -> Reply | None:
    """statx(2)."""
    first, addr, flags, mask, out, _ = req.args
    dirfd = signed(first)
    path = req.string(addr) if addr else b""
    if mask & STATX_RESERVED or flags & 0xFFFFFFFF & ~AT_FLAGS:
        raise fail(errno.EINVAL)
    if flags & AT_STATX_SYNC_TYPE == AT_STATX_SYNC_TYPE:
        raise fail(errno.EINVAL)
    if not path:
        if not flags & AT_EMPTY_PATH:
            raise fail(errno.ENOENT if addr else errno.EFAULT)
        target = target_empty(vm, req, dirfd)
        if target is None:
            return None
        req.write(out, pack_statx(target.mount, target.path, shown(vm, target.attr), mask))
        return DONE
    where = locate(vm, req, dirfd, path, not flags & AT_SYMLINK_NOFOLLOW)
    if where.mount is None:
        if not where.changed or not may_answer(vm, req):
            return run_host(vm, req, (1, where))
        buffer = ctypes.create_string_buffer(_STATX.size)
        kept = flags & ~AT_EMPTY_PATH & 0xFFFFFFFF
        host_call(332, AT_FDCWD, host_path(where), kept, mask & 0xFFFFFFFF, buffer)
        req.write(out, buffer.raw)
        return DONE
    attr = look(where)
    req.write(out, pack_statx(where.mount, where.inside, shown(vm, attr), mask))
    return DONE


@handles("fstat")
def sys_fstat(vm: VirtualMachine, req: Request) -> Reply | None:
    """fstat(2)."""
    file = opened(vm, req, signed(req.args[0]))
    if file is None:
        return None
    enter(vm, req)
    req.write(req.args[1], pack_stat(file.mount, file.path, shown(vm, attributes(file))))
    return DONE


# --- access --------------------------------------------------------------------------------------


def _access(
    vm: VirtualMachine, req: Request, dirfd: int, addr: int, mask: int, flags: int, index: int
) -> Reply | None:
    if mask & ~7 or flags & ~(AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW | AT_EACCESS):
        raise fail(errno.EINVAL)
    task = vm.procs.task(req.tid)
    caller = task.caller if flags & AT_EACCESS else task.real
    path = req.string(addr)
    if not path and flags & AT_EMPTY_PATH:
        target = target_empty(vm, req, dirfd)
        if target is None:
            return None
        _permit_access(target.mount, target.path, target.attr, caller, mask)
        return DONE
    where = locate(vm, req, dirfd, path, not flags & AT_SYMLINK_NOFOLLOW, caller=caller)
    if where.mount is not None:
        _permit_access(where.mount, where.inside, look(where), caller, mask)
        return DONE
    if not may_answer(vm, req):
        check_access(where, mask)
        return run_host(vm, req, (index, where))
    if not where.changed and (where.bind is None or not where.bind.read_only):
        return None
    host_call(439, AT_FDCWD, host_path(where), mask, flags & ~AT_EMPTY_PATH)
    check_access(where, mask)
    return DONE


def _permit_access(mount: Mount, inside: bytes, attr: Attr, caller: Caller, mask: int) -> None:
    """do_faccessat() of fs/open.c."""
    if mask & EXEC and stat.S_ISREG(attr.mode) and "noexec" in mount.options:
        raise fail(errno.EACCES)
    permit(mount, attr, caller, mask)
    if not mount.permissions():
        set_caller(caller)
        mount.fs.access(inside, mask)
        if mask & EXEC and stat.S_ISREG(attr.mode) and not attr.mode & 0o111:
            raise fail(errno.EACCES)


@handles("access")
def sys_access(vm: VirtualMachine, req: Request) -> Reply | None:
    """access(2): with the real ids."""
    return _access(vm, req, AT_FDCWD, req.args[0], signed(req.args[1]), 0, 0)


@handles("faccessat")
def sys_faccessat(vm: VirtualMachine, req: Request) -> Reply | None:
    """faccessat(2), the call without flags."""
    a = req.args
    return _access(vm, req, signed(a[0]), a[1], signed(a[2]), 0, 1)


@handles("faccessat2")
def sys_faccessat2(vm: VirtualMachine, req: Request) -> Reply | None:
    """faccessat2(2)."""
    a = req.args
    return _access(vm, req, signed(a[0]), a[1], signed(a[2]), signed(a[3]), 1)


# --- readlink ------------------------------------------------------------------------------------


def _readlink(
    vm: VirtualMachine, req: Request, dirfd: int, addr: int, out: int, size: int, index: int
) -> Reply | None:
    if size <= 0:
        raise fail(errno.EINVAL)
    path = req.string(addr)
    if not path:
        target = _readlink_fd(opened(vm, req, dirfd) if dirfd != AT_FDCWD else None)
        if target is None:
            return None
        enter(vm, req)
    else:
        where = locate(vm, req, dirfd, path, False)
        if where.mount is None:
            special = vm.proc.readlink(where.host, req.tid)
            if special is None:
                own = where.host in (b"/proc/self", b"/proc/thread-self")  # not the supervisor's
                if own or not where.changed or not may_answer(vm, req):
                    return run_host(vm, req, (index, where))
                special = os.readlink(host_path(where))
            target = special
        else:
            if not stat.S_ISLNK(look(where).mode):
                raise fail(errno.EINVAL)
            target = where.mount.fs.readlink(where.inside)
    target = target[:size]
    req.write(out, target)
    return Reply.value(len(target))


def _readlink_fd(file: Opened | None) -> bytes | None:
    if file is None:
        return None
    if not stat.S_ISLNK(attributes(file).mode):
        raise fail(errno.ENOENT)
    return file.mount.fs.readlink(file.path)


@handles("readlink")
def sys_readlink(vm: VirtualMachine, req: Request) -> Reply | None:
    """readlink(2)."""
    a = req.args
    return _readlink(vm, req, AT_FDCWD, a[0], a[1], signed(a[2]), 0)


@handles("readlinkat")
def sys_readlinkat(vm: VirtualMachine, req: Request) -> Reply | None:
    """readlinkat(2)."""
    a = req.args
    return _readlink(vm, req, signed(a[0]), a[1], a[2], signed(a[3]), 1)


# --- statfs --------------------------------------------------------------------------------------


def _statfs(req: Request, mount: Mount, inside: bytes, out: int) -> Reply:
    s = mount.fs.statfs(inside)
    flags = ST_VALID | (ST_RDONLY if mount.read_only else 0)
    flags |= sum(bit for name, bit in _MOUNT_FLAGS.items() if name in mount.options)
    if "noatime" not in mount.options:
        flags |= ST_RELATIME
    req.write(out, _STATFS.pack(
        FUSE_SUPER_MAGIC, s.bsize, s.blocks, s.bfree, s.bavail, s.files, s.ffree,
        mount.ident, 0, s.namemax, s.frsize, flags,
    ))  # fmt: skip
    return DONE


def _statfs_host(vm: VirtualMachine, req: Request, where: Where) -> Reply | None:
    """A file of the host: the supervisor sees the same, but for a read-only bind mount's flag."""
    read_only = where.bind is not None and where.bind.read_only
    if not read_only and not where.changed:
        return None
    buffer = ctypes.create_string_buffer(_STATFS.size)
    host_call(137, host_path(where), buffer)
    fields = list(_STATFS.unpack(buffer.raw))
    if read_only:
        fields[-1] |= ST_RDONLY
    req.write(req.args[1], _STATFS.pack(*fields))
    return DONE


@handles("statfs")
def sys_statfs(vm: VirtualMachine, req: Request) -> Reply | None:
    """statfs(2)."""
    where = locate(vm, req, AT_FDCWD, req.string(req.args[0]))
    if where.mount is None:
        return _statfs_host(vm, req, where)
    return _statfs(req, where.mount, where.inside, req.args[1])


@handles("fstatfs")
def sys_fstatfs(vm: VirtualMachine, req: Request) -> Reply | None:
    """fstatfs(2)."""
    file = opened(vm, req, signed(req.args[0]))
    if file is None:
        return None
    enter(vm, req)
    return _statfs(req, file.mount, file.path, req.args[1])
