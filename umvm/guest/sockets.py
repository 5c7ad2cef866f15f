"""The sockets that stacks answer for, known by their inode numbers.

A socket's inode goes with it through fork, dup and SCM_RIGHTS, and /proc/TID/fd/N tells it. Nobody
tells of the last close; sockets that are gone are looked for when there have become many, or when
somebody needs to know (`sweep`): /proc/net lists those alive.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from core_accel.lazy import pattern
from umvm.interfaces.network import NetworkStack, Socket

if TYPE_CHECKING:
    from core_accel.fabric import SocketState, SocketTable

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
        self._table: SocketTable | None = None
        self._calls: Iterable[int] = ()
        self._homes: list[Callable[[SocketState], Socket]] = []

    def __len__(self) -> int:
        known = set(self._by_inode)
        return len(known if self._table is None else known | self._table.inodes())

    def use_table(self, make: Callable[[int], SocketTable]) -> SocketTable:
        """The table into which the engine enters the sockets that it makes itself."""
        if self._table is None:
            self._table = make(self._limit)
            self._table.set_calls(self._calls)
        return self._table

    def set_calls(self, numbers: Iterable[int]) -> None:
        """The calls that the engine may answer by that table: no module wants to see them."""
        self._calls = numbers
        if self._table is not None:
            self._table.set_calls(numbers)

    def add_home(self, adopt: Callable[[SocketState], Socket]) -> int:
        """The number of a host in that table; `adopt` makes the object for a socket of its."""
        self._homes.append(adopt)
        return len(self._homes) - 1

    def _get(self, inode: int) -> Socket | None:
        found = self._by_inode.get(inode)
        if found is None and self._table is not None:
            with self._lock:
                found = self._by_inode.get(inode)
                made = self._table.find(inode) if found is None else None
                if made is not None:
                    home, state = made
                    found = self._by_inode[inode] = self._homes[home](state)
        return found

    def add(self, fd: int, sock: Socket) -> int:
        """Answer for the socket behind a descriptor of ours from now on; its inode."""
        inode = os.fstat(fd).st_ino
        with self._lock:
            self._by_inode[inode] = sock
            sock.entered(inode)
            self._on_add(inode)
            count = len(self._by_inode) if self._table is None else len(self._table)
            many = max(count, len(self._by_inode)) > self._limit
        if many:
            self.sweep()
        return inode

    def of(self, tid: int, fd: int) -> Socket | None:
        """The socket behind a guest's descriptor, if a stack answers for it."""
        if fd < 0 or not (self._by_inode or self._table):
            return None
        try:
            link = os.readlink(b"/proc/%d/fd/%d" % (tid, fd))
        except OSError:
            return None
        if not link.startswith(_LINK):
            return None
        return self._get(int(link[len(_LINK) : -1]))

    def of_copy(self, fd: int) -> Socket | None:
        """The same for a descriptor of ours."""
        return self._get(os.fstat(fd).st_ino)

    def known(self, inode: int) -> bool:
        """Does a stack answer for the socket with this inode?"""
        made = self._table is not None and self._table.find(inode) is not None
        return made or inode in self._by_inode

    def used_by(self, stack: NetworkStack) -> int:
        """The number of open sockets of a stack."""
        return len(self.of_stack(stack))

    def of_stack(self, stack: NetworkStack) -> list[tuple[int, Socket]]:
        """The open sockets of a stack, with their inodes."""
        self.sweep()
        for inode in self._table.inodes() if self._table is not None else ():
            self._get(inode)
        return [(inode, s) for inode, s in list(self._by_inode.items()) if s.stack is stack]

    def sweep(self) -> None:
        """Forget the sockets that no process has any more."""
        with self._lock:
            made = set() if self._table is None else self._table.inodes()
            if not self._by_inode and not made:
                return
            tables = {sock.table for sock in self._by_inode.values()}
            tables |= {"unix"} if made else set()
            before = set(self._by_inode)  # what is made from now on is not in question
        alive = _alive(tables)
        with self._lock:
            dead = {i: self._by_inode.pop(i) for i in before - alive if i in self._by_inode}
            for inode in made - alive - set(self._by_inode):
                assert self._table is not None
                self._table.leave(inode)
                if inode not in dead:
                    self._on_drop(inode)
            for inode in dead:
                self._on_drop(inode)
            count = max(len(self._by_inode), 0 if self._table is None else len(self._table))
            self._limit = max(FIRST_SWEEP, 2 * count)
            if self._table is not None:
                self._table.limit = self._limit
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
