"""Who may signal, trace and read whom, where a module gives the guests an identity.

The kernel sees one user, so it would let everybody. **Source**: kill_ok_by_cred() and
kill_something_info() of kernel/signal.c, __ptrace_may_access() of kernel/ptrace.c,
cap_ptrace_access_check() of security/commoncap.c, Linux 6.18; kill(2), ptrace(2).
"""

from __future__ import annotations

import errno
import os
import signal
import time
from typing import TYPE_CHECKING

from core_accel.lazy import pattern
from umvm.guest.process import status
from umvm.guest.procidentity import is_guest
from umvm.interfaces.identity import (
    CAP_KILL,
    CAP_SYS_PTRACE,
    Credentials,
    Identity,
    login,
)
from umvm.syscalls.context import DONE, Reply, Request, fail, signed
from umvm.syscalls.identity import credentials, handles

if TYPE_CHECKING:
    from umvm.vm import VirtualMachine

_PGRP, _SESSION = 2, 3
"""Fields 5 and 6 of proc_pid_stat(5), counted after the name."""
_PIDFD = pattern(rb"(?m)^Pid:\t(\d+)$")
_PASSING = 0.1
"""Seconds that the supervisor may trace a thread for, at most."""


def whose(vm: VirtualMachine, tid: int, identity: Identity) -> tuple[int, Credentials]:
    """(process, credentials) of a guest or of a process of the host. OSError: it is gone."""
    fields = status(tid)
    tgid = int(fields[b"Tgid"])
    if is_guest(fields):
        return tgid, credentials(vm, tid, identity)
    uids, gids = fields[b"Uid"].split(), fields[b"Gid"].split()
    ids = [identity.owner(int(uid), int(gid)) for uid, gid in zip(uids, gids, strict=True)]
    groups = tuple(map(int, fields[b"Groups"].split()))
    own = login(ids[0][0], ids[0][1], groups)
    return tgid, own._replace(euid=ids[1][0], suid=ids[2][0], egid=ids[1][1], sgid=ids[2][1])


