"""rtnetlink messages: answers are made with pyroute2's message classes, requests are taken apart.

Requests come from guests and may be anything: they are read here with the lengths that the kernel
demands, so that no field is read that isn't there. pyroute2 takes long to import, hence only when
the first answer is made.
**Source**: netlink(7), rtnetlink(7), lib/nlattr.c, include/uapi/linux/netlink.h.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from functools import cache, lru_cache
from ipaddress import IPv4Address, IPv6Address
from socket import AF_INET, AF_INET6
from typing import Any, NamedTuple

from .netlink_things import (
    FOREVER,
    IP,
    Address,
    Link,
    Neighbour,
    NetlinkError,
    Route,
    Rule,
    Thing,
)

NLMSG_NOOP, NLMSG_ERROR, NLMSG_DONE = 1, 2, 3
F_REQUEST, F_MULTI, F_ACK, F_ECHO, F_ROOT, F_MATCH = 1, 2, 4, 8, 0x100, 0x200
F_DUMP = F_ROOT | F_MATCH
F_CAPPED, F_ACK_TLVS = 0x100, 0x200
LINK, ADDR, ROUTE, NEIGH, RULE = 16, 20, 24, 28, 32
"""RTM_NEW…; + 1: DEL, + 2: GET, + 3: SET (links only)."""
HEADER = struct.Struct("=IHHII")
_ATTR = struct.Struct("=HH")
_NESTED, _TYPE_MASK = 0x8000, 0x3FFF


class Header(NamedTuple):
    """struct nlmsghdr."""

    length: int
    type: int
    flags: int
    seq: int
    pid: int


# --- requests -------------------------------------------------------------------------------------


class Kind(NamedTuple):
    """What an attribute holds: how many bytes at least, and how they are read."""

    name: str
    size: int
    how: str


def _u32(name: str) -> Kind:
    return Kind(name, 4, "u32")


def _ip(name: str) -> Kind:
    return Kind(name, 4, "ip")


def _text(name: str) -> Kind:
    return Kind(name, 1, "text")


class Layout(NamedTuple):
    """A family of messages: its fixed part, the names of its fields, its attributes by number."""

    fixed: struct.Struct
    fields: tuple[str, ...]
    attributes: Mapping[int, Kind]
    text: str


LAYOUTS: dict[int, Layout] = {
    LINK: Layout(
        struct.Struct("=BxHiII"), ("family", "arp", "index", "flags", "change"),
        {
            1: Kind("address", 1, "bytes"), 2: Kind("broadcast", 1, "bytes"), 3: _text("name"),
            4: _u32("mtu"), 10: _u32("master"), 13: _u32("txqlen"), 18: Kind("info", 0, "info"),
            19: _u32("net_ns_pid"), 20: _text("alias"), 27: _u32("group"),
            28: _u32("net_ns_fd"), 29: _u32("mask"), 53: _text("altname"),
        }, "link",
    ),
    ADDR: Layout(
        struct.Struct("=BBBBI"), ("family", "prefix", "flags", "scope", "index"),
        {
            1: _ip("address"), 2: _ip("local"), 3: _text("label"), 4: _ip("broadcast"),
            6: Kind("cache", 16, "cache"), 8: _u32("all_flags"), 9: _u32("metric"),
        }, "address",
    ),
    ROUTE: Layout(
        struct.Struct("=BBBBBBBBI"),
        ("family", "dst_len", "src_len", "tos", "table", "protocol", "scope", "kind", "flags"),
        {
            1: _ip("dst"), 2: _ip("src"), 3: _u32("iif"), 4: _u32("oif"), 5: _ip("gateway"),
            6: _u32("metric"), 7: _ip("prefsrc"), 9: Kind("multipath", 8, "bytes"),
            15: _u32("all_table"), 16: _u32("mark"),
        }, "FIB",
    ),
    NEIGH: Layout(
        struct.Struct("=BxxxiHBB"), ("family", "index", "state", "flags", "kind"),
        {
            1: _ip("dst"), 2: Kind("lladdr", 1, "bytes"), 8: _u32("if_index"), 9: _u32("master"),
        }, "neighbor",
    ),
    RULE: Layout(
        struct.Struct("=BBBBBBBBI"),
        ("family", "dst_len", "src_len", "tos", "table", "res1", "res2", "action", "flags"),
        {
            1: _ip("dst"), 2: _ip("src"), 3: _text("iif"), 6: _u32("priority"), 10: _u32("mark"),
            15: _u32("all_table"), 16: _u32("mask"), 17: _text("oif"),
            21: Kind("protocol", 1, "u8"),
        }, "fib rule",
    ),
}  # fmt: skip


def split(data: bytes) -> list[tuple[Header, bytes]]:
    """The messages of a datagram, each with all its bytes; ends where one is malformed."""
    found = []
    at = 0
    while len(data) - at >= HEADER.size:
        header = Header(*HEADER.unpack_from(data, at))
        if header.length < HEADER.size or header.length > len(data) - at:
            break
        found.append((header, data[at : at + header.length]))
        at += header.length + 3 & ~3
    return found


def attributes(data: bytes, strict: bool = False) -> dict[int, bytes]:
    """Attributes by number; of equal ones the last. **Errors** EINVAL: a rest, if strict."""
    found: dict[int, bytes] = {}
    at = 0
    while len(data) - at >= _ATTR.size:
        size, number = _ATTR.unpack_from(data, at)
        if size < _ATTR.size or size > len(data) - at:
            break
        found[number & _TYPE_MASK] = data[at + _ATTR.size : at + size]
        at += size + 3 & ~3
    if strict and at < len(data):
        raise NetlinkError(errno.EINVAL, "bytes leftover after parsing attributes")
    return found


class Fields(dict[str, Any]):
    """The fixed fields of a request, and its attributes by name (absent ones aren't there)."""

    given: frozenset[str] = frozenset()
    """Names of the attributes that it has."""
    unknown: frozenset[int] = frozenset()
    """Numbers of the attributes that aren't in the layout."""


def parse(group: int, body: bytes, strict: bool = False, family: int = 0) -> Fields:
    """Read what follows the header. **Errors** EINVAL, ERANGE: an attribute is too short."""
    layout = LAYOUTS[group]
    if len(body) < layout.fixed.size:
        raise NetlinkError(errno.EINVAL, f"Invalid header for {layout.text} request")
    fields = Fields(zip(layout.fields, layout.fixed.unpack_from(body), strict=True))
    family = fields["family"] or family
    raw = attributes(body[layout.fixed.size :], strict)
    values = {}
    for number, data in raw.items():
        kind = layout.attributes.get(number)
        if kind is not None:
            if len(data) < kind.size:
                raise NetlinkError(errno.ERANGE, "Attribute failed policy validation")
            values[kind.name] = _value(kind, data, family)
    fields.update(values)
    fields.given = frozenset(values)
    fields.unknown = frozenset(raw) - frozenset(layout.attributes)
    return fields


def _value(kind: Kind, data: bytes, family: int) -> object:
    match kind.how:
        case "u32":
            return int.from_bytes(data[:4], "little")
        case "u8":
            return data[0]
        case "text":
            return data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
        case "ip":
            return _address(data, family)
        case "cache":
            return struct.unpack_from("=II", data)
        case "info":
            kind_name = attributes(data).get(1, b"")
            return kind_name.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
    return data


def _address(data: bytes, family: int) -> IP:
    if family == AF_INET6:
        if len(data) < 16:
            raise NetlinkError(errno.ERANGE, "Attribute failed policy validation")
        return IPv6Address(data[:16])
    return IPv4Address(data[:4])


# --- answers --------------------------------------------------------------------------------------


@cache
def _classes() -> dict[int, Any]:
    from pyroute2.netlink.rtnl.fibmsg import fibmsg
    from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
    from pyroute2.netlink.rtnl.ndmsg import ndmsg
    from pyroute2.netlink.rtnl.rtmsg import rtmsg

    class route(rtmsg):  # type: ignore[misc]
        """With the attributes that pyroute2 doesn't know yet."""

        nla_map = (*rtmsg.nla_map, ("RTA_PAD", "none"), ("RTA_UID", "uint32"))

    return {LINK: ifinfmsg, ADDR: ifaddrmsg, ROUTE: route, NEIGH: ndmsg, RULE: fibmsg}


def message(group: int, fields: Mapping[str, object], attrs: Sequence[tuple[str, object]],
            number: int, flags: int, seq: int, pid: int) -> bytes:  # fmt: skip
    """Encode a message of a group; attributes that are None are left out."""
    msg = _classes()[group]()
    msg.update(fields)
    msg["attrs"] = [(name, _bytes_of(value)) for name, value in attrs if value is not None]
    msg["header"].update(type=number, flags=flags, sequence_number=seq, pid=pid)
    msg.encode()
    return bytes(msg.data)


def _bytes_of(value: object) -> object:
    """Names are bytes to the kernel; pyroute2 would only take those that are UTF-8."""
    if isinstance(value, str) and not value.isascii():
        return value.encode("utf-8", "surrogateescape")
    return value


def encode(thing: Thing, gone: bool, flags: int, seq: int, pid: int) -> bytes:
    """An RTM_NEW… or RTM_DEL… message about a thing."""
    text = _encoded(Link, astuple(thing)) if isinstance(thing, Link) else _encoded_frozen(thing)
    kind = group_of(thing) + gone
    return HEADER.pack(len(text), kind, flags, seq, pid) + text[HEADER.size :]


@lru_cache(256)
def _encoded(kind: type[Link], fields: tuple[Any, ...]) -> bytes:
    """A message with an empty header; things are shown far more often than they change."""
    return _encoded_frozen.__wrapped__(kind(*fields))


@lru_cache(1024)
def _encoded_frozen(thing: Thing) -> bytes:
    return message(group_of(thing), *describe(thing), 0, 0, 0, 0)


def describe(thing: Thing) -> tuple[dict[str, object], list[tuple[str, object]]]:
    """Fields and attributes of the message about a thing."""
    found: tuple[dict[str, object], list[tuple[str, object]]] = _DESCRIBE[group_of(thing)](thing)
    return found


def group_of(thing: Thing) -> int:
    """The group of messages about a thing."""
    return _GROUPS[type(thing)]


_GROUPS: dict[type, int] = {Link: LINK, Address: ADDR, Route: ROUTE, Neighbour: NEIGH, Rule: RULE}
_Described = tuple[dict[str, object], list[tuple[str, object]]]


def _mac(address: bytes) -> str | None:
    return ":".join(f"{byte:02x}" for byte in address) if address else None


def _link(link: Link) -> _Described:
    packets_in, packets_out, bytes_in, bytes_out = link.counters
    stats = {
        "rx_packets": packets_in, "tx_packets": packets_out, "rx_bytes": bytes_in,
        "tx_bytes": bytes_out,
    }  # fmt: skip
    works = link.up and link.carrier
    state = 2 if not link.up or not link.carrier else 0 if link.arp == 772 or link.kind else 6
    names = ("DOWN", "UNKNOWN", "UP")
    operstate = names[{2: 0, 0: 1, 6: 2}[state]]
    info = {"attrs": [("IFLA_INFO_KIND", _bytes_of(link.kind))]} if link.kind else None
    return (
        {"family": 0, "ifi_type": link.arp, "index": link.index, "flags": link.shown_flags,
         "change": 0},
        [
            ("IFLA_IFNAME", link.name), ("IFLA_TXQLEN", link.txqlen), ("IFLA_OPERSTATE", operstate),
            ("IFLA_LINKMODE", 0), ("IFLA_MTU", link.mtu),
            ("IFLA_MIN_MTU", 0), ("IFLA_MAX_MTU", 0), ("IFLA_GROUP", link.group),
            ("IFLA_PROMISCUITY", 0), ("IFLA_NUM_TX_QUEUES", 1), ("IFLA_GSO_MAX_SEGS", 65535),
            ("IFLA_GSO_MAX_SIZE", 65536), ("IFLA_NUM_RX_QUEUES", 1),
            ("IFLA_CARRIER", int(works)), ("IFLA_QDISC", link.qdisc),
            ("IFLA_CARRIER_CHANGES", 0), ("IFLA_PROTO_DOWN", 0),
            ("IFLA_IFALIAS", link.alias or None),
            ("IFLA_ADDRESS", _mac(link.address)), ("IFLA_BROADCAST", _mac(link.broadcast)),
            ("IFLA_STATS64", stats), ("IFLA_STATS", stats), ("IFLA_LINKINFO", info),
        ],
    )  # fmt: skip


def _addr(address: Address) -> _Described:
    v4 = address.family == AF_INET
    local = str(address.local) if v4 or address.peer else None
    return (
        {"family": address.family, "prefixlen": address.prefix, "flags": address.flags & 0xFF,
         "scope": address.scope, "index": address.index},
        [
            ("IFA_ADDRESS", str(address.peer or address.local)), ("IFA_LOCAL", local),
            ("IFA_BROADCAST", str(address.broadcast) if address.broadcast else None),
            ("IFA_LABEL", address.label if v4 else None), ("IFA_FLAGS", address.flags),
            ("IFA_RT_PRIORITY", address.metric or None),
            ("IFA_CACHEINFO", {"ifa_preferred": address.preferred, "ifa_valid": address.valid,
                               "cstamp": 0, "tstamp": 0}),
        ],
    )  # fmt: skip


def _route(route: Route) -> _Described:
    v4 = route.family == AF_INET
    bits = route.net.prefixlen
    return (
        {"family": route.family, "dst_len": bits, "src_len": 0, "tos": route.tos,
         "table": route.table if route.table < 256 else 252, "proto": route.protocol,
         "scope": route.scope, "type": route.kind, "flags": route.flags},
        [
            ("RTA_TABLE", route.table),
            ("RTA_DST", str(route.net.network_address) if bits else None),
            ("RTA_PREFSRC", str(route.prefsrc) if route.prefsrc else None),
            ("RTA_GATEWAY", str(route.gateway) if route.gateway else None),
            ("RTA_OIF", route.oif or None),
            ("RTA_PRIORITY", route.metric or (None if v4 else 0)),
            ("RTA_PREF", None if v4 else 0),
        ],
    )  # fmt: skip


def _neigh(neighbour: Neighbour) -> _Described:
    return (
        {"family": neighbour.family, "ifindex": neighbour.index, "state": neighbour.state,
         "flags": neighbour.flags, "ndm_type": 1},
        [
            ("NDA_DST", str(neighbour.dst)), ("NDA_LLADDR", _mac(neighbour.lladdr)),
            ("NDA_PROBES", 0),
            ("NDA_CACHEINFO", {"ndm_confirmed": 0, "ndm_used": 0, "ndm_updated": 0,
                               "ndm_refcnt": 0}),
        ],
    )  # fmt: skip


def _rule(rule: Rule) -> _Described:
    return (
        {"family": rule.family, "dst_len": rule.dst.prefixlen if rule.dst else 0,
         "src_len": rule.src.prefixlen if rule.src else 0, "tos": rule.tos,
         "table": rule.table if rule.table < 256 else 252, "action": rule.action,
         "flags": 2 if rule.invert else 0},
        [
            ("FRA_TABLE", rule.table), ("FRA_SUPPRESS_PREFIXLEN", FOREVER),
            ("FRA_PROTOCOL", rule.protocol), ("FRA_PRIORITY", rule.priority or None),
            ("FRA_SRC", str(rule.src.network_address) if rule.src else None),
            ("FRA_DST", str(rule.dst.network_address) if rule.dst else None),
            ("FRA_IIFNAME", rule.iif or None), ("FRA_OIFNAME", rule.oif or None),
            ("FRA_FWMARK", rule.mark or None), ("FRA_FWMASK", rule.mask or None),
        ],
    )  # fmt: skip


_DESCRIBE: dict[int, Any] = {LINK: _link, ADDR: _addr, ROUTE: _route, NEIGH: _neigh, RULE: _rule}


def error(request: bytes, header: Header, number: int, text: str, pid: int, *,
          capped: bool, extended: bool) -> bytes:  # fmt: skip
    """An NLMSG_ERROR message: an acknowledgement if `number` is 0 (netlink_ack)."""
    whole = number and not capped
    body = struct.pack("=i", -number) + (request if whole else request[: HEADER.size])
    flags = 0 if whole else F_CAPPED
    if extended and text:
        flags |= F_ACK_TLVS
        body += bytes(-len(body) % 4)
        data = text.encode("utf-8", "surrogateescape") + b"\0"
        body += _ATTR.pack(len(data) + _ATTR.size, 1) + data
        body += bytes(-len(body) % 4)
    return HEADER.pack(HEADER.size + len(body), NLMSG_ERROR, flags, header.seq, pid) + body


def done(seq: int, pid: int, number: int = 0, text: str = "") -> bytes:
    """The end of a dump; with an error it was cut short."""
    body = struct.pack("=i", -number)
    flags = F_MULTI
    if text:
        flags |= F_ACK_TLVS
        data = text.encode("utf-8", "surrogateescape") + b"\0"
        body += _ATTR.pack(len(data) + _ATTR.size, 1) + data
    return HEADER.pack(HEADER.size + len(body), NLMSG_DONE, flags, seq, pid) + body
