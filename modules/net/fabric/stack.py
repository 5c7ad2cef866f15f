"""One host of a virtual network, as the stack of the processes that use it."""

from __future__ import annotations

import _socket
import errno
import random
import socket
import threading
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from core_accel.fabric import Home, SocketTable
from umvm.errors import UsageError
from umvm.interfaces.network import (
    SOCK_FLAGS,
    SOCK_MAX,
    SOCK_TYPE_MASK,
    Made,
    NetworkStack,
    Socket,
    refusal,
)

from . import address, gateway, link, options
from .address import ANY4, ANY6, BROADCAST, Address, fail, is_any, is_loopback, text
from .datagram import Datagram
from .forward import Forward
from .gateway import Gateway
from .link import PERFECT, Link, Wire
from .managed import Managed
from .network import DOMAIN, Host, Network
from .outbox import Outbox
from .ports import FIRST_EPHEMERAL, LAST_EPHEMERAL, Ports
from .sink import Sink
from .stream import Stream

if TYPE_CHECKING:
    from core_accel.fabric import SocketState
    from umvm import Request
    from umvm.routes import Route

    from .links import Links

IPPROTO_MAX = 256
PROTOCOLS: dict[int, tuple[int, ...]] = {
    socket.SOCK_STREAM: (socket.IPPROTO_TCP,),
    socket.SOCK_DGRAM: (socket.IPPROTO_UDP, socket.IPPROTO_UDPLITE),
}
"""The first is the one that 0 stands for."""
TYPES: dict[int, type[Stream | Datagram]] = {
    socket.SOCK_STREAM: Stream,
    socket.SOCK_DGRAM: Datagram,
}
NAME_SERVER = bytes([127, 0, 0, 53])


