"""Answers to rtnetlink requests about a `NetState`: dumps, single gets, changes, notifications.

A `RouteSession` is one guest socket: what it was bound to, its options, the groups that it hears.
It knows nothing of how datagrams travel (netlink_sockets.py).
**Source**: rtnetlink(7), net/netlink/af_netlink.c, net/core/rtnetlink.c (rtnetlink_rcv_msg).
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from socket import AF_INET, AF_INET6
from typing import Any

from . import netlink_codec as codec
from . import netlink_routes as routes
from .netlink_lists import LISTS
from .netlink_state import (
    NetState,
)
from .netlink_things import (
    IFA_F_PERMANENT,
    IFF_BROADCAST,
    IFF_NOARP,
    IFF_UP,
    IP,
    LOCAL,
    RTNH_ONLINK,
    SCOPE_NOWHERE,
    Address,
    Event,
    Link,
    Neighbour,
    NetlinkError,
    Network,
    Route,
    Rule,
    Thing,
)

log = logging.getLogger(__name__)

CHUNK = 3776
"""Bytes of a datagram of a dump: NLMSG_GOODSIZE; readers count on no more than a page."""
GROUPS = {
    (codec.LINK, AF_INET): 1, (codec.NEIGH, AF_INET): 3, (codec.NEIGH, AF_INET6): 3,
    (codec.ADDR, AF_INET): 5, (codec.ADDR, AF_INET6): 9, (codec.ROUTE, AF_INET): 7,
    (codec.ROUTE, AF_INET6): 11, (codec.RULE, AF_INET): 8, (codec.RULE, AF_INET6): 19,
}  # fmt: skip
"""RTNLGRP_…: who hears of changes of what, by message group and address family."""
_GET, _SET, _DEL = 2, 3, 1
_F_CLONED, _F_LOOKED_UP, _F_FIB_MATCH, _RTCF_LOCAL = 0x200, 0x1000, 0x2000, 0x80000000
_BITS: dict[int, int] = {AF_INET: 32, AF_INET6: 128}
_EMPTY_DUMPS = {38, 42, 46, 82, 90, 94}
"""RTM_GETQDISC, GETTCLASS, GETTFILTER, GETNETCONF, GETNSID, GETSTATS: there are none."""
_RTM_MAX = 123
_MTU_MIN, _MTU_MAX = 68, 65535

Answer = list[bytes]


class RouteSession:
    """The NETLINK_ROUTE side of one guest socket. Use under the state's lock or from one thread."""

    def __init__(self, state: NetState, uid: int = 0) -> None:
        self.state, self.uid = state, uid
        self.portid = 0
        self.groups: set[int] = set()
        self.strict = self.extended = self.capped = False
        self._echo: list[Event] | None = None
        self._now: codec.Header | None = None
        self.deliver: Callable[[bytes], None] = lambda datagram: None
        """Sends a notification to the guest."""
        state.listeners.append(self.notify)

    def close(self) -> None:
        """The guest's socket is gone."""
        if self.notify in self.state.listeners:
            self.state.listeners.remove(self.notify)

    # --- notifications ---------------------------------------------------------------------------

    def notify(self, event: Event) -> None:
        """Something has changed: tell the guest if it listens to that group."""
        if self._echo is not None:
            self._echo.append(event)
        group = codec.group_of(event.thing)
        family = getattr(event.thing, "family", AF_INET)
        if GROUPS[group, family] in self.groups:
            seq, pid = self.state.asking
            self.deliver(codec.encode(event.thing, event.gone, 0, seq, pid))

    # --- requests --------------------------------------------------------------------------------

    def handle(self, data: bytes) -> Answer:
        """The datagrams that answer a datagram of requests."""
        answer: Answer = []
        for header, request in codec.split(data):
            number, text = 0, ""
            if header.flags & codec.F_REQUEST and header.type >= 16:
                try:
                    if self._message(header, request, answer):
                        continue
                except NetlinkError as error:
                    number, text = error.errno or errno.EINVAL, error.text
                except OSError as error:
                    number = error.errno or errno.EINVAL
            if number or header.flags & codec.F_ACK:
                answer.append(
                    codec.error(request, header, number, text, self.portid,
                                capped=self.capped, extended=self.extended)
                )  # fmt: skip
        return answer

    def _message(self, header: codec.Header, request: bytes, answer: Answer) -> bool:
        """Do what a message asks. True: it was a dump, which isn't acknowledged."""
        kind = header.type
        if kind > _RTM_MAX:
            raise NetlinkError(errno.EOPNOTSUPP)
        body = request[codec.HEADER.size :]
        if not body:
            return False
        group, operation = kind & ~3, kind & 3
        dump = operation == _GET and header.flags & codec.F_DUMP
        if group not in codec.LAYOUTS:
            if dump and kind in _EMPTY_DUMPS:
                answer.append(codec.done(header.seq, self.portid))
                return True
            raise NetlinkError(errno.EOPNOTSUPP)
        if dump:
            try:
                self._dump(group, header, body, answer)
            except NetlinkError as error:
                number, text = error.errno or errno.EINVAL, error.text if self.extended else ""
                answer.append(codec.done(header.seq, self.portid, number, text))
            return True
        fields = codec.parse(group, body)
        if operation == _GET:
            thing, more = _GETTERS[group](self, fields)
            answer.append(self._encode(thing, header, 0, more))
            return False
        change = _CHANGES.get((group, operation))
        if change is None:
            raise NetlinkError(errno.EOPNOTSUPP)
        with self.state.lock:
            self.state.asking = header.seq, self.portid
            self._echo = [] if header.flags & codec.F_ECHO else None
            try:
                change(self, fields, header.flags)
            finally:
                self.state.asking = 0, 0
                events, self._echo = self._echo, None
        for event in events or ():
            answer.append(codec.encode(event.thing, event.gone, 0, header.seq, self.portid))
        return False

    def _encode(self, thing: Thing, header: codec.Header, flags: int, more: int = 0) -> bytes:
        """`more`: flags of a route that was asked for by destination."""
        if not more:
            return codec.encode(thing, False, flags, header.seq, self.portid)
        fields, attrs = codec.describe(thing)
        if more & _F_CLONED:
            fields["flags"] = more
            attrs += [("RTA_UID", self.uid)]
        else:
            fields["src_len"] = _BITS[AF_INET6]
            attrs += [("RTA_SRC", "::")]
        return codec.message(
            codec.ROUTE, fields, attrs, codec.ROUTE, flags, header.seq, self.portid
        )

    # --- dumps -----------------------------------------------------------------------------------

    def _dump(self, group: int, header: codec.Header, body: bytes, answer: Answer) -> None:
        layout = codec.LAYOUTS[group]
        if self.strict and len(body) < layout.fixed.size:
            raise NetlinkError(errno.EINVAL, f"Invalid header for {layout.text} dump request")
        if len(body) < layout.fixed.size:  # struct rtgenmsg, of older programs
            fields = codec.Fields(dict.fromkeys(layout.fields, 0), family=body[0])
        else:
            fields = codec.parse(group, body, self.strict)
        with self.state.lock:
            things = list(LISTS[group](self.state, fields, self.strict))
        piece = b""
        for thing in things:
            text = self._encode(thing, header, codec.F_MULTI)
            text += bytes(-len(text) % 4)
            if piece and len(piece) + len(text) > CHUNK:
                answer.append(piece)
                piece = b""
            piece += text
        if piece:
            answer.append(piece)
        answer.append(codec.done(header.seq, self.portid))

    # --- links -----------------------------------------------------------------------------------

    def get_link(self, fields: codec.Fields) -> tuple[Thing, int]:
        """RTM_GETLINK."""
        return self._link(fields), 0

    def _link(self, fields: codec.Fields) -> Link:
        name = fields.get("name") or fields.get("altname") or ""
        if not fields["index"] and not name:
            raise NetlinkError(errno.EINVAL)
        return self.state.link(fields["index"], name)

    def set_link(self, fields: codec.Fields, flags: int) -> None:
        """RTM_SETLINK."""
        self._change(self._link(fields), fields, flags)

    def new_link(self, fields: codec.Fields, flags: int) -> None:
        """RTM_NEWLINK: make a link, or change the one there is."""
        try:
            link = self.state.link(fields["index"], fields.get("name") or "")
        except NetlinkError:
            if not flags & routes.NLM_F_CREATE:
                raise
            self._create(fields)
        else:
            self._change(link, fields, flags)

    def _change(self, link: Link, fields: codec.Fields, flags: int) -> None:
        if flags & routes.NLM_F_EXCL:
            raise NetlinkError(errno.EEXIST)
        if fields.given & {"net_ns_pid", "net_ns_fd"} or fields.get("master"):
            raise NetlinkError(errno.EOPNOTSUPP)
        values = _link_values(link, fields)
        change = fields["change"] or (0xFFFFFFFF if fields["flags"] else 0)
        self.state.set_link(link.index, flags=fields["flags"], change=change, **values)

    def _create(self, fields: codec.Fields) -> None:
        if fields.get("info") != "dummy":
            raise NetlinkError(errno.EOPNOTSUPP, "Unknown device type")
        names = {link.name for link in self.state.links.values()}
        name = fields.get("name") or ""
        if not name:
            name = next(n for n in (f"dummy{i}" for i in range(1 << 16)) if n not in names)
        mac = bytes([os.urandom(1)[0] & 0xFE | 2]) + os.urandom(5)
        link = Link(max(fields["index"], 0), name, "dummy", address=mac)
        link.flags = IFF_BROADCAST | IFF_NOARP | fields["flags"] & IFF_UP
        for key, value in _link_values(link, fields).items():
            if key != "name":
                setattr(link, key, value)
        self.state.add_link(link)

    def delete_link(self, fields: codec.Fields, flags: int) -> None:
        """RTM_DELLINK."""
        self.state.remove_link(self._link(fields).index)

    # --- addresses -------------------------------------------------------------------------------

    def get_address(self, fields: codec.Fields) -> tuple[Thing, int]:
        """RTM_GETADDR, which IPv6 only has."""
        wanted = fields.get("address") or fields.get("local")
        for address in self.state.addresses if fields["family"] == AF_INET6 else ():
            if address.local == wanted and fields["index"] in (0, address.index):
                return address, 0
        v6 = fields["family"] == AF_INET6
        raise NetlinkError(errno.EADDRNOTAVAIL if v6 else errno.EOPNOTSUPP)

    def _address(self, fields: codec.Fields) -> Address:
        _family(fields)
        local = fields.get("local") or (fields.get("address"))
        if fields["family"] == AF_INET and "local" not in fields.given:
            raise NetlinkError(errno.EINVAL, "ipv4: Local address is not supplied")
        if local is None:
            raise NetlinkError(errno.EINVAL)
        if fields["prefix"] > _BITS[fields["family"]]:
            v4 = "ipv4: Invalid prefix length" if fields["family"] == AF_INET else ""
            raise NetlinkError(errno.EINVAL, v4)
        peer = fields.get("address")
        valid, preferred = 0xFFFFFFFF, 0xFFFFFFFF
        if "cache" in fields.given:
            preferred, valid = fields["cache"]
            if not valid or preferred > valid:
                raise NetlinkError(errno.EINVAL, "address lifetime invalid")
        bits = (fields.get("all_flags") or fields["flags"]) & ~IFA_F_PERMANENT
        return Address(
            fields["index"], local, fields["prefix"], peer if peer != local else None,
            fields.get("broadcast"), fields.get("label") or "", fields["scope"],
            bits | (IFA_F_PERMANENT if valid == 0xFFFFFFFF else 0), valid, preferred,
            fields.get("metric") or 0,
        )  # fmt: skip

    def add_address(self, fields: codec.Fields, flags: int) -> None:
        """RTM_NEWADDR."""
        replaces = bool(flags & routes.NLM_F_REPLACE) and not flags & routes.NLM_F_EXCL
        self.state.add_address(self._address(fields), replaces)

    def delete_address(self, fields: codec.Fields, flags: int) -> None:
        """RTM_DELADDR."""
        if "local" not in fields.given and "address" in fields.given:
            fields["local"] = fields["address"]
            fields.given |= {"local"}
        self.state.link(fields["index"])
        self.state.remove_address(self._address(fields))

    # --- routes ----------------------------------------------------------------------------------

    def get_route(self, fields: codec.Fields) -> tuple[Thing, int]:
        """RTM_GETROUTE for one destination."""
        _family(fields)
        address: IP = fields.get("dst") or ip_address("::" if fields["family"] == AF_INET6 else 0)
        if fields["flags"] & _F_FIB_MATCH:
            return self.state.lookup(address, fields.get("oif") or 0, fields.get("src")), 0
        route = routes.route_to(self.state, address, fields.get("oif") or 0, fields.get("src"))
        if route.family == AF_INET6:
            return route, _F_LOOKED_UP
        return route, _F_CLONED | (_RTCF_LOCAL if route.kind == LOCAL else 0)

    def _route(self, fields: codec.Fields) -> Route:
        family = _family(fields)
        if "multipath" in fields.given:
            raise NetlinkError(errno.EOPNOTSUPP, "Routes with several next hops aren't supported")
        gateway = fields.get("gateway")
        return Route(
            _network(fields.get("dst"), fields["dst_len"], family),
            fields.get("oif") or 0,
            gateway if gateway is None or int(gateway) else None,
            fields.get("prefsrc"),
            fields.get("all_table") or fields["table"] or 254,
            fields["kind"] or 1,
            fields["scope"] if family == AF_INET else 0,
            fields["protocol"],
            fields.get("metric") or 0,
            fields["tos"],
            fields["flags"] & RTNH_ONLINK,
        )

    def add_route(self, fields: codec.Fields, flags: int) -> None:
        """RTM_NEWROUTE."""
        if not fields["kind"] or fields["kind"] > routes.KIND_MAX:
            raise NetlinkError(errno.EINVAL, "Invalid route type")
        routes.add_route(self.state, self._route(fields), flags)

    def delete_route(self, fields: codec.Fields, flags: int) -> None:
        """RTM_DELROUTE."""
        given = {name for name in ("oif", "gateway", "prefsrc", "metric") if fields.get(name)}
        given |= {name for name in ("kind", "protocol", "tos") if fields[name]}
        if fields["family"] == AF_INET and fields["scope"] != SCOPE_NOWHERE:
            given.add("scope")
        routes.remove_route(self.state, self._route(fields), frozenset(given))

    # --- neighbours and rules --------------------------------------------------------------------

    def get_neighbour(self, fields: codec.Fields) -> tuple[Thing, int]:
        """RTM_GETNEIGH for one address."""
        for neighbour in self.state.neighbours:
            if (neighbour.index, neighbour.dst) == (fields["index"], fields.get("dst")):
                return neighbour, 0
        raise NetlinkError(errno.ENOENT)

    def _neighbour(self, fields: codec.Fields) -> Neighbour:
        _family(fields)
        if "dst" not in fields.given:
            raise NetlinkError(errno.EINVAL, "Network address not specified")
        if fields["flags"] & 8:  # NTF_PROXY
            raise NetlinkError(errno.EOPNOTSUPP)
        return Neighbour(
            fields["index"], fields["dst"], fields.get("lladdr") or b"", fields["state"],
            fields["flags"],
        )  # fmt: skip

    def add_neighbour(self, fields: codec.Fields, flags: int) -> None:
        """RTM_NEWNEIGH."""
        routes.add_neighbour(self.state, self._neighbour(fields), flags)

    def delete_neighbour(self, fields: codec.Fields, flags: int) -> None:
        """RTM_DELNEIGH."""
        routes.remove_neighbour(self.state, self._neighbour(fields))

    def _rule(self, fields: codec.Fields) -> Rule:
        family = _family(fields)
        return Rule(
            family,
            fields.get("priority") or 0,
            fields.get("all_table") or fields["table"],
            _selector(fields, "src", family),
            _selector(fields, "dst", family),
            fields.get("iif") or "",
            fields.get("oif") or "",
            fields.get("mark") or 0,
            fields.get("mask") or (0xFFFFFFFF if fields.get("mark") else 0),
            fields["action"],
            fields.get("protocol") or 0,
            fields["tos"],
            bool(fields["flags"] & 2),
        )  # fmt: skip

    def add_rule(self, fields: codec.Fields, flags: int) -> None:
        """RTM_NEWRULE."""
        rule = self._rule(fields)
        if rule.action == 1 and not rule.table:
            raise NetlinkError(errno.EINVAL, "Invalid table id")
        routes.add_rule(self.state, rule, fields.get("priority"), flags)

    def delete_rule(self, fields: codec.Fields, flags: int) -> None:
        """RTM_DELRULE."""
        rule = self._rule(fields)
        given = {
            name for name in ("src", "dst", "iif", "oif", "mark", "tos") if getattr(rule, name)
        }
        given |= {name for name in ("priority",) if "priority" in fields.given}
        given |= {name for name in ("table", "action", "protocol") if getattr(rule, name)}
        routes.remove_rule(self.state, rule, frozenset(given))


