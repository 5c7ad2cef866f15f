"""fcntl and flock: the kernel keeps descriptors and locks, the supervisor the status flags."""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING

from umvm.guest.openfile import OpenFile
from umvm.syscalls.context import DONE, Reply, Request, enter, fail, handles, signed
from umvm.syscalls.transfer import served

if TYPE_CHECKING:
    from umvm.vm import VirtualMachine

F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL = 0, 1, 2, 3, 4
F_DUPFD_QUERY, F_DUPFD_CLOEXEC = 1027, 1030
LOCKS = frozenset((5, 6, 7, 36, 37, 38))
"""F_GETLK, F_SETLK, F_SETLKW, and F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW."""
OF_PATH = frozenset((F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_QUERY, F_DUPFD_CLOEXEC))
"""What a descriptor opened with O_PATH allows (check_fcntl_cmd, fs/fcntl.c)."""
REFUSED = {
    1024: "F_SETLEASE: the supervisor's own use of the placeholder would break it",
    1026: "F_NOTIFY: nothing happens in the placeholder",
    1033: "F_ADD_SEALS: the placeholder's",
    1034: "F_GET_SEALS: the placeholder's",
}
"""Commands answered with EINVAL, as on file systems that don't have them."""
_SETTABLE = os.O_APPEND | os.O_NONBLOCK | os.O_DIRECT | os.O_NOATIME
O_LARGEFILE = 0o100000
_FLOCK_HEAD = struct.Struct("<hh")  # l_type, l_whence


@handles("fcntl")
def sys_fcntl(vm: VirtualMachine, req: Request) -> Reply | None:
    """fcntl(2)."""
    fd, command = signed(req.args[0]), req.args[1] & 0xFFFFFFFF
    file = vm.files.of(req.tid, fd)
    if file is None:
        return None
    path_only = bool(file.flags & os.O_PATH)
    if path_only and command not in OF_PATH:
        raise fail(errno.EBADF)
    if command == F_GETFL:
        return Reply.value(file.flags if path_only else file.flags | O_LARGEFILE)
    if command == F_SETFL:
        return _set_flags(vm, req, file, req.args[2])
    if command in LOCKS:
        _lock(vm, req, file, fd)
    elif command in REFUSED:
        raise fail(errno.EINVAL)
    return None


def _set_flags(vm: VirtualMachine, req: Request, file: OpenFile, flags: int) -> Reply | None:
    """**Errors** EPERM: O_NOATIME for another's file. **Source** setfl, fs/fcntl.c."""
    if flags & os.O_NOATIME and not file.flags & os.O_NOATIME:
        caller = enter(vm, req)
        if caller.uid not in (0, file.mount.fs.getattr(file.path, file.fh).uid):
            raise fail(errno.EPERM)
    file.flags = file.flags & ~_SETTABLE | flags & _SETTABLE
    # The placeholder has them too, for /proc/PID/fdinfo, but need not allow these.
    return DONE if flags & (os.O_DIRECT | os.O_NOATIME) else None


def _lock(vm: VirtualMachine, req: Request, file: OpenFile, fd: int) -> None:
    """Make the placeholder's position or size right where a lock counts from it."""
    _, whence = _FLOCK_HEAD.unpack(req.read(req.args[2], _FLOCK_HEAD.size))
    if whence == os.SEEK_CUR:
        copy = req.getfd(fd)
        try:
            os.lseek(copy, file.offset, os.SEEK_SET)
        finally:
            os.close(copy)
    elif whence == os.SEEK_END and not file.directory:
        enter(vm, req)
        with file.node.lock:
            if not file.node.cached:
                os.truncate(file.node.place, file.size())


@handles("flock")
def sys_flock(vm: VirtualMachine, req: Request) -> Reply | None:
    """flock(2): on the placeholder, which all descriptions of the file share."""
    served(vm, req)
    return None
