"""/proc/net of a host of a virtual network: what its own links, routes and sockets are.

**Source**: proc_net(5), Documentation/networking/proc_net_tcp.rst; get_tcp4_sock() and its like of
Linux 6.18 for the columns.
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network
from typing import TYPE_CHECKING

from umvm.modules.net.netlink_diag import CLOSE, ESTABLISHED, LISTEN
from umvm.modules.net.netlink_things import TABLE_MAIN, Address, Link

from .address import ANY4, ANY6, MAPPED
from .address import Address as Place
from .inet import InetSocket

if TYPE_CHECKING:
    from .stack import Fabric

_TCP, _UDP, _LITE = socket.IPPROTO_TCP, socket.IPPROTO_UDP, socket.IPPROTO_UDPLITE
_HEAD = "local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode"
_HEAD6 = (
    "local_address                         remote_address                        st tx_queue"
    " rx_queue tr tm->when retrnsmt   uid  timeout inode"
)
_DEV = """Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo \
colls carrier compressed
"""
_ROUTE = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT"
_ARP = "IP address       HW type     Flags       HW address            Mask     Device\n"
_UP, _GATEWAY, _HOST, _REJECT, _LOCAL6 = 1, 2, 4, 0x200, 0x80000000
_UNIX_INODE = re.compile(rb"^[0-9a-f]+: (?:[0-9A-F]+ ){5} *(\d+)")


def _words(ip: bytes) -> str:
    """An address as the kernel prints it: 32-bit words of this machine's byte order."""
    return "".join(f"{word:08X}" for word in struct.unpack(f"={len(ip) // 4}I", ip))