def _field(pid: int, index: int) -> int:
    with open(b"/proc/%d/stat" % pid, "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[index])


def may_signal(
    vm: VirtualMachine, req: Request, identity: Identity, target: int, number: int
) -> bool:
    """May the caller send a signal to a process? True if it is gone: the kernel knows best."""
    try:
        me, own = whose(vm, req.tid, identity)
        tgid, other = whose(vm, target, identity)
        if tgid == me:
            return True
        if own.euid in (other.suid, other.ruid) or own.ruid in (other.suid, other.ruid):
            return True
        if own.may(CAP_KILL):
            return True
        return number == signal.SIGCONT and _field(me, _SESSION) == _field(tgid, _SESSION)
    except (OSError, KeyError):
        return True


def _check(vm: VirtualMachine, req: Request, identity: Identity, target: int, number: int) -> None:
    if 0 <= number <= 64 and not may_signal(vm, req, identity, target, number):
        raise fail(errno.EPERM)


@handles("kill")
def sys_kill(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """kill(2): one process, a process group, or all guests. **Errors** EPERM."""
    target, number = signed(req.args[0]), signed(req.args[1])
    if target > 0:
        _check(vm, req, identity, target, number)
        return None
    if not 0 <= number <= 64:
        return None
    me = vm.procs.tgid(req.tid)
    if target == -1:
        pids = [pid for pid in vm.guest_pids() if pid != me]
        if not pids:
            raise fail(errno.ESRCH)
    else:
        group = -target if target else _field(me, _PGRP)
        pids = _members(group)
    allowed = [pid for pid in pids if may_signal(vm, req, identity, pid, number)]
    if target != -1:
        if len(allowed) == len(pids):
            return None  # the kernel says ESRCH if there are none
        if not allowed:
            raise fail(errno.EPERM)
    for pid in sorted(allowed, key=lambda pid: pid == me):
        try:
            os.kill(pid, number)
        except OSError:
            pass  # gone, or the host's
    return DONE


def _members(group: int) -> list[int]:
    """The processes of a process group."""
    found = []
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            if _field(pid, _PGRP) == group:
                found.append(pid)
        except OSError:
            continue
    return found


@handles("tkill", "rt_sigqueueinfo")
def sys_tkill(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """tkill(2), rt_sigqueueinfo(2). **Errors** EPERM."""
    if signed(req.args[0]) > 0:
        _check(vm, req, identity, signed(req.args[0]), signed(req.args[1]))
    return None


@handles("tgkill", "rt_tgsigqueueinfo")
def sys_tgkill(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """tgkill(2), rt_tgsigqueueinfo(2). **Errors** EPERM."""
    if signed(req.args[0]) > 0 and signed(req.args[1]) > 0:
        _check(vm, req, identity, signed(req.args[1]), signed(req.args[2]))
    return None


@handles("pidfd_send_signal")
def sys_pidfd_send_signal(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """pidfd_send_signal(2). **Errors** EPERM."""
    pid = _pid_of(req, signed(req.args[0]))
    if pid:
        _check(vm, req, identity, pid, signed(req.args[1]))
    return None


def _pid_of(req: Request, fd: int) -> int:
    """The process of a pidfd; 0: it isn't one, or its process is gone."""
    try:
        with open(b"/proc/%d/fdinfo/%d" % (req.tid, fd), "rb") as file:
            found = _PIDFD.search(file.read())
    except OSError:
        return 0
    return int(found[1]) if found else 0


# --- ptrace and what is allowed like it ---------------------------------------------------------


def may_trace(
    vm: VirtualMachine, tid: int, identity: Identity, target: int, real: bool = True
) -> bool:
    """ptrace_may_access() by a thread: by its real ids (`real`), or by those for files."""
    try:
        me, own = whose(vm, tid, identity)
        tgid, other = whose(vm, target, identity)
    except (OSError, KeyError):
        return True  # the kernel says that it is gone
    if tgid == me:
        return True
    uid, gid = (own.ruid, own.rgid) if real else (own.fsuid, own.fsgid)
    same = {other.ruid, other.euid, other.suid} == {uid}
    same = same and {other.rgid, other.egid, other.sgid} == {gid}
    if own.may(CAP_SYS_PTRACE):
        return True
    mine = own.permitted if real else own.effective
    return same and other.dumpable == 1 and not other.permitted & ~mine


@handles("ptrace")
def sys_ptrace(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """ptrace(PTRACE_ATTACH), ptrace(PTRACE_SEIZE). **Errors** EPERM."""
    target = signed(req.args[1])
    if not may_trace(vm, req.tid, identity, target):
        raise fail(errno.EPERM)
    until = time.monotonic() + _PASSING
    while _is_ours(target) and time.monotonic() < until:
        time.sleep(0.001)
    return None


def _is_ours(tid: int) -> bool:
    """Does the supervisor trace a thread, as it does in passing? Then nobody else can."""
    try:
        tracer = int(status(tid).get(b"TracerPid", b"0"))
        return tracer > 0 and int(status(tracer)[b"Tgid"]) == os.getpid()
    except (OSError, KeyError):
        return False


@handles("pidfd_getfd")
def sys_pidfd_getfd(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """pidfd_getfd(2). **Errors** EPERM."""
    pid = _pid_of(req, signed(req.args[0]))
    if pid and not may_trace(vm, req.tid, identity, pid):
        raise fail(errno.EPERM)
    return None


@handles("process_vm_readv", "process_vm_writev")
def sys_process_vm(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """process_vm_readv(2), process_vm_writev(2). **Errors** EPERM."""
    if not may_trace(vm, req.tid, identity, signed(req.args[0])):
        raise fail(errno.EPERM)
    return None
