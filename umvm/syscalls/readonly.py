"""What a read-only bind mount refuses, with the errors of fs/namei.c that come before EROFS."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from umvm.syscalls.table import nr
from umvm.vfs.permission import fail

if TYPE_CHECKING:
    from core_accel.request import Request
    from umvm.guest.mounts import Where

_MAKE = frozenset(map(nr, "mkdir mkdirat mknod mknodat symlink symlinkat link linkat bind".split()))
_REMOVE = frozenset(map(nr, "unlink rmdir unlinkat rename renameat renameat2".split()))
_CHANGE = frozenset(
    map(
        nr,
        "truncate chmod fchmodat fchmodat2 chown lchown fchownat utime utimes futimesat utimensat "
        "setxattr lsetxattr removexattr lremovexattr setxattrat removexattrat file_setattr".split(),
    )
)
LOOKS = frozenset(
    map(
        nr,
        "stat lstat newfstatat statx readlink readlinkat getxattr lgetxattr listxattr llistxattr "
        "getxattrat listxattrat".split(),
    )
)
"""Calls that leave what a path leads to as it is."""
_TRUNCATE, _IOCTL = nr("truncate"), nr("ioctl")
BY_FD = frozenset(map(nr, "fchmod fchown fsetxattr fremovexattr".split()))
"""Calls that change a file by a descriptor that needn't be open for writing."""
IOCTLS = frozenset((0x40086602, 0x401C5820, 0x40087602))
"""FS_IOC_SETFLAGS, FS_IOC_FSSETXATTR, FS_IOC_SETVERSION."""


def changes(req: Request) -> bool:
    """Does the call change a file that it finds by a descriptor?"""
    if req.nr == _IOCTL:
        return req.args[1] & 0xFFFFFFFF in IOCTLS
    return req.nr in BY_FD or req.nr in _CHANGE


def check(number: int, where: Where) -> None:
    """A call is about to be run on a file of a read-only bind mount. **Errors** EROFS."""
    if number in _MAKE:
        raise fail(errno.EROFS if where.missing and not where.last_dot else errno.EEXIST)
    if number in _REMOVE:
        raise fail(errno.EROFS)
    if number in _CHANGE:
        if number == _TRUNCATE:
            mode = os.stat(where.host).st_mode
            if not stat.S_ISREG(mode):
                raise fail(errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL)
        raise fail(errno.EROFS)


def check_access(where: Where, mask: int) -> None:
    """access(2) with W_OK: devices, sockets and FIFOs aren't the file system's to write."""
    if where.bind is not None and where.bind.read_only and mask & os.W_OK:
        mode = os.stat(where.host).st_mode
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode):
            raise fail(errno.EROFS)
