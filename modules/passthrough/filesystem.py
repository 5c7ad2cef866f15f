"""The passthrough file system: each operation as system calls beneath an open directory.

Guests and others may rename and link in the source while a call runs, so no path is used twice: a
call opens the file, or the directory that holds the name, by openat2(2) with RESOLVE_BENEATH and
RESOLVE_NO_SYMLINKS, and works on that descriptor. The VM has resolved symbolic links before.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
import threading
from collections.abc import Sequence

from umvm.interfaces.filesystem import Attr, Entry, FileHandle, FileSystem, StatFs, caller

from . import host

_OPEN_FLAGS = os.O_ACCMODE | os.O_APPEND | os.O_SYNC | os.O_DSYNC | os.O_NOATIME
"""What is passed on. Not O_DIRECT: buffers here aren't aligned."""
_ALWAYS = os.O_NONBLOCK | os.O_NOCTTY  # a FIFO that was swapped in must not block a worker
_IOCTLS = frozenset({
    0x80086601,  # FS_IOC_GETFLAGS
    0x40086602,  # FS_IOC_SETFLAGS
    0x80087601,  # FS_IOC_GETVERSION
    0x801C581F,  # FS_IOC_FSGETXATTR
    0x401C5820,  # FS_IOC_FSSETXATTR
})  # fmt: skip
"""Others might take descriptors or addresses, which mean other things in the supervisor."""


