"""Which credentials each guest thread has, where a module gives the guests an identity.

What a process changed is its mark, which its children inherit (umvm/guest/marks.py). Linux gives
each thread credentials of its own; the C library changes those of all threads, one after the other.
While they differ, the process is *split*: a table says what each thread has, and the mark what
children get. What execve(2) makes of them holds once the new program runs: until its first call the
exec is *pending*. Then its auxiliary vector is put right too.
"""

from __future__ import annotations

import os
import struct
import threading
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from umvm.guest.marks import Marks
from umvm.interfaces.identity import Credentials, Identity

if TYPE_CHECKING:
    from collections.abc import Callable

AT_UID, AT_EUID, AT_GID, AT_EGID, AT_SECURE = 11, 12, 13, 14, 23
_PIECE = 4096
_START_TIME, _START_STACK = 19, 25
"""Fields 22 and 28 of proc_pid_stat(5), counted after the name."""


class Exec(NamedTuple):
    """An execve(2) under way: who called it, where its stack began, what the program will have."""

    caller: int
    stack: int
    new: Credentials
    secure: bool


class Split:
    """The threads of a process that have different credentials."""

    def __init__(self, started: int, default: Credentials, dumpable: int) -> None:
        """All threads have `dumpable` in common."""
        self.started, self.default, self.dumpable = started, default, dumpable
        self.threads: dict[int, Credentials] = {}
        self.cloning: list[tuple[Credentials, set[int]]] = []
        """Threads that are being made: their credentials, and the threads that were before."""

    def of(self, tid: int) -> Credentials:
        """What a thread has; a new one has what its maker had."""
        known = self.threads.get(tid)
        if known is None:
            made = next((entry for entry in self.cloning if tid not in entry[1]), None)
            known = self.threads[tid] = made[0] if made else self.default
            if made:
                self.cloning.remove(made)
        return known._replace(dumpable=self.dumpable)


class CredentialStore:
    """The credentials of one VM's guests. Safe to use from any thread."""

    def __init__(self, marks: Marks, changed: Callable[[], None]) -> None:
        """`changed`: told, while nothing else changes, when threads or execs that need looking at
        come or go."""
        self.identity: Identity | None = None
        self.execs: dict[int, Exec] = {}
        """By process."""
        self.splits: dict[int, Split] = {}
        self.said: dict[int, deque[tuple[int, int]]] = {}
        """The ids that a process gave itself in messages under way (SCM_CREDENTIALS)."""
        self._marks = marks
        self._changed = changed
        self._lock = threading.RLock()

    def use(self, identity: Identity | None) -> None:
        """Another identity is active; what was changed under an earlier one counts no more."""
        with self._lock:
            self.identity = identity
            self.execs.clear()
            self.splits.clear()
            self._changed()

    def get(self, tid: int) -> Credentials:
        """The credentials of a guest thread. OSError(ESRCH) when it is gone."""
        if tid in self.execs:
            self._settle(tid)
        if self.splits:
            with self._lock:
                split = self._split_of(process_of(tid))
                if split is not None:
                    return split.of(tid)
        assert self.identity is not None
        return self._marks.get(tid, self.identity) or self.identity.first()

    def change(self, tid: int, new: Credentials) -> None:
        """A thread changed its credentials. OSError: as `Marks.set`."""
        if not self.splits and thread_count(tid) == 1:
            self._mark(tid, new)
            return
        with self._lock:
            tgid = process_of(tid)
            split = self._split_of(tgid)
            if split is None:
                split = Split(_field(tgid, _START_TIME), self.get(tid), new.dumpable)
                self.splits[tgid] = split
            split.threads[tid] = new
            split.dumpable = new.dumpable
            alive = threads_of(tgid)
            split.threads = {t: own for t, own in split.threads.items() if t in alive}
            if len({split.of(thread) for thread in alive}) == 1:
                del self.splits[tgid]
                self._mark(tgid, new)
            elif tid == tgid:
                self._mark(tgid, new)
            self._changed()

    def cloned(self, tid: int, thread: bool) -> None:
        """A thread is about to make a thread or a process, which will have its credentials."""
        if not self.splits:
            return
        with self._lock:
            tgid = process_of(tid)
            split = self._split_of(tgid)
            if split is None:
                return
            if thread:
                alive = threads_of(tgid)
                for other in alive:
                    split.of(other)
                split.cloning.append((split.of(tid), alive))
            else:
                self._mark(tgid, split.of(tid))

    # --- exec ------------------------------------------------------------------------------------

    def exec_begins(self, tid: int, new: Credentials, secure: bool) -> int:
        """A thread is about to execute a program that will have these credentials; its process."""
        tgid = tid if thread_count(tid) == 1 else process_of(tid)
        with self._lock:
            self.execs[tgid] = Exec(tid, _field(tgid, _START_STACK), new, secure)
            self._changed()
        return tgid

    def arrived(self, tid: int) -> None:
        """A thread whose process was about to execute a program makes a call; 0: look at all."""
        with self._lock:
            if tid == 0:
                for tgid in list(self.execs):
                    self._settle(tgid)  # it may have been killed, or make no calls
            for tgid, pending in list(self.execs.items()):
                if tid not in (tgid, pending.caller):
                    continue
                if not self._settle(tgid) and tid == pending.caller:
                    self.execs.pop(tgid, None)  # it failed
            self._changed()

    def waited_for(self) -> set[int]:
        """The threads for which `arrived` is to be called."""
        with self._lock:
            return {*self.execs, *(pending.caller for pending in self.execs.values())}

    def _settle(self, tgid: int) -> bool:
        """Has the process come to run its new program? Then that has its credentials."""
        with self._lock:
            pending = self.execs.get(tgid)
            if pending is None:
                return True
            try:
                stack = _field(tgid, _START_STACK)
                if stack == pending.stack:
                    return False
                del self.execs[tgid]
                self.splits.pop(tgid, None)
                self._mark(tgid, pending.new)
                patch_auxv(tgid, stack, auxv_values(pending.new, pending.secure))
            except OSError:
                self.execs.pop(tgid, None)  # it is gone
            self._changed()
            return True

    # --- inside ----------------------------------------------------------------------------------

    def _mark(self, tid: int, new: Credentials) -> None:
        identity = self.identity
        assert identity is not None
        value = new if new != identity.first() else None
        if value != self._marks.get(tid, identity):
            self._marks.set(tid, identity, value)

    def _split_of(self, tgid: int) -> Split | None:
        split = self.splits.get(tgid)
        if split is not None and _field(tgid, _START_TIME) != split.started:
            del self.splits[tgid]  # of an earlier process with this number
            return None
        return split


