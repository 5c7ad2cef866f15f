"""ioctl on served files: what the VFS answers itself (fs/ioctl.c), and the rest by file system."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from umvm.guest.openfile import OpenFile
from umvm.syscalls.context import (
    DONE,
    Reply,
    Request,
    check_read_only,
    enter,
    fail,
    handles,
    signed,
)  # fmt: skip

if TYPE_CHECKING:
    from umvm.vm import VirtualMachine

FIONREAD, FIONBIO, FIONCLEX, FIOCLEX, FIOASYNC, FIOQSIZE = (
    0x541B, 0x5421, 0x5450, 0x5451, 0x5452, 0x5460,
)  # fmt: skip
FIBMAP, FIGETBSZ = 1, 2
FIFREEZE, FITHAW = 0xC0045877, 0xC0045878
FS_IOC_FIEMAP = 0xC020660B
FICLONE, FICLONERANGE, FIDEDUPERANGE = 0x40049409, 0x4020940D, 0xC0189436
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_IOC_GETVERSION, FS_IOC_SETVERSION = (
    0x80086601, 0x40086602, 0x80087601, 0x40087602,
)  # fmt: skip
SIZES = dict.fromkeys((FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_IOC_GETVERSION, FS_IOC_SETVERSION), 4)
"""Commands whose number says `long`, though an int is copied (ioctl_iflags(2))."""
CLONES = frozenset((FICLONE, FICLONERANGE))
LOOP_CONFIGURE = 0x4C0A
LOOPS = frozenset((0x4C00, 0x4C06, LOOP_CONFIGURE))
"""LOOP_SET_FD, LOOP_CHANGE_FD and LOOP_CONFIGURE (loop(4)): the kernel would read a placeholder."""
_TERMINAL = 0x54
_IN, _OUT = 1, 2  # _IOC_WRITE, _IOC_READ


@handles("ioctl")
def sys_ioctl(vm: VirtualMachine, req: Request) -> Reply | None:
    """ioctl(2)."""
    file = vm.files.of(req.tid, signed(req.args[0]))
    command, arg = req.args[1] & 0xFFFFFFFF, req.args[2]
    if file is None:
        if command in CLONES and vm.files.of(req.tid, _source(req, command, arg)) is not None:
            raise fail(errno.EXDEV)
        if command in LOOPS and vm.files.of(req.tid, _source(req, command, arg)) is not None:
            raise fail(errno.EINVAL)
        check_read_only(vm, req, signed(req.args[0]))
        return None
    if file.flags & os.O_PATH:
        raise fail(errno.EBADF)
    enter(vm, req)
    known = _KNOWN.get(command)
    if known is not None:
        return known(vm, req, file)
    if command >> 8 == _TERMINAL:
        raise fail(errno.ENOTTY)
    return _by_file_system(req, file, command, arg)


def _by_file_system(req: Request, file: OpenFile, command: int, arg: int) -> Reply:
    size = SIZES.get(command, command >> 16 & 0x3FFF)
    direction = command >> 30
    data = req.read(arg, size) if direction & _IN else b""
    answer = file.mount.fs.ioctl(file.path, file.fh, command, data)
    if direction & _OUT:
        req.write(arg, answer[:size])
    return DONE


# --- those of the VFS ----------------------------------------------------------------------------


def _run(vm: VirtualMachine, req: Request, file: OpenFile) -> Reply | None:
    return None


def _not_offered(vm: VirtualMachine, req: Request, file: OpenFile) -> Reply:
    raise fail(errno.EOPNOTSUPP)


def _bmap(vm: VirtualMachine, req: Request, file: OpenFile) -> Reply:
    raise fail(errno.EPERM if not file.directory else errno.ENOTTY)  # CAP_SYS_RAWIO


def _readable(vm: VirtualMachine, req: Request, file: OpenFile) -> Reply:
    """FIONREAD: bytes from the position to the end."""
    if file.directory:
        raise fail(errno.ENOTTY)
    left = file.size() - file.offset
    req.write(req.args[2], struct.pack("<I", left & 0xFFFFFFFF))
    return DONE


def _nonblocking(vm: VirtualMachine, req: Request, file: OpenFile) -> Reply | None:
    (on,) = struct.unpack("<i", req.read(req.args[2], 4))
    file.flags = file.flags | os.O_NONBLOCK if on else file.flags & ~os.O_NONBLOCK
    return None


def _quota_size(vm: VirtualMachine, req: Request, file: OpenFile) -> Reply:
    """FIOQSIZE: the bytes that a file or directory takes up."""
    attr = file.mount.fs.getattr(file.path, file.fh)
    blocks = attr.blocks if attr.blocks >= 0 else -(-attr.size // 512)
    req.write(req.args[2], struct.pack("<q", blocks * 512))
    return DONE


def _block_size(vm: VirtualMachine, req: Request, file: OpenFile) -> Reply:
    size = file.mount.fs.statfs(file.path).bsize
    req.write(req.args[2], struct.pack("<i", size))
    return DONE


def _clone(vm: VirtualMachine, req: Request, file: OpenFile) -> Reply:
    """**Errors** EBADF: no source. EXDEV: it is elsewhere. EOPNOTSUPP: no file system has it."""
    fd = _source(req, req.args[1] & 0xFFFFFFFF, req.args[2])
    source = vm.files.of(req.tid, fd)
    if source is None:
        os.close(req.getfd(fd))
        raise fail(errno.EXDEV)
    if source.flags & os.O_PATH:
        raise fail(errno.EBADF)
    if source.mount is not file.mount:
        raise fail(errno.EXDEV)
    if source.directory or file.directory:
        raise fail(errno.EISDIR)
    if not source.readable or not file.writable or file.flags & os.O_APPEND:
        raise fail(errno.EBADF)
    raise fail(errno.EOPNOTSUPP)


def _source(req: Request, command: int, arg: int) -> int:
    """The descriptor that FICLONE and LOOP_* have as argument; in a structure for two of them."""
    if command == FICLONERANGE:
        return int(struct.unpack("<q", req.read(arg, 8))[0])
    if command == LOOP_CONFIGURE:
        return int(struct.unpack("<i", req.read(arg, 4))[0])
    return signed(arg)


_KNOWN: dict[int, Callable[[VirtualMachine, Request, OpenFile], Reply | None]] = {
    FIONREAD: _readable,
    FIONBIO: _nonblocking,
    FIONCLEX: _run,
    FIOCLEX: _run,
    FIOASYNC: _run,
    FIOQSIZE: _quota_size,
    FIBMAP: _bmap,
    FIGETBSZ: _block_size,
    FIFREEZE: _not_offered,
    FITHAW: _not_offered,
    FS_IOC_FIEMAP: _not_offered,
    FICLONE: _clone,
    FICLONERANGE: _clone,
    FIDEDUPERANGE: _not_offered,
}
