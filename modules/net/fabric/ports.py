"""Which sockets of a host are bound to which ports, and what may be bound beside them.

**Source**: inet_csk_bind_conflict() and udp_lib_lport_inuse() of Linux 6.18; ip(7).
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from .address import Address, fail, is_any

if TYPE_CHECKING:
    from core_accel.fabric import Home

FIRST_EPHEMERAL, LAST_EPHEMERAL = 32768, 60999


class Bound(Protocol):
    """What is looked at of a socket."""

    bound: Address | None

    @property
    def reuse(self) -> bool: ...
    @property
    def listening(self) -> bool: ...
    @property
    def name(self) -> str: ...
    @property
    def v6only(self) -> bool: ...
    @property
    def reuseport(self) -> bool: ...


class Ports:
    """The ports of one protocol on one host."""

    def __init__(self, sweep: Callable[[], None], home: Home, protocol: int) -> None:
        """`sweep()` has the sockets removed that no process has any more; the engine, which
        chooses ports too, looks at `home`."""
        self._sweep, self._home, self._protocol = sweep, home, protocol
        self._bound: dict[int, list[Bound]] = {}
        self._lock = threading.RLock()

    def claim(self, sock: Bound, address: Address) -> Address:
        """Set `bound`: the address with the port that it got. **Errors** EADDRINUSE."""
        if not address.port:
            with self._lock:
                address = Address(address.ip, self.free())
                self._add(sock, address)
                return address
        with self._lock:
            if not self._conflicts(sock, address):
                return self._add(sock, address)
        self._sweep()
        with self._lock:
            if self._conflicts(sock, address):
                raise fail(errno.EADDRINUSE)
            return self._add(sock, address)

    def recheck(self, sock: Bound, address: Address) -> None:
        """Before listen(2): others may have been let to the same address. **Errors** EADDRINUSE."""
        for sweep in (True, False):
            with self._lock:
                if not self._conflicts(sock, address):
                    return
            if sweep:
                self._sweep()
        raise fail(errno.EADDRINUSE)

    def release(self, sock: Bound) -> None:
        """A socket is gone."""
        if sock.bound is None:
            return
        with self._lock:
            held = self._bound.get(sock.bound.port, [])
            if sock in held:
                held.remove(sock)
            if not held:
                self._bound.pop(sock.bound.port, None)
                self._home.mark_port(self._protocol, sock.bound.port, False)

    def free(self) -> int:
        """A port of the ephemeral range that nobody is bound to. **Errors** EADDRINUSE."""
        port = self._home.free_port(self._protocol)
        if not port:
            raise fail(errno.EADDRINUSE)
        return port

    def at(self, port: int) -> list[Bound]:
        """The sockets on a port."""
        with self._lock:
            return list(self._bound.get(port, ()))

    def _add(self, sock: Bound, address: Address) -> Address:
        sock.bound = address
        self._bound.setdefault(address.port, []).append(sock)
        self._home.mark_port(self._protocol, address.port, True)
        return address

    def _conflicts(self, sock: Bound, address: Address) -> bool:
        return any(
            other is not sock
            and other.bound is not None
            and _overlap(address.ip, sock.v6only, other.bound.ip, other.v6only)
            and not (sock.reuseport and other.reuseport)
            and not (sock.reuse and other.reuse and not sock.listening and not other.listening)
            for other in self._bound.get(address.port, ())
        )


def _overlap(one: bytes, one_v6only: bool, other: bytes, other_v6only: bool) -> bool:
    """May a packet be for both?"""
    if len(one) == len(other):
        return one == other or is_any(one) or is_any(other)
    if len(one) == 4:
        one, one_v6only, other, other_v6only = other, other_v6only, one, one_v6only
    return is_any(one) and not one_v6only