class Fabric(Managed, NetworkStack):
    """A host on a network."""

    def __init__(self, vm: Any, network: Network) -> None:
        """The network is left when the stack is closed."""
        self.vm, self.network = vm, network
        self.table: SocketTable = vm.sockets.use_table(partial(_new_table, vm))
        self.home = Home(
            vm.sockets.add_home(self._adopt), network.fd, network.key.encode(),
            network.ident.hex().encode(), random.randrange(FIRST_EPHEMERAL, LAST_EPHEMERAL),
        )  # fmt: skip
        network.seen, network.changed = self._tell_hosts, self._tell_own
        self.ports = {
            protocol: Ports(vm.sockets.sweep, self.home, protocol)
            for each in PROTOCOLS.values()
            for protocol in each
        }
        self.outbox = Outbox(network, self.home)
        self._sink: Sink | None = None
        self._links: Links | None = None
        self._lock = threading.Lock()
        self._forwards: list[Forward] = []
        self._closed = False
        self.wires: deque[Wire] = deque(maxlen=4096)
        self._helpers: list[Any] = [self.outbox]
        self._tell_own()
        self._start_name_server()

    def open_gateway(self, options: dict[str, str]) -> None:
        """Let a way lead out of the network, if the options say so. UsageError."""
        self.gateway = gateway.make(self, options)
        if self.gateway is not None:
            self._helpers.append(self.gateway)

    gateway: Gateway | None = None

    def net_log(self) -> list[dict[str, Any]]:
        """What rules about the outside denied."""
        return self.gateway.denied() if self.gateway is not None else []

    def _own(self) -> Fabric:
        return self

    def _adopt(self, state: SocketState) -> Socket:
        """The object for a socket that the engine made."""
        return TYPES[state.kind](self, state.family, state.kind, state.protocol, state)

    def make_first(self, first: bool) -> None:
        """Is this the stack of all processes? The engine then makes the sockets."""
        if first:
            self.table.set_first(self.home)
        elif self._first:
            self.table.set_first(None)
        self._first = first

    _first = False

    def _tell_own(self) -> None:
        """Tell the engine of our host."""
        own = self.network.host
        self.home.set_own(own.ips)
        seen = self.capture is not None
        plain = not (own.down or own.settings or seen) and not self._changed_links()
        self.home.set_state(not self._closed, plain, seen)

    def _tell_hosts(self, stamp: int, hosts: dict[str, Host]) -> None:
        """Tell the engine of the others."""
        self.home.set_neighbours(
            stamp,
            [
                (ip, host.key.encode(), not host.down and not host.settings)
                for host in hosts.values()
                for ip in host.ips
            ],
        )

    def _start_name_server(self) -> None:
        from .names import NameServer

        self._helpers.append(NameServer(self, Address(NAME_SERVER, 53)))

    # --- the stack's interface -------------------------------------------------------------------

    def socket(self, req: Request, family: int, kind: int, protocol: int) -> Made | None:
        """socket(2). **Source**: inet_create() of Linux 6.18."""
        if family == socket.AF_UNIX:
            return None
        plain = kind & SOCK_TYPE_MASK
        if family == socket.AF_NETLINK and not kind & ~SOCK_TYPE_MASK & ~SOCK_FLAGS:
            return self.links().socket(req, kind, protocol)
        if family not in (socket.AF_INET, socket.AF_INET6) or (
            kind & ~SOCK_TYPE_MASK & ~SOCK_FLAGS or plain >= SOCK_MAX
        ):
            raise refusal(family, kind)
        if not 0 <= protocol < IPPROTO_MAX:
            raise fail(errno.EINVAL)
        if plain == socket.SOCK_RAW and protocol:
            raise fail(errno.EPERM)
        if plain not in TYPES:
            raise fail(errno.ESOCKTNOSUPPORT)
        protocols = PROTOCOLS[plain]
        own = protocol or protocols[0]
        if own not in protocols:
            raise fail(errno.EPROTONOSUPPORT)
        made = _socket.socket(socket.AF_UNIX, plain | kind & socket.SOCK_NONBLOCK)
        return Made(made.detach(), TYPES[plain](self, family, plain, own))

    def routes(self) -> Sequence[Route]:
        """Questions about interfaces on sockets of the host."""
        from umvm.modules.net import ifnames

        from . import interfaces

        return [ifnames.route(self.vm, self, lambda req: interfaces.ioctl(self, req))]

    def links(self) -> Links:
        """What netlink knows of this host."""
        with self._lock:
            if self._links is None:
                from .links import Links

                self._links = Links(self)
                self._tell_own()
                self._helpers.append(self._links)
            return self._links

    def proc_net(self, name: str) -> bytes | None:
        """A file of /proc/net."""
        from .procnet import ProcNet

        return ProcNet(self).text(name)

    def _changed_links(self) -> bool:
        """Do routes or addresses count that guests have made?"""
        return self._links is not None and self._links.changed

    def links_changed(self) -> None:
        """A guest has changed a route or an address."""
        self._tell_own()

    def describe(self) -> str:
        """The network and the host's addresses."""
        host = self.network.host
        return f"fabric:{self.network.name} {' '.join(map(text, host.ips))} {host.names[0]}\n"

    def hosts(self) -> str:
        """/etc/hosts: who is on the network now."""
        lines = ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback"]
        for host in self.network.hosts().values():
            names = [f"{name}.{DOMAIN}" for name in host.names] + list(host.names)
            lines += [f"{text(ip)}\t{' '.join(names)}" for ip in host.ips]
        for name, ip in sorted(self.network.added_names().items()):
            lines.append(f"{text(ip)}\t{name}.{DOMAIN} {name}")
        return "\n".join(lines) + "\n"

    def resolv_conf(self) -> str:
        """/etc/resolv.conf: our name server."""
        return f"nameserver {text(NAME_SERVER)}\nsearch {DOMAIN}\noptions edns0\n"

    def close(self) -> None:
        """Leave the network."""
        self._closed = True
        self.make_first(False)
        self._tell_own()
        for wire in self.wires:
            wire.cut()
        for helper in [*self._forwards, *self._helpers]:
            helper.close()
        self._forwards, self._helpers = [], []
        self.network.leave()

    # --- addresses -------------------------------------------------------------------------------

    def is_local(self, ip: bytes) -> bool:
        """Is it an address of this host?"""
        return ip in self.network.host.ips or is_loopback(ip)

    def route(self, ip: bytes) -> tuple[Host, bytes]:
        """The host that has an address, and the address of ours to reach it from.

        **Errors** ENETUNREACH, EHOSTUNREACH; ENETDOWN: the stack was unloaded.
        """
        own = self.network.host
        if self._closed:
            raise fail(errno.ENETDOWN)
        if is_loopback(ip):
            return own, address.LOOPBACK4 if len(ip) == 4 else address.LOOPBACK6
        if ip in own.ips:
            return own, ip
        source = self.source(ip)
        owner = self.network.owner(ip)
        if owner is not None and not owner.down and not self._parted(owner):
            return owner, source
        near = 3 if len(ip) == 4 else 8
        raise fail(errno.EHOSTUNREACH if ip[:near] == source[:near] else errno.ENETUNREACH)

    def source(self, ip: bytes) -> bytes:
        """The address of ours to reach another host from. **Errors** ENETUNREACH; as routes say."""
        own = self.network.host
        if self._closed:
            raise fail(errno.ENETDOWN)
        if is_loopback(ip):
            return address.LOOPBACK4 if len(ip) == 4 else address.LOOPBACK6
        if ip in own.ips:
            return ip
        source = next((mine for mine in own.ips if len(mine) == len(ip)), None)
        if self._links is not None:
            source = self._links.route(ip)
        if source is None or own.down:
            raise fail(errno.ENETUNREACH)
        return source

    def listener(self, to: Address) -> str | None:
        """The name of a listener of this host's that is known to be at an address."""
        return self._known(self.ports[socket.IPPROTO_TCP], to)

    def receivers(self, kind: str, host: Host, to: Address) -> list[str]:
        """Names that a datagram socket at an address may have, the likeliest first.

        None for a link that delays: who sends over it doesn't learn if there was a receiver.
        """
        if self.link_to(host) != PERFECT:
            return []
        if host.key == self.network.key:
            lite = kind == address.LITE
            ports = self.ports[socket.IPPROTO_UDPLITE if lite else socket.IPPROTO_UDP]
            name = self._known(ports, to)
            return [] if name is None else [name]
        ips = (to.ip, ANY4 if len(to.ip) == 4 else ANY6)
        return [address.name(kind, host.key, Address(ip, to.port)) for ip in ips]

    def _known(self, ports: Ports, to: Address) -> str | None:
        """The name of one of our sockets: the last one, or any of those that share a port."""
        exact, other = [], []
        for sock in ports.at(to.port):
            if sock.bound is None or not sock.name:
                continue
            ip = sock.bound.ip
            if ip == to.ip:
                exact.append(sock)
            elif is_any(ip) and (len(ip) == len(to.ip) or (len(ip) == 16 and not sock.v6only)):
                other.append(sock)
        found = exact or other
        if not found:
            return None
        return (random.choice(found) if found[-1].reuseport else found[-1]).name

    def reachable(self, kind: str, host: Host, to: Address) -> str | None:
        """The name of a socket that an address leads to, dead or alive; None: there is none."""
        network = self.network
        of_type = address.TYPES[kind]
        for ip in (to.ip, ANY4 if len(to.ip) == 4 else ANY6):
            name = address.name(kind, host.key, Address(ip, to.port))
            members = network.members(name)
            if members:
                random.shuffle(members)
            for each in (*members, name):
                if network.alive(each, of_type):
                    return each
        return None

    def link_of(self, name: str) -> Link:
        """How the way to the socket of this name is."""
        parsed = address.parse_name(name)
        host = self.network.hosts().get(parsed[0]) if parsed else None
        return PERFECT if host is None else self.link_to(host)

    def link_to(self, host: Host) -> Link:
        """How the way to a host is."""
        own = self.network.host
        way = PERFECT if self.capture is None else PERFECT._replace(seen=True)
        if host.key == own.key or not (host.settings or own.settings):
            return way
        for settings in (own.settings, host.settings, *self._between(host)):
            way = way.with_other(link.of(settings))
        return way

    def _between(self, host: Host) -> list[dict[str, Any]]:
        """Settings for the way between our host and another one alone."""
        own = self.network.host
        pairs = ((own, host), (host, own))
        return [one.settings.get("to", {}).get(other.key, {}) for one, other in pairs]

    def _parted(self, host: Host) -> bool:
        """Is the way to this host cut?"""
        return any(settings.get("down") for settings in self._between(host))

    def is_joined(self, key: str) -> bool:
        """Can the host with this key be reached at all?"""
        host = self.network.hosts().get(key)
        return host is not None and not host.down and not self._parted(host)

    # --- datagrams -------------------------------------------------------------------------------

    def sink(self) -> Sink:
        """Where datagrams go that nobody takes."""
        with self._lock:
            if self._sink is None:
                self._sink = Sink(self)
                self._helpers.append(self._sink)
            return self._sink

    def is_broadcast(self, ip: bytes) -> bool:
        """255.255.255.255, or the last address of the host's subnet."""
        own = self.network.host.ips[0]
        return ip == BROADCAST or (len(own) == 4 and ip == own[:3] + b"\xff")

    def group_name(self, group: Address) -> str:
        """The name that the members of a multicast group share."""
        return f"m.{group.ip.hex()}.{group.port:x}"

    def group_members(self, group: Address) -> list[str]:
        """The sockets in a group."""
        return self.network.members(self.group_name(group))

    def listening_everywhere(self, to: Address) -> list[str]:
        """The sockets that a broadcast reaches."""
        found = []
        for key in self.network.hosts():
            for ip in (to.ip, ANY4):
                name = address.name(address.DATAGRAM, key, Address(ip, to.port))
                found += self.network.members(name) or [name]
        return found

    def ip_of(self, key: str, size: int, seen_by: Address | None) -> bytes:
        """The address of a host to show as a sender's; `size` 4 or 16 bytes."""
        if key == self.network.key:
            if seen_by is not None and seen_by.ip in self.network.host.ips:
                return seen_by.ip
            return address.LOOPBACK4 if size == 4 else address.LOOPBACK6
        host = self.network.hosts().get(key)
        ips = host.ips if host is not None else ()
        return next((ip for ip in ips if len(ip) == size), ANY4)


def _new_table(vm: Any, limit: int) -> SocketTable:
    """The table of a VM's sockets, that its engine looks at."""
    table = SocketTable(limit)
    table.set_options(options.TABLE)
    vm.engine.set_socket_table(table)
    return table


def make(vm: Any, argument: str, given: dict[str, str]) -> Fabric:
    """Join a network. UsageError: an option."""
    known = ("ip", "name", "gateway", *gateway.OPTIONS)
    unknown = set(given) - set(known)
    if unknown:
        raise UsageError(f"fabric: unknown option {min(unknown)!r} (there are {', '.join(known)})")
    try:
        ips = [address.packed(each) for each in given.get("ip", "").split(",") if each]
    except ValueError as error:
        raise UsageError(f"fabric: {error}") from None
    for ip in ips:
        if is_loopback(ip) or address.is_any(ip) or address.is_multicast(ip) or ip[0] in (0, 255):
            raise UsageError(f"fabric: a host can't have the address {text(ip)}")
    name = given.get("name") or vm.name
    network = Network(argument or vm.name, vm.name, name, ips)
    vm.init.clean_up(network.leftovers())
    stack = Fabric(vm, network)
    try:
        stack.open_gateway(given)
    except BaseException:
        stack.close()
        raise
    return stack
