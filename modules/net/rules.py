"""Rules about the host's network: who may be connected to, and which ports may be bound.

    allow=*.debian.org:443,10.0.0.0/8,udp://[2001:db8::1]:53,bind://:8080-8089
    deny=10.0.0.1,tcp+bind://:22

One rule is `[WORD+WORD://]HOST[:PORT]`: words are protocols (tcp, udp, icmp) and directions
(connect, bind); without a protocol all are meant, without a direction connect. HOST is a name, a
pattern of names (`*.debian.org`), an address, a network (CIDR), or `*` or nothing for any; an IPv6
address before a port stands in brackets. PORT is a number or a range.

What a deny rule fits is denied. Otherwise, if there are allow rules for a direction, what none of
them fits is denied.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import NamedTuple, TypeAlias

from umvm.errors import UsageError

IP: TypeAlias = IPv4Address | IPv6Address

PROTOCOLS = frozenset(("tcp", "udp", "icmp"))
CONNECT, BIND = "connect", "bind"
_NAME = re.compile(r"(?i:[a-z0-9_*?-]+(\.[a-z0-9_*?-]+)*\.?)\Z")
_PORT_MAX = 65535


class Rule(NamedTuple):
    """One rule. `network` None: `name` decides; `name` empty: any host."""

    text: str
    protocols: frozenset[str]
    directions: frozenset[str]
    name: str
    network: object
    ports: tuple[int, int] | None

    @property
    def exact(self) -> bool:
        """Is it about one name?"""
        return bool(self.name) and not set(self.name) & set("*?")

    def fits(self, where: Where, names: Iterable[str]) -> bool:
        """Is a place meant by this rule? `names`: those that are known to lead to its address."""
        if where.direction not in self.directions or where.protocol not in self.protocols:
            return False
        if self.ports is not None and not self.ports[0] <= where.port <= self.ports[1]:
            return False
        if self.network is not None:
            return where.address in self.network  # type: ignore[operator]
        return not self.name or any(fnmatch.fnmatchcase(name, self.name) for name in names)


class Where(NamedTuple):
    """What a guest wants to do: connect to, or bind, a port of an address."""

    direction: str
    protocol: str
    address: IP
    port: int

    def __str__(self) -> str:
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{self.direction} {self.protocol} {host}:{self.port}"


class Policy:
    """All rules of a VM."""

    def __init__(self, allow: str = "", deny: str = "", ports: str = "") -> None:
        """The values of the options allow, deny and map. UsageError: one is malformed."""
        self.allow = [parse(text) for text in _items(allow)]
        self.deny = [parse(text) for text in _items(deny)]
        self.ports = parse_map(ports)
        self._closed = {word for rule in self.allow for word in rule.directions}

    @property
    def names(self) -> bool:
        """Are there rules about names?"""
        return any(rule.name for rule in (*self.allow, *self.deny))

    @staticmethod
    def exact_names(rules: list[Rule]) -> list[str]:
        """The names in rules that can be looked up beforehand."""
        return sorted({rule.name for rule in rules if rule.exact})

    def objection(self, where: Where, names: Iterable[str] = ()) -> str:
        """Why something is denied; empty: it isn't."""
        known = [name.lower().rstrip(".") for name in names]
        for rule in self.deny:
            if rule.fits(where, known):
                return f"deny {rule.text}"
        if where.direction not in self._closed or any(r.fits(where, known) for r in self.allow):
            return ""
        return "no rule allows it"

    def outside(self, port: int) -> int:
        """The host's port that stands for a guest's."""
        for inner, outer, count in self.ports:
            if inner <= port < inner + count:
                return outer + port - inner
        return port

    def inside(self, port: int) -> int:
        """The guest's port that a host's stands for."""
        for inner, outer, count in self.ports:
            if outer <= port < outer + count:
                return inner + port - outer
        return port


def parse(text: str) -> Rule:
    """One rule. UsageError."""
    words, sep, rest = text.partition("://")
    if not sep:
        words, rest = "", text
    given = frozenset(words.lower().split("+")) if words else frozenset()
    unknown = given - PROTOCOLS - {CONNECT, BIND}
    if unknown or (sep and not words):
        raise _bad(text, f"unknown word {min(unknown)!r}" if unknown else "no word before ://")
    host, ports = _host_and_ports(text, rest)
    name, network = "", None
    if host not in ("", "*"):
        try:
            network = ip_network(host, strict=False)
        except ValueError:
            if not _NAME.match(host) or host.replace(".", "").isdigit():
                raise _bad(text, f"{host!r} is neither a name nor an address") from None
            name = host.lower().rstrip(".")
    directions = given & {CONNECT, BIND} or frozenset((CONNECT,))
    if name and BIND in directions:
        raise _bad(text, "addresses are bound, not names")
    protocols = given & PROTOCOLS or (PROTOCOLS - {"icmp"} if ports else PROTOCOLS)
    return Rule(text, protocols, directions, name, network, ports)


def _host_and_ports(text: str, rest: str) -> tuple[str, tuple[int, int] | None]:
    if rest.startswith("["):
        host, bracket, port = rest[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise _bad(text, "a bracket without end")
        return host, _ports(text, port[1:]) if port else None
    if rest.count(":") > 1:
        return rest, None  # an IPv6 address or network
    host, colon, port = rest.partition(":")
    return host, _ports(text, port) if colon else None


def _ports(text: str, ports: str) -> tuple[int, int] | None:
    if ports == "*":
        return None
    first, dash, last = ports.partition("-")
    try:
        low, high = int(first), int(last if dash else first)
    except ValueError:
        raise _bad(text, f"bad port {ports!r}") from None
    if not 0 <= low <= high <= _PORT_MAX:
        raise _bad(text, f"bad port {ports!r}")
    return low, high


def parse_map(text: str) -> list[tuple[int, int, int]]:
    """`80:8080,1-1023:20001-21023` as (guest's port, host's port, how many). UsageError."""
    found = []
    for item in _items(text):
        inner, _, outer = item.partition(":")
        one, other = _ports(item, inner), _ports(item, outer)
        if one is None or other is None or one[1] - one[0] != other[1] - other[0]:
            raise _bad(item, "expected PORT:PORT, or two ranges of one length")
        found.append((one[0], other[0], one[1] - one[0] + 1))
    return found


def _items(text: str) -> list[str]:
    return [item for item in (part.strip() for part in text.split(",")) if item]


def _bad(text: str, why: str) -> UsageError:
    return UsageError(f"bad network rule {text!r}: {why}")


def plain(address: IP) -> IP:
    """The address that is really meant: IPv4 behind a mapped one, loopback behind the wildcard."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if int(address) == 0:  # connect(2) to it reaches this host
        return ip_address("127.0.0.1" if address.version == 4 else "::1")
    return address
