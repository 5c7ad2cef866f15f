"""/proc/PID/oom_score_adj, which root may lower: what was written is kept and read again.

The kernel would refuse the real user. A writer gets a file of its own, whose content is looked at
when the value is asked for.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from core_accel.lazy import pattern
from core_accel.request import Reply
from umvm.interfaces.identity import CAP_SYS_RESOURCE

if TYPE_CHECKING:
    from umvm.vm import VirtualMachine

NAME = b"oom_score_adj"
_PATH = pattern(rb"/proc/(\d+)(?:/task/\d+)?/oom_score_adj")
_VALUE = pattern(rb"\s*(-?\d{1,4})\s*\0?")
_START_TIME = 19
"""Field 22 of proc_pid_stat(5), counted after the name."""


class OomScores:
    """The values that guests wrote, by process."""

    def __init__(self, vm: VirtualMachine) -> None:
        self._vm = vm
        self._files: dict[int, tuple[int, int, bytes | None]] = {}
        """Process → (when it started, the file last given to a writer, the value before)."""

    def open(self, path: bytes, flags: int) -> Reply | None:
        """Open the file of a guest that may lower its value; None: the kernel opens it."""
        found = _PATH.fullmatch(path)
        if found is None or flags & os.O_PATH:
            return None
        pid = int(found[1])
        try:
            started = _started(pid)
            value = self._value(pid, started)
            if not flags & os.O_ACCMODE and value is None:
                return None
            if flags & os.O_ACCMODE and not self._vm.creds.get(pid).may(CAP_SYS_RESOURCE):
                return None
        except OSError:
            return None
        memfd = os.memfd_create(NAME.decode(), os.MFD_CLOEXEC)
        if value is not None and not flags & os.O_ACCMODE:
            os.write(memfd, value)
        fd = os.open(f"/proc/self/fd/{memfd}", flags & os.O_ACCMODE | os.O_CLOEXEC)
        if flags & os.O_ACCMODE:
            self._keep(pid, started, memfd, value)
        else:
            os.close(memfd)
        return Reply.fd(fd, bool(flags & os.O_CLOEXEC))

    def _value(self, pid: int, started: int) -> bytes | None:
        known = self._files.get(pid)
        if known is None or known[0] != started:
            return None
        found = _VALUE.match(os.pread(known[1], 32, 0))
        if found is None or not -1000 <= int(found[1]) <= 1000:
            return known[2]
        return b"%d\n" % int(found[1])

    def _keep(self, pid: int, started: int, memfd: int, before: bytes | None) -> None:
        for other, (_, fd, _) in list(self._files.items()):
            if other == pid or not os.path.exists(f"/proc/{other}"):
                os.close(fd)
                del self._files[other]
        self._files[pid] = started, memfd, before

    def close(self) -> None:
        """Let go of all values."""
        for _, fd, _ in self._files.values():
            os.close(fd)
        self._files.clear()


def _started(pid: int) -> int:
    with open(b"/proc/%d/stat" % pid, "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[_START_TIME])
