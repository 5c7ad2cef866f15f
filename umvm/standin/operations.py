"""What `fuse` (fusepy) offers to subclass: Operations, LoggingMixIn, FuseOSError.

The behaviour is fusepy's; the words are our own. Importable on Python 3.8 and later.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Iterable
from typing import Any

ENOTSUP = errno.ENOTSUP
_ATTRIBUTES_OF_ROOT = {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}


class FuseOSError(OSError):
    """The error of an operation, by its errno."""

    def __init__(self, errno: int) -> None:
        super().__init__(errno, os.strerror(errno))


class Operations:
    """The base of file systems: an empty read-only one. Every operation is a call of the object.

    Operations raise FuseOSError. Paths are str and start with "/". Handles are integers.
    """

    bmap: Any = None
    lock: Any = None

    def __call__(self, op: str, *args: Any) -> Any:
        """Carry out an operation by name; a subclass may look at, or change, every one."""
        method = getattr(self, op, None)
        if method is None:
            raise FuseOSError(errno.EFAULT)
        return method(*args)

    def access(self, path: str, amode: int) -> Any:
        return 0

    def chmod(self, path: str, mode: int) -> Any:
        raise FuseOSError(errno.EROFS)

    def chown(self, path: str, uid: int, gid: int) -> Any:
        raise FuseOSError(errno.EROFS)

    def create(self, path: str, mode: int, fi: Any = None) -> Any:
        """Make and open a file; returns a handle, with raw_fi sets `fi.fh` and returns 0."""
        raise FuseOSError(errno.EROFS)

    def destroy(self, path: str) -> Any:
        """The file system is no longer used; `path` is "/"."""

    def flush(self, path: str, fh: Any) -> Any:
        return 0

    def fsync(self, path: str, datasync: int, fh: Any) -> Any:
        return 0

    def fsyncdir(self, path: str, datasync: int, fh: Any) -> Any:
        return 0

    def getattr(self, path: str, fh: Any = None) -> Any:
        """Return a dictionary with the names of stat(2); times are seconds, or ns with use_ns."""
        if path != "/":
            raise FuseOSError(errno.ENOENT)
        return dict(_ATTRIBUTES_OF_ROOT)

    def getxattr(self, path: str, name: str, position: int = 0) -> Any:
        raise FuseOSError(ENOTSUP)

    def init(self, path: str) -> Any:
        """Called once before use; `path` is "/". The place to start threads."""

    def ioctl(self, path: str, cmd: int, arg: Any, fip: Any, flags: int, data: Any) -> Any:
        raise FuseOSError(errno.ENOTTY)

    def link(self, target: str, source: str) -> Any:
        """Make `target` another name of the file `source`."""
        raise FuseOSError(errno.EROFS)

    def listxattr(self, path: str) -> Iterable[str]:
        return []

    def mkdir(self, path: str, mode: int) -> Any:
        raise FuseOSError(errno.EROFS)

    def mknod(self, path: str, mode: int, dev: int) -> Any:
        raise FuseOSError(errno.EROFS)

    def open(self, path: str, flags: Any) -> Any:
        """Return a handle; with raw_fi `flags` is a fuse_file_info whose `fh` is to be set."""
        return 0

    def opendir(self, path: str) -> Any:
        return 0

    def read(self, path: str, size: int, offset: int, fh: Any) -> Any:
        raise FuseOSError(errno.EIO)

    def readdir(self, path: str, fh: Any) -> Any:
        """Return names, or (name, attributes, offset)."""
        return [".", ".."]

    def readlink(self, path: str) -> Any:
        raise FuseOSError(errno.ENOENT)

    def release(self, path: str, fh: Any) -> Any:
        return 0

    def releasedir(self, path: str, fh: Any) -> Any:
        return 0

    def removexattr(self, path: str, name: str) -> Any:
        raise FuseOSError(ENOTSUP)

    def rename(self, old: str, new: str) -> Any:
        raise FuseOSError(errno.EROFS)

    def rmdir(self, path: str) -> Any:
        raise FuseOSError(errno.EROFS)

    def setxattr(self, path: str, name: str, value: bytes, options: int, position: int = 0) -> Any:
        raise FuseOSError(ENOTSUP)

    def statfs(self, path: str) -> Any:
        """Return a dictionary with the names of statvfs(3)."""
        return {}

    def symlink(self, target: str, source: str) -> Any:
        """Make `target` a symbolic link that says `source`."""
        raise FuseOSError(errno.EROFS)

    def truncate(self, path: str, length: int, fh: Any = None) -> Any:
        raise FuseOSError(errno.EROFS)

    def unlink(self, path: str) -> Any:
        raise FuseOSError(errno.EROFS)

    def utimens(self, path: str, times: Any = None) -> Any:
        """Set (atime, mtime); None means now."""
        return 0

    def write(self, path: str, data: bytes, offset: int, fh: Any) -> Any:
        raise FuseOSError(errno.EROFS)


class LoggingMixIn:
    """Logs every operation and its result; goes before Operations among the bases."""

    log = logging.getLogger("fuse.log-mixin")

    def __call__(self, op: str, path: str, *args: Any) -> Any:
        self.log.debug("-> %s %s %r", op, path, args)
        shown: Any = "[Unhandled Exception]"
        try:
            shown = result = getattr(self, op)(path, *args)
            return result
        except OSError as error:
            shown = str(error)
            raise
        finally:
            self.log.debug("<- %s %r", op, shown)


def rename_module(kind: type, module: str) -> type:
    """Make a class and its methods say that they come from `module`, as the real one's do."""
    kind.__module__ = module
    for method in vars(kind).values():
        if callable(method):
            method.__module__ = module
    return kind


for _kind in (FuseOSError, Operations, LoggingMixIn):
    rename_module(_kind, "fuse")
