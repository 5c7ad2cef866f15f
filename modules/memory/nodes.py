"""Inodes of the memory file system, and the times that Linux keeps for them."""

from __future__ import annotations

import stat
import time
from typing import NamedTuple

from umvm.interfaces.filesystem import Attr

from .content import PAGE, Content

_DAY = 24 * 3600 * 10**9
_DIRENT_SIZE = 20  # what a name adds to the size of a directory: BOGO_DIRENT_SIZE of mm/shmem.c
BLKSIZE = 65536
"""st_blksize, a hint for buffers: each read and write costs a notification, so larger is better."""

now_ns = time.time_ns


class Node:
    """An inode; this class itself serves FIFOs, sockets and devices. Times in nanoseconds."""

    __slots__ = (
        "atime", "btime", "ctime", "gid", "ino", "mode", "mtime", "nlink", "opens", "rdev", "uid",
        "xattrs",
    )  # fmt: skip

    def __init__(self, ino: int, mode: int, uid: int, gid: int) -> None:
        self.ino, self.mode, self.uid, self.gid = ino, mode, uid, gid
        self.rdev = 0
        self.nlink = 1
        self.opens = 0
        self.xattrs: dict[bytes, bytes] | None = None
        self.atime = self.mtime = self.ctime = self.btime = now_ns()

    @property
    def kind(self) -> int:
        """The S_IFMT bits."""
        return stat.S_IFMT(self.mode)

    def attr(self) -> Attr:
        """What stat(2) shows."""
        return self._attr(0, 0)

    def _attr(self, size: int, blocks: int) -> Attr:
        # tuple.__new__: half the time of calling the NamedTuple
        return tuple.__new__(Attr, (
            self.mode, self.ino, self.nlink, self.uid, self.gid, self.rdev, size,
            self.atime, self.mtime, self.ctime, self.btime, BLKSIZE, blocks,
        ))  # fmt: skip

    def changed(self) -> None:
        """The inode changed: ctime."""
        self.ctime = now_ns()

    def modified(self) -> None:
        """The content, or the entries, changed: mtime and ctime."""
        self.mtime = self.ctime = now_ns()

    def accessed(self) -> None:
        """The content was read: atime by the rule of relatime, which mounts have by default.

        **Source**: mount(8), relatime_need_update() of fs/inode.c.
        """
        now = now_ns()
        if self.atime <= self.mtime or self.atime <= self.ctime or now - self.atime >= _DAY:
            self.atime = now


class Regular(Node):
    """A regular file."""

    __slots__ = ("content", "size")

    def __init__(self, ino: int, mode: int, uid: int, gid: int) -> None:
        super().__init__(ino, mode, uid, gid)
        self.size = 0
        self.content: Content | None = None  # most of a million small files may well be empty

    def attr(self) -> Attr:
        content = self.content
        return self._attr(self.size, content.allocated * (PAGE // 512) if content else 0)

    def filled(self) -> Content:
        """The content, to be changed."""
        if self.content is None:
            self.content = Content()
        return self.content


class Directory(Node):
    """A directory; `nlink` is 2 and one for each directory in it, 0 when it was removed."""

    __slots__ = ("children",)

    def __init__(self, ino: int, mode: int, uid: int, gid: int) -> None:
        super().__init__(ino, mode, uid, gid)
        self.nlink = 2
        self.children: dict[bytes, Node] = {}

    def attr(self) -> Attr:
        return self._attr(_DIRENT_SIZE * (2 + len(self.children)), 0)


class Symlink(Node):
    """A symbolic link."""

    __slots__ = ("target",)

    def __init__(self, ino: int, uid: int, gid: int, target: bytes) -> None:
        super().__init__(ino, stat.S_IFLNK | 0o777, uid, gid)
        self.target = target

    def attr(self) -> Attr:
        return self._attr(len(self.target), 0)


class Handle:
    """An open file or directory: keeps its inode usable after the last name is gone."""

    __slots__ = ("noatime", "node")

    def __init__(self, node: Node, noatime: bool) -> None:
        self.node, self.noatime = node, noatime


class Limits(NamedTuple):
    """What a mount may hold; 0 is no limit."""

    pages: int = 0
    inodes: int = 0
    links: int = 0


UNLIMITED = Limits()
