"""A served file while it is open: what all its open file descriptions share.

Its placeholder `s/ID` is the inode on which the kernel keeps locks. When a guest maps the file, the
placeholder is filled and becomes its page cache: writes go to the file system and to it. Once a
mapping may be written, reads come from it, and a second file keeps what the file system has, so
that a comparison tells which pages a guest has changed.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from core_accel.lazy import logger
from umvm.interfaces.filesystem import Caller, caller, set_caller
from umvm.vfs.attributes import without_set_ids

if TYPE_CHECKING:
    from umvm.guest.mounts import Mount
    from umvm.guest.openfile import OpenFile

log = logger(__name__)
CHUNK = 1 << 20
PAGE = 4096
ZEROS = bytes(CHUNK)
Key = tuple[object, ...]


class Node:
    """One served file or directory in use. `lock` is held while its content or size changes."""

    def __init__(self, key: Key, mount: Mount, place: bytes) -> None:
        self.key, self.mount, self.place = key, mount, place
        self.lock = threading.RLock()
        self.files: set[OpenFile] = set()
        self.mappers: set[OpenFile] = set()
        self.shared = False
        """A guest may write through a mapping: reads must come from the placeholder."""
        self.cached = False
        """The placeholder holds the content."""
        self.setid = False
        """Set-id bits are there, so that a write must clear them."""
        self._stamp: tuple[int, int] | None = None
        self._content = -1
        self._known = -1  # what the file system has, while `shared`
        self._failed = False
        self.due = 0.0
        """Time (monotonic, s) of the next look at what guests changed."""

    # --- set-id bits -----------------------------------------------------------------------------

    def clear_setid(self, file: OpenFile) -> None:
        """Take the set-id bits away as the kernel does when an ordinary user writes.

        **Source** setattr_should_drop_suidgid, fs/attr.c.
        """
        if caller().uid == 0:
            return
        attr = file.mount.fs.getattr(file.path, file.fh)
        mode = without_set_ids(attr, caller())
        if mode != attr.mode & 0o7777:
            file.mount.lose_set_ids(file.path, mode, file.fh)
        self.setid = bool(mode & (stat.S_ISUID | stat.S_ISGID))

    # --- content ---------------------------------------------------------------------------------

    def map(self, file: OpenFile, writable: bool, alive: Callable[[], bool] | None = None) -> None:
        """Get ready for a mapping of `file`, which may be written by it if `writable`.

        **Errors** ENOMEM: no room for the content. EINTR: `alive` says that nobody waits any more.
        Those of the file system's `read`.
        """
        with self.lock:
            self.mappers.add(file)
            try:
                self._fill(file, alive)
                if writable and not self.shared:
                    self._share()
            except OSError as error:
                if not self.cached:
                    self.unmap(file)
                if error.errno == errno.ENOSPC:
                    raise OSError(errno.ENOMEM, "no room for a mapped file") from error
                raise

    def unmap(self, file: OpenFile) -> None:
        """No mapping of `file` is left: write back, and with the last one drop the content."""
        with self.lock:
            if file not in self.mappers:
                return
            try:
                self.write_back()
            finally:
                self.mappers.discard(file)
                if not self.mappers:
                    self._drop()

    def read(self, size: int, offset: int) -> bytes:
        """Content while `shared`."""
        return os.pread(self._content, size, offset)

    def wrote(self, data: bytes | memoryview, offset: int) -> None:
        """The file system took a write: bring the placeholder up to date. Call it under `lock`."""
        if self.cached:
            self._stamp = None
            with self.open() as fd:
                _clear_tail(fd, offset)
                _put(fd, data, offset)
            if self._known >= 0:
                _put(self._known, data, offset)

    def resized(self, size: int) -> None:
        """The file system changed the size (bytes)."""
        with self.lock:
            if self.cached:
                self._stamp = None
                with self.open() as fd:
                    _clear_tail(fd, size)
                    os.ftruncate(fd, size)
                if self._known >= 0:
                    os.ftruncate(self._known, size)

    def reload(self, file: OpenFile) -> None:
        """The content changed in the file system in a way of its own (as by fallocate)."""
        with self.lock:
            if self.cached:
                self.write_back()
                self._read_all(file, None)

    def write_back(self) -> None:
        """Bring what guests stored through mappings to the file system; its errors."""
        if not self.shared:
            return
        with self.lock:
            writer = self._writer()
            if not self.shared or writer is None:
                return
            fs, before = writer.mount.fs, caller()
            set_caller(Caller(0, 0, 0))  # the mapping was allowed when it was made
            try:
                for offset, data in self._changes():
                    done = 0
                    while done < len(data):
                        piece = data[done:] if done else data
                        count = fs.write(writer.path, writer.fh, piece, offset + done)
                        if count <= 0:
                            raise OSError(errno.EIO, "nothing was written")
                        _put(self._known, piece[:count], offset + done)
                        done += count
                    self._stamp = None
            finally:
                set_caller(before)

    def write_back_quietly(self) -> None:
        """`write_back` where nobody asked for it: the first of a row of errors is logged."""
        try:
            self.write_back()
            self._failed = False
        except Exception as error:
            if not self._failed:
                log.warning("can't write mapped pages of %r back: %s", self.key[-1], error)
            self._failed = True

    def close(self) -> None:
        """The node is no longer in use: remove its placeholder."""
        with self.lock:
            self._drop()
            try:
                os.unlink(self.place)
            except FileNotFoundError:
                pass

    # --- how -------------------------------------------------------------------------------------

    def open(self) -> _Descriptor:
        """The placeholder's descriptor.

        It is kept only while `shared`: a descriptor open for writing would make execve(2) of the
        placeholder fail with ETXTBSY.
        """
        if self._content >= 0:
            return _Descriptor(self._content, False)
        return _Descriptor(os.open(self.place, os.O_RDWR | os.O_CLOEXEC), True)

    def _writer(self) -> OpenFile | None:
        best = None
        for file in list(self.files):
            if file.writable and not file.dead:
                best = file
                if file in self.mappers:
                    break
        return best

    def _fill(self, file: OpenFile, alive: Callable[[], bool] | None) -> None:
        if self.shared:
            return
        attr = file.mount.fs.getattr(file.path, file.fh)
        stamp = (attr.mtime_ns, attr.size)
        if self.cached and self._stamp in (None, stamp):
            self._stamp = stamp
            return
        self._read_all(file, alive)
        self._stamp = stamp
        self.cached = True

    def _read_all(self, file: OpenFile, alive: Callable[[], bool] | None) -> None:
        """Copy the file system's content to the placeholder, leaving holes where it has them."""
        fs, path, fh = file.mount.fs, file.path, file.fh
        size = fs.getattr(path, fh).size
        fresh = not self.cached
        with self.open() as fd:
            os.ftruncate(fd, 0 if fresh else min(size, os.fstat(fd).st_size))
            os.ftruncate(fd, size)
            if self._known >= 0:
                os.ftruncate(self._known, size)
            for at, length in _pieces(file, size, fresh):
                if alive is not None and at and at % (64 * CHUNK) == 0 and not alive():
                    raise OSError(errno.EINTR, os.strerror(errno.EINTR))
                data = fs.read(path, fh, length, at)[:length]
                old = ZEROS if fresh else os.pread(fd, len(data), at)
                if data != old[: len(data)]:
                    _put(fd, data, at)
                    if self._known >= 0:
                        _put(self._known, data, at)
                if len(data) < length:
                    break  # it has become shorter

    def _share(self) -> None:
        """Start to tell apart what guests change."""
        content = os.open(self.place, os.O_RDWR | os.O_CLOEXEC)
        name = self.place + b".known"
        try:
            known = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            os.unlink(name)
        except OSError:
            os.close(content)
            raise
        try:
            os.ftruncate(known, os.fstat(content).st_size)
            for start, end in _extents(content):
                for at in range(start, end, CHUNK):
                    data = os.pread(content, min(CHUNK, end - at), at)
                    if data != ZEROS[: len(data)]:
                        _put(known, data, at)
        except OSError:
            os.close(content)
            os.close(known)
            raise
        self._content, self._known, self.shared = content, known, True

    def _changes(self) -> Iterator[tuple[int, bytes]]:
        """What differs from the file system's content: (offset, bytes), page by page, joined."""
        for start, end in _extents(self._content):
            for at in range(start, end, CHUNK):
                new = os.pread(self._content, min(CHUNK, end - at), at)
                old = os.pread(self._known, len(new), at).ljust(len(new), b"\0")
                if new != old:
                    yield from _runs(new, old, at)

    def _drop(self) -> None:
        for fd in (self._content, self._known):
            if fd >= 0:
                os.close(fd)
        self._content = self._known = -1
        self.shared = False
        if self.cached:
            self.cached = False
            self._stamp = None
            os.truncate(self.place, 0)


