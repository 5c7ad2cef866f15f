"""Ports of the real machine that lead into a network, and ports of hosts that lead out.

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
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from umvm.errors import NotFound, UsageError

from . import address
from .address import ANY4, STREAM, Address, Tuple, is_any

if TYPE_CHECKING:
    from .stack import Fabric

PIECE = 1 << 16
BACKLOG = 4096
REACH_TIMEOUT = 10.0
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
    """A listener, and the connections that came by it, each with one on the other side."""

    def __init__(
        self, listener: socket.socket, reach: Callable[[Any], socket.socket], listen: str, to: str
    ) -> None:
        """`listener` is owned from now on; `reach(NAME)` connects for a socket with that name; the
        texts tell both ends."""
        self._listener, self._reach = listener, reach
        self.listen, self.to = listen, to
        self._listener.setblocking(False)
        self._wake, self._woken = socket.socketpair()
        self._select = selectors.DefaultSelector()
        self._select.register(self._listener, selectors.EVENT_READ)
        self._select.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._work, daemon=True, name="umvm-forward")
        self._thread.start()

    def describe(self) -> dict[str, str]:
        """For `umvm net forward`."""
        return {"listen": self.listen, "to": self.to}

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
            outside, named = self._listener.accept()
        except OSError:
            return
        try:
            inside = self._reach(named)
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
        if way.source.fileno() < 0:
            return  # closed by an event that came with this one
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


def inward(stack: Fabric, spec: str) -> Forward:
    """A port of the real machine that leads to one of a host: `[ADDR:]PORT:HOST:PORT`.

    UsageError, NotFound; OSError: the port can't be had.
    """
    addr, port, host, to_port = _parse(spec)
    try:
        ips = [address.packed(host)]
    except ValueError:
        ips = stack.network.lookup(host)
    if not ips:
        raise NotFound(f"there is no host {host!r}")
    to = Address(ips[0], to_port)
    listener = socket.create_server((addr or "127.0.0.1", port), backlog=128)
    return Forward(
        listener,
        lambda named: connect(stack, to),
        _pair(*listener.getsockname()[:2]),
        _pair(address.text(to.ip), to.port),
    )


class _Place:
    """What the ports know of a listener of ours."""

    v6only = reuse = reuseport = False
    listening = True

    def __init__(self, stack: Fabric, wanted: Address) -> None:
        self.name = ""
        self.bound: Address | None = None
        bound = stack.ports[socket.IPPROTO_TCP].claim(self, wanted)
        self.name = address.name(STREAM, stack.network.key, bound)


class Outward(Forward):
    """A port of a host that leads to the real machine's network."""

    def __init__(self, stack: Fabric, spec: str) -> None:
        """`[ADDR:]PORT:HOST:PORT`: ADDR is the host's, HOST and its port are real ones."""
        addr, port, host, to_port = _parse(spec)
        try:
            ip = address.packed(addr) if addr else ANY4
        except ValueError as error:
            raise UsageError(str(error)) from None
        if not is_any(ip) and not stack.is_local(ip):
            raise address.fail(errno.EADDRNOTAVAIL)
        self._stack, self._place = stack, _Place(stack, Address(ip, port))
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        stack.network.unlink(self._place.name)
        listener.bind(stack.network.place(self._place.name))
        listener.listen(BACKLOG)
        assert self._place.bound is not None
        super().__init__(
            listener,
            lambda named: socket.create_connection((host, to_port), timeout=REACH_TIMEOUT),
            _pair(address.text(ip), self._place.bound.port),
            _pair(host, to_port),
        )

    def close(self) -> None:
        """End it, and give the port back."""
        super().close()
        self._stack.ports[socket.IPPROTO_TCP].release(self._place)
        self._stack.network.unlink(self._place.name)


def _pair(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _parse(spec: str) -> tuple[str, int, str, int]:
    """(ADDR or "", PORT, HOST, PORT); IPv6 addresses in brackets. UsageError."""
    found = _SPEC.match(spec)
    if found is None or not all(int(found[each]) < 1 << 16 for each in ("from", "to")):
        raise UsageError(f"bad forward {spec!r}: expected [ADDR:]PORT:HOST:PORT")
    addr = (found["addr"] or "").strip("[]")
    return addr, int(found["from"]), found["host"].strip("[]"), int(found["to"])


def reset(
    stack: Fabric, pid: int, ips: Collection[bytes] | None = None, streams: bool = True
) -> None:
    """End the connections that a guest process has with other hosts, or with some addresses.

    Datagram sockets that are connected there are led to the sink, which knows who can be reached.
    """
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
            if sock.kind == socket.SOCK_STREAM and not streams:
                continue
            if stack.is_local(sock.peer.ip) or (ips is not None and sock.peer.ip not in ips):
                continue
            fd = _libc.syscall(_PIDFD_GETFD, pidfd, int(name), 0)
            if fd >= 0:
                with socket.socket(fileno=fd) as copy:
                    try:
                        if sock.kind == socket.SOCK_DGRAM:
                            copy.connect(stack.sink().path)
                            continue
                        sock.error = errno.ECONNRESET
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
