"""A mount with files open on it, on a real shadow directory: what the tests of open files share."""

from __future__ import annotations

import mmap
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from umvm.modules.memory import Limits, MemoryFileSystem

from umvm.guest.files import Files, OpenFile
from umvm.guest.mounts import Mount
from umvm.guest.shadow import Shadow
from umvm.interfaces.filesystem import Caller, FileHandle, set_caller

PAGE = mmap.PAGESIZE
WAIT = 20.0


class Recorder(MemoryFileSystem):  # type: ignore[misc]
    """A memory file system that remembers what it was told of the end of open files."""

    def __init__(self) -> None:
        super().__init__(
            mode=0o777, uid=0, gid=0, limits=Limits(pages=1 << 20, inodes=1000, links=0)
        )
        self.log: list[tuple[str, bytes]] = []
        self.writes: list[tuple[int, int]] = []
        self.gate: threading.Event | None = None

    def release(self, path: bytes, fh: FileHandle) -> None:
        if self.gate is not None:
            self.gate.wait(WAIT)
        super().release(path, fh)
        self.log.append(("release", path))

    def releasedir(self, path: bytes, fh: FileHandle) -> None:
        super().releasedir(path, fh)
        self.log.append(("releasedir", path))

    def flush(self, path: bytes, fh: FileHandle) -> None:
        self.log.append(("flush", path))

    def unlink(self, path: bytes) -> None:
        super().unlink(path)
        self.log.append(("unlink", path))

    def write(self, path: bytes, fh: FileHandle, data: bytes, offset: int) -> int:
        self.writes.append((offset, len(data)))
        count: int = super().write(path, fh, data, offset)
        return count


class Plain(Recorder):
    """One that can't keep unlinked files, and has no file numbers."""

    open_unlinked = False
    stable_inodes = False


class World:
    """A mount, and the files open on it."""

    def __init__(self, shadow: Shadow, fs: Recorder) -> None:
        self.fs = fs
        self.mount = Mount(2, b"/mnt", fs, "memory", "none", {}, "memory")
        self.changes = 0
        self.finished: list[Mount] = []
        self.files = Files(shadow, self._changed, self.finished.append)
        self.descriptors: list[int] = []

    def _changed(self) -> None:
        self.changes += 1

    def make(self, path: bytes, data: bytes = b"") -> None:
        fh = self.fs.create(path, stat.S_IFREG | 0o644, os.O_RDWR)
        if data:
            MemoryFileSystem.write(self.fs, path, fh, data, 0)
        MemoryFileSystem.release(self.fs, path, fh)

    def open(self, path: bytes, flags: int = os.O_RDWR) -> tuple[OpenFile, int]:
        attr = self.fs.getattr(path)
        fh: Any = None
        if not flags & os.O_PATH:
            directory = stat.S_ISDIR(attr.mode)
            fh = self.fs.opendir(path) if directory else self.fs.open(path, flags)
        file, fd = self.files.create(self.mount, path, attr, fh, flags)
        self.descriptors.append(fd)
        return file, fd

    def close(self, fd: int) -> None:
        self.descriptors.remove(fd)
        os.close(fd)

    def link(self, fd: int) -> bytes:
        return os.readlink(b"/proc/self/fd/%d" % fd)

    def content(self, path: bytes) -> bytes:
        fh = self.fs.open(path, os.O_RDONLY)
        try:
            data: bytes = self.fs.read(path, fh, self.fs.getattr(path).size, 0)
            return data
        finally:
            MemoryFileSystem.release(self.fs, path, fh)

    def end(self) -> None:
        for fd in self.descriptors:
            os.close(fd)
        self.files.close()


@pytest.fixture
def shadow(tmp_path: Path) -> Iterator[Shadow]:
    shadow = Shadow("test", [os.fsencode(tmp_path)])
    yield shadow
    shadow.close()


@pytest.fixture
def world(shadow: Shadow) -> Iterator[World]:
    set_caller(Caller(0, 0, 0))
    world = World(shadow, Recorder())
    yield world
    world.end()


@pytest.fixture
def plain(shadow: Shadow) -> Iterator[World]:
    set_caller(Caller(0, 0, 0))
    world = World(shadow, Plain())
    yield world
    world.end()


def until(condition: Callable[[], object]) -> bool:
    end = time.monotonic() + WAIT
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True
