"""Serves an Operations object, written for fusepy or mfusepy, as a `FileSystem`.

The object is known by its methods only; no FUSE library is imported. What reaches it is what
libfuse's high-level interface and the Linux kernel would send: argument order and types, the
calls made in place of a missing one, what a missing one answers.

Differences from fusepy, on purpose: names that aren't valid in the encoding come as lone
surrogates, as in mfusepy (fusepy's own decoding fails for them); `st_blocks` is made from the size
if the object doesn't give it. Locks, poll, bmap and read_buf/write_buf are never asked for.

Importable by itself on Python 3.8 and later, as guests use it too. **Source**: libfuse 2.9.9
lib/fuse.c; Linux 6.12 fs/fuse/*.c for arguments and for what ENOSYS means.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from operator import index
from typing import Any

from .filesystem import Attr, Entry, FileHandle, StatFs
from .fuse_calls import FuseCalls, fail, guarded, takes_flags
from .fuse_options import FuseOptions
from .fuse_structs import FileInfo

_U32, _U64 = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF
_RENAME_NOREPLACE = 1
_SECOND = 10**9
_PAGE = 4096
_SIZES = 4096  # sizes of files that are remembered


class _Directory(int):
    """A directory's handle, which may be equal to that of a file."""


class FuseAdapter(FuseCalls):
    """A `FileSystem` that asks a fusepy- or mfusepy-style Operations object."""

    orderly = True

    def __init__(
        self,
        operations: Any,
        options: FuseOptions | None = None,
        errors: str = "surrogateescape",
        dialect: str = "",
    ) -> None:
        """As FuseCalls."""
        super().__init__(operations, options, errors, dialect)
        self._sizes: dict[bytes, tuple[float, int]] = {}
        self._create_flags = self.mfusepy and takes_flags(operations)

    # --- attributes ----------------------------------------------------------------------------

    @guarded
    def getattr(self, path: bytes, fh: FileHandle = None) -> Attr:
        """getattr, with the handle for an open file.

        The kernel asks for an open file by name; a handle that the object no longer finds a file
        for is therefore no reason to fail. It never gives a directory's handle.
        """
        if isinstance(fh, _Directory):
            fh = None
        return self._look(path, fh)

    def _look(self, path: bytes, fh: FileHandle) -> Attr:
        try:
            attr = self._attr(self.ask("getattr", self.path(path, fh), fh))
        except OSError as error:
            if fh is None or error.errno != errno.ENOENT or self.open_unlinked:
                raise
            attr = self._attr(self.ask("getattr", self.text(path), None))
        if stat.S_ISREG(attr.mode):
            self._know_size(path, attr.size)
        return attr

    def _know_size(self, path: bytes, size: int) -> None:
        if len(self._sizes) >= _SIZES:
            self._sizes = {}
        self._sizes[path] = (time.monotonic() + self.options.attr_timeout, size)

    def _size(self, path: bytes, fh: FileHandle) -> int:
        """The size of an open file, which the kernel believes for `attr_timeout`."""
        until, size = self._sizes.get(path, (0.0, 0))
        return size if time.monotonic() < until else self._look(path, fh).size

    def _attr(self, given: Mapping[str, Any]) -> Attr:
        """Read a `st_*` dictionary; what is missing is 0. **Errors** EIO: there is no file type."""

        def number(key: str, mask: int) -> int:
            return index(given.get(key, 0)) & mask

        def time_ns(key: str) -> int:
            value = given.get(key, 0)
            if self.use_ns:
                return int(value)
            seconds = int(value)
            return seconds * _SECOND + int((value - seconds) * 1e9)

        options = self.options
        mode = number("st_mode", _U32)
        if stat.S_IFMT(mode) not in _TYPES:
            raise fail(errno.EIO)
        masks = (options.umask, options.dmask if stat.S_ISDIR(mode) else options.fmask)
        for mask in masks:
            if mask is not None:
                mode = stat.S_IFMT(mode) | 0o777 & ~mask
        return Attr(
            mode=mode,
            ino=number("st_ino", _U64) if options.use_ino else 0,
            nlink=number("st_nlink", _U32),
            uid=number("st_uid", _U32) if options.uid is None else options.uid,
            gid=number("st_gid", _U32) if options.gid is None else options.gid,
            rdev=number("st_rdev", _U64),
            size=index(given.get("st_size", 0)),
            atime_ns=time_ns("st_atime"),
            mtime_ns=time_ns("st_mtime"),
            ctime_ns=time_ns("st_ctime"),
            btime_ns=time_ns("st_birthtime"),
            blksize=number("st_blksize", _U32) or 4096,
            blocks=index(given.get("st_blocks", -1)),
        )

    @guarded
    def access(self, path: bytes, mask: int) -> None:
        """access; a missing one allows everything."""
        if "access" not in self.trivial:
            self.do_if_there("access", self.text(path), mask)

    @guarded
    def chmod(self, path: bytes, mode: int, fh: FileHandle = None) -> None:
        """chmod. libfuse gives mode bits and the file's type; so does this."""
        kind = stat.S_IFMT(self._attr(self.ask("getattr", self.text(path), None)).mode)
        self.do("chmod", self.text(path), kind | mode)

    @guarded
    def chown(self, path: bytes, uid: int, gid: int, fh: FileHandle = None) -> None:
        """chown; -1 keeps an id and arrives as -1."""
        ids = [-1 if number in (-1, _U32) else number for number in (uid, gid)]
        self.do("chown", self.text(path), *ids)

    @guarded
    def truncate(self, path: bytes, size: int, fh: FileHandle = None) -> None:
        """truncate, or for an open file the same with its handle (ftruncate)."""
        self._sizes.pop(path, None)
        if fh is None:
            self.do("truncate", self.text(path), size)
        else:
            self.do("truncate", self.path(path, fh), size, fh)

    @guarded
    def utimens(
        self, path: bytes, atime_ns: int | None, mtime_ns: int | None, fh: FileHandle = None
    ) -> None:
        """utimens with both times, never None: the kernel fills "now" in.

        An object can't be told to keep one of them, so that one is read first.
        """
        if atime_ns is None and mtime_ns is None:
            return
        if atime_ns is None or mtime_ns is None:
            old = self._attr(self.ask("getattr", self.text(path), None))
            atime_ns = old.atime_ns if atime_ns is None else atime_ns
            mtime_ns = old.mtime_ns if mtime_ns is None else mtime_ns
        self.do("utimens", self.text(path), (self._time(atime_ns), self._time(mtime_ns)))

    def _time(self, nanoseconds: int) -> int | float:
        if self.use_ns:
            return nanoseconds
        seconds, fraction = divmod(nanoseconds, _SECOND)
        return seconds + fraction / 1e9

    @guarded
    def statfs(self, path: bytes) -> StatFs:
        """statfs: a `f_*` dictionary, what is missing is 0; libfuse's values if it has none."""
        if not self.has("statfs"):
            return StatFs(bsize=512, frsize=512)
        given = self.ask("statfs", self.text(path))
        value = {key[2:]: index(given[key]) & _U64 for key in given if key in _STATFS}
        size = value.get("bsize", 0)
        return StatFs(
            bsize=size,
            frsize=value.get("frsize", 0) or size,
            namemax=value.get("namemax", 0) or 255,
            **{key: value.get(key, 0) for key in ("blocks", "bfree", "bavail", "files", "ffree")},
        )

    # --- names ---------------------------------------------------------------------------------

    @guarded
    def readlink(self, path: bytes) -> bytes:
        """readlink."""
        target = self.bytes_of(self.ask("readlink", self.text(path)))
        return target.split(b"\0", 1)[0][:4096]

    @guarded
    def mknod(self, path: bytes, mode: int, rdev: int) -> None:
        """mknod; a regular file is made by create where there is one, as libfuse does."""
        if stat.S_ISREG(mode) and self.has("create"):
            try:
                fh = self._create(path, mode, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except OSError as error:
                if error.errno != errno.ENOSYS:
                    raise
            else:
                self._release(path, fh)
                return
        self.do("mknod", self.text(path), mode, rdev)

    @guarded
    def mkdir(self, path: bytes, mode: int) -> None:
        """mkdir."""
        self.do("mkdir", self.text(path), mode & 0o7777)

    @guarded
    def unlink(self, path: bytes) -> None:
        """unlink."""
        self._sizes.pop(path, None)
        self.do("unlink", self.text(path))

    @guarded
    def rmdir(self, path: bytes) -> None:
        """rmdir."""
        self.do("rmdir", self.text(path))

    @guarded
    def symlink(self, target: bytes, path: bytes) -> None:
        """symlink; the object gets the new name first."""
        self.do("symlink", self.text(path), self.text(target))

    @guarded
    def rename(self, old: bytes, new: bytes, flags: int = 0) -> None:
        """rename. No object knows flags; NOREPLACE was already checked by the VM."""
        if flags & ~_RENAME_NOREPLACE:
            raise fail(errno.EINVAL)
        self.do("rename", self.text(old), self.text(new))
        self._sizes = {}

    @guarded
    def link(self, old: bytes, new: bytes) -> None:
        """link; the object gets the new name first."""
        self.do_or_fail("link", errno.EPERM, self.text(new), self.text(old))

    # --- directories ---------------------------------------------------------------------------

    @guarded
    def opendir(self, path: bytes) -> FileHandle:
        """opendir; the handle is 0 where there is none."""
        if not self.has("opendir"):
            return _Directory(0)
        return _Directory(index(self.ask("opendir", self.text(path))) & _U64)

    @guarded
    def readdir(self, path: bytes, fh: FileHandle) -> Iterable[Entry]:
        """All entries, whichever way the object gives them."""
        return [self._entry(item) for item in self._items(path, fh)]

    def _items(self, path: bytes, fh: FileHandle) -> Iterator[Any]:
        """What readdir gives, once, or readdir_with_offset until it gives no more.

        Offsets from plain readdir mean nothing, as it can't be told where to go on. An offset is
        that of the entry after; the last one asks for more, as the kernel does.
        """
        name = self.path(path)
        if not (self.mfusepy and self.has("readdir_with_offset")):
            yield from self.ask("readdir", name, fh)
            return
        asked: set[int] = set()
        offset = 0
        while offset not in asked:
            asked.add(offset)
            last = 0
            for item in self.ask("readdir_with_offset", name, offset, fh):
                yield item
                last = 0 if isinstance(item, (str, bytes)) else index(item[2])
            offset = last  # 0, or nothing came: the end

    def _entry(self, item: Any) -> Entry:
        """A name, (name, attributes, offset) or (name, mode, offset)."""
        attrs: Any = None
        if not isinstance(item, (str, bytes)):
            item, attrs, _ = item
        name = self.bytes_of(item)
        if not name or b"/" in name or b"\0" in name:
            raise fail(errno.EIO)
        if not attrs:
            return Entry(name)
        if isinstance(attrs, int):
            return Entry(name, 0, stat.S_IFMT(attrs & _U32))
        ino = index(attrs.get("st_ino", 0)) & _U64 if self.options.use_ino else 0
        return Entry(name, ino, stat.S_IFMT(index(attrs.get("st_mode", 0)) & _U32))

    @guarded
    def fsyncdir(self, path: bytes, fh: FileHandle, datasync: bool) -> None:
        """fsyncdir; a missing one succeeds."""
        if "fsyncdir" not in self.trivial:
            self.do_if_there("fsyncdir", self.path(path), int(datasync), fh)

    @guarded
    def releasedir(self, path: bytes, fh: FileHandle) -> None:
        """releasedir."""
        self.do_if_there("releasedir", self.path(path), fh)

    # --- files ---------------------------------------------------------------------------------

    @guarded
    def open(self, path: bytes, flags: int) -> FileHandle:
        """open; the handle is 0 where there is none."""
        return self._open("open", flags, self.text(path))

    def _open(self, op: str, flags: int, *args: Any, told: bool = True) -> FileHandle:
        """Open with `flags` as last argument if `told`, or with a FileInfo if raw_fi is set."""
        if self.options.raw_fi:
            info = FileInfo(flags=flags)
            if self.has(op):
                self.do(op, *args, info)
            return info
        if not self.has(op):
            return 0
        return index(self.ask(op, *args, *([flags] if told else []))) & _U64

    @guarded
    def create(self, path: bytes, mode: int, flags: int) -> FileHandle:
        """create; mknod and open where there is none."""
        mode |= stat.S_IFREG
        if self.has("create"):
            try:
                return self._create(path, mode, flags | os.O_CREAT)
            except OSError as error:
                if error.errno != errno.ENOSYS:
                    raise
        self.do("mknod", self.text(path), mode, 0)
        return self._open("open", flags & ~(os.O_CREAT | os.O_EXCL), self.text(path))

    def _create(self, path: bytes, mode: int, flags: int) -> FileHandle:
        self._sizes.pop(path, None)
        return self._open("create", flags, self.text(path), mode, told=self._create_flags)

    @guarded
    def read(self, path: bytes, fh: FileHandle, size: int, offset: int) -> bytes:
        """read: of whole pages and never behind the end, as the kernel's cache does.

        Objects count on both. With direct_io they are asked for just what the caller wants.
        """
        if self.options.direct_io or (isinstance(fh, FileInfo) and fh.direct_io):
            return self._read(path, fh, size, offset)
        end = min(offset + size, self._size(path, fh))
        if offset >= end:
            return b""
        start = offset - offset % _PAGE
        data = self._read(path, fh, end + -end % _PAGE - start, start)
        return data[offset - start : end - start]

    def _read(self, path: bytes, fh: FileHandle, size: int, offset: int) -> bytes:
        """In pieces of at most `max_read`. More than was asked for is an error."""
        name, limit = self.path(path), self.options.max_read or size
        data = b""
        while len(data) < size:
            want = min(limit, size - len(data))
            part = bytes(self.ask("read", name, want, offset + len(data), fh) or b"")
            if len(part) > want:
                raise ValueError(f"read gave {len(part)} bytes where {want} were asked for")
            data = part if not data else data + part
            if len(part) < want:
                break
        return data

    @guarded
    def write(self, path: bytes, fh: FileHandle, data: bytes, offset: int) -> int:
        """write, in pieces of at most `max_write`. **Errors** EIO: an impossible count."""
        name, limit = self.path(path), self.options.max_write or len(data) or 1
        done = 0
        while done < len(data):
            part = data[done : done + limit]
            try:
                count = self.do("write", name, bytes(part), offset + done, fh)
            except OSError:
                if done:
                    break  # what is written counts; the next write gets the error
                raise
            if count > len(part) or not (count or done):
                raise fail(errno.EIO)
            done += count
            if count < len(part):
                break
        until, size = self._sizes.get(path, (0.0, 0))
        if until and size < offset + done:
            self._sizes[path] = (until, offset + done)
        return done

    @guarded
    def flush(self, path: bytes, fh: FileHandle) -> None:
        """flush; a missing one succeeds."""
        if "flush" in self.trivial:
            return
        if isinstance(fh, FileInfo):
            fh.flush = 1
        self.do_if_there("flush", self.path(path), fh)

    @guarded
    def fsync(self, path: bytes, fh: FileHandle, datasync: bool) -> None:
        """fsync; a missing one succeeds."""
        if "fsync" not in self.trivial:
            self.do_if_there("fsync", self.path(path), int(datasync), fh)

    @guarded
    def release(self, path: bytes, fh: FileHandle) -> None:
        """release."""
        self._release(path, fh)

    def _release(self, path: bytes, fh: FileHandle) -> None:
        self.do_if_there("release", self.path(path), fh)

    @guarded
    def fallocate(self, path: bytes, fh: FileHandle, mode: int, offset: int, length: int) -> None:
        """fallocate (mfusepy only)."""
        self._sizes.pop(path, None)
        self.do_or_fail("fallocate", errno.EOPNOTSUPP, self.path(path), mode, offset, length, fh)

    @guarded
    def ioctl(self, path: bytes, fh: FileHandle, command: int, data: bytes) -> bytes:
        """ioctl: the object gets the address of a buffer that it reads and changes."""
        size = max(command >> 16 & 0x3FFF, len(data))
        buffer = ctypes.create_string_buffer(bytes(data), size) if size else None
        address = ctypes.addressof(buffer) if buffer is not None else None
        command &= _U32
        self.do_or_fail("ioctl", errno.ENOTTY, self.path(path), command, None, fh, 0, address)
        return buffer.raw if buffer is not None else b""

    # --- extended attributes -------------------------------------------------------------------

    @guarded
    def getxattr(self, path: bytes, name: bytes, fh: FileHandle = None) -> bytes:
        """getxattr."""
        try:
            value = self.ask("getxattr", self.text(path), self.text(name))
        except OSError as error:
            raise fail(_without(error, errno.EOPNOTSUPP)) from error
        if isinstance(value, int) and value < 0:
            raise fail(-value)
        return self.bytes_of(value) if isinstance(value, str) else bytes(value)

    @guarded
    def setxattr(
        self, path: bytes, name: bytes, value: bytes, flags: int, fh: FileHandle = None
    ) -> None:
        """setxattr."""
        args = (self.text(path), self.text(name), value, flags)
        self.do_or_fail("setxattr", errno.EOPNOTSUPP, *args)

    @guarded
    def listxattr(self, path: bytes, fh: FileHandle = None) -> list[bytes]:
        """listxattr."""
        try:
            names = self.ask("listxattr", self.text(path)) or ()
        except OSError as error:
            raise fail(_without(error, errno.EOPNOTSUPP)) from error
        return [self.bytes_of(name) for name in names]

    @guarded
    def removexattr(self, path: bytes, name: bytes, fh: FileHandle = None) -> None:
        """removexattr."""
        self.do_or_fail("removexattr", errno.EOPNOTSUPP, self.text(path), self.text(name))


_TYPES = frozenset((stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK,
                    stat.S_IFCHR, stat.S_IFBLK))  # fmt: skip
_STATFS = frozenset(
    str.split("f_bsize f_frsize f_blocks f_bfree f_bavail f_files f_ffree f_namemax")
)


def _without(error: OSError, number: int) -> int:
    """The errno of `error`, or `number` in place of ENOSYS."""
    return number if error.errno == errno.ENOSYS else error.errno or errno.EINVAL
