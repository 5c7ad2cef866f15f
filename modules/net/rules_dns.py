"""UDP sockets of guests that ask a nameserver: answers must seem to come from it.

Their questions went to the forwarder (rules_names.py), whose answers come from another address.
From the first question on the supervisor is asked about such a socket (umvm.guest.sockets). It is
the same with datagrams to a mapped port.
"""

from __future__ import annotations

import socket
import struct
import threading
from typing import Any

from umvm import Reply, Request
from umvm.interfaces.network import NetworkStack, Socket
from umvm.syscalls.context import signed

from . import receiving

_SIZE = 1 << 16


class Resolver(Socket):
    """One UDP socket of a guest; everything but what it receives is the kernel's."""

    table = "udp"

    def __init__(self, vm: Any, family: int, given: bytes, used: bytes) -> None:
        """Datagrams from the address `used` are shown as from `given`."""
        super().__init__(_STACK, family, socket.SOCK_DGRAM, socket.IPPROTO_UDP)
        self._vm = vm
        self.given, self._used = given, used

    def recvfrom(self, req: Request) -> Reply:
        """recvfrom(2) with room for an address."""
        return receiving.recvfrom(self._vm, req, self._take)

    def recvmsg(self, req: Request) -> Reply:
        """recvmsg(2). Ancillary data isn't passed on."""
        return receiving.recvmsg(self._vm, req, self._take)

    def recvmmsg(self, req: Request) -> Reply:
        """recvmmsg(2)."""
        return receiving.recvmmsg(self._vm, req, self._take)

    def getpeername(self, req: Request) -> Reply | None:
        """getpeername(2), if it is connected to the address that is used."""
        with socket.socket(fileno=req.getfd(signed(req.args[0]))) as copy:
            try:
                host, port, *more = copy.getpeername()
            except OSError:
                return None
        name = self._shown(pack(self.family, host, port, more))
        receiving.put_name(req, req.args[1], req.args[2], name)
        return Reply.value(0)

    def _take(self, copy: socket.socket, flags: int) -> receiving.Received:
        data, (host, port, *more) = copy.recvfrom(_SIZE, flags)
        return receiving.Received(data, self._shown(pack(self.family, host, port, more)))

    def _shown(self, name: bytes) -> bytes:
        """The address to show for one of the host's."""
        if _place(name) != _place(self._used):
            return name
        return self.given[: len(name)]


def _place(name: bytes) -> bytes:
    """Port and address, without what may differ beside them."""
    return name[2:8] if len(name) < 24 else name[2:4] + name[8:24]


_STACK = NetworkStack()


class Resolvers:
    """All such sockets of a VM."""

    def __init__(self, vm: Any) -> None:
        self._vm = vm
        self._lock = threading.Lock()

    def answers_to(self, copy: socket.socket, given: bytes, used: bytes) -> None:
        """What this socket receives from `used` shall seem to come from `given`."""
        with self._lock:
            known = self._vm.sockets.of_copy(copy.fileno())
            if known is None:
                self._vm.sockets.add(copy.fileno(), Resolver(self._vm, copy.family, given, used))
            elif isinstance(known, Resolver):
                known.given = given


def pack(family: int, host: str, port: int, more: list[int]) -> bytes:
    """A sockaddr_in or sockaddr_in6 of what Python knows of an address."""
    head = struct.pack("=H", family) + struct.pack("!H", port)
    packed = socket.inet_pton(family, host.partition("%")[0])
    if family == socket.AF_INET:
        return head + packed + bytes(8)
    return head + struct.pack("!I", more[0]) + packed + struct.pack("=I", more[1])
