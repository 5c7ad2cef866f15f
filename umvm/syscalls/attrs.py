"""Calls that change attributes: mode, owner, times, size by path."""

from __future__ import annotations

import errno
import stat
import struct
from typing import TYPE_CHECKING

from umvm.syscalls.context import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_SYMLINK_NOFOLLOW,
    DONE,
    Reply,
    Request,
    Target,
    enter,
    fail,
    handles,
    nameless,
    signed,
    signed64,
    target_at,
    target_fd,
    writable,
)  # fmt: skip
from umvm.syscalls.open import truncate
from umvm.syscalls.transfer import may_grow
from umvm.vfs.attributes import UTIME_OMIT, Times, check_owner, new_mode, times_now, times_of
from umvm.vfs.permission import WRITE, allowed, owns, permit

if TYPE_CHECKING:
    from umvm.vm import VirtualMachine

_AT_FLAGS = AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH
MICRO = 10**6
MAX_SIZE = (1 << 63) - 1


def changed(target: Target) -> None:
    """The attributes of a file changed: what is believed of a directory is void."""
    if stat.S_ISDIR(target.attr.mode):
        target.mount.forget()


def kept(target: Target, **values: int) -> bool:
    """Change what is remembered of a file without a name; the file system knows it no more."""
    file = target.file
    if file is None or target.fh is not None or not nameless(file):
        return False
    file.last = target.attr._replace(**values)
    return True


# --- mode ----------------------------------------------------------------------------------------


def _chmod(vm: VirtualMachine, req: Request, target: Target, mode: int) -> Reply:
    caller = enter(vm, req)
    mount, attr = target.mount, target.attr
    writable(mount)
    if stat.S_ISLNK(attr.mode):
        raise fail(errno.EOPNOTSUPP)
    mode = new_mode(attr, caller, mode) if mount.permissions() else mode & 0o7777
    if kept(target, mode=stat.S_IFMT(attr.mode) | mode):
        return DONE
    mount.fs.chmod(target.path, mode, target.fh)
    if mode & (stat.S_ISUID | stat.S_ISGID):
        vm.files.setid(mount, target.path, attr)
    changed(target)
    return DONE


@handles("chmod")
def sys_chmod(vm: VirtualMachine, req: Request) -> Reply | None:
    """chmod(2)."""
    target = target_at(vm, req, AT_FDCWD, req.args[0], 0, 0)
    return _chmod(vm, req, target, req.args[1]) if isinstance(target, Target) else target


@handles("fchmod")
def sys_fchmod(vm: VirtualMachine, req: Request) -> Reply | None:
    """fchmod(2)."""
    target = target_fd(vm, req, signed(req.args[0]))
    return _chmod(vm, req, target, req.args[1]) if target is not None else None


@handles("fchmodat", "fchmodat2")
def sys_fchmodat(vm: VirtualMachine, req: Request) -> Reply | None:
    """fchmodat(2) without flags, fchmodat2(2) with them."""
    a = req.args
    flags = signed(a[3]) if req.nr == 452 else 0
    if flags & ~_AT_FLAGS:
        raise fail(errno.EINVAL)
    target = target_at(vm, req, signed(a[0]), a[1], flags, 1)
    return _chmod(vm, req, target, a[2]) if isinstance(target, Target) else target


# --- owner ---------------------------------------------------------------------------------------


def _chown(vm: VirtualMachine, req: Request, target: Target, uid: int, gid: int) -> Reply:
    caller = enter(vm, req)
    mount = target.mount
    writable(mount)
    uid, gid = signed(uid), signed(gid)
    attr = target.attr
    mode = check_owner(attr, caller, uid, gid) if mount.permissions() else None
    if kept(target, uid=attr.uid if uid == -1 else uid, gid=attr.gid if gid == -1 else gid):
        return DONE
    if mode is not None:
        mount.fs.chmod(target.path, mode, target.fh)
    mount.fs.chown(target.path, uid, gid, target.fh)
    changed(target)
    return DONE


@handles("chown", "lchown")
def sys_chown(vm: VirtualMachine, req: Request) -> Reply | None:
    """chown(2), lchown(2)."""
    a = req.args
    flags = AT_SYMLINK_NOFOLLOW if req.nr == 94 else 0
    target = target_at(vm, req, AT_FDCWD, a[0], flags, 0)
    return _chown(vm, req, target, a[1], a[2]) if isinstance(target, Target) else target


@handles("fchown")
def sys_fchown(vm: VirtualMachine, req: Request) -> Reply | None:
    """fchown(2)."""
    a = req.args
    target = target_fd(vm, req, signed(a[0]))
    return _chown(vm, req, target, a[1], a[2]) if target is not None else None


@handles("fchownat")
def sys_fchownat(vm: VirtualMachine, req: Request) -> Reply | None:
    """fchownat(2)."""
    a = req.args
    flags = signed(a[4])
    if flags & ~_AT_FLAGS:
        raise fail(errno.EINVAL)
    target = target_at(vm, req, signed(a[0]), a[1], flags, 1)
    return _chown(vm, req, target, a[2], a[3]) if isinstance(target, Target) else target


# --- times ---------------------------------------------------------------------------------------