def process_of(tid: int) -> int:
    """The process of a thread. OSError(ESRCH) when it is gone."""
    from umvm.guest.process import status

    return int(status(tid)[b"Tgid"])


def thread_count(tid: int) -> int:
    """How many threads the process of a thread has. OSError when it is gone."""
    return os.stat(b"/proc/%d/task" % tid).st_nlink - 2


def threads_of(tgid: int) -> set[int]:
    """The threads of a process."""
    return set(map(int, os.listdir(f"/proc/{tgid}/task")))


def _field(pid: int, index: int) -> int:
    """A field of /proc/PID/stat, counted after the name. OSError when it is gone."""
    with open(b"/proc/%d/stat" % pid, "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[index])


def auxv_values(own: Credentials, secure: bool | None = None) -> dict[int, int]:
    """The entries of the auxiliary vector that tell credentials (getauxval(3))."""
    values = {AT_UID: own.ruid, AT_EUID: own.euid, AT_GID: own.rgid, AT_EGID: own.egid}
    return values if secure is None else {**values, AT_SECURE: int(secure)}


def patch_auxv(pid: int, stack: int, values: dict[int, int]) -> None:
    """Change the auxiliary vector of a program that has just begun: it lies above its environment.

    `stack` is where the count of its arguments is. OSError: it can't be read.
    """
    fd = os.open(b"/proc/%d/mem" % pid, os.O_RDWR | os.O_CLOEXEC)
    try:
        size = _PIECE
        while True:
            data = os.pread(fd, size, stack)
            words = struct.unpack(f"<{len(data) // 8}Q", data[: len(data) // 8 * 8])
            try:
                start = words.index(0, words.index(0, 1 + words[0]) + 1) + 1
                end = next(at for at in range(start, len(words), 2) if words[at] == 0)
                break
            except (ValueError, IndexError, StopIteration):
                if len(data) < size:
                    return  # it has overwritten its stack
                size *= 4
        for at in range(start, end, 2):
            value = values.get(words[at])
            if value is not None and words[at + 1] != value:
                os.pwrite(fd, struct.pack("<Q", value), stack + 8 * (at + 1))
    finally:
        os.close(fd)
