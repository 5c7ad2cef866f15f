"""What there is of each sort, for dumps, in the order that the kernel shows it."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from socket import AF_INET, AF_INET6

from . import netlink_codec as codec
from .netlink_state import NetState
from .netlink_things import TABLE_DEFAULT, TABLE_LOCAL, TABLE_MAIN, NetlinkError, Thing


def _links(state: NetState, fields: codec.Fields, strict: bool) -> Iterable[Thing]:
    if fields["family"] == 7:  # AF_BRIDGE
        return []
    kind = fields.get("info")
    found = sorted(state.links.values(), key=lambda link: link.index)
    return [link for link in found if not fields.get("master") and kind in (None, link.kind)]


def _addresses(state: NetState, fields: codec.Fields, strict: bool) -> Iterable[Thing]:
    index = fields["index"] if strict else 0
    if index:
        state.link(index)
    found = [a for a in state.addresses if fields["family"] in (0, a.family)]
    found = [a for a in found if index in (0, a.index)]
    return sorted(
        found,
        key=lambda a: (
            a.family, a.index, a.flags & 1 if a.family == AF_INET else 0,
            a.scope if a.family == AF_INET6 else 0,
        ),
    )  # fmt: skip


def _routes(state: NetState, fields: codec.Fields, strict: bool) -> Iterable[Thing]:
    found = [r for r in state.routes if fields["family"] in (0, r.family)]
    if strict:
        table = fields.get("all_table") or fields["table"]
        known = {r.table for r in found} | {0, TABLE_DEFAULT, TABLE_MAIN, TABLE_LOCAL}
        if fields["family"] and table not in known:
            version = 4 if fields["family"] == AF_INET else 6
            raise NetlinkError(errno.ENOENT, f"ipv{version}: FIB table does not exist")
        for name, value in (
            ("table", table), ("protocol", fields["protocol"]), ("kind", fields["kind"]),
            ("oif", fields.get("oif")),
        ):  # fmt: skip
            found = [r for r in found if not value or getattr(r, name) == value]
    return sorted(
        found,
        key=lambda r: (
            r.family, r.table, r.family == AF_INET6 and not r.net.prefixlen,
            int(r.net.network_address), r.net.prefixlen, r.metric,
        ),
    )  # fmt: skip


def _neighbours(state: NetState, fields: codec.Fields, strict: bool) -> Iterable[Thing]:
    if fields.get("flags", 0) & 8:
        return []
    index = fields.get("if_index") or 0
    return [
        n for n in state.neighbours if fields["family"] in (0, n.family) and index in (0, n.index)
    ]


def _rules(state: NetState, fields: codec.Fields, strict: bool) -> Iterable[Thing]:
    return [r for r in state.rules if fields["family"] in (0, r.family)]


LISTS: dict[int, Callable[[NetState, codec.Fields, bool], Iterable[Thing]]] = {
    codec.LINK: _links, codec.ADDR: _addresses, codec.ROUTE: _routes, codec.NEIGH: _neighbours,
    codec.RULE: _rules,
}  # fmt: skip