def _utimens(vm: VirtualMachine, req: Request, target: Target, times: Times) -> Reply:
    caller = enter(vm, req)
    mount, attr = target.mount, target.attr
    writable(mount)
    if mount.permissions() and not owns(attr, caller):
        if not times.touch:
            raise fail(errno.EPERM)
        if not allowed(attr, caller, WRITE):
            raise fail(errno.EACCES)
    atime = attr.atime_ns if times.atime_ns is None else times.atime_ns
    mtime = attr.mtime_ns if times.mtime_ns is None else times.mtime_ns
    if kept(target, atime_ns=atime, mtime_ns=mtime):
        return DONE
    if times.touch:
        mount.fs.touch(target.path, target.fh)
    else:
        mount.fs.utimens(target.path, times.atime_ns, times.mtime_ns, target.fh)
    changed(target)
    return DONE


def _utime_path(
    vm: VirtualMachine, req: Request, dirfd: int, addr: int, times: Times, index: int
) -> Reply | None:
    target = target_at(vm, req, dirfd, addr, 0, index)
    return _utimens(vm, req, target, times) if isinstance(target, Target) else target


@handles("utime")
def sys_utime(vm: VirtualMachine, req: Request) -> Reply | None:
    """utime(2): seconds."""
    path, addr, *_ = req.args
    times: Times | None = times_now()
    if addr:
        atime, mtime = struct.unpack("<qq", req.read(addr, 16))
        times = times_of((atime, 0), (mtime, 0))
    assert times is not None
    return _utime_path(vm, req, AT_FDCWD, path, times, 0)


@handles("utimes", "futimesat")
def sys_utimes(vm: VirtualMachine, req: Request) -> Reply | None:
    """utimes(2), futimesat(2): microseconds; a null path means the descriptor."""
    a = req.args
    at = int(req.nr == 261)
    dirfd, path, addr = (signed(a[0]), a[1], a[2]) if at else (AT_FDCWD, a[0], a[1])
    times: Times | None = times_now()
    if addr:
        pairs = struct.unpack("<qqqq", req.read(addr, 32))
        if any(not 0 <= micro < MICRO for micro in pairs[1::2]):
            raise fail(errno.EINVAL)
        times = times_of((pairs[0], pairs[1] * 1000), (pairs[2], pairs[3] * 1000))
    assert times is not None
    if not path and dirfd != AT_FDCWD:
        return _futimens(vm, req, dirfd, times)
    return _utime_path(vm, req, dirfd, path, times, at)


def _futimens(vm: VirtualMachine, req: Request, fd: int, times: Times) -> Reply | None:
    target = target_fd(vm, req, fd)
    return _utimens(vm, req, target, times) if target is not None else None


@handles("utimensat")
def sys_utimensat(vm: VirtualMachine, req: Request) -> Reply | None:
    """utimensat(2), futimens(3): nanoseconds, "now" or "keep"."""
    fd, path, addr, given, *_ = req.args
    dirfd, flags = signed(fd), signed(given)
    stamps = None
    if addr:
        atime, atime_ns, mtime, mtime_ns = struct.unpack("<qqqq", req.read(addr, 32))
        stamps = (atime, atime_ns), (mtime, mtime_ns)
        if atime_ns == mtime_ns == UTIME_OMIT:
            return DONE  # not even the path is looked at
    if not path and dirfd != AT_FDCWD:
        if flags:
            raise fail(errno.EINVAL)
        target: Target | Reply | None = target_fd(vm, req, dirfd)
    else:
        if flags & ~_AT_FLAGS:
            raise fail(errno.EINVAL)
        target = target_at(vm, req, dirfd, path, flags, 1)
    if not isinstance(target, Target):
        return target
    times = times_of(*stamps) if stamps else times_now()
    assert times is not None
    return _utimens(vm, req, target, times)


# --- size ----------------------------------------------------------------------------------------


@handles("truncate")
def sys_truncate(vm: VirtualMachine, req: Request) -> Reply | None:
    """truncate(2)."""
    size = signed64(req.args[1])
    if size < 0:
        raise fail(errno.EINVAL)
    target = target_at(vm, req, AT_FDCWD, req.args[0], 0, 0)
    if not isinstance(target, Target):
        return target
    mount, attr = target.mount, target.attr
    if not stat.S_ISREG(attr.mode):
        raise fail(errno.EISDIR if stat.S_ISDIR(attr.mode) else errno.EINVAL)
    caller = enter(vm, req)
    writable(mount)
    permit(mount, attr, caller, WRITE)
    if vm.images.running(mount, target.path, attr):
        raise fail(errno.ETXTBSY)
    if size > attr.size:
        may_grow(req, size)
    truncate(vm, mount, target.path, attr, size, target.fh, caller)
    return DONE


# --- file attributes (chattr) --------------------------------------------------------------------


@handles("file_getattr", "file_setattr")
def sys_file_attr(vm: VirtualMachine, req: Request) -> Reply | None:
    """file_getattr(2), file_setattr(2): no served file system has such attributes (EOPNOTSUPP)."""
    a = req.args
    flags = signed(a[4])
    if flags & ~_AT_FLAGS:
        raise fail(errno.EINVAL)
    target = target_at(vm, req, signed(a[0]), a[1], flags, 1)
    if not isinstance(target, Target):
        return target
    raise fail(errno.EOPNOTSUPP)
