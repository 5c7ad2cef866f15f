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
import select
import socket
import struct
from typing import TYPE_CHECKING

from umvm import Reply
from umvm.syscalls.waiting import ERESTARTSYS, wait

from . import address, message, options
from .address import ANY4, DATAGRAM, Address, fail, is_any, is_multicast
from .inet import DONE, InetSocket, signed
from .outbox import duplicate

if TYPE_CHECKING:
    import _socket

    from umvm import Request

    from .stack import Fabric

MAX_DATA4, MAX_DATA6 = 65507, 65527
_KEEP_FLAGS = socket.MSG_PEEK
_FULL = (errno.EAGAIN, errno.ENOBUFS)
_NOBODY = (errno.ECONNREFUSED, errno.ENOENT)


class Datagram(InetSocket):
    """A UDP socket."""

    def __init__(self, stack: Fabric, family: int, kind: int, protocol: int) -> None:
        super().__init__(stack, family, kind, protocol)
        self._names: list[str] = []
        self._groups: set[bytes] = set()
        self.name = ""

    # --- addresses -------------------------------------------------------------------------------

    def bind(self, req: Request) -> Reply:
        """bind(2)."""
        wanted = address.read(req, req.args[1], signed(req.args[2]), self.family)
        if wanted is None:
            if self.family != socket.AF_INET:
                raise fail(errno.EAFNOSUPPORT)
            wanted = address.read_unspecified(req, req.args[1])
        self.check_local(wanted)
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
        bound = self.stack.ports[socket.SOCK_DGRAM].claim(self, wanted)
        network = self.stack.network
        names = [address.name(DATAGRAM, network.key, bound)]
        if self.family == socket.AF_INET6 and is_any(bound.ip) and not self.v6only:
            other = Address(ANY4, bound.port)
            names.append(address.name(DATAGRAM, network.key, other))
        shared = self.reuse or self.reuseport
        self.name = names[0]
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
            many = self._is_many(to.ip)
            host, source = self.stack.route(self.stack.network.host.ips[0] if many else to.ip)
            with self.lock:
                if self.bound is None:
                    self._bind(copy, Address(source, 0))
            assert self.bound is not None
            name = None if many else self.stack.reachable(DATAGRAM, host, to)
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
                self._shown = Address(source, self.bound.port)
        return DONE

    _shown: Address | None = None
    """What getsockname says once it is connected."""

    def getsockname(self, req: Request) -> Reply:
        """getsockname(2)."""
        shown = (self._shown if self.peer else None) or self.bound or self.any()
        address.write(req, req.args[1], req.args[2], address.pack(self.family, shown))
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
            self.send(copy, data, to)
        return Reply.value(size)

    def sendmsg(self, req: Request) -> Reply | None:
        """sendmsg(2); without an address it is the kernel's, but for its control messages."""
        head = message.Header.read(req, req.args[1])
        if not head.name or not head.namelen:
            if not head.controllen:
                return None
            block = head.raw[:32] + struct.pack("<QQi4x", 0, 0, 0)
            return req.rewrite({1: (block, [])})
        data, to = self._message(req, head)
        with self.copy(req) as copy:
            self.send(copy, data, to)
        return Reply.value(len(data))

    def _message(self, req: Request, head: message.Header) -> tuple[bytes, Address]:
        to = self._target(req, head.name, head.namelen)
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
                    if head.name and head.namelen:
                        data, to = self._message(req, head)
                        self.send(copy, data, to)
                    else:
                        data = head.gather(req)
                        copy.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
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

    def send(self, copy: _socket.socket, data: bytes, to: Address) -> None:
        """Send one datagram, from `copy`. It is lost without an error where UDP's would be."""
        if self.error:
            error, self.error = self.error, 0
            raise fail(error)
        if self.bound is None:
            self._bind_any(copy)
        if is_multicast(to.ip):
            self._send_many(copy, data, to, self.stack.group_members(to))
            return
        if self.stack.is_broadcast(to.ip):
            if not self.broadcast:
                raise fail(errno.EACCES)
            self._send_many(copy, data, to, self.stack.listening_everywhere(to))
            return
        host, source = self.stack.route(to.ip)
        name = self.stack.reachable(DATAGRAM, host, to)
        if name is None:
            if self.peer == to:
                self.error = errno.ECONNREFUSED  # as an ICMP message would tell a connected socket
            return
        self._send_one(copy, data, name, self._exact(host.key, source))

    def _exact(self, host: str, source: bytes) -> Address | None:
        """Our address, where the receiver would take it for another one."""
        network, bound = self.stack.network, self.bound
        if bound is None or not is_any(bound.ip) or host != network.key:
            return None
        return None if address.is_loopback(source) else Address(source, bound.port)

    def _send_one(
        self, copy: _socket.socket, data: bytes, name: str, exact: Address | None
    ) -> None:
        if exact is None:
            self.stack.outbox.send(copy, data, name)
        else:
            with self.stack.outbox.speaking_as(exact) as ours:
                self.stack.outbox.send(ours, data, name)

    def _send_many(self, copy: _socket.socket, data: bytes, to: Address, names: list[str]) -> None:
        own = next((ip for ip in self.stack.network.host.ips if len(ip) == len(to.ip)), None)
        if own is None or self.stack.network.host.down:
            raise fail(errno.ENETUNREACH)
        loop = self.options.get((options.SOL_IP, options.IP_MULTICAST_LOOP), 1)
        for name in names:
            parsed = address.parse_name(name)
            if parsed is None:
                continue
            same = parsed[0] == self.stack.network.key
            if same and not loop and is_multicast(to.ip):
                continue
            self._send_one(copy, data, name, self._exact(parsed[0], own))

    # --- receiving -------------------------------------------------------------------------------

    def recvfrom(self, req: Request) -> Reply | None:
        """recvfrom(2) with room for an address."""
        flags = signed(req.args[3])

        def take(copy: _socket.socket) -> Reply:
            size = req.args[2]
            data, sender = self._receive(copy, flags)
            req.write(req.args[1], data[:size])
            if sender is None:
                req.write(req.args[5], struct.pack("<i", 0))
            else:
                packed = address.pack(self.family, sender)
                address.write(req, req.args[4], req.args[5], packed)
            return Reply.value(len(data) if flags & socket.MSG_TRUNC else min(len(data), size))

        return self._waiting(req, flags, take)

    def recvmsg(self, req: Request) -> Reply | None:
        """recvmsg(2)."""
        head = message.Header.read(req, req.args[1])
        flags = signed(req.args[2])
        if not head.name and not self._wants_control():
            return None
        if flags & socket.MSG_ERRQUEUE:
            raise fail(errno.EAGAIN)
        room = head.room(req)
        return self._waiting(
            req,
            flags,
            lambda copy: Reply.value(self._message_in(req, copy, req.args[1], room, flags)),
        )

    def recvmmsg(self, req: Request) -> Reply | None:
        """recvmmsg(2): waits for the first only, and takes what else is there."""
        flags = signed(req.args[3])
        count = min(req.args[2] & 0xFFFFFFFF, message.UIO_MAXIOV)
        timeout = None
        if req.args[4]:
            seconds, nanos = struct.unpack("<qq", req.read(req.args[4], 16))
            timeout = seconds + nanos / 1e9

        def take(copy: _socket.socket) -> Reply:
            got = 0
            while got < count:
                at = req.args[1] + message.MMSGHDR_SIZE * got
                try:
                    room = message.Header.read(req, at).room(req)
                    size = self._message_in(req, copy, at, room, flags)
                except OSError:
                    if not got:
                        raise
                    break
                req.write(at + message.MSGHDR.size, struct.pack("<I", size))
                got += 1
            return Reply.value(got)

        return self._waiting(req, flags, take, timeout)

    def _message_in(
        self, req: Request, copy: _socket.socket, pointer: int, room: int, flags: int
    ) -> int:
        """Receive into a struct msghdr; what the call returns for it."""
        head = message.Header.read(req, pointer)
        data, sender = self._receive(copy, flags)
        head.scatter(req, data[:room])
        size, told = 0, 0
        if head.name and sender is not None:
            packed = address.pack(self.family, sender)
            req.write(head.name, packed[: head.namelen])
            size = len(packed)
        control = self._control(sender) if head.control else b""
        if len(control) > head.controllen:
            control, told = b"", socket.MSG_CTRUNC
        req.write(head.control, control)
        if len(data) > room:
            told |= socket.MSG_TRUNC
        raw = (head.name, size, head.iov, head.iovlen, head.control, len(control), told)
        req.write(pointer, message.MSGHDR.pack(*raw))
        return len(data) if flags & socket.MSG_TRUNC else min(len(data), room)

    def _wants_control(self) -> bool:
        return bool(
            self.options.get((options.SOL_IP, options.IP_PKTINFO))
            or self.options.get((options.SOL_IPV6, options.IPV6_RECVPKTINFO))
        )

    def _control(self, sender: Address | None) -> bytes:
        """Control messages: IP_PKTINFO, IPV6_PKTINFO."""
        if sender is None or not self._wants_control():
            return b""
        local = self._reached_at(sender)
        index = 1 if address.is_loopback(local) else 2
        if len(local) == 4 and self.options.get((options.SOL_IP, options.IP_PKTINFO)):
            info = struct.pack("<i4s4s", index, local, local)
            return message.cmsg(options.SOL_IP, options.IP_PKTINFO, info)
        ip = address.MAPPED + local if len(local) == 4 else local
        info = struct.pack("<16sI", ip, index)
        return message.cmsg(options.SOL_IPV6, options.IPV6_PKTINFO, info)

    def _reached_at(self, sender: Address) -> bytes:
        """Our address that a datagram was sent to, as far as can be told."""
        if self.bound is not None and not is_any(self.bound.ip):
            return self.bound.ip
        try:
            return self.stack.route(sender.ip)[1]
        except OSError:
            return self.any().ip

    def _receive(self, copy: _socket.socket, flags: int) -> tuple[bytes, Address | None]:
        """One datagram, whole, and its sender."""
        flags = flags & _KEEP_FLAGS | socket.MSG_DONTWAIT
        data, _, _, named = copy.recvmsg(1 << 18, 0, flags)
        parsed = address.parse_name(named) if named else None
        return data, None if parsed is None else self._sender(*parsed)

    def _sender(self, host: str, named: Address) -> Address:
        """The address to show of a sender whose socket has this name."""
        ip = named.ip
        if is_any(ip):
            four = self.family == socket.AF_INET or len(ip) == 4
            if self.bound is not None and not is_any(self.bound.ip):
                four = len(self.bound.ip) == 4
            ip = self.stack.ip_of(host, 4 if four else 16, self.bound)
        return Address(ip, named.port)

    def _waiting(
        self, req: Request, flags: int, take: object, timeout: float | None = None
    ) -> Reply:
        """Receive now, or later where the guest waits."""
        assert callable(take)
        with self.copy(req) as copy:
            if self.error:
                error, self.error = self.error, 0
                raise fail(error)
            try:
                now: Reply = take(copy)
                return now
            except BlockingIOError:
                if flags & socket.MSG_DONTWAIT or not os.get_blocking(copy.fileno()):
                    raise
            timeout = message.timeout_of(copy) if timeout is None else timeout
            kept = duplicate(copy)

        def attempt() -> Reply | None:
            try:
                reply: Reply = take(kept)
                return reply
            except BlockingIOError:
                return None

        return wait(
            self.stack.vm, req, kept.fileno(), select.POLLIN, attempt,
            lambda: Reply.error(ERESTARTSYS), kept.close, timeout,
        )  # fmt: skip

    # --- groups ----------------------------------------------------------------------------------

    def special_option(
        self, req: Request, level: int, number: int, pointer: int, size: int
    ) -> Reply | None:
        """Multicast groups."""
        if level == options.SOL_IP and number == options.IP_MULTICAST_IF:
            data = req.read(pointer, max(4, min(size, 12)))
            self.options[level, number] = data[4:8] if len(data) >= 8 else data[:4]
            return DONE
        found = self._group(req, level, number, pointer, size)
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

    def _group(
        self, req: Request, level: int, number: int, pointer: int, size: int
    ) -> tuple[bytes, bool] | None:
        """(group, join or leave) of an option; None: another option."""
        if level == options.SOL_IP and number in (
            options.IP_ADD_MEMBERSHIP, options.IP_DROP_MEMBERSHIP,
        ):  # fmt: skip
            if size < 8:
                raise fail(errno.EINVAL)
            return req.read(pointer, 4), number == options.IP_ADD_MEMBERSHIP
        if level == options.SOL_IPV6 and number in (
            options.IPV6_JOIN_GROUP, options.IPV6_LEAVE_GROUP,
        ):  # fmt: skip
            if size < 20:
                raise fail(errno.EINVAL)
            return req.read(pointer, 16), number == options.IPV6_JOIN_GROUP
        if number in (options.MCAST_JOIN_GROUP, options.MCAST_LEAVE_GROUP):
            data = req.read(pointer, 136)
            (family,) = struct.unpack_from("<H", data, 8)
            ip = data[12:16] if family == socket.AF_INET else data[16:32]
            return ip, number == options.MCAST_JOIN_GROUP
        return None

    def _enter(self, group: bytes) -> None:
        assert self.bound is not None
        name = self.stack.group_name(Address(group, self.bound.port))
        self._names.append(self.stack.network.join_group(name, self.name))

    def _leave(self, group: bytes) -> None:
        assert self.bound is not None
        link = f"{self.stack.group_name(Address(group, self.bound.port))}+/{self.name}"
        self.stack.network.unlink(link)

    def gone(self) -> None:
        """Remove the names."""
        self.stack.ports[socket.SOCK_DGRAM].release(self)
        for name in self._names:
            self.stack.network.unlink(name)
