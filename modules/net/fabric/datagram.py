"""UDP: AF_UNIX datagram sockets.

A bound socket has a name in the network's directory, and the supervisor sends on the guest's own
socket, so that the receiver learns from whom. The name of one that is bound to any address doesn't
tell which of its host's addresses it used: seen from the same host it was the loopback one. Where
that isn't so, a socket of ours with a more exact name sends in its place.

A connected one is connected in the kernel too, so that read, write and poll work as they are: to
the peer's socket, or to the host's sink (sink.py) while nobody is there.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import TYPE_CHECKING

from umvm import Reply

from . import address, ancillary, groups, message, options
from .address import ANY4, DATAGRAM, LITE, Address, fail, is_any, is_multicast
from .ancillary import Traffic
from .inet import DONE, signed
from .link import PERFECT
from .outbox import Fate
from .receive import Receiver

if TYPE_CHECKING:
    import _socket

    from core_accel.fabric import SocketState
    from umvm import Request

    from .gateway import Gateway
    from .stack import Fabric

MAX_DATA4, MAX_DATA6 = 65507, 65527
_KEEP_FLAGS = socket.MSG_PEEK
_FULL = (errno.EAGAIN, errno.ENOBUFS)
_NOBODY = (errno.ECONNREFUSED, errno.ENOENT)


class Datagram(Receiver):
    """A UDP socket."""

    def __init__(
        self,
        stack: Fabric,
        family: int,
        kind: int,
        protocol: int,
        state: SocketState | None = None,
    ) -> None:
        super().__init__(stack, family, kind, protocol, state)
        self._shares = False
        self._names: list[str] = []
        self._groups: set[bytes] = set()
        self.name = ""
        self.letter = DATAGRAM if protocol == socket.IPPROTO_UDP else LITE

    # --- addresses -------------------------------------------------------------------------------

    def bind(self, req: Request) -> Reply:
        """bind(2)."""
        wanted = self.own_address(req)
        with self.lock, self.copy(req) as copy:
            if self.bound is not None:
                raise fail(errno.EINVAL)
            self._bind(copy, wanted)
        return DONE

    def other_local(self, ip: bytes) -> bool:
        """Groups and broadcast addresses can be bound to."""
        return is_multicast(ip) or self.stack.is_broadcast(ip)

    def _bind(self, copy: _socket.socket, wanted: Address) -> None:
        """Claim the port and be found under the address."""
        bound = self.stack.ports[self.protocol].claim(self, wanted)
        network = self.stack.network
        names = [address.name(self.letter, network.key, bound)]
        if self.family == socket.AF_INET6 and is_any(bound.ip) and not self.v6only:
            other = Address(ANY4, bound.port)
            names.append(address.name(self.letter, network.key, other))
        shared = self.reuse or self.reuseport
        self.name = names[0]
        if self.reuseport:
            self._shares = True
            self.stack.home.share(1)
        if shared:
            self.name += f"~{os.fstat(copy.fileno()).st_ino}"
        network.unlink(self.name)
        copy.bind(network.place(self.name))
        self._names = [self.name]
        for name in names:
            if self.reuseport:
                self._names.append(network.join_group(name, self.name))
            elif name != self.name:  # the socket bound last is the one that is found
                network.unlink(name)
                os.link(self.name, name, src_dir_fd=network.fd, dst_dir_fd=network.fd)
                self._names.append(name)
        for group in self._groups:
            self._enter(group)

    def _bind_any(self, copy: _socket.socket) -> None:
        with self.lock:
            if self.bound is None:
                self._bind(copy, self.any())

    def connect(self, req: Request) -> Reply | None:
        """connect(2): whom to send to, and to receive from only."""
        to = address.read(req, req.args[1], signed(req.args[2]), self.family)
        with self.copy(req) as copy:
            if to is None:
                self.peer = None
                return None  # the kernel disconnects it
            if is_any(to.ip):
                to = Address(address.LOOPBACK4 if len(to.ip) == 4 else address.LOOPBACK6, to.port)
            if self.stack.is_broadcast(to.ip) and not self.broadcast:
                raise fail(errno.EACCES)
            if len(to.ip) == 4 and self.family == socket.AF_INET6 and self.v6only:
                raise fail(errno.ENETUNREACH)
            gateway = self.stack.gateway
            if gateway is not None and gateway.leads_to(to.ip):
                return self._connect_outside(req, copy, to, gateway)
            many = self._is_many(to.ip)
            host, source = self.stack.route(self.stack.network.host.ips[0] if many else to.ip)
            with self.lock:
                if self.bound is None:
                    self._bind(copy, Address(source, 0))
            assert self.bound is not None
            direct = not many and self.stack.link_to(host) == PERFECT
            name = self.stack.reachable(self.letter, host, to) if direct else None
            if name is not None:
                try:
                    copy.connect(self.stack.network.place(name))
                except OSError as error:
                    if error.errno not in (*_NOBODY, errno.EPERM):
                        raise
                    name = None
            if name is None:
                copy.connect(self.stack.sink().path)
            self.peer = to
            if is_any(self.bound.ip):
                self.state.shown = (source, self.bound.port)
        return DONE

    def _connect_outside(
        self, req: Request, copy: _socket.socket, to: Address, gateway: Gateway
    ) -> Reply:
        source = self.stack.source(to.ip)
        gateway.judge(req, "udp", to)
        with self.lock:
            if self.bound is None:
                self._bind(copy, Address(source, 0))
        gateway.open_for(self, copy, to)
        self.peer = to
        assert self.bound is not None
        if is_any(self.bound.ip):
            self.state.shown = (source, self.bound.port)
        return DONE

    def getsockname(self, req: Request) -> Reply:
        """getsockname(2)."""
        shown = (self.state.shown if self.peer else None) or self.bound or self.any()
        packed = address.pack(self.family, Address(*shown))
        address.write(req, req.args[1], req.args[2], packed)
        return DONE

    def _is_many(self, ip: bytes) -> bool:
        return is_multicast(ip) or self.stack.is_broadcast(ip)

    # --- sending ---------------------------------------------------------------------------------

    def sendto(self, req: Request) -> Reply | None:
        """sendto(2) with an address."""
        to = self._target(req, req.args[4], signed(req.args[5]))
        size = req.args[2]
        if size > (MAX_DATA4 if len(to.ip) == 4 else MAX_DATA6):
            raise fail(errno.EMSGSIZE)
        data = req.read(req.args[1], size)
        with self.copy(req) as copy:
            self._judge(req, to)
            self.send(copy, data, to, ancillary.sent(self, req, None))
        return Reply.value(size)

    def sendmsg(self, req: Request) -> Reply | None:
        """sendmsg(2); without an address it is the kernel's, but for its control messages."""
        head = message.Header.read(req, req.args[1])
        if not head.name or not head.namelen:
            if not head.controllen:
                return None
            if self.peer is None:
                raise fail(errno.EDESTADDRREQ)
        data, to = self._message(req, head)
        with self.copy(req) as copy:
            self._judge(req, to)
            self.send(copy, data, to, ancillary.sent(self, req, head))
        return Reply.value(len(data))

    def _message(self, req: Request, head: message.Header) -> tuple[bytes, Address]:
        named = head.name and head.namelen
        to = self._target(req, head.name, head.namelen) if named else self.peer
        if to is None:
            raise fail(errno.EDESTADDRREQ)
        data = head.gather(req)
        if len(data) > (MAX_DATA4 if len(to.ip) == 4 else MAX_DATA6):
            raise fail(errno.EMSGSIZE)
        return data, to

    def sendmmsg(self, req: Request) -> Reply | None:
        """sendmmsg(2)."""
        sent = 0
        with self.copy(req) as copy:
            for index in range(min(req.args[2] & 0xFFFFFFFF, message.UIO_MAXIOV)):
                at = req.args[1] + message.MMSGHDR_SIZE * index
                try:
                    head = message.Header.read(req, at)
                    data, to = self._message(req, head)
                    self._judge(req, to)
                    self.send(copy, data, to, ancillary.sent(self, req, head))
                    req.write(at + message.MSGHDR.size, struct.pack("<I", len(data)))
                except OSError:
                    if not sent:
                        raise
                    break
                sent += 1
        return Reply.value(sent)

    def _target(self, req: Request, pointer: int, size: int) -> Address:
        to = address.read(req, pointer, size, self.family)
        if to is None and self.family == socket.AF_INET:
            data = req.read(pointer, address.SOCKADDR_IN)  # AF_UNSPEC is taken for AF_INET
            to = Address(data[4:8], struct.unpack_from(">H", data, 2)[0])
        if to is None:
            raise fail(errno.EINVAL)
        if not to.port:
            raise fail(errno.EINVAL)
        if is_any(to.ip):
            to = Address(address.LOOPBACK4 if len(to.ip) == 4 else address.LOOPBACK6, to.port)
        return to

    def send(self, copy: _socket.socket, data: bytes, to: Address, traffic: Traffic) -> None:
        """Send one datagram, from `copy`. It is lost without an error where UDP's would be."""
        if self.error:
            error, self.error = self.error, 0
            raise fail(error)
        if self.bound is None:
            self._bind_any(copy)
        if self.stack.capture is not None:
            self._show(data, to)
        if is_multicast(to.ip):
            self._send_many(copy, data, to, traffic, self.stack.group_members(to))
            return
        if self.stack.is_broadcast(to.ip):
            if not self.broadcast:
                raise fail(errno.EACCES)
            self._send_many(copy, data, to, traffic, self.stack.listening_everywhere(to))
            return
        gateway = self.stack.gateway
        if gateway is not None and gateway.leads_to(to.ip):
            self.stack.source(to.ip)
            gateway.send(self, data, to)
            return
        host, source = self.stack.route(to.ip)
        exact = self._exact(host.key, source, traffic)
        for name in self.stack.receivers(self.letter, host, to):
            if self._send_one(copy, data, name, exact, traffic):
                return
        found = self.stack.reachable(self.letter, host, to)
        if found is not None:
            self._send_one(copy, data, found, exact, traffic)
        elif self.peer == to:
            self.error = errno.ECONNREFUSED  # as an ICMP message would tell a connected socket

    def _judge(self, req: Request, to: Address) -> None:
        """**Errors** EACCES: the rules about the outside forbid it."""
        gateway = self.stack.gateway
        if gateway is not None and gateway.leads_to(to.ip):
            gateway.judge(req, "udp", to)

    def _show(self, data: bytes, to: Address) -> None:
        """Write it down, for who captures what is sent."""
        own = next((ip for ip in self.stack.network.host.ips if len(ip) == len(to.ip)), ANY4)
        source = own if self._is_many(to.ip) else self.stack.source(to.ip)
        if self.bound is not None:
            ip = source if is_any(self.bound.ip) else self.bound.ip
            self.stack.show(Address(ip, self.bound.port), to, data)

    def _exact(self, host: str, source: bytes, traffic: Traffic) -> Address | None:
        """Our address, where our socket's name doesn't tell all that it should."""
        network, bound = self.stack.network, self.bound
        if bound is None:
            return None
        if traffic != ancillary.PLAIN:
            return Address(source, bound.port) if is_any(bound.ip) else bound
        if not is_any(bound.ip) or host != network.key or address.is_loopback(source):
            return None
        return Address(source, bound.port)

    def _send_one(
        self,
        copy: _socket.socket,
        data: bytes,
        name: str,
        exact: Address | None,
        traffic: Traffic,
    ) -> bool:
        """Send to the socket of this name; False: nobody has it."""
        outbox, link = self.stack.outbox, self.stack.link_of(name)
        if exact is not None:
            with outbox.speaking_as(self.letter, exact, traffic.suffix()) as ours:
                fate = outbox.send_over(link, ours, data, name)
            if fate is not Fate.REFUSED:
                return fate is Fate.SENT
        # as well if it is connected to our own socket, and to nobody else's
        return outbox.send_over(link, copy, data, name) is not Fate.NOBODY

    def _send_many(
        self,
        copy: _socket.socket,
        data: bytes,
        to: Address,
        traffic: Traffic,
        names: list[str],
    ) -> None:
        own = next((ip for ip in self.stack.network.host.ips if len(ip) == len(to.ip)), None)
        if own is None or self.stack.network.host.down:
            raise fail(errno.ENETUNREACH)
        loop = self.options.get((options.SOL_IP, options.IP_MULTICAST_LOOP), 1)
        for name in names:
            parsed = address.parse_name(name)
            if parsed is None:
                continue
            same = parsed[0] == self.stack.network.key
            if not same and not self.stack.is_joined(parsed[0]):
                continue
            if same and not loop and is_multicast(to.ip):
                continue
            exact = self._exact(parsed[0], own, traffic)
            self._send_one(copy, data, name, exact, traffic)

    # --- groups ----------------------------------------------------------------------------------

    def special_option(
        self, req: Request, level: int, number: int, pointer: int, size: int
    ) -> Reply | None:
        """Multicast groups."""
        if level == options.SOL_IP and number == options.IP_MULTICAST_IF:
            data = req.read(pointer, max(4, min(size, 12)))
            self.options[level, number] = data[4:8] if len(data) >= 8 else data[:4]
            return DONE
        found = groups.change(req, level, number, pointer, size)
        if found is None:
            return None
        group, join = found
        if not is_multicast(group):
            raise fail(errno.EINVAL)
        if join == (group in self._groups):
            raise fail(errno.EADDRINUSE if join else errno.EADDRNOTAVAIL)
        if join:
            self._groups.add(group)
            if self.bound is not None:
                self._enter(group)
        else:
            self._groups.discard(group)
            if self.bound is not None:
                self._leave(group)
        return DONE

    def _enter(self, group: bytes) -> None:
        assert self.bound is not None
        name = self.stack.group_name(Address(group, self.bound.port))
        self._names.append(self.stack.network.join_group(name, self.name))

    def _leave(self, group: bytes) -> None:
        assert self.bound is not None
        name = self.stack.group_name(Address(group, self.bound.port))
        self.stack.network.leave_group(name, self.name)

    def gone(self) -> None:
        """Remove the names."""
        if self._shares:
            self.stack.home.share(-1)
        self.stack.ports[self.protocol].release(self)
        for name in self._names:
            self.stack.network.unlink(name)
