"""What streams and datagram sockets share: addresses, options, interfaces."""

from __future__ import annotations

import _socket
import errno
import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

from umvm import Reply
from umvm.interfaces.network import Socket

from . import interfaces, options
from .address import ANY4, ANY6, Address, fail, is_any, pack, read, read_unspecified, write
from .options import IPV6_V6ONLY, SO_BROADCAST, SO_REUSEADDR, SO_REUSEPORT, SOL_IPV6

if TYPE_CHECKING:
    from collections.abc import Iterator

    from core_accel.fabric import SocketState
    from umvm import Request

    from .stack import Fabric

DONE = Reply.value(0)


def signed(number: int) -> int:
    """A register as an int."""
    number &= 0xFFFFFFFF
    return number - (1 << 32) if number & 0x80000000 else number


class InetSocket(Socket):
    """A socket of a host of a virtual network. `lock` is held while its addresses change.

    What is known of it is in `state`, which the engine looks at as well (core_accel/fabric.h).
    """

    stack: Fabric

    def __init__(
        self,
        stack: Fabric,
        family: int,
        kind: int,
        protocol: int,
        state: SocketState | None = None,
    ) -> None:
        """`protocol` is the one it has, never 0; `state`: of a socket that the engine made."""
        super().__init__(stack, family, kind, protocol)
        self.state = self.lock = state or stack.home.state(family, kind, protocol)
        self.options = options.Options(self.state)

    def entered(self, inode: int) -> None:
        """The engine is to know it, too."""
        self.stack.table.enter(inode, self.state)

    @property
    def bound(self) -> Address | None:
        """Its own address."""
        found = self.state.bound
        return None if found is None else Address(*found)

    @bound.setter
    def bound(self, value: Address | None) -> None:
        self.state.bound = value

    @property
    def peer(self) -> Address | None:
        """The other's."""
        found = self.state.peer
        return None if found is None else Address(*found)

    @peer.setter
    def peer(self, value: Address | None) -> None:
        self.state.peer = value

    @property
    def listening(self) -> bool:
        """Does it take connections?"""
        return self.state.listening

    @listening.setter
    def listening(self, value: bool) -> None:
        self.state.listening = value

    @property
    def reuse(self) -> bool:
        """SO_REUSEADDR."""
        return self.state.reuse

    @property
    def broadcast(self) -> bool:
        """SO_BROADCAST."""
        return self.state.broadcast

    @property
    def error(self) -> int:
        """SO_ERROR."""
        return self.state.error

    @error.setter
    def error(self, value: int) -> None:
        self.state.error = value

    @property
    def v6only(self) -> bool:
        """IPV6_V6ONLY."""
        return bool(self.options.get((SOL_IPV6, IPV6_V6ONLY)))

    @property
    def reuseport(self) -> bool:
        """SO_REUSEPORT."""
        return bool(self.options.get((socket.SOL_SOCKET, SO_REUSEPORT)))

    def note(self, number: int, value: int) -> None:
        """A SOL_SOCKET option that the kernel keeps and that matters here too."""
        if number == SO_REUSEADDR:
            self.state.reuse = bool(value)
        elif number == SO_BROADCAST:
            self.state.broadcast = bool(value)

    @contextmanager
    def copy(self, req: Request) -> Iterator[_socket.socket]:
        """The guest's descriptor, for a moment."""
        fd = req.getfd(signed(req.args[0]))
        try:
            copy = _socket.socket(socket.AF_UNIX, self.kind, 0, fd)
        except OSError:
            os.close(fd)
            raise
        try:
            yield copy
        finally:
            copy.close()

    def any(self) -> Address:
        """The address of a socket that has none."""
        return Address(ANY4 if self.family == socket.AF_INET else ANY6, 0)

    def own_address(self, req: Request) -> Address:
        """The address that bind(2) names. **Errors** EAFNOSUPPORT, those of `check_local`."""
        wanted = read(req, req.args[1], signed(req.args[2]), self.family)
        if wanted is None:
            if self.family != socket.AF_INET:
                raise fail(errno.EAFNOSUPPORT)
            wanted = read_unspecified(req, req.args[1])
        self.check_local(wanted)
        return wanted

    def check_local(self, address: Address) -> None:
        """**Errors** EADDRNOTAVAIL: an address of another host, or of the other family."""
        ip = address.ip
        if len(ip) == 4 and self.family == socket.AF_INET6 and self.v6only:
            raise fail(errno.EINVAL)
        if not is_any(ip) and not self.stack.is_local(ip) and not self.other_local(ip):
            raise fail(errno.EADDRNOTAVAIL)

    def other_local(self, ip: bytes) -> bool:
        """May it be bound to an address that isn't the host's?"""
        return False

    def getsockname(self, req: Request) -> Reply:
        """getsockname(2)."""
        write(req, req.args[1], req.args[2], pack(self.family, self.bound or self.any()))
        return DONE

    def getpeername(self, req: Request) -> Reply:
        """getpeername(2). **Errors** ENOTCONN."""
        if self.peer is None:
            raise fail(errno.ENOTCONN)
        write(req, req.args[1], req.args[2], pack(self.family, self.peer))
        return DONE

    def shutdown(self, req: Request) -> Reply | None:
        """shutdown(2). **Errors** ENOTCONN."""
        if self.peer is None and not self.listening:
            raise fail(errno.ENOTCONN)
        return None

    def getsockopt(self, req: Request) -> Reply | None:
        """getsockopt(2)."""
        return options.get_option(self, req)

    def setsockopt(self, req: Request) -> Reply | None:
        """setsockopt(2)."""
        return options.set_option(self, req)

    def special_option(
        self, req: Request, level: int, number: int, pointer: int, size: int
    ) -> Reply | None:
        """An option that does something; None: it isn't one."""
        return None

    def ioctl(self, req: Request) -> Reply | None:
        """ioctl(2)."""
        return interfaces.ioctl(self.stack, req)