class _Descriptor:
    """A descriptor for a `with` block, closed after it if it was made for it."""

    def __init__(self, fd: int, own: bool) -> None:
        self._fd, self._own = fd, own

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *_: object) -> None:
        if self._own:
            os.close(self._fd)


def _put(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data`."""
    done = os.pwrite(fd, data, offset)
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)


def _clear_tail(fd: int, end: int) -> None:
    """Before a file grows beyond `end`: what guests stored behind its end, in the last page, goes.

    tmpfs keeps it; other file systems don't.
    """
    size = os.fstat(fd).st_size
    if size % PAGE and end > size:
        _put(fd, ZEROS[: min(end, size - size % PAGE + PAGE) - size], size)


def _pieces(file: OpenFile, size: int, holes: bool) -> Iterator[tuple[int, int]]:
    """(offset, length) of what has to be read; without `holes` the whole file."""
    fs, at = file.mount.fs, 0
    while at < size:
        end = size
        if holes and size > CHUNK:
            try:
                at = fs.seek(file.path, file.fh, at, os.SEEK_DATA)
                if at >= size:
                    return
                end = min(size, fs.seek(file.path, file.fh, at, os.SEEK_HOLE))
                if end <= at:
                    end, holes = size, False
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return  # no data follows
                holes = False  # it can't tell
        while at < end:
            length = min(CHUNK, end - at)
            yield at, length
            at += length


def _extents(fd: int) -> Iterator[tuple[int, int]]:
    """The parts of a host file that have pages: (start, end)."""
    size, at = os.fstat(fd).st_size, 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        at = min(size, os.lseek(fd, start, os.SEEK_HOLE))
        yield start, at


def _runs(new: bytes, old: bytes, base: int) -> Iterator[tuple[int, bytes]]:
    """Runs of pages that differ, as (offset, bytes)."""
    start = -1
    for at in range(0, len(new), PAGE):
        if new[at : at + PAGE] != old[at : at + PAGE]:
            if start < 0:
                start = at
        elif start >= 0:
            yield base + start, new[start:at]
            start = -1
    if start >= 0:
        yield base + start, new[start:]
