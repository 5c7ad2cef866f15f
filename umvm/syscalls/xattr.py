"""Extended attributes: by path, by link, by descriptor, and the *xattrat calls of Linux 6.13."""

from __future__ import annotations

import errno
import stat
import struct
from collections.abc import Callable
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
    signed,
    target_at,
    target_fd,
    writable,
)  # fmt: skip
from umvm.vfs.permission import READ, WRITE, owns, permit

if TYPE_CHECKING:
    from umvm.vm import VirtualMachine

XATTR_NAME_MAX, XATTR_SIZE_MAX, XATTR_LIST_MAX = 255, 65536, 65536
XATTR_CREATE, XATTR_REPLACE = 1, 2
_ARGS = struct.Struct("<QII")
"""struct xattr_args: address of the value, its size, flags."""


# --- finding the file and the other arguments ----------------------------------------------------


def _find(vm: VirtualMachine, req: Request, numbers: tuple[int, int, int]) -> Target | Reply | None:
    """The file of the plain, the l… or the f… call, which have these numbers."""
    if req.nr == numbers[2]:
        return target_fd(vm, req, signed(req.args[0]))
    flags = AT_SYMLINK_NOFOLLOW if req.nr == numbers[1] else 0
    return target_at(vm, req, AT_FDCWD, req.args[0], flags, 0)


def _find_at(vm: VirtualMachine, req: Request) -> Target | Reply | None:
    dirfd, path, flags, *_ = req.args
    if signed(flags) & ~(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH):
        raise fail(errno.EINVAL)
    return target_at(vm, req, signed(dirfd), path, flags, 1)


def attribute_name(req: Request, addr: int) -> bytes:
    """A name. **Errors** ERANGE: empty or over 255 bytes; EFAULT."""
    try:
        name = req.string(addr, XATTR_NAME_MAX + 1)
    except OSError as error:
        raise fail(errno.ERANGE) if error.errno == errno.ENAMETOOLONG else error from None
    if not name:
        raise fail(errno.ERANGE)
    return name


def xattr_args(req: Request) -> tuple[int, int, int]:
    """struct xattr_args of setxattrat and getxattrat: (value, size, flags)."""
    addr, size = req.args[4], req.args[5]
    if size < _ARGS.size:
        raise fail(errno.EINVAL)
    if size > 4096:
        raise fail(errno.E2BIG)
    text = req.read(addr, size)
    if any(text[_ARGS.size :]):
        raise fail(errno.E2BIG)
    value, length, flags = _ARGS.unpack_from(text)
    return value, length, flags


def _check(vm: VirtualMachine, req: Request, target: Target, name: bytes, mask: int) -> None:
    """xattr_permission() of fs/xattr.c. **Errors** EROFS, EPERM, ENODATA, EACCES."""
    caller = enter(vm, req)
    mount, attr = target.mount, target.attr
    if mask & WRITE:
        writable(mount)
    if not mount.permissions() or name.startswith((b"security.", b"system.")):
        return
    if name.startswith(b"trusted."):
        if caller.uid != 0:
            raise fail(errno.EPERM if mask & WRITE else errno.ENODATA)
        return
    if name.startswith(b"user."):
        if not (stat.S_ISREG(attr.mode) or stat.S_ISDIR(attr.mode)):
            raise fail(errno.EPERM if mask & WRITE else errno.ENODATA)
        sticky = stat.S_ISDIR(attr.mode) and attr.mode & stat.S_ISVTX
        if sticky and mask & WRITE and not owns(attr, caller):
            raise fail(errno.EPERM)
    permit(mount, attr, caller, mask)


# --- the calls -----------------------------------------------------------------------------------


def _set(
    vm: VirtualMachine, req: Request, find: Callable[[], Target | Reply | None], name_addr: int,
    addr: int, size: int, flags: int,
) -> Reply | None:  # fmt: skip
    if flags & ~(XATTR_CREATE | XATTR_REPLACE):
        raise fail(errno.EINVAL)
    name = attribute_name(req, name_addr)
    if size > XATTR_SIZE_MAX:
        raise fail(errno.E2BIG)
    value = req.read(addr, size)
    target = find()
    if not isinstance(target, Target):
        return target
    _check(vm, req, target, name, WRITE)
    target.mount.fs.setxattr(target.path, name, value, flags, target.fh)
    return DONE


