"""What the supervisor knows of guest processes: credentials, and the directory they stand in."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import NamedTuple

from umvm.guest.credentials import CredentialStore
from umvm.interfaces.filesystem import Caller
from umvm.interfaces.identity import Identity

BELIEVED = 0.1
"""Seconds that a thread's credentials are kept: less than it takes to use up all process ids."""


class Task(NamedTuple):
    """A guest thread: its process, file system credentials, tracer (0: none), and the credentials
    with the real ids, which access(2) uses (the same object where they don't differ). `kernel`: as
    the kernel knows it, where a module gives it another identity."""

    tgid: int
    caller: Caller
    tracer: int
    real: Caller
    kernel: Task | None = None


class Processes:
    """Credentials of guest threads, read from /proc/TID/status and kept for a moment."""

    def __init__(self, creds: CredentialStore) -> None:
        self.identity: Identity | None = None
        self._creds = creds
        self._tasks: dict[int, tuple[float, Task]] = {}

    def task(self, tid: int) -> Task:
        """Credentials of a thread. OSError(ESRCH) when it is gone."""
        now = time.monotonic()
        known = self._tasks.get(tid)
        if known is not None and now < known[0]:
            return known[1]
        task = read_task(tid)
        if self.identity is not None:
            task = self._present(tid, task)
        if len(self._tasks) > 4096:
            self._tasks = {t: k for t, k in list(self._tasks.items()) if now < k[0]}
        self._tasks[tid] = (now + BELIEVED, task)
        return task

    def caller(self, tid: int) -> Caller:
        """Ids, groups and umask of a guest thread."""
        return self.task(tid).caller

    def tgid(self, tid: int) -> int:
        """The process that a thread belongs to."""
        return self.task(tid).tgid

    def forget(self, tid: int) -> None:
        """The thread is about to change its ids, groups or umask (which threads may share)."""
        self._tasks.clear()

    def _present(self, tid: int, task: Task) -> Task:
        own = self._creds.get(tid)
        caller = task.caller._replace(uid=own.fsuid, gid=own.fsgid, groups=own.groups)
        real = caller
        if (own.ruid, own.rgid) != (own.fsuid, own.fsgid):
            real = caller._replace(uid=own.ruid, gid=own.rgid)
        return Task(task.tgid, caller, task.tracer, real, task)

    def cwd_link(self, tid: int) -> bytes:
        """What /proc/TID/cwd reads: a host path, or one in the shadow directory."""
        return os.readlink(b"/proc/%d/cwd" % tid)


def read_task(tid: int) -> Task:
    """Parse /proc/TID/status (proc_pid_status(5)). OSError(ESRCH) when the thread is gone."""
    fields = status(tid)
    tgid = int(fields[b"Tgid"])
    uids, gids = fields[b"Uid"].split(), fields[b"Gid"].split()
    caller = Caller(
        int(uids[3]),
        int(gids[3]),
        tgid,
        tuple(map(int, fields[b"Groups"].split())),
        int(fields.get(b"Umask", b"022"), 8),
    )
    real = caller
    if uids[0] != uids[3] or gids[0] != gids[3]:
        real = caller._replace(uid=int(uids[0]), gid=int(gids[0]))
    return Task(tgid, caller, int(fields[b"TracerPid"]), real)


def status(tid: int) -> dict[bytes, bytes]:
    """The fields of /proc/TID/status. OSError when the thread is gone."""
    fd = os.open(b"/proc/%d/status" % tid, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(fd, 4096)
    finally:
        os.close(fd)
    fields = {}
    for line in text.split(b"\n"):
        key, _, value = line.partition(b":\t")
        fields[key] = value
    return fields


def same_rights(pid: int) -> bool:
    """Has a process our file system user and groups, and no other ids to change to?"""
    fields = status(pid)
    same = fields[b"Groups"].split() == status(os.getpid())[b"Groups"].split()
    ids = (b"%d" % os.geteuid(), b"%d" % os.getegid())
    return same and all(
        set(fields[key].split()) == {own} for key, own in zip((b"Uid", b"Gid"), ids, strict=True)
    )


def children(pid: int) -> list[int]:
    """The child processes of a process, of all its threads (proc_pid_task_children(5))."""
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", "rb") as file:
                found += map(int, file.read().split())
    except OSError:
        pass  # it ended meanwhile
    return found


def descendants(roots: list[int], skip: frozenset[int] = frozenset()) -> list[int]:
    """All processes below `roots`, those included, parents first."""
    order: list[int] = []
    queue = [pid for pid in roots if pid not in skip]
    seen = set(skip)
    while queue:
        pid = queue.pop()
        if pid in seen:
            continue
        seen.add(pid)
        order.append(pid)
        queue += children(pid)
    return order


def kill(pid: int, number: int) -> None:
    """Send a signal; a process that is gone is no error."""
    if pid <= 0:  # seccomp gives 0 for a thread that has died; kill(2) would take it for our group
        return
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def under_filter(pid: int) -> bool:
    """Guests run under a filter; helper programs of modules don't."""
    try:
        return status(pid).get(b"Seccomp") == b"2"
    except OSError:
        return False