def _no(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class _File:
    """A descriptor for one call; closed afterwards if it is the call's own."""

    __slots__ = ("fd", "own")

    def __init__(self, fd: int, own: bool) -> None:
        self.fd, self.own = fd, own

    def __enter__(self) -> int:
        return self.fd

    def __exit__(self, *_: object) -> None:
        if self.own:
            os.close(self.fd)


class _Slot:
    """A directory for one call, and a name in it."""

    __slots__ = ("fd", "name", "own")

    def __init__(self, fd: int, own: bool, name: bytes) -> None:
        self.fd, self.own, self.name = fd, own, name

    def __enter__(self) -> tuple[int, bytes]:
        return self.fd, self.name

    def __exit__(self, *_: object) -> None:
        if self.own:
            os.close(self.fd)


class PassthroughFileSystem(FileSystem):
    """A directory (or file) of the host.

    The host checks permissions, ACLs and quotas: the supervisor is the user who started the VM, and
    so are its guests, whatever ids they are shown. Only a supervisor of root has guests with other
    ids; calls are then made with those (`host.ActAs`). So `default_permissions` is False.
    """

    default_permissions = False
    checks_special = True
    open_unlinked = True
    stable_inodes = True

    def __init__(self, source: bytes, read_only: bool = False) -> None:
        self._source = source
        self._read_only = read_only
        self._root = -1
        self._dev = 0
        self._umask = 0
        self._listing = threading.Lock()  # a directory's position is that of its descriptor

    def init(self) -> None:
        self._act = host.ActAs()
        self.drops_set_ids = not self._act.needed  # the kernel does it, unless we are root
        self._umask = host.own_umask()
        self._root = os.open(self._source, os.O_PATH | os.O_CLOEXEC)
        self._dev = host.status(self._root).dev

    def destroy(self) -> None:
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    # --- paths ---------------------------------------------------------------------------------

    def _open(self, path: bytes, flags: int, mode: int = 0) -> int:
        if path == b"/":  # may be a file, which has no name beneath itself
            return os.open(host.magic(self._root), flags)
        return host.open_beneath(self._root, path[1:], flags, mode)

    def _file(self, path: bytes, fh: FileHandle = None) -> _File:
        """A descriptor, perhaps O_PATH, of an existing file or symbolic link."""
        if fh is not None or path == b"/":
            return _File(self._root if fh is None else fh, False)
        return _File(host.open_beneath(self._root, path[1:], os.O_PATH), True)

    def _slot(self, path: bytes) -> _Slot:
        """The directory that holds a name, and the name."""
        head, _, name = path.rpartition(b"/")
        if not head:
            return _Slot(self._root, False, name or b".")
        return _Slot(
            host.open_beneath(self._root, head[1:], os.O_PATH | os.O_DIRECTORY), True, name
        )

    def _may_change(self) -> None:
        if self._read_only:
            raise _no(errno.EROFS)

    def _ino(self, dev: int, ino: int) -> int:
        """An inode number that is unique below the source, whatever is mounted there."""
        if dev == self._dev:
            return ino
        digest = hashlib.blake2b(b"%d:%d" % (dev, ino), digest_size=8).digest()
        return int.from_bytes(digest, "little") | 1 << 63

    # --- attributes ----------------------------------------------------------------------------

    def getattr(self, path: bytes, fh: FileHandle = None) -> Attr:
        with self._act, self._file(path, fh) as fd:
            dev, attr = host.status(fd)
        return attr if dev == self._dev else attr._replace(ino=self._ino(dev, attr.ino))

    def access(self, path: bytes, mask: int) -> None:
        if mask & os.W_OK:
            self._may_change()
        with self._act, self._file(path) as fd:
            host.check_access(fd, mask)

    def chmod(self, path: bytes, mode: int, fh: FileHandle = None) -> None:
        self._may_change()
        with self._act, self._file(path, fh) as fd:
            os.chmod(host.magic(fd), mode)

    def chown(self, path: bytes, uid: int, gid: int, fh: FileHandle = None) -> None:
        self._may_change()
        with self._act, self._file(path, fh) as fd:
            os.chown(host.magic(fd), uid, gid)

    def truncate(self, path: bytes, size: int, fh: FileHandle = None) -> None:
        self._may_change()
        with self._act, self._file(path, fh) as fd:
            if fh is not None and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY:
                os.ftruncate(fd, size)
            else:
                os.truncate(host.magic(fd), size)

    def utimens(
        self, path: bytes, atime_ns: int | None, mtime_ns: int | None, fh: FileHandle = None
    ) -> None:
        self._may_change()
        with self._act, self._file(path, fh) as fd:
            host.set_times(fd, atime_ns, mtime_ns)

    def touch(self, path: bytes, fh: FileHandle = None) -> None:
        self._may_change()
        with self._act, self._file(path, fh) as fd:
            host.set_times_now(fd)

    def statfs(self, path: bytes) -> StatFs:
        with self._act, self._file(path) as fd:
            s = os.statvfs(fd)
        return StatFs(
            s.f_bsize, s.f_frsize, s.f_blocks, s.f_bfree, s.f_bavail, s.f_files, s.f_ffree,
            s.f_namemax,
        )  # fmt: skip

    # --- names ---------------------------------------------------------------------------------

    def readlink(self, path: bytes) -> bytes:
        with self._act, self._slot(path) as (fd, name):
            return os.readlink(name, dir_fd=fd)

    def _unmask(self, path: bytes, mode: int) -> None:
        """The mode was masked with the guest's umask; undo what ours took away."""
        if mode & self._umask & 0o777:
            with self._file(path) as fd:
                kept = host.status(fd).attr.mode & stat.S_ISGID  # inherited from the directory
                os.chmod(host.magic(fd), mode & 0o7777 | kept)

    def mknod(self, path: bytes, mode: int, rdev: int) -> None:
        self._may_change()
        with self._act:
            with self._slot(path) as (fd, name):
                os.mknod(name, mode, rdev, dir_fd=fd)
            self._unmask(path, mode)

    def mkdir(self, path: bytes, mode: int) -> None:
        self._may_change()
        with self._act:
            with self._slot(path) as (fd, name):
                os.mkdir(name, mode, dir_fd=fd)
            self._unmask(path, mode)

    def unlink(self, path: bytes) -> None:
        self._may_change()
        with self._act, self._slot(path) as (fd, name):
            os.unlink(name, dir_fd=fd)

    def rmdir(self, path: bytes) -> None:
        self._may_change()
        if path == b"/":
            raise _no(errno.EBUSY)
        with self._act, self._slot(path) as (fd, name):
            os.rmdir(name, dir_fd=fd)

    def symlink(self, target: bytes, path: bytes) -> None:
        self._may_change()
        with self._act, self._slot(path) as (fd, name):
            os.symlink(target, name, dir_fd=fd)

    def rename(self, old: bytes, new: bytes, flags: int = 0) -> None:
        self._may_change()
        with self._act, self._slot(old) as (old_dir, name), self._slot(new) as (new_dir, new_name):
            host.rename(old_dir, name, new_dir, new_name, flags)

    def link(self, old: bytes, new: bytes) -> None:
        self._may_change()
        with self._act, self._slot(old) as (old_dir, name), self._slot(new) as (new_dir, new_name):
            os.link(name, new_name, src_dir_fd=old_dir, dst_dir_fd=new_dir, follow_symlinks=False)

    # --- directories ---------------------------------------------------------------------------

    def opendir(self, path: bytes) -> FileHandle:
        with self._act:
            return self._open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def readdir(self, path: bytes, fh: FileHandle) -> Sequence[Entry]:
        """A snapshot. **Errors** ENOENT: the directory was removed, as getdents(2) says."""
        with self._listing:
            os.lseek(fh, 0, os.SEEK_SET)
            found = list(host.entries(fh))
        dev = host.status(fh).dev
        if dev == self._dev:
            return found
        return [entry._replace(ino=self._ino(dev, entry.ino)) for entry in found]

    def fsyncdir(self, path: bytes, fh: FileHandle, datasync: bool) -> None:
        self.fsync(path, fh, datasync)

    def releasedir(self, path: bytes, fh: FileHandle) -> None:
        os.close(fh)

    # --- files ---------------------------------------------------------------------------------

    def open(self, path: bytes, flags: int) -> FileHandle:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            self._may_change()
        with self._act:
            return self._open(path, flags & _OPEN_FLAGS | _ALWAYS | os.O_CLOEXEC)

    def create(self, path: bytes, mode: int, flags: int) -> FileHandle:
        self._may_change()
        flags = flags & _OPEN_FLAGS | _ALWAYS | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with self._act:
            fd = self._open(path, flags, mode & 0o7777)
            try:
                if mode & self._umask & 0o777:
                    os.fchmod(fd, mode & 0o7777)
            except BaseException:
                os.close(fd)
                raise
        return fd

    def read(self, path: bytes, fh: FileHandle, size: int, offset: int) -> bytes:
        return os.pread(fh, size, offset)

    def write(self, path: bytes, fh: FileHandle, data: bytes, offset: int) -> int:
        return os.pwrite(fh, data, offset)

    def fsync(self, path: bytes, fh: FileHandle, datasync: bool) -> None:
        (os.fdatasync if datasync else os.fsync)(fh)

    def release(self, path: bytes, fh: FileHandle) -> None:
        os.close(fh)

    def fallocate(self, path: bytes, fh: FileHandle, mode: int, offset: int, length: int) -> None:
        host.allocate(fh, mode, offset, length)

    def seek(self, path: bytes, fh: FileHandle, offset: int, whence: int) -> int:
        return os.lseek(fh, offset, whence)

    def ioctl(self, path: bytes, fh: FileHandle, command: int, data: bytes) -> bytes:
        if command not in _IOCTLS:
            raise _no(errno.ENOTTY)
        buffer = bytearray(data.ljust(command >> 16 & 0x3FFF, b"\0"))
        with self._act:
            fcntl.ioctl(fh, command, buffer)
        return bytes(buffer)

    # --- extended attributes -------------------------------------------------------------------

    def _hidden(self, name: bytes) -> bool:
        """Ids other than root's don't take CAP_SYS_ADMIN away, which `trusted.` goes by."""
        return self._act.needed and caller().uid != 0 and name.startswith(b"trusted.")

    def _may_set(self, name: bytes) -> None:
        self._may_change()
        if self._hidden(name) or (self._hidden(b"trusted.") and name.startswith(b"security.")):
            raise _no(errno.EPERM)

    def getxattr(self, path: bytes, name: bytes, fh: FileHandle = None) -> bytes:
        if self._hidden(name):
            raise _no(errno.ENODATA)
        with self._act, self._file(path, fh) as fd:
            return os.getxattr(host.magic(fd), name)

    def setxattr(
        self, path: bytes, name: bytes, value: bytes, flags: int, fh: FileHandle = None
    ) -> None:
        self._may_set(name)
        with self._act, self._file(path, fh) as fd:
            os.setxattr(host.magic(fd), name, value, flags)

    def listxattr(self, path: bytes, fh: FileHandle = None) -> Sequence[bytes]:
        with self._act, self._file(path, fh) as fd:
            names = [os.fsencode(name) for name in os.listxattr(host.magic(fd))]
        return [name for name in names if not self._hidden(name)]

    def removexattr(self, path: bytes, name: bytes, fh: FileHandle = None) -> None:
        self._may_set(name)
        with self._act, self._file(path, fh) as fd:
            os.removexattr(host.magic(fd), name)