@handles("setxattr", "lsetxattr", "fsetxattr")
def sys_setxattr(vm: VirtualMachine, req: Request) -> Reply | None:
    """setxattr(2)."""
    a = req.args
    numbers = (188, 189, 190)
    return _set(vm, req, lambda: _find(vm, req, numbers), a[1], a[2], a[3], signed(a[4]))


@handles("setxattrat")
def sys_setxattrat(vm: VirtualMachine, req: Request) -> Reply | None:
    """setxattrat(2)."""
    value, size, flags = xattr_args(req)
    return _set(vm, req, lambda: _find_at(vm, req), req.args[3], value, size, flags)


def _get(
    vm: VirtualMachine, req: Request, find: Callable[[], Target | Reply | None], name_addr: int,
    addr: int, size: int,
) -> Reply | None:  # fmt: skip
    name = attribute_name(req, name_addr)
    target = find()
    if not isinstance(target, Target):
        return target
    _check(vm, req, target, name, READ)
    value = target.mount.fs.getxattr(target.path, name, target.fh)
    return give(req, value, addr, min(size, XATTR_SIZE_MAX))


def give(req: Request, value: bytes, addr: int, size: int) -> Reply:
    """Copy a result out. Size 0 asks for the length. **Errors** ERANGE: too little room."""
    if size:
        if len(value) > size:
            raise fail(errno.ERANGE)
        req.write(addr, value)
    return Reply.value(len(value))


@handles("getxattr", "lgetxattr", "fgetxattr")
def sys_getxattr(vm: VirtualMachine, req: Request) -> Reply | None:
    """getxattr(2)."""
    a = req.args
    return _get(vm, req, lambda: _find(vm, req, (191, 192, 193)), a[1], a[2], a[3])


@handles("getxattrat")
def sys_getxattrat(vm: VirtualMachine, req: Request) -> Reply | None:
    """getxattrat(2)."""
    value, size, flags = xattr_args(req)
    if flags:
        raise fail(errno.EINVAL)
    return _get(vm, req, lambda: _find_at(vm, req), req.args[3], value, size)


def _list(
    vm: VirtualMachine, req: Request, target: Target | Reply | None, addr: int, size: int
) -> Reply | None:
    if not isinstance(target, Target):
        return target
    caller = enter(vm, req)
    names = target.mount.fs.listxattr(target.path, target.fh)
    if caller.uid != 0:
        names = [name for name in names if not name.startswith(b"trusted.")]
    text = b"".join(name + b"\0" for name in names)
    return give(req, text, addr, min(size, XATTR_LIST_MAX))


@handles("listxattr", "llistxattr", "flistxattr")
def sys_listxattr(vm: VirtualMachine, req: Request) -> Reply | None:
    """listxattr(2)."""
    a = req.args
    return _list(vm, req, _find(vm, req, (194, 195, 196)), a[1], a[2])


@handles("listxattrat")
def sys_listxattrat(vm: VirtualMachine, req: Request) -> Reply | None:
    """listxattrat(2)."""
    return _list(vm, req, _find_at(vm, req), req.args[3], req.args[4])


def _remove(
    vm: VirtualMachine, req: Request, find: Callable[[], Target | Reply | None], name_addr: int
) -> Reply | None:
    name = attribute_name(req, name_addr)
    target = find()
    if not isinstance(target, Target):
        return target
    _check(vm, req, target, name, WRITE)
    target.mount.fs.removexattr(target.path, name, target.fh)
    return DONE


@handles("removexattr", "lremovexattr", "fremovexattr")
def sys_removexattr(vm: VirtualMachine, req: Request) -> Reply | None:
    """removexattr(2)."""
    return _remove(vm, req, lambda: _find(vm, req, (197, 198, 199)), req.args[1])


@handles("removexattrat")
def sys_removexattrat(vm: VirtualMachine, req: Request) -> Reply | None:
    """removexattrat(2)."""
    return _remove(vm, req, lambda: _find_at(vm, req), req.args[3])
