"""What netlink shows and changes of a host: its links, addresses and routes, and its sockets.

The host's addresses and whether it is up are the network's (network.py), for all to see; this is
made when a guest first asks by netlink, and then routes count as well (`route`).
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import TYPE_CHECKING

from umvm.modules.net.netlink_diag import CLOSE, ESTABLISHED, LISTEN, InetSocket
from umvm.modules.net.netlink_sockets import Netlink
from umvm.modules.net.netlink_state import NetState
from umvm.modules.net.netlink_things import (
    IFF_UP,
    METRIC_USER,
    SCOPE_LINK,
    Address,
    Event,
    Link,
    NetlinkError,
    Route,
)

from . import interfaces
from .inet import InetSocket as Known

if TYPE_CHECKING:
    from umvm import Request
    from umvm.interfaces.network import Made

    from .stack import Fabric

_EVERYTHING: tuple[IPv4Network | IPv6Network, ...] = (
    IPv4Network("0.0.0.0/0"),
    IPv6Network("::/0"),
)


class Links:
    """The netlink side of one host."""

    def __init__(self, stack: Fabric) -> None:
        self._stack = stack
        self.state = NetState()
        self.changed = False
        self._server = Netlink(stack.vm, stack, self.state, self._sockets)
        for found in interfaces.interfaces(stack):
            if found.number == 1:
                self.state.set_link(1, flags=IFF_UP, change=IFF_UP)
                continue
            link = Link(
                found.number, found.name, address=found.mac, mtu=found.mtu,
                flags=found.flags & ~interfaces.IFF_RUNNING | IFF_UP, autoconf=False,
            )  # fmt: skip
            link.carrier = not stack.network.host.down
            self.state.add_link(link)
            for ip, prefix in found.ips:
                self.state.add_address(Address(link.index, ip_address(ip), prefix))
            for net in _EVERYTHING:
                v4 = net.version == 4
                scope, metric = (SCOPE_LINK, 0) if v4 else (0, METRIC_USER)
                self.state.routes.append(Route(net, link.index, scope=scope, metric=metric))
        self._index = interfaces.ETH0
        self.state.guard = self._check
        self.state.listeners.append(self._changed)

    def socket(self, req: Request, kind: int, protocol: int) -> Made:
        """socket(AF_NETLINK, …)."""
        made: Made = self._server.socket(req, kind, protocol)
        return made

    def close(self) -> None:
        """The stack is closed."""
        self._server.close()

    def carrier(self, there: bool) -> None:
        """The host was put on the network, or taken from it, from outside."""
        self.state.set_link(self._index, carrier=there)

    def route(self, ip: bytes) -> bytes | None:
        """The address of ours to reach another host from; None: there is none. **Errors** as
        routes say: ENETUNREACH, EHOSTUNREACH, EACCES, EINVAL."""
        to = ip_address(ip)
        source = self.state.source(self.state.lookup(to), to)
        return source.packed if source is not None else None

    # --- changes ---------------------------------------------------------------------------------

    def _check(self, event: Event) -> None:
        """**Errors** EADDRNOTAVAIL: another host has the address."""
        if isinstance(event.thing, Address) and not event.gone:
            network = self._stack.network
            owner = network.owner(event.thing.local.packed)
            if owner is not None and owner.key != network.key:
                raise NetlinkError(errno.EADDRNOTAVAIL, "another host has this address")

    def _changed(self, event: Event) -> None:
        """Tell the network of addresses, and of a link that comes or goes."""
        thing, network = event.thing, self._stack.network
        if not self.changed:
            self.changed = True
            self._stack.links_changed()
        if isinstance(thing, Address):
            ips = tuple(a.local.packed for a in self.state.addresses if not a.local.is_loopback)
            if ips != network.host.ips:
                network.update(ips=ips)
        elif isinstance(thing, Link) and thing.index == self._index:
            down = event.gone or not (thing.up and thing.carrier)
            if down != network.host.down:
                network.update(down=down)

    # --- sockets ---------------------------------------------------------------------------------

    def _sockets(self) -> Iterator[InetSocket]:
        for inode, sock in self._stack.vm.sockets.of_stack(self._stack):
            if not isinstance(sock, Known):
                continue
            stream = sock.kind == socket.SOCK_STREAM
            if sock.bound is None or (stream and not sock.listening and sock.peer is None):
                continue
            remote = None
            state = LISTEN if stream and sock.listening else CLOSE
            if sock.peer is not None:
                remote, state = (ip_address(sock.peer.ip), sock.peer.port), ESTABLISHED
            yield InetSocket(
                sock.protocol, state, (ip_address(sock.bound.ip), sock.bound.port), remote,
                inode, os.getuid(),
            )  # fmt: skip
