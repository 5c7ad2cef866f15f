"""Opening a file of the host that a guest finds at another path, or by a bind mount.

The supervisor opens regular files and directories and gives the guest the descriptor: that is much
cheaper than to change the guest's arguments, and the mount can be noted on it. What depends on who
opens it (terminals, FIFOs, devices, other users' rights) the guest opens itself, as what is opened
with O_PATH, which can't be given to it (seccomp_notify_addfd() of kernel/seccomp.c: EBADF).
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import threading
from typing import TYPE_CHECKING

from umvm.guest.spaces import set_signal
from umvm.syscalls.context import AT_FDCWD, Mount, Reply, Request, Where, fail, host_path
from umvm.syscalls.stat import may_answer
from umvm.vfs.openflags import TMPFILE, How
from umvm.vfs.permission import WRITE

if TYPE_CHECKING:
    from umvm.vm import VirtualMachine

HOW_SIZE = 24
"""sizeof(struct open_how): flags, mode, resolve."""
CLONE_FS = 0x200
_MEMORY_DEVICES = 1
"""Major number of /dev/null, zero, full, random and the like: whoever opens them is the same."""
_libc = ctypes.CDLL(None, use_errno=True)
_own = threading.local()


def open_host(vm: VirtualMachine, req: Request, where: Where, how: How, index: int) -> Reply | None:
    """Open what is on the host; `index` of the path among the arguments. OSError as open(2)."""
    special = vm.proc.open(where.host, how.flags, req.tid)
    if special is not None:
        return special
    bind = where.bind
    st = _status(where)
    if bind is not None and bind.read_only:
        _refuse(where, how, st)
    noted = bind is not None and not how.path_only and vm.spaces.of(req.tid).is_ambiguous(bind)
    if not where.changed and not noted:
        return None
    if not how.path_only and _is_ours(where, how, st) and may_answer(vm, req):
        fd = _open(vm, req, host_path(where), how)
        note(vm, req, fd, bind)
        return Reply.fd(fd, bool(how.flags & os.O_CLOEXEC))
    if not where.changed:
        return None
    changes: dict[int, int | bytes] = {index: host_path(where)}
    if how.walk:  # openat2 of a path that has been resolved: the restrictions are met
        how_text = struct.pack("<QQQ", how.flags, how.mode, 0)
        changes = {0: AT_FDCWD, 1: host_path(where), 3: HOW_SIZE}
        return req.rewrite({**changes, 2: (how_text, [])})
    return req.rewrite(changes)


def note(vm: VirtualMachine, req: Request, fd: int, bind: Mount | None) -> None:
    """Note on a file that we opened by which bind mount it was found, if that could be mistaken."""
    if bind is not None and vm.spaces.of(req.tid).is_ambiguous(bind):
        set_signal(fd, bind)


def _status(where: Where) -> os.stat_result | None:
    """What is there now; None: nothing."""
    try:
        return os.lstat(where.host)
    except OSError:
        return None


def _refuse(where: Where, how: How, st: os.stat_result | None) -> None:
    """A read-only mount: path_openat(), may_open() and mnt_want_write() of fs/namei.c."""
    if st is None:
        if how.create and not where.slash:
            raise fail(errno.EROFS)
        return
    if how.exclusive:
        return  # EEXIST
    kind = stat.S_IFMT(st.st_mode)
    if kind == stat.S_IFDIR and how.flags & TMPFILE:
        raise fail(errno.EROFS)
    if kind == stat.S_IFREG and (how.access & WRITE or how.flags & os.O_TRUNC):
        raise fail(errno.EROFS)


def _is_ours(where: Where, how: How, st: os.stat_result | None) -> bool:
    """Is it the same for the guest who of us opens it?"""
    if st is None:
        return True  # it is made, or missing
    kind = stat.S_IFMT(st.st_mode)
    if kind == stat.S_IFCHR:
        return os.major(st.st_rdev) == _MEMORY_DEVICES
    if where.host.startswith(b"/proc/"):
        return kind == stat.S_IFDIR or (kind == stat.S_IFREG and not how.access & WRITE)
    return kind in (stat.S_IFREG, stat.S_IFDIR)


def _open(vm: VirtualMachine, req: Request, path: bytes, how: How) -> int:
    flags = how.flags | os.O_CLOEXEC | os.O_NOCTTY
    if not flags & (os.O_CREAT | TMPFILE):
        return os.open(path, flags)
    with_own_umask()
    before = os.umask(vm.procs.caller(req.tid).umask)
    try:
        return os.open(path, flags, how.mode)
    finally:
        os.umask(before)


def with_own_umask() -> None:
    """From now on this thread has an umask and a working directory of its own (unshare(2))."""
    if not getattr(_own, "done", False):
        if _libc.unshare(CLONE_FS) < 0:
            raise fail(ctypes.get_errno())
        _own.done = True