class ProcNet:
    """The files of one host."""

    def __init__(self, stack: Fabric) -> None:
        self._stack = stack
        self._files: dict[str, Callable[[], str]] = {
            "tcp": lambda: self._sockets(_TCP, socket.AF_INET),
            "tcp6": lambda: self._sockets(_TCP, socket.AF_INET6),
            "udp": lambda: self._sockets(_UDP, socket.AF_INET),
            "udp6": lambda: self._sockets(_UDP, socket.AF_INET6),
            "udplite": lambda: self._sockets(_LITE, socket.AF_INET),
            "udplite6": lambda: self._sockets(_LITE, socket.AF_INET6),
            "dev": self._dev,
            "route": self._route,
            "ipv6_route": self._route6,
            "if_inet6": self._if_inet6,
            "sockstat": lambda: self._sockstat(socket.AF_INET),
            "sockstat6": lambda: self._sockstat(socket.AF_INET6),
            "arp": lambda: _ARP,
            "raw": lambda: f"  sl  {_HEAD} ref pointer drops\n",
            "raw6": lambda: f"  sl  {_HEAD6} ref pointer drops\n",
            "packet": lambda: "sk               RefCnt Type Proto  Iface R Rmem   User   Inode\n",
        }

    def text(self, name: str) -> bytes | None:
        """The content of a file; None: it is as the kernel's."""
        if name == "unix":
            return self._unix()
        made = self._files.get(name)
        return None if made is None else made().encode()

    # --- sockets ---------------------------------------------------------------------------------

    def _known(self, protocol: int, family: int) -> Iterator[tuple[int, InetSocket]]:
        for inode, sock in self._stack.vm.sockets.of_stack(self._stack):
            if isinstance(sock, InetSocket) and (sock.protocol, sock.family) == (protocol, family):
                yield inode, sock

    def _sockets(self, protocol: int, family: int) -> str:
        stream, four = protocol == _TCP, family == socket.AF_INET
        head = _HEAD if four else _HEAD6
        width = 149 if stream else 127
        head = f"  sl  {head}" if stream or not four else f"   sl  {head}"
        lines = [(head if stream else f"{head} ref pointer drops").ljust(width if four else 0)]
        for number, (inode, sock) in enumerate(self._listed(protocol, family)):
            peer, bound = sock.peer, sock.bound or sock.any()
            state = ESTABLISHED if peer is not None else LISTEN if stream else CLOSE
            ends = (self._end(each or sock.any(), four) for each in (bound, peer))
            columns = f"{' '.join(ends)} {state:02X} 00000000:00000000 00:00000000 00000000"
            uid = os.getuid()
            line = f"{number:{4 if stream else 5}d}: {columns} {uid:5d} {0:8d} {inode}"
            line += " 1 0000000000000000 100 0 0 10 0" if stream else " 2 0000000000000000 0"
            lines.append(line.ljust(width if four else 0))
        return "\n".join(lines) + "\n"

    def _listed(self, protocol: int, family: int) -> list[tuple[int, InetSocket]]:
        """Those that the kernel would list: listeners first."""
        found = [
            each
            for each in self._known(protocol, family)
            if each[1].listening or each[1].peer is not None or protocol != _TCP
            if each[1].bound is not None
        ]
        return sorted(found, key=lambda each: (not each[1].listening, each[0]))

    @staticmethod
    def _end(place: Place, four: bool) -> str:
        ip = place.ip
        if four:
            ip = ip if len(ip) == 4 else ANY4
        elif len(ip) == 4:
            ip = MAPPED + ip if any(ip) else ANY6
        return f"{_words(ip)}:{place.port:04X}"

    def _sockstat(self, family: int) -> str:
        counts = {
            protocol: sum(1 for _ in self._known(protocol, family))
            for protocol in (_TCP, _UDP, _LITE)
        }
        if family == socket.AF_INET6:
            names = (("TCP6", _TCP), ("UDP6", _UDP), ("UDPLITE6", _LITE))
            lines = [f"{name}: inuse {counts[protocol]}" for name, protocol in names]
            return "\n".join([*lines, "RAW6: inuse 0", "FRAG6: inuse 0 memory 0"]) + "\n"
        tcp, used = counts[_TCP], len(self._stack.vm.sockets.of_stack(self._stack))
        return (
            f"sockets: used {used}\nTCP: inuse {tcp} orphan 0 tw 0 alloc {tcp} mem 0\n"
            f"UDP: inuse {counts[_UDP]} mem 0\nUDPLITE: inuse {counts[_LITE]}\n"
            "RAW: inuse 0\nFRAG: inuse 0 memory 0\n"
        )

    def _unix(self) -> bytes | None:
        """The host's, without the sockets that are those of virtual networks."""
        try:
            with open("/proc/net/unix", "rb") as file:
                lines = file.readlines()
        except OSError:
            return None
        sockets = self._stack.vm.sockets
        place = os.fsencode(f"/proc/self/fd/{self._stack.network.fd}/")
        kept = []
        for line in lines:
            found = _UNIX_INODE.match(line)
            ours = found is not None and sockets.known(int(found[1]))
            if not (ours or place in line or b" @umvm" in line):
                kept.append(line)
        return b"".join(kept)

    # --- links, addresses, routes ----------------------------------------------------------------

    def _links(self) -> dict[int, Link]:
        found: dict[int, Link] = self._stack.links().state.links
        return found

    def _dev(self) -> str:
        text = _DEV
        for link in self._links().values():
            packets_in, packets_out, bytes_in, bytes_out = link.counters
            text += (
                f"{link.name:>6s}: {bytes_in:7d} {packets_in:7d} {0:4d} {0:4d} {0:4d} {0:5d}"
                f" {0:10d} {0:9d} {bytes_out:8d} {packets_out:7d} {0:4d} {0:4d} {0:4d} {0:5d}"
                f" {0:7d} {0:10d}\n"
            )
        return text

    def _if_inet6(self) -> str:
        links, text = self._links(), ""
        for found in self._stack.links().state.addresses:
            if found.local.version == 6 and found.index in links:
                text += (
                    f"{found.local.packed.hex()} {found.index:02x} {found.prefix:02x}"
                    f" {self._scope(found):02x} 80 {links[found.index].name:>8s}\n"
                )
        return text

    @staticmethod
    def _scope(found: Address) -> int:
        if found.local.is_loopback:
            return 0x10
        return 0x20 if found.local.is_link_local else 0

    def _route(self) -> str:
        lines, links = [_ROUTE.ljust(127)], self._links()
        for route in self._stack.links().state.routes:
            if route.table != TABLE_MAIN or not isinstance(route.net, IPv4Network):
                continue
            link = links.get(route.oif)
            flags = _UP if link is not None else _UP | _REJECT
            flags |= _GATEWAY if route.gateway is not None else 0
            flags |= _HOST if route.net.prefixlen == 32 else 0
            gateway = route.gateway.packed if route.gateway is not None else ANY4
            net, mask = route.net.network_address.packed, route.net.netmask.packed
            lines.append(
                f"{link.name if link is not None else '*'}\t{_words(net)}\t{_words(gateway)}"
                f"\t{flags:04X}\t0\t0\t{route.metric}\t{_words(mask)}\t0\t0\t0".ljust(127)
            )
        return "\n".join(lines) + "\n"

    def _route6(self) -> str:
        text, links = "", self._links()
        for route in self._stack.links().state.routes:
            if isinstance(route.net, IPv4Network):
                continue
            link = links.get(route.oif)
            local = route.table != TABLE_MAIN
            flags = _UP | (_GATEWAY if route.gateway is not None else 0)
            flags |= (_LOCAL6 if local else 0) | (0x200000 if local else 0)
            gateway = route.gateway.packed if route.gateway is not None else ANY6
            text += (
                f"{route.net.network_address.packed.hex()} {route.net.prefixlen:02x}"
                f" {ANY6.hex()} 00 {gateway.hex()} {route.metric:08x} 00000001 00000000"
                f" {flags:08x} {link.name if link is not None else 'lo':>8s}\n"
            )
        return text
