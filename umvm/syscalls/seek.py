"""lseek, ftruncate, fallocate, and advice on how a file will be read."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from umvm.guest.openfile import OpenFile
from umvm.syscalls.context import DONE, Reply, Request, enter, fail, handles, signed, signed64
from umvm.syscalls.transfer import MAX_OFFSET, may_grow, served

if TYPE_CHECKING:
    from umvm.vm import VirtualMachine

KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE = 0x01, 0x02, 0x08, 0x10
INSERT_RANGE, UNSHARE_RANGE, WRITE_ZEROES = 0x20, 0x40, 0x80
"""Modes of fallocate(2), include/uapi/linux/falloc.h."""
_KEEPS: dict[int, tuple[bool, ...]] = {
    0: (False, True),
    UNSHARE_RANGE: (False, True),
    ZERO_RANGE: (False, True),
    PUNCH_HOLE: (True,),
    COLLAPSE_RANGE: (False,),
    INSERT_RANGE: (False,),
    WRITE_ZEROES: (False,),
}
"""Each mode, and whether KEEP_SIZE may or must come with it (vfs_fallocate, fs/open.c)."""


@handles("lseek")
def sys_lseek(vm: VirtualMachine, req: Request) -> Reply | None:
    """lseek(2)."""
    file = served(vm, req)
    if file is None:
        return None
    enter(vm, req)
    with file.lock:
        offset = _target(file, signed64(req.args[1]), req.args[2] & 0xFFFFFFFF)
        if not 0 <= offset <= MAX_OFFSET:
            raise fail(errno.EINVAL)
        file.offset = offset
    return Reply.value(offset)


def _target(file: OpenFile, offset: int, whence: int) -> int:
    """**Errors** EINVAL: no such `whence`. ENXIO: SEEK_DATA or SEEK_HOLE beyond the end."""
    if whence == os.SEEK_SET:
        return offset
    if whence == os.SEEK_CUR:
        return file.offset + offset
    if whence == os.SEEK_END:
        return file.size() + offset
    if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
        raise fail(errno.EINVAL)
    if file.directory:
        raise fail(errno.EINVAL)
    if not 0 <= offset < file.size():
        raise fail(errno.ENXIO)
    file.node.write_back()  # a store through a mapping makes data of a hole
    return file.mount.fs.seek(file.path, file.fh, offset, whence)


@handles("ftruncate")
def sys_ftruncate(vm: VirtualMachine, req: Request) -> Reply | None:
    """ftruncate(2)."""
    size = signed64(req.args[1])
    if size < 0:
        raise fail(errno.EINVAL)
    file = served(vm, req)
    if file is None:
        return None
    if file.directory or not file.writable:
        raise fail(errno.EINVAL)
    enter(vm, req)
    with file.node.lock:
        if size > file.size():
            may_grow(req, size)
        file.truncate(size)
    return DONE


@handles("fallocate")
def sys_fallocate(vm: VirtualMachine, req: Request) -> Reply | None:
    """fallocate(2). **Source** vfs_fallocate, fs/open.c."""
    file = served(vm, req)
    if file is None:
        return None
    mode, offset, length = signed(req.args[1]), signed64(req.args[2]), signed64(req.args[3])
    if offset < 0 or length <= 0:
        raise fail(errno.EINVAL)
    keep = bool(mode & KEEP_SIZE)
    if keep not in _KEEPS.get(mode & ~KEEP_SIZE, ()):
        raise fail(errno.EOPNOTSUPP)
    if not file.writable:
        raise fail(errno.EBADF)
    if offset + length > MAX_OFFSET:
        raise fail(errno.EFBIG)
    enter(vm, req)
    node = file.node
    with node.lock:
        grows = not keep and mode not in (COLLAPSE_RANGE, INSERT_RANGE)
        if grows and offset + length > file.size():
            may_grow(req, offset + length)
        node.write_back()
        file.mount.fs.fallocate(file.path, file.fh, mode, offset, length)
        if node.setid:
            node.clear_setid(file)
        file.unflushed = True
        if node.cached:
            node.reload(file)
    return DONE


@handles("fadvise64", "readahead", "cachestat")
def sys_advice(vm: VirtualMachine, req: Request) -> Reply | None:
    """posix_fadvise(2), readahead(2), cachestat(2): the kernel checks the arguments.

    What it then does is done to the placeholder, which is harmless: advice needn't be taken, and
    of a file that isn't mapped nothing is in the page cache.
    """
    served(vm, req)
    return None