def _family(fields: codec.Fields) -> int:
    family: int = fields["family"]
    if family not in _BITS:
        raise NetlinkError(errno.EAFNOSUPPORT if family else errno.EOPNOTSUPP)
    return family


def _network(address: IP | None, bits: int, family: int) -> Network:
    if bits > _BITS[family]:
        raise NetlinkError(errno.EINVAL, "Invalid prefix length")
    try:
        return ip_network((address or ("0.0.0.0" if family == AF_INET else "::"), bits))
    except ValueError:
        raise NetlinkError(errno.EINVAL, "Invalid prefix for given prefix length") from None


def _selector(fields: codec.Fields, name: str, family: int) -> Network | None:
    """A rule's source or destination; None: any."""
    bits = fields[f"{name}_len"]
    return _network(fields[name], bits, family) if bits and name in fields.given else None


def _link_values(link: Link, fields: codec.Fields) -> dict[str, Any]:
    """What RTM_SETLINK changes beside flags. **Errors** EINVAL."""
    values: dict[str, Any] = {}
    for name in ("name", "mtu", "txqlen", "group", "alias", "address"):
        if name in fields.given:
            values[name] = fields[name]
    if not fields["index"]:
        values.pop("name", None)  # it was the name to look for
    if len(values.get("address", link.address)) < 6:
        raise NetlinkError(errno.EINVAL)
    if "address" in values:
        values["address"] = values["address"][:6]
    if not _MTU_MIN <= values.get("mtu", link.mtu) <= max(_MTU_MAX, link.mtu):
        less = (
            "less than device minimum"
            if values["mtu"] < _MTU_MIN
            else "greater than device maximum"
        )
        raise NetlinkError(errno.EINVAL, f"mtu {less}")
    return values


