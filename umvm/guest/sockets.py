"""The sockets that stacks answer for, known by their inode numbers.

A socket's inode goes with it through fork, dup and SCM_RIGHTS, and /proc/TID/fd/N tells it. Nobody
tells of the last close; sockets that are gone are looked for when there have become many, or when
somebody needs to know (`sweep`): /proc/net lists those alive.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable

from core_accel.lazy import pattern
from umvm.interfaces.network import NetworkStack, Socket

_LINK = b"socket:["
FIRST_SWEEP = 1024
_HEX = rb"[0-9A-F]+ "
_FILES = {"unix": ("unix",), "udp": ("udp", "udp6")}
_LINES = {
    "unix": pattern(rb"^[0-9a-f]+: " + 5 * _HEX + rb" *(\d+)", re.M),
    "udp": pattern(rb"^ *\d+: [^ ]+ [^ ]+ [^ ]+ [^ ]+ [^ ]+ [^ ]+ +\d+ +\d+ (\d+)", re.M),
}
"""Where sockets are listed, by `Socket.table`, and the inode in a line."""


class Sockets:
    """The sockets of one VM that are asked about."""

    def __init__(self, on_add: Callable[[int], None], on_drop: Callable[[int], None]) -> None:
        """`on_add(inode)`, `on_drop(inode)`: tell the engine, which looks at these only."""
        self._on_add, self._on_drop = on_add, on_drop
        self._by_inode: dict[int, Socket] = {}
        self._lock = threading.Lock()
        self._limit = FIRST_SWEEP

    def __len__(self) -> int:
        return len(self._by_inode)

    def add(self, fd: int, sock: Socket) -> int:
        """Answer for the socket behind a descriptor of ours from now on; its inode."""
        inode = os.fstat(fd).st_ino
        with self._lock:
            self._by_inode[inode] = sock
            self._on_add(inode)
            many = len(self._by_inode) > self._limit
        if many:
            self.sweep()
        return inode

    def of(self, tid: int, fd: int) -> Socket | None:
        """The socket behind a guest's descriptor, if a stack answers for it."""
        if not self._by_inode or fd < 0:
            return None
        try:
            link = os.readlink(b"/proc/%d/fd/%d" % (tid, fd))
        except OSError:
            return None
        if not link.startswith(_LINK):
            return None
        return self._by_inode.get(int(link[len(_LINK) : -1]))

    def of_copy(self, fd: int) -> Socket | None:
        """The same for a descriptor of ours."""
        return self._by_inode.get(os.fstat(fd).st_ino)

    def used_by(self, stack: NetworkStack) -> int:
        """The number of open sockets of a stack."""
        return len(self.of_stack(stack))

    def of_stack(self, stack: NetworkStack) -> list[tuple[int, Socket]]:
        """The open sockets of a stack, with their inodes."""
        self.sweep()
        return [(inode, s) for inode, s in list(self._by_inode.items()) if s.stack is stack]

    def sweep(self) -> None:
        """Forget the sockets that no process has any more."""
        with self._lock:
            if not self._by_inode:
                return
            tables = {sock.table for sock in self._by_inode.values()}
            before = set(self._by_inode)  # what is made from now on is not in question
        alive = _alive(tables)
        with self._lock:
            dead = {i: self._by_inode.pop(i) for i in before - alive if i in self._by_inode}
            for inode in dead:
                self._on_drop(inode)
            self._limit = max(FIRST_SWEEP, 2 * len(self._by_inode))
        for sock in dead.values():
            sock.gone()


def _alive(tables: set[str]) -> set[int]:
    """The inodes of the sockets that are listed (proc_pid_net(5)): AF_UNIX ones, an unaccepted one
    has 0; UDP ones, if they are bound."""
    found: set[int] = set()
    for table in tables:
        for name in _FILES[table]:
            try:
                with open(f"/proc/net/{name}", "rb") as file:
                    found.update(map(int, _LINES[table].findall(file.read())))
            except FileNotFoundError:
                pass  # no IPv6
    return found
