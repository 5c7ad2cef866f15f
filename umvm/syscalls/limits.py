"""Resource limits, priorities and the clock, as far as root may set them and the host's user not.

What the kernel takes from the real user it is given. What it refuses is remembered, with the
process, and told to those who ask (umvm/guest/marks.py); the real limit or priority stays where it
is. Hard limits are kept here only, so that root can raise them again. **Source**: kernel/sys.c
(do_prlimit, setpriority), block/ioprio.c of Linux 6.18; prlimit(2), getpriority(2), ioprio_set(2).
"""

from __future__ import annotations

import errno
import os
import resource
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from umvm.guest.rlimits import RLIMIT_LOCKS
from umvm.interfaces.identity import (
    CAP_SYS_ADMIN,
    CAP_SYS_NICE,
    CAP_SYS_RESOURCE,
    CAP_SYS_TIME,
    Credentials,
    Identity,
)
from umvm.syscalls.context import DONE, Reply, Request, fail, signed
from umvm.syscalls.identity import NONE, credentials, handles
from umvm.syscalls.signals import whose
from umvm.syscalls.stat import host_call

if TYPE_CHECKING:
    from umvm.vm import VirtualMachine

LIMITS, NICE, IOPRIO = "resource limits", "priority", "I/O priority"
"""Keys of marks."""
WATCH_LIMITS = 2
"""`Engine.watch`: somebody has limits that the kernel doesn't know."""
INFINITY = (1 << 64) - 1
_RLIM_NLIMITS = 16
_PAIR = struct.Struct("=QQ")
Pair = tuple[int, int]


# --- resource limits -----------------------------------------------------------------------------


def _remembered(vm: VirtualMachine, pid: int) -> dict[int, Pair]:
    return dict(vm.marks.get(pid, LIMITS) or ())


def _real(pid: int, which: int) -> Pair:
    soft, hard = resource.prlimit(pid, which)
    return soft & INFINITY, hard & INFINITY


def limit_of(vm: VirtualMachine, pid: int, which: int) -> Pair:
    """(soft, hard) as guests know them. OSError(ESRCH)."""
    known = _remembered(vm, pid).get(which)
    if known is None:
        return (INFINITY, INFINITY) if which == RLIMIT_LOCKS else _real(pid, which)
    return known


def _set_limit(vm: VirtualMachine, pid: int, which: int, new: Pair, own: Credentials) -> None:
    """**Errors** EINVAL, EPERM: a hard limit is raised."""
    soft, hard = new
    if soft > hard:
        raise fail(errno.EINVAL)
    if hard > limit_of(vm, pid, which)[1] and not own.may(CAP_SYS_RESOURCE):
        raise fail(errno.EPERM)
    if which == resource.RLIMIT_NOFILE and hard > _nr_open():
        raise fail(errno.EPERM)
    known = _remembered(vm, pid)
    known[which] = new
    if which != RLIMIT_LOCKS:
        top = _real(pid, which)[1]
        resource.prlimit(pid, which, (_signed(min(soft, top)), _signed(top)))
        if _real(pid, which) == new:
            del known[which]
    vm.marks.set(pid, LIMITS, tuple(sorted(known.items())) or None)
    vm.engine.watch(WATCH_LIMITS)


def _signed(number: int) -> int:
    return resource.RLIM_INFINITY if number == INFINITY else number


def _nr_open() -> int:
    with open("/proc/sys/fs/nr_open", "rb") as file:
        return int(file.read())


def _resource(number: int) -> int:
    which = number & NONE
    if which >= _RLIM_NLIMITS:
        raise fail(errno.EINVAL)
    return which


@handles("getrlimit")
def sys_getrlimit(vm: VirtualMachine, req: Request, identity: Identity) -> Reply:
    """getrlimit(2)."""
    req.write(req.args[1], _PAIR.pack(*limit_of(vm, req.tid, _resource(req.args[0]))))
    return DONE


@handles("setrlimit")
def sys_setrlimit(vm: VirtualMachine, req: Request, identity: Identity) -> Reply:
    """setrlimit(2)."""
    which = _resource(req.args[0])
    soft, hard = _PAIR.unpack(req.read(req.args[1], 16))
    _set_limit(vm, req.tid, which, (soft, hard), credentials(vm, req.tid, identity))
    return DONE


