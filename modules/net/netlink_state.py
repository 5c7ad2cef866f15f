"""What rtnetlink shows and changes: links, addresses, routes, neighbours and rules of one host.

A virtual host of the fabric has one `NetState`; the fabric reads it (is this address mine, may I
reach that one) and guests change it by netlink. The rules of what follows from what (connected
routes, secondary addresses) are Linux's.
**Source**: rtnetlink(7), net/ipv4/devinet.c, net/ipv4/fib_frontend.c, net/ipv6/addrconf.c.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address, ip_network
from socket import AF_INET, AF_INET6

from .netlink_things import (
    ARPHRD_LOOPBACK,
    BLACKHOLE,
    BROADCAST,
    IFA_F_NOPREFIXROUTE,
    IFA_F_SECONDARY,
    IFF_CHANGEABLE,
    IFF_LOOPBACK,
    IFF_UP,
    IP,
    LOCAL,
    METRIC_ADDRESS,
    MULTICAST,
    PROHIBIT,
    PROTO_KERNEL,
    SCOPE_HOST,
    SCOPE_LINK,
    TABLE_DEFAULT,
    TABLE_LOCAL,
    TABLE_MAIN,
    THROW,
    UNICAST,
    UNREACHABLE,
    Address,
    Event,
    Link,
    Neighbour,
    NetlinkError,
    Route,
    Rule,
    Thing,
    family_of,
    loopback,
)

_DEAD = {BLACKHOLE: errno.EINVAL, UNREACHABLE: errno.EHOSTUNREACH, PROHIBIT: errno.EACCES}
_NAME_MAX = 15
_MULTICAST6 = ip_network("ff00::/8")


def _rules() -> list[Rule]:
    found = [Rule(AF_INET, 0, TABLE_LOCAL), Rule(AF_INET, 32766, TABLE_MAIN)]
    found += [Rule(AF_INET, 32767, TABLE_DEFAULT)]
    return [*found, Rule(AF_INET6, 0, TABLE_LOCAL), Rule(AF_INET6, 32766, TABLE_MAIN)]


@dataclass
class NetState:
    """The network of one host. Safe to use from any thread.

    `guard(event)` may refuse a change that a guest asks for by OSError, before it is made;
    `listeners` are told of each change after it was made, under the lock.
    """

    links: dict[int, Link] = field(default_factory=lambda: {1: loopback()})
    addresses: list[Address] = field(default_factory=list)
    routes: list[Route] = field(default_factory=list)
    neighbours: list[Neighbour] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=_rules)
    listeners: list[Callable[[Event], None]] = field(default_factory=list)
    guard: Callable[[Event], None] = lambda event: None
    lock: threading.RLock = field(default_factory=threading.RLock)
    asking: tuple[int, int] = (0, 0)
    """Sequence number and port of the request that changes something just now."""

    def _tell(self, thing: Thing, gone: bool = False) -> None:
        for listener in list(self.listeners):
            listener(Event(thing, gone))

    # --- links -----------------------------------------------------------------------------------

    def link(self, index: int = 0, name: str = "") -> Link:
        """A link by index, or else by name. **Errors** ENODEV."""
        if index:
            found = self.links.get(index)
        else:
            found = next((link for link in self.links.values() if link.name == name), None)
        if found is None:
            raise NetlinkError(errno.ENODEV)
        return found

    def add_link(self, link: Link) -> Link:
        """Add a link; index 0: the next free one. **Errors** EEXIST, EINVAL: its name."""
        with self.lock:
            _check_name(link.name)
            if any(other.name == link.name for other in self.links.values()):
                raise NetlinkError(errno.EEXIST)
            if not link.index:
                link.index = max(self.links, default=0) + 1
            elif link.index in self.links:
                raise NetlinkError(errno.EBUSY)
            self.guard(Event(link))
            up, link.flags = link.up, link.flags & ~IFF_UP
            self.links[link.index] = link
            self._tell(link)
            if up:
                self.set_link(link.index, flags=IFF_UP, change=IFF_UP)
        return link

    def remove_link(self, index: int) -> None:
        """Remove a link that guests may remove. **Errors** ENODEV, EOPNOTSUPP."""
        with self.lock:
            link = self.link(index)
            if link.kind != "dummy":
                raise NetlinkError(errno.EOPNOTSUPP)
            self.guard(Event(link, True))
            self.set_link(index, flags=0, change=IFF_UP)
            for address in [a for a in self.addresses if a.index == index]:
                self._drop_address(address)
            del self.links[index]
            self._tell(link, True)

    def set_link(self, index: int, *, flags: int = 0, change: int = 0, **values: object) -> None:
        """Change flags, and fields of `Link` by name. **Errors** as RTM_SETLINK."""
        with self.lock:
            link = self.link(index)
            name = values.get("name", link.name)
            if name != link.name:
                _check_name(str(name))
                if any(other.name == name for other in self.links.values()):
                    raise NetlinkError(errno.EEXIST)
            change &= IFF_CHANGEABLE
            wanted = replace(link, flags=link.flags & ~change | flags & change, **values)  # type: ignore[arg-type]
            if wanted == link:
                return
            self.guard(Event(wanted))
            was, old = link.up, link.name
            for key in ("name", "mtu", "address", "txqlen", "group", "alias", "carrier", "flags"):
                setattr(link, key, getattr(wanted, key))
            if link.name != old:
                self.addresses = [
                    replace(a, label=link.name) if (a.index, a.label) == (index, old) else a
                    for a in self.addresses
                ]
            if link.up:
                link.qdisc = "noqueue"
            self._tell(link)
            if link.up and not was:
                self._came_up(link)
            elif was and not link.up:
                self._went_down(link)

    def _came_up(self, link: Link) -> None:
        if link.arp == ARPHRD_LOOPBACK:
            for text, prefix in (("127.0.0.1", 8), ("::1", 128)):
                local = IPv4Address(text) if prefix == 8 else IPv6Address(text)
                if not any(a.local == local for a in self.addresses):
                    label = link.name if prefix == 8 else ""
                    self._take_address(
                        Address(link.index, local, prefix, label=label, scope=SCOPE_HOST)
                    )
        else:
            self._add_route(
                Route(_MULTICAST6, link.index, table=TABLE_LOCAL, kind=MULTICAST,
                      protocol=PROTO_KERNEL, metric=METRIC_ADDRESS)
            )  # fmt: skip
            if link.autoconf:
                self._take_address(Address(link.index, _eui64(link.address), 64, scope=SCOPE_LINK))
        for address in [a for a in self.addresses if a.index == link.index]:
            for route in self._follows(address):
                self._add_route(route)

    def _went_down(self, link: Link) -> None:
        """IPv6 addresses go, and so do the routes through the link."""
        for address in [
            a for a in self.addresses if a.index == link.index and a.family == AF_INET6
        ]:
            self._drop_address(address)
        for route in [r for r in self.routes if r.oif == link.index]:
            if route.kind != LOCAL or route.family == AF_INET6:
                self._drop_route(route, route.family == AF_INET6)
        for neighbour in [n for n in self.neighbours if n.index == link.index]:
            self.neighbours.remove(neighbour)
            self._tell(neighbour, True)

    # --- addresses -------------------------------------------------------------------------------

    def has(self, address: IP) -> bool:
        """Is an address one of this host's? All of 127.0.0.0/8 is, when `lo` is up."""
        found = self.lookup_local(address)
        return found is not None and found.kind == LOCAL

    def lookup_local(self, address: IP) -> Route | None:
        """What the local table says of an address."""
        with self.lock:
            return self._best(address, TABLE_LOCAL)

    def add_address(self, address: Address, replaces: bool = False) -> None:
        """**Errors** EEXIST; ENODEV; EADDRNOTAVAIL: refused by the fabric."""
        with self.lock:
            link = self.link(address.index)
            same = self._same_address(address)
            if same is not None and not replaces:
                v4 = address.family == AF_INET
                text = "ipv4: Address already assigned" if v4 else "address already assigned"
                raise NetlinkError(errno.EEXIST, text)
            if address.family == AF_INET:
                first = any(
                    a.index == address.index
                    and a.family == AF_INET
                    and not a.flags & IFA_F_SECONDARY
                    and a.prefix == address.prefix
                    and a.network == address.network
                    and a != same
                    for a in self.addresses
                )
                flags = address.flags & ~IFA_F_SECONDARY | (IFA_F_SECONDARY if first else 0)
                address = replace(address, flags=flags, label=address.label or link.name)
            elif address.local.is_link_local:
                address = replace(address, scope=SCOPE_LINK)
            elif address.local.is_loopback:
                address = replace(address, scope=SCOPE_HOST)
            self.guard(Event(address))
            if same is not None:
                self.addresses[self.addresses.index(same)] = address
                self._tell(address)
                return
            self._take_address(address)
            if link.up or link.arp == ARPHRD_LOOPBACK:
                for route in self._follows(address):
                    self._add_route(route)

    def remove_address(self, address: Address) -> None:
        """Remove the address with this link, local address and prefix length.

        Of IPv4 a primary address takes its secondary ones with it. **Errors** EADDRNOTAVAIL.
        """
        with self.lock:
            same = self._same_address(address)
            if same is None or same.prefix != address.prefix:
                v4 = address.family == AF_INET
                text = "ipv4: Address not found" if v4 else "ipv6: address not found"
                raise NetlinkError(errno.EADDRNOTAVAIL, text)
            self.guard(Event(same, True))
            if same.family == AF_INET and not same.flags & IFA_F_SECONDARY:
                for other in list(self.addresses):
                    if (
                        other.flags & IFA_F_SECONDARY
                        and other.family == AF_INET
                        and other.index == same.index
                        and other.network == same.network
                    ):
                        self._drop_address(other)
            self._drop_address(same)

    def _same_address(self, address: Address) -> Address | None:
        def key(a: Address) -> tuple[object, ...]:
            prefix = a.prefix if a.family == AF_INET else 0
            return a.index, a.local, prefix

        return next((a for a in self.addresses if key(a) == key(address)), None)

    def _take_address(self, address: Address) -> None:
        if self._same_address(address) is None:
            self.addresses.append(address)
            self._tell(address)

    def _drop_address(self, address: Address) -> None:
        self.addresses.remove(address)
        still = {r for a in self.addresses for r in self._follows(a)}
        for route in [r for r in self._follows(address) if r not in still and r in self.routes]:
            self._drop_route(route)
        for route in [r for r in self.routes if r.prefsrc == address.local]:
            self._drop_route(route, quiet=True)  # fib_sync_down_addr
        self._tell(address, True)

    def _follows(self, address: Address) -> Iterator[Route]:
        """The routes that an address makes (fib_add_ifaddr, addrconf_prefix_route)."""
        single = ip_network(address.local)
        index, kernel = address.index, PROTO_KERNEL
        if address.family == AF_INET6:
            yield Route(single, index, table=TABLE_LOCAL, kind=LOCAL, protocol=kernel)
            if address.prefix < 128 and not address.flags & IFA_F_NOPREFIXROUTE:
                metric = address.metric or METRIC_ADDRESS
                yield Route(address.network, index, protocol=kernel, metric=metric)
            return
        src = address.local
        if address.flags & IFA_F_SECONDARY:
            primary = (
                a.local
                for a in self.addresses
                if a.index == index
                and a.family == AF_INET
                and not a.flags & IFA_F_SECONDARY
                and a.network == address.network
            )
            src = next(primary, src)
        yield Route(single, index, None, src, TABLE_LOCAL, LOCAL, SCOPE_HOST, kernel)
        if address.broadcast is not None:
            yield Route(
                ip_network(address.broadcast), index, None, src, TABLE_LOCAL, BROADCAST,
                SCOPE_LINK, kernel,
            )  # fmt: skip
        net = address.network
        if net.is_multicast or int(net.network_address) == 0 or address.flags & IFA_F_SECONDARY:
            return
        if (address.prefix < 32 and not address.flags & IFA_F_NOPREFIXROUTE) or address.peer:
            loop = self.links[index].flags & IFF_LOOPBACK
            table, kind = (TABLE_LOCAL, LOCAL) if loop else (TABLE_MAIN, UNICAST)
            scope = SCOPE_HOST if loop else SCOPE_LINK
            yield Route(net, index, None, src, table, kind, scope, kernel, address.metric)
        if address.prefix < 31:
            yield Route(
                ip_network(net.broadcast_address), index, None, src, TABLE_LOCAL, BROADCAST,
                SCOPE_LINK, kernel,
            )  # fmt: skip

    # --- routes ----------------------------------------------------------------------------------

    def _add_route(self, route: Route) -> None:
        if route not in self.routes:
            self.routes.append(route)
            self._tell(route)

    def _drop_route(self, route: Route, quiet: bool = False) -> None:
        """`quiet`: as Linux does where an address or a link takes IPv4 routes along."""
        self.routes.remove(route)
        if not quiet:
            self._tell(route, True)

    def _best(self, address: IP, table: int, oif: int = 0) -> Route | None:
        found = [
            r
            for r in self.routes
            if r.table == table and r.net.version == address.version and address in r.net
            and (not oif or r.oif == oif)
        ]  # fmt: skip
        return max(found, key=lambda r: (r.net.prefixlen, -r.metric), default=None)

    def lookup(self, address: IP, oif: int = 0, src: IP | None = None) -> Route:
        """The route to an address. **Errors** ENETUNREACH, or what the route says."""
        with self.lock:
            family = family_of(address)
            for rule in sorted(self.rules, key=lambda rule: rule.priority):
                if rule.family != family or not _matches(rule, address, src):
                    continue
                if rule.action != 1:
                    number = _DEAD.get(rule.action, errno.ENETUNREACH)
                    raise NetlinkError(number)
                route = self._best(address, rule.table, 0 if rule.table == TABLE_LOCAL else oif)
                if route is None or route.kind == THROW:
                    continue
                if route.kind in _DEAD:
                    raise NetlinkError(_DEAD[route.kind])
                return route
        raise NetlinkError(errno.ENETUNREACH)

    def source(self, route: Route, address: IP) -> IP | None:
        """The address that packets on a route come from; None: there is none."""
        if route.prefsrc is not None:
            return route.prefsrc
        if route.kind == LOCAL and address.version == 6:
            return address
        with self.lock:
            local = address.is_link_local or address.is_multicast
            usable = [a for a in self.addresses if a.local.version == address.version]
            here = [a for a in usable if a.index == route.oif] or usable
            near = route.gateway or address
            here.sort(
                key=lambda a: (near not in a.network, a.scope != SCOPE_LINK if local else a.scope)
            )
        return here[0].local if here else None


def _matches(rule: Rule, address: IP, src: IP | None) -> bool:
    fits = (rule.dst is None or address in rule.dst) and not (rule.iif or rule.oif or rule.mark)
    if rule.src is not None:
        fits = fits and src is not None and src in rule.src
    return fits != rule.invert


def _check_name(name: str) -> None:
    bad = not 0 < len(os.fsencode(name)) <= _NAME_MAX or name in (".", "..")
    if bad or any(c in "/:" or c.isspace() for c in name):
        raise NetlinkError(errno.EINVAL)


def _eui64(mac: bytes) -> IPv6Address:
    """The link-local address of an Ethernet address (RFC 4291, appendix A)."""
    tail = bytes([mac[0] ^ 2, *mac[1:3], 0xFF, 0xFE, *mac[3:6]])
    return IPv6Address(b"\xfe\x80" + bytes(6) + tail)
