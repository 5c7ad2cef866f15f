"""An open file description on a served file, and the placeholder of a served directory."""

from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING, Any

from umvm.interfaces.filesystem import Attr, FileSystem

if TYPE_CHECKING:
    from umvm.guest.mounts import Mount
    from umvm.guest.nodes import Node

O_TMPFILE = 0o20000000
_AT_OPEN = os.O_CREAT | os.O_EXCL | os.O_NOCTTY | os.O_TRUNC | os.O_CLOEXEC | O_TMPFILE
_OF_PATH = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW


class OpenFile:
    """An open file description: what the descriptors that dup(2) and fork(2) make share.

    `flags` are those that fcntl(F_GETFL) shows. `offset` (bytes, or a directory's cookie) is
    changed under `lock`. `path` follows renames; `hidden`: it was unlinked and has this name until
    the last close.
    """

    __slots__ = (
        "dead", "deleted", "directory", "entries", "fh", "fh_users", "flags", "hidden", "ident",
        "last", "linkable", "lock", "mount", "node", "offset", "path", "readable", "unflushed",
        "writable",
    )  # fmt: skip

    def __init__(
        self, ident: int, node: Node, path: bytes, fh: Any, flags: int, directory: bool
    ) -> None:
        self.ident, self.node, self.path, self.fh = ident, node, path, fh
        self.mount: Mount = node.mount
        self.flags = flags & _OF_PATH if flags & os.O_PATH else flags & ~_AT_OPEN
        self.directory = directory
        mode = flags & os.O_ACCMODE if not flags & os.O_PATH else os.O_ACCMODE
        self.readable = mode in (os.O_RDONLY, os.O_RDWR)
        self.writable = mode in (os.O_WRONLY, os.O_RDWR)
        self.offset = 0
        self.entries: Any = None
        """Belongs to getdents: what a directory held when it was read from its start."""
        self.hidden = b""
        self.deleted = False
        self.last: Attr | None = None
        """What it was when its name was removed, where the file system doesn't know the file."""
        self.linkable = False
        """Made with O_TMPFILE: linkat(2) may give it a name."""
        self.fh_users = [1]
        """How many descriptions share `fh`: one list for all of them."""
        self.unflushed = False
        """Written since the file system's last `flush`."""
        self.dead = False
        """The mount was taken away by force; `release` was called."""
        self.lock = threading.RLock()

    @property
    def is_path(self) -> bool:
        """Opened with O_PATH: the file system doesn't know of it."""
        return bool(self.flags & os.O_PATH)

    def size(self) -> int:
        """The file's size in bytes."""
        return self.mount.fs.getattr(self.path, self.fh).size

    def read(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes; fewer only at the end of the file."""
        if self.node.shared:
            with self.node.lock:
                if self.node.shared:
                    return self.node.read(size, offset)
        data = self.mount.fs.read(self.path, self.fh, size, offset)
        return data if len(data) <= size else data[:size]

    def write(self, data: bytes, offset: int) -> int:
        """Write; the bytes that were taken, 1 at least for data that isn't empty."""
        node = self.node
        with node.lock:
            if node.setid:
                node.clear_setid(self)
            count = self.mount.fs.write(self.path, self.fh, data, offset)
            if count <= 0 and len(data):
                raise OSError(errno.EIO, "nothing was written")
            self.unflushed = True
            if node.cached:
                node.wrote(data[:count], offset)
        return count

    def truncate(self, size: int) -> None:
        """Set the size in bytes."""
        node = self.node
        with node.lock:
            if node.setid:
                node.clear_setid(self)
            self.mount.fs.truncate(self.path, size, self.fh)
            self.unflushed = True
            node.resized(size)

    def flush(self) -> None:
        """What close(2) owes the file system; its error is the result of close(2)."""
        if self in self.node.mappers:
            self.node.write_back()
        if self.mount.fs.wants_flush:
            self.unflushed = False
            self.mount.fs.flush(self.path, self.fh)

    def fsync(self, datasync: bool) -> None:
        """Make the content last."""
        if self.directory:
            self.mount.fs.fsyncdir(self.path, self.fh, datasync)
        else:
            self.node.write_back()
            self.mount.fs.fsync(self.path, self.fh, datasync)

    def __repr__(self) -> str:
        return f"OpenFile({self.ident}, {self.path!r}, {self.flags:#o})"


class DirRef:
    """A served directory that is, or was, the working directory of a guest: `c/ID`."""

    __slots__ = ("deleted", "directory", "ident", "last", "mount", "path", "place")

    def __init__(self, ident: int, mount: Mount, path: bytes, place: bytes) -> None:
        self.ident, self.mount, self.path, self.place = ident, mount, path, place
        self.deleted = False
        self.last: Attr | None = None
        self.directory = True

    def __repr__(self) -> str:
        return f"DirRef({self.ident}, {self.path!r})"


class DeadFileSystem(FileSystem):
    """What open files of a mount see that was taken away by force: EIO for everything."""

    open_unlinked = True

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        return _dead if callable(value) and not name.startswith("_") else value


def _dead(*_: Any, **__: Any) -> Any:
    raise OSError(errno.EIO, os.strerror(errno.EIO))
