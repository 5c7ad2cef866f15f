"""The host's interfaces, `lo` and `eth0`, by ioctl. **Source**: netdevice(7)."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from umvm import Reply

from .address import ANY4, LOOPBACK4, LOOPBACK6, fail

if TYPE_CHECKING:
    from umvm import Request

    from .stack import Fabric

IFF_UP, IFF_BROADCAST, IFF_LOOPBACK, IFF_RUNNING, IFF_MULTICAST = 1, 2, 8, 0x40, 0x1000
SIOCGIFNAME, SIOCGIFCONF, SIOCGIFFLAGS, SIOCGIFADDR = 0x8910, 0x8912, 0x8913, 0x8915
SIOCGIFDSTADDR, SIOCGIFBRDADDR, SIOCGIFNETMASK = 0x8917, 0x8919, 0x891B
SIOCGIFMETRIC, SIOCGIFMTU, SIOCGIFHWADDR, SIOCGIFINDEX, SIOCGIFTXQLEN = (
    0x891D, 0x8921, 0x8927, 0x8933, 0x8942,
)  # fmt: skip
FIRST, LAST = 0x8900, 0x89FF
ETH0 = 2
"""The number of `eth0`."""
ATMARK, GETSTAMPS = 0x8905, (0x8906, 0x8907)
ARPHRD_ETHER, ARPHRD_LOOPBACK = 1, 772
DONE = Reply.value(0)


class Interface(NamedTuple):
    """A network interface."""

    number: int
    name: str
    ips: tuple[tuple[bytes, int], ...]
    """(address, length of the prefix)"""
    mac: bytes
    mtu: int
    flags: int


def interfaces(stack: Fabric) -> tuple[Interface, ...]:
    """Those of a host."""
    host = stack.network.host
    up = 0 if host.down else IFF_UP | IFF_RUNNING
    first = next((ip for ip in host.ips if len(ip) == 4), ANY4)
    return (
        Interface(
            1, "lo", ((LOOPBACK4, 8), (LOOPBACK6, 128)), b"\0" * 6, 65536,
            IFF_UP | IFF_RUNNING | IFF_LOOPBACK,
        ),
        Interface(
            ETH0, "eth0", tuple((ip, 24 if len(ip) == 4 else 64) for ip in host.ips),
            b"\x02\x75" + first, 65536, up | IFF_BROADCAST | IFF_MULTICAST,
        ),
    )  # fmt: skip


def mask(length: int) -> bytes:
    """The IPv4 netmask of a prefix."""
    return struct.pack(">I", 0xFFFFFFFF << (32 - length) & 0xFFFFFFFF)


def _sockaddr(ip: bytes) -> bytes:
    return struct.pack("<HH4s8x", socket.AF_INET, 0, ip)


def _ipv4(found: Interface) -> tuple[bytes, int]:
    for ip, length in found.ips:
        if len(ip) == 4:
            return ip, length
    raise fail(errno.EADDRNOTAVAIL)


def _broadcast(found: Interface) -> bytes:
    ip, length = _ipv4(found)
    if found.flags & IFF_LOOPBACK:
        return ANY4
    return bytes(a | ~b & 0xFF for a, b in zip(ip, mask(length), strict=True))


_ANSWERS: dict[int, Callable[[Interface], bytes]] = {
    SIOCGIFFLAGS: lambda found: struct.pack("<H", found.flags),
    SIOCGIFADDR: lambda found: _sockaddr(_ipv4(found)[0]),
    SIOCGIFDSTADDR: lambda found: _sockaddr(_ipv4(found)[0]),
    SIOCGIFBRDADDR: lambda found: _sockaddr(_broadcast(found)),
    SIOCGIFNETMASK: lambda found: _sockaddr(mask(_ipv4(found)[1])),
    SIOCGIFMETRIC: lambda found: struct.pack("<i", 0),
    SIOCGIFMTU: lambda found: struct.pack("<i", found.mtu),
    SIOCGIFHWADDR: lambda found: (
        struct.pack("<H", ARPHRD_LOOPBACK if found.number == 1 else ARPHRD_ETHER)
        + found.mac.ljust(14, b"\0")
    ),
    SIOCGIFINDEX: lambda found: struct.pack("<i", found.number),
    SIOCGIFTXQLEN: lambda found: struct.pack("<i", 1000),
}


def ioctl(stack: Fabric, req: Request) -> Reply | None:
    """Answer the commands on interfaces; None: another one, which the kernel runs."""
    command, pointer = req.args[1] & 0xFFFFFFFF, req.args[2]
    if not FIRST <= command <= LAST or command == ATMARK:
        return None
    if command in GETSTAMPS:
        raise fail(errno.ENOENT)
    if command == SIOCGIFCONF:
        return _list(stack, req, pointer)
    if command == SIOCGIFNAME:
        (index,) = struct.unpack("<i", req.read(pointer + 16, 4))
        for found in interfaces(stack):
            if found.number == index:
                req.write(pointer, found.name.encode().ljust(16, b"\0"))
                return DONE
        raise fail(errno.ENODEV)
    answer = _ANSWERS.get(command)
    if answer is None:
        # what changes an interface needs CAP_NET_ADMIN; the rest is of no use here
        raise fail(errno.EPERM if command & 1 == 0 else errno.EOPNOTSUPP)
    name = req.read(pointer, 16).split(b"\0")[0].decode(errors="replace")
    for found in interfaces(stack):
        if found.name == name.partition(":")[0]:
            req.write(pointer + 16, answer(found))
            return DONE
    raise fail(errno.ENODEV)


def _list(stack: Fabric, req: Request, pointer: int) -> Reply:
    """SIOCGIFCONF: the interfaces that have an IPv4 address."""
    room, where = struct.unpack("<i4xQ", req.read(pointer, 16))
    rows = b""
    for found in interfaces(stack):
        name = found.name.encode().ljust(16, b"\0")
        for ip, _ in found.ips:
            if len(ip) == 4:
                rows += (name + _sockaddr(ip)).ljust(40, b"\0")
    if where:
        rows = rows[: max(room, 0) // 40 * 40]
        req.write(where, rows)
    req.write(pointer, struct.pack("<i", len(rows)))
    return DONE
