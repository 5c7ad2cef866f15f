"""fsync and its kin, and close: what a file system is told when data must last."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from core_accel.lazy import logger
from umvm.guest.openfile import OpenFile
from umvm.syscalls.context import DONE, Reply, Request, enter, fail, handles, signed, signed64
from umvm.syscalls.transfer import served

if TYPE_CHECKING:
    from umvm.vm import VirtualMachine

log = logger(__name__)
NR_FDATASYNC = 75
CLOSE_RANGE_UNSHARE, CLOSE_RANGE_CLOEXEC = 2, 4


@handles("fsync", "fdatasync")
def sys_fsync(vm: VirtualMachine, req: Request) -> Reply | None:
    """fsync(2), fdatasync(2)."""
    file = served(vm, req)
    if file is None:
        return None
    enter(vm, req)
    file.fsync(req.nr == NR_FDATASYNC)
    return DONE


@handles("sync_file_range")
def sys_sync_file_range(vm: VirtualMachine, req: Request) -> Reply | None:
    """sync_file_range(2): starts writing; that nothing lasts by it is its definition."""
    file = served(vm, req)
    if file is None:
        return None
    offset, length, flags = signed64(req.args[1]), signed64(req.args[2]), req.args[3] & 0xFFFFFFFF
    if flags & ~7 or offset < 0 or length < 0 or offset + length >= 1 << 63:
        raise fail(errno.EINVAL)
    enter(vm, req)
    file.node.write_back()
    return DONE


@handles("syncfs")
def sys_syncfs(vm: VirtualMachine, req: Request) -> Reply | None:
    """syncfs(2): the files of the mount that are open for writing."""
    file = served(vm, req)
    if file is None:
        return None
    enter(vm, req)
    vm.files.sync(file.mount)
    for other in list(vm.files.open.values()):
        if other.mount is file.mount and other.writable and not other.dead:
            other.fsync(False)
    return DONE


@handles("sync")
def sys_sync(vm: VirtualMachine, req: Request) -> Reply | None:
    """sync(2): no error is told of, and the kernel's own files follow."""
    enter(vm, req)
    vm.files.sync()
    for file in list(vm.files.open.values()):
        if file.writable and not file.dead:
            try:
                file.fsync(False)
            except OSError as error:
                log.info("sync of %r: %s", file.path, error)
    return None


# --- close ---------------------------------------------------------------------------------------


def _owes(file: OpenFile | None) -> bool:
    """The file system has to hear of a close, be it the last one or not."""
    if file is None or file.directory or file.flags & os.O_PATH:
        return False
    return file.mount.fs.wants_flush or (file.node.shared and file in file.node.mappers)


@handles("close")
def sys_close(vm: VirtualMachine, req: Request) -> Reply | None:
    """close(2): the file system's flush gives the result, and the descriptor goes in any case."""
    fd = signed(req.args[0])
    file = vm.files.of(req.tid, fd)
    if file is None or not _owes(file):
        return None
    enter(vm, req)
    try:
        file.flush()
    except OSError as error:
        return _closed_with(req, fd, error.errno or errno.EIO)
    return None


def _closed_with(req: Request, fd: int, number: int) -> Reply:
    """Give up the file, and tell of the error.

    A call that the kernel runs can't be made to fail, so another descriptor takes the place of the
    file's, one that allows neither reading nor writing: the number is taken until exec.
    """
    empty = os.open("/dev/null", os.O_ACCMODE | os.O_CLOEXEC)
    try:
        req.addfd(empty, True, fd)
    finally:
        os.close(empty)
    return Reply.error(number)


@handles("close_range")
def sys_close_range(vm: VirtualMachine, req: Request) -> Reply | None:
    """close_range(2): as close, but errors are lost (as on Linux)."""
    first, last, flags = (value & 0xFFFFFFFF for value in req.args[:3])
    if flags & CLOSE_RANGE_CLOEXEC or first > last:
        return None
    enter(vm, req)
    for fd in map(int, os.listdir(f"/proc/{req.tid}/fd")):
        file = vm.files.of(req.tid, fd) if first <= fd <= last else None
        if file is None or not _owes(file):
            continue
        try:
            file.flush()
        except OSError as error:
            log.info("flush of %r: %s", file.path, error)
    return None
