"""Process events for modules: started, exec, exited.

Nothing here costs anything until a module listens. Then the engine hands over every trapped call,
as the kernel doesn't tell of forks: a process has started when its first trapped call is seen,
before that call is answered. It has exited when its pidfd says so; one thread waits for them all.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from core_accel.lazy import logger
from core_accel.request import Request
from umvm.guest.process import status

if TYPE_CHECKING:
    from umvm.vm import VirtualMachine

log = logger(__name__)

END_WAIT = 2.0
"""Seconds that the exits of killed processes are waited for when the VM ends."""
_GET_INFO = 0xC040FF0B  # PIDFD_GET_INFO: _IOWR(0xFF, 11, struct pidfd_info), Linux 6.13
_INFO_EXIT = 1 << 3  # PIDFD_INFO_EXIT, Linux 6.15
_INFO = struct.Struct("=Q52xi")
"""struct pidfd_info (linux/pidfd.h), its first 64 bytes: the mask and the exit code."""


class GuestProcess:
    """A guest process as the event hooks get it: the same object from its start to its exit.

    `parent` None: the first process of a tree, one whose parent ended before its own first call,
    and any where no module listens to starts and exits. `program`: the path of the program it runs,
    or is about to run; empty if it isn't known.
    """

    def __init__(self, pid: int, parent: GuestProcess | None = None, program: bytes = b"") -> None:
        self.pid, self.parent, self.program = pid, parent, program


class Events:
    """Finds out what happens to guest processes and tells the manager."""

    def __init__(self, vm: VirtualMachine) -> None:
        self._vm = vm
        self._lock = threading.RLock()
        self._known: dict[int, GuestProcess] = {}
        self._starting: dict[int, threading.Event] = {}
        self._pidfds: dict[int, GuestProcess] = {}
        self._epoll: select.epoll | None = None
        self._watching = False
        self._thread: threading.Thread | None = None
        self._wake = -1

    @contextmanager
    def switched(self, watching: bool) -> Iterator[None]:
        """Go on or off around a change of the engine's hooks.

        Processes that exist when it goes on are known from then on, and not announced.
        """
        with self._lock:
            yield
            if watching and not self._watching:
                for pid in self._vm.guest_pids():
                    process = GuestProcess(pid, self._known.get(_parent(pid)), _program(pid))
                    pidfd = _pidfd(pid)
                    if pidfd is not None:
                        self._add(process, pidfd)
            elif not watching:
                self._known = {}
                pidfds, self._pidfds = self._pidfds, {}
                for pidfd in pidfds:
                    os.close(pidfd)
            self._watching = watching

    # --- started ---------------------------------------------------------------------------------

    def seen(self, tid: int) -> None:
        """A guest thread makes a call: announce its process if it is a new one."""
        if tid in self._known:
            return
        try:
            pid = self._vm.procs.tgid(tid)
        except OSError:
            return  # it was killed
        if pid not in self._known:
            self._start(pid)

    def _start(self, pid: int) -> GuestProcess | None:
        with self._lock:
            process = self._known.get(pid)
            if process is not None or not self._watching:
                return process
            announced = self._starting.get(pid)
            if announced is None:
                mine = self._starting[pid] = threading.Event()
        if announced is not None:
            announced.wait()  # another thread of that process was faster
            return self._known.get(pid)
        parent = self._parent_of(pid)
        process = GuestProcess(pid, parent, parent.program if parent else b"")
        pidfd = _pidfd(pid)
        try:
            if pidfd is not None:
                self._vm.manager.process_started(process, parent)
        finally:
            with self._lock:
                if pidfd is not None:
                    self._add(process, pidfd)
                del self._starting[pid]
            mine.set()
        return process

    def _parent_of(self, pid: int) -> GuestProcess | None:
        parent = _parent(pid)
        if pid in self._vm.roots or parent in (0, self._vm.init.pid, os.getpid()):
            return None
        return self._known.get(parent) or self._start(parent)

    # --- exec ------------------------------------------------------------------------------------

    def exec(self, req: Request, program: bytes) -> None:
        """A guest is about to run a program that exists."""
        try:
            pid = self._vm.procs.tgid(req.tid)
        except OSError:
            return
        process = self._known.get(pid) or GuestProcess(pid)
        process.program = program
        self._vm.manager.process_exec(process)

    # --- exited ----------------------------------------------------------------------------------

    def _add(self, process: GuestProcess, pidfd: int) -> None:
        """Know a process from now on, until it ends. The lock is held; the descriptor is owned."""
        self._known[process.pid] = process
        if pidfd < 0:
            return
        if self._epoll is None:
            self._epoll = select.epoll()
            self._wake = os.eventfd(0, os.EFD_CLOEXEC)
            self._epoll.register(self._wake, select.EPOLLIN)
            self._thread = threading.Thread(target=self._wait, name="umvm-exits", daemon=True)
            self._thread.start()
        self._pidfds[pidfd] = process
        self._epoll.register(pidfd, select.EPOLLIN)

    def _wait(self) -> None:
        assert self._epoll is not None
        while True:
            for fd, _ in self._epoll.poll():
                if fd == self._wake:
                    return
                self._ended(fd)

    def _ended(self, pidfd: int) -> None:
        with self._lock:
            process = self._pidfds.get(pidfd)
            if process is None or not _is_dead(pidfd):
                return  # of an earlier process, whose descriptor had the same number
        status = exit_status(process.pid, pidfd)
        try:
            self._vm.manager.process_exited(process, status)
        finally:
            with self._lock:
                if self._pidfds.pop(pidfd, None) is not None:
                    os.close(pidfd)
                if self._known.get(process.pid) is process:
                    del self._known[process.pid]

    def close(self) -> None:
        """Tell the exits that are still to be told, and stop."""
        if self._thread is None:
            return
        until = time.monotonic() + END_WAIT
        while self._pidfds and time.monotonic() < until:
            time.sleep(0.005)
        os.eventfd_write(self._wake, 1)
        self._thread.join(END_WAIT)
        if self._thread.is_alive():
            return  # a module's hook doesn't return
        with self._lock:
            for pidfd in self._pidfds:
                os.close(pidfd)
            self._pidfds = {}
            assert self._epoll is not None
            self._epoll.close()
            os.close(self._wake)
            self._thread = self._epoll = None


def exit_status(pid: int, pidfd: int) -> int | None:
    """How a dead process ended, as from waitpid(2); None: the kernel doesn't tell any more.

    While nobody has waited for it /proc/PID/stat has it, then its pidfd (since Linux 6.15).
    """
    for ask in (_reaped, _zombie, _reaped):  # it may be reaped between the questions
        number = ask(pid, pidfd)
        if number is not None:
            return number
    return None


def _reaped(pid: int, pidfd: int) -> int | None:
    info = bytearray(_INFO.pack(_INFO_EXIT, 0))
    try:
        fcntl.ioctl(pidfd, _GET_INFO, info)
    except OSError:
        return None
    mask, code = _INFO.unpack(info)
    return code if mask & _INFO_EXIT else None


def _zombie(pid: int, pidfd: int) -> int | None:
    """Field 52 of proc_pid_stat(5)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return int(fields[49]) if fields[0] in (b"Z", b"X") and len(fields) > 49 else None


def _is_dead(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def _pidfd(pid: int) -> int | None:
    """A descriptor of a process; None: it is gone; -1: there can't be one more."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    except OSError as error:
        log.warning("the end of process %d will not be seen: %s", pid, error)
        return -1


def _parent(pid: int) -> int:
    try:
        return int(status(pid)[b"PPid"])
    except (OSError, KeyError):
        return 0


def _program(pid: int) -> bytes:
    try:
        return os.readlink(b"/proc/%d/exe" % pid)
    except OSError:
        return b""


__all__ = ["Events", "GuestProcess", "exit_status"]
