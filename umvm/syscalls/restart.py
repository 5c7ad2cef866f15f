"""rt_sigreturn: a call that a signal interrupted before the supervisor saw it is repeated.

A signal that arrives between a trapped call's entry and its receipt makes the kernel end the call
with ERESTARTSYS, which a handler without SA_RESTART turns into EINTR, for calls too that otherwise
never give it: close, stat, rename (seccomp_do_user_notification, kernel/seccomp.c). Nobody is told.
But when the handler is done, the registers that it returns to are in its frame, where they can be
set back to the entry of the call.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat
import struct
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from core_accel.lazy import pattern
from umvm.syscalls.context import AT_FDCWD, Reply, Request, handles, locate, look, signed
from umvm.syscalls.row import Verdict
from umvm.syscalls.table import BY_NR

if TYPE_CHECKING:
    from umvm.vm import VirtualMachine

_SIZE = 176
_RDX, _RSI, _RDI, _R10, _RAX, _RIP = 136, 112, 104, 56, 144, 168
"""Offsets in struct ucontext (asm/sigcontext.h)."""
_LOADED = pattern(
    rb"(?s)(?:\xb8|\x48\xc7\xc0)(....)"  # mov $nr,%eax; mov $nr,%rax
    rb"(?:[\xba\xbe\xbf]....|[\x48\x49\x4c\x4d][\x63\x89][\xc1-\xff]|\x31[\xd2\xf6\xff]){0,4}"
    rb"\x0f\x05\Z"
)
"""A call whose number is loaded close before; other arguments may be moved in between."""
_CODE = 48
"""Bytes before the end of a call that are looked at."""
_ATTEMPTS = 200
_SYSCALL = b"\x0f\x05"
F_SETLKW, F_OFD_SETLKW = 7, 38
DRAINING = (0x5403, 0x5404, 0x5409, 0x5425)
"""TCSETSW, TCSETSF, TCSBRK, TCSBRKP: they wait for a terminal's output (ioctl_tty(2))."""
_Arguments = tuple[int, int, int, int]
_Rule = Callable[["VirtualMachine", Request, _Arguments], bool]


@handles("rt_sigreturn")
def sys_rt_sigreturn(vm: VirtualMachine, req: Request) -> Reply | None:
    """rt_sigreturn(2): the kernel's, after a look at the frame that it takes down."""
    try:
        frame = _stack(req)
        if frame is not None:
            _look(vm, req, frame)
    except OSError:
        pass  # the kernel says what is wrong with the frame
    return None


def _stack(req: Request) -> int | None:
    """The guest's stack pointer: rt_sigreturn's frame. None: it is gone."""
    for attempt in range(_ATTEMPTS):
        with open(f"/proc/{req.tid}/syscall", "rb") as file:
            fields = file.read().split()
        if len(fields) > 2:
            return int(fields[-2], 16)
        if not req.alive():
            return None
        time.sleep(0.001 if attempt > 5 else 0)  # "running": another signal woke it for a moment
    return None


def _look(vm: VirtualMachine, req: Request, frame: int) -> None:
    data = req.read(frame, _SIZE)

    def at(offset: int) -> int:
        return int.from_bytes(data[offset : offset + 8], "little")

    if at(_RAX) != 2**64 - errno.EINTR:
        return
    rip = at(_RIP)
    nr = _number(req.peek(rip - _CODE, _CODE))
    arguments = at(_RDI), at(_RSI), at(_RDX), at(_R10)
    # one that was changed was received, and its texts lie where the frame was put since
    if nr is None or req.was_changed(nr, arguments) or not _is_wrong(vm, req, nr, arguments):
        return
    req.write(frame + _RIP, struct.pack("<Q", rip - len(_SYSCALL)))
    req.write(frame + _RAX, struct.pack("<Q", nr))


def _number(code: bytes) -> int | None:
    """The call that ended after `code`, if that shows it, as that of C libraries mostly does.

    musl's and glibc 2.41's calls that are cancellation points don't show it.
    """
    numbers = {int.from_bytes(match[1], "little") for match in _LOADED.finditer(code)}
    return numbers.pop() if len(numbers) == 1 else None


def _is_wrong(vm: VirtualMachine, req: Request, nr: int, arguments: _Arguments) -> bool:
    """Can't this call have ended with EINTR by itself? What never waits gives none (signal(7))."""
    row = BY_NR.get(nr)
    if row is None or row.verdict is not Verdict.TRAPPED:
        return False
    rule = RULES.get(row.name)
    return rule is None or rule(vm, req, arguments)


def _waits(vm: VirtualMachine, req: Request, arguments: _Arguments) -> bool:
    return False


def _ready(event: int) -> _Rule:
    """A transfer that would wait now may have waited; files never do."""

    def rule(vm: VirtualMachine, req: Request, arguments: _Arguments) -> bool:
        fd = req.getfd(signed(arguments[0]))
        try:
            poll = select.poll()
            poll.register(fd, event)
            return bool(poll.poll(0))
        finally:
            os.close(fd)

    return rule


def _is_open(vm: VirtualMachine, req: Request, arguments: _Arguments) -> bool:
    """A close(2) that a host file system's flush ended has closed the descriptor."""
    return os.path.lexists(f"/proc/{req.tid}/fd/{signed(arguments[0])}")


def _opens(index: int) -> _Rule:
    """Opening FIFOs and devices waits."""

    def rule(vm: VirtualMachine, req: Request, arguments: _Arguments) -> bool:
        dirfd = signed(arguments[0]) if index else AT_FDCWD
        where = locate(vm, req, dirfd, req.string(arguments[index]), missing=True)
        if where.missing:
            return True
        mode = os.stat(where.host).st_mode if where.mount is None else look(where).mode
        return not stat.S_ISFIFO(mode) and not stat.S_ISCHR(mode)

    return rule


def _drains_no_terminal(vm: VirtualMachine, req: Request, arguments: _Arguments) -> bool:
    return arguments[1] & 0xFFFFFFFF not in DRAINING


def _sets_no_lock(vm: VirtualMachine, req: Request, arguments: _Arguments) -> bool:
    return arguments[1] & 0xFFFFFFFF not in (F_SETLKW, F_OFD_SETLKW)


def _takes_no_time(vm: VirtualMachine, req: Request, arguments: _Arguments) -> bool:
    return bool(arguments[1] & (fcntl.LOCK_NB | fcntl.LOCK_UN))


_NAMES: dict[_Rule, str] = {
    _waits: "connect sendfile splice tee vmsplice",
    _ready(select.POLLIN): "read readv pread64 preadv preadv2",
    _ready(select.POLLOUT): "write writev pwrite64 pwritev pwritev2 sendto sendmsg sendmmsg",
    _drains_no_terminal: "ioctl",
    _is_open: "close",
    _opens(0): "open creat",
    _opens(1): "openat openat2",
    _sets_no_lock: "fcntl",
    _takes_no_time: "flock",
}
RULES = {name: rule for rule, names in _NAMES.items() for name in names.split()}
"""For calls that may rightly be interrupted: is this one not of that kind?"""