def _no_single(session: RouteSession, fields: codec.Fields) -> tuple[Thing, int]:
    raise NetlinkError(errno.EOPNOTSUPP)


_GETTERS: dict[int, Callable[[RouteSession, codec.Fields], tuple[Thing, int]]] = {
    codec.LINK: RouteSession.get_link, codec.ADDR: RouteSession.get_address,
    codec.ROUTE: RouteSession.get_route, codec.NEIGH: RouteSession.get_neighbour,
    codec.RULE: _no_single,
}  # fmt: skip
_CHANGES: dict[tuple[int, int], Callable[[RouteSession, codec.Fields, int], None]] = {
    (codec.LINK, 0): RouteSession.new_link, (codec.LINK, _SET): RouteSession.set_link,
    (codec.LINK, _DEL): RouteSession.delete_link,
    (codec.ADDR, 0): RouteSession.add_address, (codec.ADDR, _DEL): RouteSession.delete_address,
    (codec.ROUTE, 0): RouteSession.add_route, (codec.ROUTE, _DEL): RouteSession.delete_route,
    (codec.NEIGH, 0): RouteSession.add_neighbour,
    (codec.NEIGH, _DEL): RouteSession.delete_neighbour,
    (codec.RULE, 0): RouteSession.add_rule, (codec.RULE, _DEL): RouteSession.delete_rule,
}  # fmt: skip
