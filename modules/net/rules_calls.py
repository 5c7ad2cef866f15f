"""Rules applied to the calls that name an address: connect, bind, sendto, sendmsg, sendmmsg.

The supervisor makes these calls itself, on a copy of the guest's descriptor and with a copy of the
address, so that the address that is used is the one that was judged: what the guest changes in its
memory, or puts under the descriptor's number, meanwhile comes too late. Connections that exist are
never looked at; sends without an address are the kernel's, but for datagram sockets' sendmsg.
**Source**: connect(2), ip(7), udp(7), net/ipv4/udp.c (udp_sendmsg), net/ipv6/udp.c.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import select
import socket
import struct
import threading
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, NamedTuple

from umvm import Reply, Request
from umvm.syscalls.context import signed
from umvm.syscalls.waiting import ERESTARTSYS, wait
from umvm.vfs.permission import fail

from .receiving import nonblocking, timeout_of
from .rules import BIND, CONNECT, IP, Policy, Where, plain
from .rules_dns import Resolvers
from .rules_log import Denials
from .rules_names import DNS, Forwarder, Names, mapped, nameservers, servers_of

log = logging.getLogger(__name__)

INET = (socket.AF_INET, socket.AF_INET6)
_FAMILIES = (socket.AF_UNSPEC, *INET)
_SO_TYPE, _SO_PROTOCOL, _SO_DOMAIN, _SO_SNDTIMEO, _SO_NETNS_COOKIE = 3, 38, 39, 21, 71
_ADDRESS_MAX = 128
"""Bytes of struct sockaddr_storage."""
_MSG_FASTOPEN, _MSG_ZEROCOPY = 0x20000000, 0x4000000
_OWN_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_MMSG_SIZE, _MSG_SIZE, _MANY, _IOV_MAX = 64, 56, 1024, 1024
_DATA_MAX, _CONTROL_MAX = 1 << 17, 1 << 16
_LOOPBACK4 = IPv4Address("127.0.0.1")
_libc = ctypes.CDLL(None, use_errno=True)
_TCP = {0: "tcp", socket.IPPROTO_TCP: "tcp", 262: "tcp"}  # 262: MPTCP
_UDP = {0: "udp", socket.IPPROTO_UDP: "udp", 136: "udp"}  # 136: UDP-Lite
_ICMP = {socket.IPPROTO_ICMP: "icmp", socket.IPPROTO_ICMPV6: "icmp"}
_PROTOCOLS: dict[int, dict[int, str]] = {socket.SOCK_STREAM: _TCP, socket.SOCK_DGRAM: _UDP | _ICMP}


class _Msghdr(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p), ("name_size", ctypes.c_uint32), ("vector", ctypes.c_void_p),
        ("count", ctypes.c_size_t), ("control", ctypes.c_char_p), ("control_size", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    ]  # fmt: skip


class _Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_char_p), ("size", ctypes.c_size_t)]


class Message(NamedTuple):
    """What a send call sends: address (None: none), data, ancillary data, flags."""

    name: bytes | None
    data: bytes
    control: bytes
    flags: int


def protocol_of(kind: int, protocol: int) -> str:
    """tcp, udp, icmp, or empty for any other, from SO_TYPE (or socket(2)'s type) and protocol."""
    return _PROTOCOLS.get(kind, {}).get(protocol, "")


class Rules:
    """The rules of one VM at work."""

    def __init__(self, vm: Any, options: dict[str, str]) -> None:
        """Options: allow, deny, map, dns, log. UsageError, ValueError, OSError: a bad one."""
        self._vm = vm
        self.policy = Policy(
            options.get("allow", ""), options.get("deny", ""), options.get("map", "")
        )
        self.names = Names()
        self.forwarder: Forwarder | None = None
        self._by_host = True
        self.nameservers: set[IP] = set()
        servers, self._by_host = servers_of(options.get("dns", ""))
        self.denials = Denials(options.get("log", ""))
        if self.policy.names or not self._by_host:
            self.forwarder = Forwarder(self.names, servers)
            self.nameservers = {plain(address) for address in nameservers()}
        self._looks_up = any(map(self.policy.exact_names, (self.policy.allow, self.policy.deny)))
        self._here = _namespace()
        self._resolvers = Resolvers(vm)

    def close(self) -> None:
        """The VM ends."""
        if self.forwarder is not None:
            self.forwarder.close()
        self.denials.close()

    # --- judging ---------------------------------------------------------------------------------

    def judge(self, req: Request, where: Where) -> None:
        """**Errors** EACCES: it is denied."""
        if self.forwarder is not None and (denied := self.policy.exact_names(self.policy.deny)):
            self.forwarder.look_up(denied, self._by_host)
        names = self.names.of(where.address)
        why = self.policy.objection(where, names)
        if why and self.forwarder is not None:
            self.forwarder.look_up(self.policy.exact_names(self.policy.allow), self._by_host)
            names = self.names.of(where.address)
            why = self.policy.objection(where, names)
        if why:
            self.denials.add(req.tid, where, names, why)
            raise fail(errno.EACCES)

    def _target(self, copy: socket.socket, name: bytes, sending: bool) -> tuple[IP, int] | None:
        """Where an address leads; None: to no place (the kernel will say what it thinks of it)."""
        domain = _option(copy, _SO_DOMAIN)
        if len(name) < 2:
            return None
        family = struct.unpack_from("=H", name)[0]
        if family == socket.AF_UNSPEC and sending and domain == socket.AF_INET:
            family = socket.AF_INET  # udp_sendmsg takes it for that
        if family == socket.AF_INET and len(name) >= 8:
            port, host = struct.unpack_from("!H4s", name, 2)
            return IPv4Address(host), port
        if family == socket.AF_INET6 and len(name) >= 24:
            port, host = struct.unpack_from("!H4x16s", name, 2)
            return IPv6Address(host), port
        return None

    def _allowed(self, req: Request, copy: socket.socket, name: bytes, sending: bool) -> bytes:
        """The address to use for one that a guest gave. **Errors** EACCES."""
        target = self._target(copy, name, sending)
        if target is None:
            if len(name) >= 2 and struct.unpack_from("=H", name)[0] not in _FAMILIES:
                raise fail(errno.EAFNOSUPPORT)
            return name  # too short, or AF_UNSPEC, which ends a connection
        address, port = plain(target[0]), target[1]
        protocol = protocol_of(_option(copy, _SO_TYPE), _option(copy, _SO_PROTOCOL))
        if protocol in ("tcp", "udp"):
            if port == DNS and self.forwarder is not None and address in self.nameservers:
                return self._address(copy, self.forwarder.port)
            if address.is_loopback:
                name = name[:2] + struct.pack("!H", self.policy.outside(port)) + name[4:]
        self.judge(req, Where(CONNECT, protocol or "other", address, port))
        return name

    def _address(self, copy: socket.socket, port: int) -> bytes:
        """A loopback address of the supervisor's own."""
        if _option(copy, _SO_DOMAIN) == socket.AF_INET:
            return struct.pack("=H", socket.AF_INET) + struct.pack(
                "!H4s8x", port, _LOOPBACK4.packed
            )
        host = mapped(_LOOPBACK4, socket.AF_INET6).packed
        return struct.pack("=H", socket.AF_INET6) + struct.pack("!H4x16s4x", port, host)

    def _copy(self, req: Request) -> socket.socket | None:
        """A copy of the guest's socket, if rules are about it: IP, and the host's network.

        **Errors** EBADF, ENOTSOCK.
        """
        copy = socket.socket(fileno=req.getfd(signed(req.args[0])))
        if copy.family in INET and _namespace(copy) == self._here:
            return copy
        copy.close()
        return None

    # --- the calls -------------------------------------------------------------------------------

    def connect(self, req: Request) -> Reply | None:
        """connect(2)."""
        copy = self._copy(req)
        if copy is None:
            return None
        name = _name(req, copy, req.args[1], req.args[2])
        return self._perhaps_later(req, copy, lambda: self._connect(req, copy, name))

    def _connect(self, req: Request, copy: socket.socket, given: bytes) -> Reply:
        name = self._allowed(req, copy, given, False)
        if copy.type == socket.SOCK_DGRAM:
            number = _connect(copy, name)
            if name != given and not number:
                self._resolvers.answers_to(copy, given, name)
            return _reply(number)
        blocking = not nonblocking(copy)

        def attempt() -> Reply | None:
            number = _connect_briefly(copy, name) if blocking else _connect(copy, name)
            if blocking and number in (errno.EINPROGRESS, errno.EALREADY):
                return None
            return _reply(number)

        if (reply := attempt()) is not None:
            return reply
        keep = socket.socket(fileno=os.dup(copy.fileno()))

        def again() -> Reply | None:
            number = _connect_briefly(keep, name)
            waiting = number in (errno.EINPROGRESS, errno.EALREADY)
            return None if waiting else _reply(number if number != errno.EISCONN else 0)

        timeout = timeout_of(copy)
        number = ERESTARTSYS if timeout is None else errno.EINTR
        return wait(
            self._vm, req, keep.fileno(), select.POLLOUT, again, lambda: Reply.error(number),
            keep.close, timeout, errno.EINPROGRESS,
        )  # fmt: skip

    def bind(self, req: Request) -> Reply | None:
        """bind(2)."""
        copy = self._copy(req)
        if copy is None:
            return None
        with copy:
            name = _name(req, copy, req.args[1], req.args[2])
            target = self._target(copy, name, True)
            if target is not None:
                address, port = target
                protocol = protocol_of(_option(copy, _SO_TYPE), _option(copy, _SO_PROTOCOL))
                if protocol:
                    outside = self.policy.outside(port) if port else 0
                    name = name[:2] + struct.pack("!H", outside) + name[4:]
                if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
                    address = address.ipv4_mapped
                self.judge(req, Where(BIND, protocol or "other", address, port))
            return _reply(_call(_libc.bind, copy, name, len(name)))

    def sendto(self, req: Request) -> Reply | None:
        """sendto(2) with an address."""
        _, data, size, flags, at, name_size = req.args
        copy = self._copy(req) if at else None
        if copy is None:
            return None
        if copy.type == socket.SOCK_STREAM:
            copy.close()
            _no_fast_open(flags)
            return req.rewrite({4: 0, 5: 0})  # TCP ignores it
        name = _name(req, copy, at, name_size)
        text = _data(req, copy, [(data, size)])
        message = Message(name, text, b"", flags & 0xFFFFFFFF)
        return self._perhaps_later(req, copy, lambda: self._send(req, copy, message))

    def sendmsg(self, req: Request) -> Reply | None:
        """sendmsg(2)."""
        copy = self._copy(req)
        if copy is None:
            return None
        if copy.type == socket.SOCK_STREAM:
            copy.close()
            _no_fast_open(req.args[2])
            return None
        message = _message(req, copy, req.args[1], req.args[2])
        return self._perhaps_later(req, copy, lambda: self._send(req, copy, message))

    def sendmmsg(self, req: Request) -> Reply | None:
        """sendmmsg(2)."""
        copy = self._copy(req)
        if copy is None:
            return None
        _, at, count, flags, *_ = req.args
        if copy.type == socket.SOCK_STREAM:
            copy.close()
            _no_fast_open(flags)
            return None
        count = min(count & 0xFFFFFFFF, _MANY)

        def send() -> Reply:
            done = 0
            for place in range(at, at + count * _MMSG_SIZE, _MMSG_SIZE):
                try:
                    message = _message(req, None, place, flags)
                    size = self._send_now(req, copy, message)
                    if size is None and not done:
                        return self._send(req, copy, message, place)
                    if size is None:
                        break
                    req.write(place + _MSG_SIZE, struct.pack("=I", size))
                except OSError:
                    if not done:
                        raise
                    break
                done += 1
            return Reply.value(done)

        return self._perhaps_later(req, copy, send)

    def _send(self, req: Request, copy: socket.socket, message: Message, many: int = 0) -> Reply:
        """Send, or wait for room. `many`: the place of the message for sendmmsg."""

        def done(size: int) -> Reply:
            if not many:
                return Reply.value(size)
            req.write(many + _MSG_SIZE, struct.pack("=I", size))
            return Reply.value(1)

        size = self._send_now(req, copy, message)
        if size is not None:
            return done(size)
        if nonblocking(copy) or message.flags & socket.MSG_DONTWAIT:
            return Reply.error(errno.EAGAIN)
        keep = socket.socket(fileno=os.dup(copy.fileno()))

        def again() -> Reply | None:
            size = self._send_now(req, keep, message)
            return None if size is None else done(size)

        return wait(
            self._vm, req, keep.fileno(), select.POLLOUT, again,
            lambda: Reply.error(ERESTARTSYS), keep.close,
        )  # fmt: skip

    def _send_now(self, req: Request, copy: socket.socket, message: Message) -> int | None:
        """Judge and send one datagram; None: there is no room now. **Errors** of sendmsg(2)."""
        name = message.name
        if name:
            name = self._allowed(req, copy, name, True)
        vector = _Iovec(message.data, len(message.data))
        control = message.control
        header = _Msghdr(
            name or None, len(name or b""), ctypes.addressof(vector), 1, control or None,
            len(control), 0,
        )  # fmt: skip
        flags = message.flags & ~_MSG_ZEROCOPY | _OWN_FLAGS
        size: int = _libc.sendmsg(copy.fileno(), ctypes.byref(header), ctypes.c_int(flags))
        if size >= 0:
            if name and message.name and self.forwarder is not None and name != message.name:
                self._resolvers.answers_to(copy, message.name, name)
            return size
        number = ctypes.get_errno()
        if number == errno.EAGAIN:
            return None
        raise fail(number)

    def _perhaps_later(self, req: Request, copy: socket.socket, work: Callable[[], Reply]) -> Reply:
        """Do a call now, or on a thread of its own if names may have to be looked up for it."""
        if self.forwarder is None or not self._looks_up:
            with copy:
                return work()

        def run() -> None:
            with copy:
                try:
                    reply = work()
                except OSError as error:
                    reply = Reply.error(error.errno or errno.EIO)
                except Exception:
                    log.exception("handling %r", req)
                    reply = Reply.error(errno.EIO)
            req.answer(reply)

        threading.Thread(target=run, daemon=True, name="umvm-rules").start()
        return Reply.later()

    # --- names of mapped ports -------------------------------------------------------------------

    def getsockname(self, req: Request) -> Reply | None:
        """getsockname(2): the guest's own number of a mapped port."""
        return self._show(req, socket.socket.getsockname)

    def getpeername(self, req: Request) -> Reply | None:
        """getpeername(2) of a connection to a mapped port."""
        return self._show(req, socket.socket.getpeername)

    def _show(self, req: Request, ask: Callable[[socket.socket], Any]) -> Reply | None:
        copy = self._copy(req)
        if copy is None:
            return None
        with copy:
            try:
                host, port, *more = ask(copy)
            except OSError:
                return None
            peer = ask is socket.socket.getpeername
            inside = self.policy.inside(port)
            if inside == port or (peer and not ip_address(host.partition("%")[0]).is_loopback):
                return None
            (room,) = struct.unpack("=i", req.read(req.args[2], 4))
            if room < 0:
                raise fail(errno.EINVAL)
            packed = socket.inet_pton(copy.family, host.partition("%")[0])
            name = struct.pack("=H", copy.family) + struct.pack("!H", inside)
            if copy.family == socket.AF_INET:
                name += packed + bytes(8)
            else:
                name += struct.pack("!I", more[0]) + packed + struct.pack("=I", more[1])
            req.write(req.args[1], name[:room])
            req.write(req.args[2], struct.pack("=i", len(name)))
        return Reply.value(0)


# --- helpers --------------------------------------------------------------------------------------


def _option(copy: socket.socket, option: int) -> int:
    return copy.getsockopt(socket.SOL_SOCKET, option)


def _namespace(sock: socket.socket | None = None) -> bytes:
    """The network namespace of a socket, or ours; empty on a kernel before 5.14."""
    own = sock if sock is not None else socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        return own.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
    except OSError:
        return b""
    finally:
        if sock is None:
            own.close()


def _name(req: Request, copy: socket.socket, at: int, size: int) -> bytes:
    """An address in guest memory. **Errors** EINVAL, EFAULT; `copy` is closed then."""
    try:
        if not 0 <= signed(size) <= _ADDRESS_MAX:
            raise fail(errno.EINVAL)
        return req.read(at, signed(size))
    except OSError:
        copy.close()
        raise


def _data(req: Request, copy: socket.socket | None, parts: list[tuple[int, int]]) -> bytes:
    """Data in guest memory, cut where it is longer than any datagram."""
    try:
        text, left = b"", _DATA_MAX
        for at, size in parts:
            piece = req.read(at, min(size, left))
            text += piece
            left -= len(piece)
        return text
    except OSError:
        if copy is not None:
            copy.close()
        raise


def _message(req: Request, copy: socket.socket | None, at: int, flags: int) -> Message:
    """A struct msghdr in guest memory, read once. **Errors** EFAULT, EINVAL, EMSGSIZE, ENOBUFS."""
    try:
        head = struct.unpack("=QI4xQQQQI4x", req.read(at, _MSG_SIZE))
        name_at, name_size, vector, count, control_at, control_size, _ = head
        if count > _IOV_MAX:
            raise fail(errno.EMSGSIZE)
        if control_size > _CONTROL_MAX:
            raise fail(errno.ENOBUFS)
        if signed(name_size) < 0:
            raise fail(errno.EINVAL)
        size = min(name_size, _ADDRESS_MAX)
        name = req.read(name_at, size) if name_at and size else None
        parts = list(struct.iter_unpack("=QQ", req.read(vector, count * 16)))
        control = req.read(control_at, control_size) if control_at else b""
    except OSError:
        if copy is not None:
            copy.close()
        raise
    return Message(name, _data(req, copy, parts), control, flags & 0xFFFFFFFF)


def _no_fast_open(flags: int) -> None:
    """What a host without TCP Fast Open says; programs then use connect."""
    if flags & _MSG_FASTOPEN:
        raise fail(errno.EOPNOTSUPP)


def _call(function: Any, copy: socket.socket, *arguments: object) -> int:
    """Make a call that gives 0 or an error; the errno."""
    return 0 if function(copy.fileno(), *arguments) == 0 else ctypes.get_errno()


def _connect(copy: socket.socket, name: bytes) -> int:
    return _call(_libc.connect, copy, name, len(name))


def _connect_briefly(copy: socket.socket, name: bytes) -> int:
    """connect(2) of a blocking socket that gives EINPROGRESS at once: by a very short timeout.

    O_NONBLOCK would be seen by others who have the socket.
    """
    before = copy.getsockopt(socket.SOL_SOCKET, _SO_SNDTIMEO, 16)
    copy.setsockopt(socket.SOL_SOCKET, _SO_SNDTIMEO, struct.pack("=qq", 0, 1))
    try:
        return _connect(copy, name)
    finally:
        copy.setsockopt(socket.SOL_SOCKET, _SO_SNDTIMEO, before)


def _reply(number: int) -> Reply:
    return Reply.error(number) if number else Reply.value(0)
