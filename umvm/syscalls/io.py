"""read, write and their forms with vectors, offsets and flags. **Source** fs/read_write.c."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from umvm.guest.nodes import CHUNK
from umvm.guest.openfile import OpenFile
from umvm.syscalls.context import Reply, Request, enter, fail, handles, signed64
from umvm.syscalls.transfer import (
    Segments,
    buffer,
    gather,
    put,
    room,
    scatter,
    served,
    vector,
    verify,
)  # fmt: skip

if TYPE_CHECKING:
    from umvm.vm import VirtualMachine

NR_PREADV2, NR_PWRITEV2 = 327, 328
RWF_HIPRI, RWF_DSYNC, RWF_SYNC, RWF_NOWAIT, RWF_APPEND, RWF_NOAPPEND = 1, 2, 4, 8, 16, 32
_RWF_OFFERED = RWF_HIPRI | RWF_DSYNC | RWF_SYNC | RWF_APPEND | RWF_NOAPPEND
_O_SYNC_BIT = os.O_SYNC & ~os.O_DSYNC
NOTHING = Reply.value(0)


def _offset(req: Request) -> int:
    """The offset argument. **Errors** EINVAL: negative."""
    offset = req.args[3]
    if offset >> 63:
        raise fail(errno.EINVAL)
    return offset


def _flags(req: Request) -> int:
    """The RWF_* of preadv2 and pwritev2.

    **Errors** EOPNOTSUPP: one that isn't offered, as RWF_NOWAIT: a file system may always have to
    wait. EINVAL: RWF_APPEND with RWF_NOAPPEND. **Source** kiocb_set_rw_flags.
    """
    flags = req.args[5] & 0xFFFFFFFF
    if flags & ~_RWF_OFFERED:
        raise fail(errno.EOPNOTSUPP)
    if flags & RWF_APPEND and flags & RWF_NOAPPEND:
        raise fail(errno.EINVAL)
    return flags


# --- reading -------------------------------------------------------------------------------------


def _may_read(file: OpenFile) -> None:
    if not file.readable:
        raise fail(errno.EBADF)
    if file.directory:
        raise fail(errno.EISDIR)


def _fetch(req: Request, file: OpenFile, addr: int, size: int, offset: int) -> int:
    """Read into one guest buffer; bytes read."""
    if size > CHUNK:
        return scatter(req, file, [(addr, size)], size, offset)
    data = file.read(size, offset) if size else b""
    if not data:
        return 0
    done = put(req, addr, data)
    if not done:
        raise fail(errno.EFAULT)
    return done


@handles("read")
def sys_read(vm: VirtualMachine, req: Request) -> Reply | None:
    """read(2)."""
    file = served(vm, req)
    if file is None:
        return None
    _may_read(file)
    size = buffer(req.args[1], req.args[2])
    enter(vm, req)
    with file.lock:
        verify(file.offset, req.args[2])
        done = _fetch(req, file, req.args[1], size, file.offset)
        file.offset += done
    return Reply.value(done)


@handles("pread64")
def sys_pread64(vm: VirtualMachine, req: Request) -> Reply | None:
    """pread(2)."""
    offset = _offset(req)
    file = served(vm, req)
    if file is None:
        return None
    _may_read(file)
    size = buffer(req.args[1], req.args[2])
    verify(offset, req.args[2])
    enter(vm, req)
    return Reply.value(_fetch(req, file, req.args[1], size, offset))


@handles("readv", "preadv", "preadv2")
def sys_readv(vm: VirtualMachine, req: Request) -> Reply | None:
    """readv(2), preadv(2), preadv2(2)."""
    position = req.nr == 19 or (req.nr == NR_PREADV2 and signed64(req.args[3]) == -1)
    offset = 0 if position else _offset(req)
    file = served(vm, req)
    if file is None:
        return None
    if not file.readable:
        raise fail(errno.EBADF)
    segments, total = vector(req, req.args[1], req.args[2])
    if not total:
        return NOTHING
    if req.nr == NR_PREADV2:
        _flags(req)
    _may_read(file)
    enter(vm, req)
    if not position:
        verify(offset, total)
        return Reply.value(scatter(req, file, segments, total, offset))
    with file.lock:
        verify(file.offset, total)
        done = scatter(req, file, segments, total, file.offset)
        file.offset += done
    return Reply.value(done)


# --- writing -------------------------------------------------------------------------------------


def _store(
    req: Request, file: OpenFile, segments: Segments, total: int, offset: int, append: bool
) -> tuple[int, int]:
    """Write guest buffers; the bytes written and the offset after them.

    The node's lock makes a write one piece: with O_APPEND nobody gets between the look at the size
    and the write. **Errors** EFBIG, EFAULT, those of the file system, if nothing was written.
    """
    with file.node.lock:
        at = file.size() if append else offset
        end = at
        for data in gather(req, segments, room(req, at, total)):
            try:
                count = file.write(data, end)
            except OSError:
                if end > at:
                    break
                raise
            end += count
            if count < len(data):
                break
    if end == at:
        raise fail(errno.EFAULT)
    return end - at, end


def _write(
    vm: VirtualMachine, req: Request, file: OpenFile, segments: Segments, total: int,
    offset: int | None, flags: int = 0,
) -> Reply:  # fmt: skip
    """The common body; `offset` None: at the file's position."""
    if not total:
        return NOTHING
    enter(vm, req)
    append = bool((file.flags & os.O_APPEND and not flags & RWF_NOAPPEND) or flags & RWF_APPEND)
    if offset is None:
        with file.lock:
            verify(file.offset, total)
            done, file.offset = _store(req, file, segments, total, file.offset, append)
    else:
        verify(offset, total)
        done, _ = _store(req, file, segments, total, offset, append)
    if file.flags & os.O_DSYNC or flags & (RWF_DSYNC | RWF_SYNC):
        file.fsync(not (file.flags & _O_SYNC_BIT or flags & RWF_SYNC))
    return Reply.value(done)


@handles("write")
def sys_write(vm: VirtualMachine, req: Request) -> Reply | None:
    """write(2)."""
    file = served(vm, req)
    if file is None:
        return None
    if not file.writable:
        raise fail(errno.EBADF)
    size = buffer(req.args[1], req.args[2])
    return _write(vm, req, file, [(req.args[1], size)], size, None)


@handles("pwrite64")
def sys_pwrite64(vm: VirtualMachine, req: Request) -> Reply | None:
    """pwrite(2); with O_APPEND it appends, whatever the offset (BUGS in the manual page)."""
    offset = _offset(req)
    file = served(vm, req)
    if file is None:
        return None
    if not file.writable:
        raise fail(errno.EBADF)
    size = buffer(req.args[1], req.args[2])
    return _write(vm, req, file, [(req.args[1], size)], size, offset)


@handles("writev", "pwritev", "pwritev2")
def sys_writev(vm: VirtualMachine, req: Request) -> Reply | None:
    """writev(2), pwritev(2), pwritev2(2)."""
    position = req.nr == 20 or (req.nr == NR_PWRITEV2 and signed64(req.args[3]) == -1)
    offset = None if position else _offset(req)
    file = served(vm, req)
    if file is None:
        return None
    if not file.writable:
        raise fail(errno.EBADF)
    segments, total = vector(req, req.args[1], req.args[2])
    flags = _flags(req) if total and req.nr == NR_PWRITEV2 else 0
    return _write(vm, req, file, segments, total, offset, flags)
