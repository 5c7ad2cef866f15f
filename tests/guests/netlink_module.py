"""A module for tests: AF_NETLINK sockets about a network of its own, `umvt0` and `lo`.

Everything else is the host's. The option `empty` leaves out `umvt0`.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from umvm.modules.net.netlink_diag import LISTEN, InetSocket
from umvm.modules.net.netlink_sockets import Netlink
from umvm.modules.net.netlink_state import (
    NetState,
)
from umvm.modules.net.netlink_things import (
    IFF_UP,
    Address,
    Link,
)

from umvm import Reply, Request
from umvm.interfaces.network import NetworkStack
from umvm.routes import Route, SyscallClass

AF_NETLINK = 16


def umvm_start(vm: Any, options: dict[str, str]) -> list[Route]:
    """Answer socket(AF_NETLINK)."""
    state = NetState()
    if "empty" not in options:
        state.set_link(1, flags=IFF_UP, change=IFF_UP)
        link = state.add_link(Link(0, "umvt0", address=bytes([2, 0, 0, 0, 0, 7])))
        state.set_link(link.index, flags=IFF_UP, change=IFF_UP)
        state.add_address(Address(link.index, ip_address("10.0.0.1"), 24))
        state.add_address(Address(link.index, ip_address("fd00::1"), 64))
    listening = InetSocket(6, LISTEN, (ip_address("10.0.0.1"), 80), inode=4711)
    server = Netlink(vm, NetworkStack(), state, lambda: [listening])

    def socket(req: Request) -> Reply | None:
        family, kind, protocol = req.args[:3]
        if family != AF_NETLINK:
            return None
        made = server.socket(req, kind, protocol)
        assert made.socket is not None
        vm.sockets.add(made.fd, made.socket)
        return Reply.fd(made.fd, bool(kind & 0o2000000))

    return [SyscallClass(("socket",), socket)]
