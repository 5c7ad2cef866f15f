"""The memory file system: attributes, open files, data and extended attributes."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence

from umvm.interfaces.filesystem import Attr, Entry, FileHandle, StatFs

from . import xattrs
from .content import MAX_SIZE, PAGE, pages
from .nodes import Directory, Handle, Node, Regular, Symlink
from .tree import NAME_MAX, Tree, no

_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 0x01, 0x02, 0x10  # linux/falloc.h


class MemoryFileSystem(Tree):
    """A POSIX file system in the memory of the supervisor; it behaves as Linux's tmpfs does."""

    open_unlinked = True
    stable_inodes = True
    entry_timeout = 60.0  # nobody but the VM changes anything

    # --- attributes ----------------------------------------------------------------------------

    def getattr(self, path: bytes, fh: FileHandle = None) -> Attr:
        with self._lock:
            return self._node(path, fh).attr()

    def chmod(self, path: bytes, mode: int, fh: FileHandle = None) -> None:
        with self._lock:
            node = self._node(path, fh)
            if isinstance(node, Symlink):
                raise no(errno.EOPNOTSUPP)
            node.mode = node.kind | (mode & 0o7777)
            node.changed()

    def chown(self, path: bytes, uid: int, gid: int, fh: FileHandle = None) -> None:
        with self._lock:
            node = self._node(path, fh)
            if uid != -1:
                node.uid = uid
            if gid != -1:
                node.gid = gid
            node.changed()

    def truncate(self, path: bytes, size: int, fh: FileHandle = None) -> None:
        with self._lock:
            node = self._regular(path, fh)
            if size < 0:
                raise no(errno.EINVAL)
            if size > MAX_SIZE:
                raise no(errno.EFBIG)
            if size < node.size and node.content is not None:
                before = node.content.allocated
                node.content.cut(size)
                self._used_pages += node.content.allocated - before
            node.size = size
            node.modified()

    def utimens(
        self, path: bytes, atime_ns: int | None, mtime_ns: int | None, fh: FileHandle = None
    ) -> None:
        with self._lock:
            node = self._node(path, fh)
            if atime_ns is not None:
                node.atime = atime_ns
            if mtime_ns is not None:
                node.mtime = mtime_ns
            node.changed()

    def statfs(self, path: bytes) -> StatFs:
        with self._lock:
            size, inodes = self._limits.pages, self._limits.inodes
            free = max(0, size - self._used_pages)
            return StatFs(
                bsize=PAGE, frsize=PAGE, blocks=size, bfree=free, bavail=free, files=inodes,
                ffree=max(0, inodes - self._used_inodes), namemax=NAME_MAX,
            )  # fmt: skip

    # --- open files and directories ------------------------------------------------------------

    def _open(self, node: Node, flags: int) -> Handle:
        node.opens += 1
        return Handle(node, bool(flags & os.O_NOATIME))

    def opendir(self, path: bytes) -> FileHandle:
        with self._lock:
            node = self._find(path)
            if not isinstance(node, Directory):
                raise no(errno.ENOTDIR)
            return self._open(node, 0)

    def readdir(self, path: bytes, fh: FileHandle) -> Sequence[Entry]:
        """A snapshot. **Errors** ENOENT: the directory was removed, as getdents(2) says."""
        with self._lock:
            node: Directory = fh.node
            if not node.nlink:
                raise no(errno.ENOENT)
            node.accessed()
            return [
                tuple.__new__(Entry, (name, child.ino, child.mode & 0o170000))
                for name, child in node.children.items()
            ]

    def open(self, path: bytes, flags: int) -> FileHandle:
        with self._lock:
            node = self._find(path)
            if isinstance(node, Symlink):
                raise no(errno.ELOOP)
            if isinstance(node, Directory) and flags & os.O_ACCMODE != os.O_RDONLY:
                raise no(errno.EISDIR)
            return self._open(node, flags)

    def create(self, path: bytes, mode: int, flags: int) -> FileHandle:
        with self._lock:
            return self._open(self._make(path, stat.S_IFREG | (mode & 0o7777)), flags)

    def release(self, path: bytes, fh: FileHandle) -> None:
        with self._lock:
            fh.node.opens -= 1
            self._dropped(fh.node)

    releasedir = release

    def read(self, path: bytes, fh: FileHandle, size: int, offset: int) -> bytes:
        with self._lock:
            node = self._regular(path, fh)
            size = min(size, node.size - offset)
            if not fh.noatime:
                node.accessed()
            if size <= 0:
                return b""
            return bytes(size) if node.content is None else node.content.read(offset, size)

    def write(self, path: bytes, fh: FileHandle, data: bytes, offset: int) -> int:
        """As the interface says; short if the rest doesn't fit. **Errors** ENOSPC, EFBIG."""
        if not data:
            return 0
        with self._lock:
            node = self._regular(path, fh)
            end = offset + len(data)
            if end > MAX_SIZE:
                raise no(errno.EFBIG)
            content = node.filled()
            if self._limits.pages - self._used_pages < pages(len(data)) + 1 and self._limits.pages:
                end = self._fitting(node, offset, end)
                data = data[: end - offset]
            before = content.allocated
            content.write(data, offset)
            self._used_pages += content.allocated - before
            if end > node.size:
                node.size = end
            node.modified()
            return len(data)

    def _fitting(self, node: Regular, offset: int, end: int) -> int:
        """How far a write gets before the file system is full. **Errors** ENOSPC: nowhere."""
        free, content = self._limits.pages - self._used_pages, node.filled()
        while content.missing(offset, end) > free:
            end = (end - 1) // PAGE * PAGE
        if end <= offset:
            raise no(errno.ENOSPC)
        return end

    def fallocate(self, path: bytes, fh: FileHandle, mode: int, offset: int, length: int) -> None:
        """Reserve, PUNCH_HOLE, ZERO_RANGE. **Errors** EOPNOTSUPP: another mode; ENOSPC, EFBIG."""
        keep_size, mode = mode & _KEEP_SIZE, mode & ~_KEEP_SIZE
        if mode not in (0, _PUNCH_HOLE, _ZERO_RANGE) or (mode == _PUNCH_HOLE and not keep_size):
            raise no(errno.EOPNOTSUPP)
        end = offset + length
        if offset < 0 or length <= 0:
            raise no(errno.EINVAL)
        if end > MAX_SIZE:
            raise no(errno.EFBIG)
        with self._lock:
            node = self._regular(path, fh)
            content = node.filled()
            before = content.allocated
            if mode == _PUNCH_HOLE:
                content.punch(offset, end)
            else:
                free = self._limits.pages - self._used_pages
                if self._limits.pages and content.missing(offset, end) > free:
                    raise no(errno.ENOSPC)
                (content.zero if mode else content.reserve)(offset, end)
            self._used_pages += content.allocated - before
            if not keep_size and end > node.size:
                node.size = end
            node.modified()

    def seek(self, path: bytes, fh: FileHandle, offset: int, whence: int) -> int:
        with self._lock:
            node = self._regular(path, fh)
            if offset < 0 or offset >= node.size:
                raise no(errno.ENXIO)
            if node.content is not None:
                return node.content.seek(offset, node.size, whence)
            if whence == os.SEEK_DATA:
                raise no(errno.ENXIO)
            return offset

    # --- extended attributes -------------------------------------------------------------------

    def getxattr(self, path: bytes, name: bytes, fh: FileHandle = None) -> bytes:
        with self._lock:
            return xattrs.get(self._node(path, fh), name)

    def setxattr(
        self, path: bytes, name: bytes, value: bytes, flags: int, fh: FileHandle = None
    ) -> None:
        with self._lock:
            xattrs.put(self._node(path, fh), name, value, flags)

    def listxattr(self, path: bytes, fh: FileHandle = None) -> Sequence[bytes]:
        with self._lock:
            return xattrs.names(self._node(path, fh))

    def removexattr(self, path: bytes, name: bytes, fh: FileHandle = None) -> None:
        with self._lock:
            xattrs.remove(self._node(path, fh), name)
