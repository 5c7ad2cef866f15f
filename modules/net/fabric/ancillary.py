"""Control messages of datagrams: where to they were sent, hop limit and traffic class.

A datagram with a hop limit or class of its own is sent by a socket whose name tells them.
**Source**: RFC 3542, ip(7); put_cmsg() of net/core/scm.c, Linux 6.18.
"""

from __future__ import annotations

import errno
import re
import socket
import struct
from typing import TYPE_CHECKING, NamedTuple

from . import options
from .address import MAPPED, fail, is_loopback
from .options import SOL_IP, SOL_IPV6

if TYPE_CHECKING:
    from umvm import Request

    from .inet import InetSocket
    from .message import Header

IP_RECVTTL, IP_RECVTOS = 12, 13
IPV6_UNICAST_HOPS, IPV6_RECVHOPLIMIT, IPV6_HOPLIMIT = 16, 51, 52
IPV6_RECVTCLASS, IPV6_TCLASS = 66, 67
CMSGHDR = struct.Struct("<Qii")
_NAME = re.compile(r"~h([0-9a-f]+)t([0-9a-f]+)v")


class Traffic(NamedTuple):
    """What the IP header of a datagram says beside its addresses."""

    hops: int = 64
    tclass: int = 0

    def suffix(self) -> str:
        """For the name of a sending socket (`parse`)."""
        return f"h{self.hops:x}t{self.tclass:x}v"


PLAIN = Traffic()
_SENT = {
    (SOL_IP, options.IP_TTL): "hops", (SOL_IP, options.IP_TOS): "tclass",
    (SOL_IPV6, IPV6_HOPLIMIT): "hops", (SOL_IPV6, IPV6_TCLASS): "tclass",
}  # fmt: skip


def parse(name: str) -> Traffic:
    """What the name of a sending socket tells."""
    found = _NAME.search(name)
    return Traffic(int(found[1], 16), int(found[2], 16)) if found else PLAIN


def sent(sock: InetSocket, req: Request, head: Header | None) -> Traffic:
    """What a datagram is to have by its control messages and the socket's options. EINVAL."""
    six = sock.family == socket.AF_INET6
    keys = (
        ((SOL_IPV6, IPV6_UNICAST_HOPS), (SOL_IPV6, IPV6_TCLASS))
        if six
        else ((SOL_IP, options.IP_TTL), (SOL_IP, options.IP_TOS))
    )
    values = {
        field: value
        for field, key in zip(("hops", "tclass"), keys, strict=True)
        if (value := sock.options.get(key, -1)) >= 0
    }
    if head is not None and head.controllen:
        for level, kind, data in _messages(req.read(head.control, min(head.controllen, 4096))):
            name = _SENT.get((level, kind))
            if name is None:
                continue
            if len(data) not in (1, 4):
                raise fail(errno.EINVAL)
            value = int.from_bytes(data, "little", signed=len(data) == 4)
            if not -1 <= value <= 255:
                raise fail(errno.EINVAL)
            if value >= 0:
                values[name] = value
    return PLAIN._replace(**values)


def _messages(raw: bytes) -> list[tuple[int, int, bytes]]:
    """(level, type, data) of control messages. **Errors** EINVAL."""
    found = []
    at = 0
    while len(raw) - at >= CMSGHDR.size:
        size, level, kind = CMSGHDR.unpack_from(raw, at)
        if size < CMSGHDR.size or size > len(raw) - at:
            raise fail(errno.EINVAL)
        found.append((level, kind, raw[at + CMSGHDR.size : at + size]))
        at += size + 7 & ~7
    return found


def wanted(sock: InetSocket) -> bool:
    """Does it receive control messages?"""
    return any(sock.options.get(key) for key in _RECEIVED)


_RECEIVED = (
    (SOL_IP, options.IP_PKTINFO), (SOL_IP, IP_RECVTTL), (SOL_IP, IP_RECVTOS),
    (SOL_IPV6, options.IPV6_RECVPKTINFO), (SOL_IPV6, IPV6_RECVHOPLIMIT),
    (SOL_IPV6, IPV6_RECVTCLASS),
)  # fmt: skip


def received(sock: InetSocket, local: bytes, traffic: Traffic, room: int) -> tuple[bytes, int]:
    """The control messages with a datagram sent to `local`, and MSG_CTRUNC or 0."""
    on = [key for key in _RECEIVED if sock.options.get(key)]
    out, flags = b"", 0
    for level, kind, data in (_made(key, sock, local, traffic) for key in on):
        left, size = room - len(out), CMSGHDR.size + len(data)
        if left < CMSGHDR.size:
            flags = socket.MSG_CTRUNC
            break
        if left < size:
            flags, size = socket.MSG_CTRUNC, left
        padded = CMSGHDR.pack(size, level, kind) + data[: size - CMSGHDR.size]
        out += padded + b"\0" * min(-len(padded) % 8, left - len(padded))
    return out, flags


def _made(
    key: tuple[int, int], sock: InetSocket, local: bytes, traffic: Traffic
) -> tuple[int, int, bytes]:
    level, kind = key
    index = 1 if is_loopback(local) else 2
    if key == (SOL_IP, options.IP_PKTINFO):
        four = local if len(local) == 4 else b"\0" * 4
        return level, kind, struct.pack("<i4s4s", index, four, four)
    if key == (SOL_IPV6, options.IPV6_RECVPKTINFO):
        ip = MAPPED + local if len(local) == 4 else local
        return level, options.IPV6_PKTINFO, struct.pack("<16sI", ip, index)
    if kind in (IP_RECVTTL, IPV6_RECVHOPLIMIT):
        told = options.IP_TTL if level == SOL_IP else IPV6_HOPLIMIT
        return level, told, struct.pack("<i", traffic.hops)
    if level == SOL_IP:
        return level, options.IP_TOS, struct.pack("<B", traffic.tclass)
    return level, IPV6_TCLASS, struct.pack("<i", traffic.tclass)