@handles("prlimit64")
def sys_prlimit(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """prlimit(2). **Errors** EPERM: another user's process."""
    pid, number, new, old, *_ = req.args
    target, which = signed(pid) or req.tid, _resource(number)
    wanted = _PAIR.unpack(req.read(new, 16)) if new else None
    own = credentials(vm, req.tid, identity)
    if target != req.tid:
        try:
            _, other = whose(vm, target, identity)
        except OSError:
            return None
        same = {other.euid, other.suid, other.ruid} == {own.ruid}
        same = same and {other.egid, other.sgid, other.rgid} == {own.rgid}
        if not same and not own.may(CAP_SYS_RESOURCE):
            raise fail(errno.EPERM)
    before = limit_of(vm, target, which)
    if wanted is not None:
        _set_limit(vm, target, which, (wanted[0], wanted[1]), own)
    if old:
        req.write(old, _PAIR.pack(*before))
    return DONE


# --- priorities ----------------------------------------------------------------------------------


def _may_set(vm: VirtualMachine, own: Credentials, target: int, identity: Identity) -> None:
    """**Errors** EPERM: another user's process."""
    _, other = whose(vm, target, identity)
    if own.euid not in (other.ruid, other.euid) and not own.may(CAP_SYS_NICE):
        raise fail(errno.EPERM)


@handles("setpriority")
def sys_setpriority(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """setpriority(PRIO_PROCESS); groups and users are the kernel's. **Errors** EPERM, EACCES."""
    which, who, value = map(signed, req.args[:3])
    if which != os.PRIO_PROCESS:
        return None
    target, nice = who or req.tid, max(-20, min(19, value))
    own = credentials(vm, req.tid, identity)
    try:
        _may_set(vm, own, target, identity)
        now = _nice(vm, target)
        if nice < now and not own.may(CAP_SYS_NICE):
            floor = 20 - limit_of(vm, target, resource.RLIMIT_NICE)[0]
            if nice < floor:
                raise fail(errno.EACCES)
        _apply(vm, target, NICE, nice, lambda: os.setpriority(os.PRIO_PROCESS, target, nice))
    except ProcessLookupError:
        return None
    return DONE


def _apply(
    vm: VirtualMachine, target: int, mark: str, value: int, change: Callable[[], object]
) -> None:
    """Change it on the host, or note what the host doesn't let the user do."""
    try:
        change()
        if vm.marks.get(target, mark) is not None:
            vm.marks.set(target, mark, None)
    except PermissionError:
        vm.marks.set(target, mark, value)


def _nice(vm: VirtualMachine, pid: int) -> int:
    known: int | None = vm.marks.get(pid, NICE)
    return os.getpriority(os.PRIO_PROCESS, pid) if known is None else known


@handles("getpriority")
def sys_getpriority(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """getpriority(PRIO_PROCESS): 20 minus the nice value, as the kernel returns it."""
    which, who = map(signed, req.args[:2])
    known: int | None = vm.marks.get(who or req.tid, NICE) if which == os.PRIO_PROCESS else None
    return None if known is None else Reply.value(20 - known)


_WHO_PROCESS = 1
_IOPRIO_SET, _IOPRIO_GET = 251, 252
_CLASS_RT = 1


@handles("ioprio_set")
def sys_ioprio_set(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """ioprio_set(IOPRIO_WHO_PROCESS). **Errors** EPERM."""
    which, who, value = map(signed, req.args[:3])
    if which != _WHO_PROCESS:
        return None
    target, own = who or req.tid, credentials(vm, req.tid, identity)
    try:
        _may_set(vm, own, target, identity)
        if value >> 13 == _CLASS_RT and not own.may(CAP_SYS_NICE) and not own.may(CAP_SYS_ADMIN):
            raise fail(errno.EPERM)
        _apply(vm, target, IOPRIO, value, lambda: host_call(_IOPRIO_SET, which, target, value))
    except ProcessLookupError:
        return None
    return DONE


@handles("ioprio_get")
def sys_ioprio_get(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """ioprio_get(IOPRIO_WHO_PROCESS)."""
    which, who = map(signed, req.args[:2])
    known: int | None = vm.marks.get(who or req.tid, IOPRIO) if which == _WHO_PROCESS else None
    return None if known is None else Reply.value(known)


# --- the clock -----------------------------------------------------------------------------------

_READS = (0, 0xA001)
"""Modes of adjtimex(2) that change nothing: none, and ADJ_OFFSET_SS_READ."""


def _set_clock(vm: VirtualMachine, req: Request, identity: Identity) -> Reply:
    """EPERM, also for root: the clock is the host's; `lenient` seems to set it."""
    if not credentials(vm, req.tid, identity).may(CAP_SYS_TIME) or not identity.lenient:
        raise fail(errno.EPERM)
    return DONE


@handles("settimeofday", "clock_settime")
def sys_settimeofday(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """settimeofday(2), clock_settime(2) of CLOCK_REALTIME."""
    if req.nr == 227 and req.args[0] != 0:
        return None
    return _set_clock(vm, req, identity)


@handles("adjtimex", "clock_adjtime")
def sys_adjtimex(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """adjtimex(2), clock_adjtime(2): to be asked is allowed."""
    (modes,) = struct.unpack("=I", req.read(req.args[req.nr == 305], 4))
    return None if modes in _READS else _set_clock(vm, req, identity)


__all__ = ["WATCH_LIMITS"]
