"""Multicast groups in socket options. **Source**: ip(7), ipv6(7), RFC 3678."""

from __future__ import annotations

import errno
import socket
import struct
from typing import TYPE_CHECKING, NamedTuple

from . import options
from .address import fail
from .options import SOL_IP, SOL_IPV6

if TYPE_CHECKING:
    from umvm import Request


class Change(NamedTuple):
    """A group to join or to leave."""

    group: bytes
    join: bool


def change(req: Request, level: int, number: int, pointer: int, size: int) -> Change | None:
    """What an option says; None: it is another option. **Errors** EINVAL, EFAULT."""
    if level == SOL_IP and number in (options.IP_ADD_MEMBERSHIP, options.IP_DROP_MEMBERSHIP):
        if size < 8:
            raise fail(errno.EINVAL)
        return Change(req.read(pointer, 4), number == options.IP_ADD_MEMBERSHIP)
    if level == SOL_IPV6 and number in (options.IPV6_JOIN_GROUP, options.IPV6_LEAVE_GROUP):
        if size < 20:
            raise fail(errno.EINVAL)
        return Change(req.read(pointer, 16), number == options.IPV6_JOIN_GROUP)
    if number in (options.MCAST_JOIN_GROUP, options.MCAST_LEAVE_GROUP):
        data = req.read(pointer, 136)
        (family,) = struct.unpack_from("<H", data, 8)
        ip = data[12:16] if family == socket.AF_INET else data[16:32]
        return Change(ip, number == options.MCAST_JOIN_GROUP)
    return None
