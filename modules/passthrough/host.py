"""Calls of the kernel that Python's os module lacks, beneath a directory that can't be left.

Each raises OSError as the os module does. Layouts are those of include/uapi/linux.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from umvm.interfaces.filesystem import Attr, Caller, Entry, caller

_libc = ctypes.CDLL(None, use_errno=True)

_AT_SYMLINK_NOFOLLOW, _AT_EACCESS, _AT_EMPTY_PATH = 0x100, 0x200, 0x1000
_OPENAT2, _FACCESSAT2 = 437, 439  # the same on every architecture
_SETGROUPS = {"x86_64": 116, "aarch64": 159, "riscv64": 159}
_RESOLVE = 0x04 | 0x08  # RESOLVE_NO_SYMLINKS | RESOLVE_BENEATH of linux/openat2.h
_STATX_MASK = 0xFFF  # STATX_BASIC_STATS | STATX_BTIME
_PATH_MAX = 4096
_UTIME_OMIT = (1 << 30) - 2

_how = struct.Struct("=QQQ")
_timespec = struct.Struct("=qq")
_statx = struct.Struct("=4xI8xIIIH2xQQQ8xqI4xqI4xqI4xqI4xIIII")
_dirent = struct.Struct("=QqHB")
_StatxBuffer = ctypes.c_char * 256
_ListBuffer = ctypes.c_char * 65536


def _checked(function: Any, *fixed: int) -> Callable[..., int]:
    """A C function that says -1 and errno, as one that raises OSError. EINTR: called again."""

    def call(*values: Any) -> int:
        while True:
            result: int = function(*fixed, *values)
            if result >= 0:
                return result
            number = ctypes.get_errno()
            if number != errno.EINTR:
                raise OSError(number, os.strerror(number))

    return call


def _bind(name: str, *types: Any) -> Callable[..., int]:
    prototype = ctypes.CFUNCTYPE(ctypes.c_int, *types, use_errno=True)
    return _checked(prototype((name, _libc)))


def _bind_syscall(number: int, *types: Any) -> Callable[..., int]:
    prototype = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_long, *types, use_errno=True)
    return _checked(prototype(("syscall", _libc)), number)


_int, _bytes, _size, _off = ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int64
_call_openat2 = _bind_syscall(_OPENAT2, ctypes.c_long, _bytes, _bytes, _size)
_call_faccessat2 = _bind_syscall(_FACCESSAT2, ctypes.c_long, _bytes, ctypes.c_long, ctypes.c_long)
_call_statx = _bind("statx", _int, _bytes, _int, ctypes.c_uint, ctypes.c_void_p)
_call_renameat2 = _bind("renameat2", _int, _bytes, _int, _bytes, ctypes.c_uint)
_call_utimensat = _bind("utimensat", _int, _bytes, _bytes, _int)
_call_getdents = _bind("getdents64", _int, ctypes.c_void_p, _size)
_call_fallocate = _bind("fallocate", _int, _int, _off, _off)


def magic(fd: int) -> bytes:
    """A path that leads to exactly the file behind a descriptor, O_PATH or not, whatever its name.

    **Source**: proc_pid_fd(5), open(2) on O_PATH.
    """
    return b"/proc/self/fd/%d" % fd


def open_beneath(root: int, path: bytes, flags: int, mode: int = 0) -> int:
    """openat2(2): open a relative path without leaving `root` and without any symbolic link.

    **Errors** ELOOP: a symbolic link on the way, or at the end without O_PATH; EXDEV: it leads out.
    """
    how = _how.pack(flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, _RESOLVE)
    if len(path) < _PATH_MAX:
        return _call_openat2(root, path, how, _how.size)
    # the guest's path was shorter, from a directory far down
    head = path[:_PATH_MAX].rpartition(b"/")[0]
    rest = path[len(head) + 1 :]
    directory = open_beneath(root, head, os.O_PATH | os.O_DIRECTORY)
    try:
        return open_beneath(directory, rest, flags, mode)
    finally:
        os.close(directory)


class Status(NamedTuple):
    """What statx(2) says: `attr.ino` is the host's, unique within `dev` only."""

    dev: int
    attr: Attr


