"""Changes of routes, rules and neighbours that guests ask for, with Linux's checks and errors.

**Source**: net/ipv4/fib_frontend.c, fib_semantics.c (fib_check_nh), fib_trie.c (fib_table_insert),
net/ipv6/route.c (ip6_route_info_create), net/core/fib_rules.c, net/core/neighbour.c.
"""

from __future__ import annotations

import errno
from dataclasses import replace
from ipaddress import ip_network
from socket import AF_INET

from .netlink_state import (
    NetState,
)
from .netlink_things import (
    IP,
    LOCAL,
    LOOPBACK,
    METRIC_USER,
    RTNH_ONLINK,
    SCOPE_LINK,
    TABLE_MAIN,
    UNICAST,
    Event,
    Neighbour,
    NetlinkError,
    Route,
    Rule,
)

NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND = 0x100, 0x200, 0x400, 0x800
_WITH_HOP = (UNICAST, LOCAL, 3, 4, 5)
_LAST_RULE = 32766
KIND_MAX = 9
"""The last route type that is done here: RTN_THROW."""


def add_route(state: NetState, route: Route, flags: int) -> None:
    """RTM_NEWROUTE. **Errors** EEXIST, ENOENT, ENETUNREACH, ENETDOWN, ENODEV, EINVAL."""
    with state.lock:
        route = _checked(state, route)
        v4 = route.family == AF_INET
        if not v4 and not route.metric:
            route = replace(route, metric=METRIC_USER)
        same = [r for r in state.routes if _key(r) == _key(route)]
        if same and flags & NLM_F_EXCL:
            raise NetlinkError(errno.EEXIST)
        if not same and not flags & NLM_F_CREATE and (v4 or flags & NLM_F_REPLACE):
            raise NetlinkError(errno.ENOENT)
        if route in same:
            if flags & NLM_F_REPLACE:
                return
            raise NetlinkError(errno.EEXIST)
        state.guard(Event(route))
        if same and flags & NLM_F_REPLACE:
            at = state.routes.index(same[0])
            state.routes[at] = route
        elif same and not flags & NLM_F_APPEND:
            state.routes.insert(state.routes.index(same[0]), route)
        else:
            state.routes.append(route)
        state._tell(route)


def _key(route: Route) -> tuple[object, ...]:
    return route.table, route.net, route.tos, route.metric


def _checked(state: NetState, route: Route) -> Route:
    """A next hop that can be used (fib_check_nh)."""
    if route.kind not in _WITH_HOP:
        return replace(route, oif=0, gateway=None)
    if route.oif:
        link = state.links.get(route.oif)
        if link is None:
            raise NetlinkError(errno.ENODEV)
        if not link.up:
            raise NetlinkError(errno.ENETDOWN, "Device for nexthop is not up")
    if route.prefsrc is not None and not state.has(route.prefsrc):
        raise NetlinkError(errno.EINVAL, "Invalid prefsrc address")
    if route.gateway is not None:
        return replace(route, oif=_through(state, route, route.gateway))
    if not route.oif:
        raise NetlinkError(errno.ENODEV)
    return route


def _through(state: NetState, route: Route, gateway: IP) -> int:
    """The link that leads to a gateway."""
    if route.flags & RTNH_ONLINK:
        if not route.oif:
            raise NetlinkError(errno.ENODEV, "Nexthop device required for onlink")
        return route.oif
    v4 = gateway.version == 4
    if route.family == AF_INET and route.scope >= SCOPE_LINK:
        raise NetlinkError(errno.EINVAL, "Nexthop has invalid scope")
    if state.has(gateway):
        raise NetlinkError(errno.EINVAL, "Nexthop has invalid gateway")
    if gateway.is_link_local and not v4:
        if not route.oif:
            raise NetlinkError(errno.EINVAL, "Nexthop device required")
        return route.oif
    found = None
    try:
        found = state.lookup(gateway, route.oif)
    except OSError:
        pass
    if found is None or found.gateway is not None or found.kind != UNICAST:
        number = errno.ENETUNREACH if v4 else errno.EHOSTUNREACH
        raise NetlinkError(number, "Nexthop has invalid gateway" if v4 else "")
    return found.oif


