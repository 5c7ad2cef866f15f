"""What /proc/PID tells of credentials, where guests have others than the kernel knows."""

from __future__ import annotations

import errno
import os
import re
import stat
import struct
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from core_accel.lazy import pattern
from umvm.guest.credentials import auxv_values
from umvm.interfaces.identity import Credentials

if TYPE_CHECKING:
    from umvm.vm import VirtualMachine

NAMES = (b"status", b"auxv", b"limits", b"oom_score_adj", b"environ", b"mem")
"""Files that read otherwise, as the engine has to know them."""
_FILE = pattern(rb"/proc/(\d+)(?:/task/(\d+))?/(status|auxv|limits)")
_PRIVATE = pattern(rb"/proc/(\d+)(?:/task/(\d+))?/(auxv|environ|mem|maps|smaps|numa_maps)")
_OF_PROCESS = pattern(rb"/proc/(\d+)(?:/task/(\d+))?(/.*)?", re.DOTALL)
_FIELD = pattern(rb"(?m)^(\w+):\t(.*)$")
_LIMIT = struct.Struct("26s21s21s")
"""Columns of /proc/PID/limits: name, soft limit, hard limit."""


@cache
def _own_uid() -> int:
    return os.geteuid()


def is_guest(fields: dict[bytes, bytes]) -> bool:
    """Is it a guest's status file: of a process under a filter, which is the real user's?"""
    uid = int(fields.get(b"Uid", b"-1").split()[0])
    return fields.get(b"Seccomp") == b"2" and uid == _own_uid()


def text(vm: VirtualMachine, path: bytes) -> bytes | None:
    """The whole file as guests see it; None: it isn't one of these, or there is none."""
    found = _FILE.fullmatch(path)
    if found is None:
        return None
    tid = int(found[2] or found[1])
    try:
        with open(path, "rb") as file:
            original = file.read()
        return _FILES[found[3]](vm, tid, original)
    except OSError:
        return None


def check_private(vm: VirtualMachine, tid: int, path: bytes) -> None:
    """What only somebody who may trace a process reads of it (ptrace(2)). **Errors** EACCES."""
    found = _PRIVATE.fullmatch(path)
    if found is None or vm.identity is None:
        return
    from umvm.syscalls.signals import may_trace

    if not may_trace(vm, tid, vm.identity, int(found[2] or found[1]), real=False):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))


def _status(vm: VirtualMachine, tid: int, original: bytes) -> bytes:
    fields = dict(_FIELD.findall(original))
    shown = _of_guest(vm.creds.get(tid), fields) if is_guest(fields) else _of_other(vm, fields)

    def line(found: re.Match[bytes]) -> bytes:
        return found[1] + b":\t" + shown.get(found[1], found[2])

    return _FIELD.sub(line, original)


def _of_guest(own: Credentials, fields: dict[bytes, bytes]) -> dict[bytes, bytes]:
    filters = int(fields.get(b"Seccomp_filters", b"1")) - 1
    caps = {
        b"CapInh": own.inheritable, b"CapPrm": own.permitted, b"CapEff": own.effective,
        b"CapBnd": own.bounding, b"CapAmb": own.ambient,
    }  # fmt: skip
    return {
        b"Uid": b"%d\t%d\t%d\t%d" % own[:4],
        b"Gid": b"%d\t%d\t%d\t%d" % own[4:8],
        b"Groups": b" ".join(b"%d" % gid for gid in own.groups) + b" ",
        b"NoNewPrivs": b"%d" % own.no_new_privs,
        b"Seccomp": b"2" if filters > 0 else b"0",
        b"Seccomp_filters": b"%d" % filters,
        **{name: b"%016x" % caps[name] for name in caps},
    }


def _of_other(vm: VirtualMachine, fields: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """A process of the host: its ids are shown as owners of files are."""
    assert vm.identity is not None
    uids, gids = (list(map(int, fields[name].split())) for name in (b"Uid", b"Gid"))
    owners = [vm.identity.owner(uid, gid) for uid, gid in zip(uids, gids, strict=True)]
    return {
        b"Uid": b"\t".join(b"%d" % uid for uid, _ in owners),
        b"Gid": b"\t".join(b"%d" % gid for _, gid in owners),
    }


def _auxv(vm: VirtualMachine, tid: int, original: bytes) -> bytes:
    """proc_pid_auxv(5): what getauxval(3) tells there. AT_SECURE stays."""
    values = auxv_values(vm.creds.get(tid))
    words = list(struct.unpack(f"<{len(original) // 8}Q", original[: len(original) // 8 * 8]))
    for at in range(0, len(words) - 1, 2):
        if words[at] in values:
            words[at + 1] = values[words[at]]
    return struct.pack(f"<{len(words)}Q", *words)


def _limits(vm: VirtualMachine, tid: int, original: bytes) -> bytes:
    """proc_pid_limits(5): a line for each limit, by number."""
    from umvm.syscalls.limits import INFINITY, limit_of

    lines = original.split(b"\n")
    for which, line in enumerate(lines[1:]):
        if len(line) < _LIMIT.size:
            continue
        name, _, _ = _LIMIT.unpack_from(line)
        pair = [
            b"unlimited" if number == INFINITY else b"%d" % number
            for number in limit_of(vm, tid, which)
        ]
        lines[which + 1] = name + b"%-20s %-20s " % tuple(pair) + line[_LIMIT.size :]
    return b"\n".join(lines)


_FILES: dict[bytes, Callable[[VirtualMachine, int, bytes], bytes]] = {
    b"status": _status,
    b"auxv": _auxv,
    b"limits": _limits,
}


def owner(vm: VirtualMachine, path: bytes, mode: int) -> tuple[int, int] | None:
    """The owner of a file below /proc/PID of a guest, by its canonical path; None: not one.

    **Source**: task_dump_owner() of fs/proc/base.c: directories that all may list belong to the
    effective ids, everything else to root while the process isn't dumpable.
    """
    found = _OF_PROCESS.fullmatch(path)
    if found is None:
        return None
    from umvm.guest.process import status

    tid = int(found[2] or found[1])
    try:
        if not is_guest(status(tid)):
            return None
        own = vm.creds.get(tid)
    except (OSError, KeyError):
        return None
    if own.dumpable != 1 and not (stat.S_ISDIR(mode) and stat.S_IMODE(mode) == 0o555):
        return 0, 0
    return own.euid, own.egid
