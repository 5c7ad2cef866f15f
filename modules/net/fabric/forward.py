"""Ports of the real host that lead into a network.

One thread accepts and moves the bytes of all connections of a forward, with selectors; it waits for
those who don't read.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import selectors
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from umvm.errors import NotFound, UsageError

from . import address
from .address import STREAM, Address, Tuple

if TYPE_CHECKING:
    from .stack import Fabric

PIECE = 1 << 16
_SPEC = re.compile(
    r"(?:(?P<addr>\[[^]]*\]|[^:]*):)?(?P<from>\d+):(?P<host>\[[^]]*\]|[^:]+):(?P<to>\d+)\Z"
)
_PIDFD_GETFD = 438
_libc = ctypes.CDLL(None)


class _Way:
    """One direction of a connection."""

    def __init__(self, source: socket.socket, target: socket.socket) -> None:
        self.source, self.target = source, target
        self.other: _Way
        self.waiting = b""
        self.ended = False


class Forward:
    """A listener on the host, and the connections that came by it."""

    def __init__(self, stack: Fabric, listen: tuple[str, int], to: Address) -> None:
        """OSError: the port can't be had."""
        self._stack, self.to = stack, to
        self._listener = socket.create_server(listen, backlog=128)
        self._listener.setblocking(False)
        self.listen: tuple[str, int] = self._listener.getsockname()[:2]
        self._wake, self._woken = socket.socketpair()
        self._select = selectors.DefaultSelector()
        self._select.register(self._listener, selectors.EVENT_READ)
        self._select.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._work, daemon=True, name="umvm-forward")
        self._thread.start()

    def describe(self) -> dict[str, str]:
        """For `umvm net forward`."""
        return {
            "listen": f"{self.listen[0]}:{self.listen[1]}",
            "to": f"{address.text(self.to.ip)}:{self.to.port}",
        }

    def close(self) -> None:
        """End the listener and the connections."""
        self._wake.close()
        self._thread.join(5)

    # --- the thread ------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            for key, events in self._select.select():
                if key.fileobj is self._woken:
                    self._end()
                    return
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._move(key.data, events)

    def _end(self) -> None:
        for key in list(self._select.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._select.close()

    def _accept(self) -> None:
        try:
            outside, _ = self._listener.accept()
        except OSError:
            return
        try:
            inside = connect(self._stack, self.to)
        except OSError:
            outside.close()
            return
        outside.setblocking(False)
        inside.setblocking(False)
        one, other = _Way(outside, inside), _Way(inside, outside)
        one.other, other.other = other, one
        self._watch(one)
        self._watch(other)

    def _watch(self, way: _Way) -> None:
        """Wait for what a socket has to be waited for: as source, and as the other way's target."""
        events = 0
        if not way.ended and not way.waiting:
            events |= selectors.EVENT_READ
        if way.other.waiting:
            events |= selectors.EVENT_WRITE
        known = way.source in self._select.get_map()
        if events and known:
            self._select.modify(way.source, events, way)
        elif events:
            self._select.register(way.source, events, way)
        elif known:
            self._select.unregister(way.source)

    def _move(self, way: _Way, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE:
                self._write(way.other)
            if events & selectors.EVENT_READ and not way.ended and not way.waiting:
                data = way.source.recv(PIECE)
                if data:
                    way.waiting = data
                    self._write(way)
                else:
                    way.ended = True
                    way.target.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            pass
        except OSError:
            way.ended = way.other.ended = True
            way.waiting = way.other.waiting = b""
        if way.ended and way.other.ended and not way.waiting and not way.other.waiting:
            for sock in (way.source, way.target):
                if sock in self._select.get_map():
                    self._select.unregister(sock)
                sock.close()
            return
        self._watch(way)
        self._watch(way.other)

    def _write(self, way: _Way) -> None:
        if way.waiting:
            try:
                way.waiting = way.waiting[way.target.send(way.waiting) :]
            except BlockingIOError:
                pass


def parse_forward(
    spec: str, lookup: Callable[[str], list[bytes]]
) -> tuple[tuple[str, int], Address]:
    """`[ADDR:]PORT:HOST:PORT`; IPv6 addresses in brackets. UsageError, NotFound."""
    found = _SPEC.match(spec)
    if found is None or not all(int(found[each]) < 1 << 16 for each in ("from", "to")):
        raise UsageError(f"bad forward {spec!r}: expected [ADDR:]PORT:HOST:PORT")
    host = found["host"].strip("[]")
    try:
        ips = [address.packed(host)]
    except ValueError:
        ips = lookup(host)
    if not ips:
        raise NotFound(f"there is no host {host!r}")
    listen = ((found["addr"] or "127.0.0.1").strip("[]"), int(found["from"]))
    return listen, Address(ips[0], int(found["to"]))


def reset(stack: Fabric, pid: int) -> None:
    """End the connections that a guest process has with other hosts."""
    try:
        names = os.listdir(f"/proc/{pid}/fd")
        pidfd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        for name in names:
            sock = stack.vm.sockets.of(pid, int(name))
            if sock is None or sock.stack is not stack or sock.peer is None:
                continue
            if sock.kind != socket.SOCK_STREAM or stack.is_local(sock.peer.ip):
                continue
            fd = _libc.syscall(_PIDFD_GETFD, pidfd, int(name), 0)
            if fd >= 0:
                sock.error = errno.ECONNRESET
                with socket.socket(fileno=fd) as copy:
                    try:
                        copy.shutdown(socket.SHUT_RDWR)
                    except OSError:
                        pass
    finally:
        os.close(pidfd)


def connect(stack: Fabric, to: Address, port: int = 0) -> socket.socket:
    """A connection of the supervisor's to a listener on the network, from a port or a free one.

    OSError, as connect(2).
    """
    host, source = stack.route(to.ip)
    name = stack.reachable(STREAM, host, to)
    if name is None:
        raise address.fail(errno.ECONNREFUSED)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        own = Address(source, port or stack.ports[socket.IPPROTO_TCP].free())
        sock.bind(address.call_name(stack.network.ident, Tuple(own, to)))
        sock.connect(stack.network.place(name))
    except OSError:
        sock.close()
        raise
    return sock
