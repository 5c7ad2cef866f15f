"""A module for tests: a memory file system that writes down what it is told, and fails on demand.

`/log` holds one line for each call of interest. A file named `full…` can't be written back or
flushed, one named `slow…` isn't released before `/go` is there, one named `broken…` raises what it
shouldn't.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time

from umvm.modules.memory import Limits, MemoryFileSystem

from umvm.interfaces.filesystem import FileHandle


class RecorderFileSystem(MemoryFileSystem):  # type: ignore[misc]
    """Options: `plain` for no open_unlinked and no stable_inodes, `quiet` for no wants_flush."""

    def __init__(self, options: dict[str, str]) -> None:
        super().__init__(mode=0o777, uid=0, gid=0, limits=Limits())
        self.open_unlinked = self.stable_inodes = "plain" not in options
        self.wants_flush = "quiet" not in options
        self._log_lock = threading.Lock()
        handle = super().create(b"/log", stat.S_IFREG | 0o644, os.O_RDWR)
        super().release(b"/log", handle)

    def _note(self, what: str, path: bytes) -> None:
        if path == b"/log":
            return
        with self._log_lock:
            handle = super().open(b"/log", os.O_WRONLY)
            line = f"{what} {os.fsdecode(path)}\n".encode()
            super().write(b"/log", handle, line, super().getattr(b"/log").size)
            super().release(b"/log", handle)

    def _exists(self, path: bytes) -> bool:
        try:
            super().getattr(path)
        except FileNotFoundError:
            return False
        return True

    def write(self, path: bytes, fh: FileHandle, data: bytes, offset: int) -> int:
        if path.startswith(b"/broken"):
            raise RuntimeError("a bug")
        if path.startswith(b"/short"):
            data = data[:3]
        if path.startswith(b"/full") and offset >= 4096:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count: int = super().write(path, fh, data, offset)
        return count

    def flush(self, path: bytes, fh: FileHandle) -> None:
        self._note("flush", path)
        if path.startswith(b"/fullflush"):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    def fsync(self, path: bytes, fh: FileHandle, datasync: bool) -> None:
        self._note("fdatasync" if datasync else "fsync", path)
        super().fsync(path, fh, datasync)

    def fsyncdir(self, path: bytes, fh: FileHandle, datasync: bool) -> None:
        self._note("fsyncdir", path)

    def release(self, path: bytes, fh: FileHandle) -> None:
        if path.startswith(b"/slow"):
            end = time.monotonic() + 20
            while not self._exists(b"/go"):
                if time.monotonic() > end:
                    self._note("impatient", path)
                    break
                time.sleep(0.01)
        super().release(path, fh)
        self._note("release", path)

    def releasedir(self, path: bytes, fh: FileHandle) -> None:
        super().releasedir(path, fh)
        self._note("releasedir", path)

    def unlink(self, path: bytes) -> None:
        super().unlink(path)
        self._note("unlink", path)


FILESYSTEMS = {"recorder": lambda source, options: RecorderFileSystem(options)}