def remove_route(state: NetState, wanted: Route, given: frozenset[str]) -> None:
    """RTM_DELROUTE: the first that agrees in the fields that were `given`. **Errors** ESRCH."""
    names = {"net", "table"} | given
    with state.lock:
        for route in state.routes:
            if all(getattr(route, name) == getattr(wanted, name) for name in names):
                state.guard(Event(route, True))
                state._drop_route(route)
                return
    raise NetlinkError(errno.ESRCH)


def route_to(state: NetState, address: IP, oif: int, src: IP | None) -> Route:
    """What `ip route get` shows: a route to the one address. **Errors** as connect(2)'s."""
    if src is not None and not state.has(src):
        raise NetlinkError(errno.EINVAL)
    route = state.lookup(address, oif, src)
    source = src or state.source(route, address)
    route = replace(route, net=ip_network(address), prefsrc=source)
    if route.family != AF_INET:
        return route
    out = LOOPBACK if route.kind == LOCAL else route.oif
    return replace(route, oif=out, table=TABLE_MAIN, scope=0, protocol=0, metric=0)


# --- rules ----------------------------------------------------------------------------------------


def add_rule(state: NetState, rule: Rule, priority: int | None, flags: int) -> None:
    """RTM_NEWRULE; without priority it comes before the first that isn't 0. **Errors** EEXIST."""
    with state.lock:
        if priority is None:
            own = sorted(r.priority for r in state.rules if r.family == rule.family)
            after = next((p for p in own if p), _LAST_RULE)
            priority = max(after - 1, 0)
        rule = replace(rule, priority=priority)
        if rule in state.rules and flags & NLM_F_EXCL:
            raise NetlinkError(errno.EEXIST)
        state.guard(Event(rule))
        state.rules.append(rule)
        state.rules.sort(key=lambda r: (r.family, r.priority))
        state._tell(rule)


def remove_rule(state: NetState, wanted: Rule, given: frozenset[str]) -> None:
    """RTM_DELRULE: the first that agrees in what was given. **Errors** ENOENT."""
    with state.lock:
        for rule in state.rules:
            if rule.family == wanted.family and all(
                getattr(rule, name) == getattr(wanted, name) for name in given
            ):
                state.guard(Event(rule, True))
                state.rules.remove(rule)
                state._tell(rule, True)
                return
    raise NetlinkError(errno.ENOENT)


# --- neighbours -----------------------------------------------------------------------------------


def add_neighbour(state: NetState, neighbour: Neighbour, flags: int) -> None:
    """RTM_NEWNEIGH. **Errors** ENODEV, EEXIST, ENOENT."""
    with state.lock:
        state.link(neighbour.index)
        at = _place(state, neighbour)
        if at is None and not flags & NLM_F_CREATE:
            raise NetlinkError(errno.ENOENT)
        if at is not None and flags & NLM_F_EXCL:
            raise NetlinkError(errno.EEXIST)
        state.guard(Event(neighbour))
        if at is None:
            state.neighbours.append(neighbour)
        else:
            old = state.neighbours[at]
            if not neighbour.lladdr:
                neighbour = replace(neighbour, lladdr=old.lladdr)
            state.neighbours[at] = neighbour
        state._tell(neighbour)


def remove_neighbour(state: NetState, neighbour: Neighbour) -> None:
    """RTM_DELNEIGH. **Errors** ENODEV, ENOENT."""
    with state.lock:
        state.link(neighbour.index)
        at = _place(state, neighbour)
        if at is None:
            raise NetlinkError(errno.ENOENT)
        state.guard(Event(neighbour, True))
        state._tell(state.neighbours.pop(at), True)


def _place(state: NetState, neighbour: Neighbour) -> int | None:
    for at, other in enumerate(state.neighbours):
        if (other.index, other.dst) == (neighbour.index, neighbour.dst):
            return at
    return None