def status(fd: int) -> Status:
    """Attributes of an open file."""
    buffer = _StatxBuffer()
    _call_statx(fd, b"", _AT_EMPTY_PATH, _STATX_MASK, buffer)
    (
        blksize, nlink, uid, gid, mode, ino, size, blocks, a_s, a_ns, b_s, b_ns, c_s, c_ns,
        m_s, m_ns, rdev_major, rdev_minor, dev_major, dev_minor,
    ) = _statx.unpack_from(buffer)  # fmt: skip
    attr = Attr(
        mode, ino, nlink, uid, gid, os.makedev(rdev_major, rdev_minor), size,
        a_s * 10**9 + a_ns, m_s * 10**9 + m_ns, c_s * 10**9 + c_ns, b_s * 10**9 + b_ns,
        blksize, blocks,
    )  # fmt: skip
    return Status(os.makedev(dev_major, dev_minor), attr)


def check_access(fd: int, mask: int) -> None:
    """faccessat2(2) with the ids that this thread acts with."""
    _call_faccessat2(fd, b"", mask, _AT_EACCESS | _AT_EMPTY_PATH)


def rename(old_dir: int, old: bytes, new_dir: int, new: bytes, flags: int) -> None:
    """renameat2(2)."""
    _call_renameat2(old_dir, old, new_dir, new, flags)


def set_times(fd: int, atime_ns: int | None, mtime_ns: int | None) -> None:
    """Set times in nanoseconds of an open file, O_PATH or not; None keeps one."""
    times = b"".join(
        _timespec.pack(0, _UTIME_OMIT) if ns is None else _timespec.pack(*divmod(ns, 10**9))
        for ns in (atime_ns, mtime_ns)
    )
    _call_utimensat(fd, b"", times, _AT_EMPTY_PATH)


def set_times_now(fd: int) -> None:
    """Set both times as touch(1) does: who may write the file may do it, too."""
    _call_utimensat(fd, b"", None, _AT_EMPTY_PATH)


def allocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2)."""
    _call_fallocate(fd, mode, offset, length)


def entries(fd: int) -> Iterator[Entry]:
    """The entries from the descriptor's position on, `.` and `..` included.

    **Errors** ENOENT: the directory was removed.
    """
    buffer = _ListBuffer()
    while length := _call_getdents(fd, buffer, len(buffer)):
        data = buffer.raw[:length]
        at = 0
        while at < length:
            ino, _, size, kind = _dirent.unpack_from(data, at)
            name = data[at + _dirent.size : at + size]
            # DT_* are the S_IFMT bits shifted
            yield Entry(name[: name.index(b"\0")], ino, kind << 12)
            at += size


class _Ids(NamedTuple):
    uid: int
    gid: int
    groups: tuple[int, ...]


class ActAs:
    """Context in which this thread acts with the ids of the guest that calls.

    Only a privileged supervisor has guests with other ids than its own: they aren't allowed what
    root is, and files they make are theirs. setfsuid(2) and the system call setgroups concern one
    thread; a user id other than 0 also loses the capabilities for files (capabilities(7)).
    """

    def __init__(self) -> None:
        self.needed = os.geteuid() == 0
        self._own = _Ids(os.geteuid(), os.getegid(), tuple(os.getgroups()))
        number = _SETGROUPS.get(platform.machine())
        if self.needed and number is None:
            raise OSError(errno.ENOSYS, "passthrough: run it as an ordinary user on this machine")
        if number is not None:
            self._setgroups = _bind_syscall(number, ctypes.c_long, ctypes.c_void_p)

    def __enter__(self) -> None:
        if self.needed:
            who = caller()
            if self._differs(who):
                try:
                    self._become(_Ids(who.uid, who.gid, who.groups))
                except BaseException:
                    self._become(self._own)
                    raise

    def __exit__(self, *_: object) -> None:
        if self.needed and self._differs(caller()):
            self._become(self._own)

    def _differs(self, who: Caller) -> bool:
        return bool(who.pid) and (who.uid, who.gid, who.groups) != self._own

    def _become(self, ids: _Ids) -> None:
        array = (ctypes.c_uint32 * len(ids.groups))(*ids.groups)
        self._setgroups(len(ids.groups), ctypes.addressof(array))
        for call, number in ((_libc.setfsgid, ids.gid), (_libc.setfsuid, ids.uid)):
            call(ctypes.c_uint32(number))
            if call(ctypes.c_uint32(0xFFFFFFFF)) != number:  # they never fail, they do nothing
                raise OSError(errno.EPERM, "passthrough: can't act with the guest's ids")


def own_umask() -> int:
    """The umask of this process: umask(2) can't tell without changing it."""
    with open("/proc/self/status", "rb") as file:
        for line in file:
            if line.startswith(b"Umask:"):
                return int(line.split()[1], 8)
    return 0
