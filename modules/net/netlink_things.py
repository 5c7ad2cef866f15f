"""The things of a network: links, addresses, routes, neighbours, rules; and what may go wrong."""

from __future__ import annotations

import os
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from socket import AF_INET, AF_INET6
from typing import NamedTuple, TypeAlias

IP: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

IFF_UP, IFF_BROADCAST, IFF_LOOPBACK, IFF_RUNNING = 1, 2, 8, 0x40
IFF_NOARP, IFF_PROMISC, IFF_ALLMULTI, IFF_MULTICAST, IFF_LOWER_UP = (
    0x80,
    0x100,
    0x200,
    0x1000,
    1 << 16,
)
IFF_CHANGEABLE = IFF_UP | IFF_NOARP | IFF_PROMISC | IFF_ALLMULTI | IFF_MULTICAST | 0x20 | 0x4000
"""What RTM_SETLINK may change (net/core/dev.c, __dev_change_flags)."""
ARPHRD_ETHER, ARPHRD_LOOPBACK = 1, 772
IFA_F_SECONDARY, IFA_F_NODAD, IFA_F_DEPRECATED, IFA_F_PERMANENT = 1, 2, 0x20, 0x80
IFA_F_NOPREFIXROUTE = 0x200
FOREVER = 0xFFFFFFFF
LOOPBACK = 1
"""The index of `lo`."""
SCOPE_GLOBAL, SCOPE_LINK, SCOPE_HOST, SCOPE_NOWHERE = 0, 253, 254, 255
TABLE_DEFAULT, TABLE_MAIN, TABLE_LOCAL = 253, 254, 255
UNICAST, LOCAL, BROADCAST, ANYCAST, MULTICAST = 1, 2, 3, 4, 5
BLACKHOLE, UNREACHABLE, PROHIBIT, THROW = 6, 7, 8, 9
PROTO_KERNEL, PROTO_BOOT = 2, 3
RTNH_ONLINK = 4
METRIC_ADDRESS, METRIC_USER = 256, 1024
"""Of IPv6 routes: those that follow from an address, and those of a user who names none."""


class NetlinkError(OSError):
    """An errno with the text of an extended ack (NLMSGERR_ATTR_MSG)."""

    def __init__(self, number: int, text: str = "") -> None:
        super().__init__(number, os.strerror(number))
        self.text = text


@dataclass
class Link:
    """A network interface."""

    index: int
    name: str
    kind: str = ""
    arp: int = ARPHRD_ETHER
    address: bytes = bytes(6)
    broadcast: bytes = b"\xff" * 6
    mtu: int = 1500
    flags: int = IFF_BROADCAST | IFF_MULTICAST
    txqlen: int = 1000
    group: int = 0
    alias: str = ""
    carrier: bool = True
    qdisc: str = "noop"
    autoconf: bool = True
    """It gets a link-local IPv6 address when it comes up."""
    counters: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Packets received, sent; bytes received, sent."""

    @property
    def up(self) -> bool:
        return bool(self.flags & IFF_UP)

    @property
    def shown_flags(self) -> int:
        """The flags with those that say that it works."""
        works = self.up and self.carrier
        return self.flags | (IFF_RUNNING | IFF_LOWER_UP if works else 0)


@dataclass(frozen=True)
class Address:
    """An address of a link. `peer` is the other end of a point-to-point address."""

    index: int
    local: IP
    prefix: int
    peer: IP | None = None
    broadcast: IP | None = None
    label: str = ""
    scope: int = SCOPE_GLOBAL
    flags: int = IFA_F_PERMANENT
    valid: int = FOREVER
    preferred: int = FOREVER
    metric: int = 0

    @property
    def family(self) -> int:
        return family_of(self.local)

    @property
    def network(self) -> Network:
        return ip_network((self.peer or self.local, self.prefix), strict=False)


@dataclass(frozen=True)
class Route:
    """A route, with one next hop."""

    net: Network
    oif: int = 0
    gateway: IP | None = None
    prefsrc: IP | None = None
    table: int = TABLE_MAIN
    kind: int = UNICAST
    scope: int = SCOPE_GLOBAL
    protocol: int = PROTO_BOOT
    metric: int = 0
    tos: int = 0
    flags: int = 0

    @property
    def family(self) -> int:
        return AF_INET if self.net.version == 4 else AF_INET6


@dataclass(frozen=True)
class Neighbour:
    """What is known of a neighbour's link address."""

    index: int
    dst: IP
    lladdr: bytes = b""
    state: int = 0x80  # NUD_PERMANENT
    flags: int = 0

    @property
    def family(self) -> int:
        return family_of(self.dst)


@dataclass(frozen=True)
class Rule:
    """A rule that says which routing table to look in."""

    family: int
    priority: int
    table: int
    src: Network | None = None
    dst: Network | None = None
    iif: str = ""
    oif: str = ""
    mark: int = 0
    mask: int = 0
    action: int = 1  # FR_ACT_TO_TBL
    protocol: int = PROTO_KERNEL
    tos: int = 0
    invert: bool = False


Thing: TypeAlias = Link | Address | Route | Neighbour | Rule


class Event(NamedTuple):
    """A change: a thing appeared or changed (`gone` False), or went."""

    thing: Thing
    gone: bool = False


def family_of(address: IP) -> int:
    """AF_INET or AF_INET6."""
    return AF_INET if address.version == 4 else AF_INET6


def loopback() -> Link:
    """The link `lo`, still down."""
    return Link(1, "lo", "", ARPHRD_LOOPBACK, bytes(6), bytes(6), 65536, IFF_LOOPBACK)
