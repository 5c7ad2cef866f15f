"""The interface of a file system that is served by Python.

Paths are `bytes`, absolute within the mount and canonical: `b"/"`, `b"/a/b"`, never a trailing
slash, a `.`, a `..` or a symbolic link in the middle. Errors are `OSError` with the errno that
Linux would give; anything else becomes EIO for the guest and one logged traceback. Methods are
called from several threads at once unless `serialized` is set.

Every method has a default, so that a file system writes only what it offers. Paths reach a method
after the VM has checked what the kernel's VFS checks: that the name exists (or not), is a directory
(or not), that the mount may be written and, with `default_permissions`, the caller's rights.
**Source**: Documentation/filesystems/vfs.rst, path_resolution(7), fuse(4).
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

FileHandle = Any
"""What `open`, `create` and `opendir` return; umvm hands it back and never looks inside."""

RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4


class Attr(NamedTuple):
    """Attributes of a file: `stat(2)` with times in nanoseconds since 1970.

    `ino` 0: the VM makes one from the path. `blocks` counts 512 bytes, -1: made from the size.
    """

    mode: int
    ino: int = 0
    nlink: int = 1
    uid: int = 0
    gid: int = 0
    rdev: int = 0
    size: int = 0
    atime_ns: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    btime_ns: int = 0
    blksize: int = 4096
    blocks: int = -1


class Entry(NamedTuple):
    """A directory entry: `ino` 0 is not known; `kind` is S_IFMT bits, 0 is not known."""

    name: bytes
    ino: int = 0
    kind: int = 0


class StatFs(NamedTuple):
    """`statvfs(3)`: sizes in units of `frsize` bytes."""

    bsize: int = 4096
    frsize: int = 4096
    blocks: int = 0
    bfree: int = 0
    bavail: int = 0
    files: int = 0
    ffree: int = 0
    namemax: int = 255


class Caller(NamedTuple):
    """On whose behalf a call is made: file system ids, the process, its groups and umask."""

    uid: int
    gid: int
    pid: int
    groups: tuple[int, ...] = ()
    umask: int = 0o022


_NOBODY = Caller(0, 0, 0)
_current = threading.local()


def caller() -> Caller:
    """The guest on whose behalf this thread runs now (root when the supervisor acts by itself)."""
    value: Caller = getattr(_current, "value", _NOBODY)
    return value


def set_caller(value: Caller) -> None:
    """Set by the VM before it calls a file system."""
    _current.value = value


def _no(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class FileSystem:
    """A file system that may be mounted; subclass it and override what you offer."""

    default_permissions = True
    """The VM checks owners and mode bits as the kernel does; False: the file system decides."""
    open_unlinked = False
    """Open handles go on working after `unlink`, `getattr(path, fh)` included. If False the VM
    renames an open file to a hidden name and removes it with the last close, as libfuse does."""
    stable_inodes = False
    """`Attr.ino` identifies a file: hard links share it, and it isn't used again while open."""
    checks_special = False
    """`access` says who may open FIFOs and devices, for which `open` isn't called."""
    drops_set_ids = False
    """What writes to a file or cuts it off takes its set-id bits away, where the VM would."""
    serialized = False
    """One call at a time."""
    entry_timeout = 0.0
    """Seconds that the VM may believe that a name exists and is (or isn't) a symbolic link."""
    wants_flush = False
    """`flush` does something, so that each close(2) has to ask."""
    orderly = False
    """`open`, `create`, `unlink` … come after the `release` of files that were closed before."""
    needs_point = True
    """The mount point must exist; False: it may be a name that nothing has."""
    subtype = ""
    """Shown in /proc/mounts as fuse.SUBTYPE; empty: the mount's type name."""

    # --- life ----------------------------------------------------------------------------------

    def init(self) -> None:
        """Called once before the mount is seen. OSError refuses it."""

    def destroy(self) -> None:
        """Called once when the last user is gone."""

    def in_use(self) -> str:
        """What else than open files keeps it from being unmounted, in words; empty: nothing."""
        return ""

    # --- attributes ----------------------------------------------------------------------------

    def getattr(self, path: bytes, fh: FileHandle = None) -> Attr:
        """Attributes of `path`, never following it; `fh` is given for an open file.

        **Errors** ENOENT: there is no such file.
        """
        if path == b"/":
            return Attr(stat.S_IFDIR | 0o755, nlink=2)
        raise _no(errno.ENOENT)

    def access(self, path: bytes, mask: int) -> None:
        """access(2) with R_OK 4, W_OK 2, X_OK 1; asked only without `default_permissions`."""

    def chmod(self, path: bytes, mode: int, fh: FileHandle = None) -> None:
        """Set the permission bits (07777). ctime changes."""
        raise _no(errno.EROFS)

    def chown(self, path: bytes, uid: int, gid: int, fh: FileHandle = None) -> None:
        """Set the owner; -1 keeps it. The VM has cleared set-id bits with `chmod` where due."""
        raise _no(errno.EROFS)

    def truncate(self, path: bytes, size: int, fh: FileHandle = None) -> None:
        """Set the size in bytes; new bytes are zero."""
        raise _no(errno.EROFS)

    def utimens(
        self, path: bytes, atime_ns: int | None, mtime_ns: int | None, fh: FileHandle = None
    ) -> None:
        """Set times in nanoseconds; None keeps one. "Now" was already turned into a number."""
        raise _no(errno.EROFS)

    def touch(self, path: bytes, fh: FileHandle = None) -> None:
        """Set both times to now, for somebody who may write the file but need not own it."""
        now = time.time_ns()
        self.utimens(path, now, now, fh)

    def statfs(self, path: bytes) -> StatFs:
        """Sizes of the whole file system."""
        return StatFs()

    # --- names ---------------------------------------------------------------------------------

    def readlink(self, path: bytes) -> bytes:
        """Target of a symbolic link. **Errors** EINVAL: not one."""
        raise _no(errno.EINVAL)

    def mknod(self, path: bytes, mode: int, rdev: int) -> None:
        """Make a file, FIFO, socket or device; `mode` has the type and is already masked."""
        raise _no(errno.EROFS)

    def mkdir(self, path: bytes, mode: int) -> None:
        """Make a directory; `mode` has no type and is already masked."""
        raise _no(errno.EROFS)

    def unlink(self, path: bytes) -> None:
        """Remove a name that is no directory."""
        raise _no(errno.EROFS)

    def rmdir(self, path: bytes) -> None:
        """Remove an empty directory. **Errors** ENOTEMPTY."""
        raise _no(errno.EROFS)

    def symlink(self, target: bytes, path: bytes) -> None:
        """Make `path` a symbolic link to `target`."""
        raise _no(errno.EROFS)

    def rename(self, old: bytes, new: bytes, flags: int = 0) -> None:
        """Rename, replacing `new` where it may; `flags` are RENAME_*. **Errors** EINVAL: a flag."""
        raise _no(errno.EROFS)

    def link(self, old: bytes, new: bytes) -> None:
        """Make `new` another name of the file `old`. **Errors** EPERM, EMLINK."""
        raise _no(errno.EPERM)

    # --- directories ---------------------------------------------------------------------------

    def opendir(self, path: bytes) -> FileHandle:
        """Open a directory."""
        return None

    def readdir(self, path: bytes, fh: FileHandle) -> Iterable[Entry]:
        """All entries; `.` and `..` may be left out. Read once per open and per rewind."""
        return ()

    def fsyncdir(self, path: bytes, fh: FileHandle, datasync: bool) -> None:
        """Make a directory's changes last."""

    def releasedir(self, path: bytes, fh: FileHandle) -> None:
        """The last descriptor of an open directory is gone."""

    # --- files ---------------------------------------------------------------------------------

    def open(self, path: bytes, flags: int) -> FileHandle:
        """Open an existing file. `flags`: access mode, O_APPEND, O_NONBLOCK, O_SYNC…; never
        O_CREAT, O_EXCL, O_NOCTTY or O_TRUNC (the VM calls `truncate`)."""
        return None

    def create(self, path: bytes, mode: int, flags: int) -> FileHandle:
        """Make a regular file that isn't there and open it; `mode` is already masked."""
        self.mknod(path, stat.S_IFREG | mode, 0)
        return self.open(path, flags)

    def read(self, path: bytes, fh: FileHandle, size: int, offset: int) -> bytes:
        """Up to `size` bytes; fewer only at the end of the file."""
        raise _no(errno.EIO)

    def write(self, path: bytes, fh: FileHandle, data: bytes, offset: int) -> int:
        """Write bytes and return how many; set-id bits were cleared where due."""
        raise _no(errno.EROFS)

    def flush(self, path: bytes, fh: FileHandle) -> None:
        """A descriptor is being closed; an error is the result of close(2)."""

    def fsync(self, path: bytes, fh: FileHandle, datasync: bool) -> None:
        """Make the content (and unless `datasync` the attributes) last."""

    def release(self, path: bytes, fh: FileHandle) -> None:
        """The last descriptor and mapping of an open file are gone."""

    def fallocate(self, path: bytes, fh: FileHandle, mode: int, offset: int, length: int) -> None:
        """fallocate(2). **Errors** EOPNOTSUPP: not offered; callers fall back."""
        raise _no(errno.EOPNOTSUPP)

    def seek(self, path: bytes, fh: FileHandle, offset: int, whence: int) -> int:
        """SEEK_DATA or SEEK_HOLE for `offset` below the size: by default all is data."""
        return offset if whence == os.SEEK_DATA else self.getattr(path, fh).size

    def ioctl(self, path: bytes, fh: FileHandle, command: int, data: bytes) -> bytes:
        """An ioctl whose number encodes direction and size; returns what is copied out."""
        raise _no(errno.ENOTTY)

    # --- extended attributes -------------------------------------------------------------------

    def getxattr(self, path: bytes, name: bytes, fh: FileHandle = None) -> bytes:
        """The value; `fh` is given for an open file. **Errors** ENODATA, EOPNOTSUPP."""
        raise _no(errno.EOPNOTSUPP)

    def setxattr(
        self, path: bytes, name: bytes, value: bytes, flags: int, fh: FileHandle = None
    ) -> None:
        """Set it; flags XATTR_CREATE 1 (EEXIST), XATTR_REPLACE 2 (ENODATA)."""
        raise _no(errno.EOPNOTSUPP)

    def listxattr(self, path: bytes, fh: FileHandle = None) -> Sequence[bytes]:
        """The names."""
        return ()

    def removexattr(self, path: bytes, name: bytes, fh: FileHandle = None) -> None:
        """Remove one. **Errors** ENODATA, EOPNOTSUPP."""
        raise _no(errno.EOPNOTSUPP)
