"""What the calls that move data share: guest buffers, limits, and what a descriptor stands for."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

from umvm.guest.nodes import CHUNK
from umvm.guest.openfile import OpenFile
from umvm.guest.rlimits import soft_limit
from umvm.syscalls.context import Request, fail, signed

if TYPE_CHECKING:
    from umvm.vm import VirtualMachine

IOV_MAX = 1024
MAX_COUNT = 0x7FFFF000
"""MAX_RW_COUNT: one call moves no more bytes."""
MAX_OFFSET = (1 << 63) - 1
TASK_SIZE = 0x7FFFFFFFF000
PAGE = 4096
Segments = list[tuple[int, int]]
"""(address, length in bytes)"""
_TGKILL = 234
_libc = ctypes.CDLL(None, use_errno=True)


def served(vm: VirtualMachine, req: Request, index: int = 0) -> OpenFile | None:
    """The served file behind a descriptor argument. **Errors** EBADF: it was opened with O_PATH."""
    file = vm.files.of(req.tid, signed(req.args[index]))
    if file is not None and file.flags & os.O_PATH:
        raise fail(errno.EBADF)
    return file


# --- guest buffers -------------------------------------------------------------------------------


def count_of(size: int) -> int:
    """A size_t argument as a count. **Errors** EINVAL: negative as ssize_t."""
    if size > MAX_COUNT:
        if size > MAX_OFFSET:
            raise fail(errno.EINVAL)
        return MAX_COUNT
    return size


def vector(req: Request, addr: int, count: int) -> tuple[Segments, int]:
    """An array of struct iovec, and the sum of its lengths.

    **Errors** EINVAL: too many, or a negative length. EFAULT. **Source** import_iovec,
    lib/iov_iter.c.
    """
    if count > IOV_MAX:
        raise fail(errno.EINVAL)
    total = 0
    segments: Segments = []
    for base, length in struct.iter_unpack("<QQ", req.read(addr, 16 * count)):
        if length > MAX_OFFSET:
            raise fail(errno.EINVAL)
        length = min(length, MAX_COUNT - total)
        total += length
        segments.append((base, length))
    return segments, total


def buffer(addr: int, size: int) -> int:
    """The count of a call with one buffer. **Errors** EFAULT: it can't be in user space."""
    if addr + size > TASK_SIZE:
        raise fail(errno.EFAULT)
    return min(size, MAX_COUNT)


def verify(offset: int, count: int) -> None:
    """**Errors** EINVAL: the end has no offset (rw_verify_area, fs/read_write.c)."""
    if offset + count > MAX_OFFSET:
        raise fail(errno.EINVAL)


def put(req: Request, addr: int, data: bytes | memoryview) -> int:
    """Store in guest memory up to the first address that can't be written; how many bytes."""
    try:
        req.write(addr, data)
        return len(data)
    except OSError:
        pass
    done = 0
    while done < len(data):
        size = PAGE - (addr + done) % PAGE
        try:
            req.write(addr + done, data[done : done + size])
        except OSError:
            break
        done += size
    return min(done, len(data))


def scatter(req: Request, file: OpenFile, segments: Segments, total: int, offset: int) -> int:
    """Read a file into guest buffers; bytes read. **Errors** EFAULT, and those of the file system,
    if nothing was read before."""
    done = within = index = 0
    while done < total:
        wanted = min(total - done, CHUNK)
        try:
            data = file.read(wanted, offset + done)
        except OSError:
            if done:
                break
            raise
        left = memoryview(data)
        while left:
            base, length = segments[index]
            size = min(length - within, len(left))
            stored = put(req, base + within, left[:size]) if size else 0
            done += stored
            if stored < size:
                if done:
                    return done
                raise fail(errno.EFAULT)
            left = left[size:]
            within += size
            if within == length:
                index, within = index + 1, 0
        if len(data) < wanted:
            break
    return done


def gather(req: Request, segments: Segments, total: int) -> Iterator[bytes]:
    """Read guest buffers in pieces of up to 1 MiB; it ends at the first address that is bad."""
    parts: list[bytes] = []
    size = 0
    for base, length in segments:
        at = 0
        length = min(length, total)
        total -= length
        while at < length:
            wanted = min(length - at, CHUNK - size)
            try:
                data = req.read(base + at, wanted)
            except OSError:
                data = req.peek(base + at, wanted)
            if data:
                parts.append(data)
                size += len(data)
                at += len(data)
            bad = len(data) < wanted
            if size and (bad or size == CHUNK):
                yield b"".join(parts) if len(parts) > 1 else parts[0]
                parts, size = [], 0
            if bad:
                return
    if size:
        yield b"".join(parts) if len(parts) > 1 else parts[0]


# --- limits --------------------------------------------------------------------------------------


def file_limit(req: Request) -> int:
    """The guest's RLIMIT_FSIZE in bytes; -1: none."""
    try:
        return soft_limit(req.tid, resource.RLIMIT_FSIZE)
    except OSError:
        return -1  # it is gone


def room(req: Request, offset: int, count: int) -> int:
    """How much of a write at `offset` is allowed (generic_write_check_limits, fs/read_write.c).

    **Errors** EFBIG: nothing, by RLIMIT_FSIZE (with SIGXFSZ) or as the offset is too big.
    """
    limit = file_limit(req)
    if limit >= 0:
        if offset >= limit:
            raise too_big(req)
        count = min(count, limit - offset)
    if offset >= MAX_OFFSET:
        raise fail(errno.EFBIG)
    return min(count, MAX_OFFSET - offset)


def may_grow(req: Request, size: int) -> None:
    """May a file be made so big? **Errors** EFBIG, with SIGXFSZ. **Source** inode_newsize_ok."""
    if 0 <= file_limit(req) < size:
        raise too_big(req)


def too_big(req: Request) -> OSError:
    """The error of a write beyond RLIMIT_FSIZE; its signal is sent."""
    send_signal(req, signal.SIGXFSZ)
    return fail(errno.EFBIG)


def send_signal(req: Request, number: int) -> None:
    """Send the calling thread a signal, as the kernel does while it runs a call (tgkill(2))."""
    try:
        with open(f"/proc/{req.tid}/status", "rb") as status:
            tgid = next(int(line[6:]) for line in status if line.startswith(b"Tgid:"))
    except (OSError, StopIteration):
        return  # it is gone
    _libc.syscall(_TGKILL, tgid, req.tid, number)
