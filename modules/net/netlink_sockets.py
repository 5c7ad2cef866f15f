"""AF_NETLINK sockets of a virtual stack: AF_UNIX pairs whose other end is served here.

SOCK_SEQPACKET, as it keeps datagrams apart, waits where a reader is slow, and ignores the address
that a sender gives. poll, read and send are the kernel's own; the calls that show or take a
sockaddr_nl are answered here.
**Source**: netlink(7), net/netlink/af_netlink.c.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import select
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from umvm import Reply, Request
from umvm.interfaces.network import Made, NetworkStack, Socket
from umvm.syscalls.context import signed
from umvm.vfs.permission import fail

from . import receiving
from .netlink import RouteSession
from .netlink_diag import DiagSession, InetSocket
from .netlink_state import (
    NetState,
)

log = logging.getLogger(__name__)

ROUTE, SOCK_DIAG, UEVENT = 0, 4, 15
"""NETLINK_… protocols that there are."""
SOL_NETLINK = 270
_ADD, _DROP, _PKTINFO, _LIST, _CAP_ACK, _EXT_ACK, _STRICT = 1, 2, 3, 9, 10, 11, 12
_SWITCHES = {_PKTINFO: "pktinfo", 4: "errors", 5: "no_enobufs", 8: "all_nsid", _CAP_ACK: "capped",
             _EXT_ACK: "extended", _STRICT: "strict"}  # fmt: skip
_SO_TYPE, _SO_PROTOCOL, _SO_DOMAIN = 3, 38, 39
_NAME = struct.Struct("=HxxII")
"""struct sockaddr_nl."""
_CMSG = struct.Struct("=QiiI")
_MAX_REQUEST = 1 << 16
_MAX_WAITING = 4096
"""Datagrams kept for a guest that doesn't read; notifications beyond that are lost."""
_GROUPS_MAX = 64


class Session(Protocol):
    """What answers the requests of one netlink socket."""

    portid: int
    groups: set[int]
    strict: bool
    extended: bool
    capped: bool
    deliver: Callable[[bytes], None]

    def handle(self, data: bytes) -> list[bytes]: ...
    def close(self) -> None: ...


class _Silent(DiagSession):
    """Kernel events, of which there are none."""

    def handle(self, data: bytes) -> list[bytes]:
        return []


class NetlinkSocket(Socket):
    """One guest socket."""

    def __init__(
        self, server: Netlink, kind: int, protocol: int, session: Session, end: socket.socket
    ) -> None:
        """`end`: our end of the pair, non-blocking."""
        super().__init__(server.stack, socket.AF_NETLINK, kind, protocol)
        self.session, self.end = session, end
        self.waiting: deque[bytes] = deque()
        self._server = server
        self._peer = (0, 0)
        self._options: dict[str, int] = {}
        self._lock = server.lock
        self.tgid = 0
        session.deliver = self.deliver

    # --- datagrams -------------------------------------------------------------------------------

    def deliver(self, datagram: bytes) -> None:
        """Send to the guest, now or when there is room."""
        with self._lock:
            if len(self.waiting) < _MAX_WAITING:
                self.waiting.append(datagram)
            self.flush()

    def flush(self) -> None:
        """Send what waits, as far as there is room."""
        with self._lock:
            try:
                while self.waiting:
                    self.end.send(self.waiting[0], socket.MSG_NOSIGNAL)
                    self.waiting.popleft()
            except BlockingIOError:
                pass
            except OSError:
                self.waiting.clear()
            self._server.watch(self)

    def serve(self) -> bool:
        """Answer the requests that have arrived. False: the guest has closed its end."""
        with self._lock:
            while True:
                try:
                    data = self.end.recv(_MAX_REQUEST)
                except BlockingIOError:
                    return True
                except OSError:
                    return False
                if not data:
                    return not _hung_up(self.end)
                self._autobind()
                try:
                    answer = self.session.handle(data)
                except Exception:
                    log.exception("a netlink request of process %d", self.tgid)
                    continue
                self.waiting.extend(answer)
                self.flush()

    def close(self) -> None:
        """Both ends are gone."""
        self.session.close()
        self.end.close()

    # --- names -----------------------------------------------------------------------------------

    def _autobind(self) -> None:
        if not self.session.portid:
            self.session.portid = self._server.port(self.tgid)

    def bind(self, req: Request) -> Reply:
        """bind(2)."""
        pid, groups = _name(req, req.args[1], req.args[2])
        with self._lock:
            if self.session.portid:
                if pid != self.session.portid:
                    raise fail(errno.EINVAL)
            elif pid:
                self.session.portid = self._server.port(pid, exactly=True)
            else:
                self._autobind()
            kept = {group for group in self.session.groups if group > 32}
            self.session.groups = kept | {bit + 1 for bit in range(32) if groups >> bit & 1}
        return Reply.value(0)

    def connect(self, req: Request) -> Reply:
        """connect(2): who is sent to without an address."""
        size = signed(req.args[2])
        if size < 2:
            raise fail(errno.EINVAL)
        if struct.unpack("=H", req.read(req.args[1], 2))[0] == socket.AF_UNSPEC:
            self._peer = 0, 0
            return Reply.value(0)
        self._peer = _name(req, req.args[1], req.args[2])
        self._autobind()
        return Reply.value(0)

    def getsockname(self, req: Request) -> Reply:
        """getsockname(2)."""
        self.serve()  # a request that was sent has given it a name
        groups = sum(1 << group - 1 for group in self.session.groups if group <= 32)
        _put_name(req, req.args[1], req.args[2], self.session.portid, groups)
        return Reply.value(0)

    def getpeername(self, req: Request) -> Reply:
        """getpeername(2): the kernel, unless it was connected elsewhere."""
        _put_name(req, req.args[1], req.args[2], *self._peer)
        return Reply.value(0)

    def listen(self, req: Request) -> Reply:
        """**Errors** EOPNOTSUPP, as accept and shutdown."""
        raise fail(errno.EOPNOTSUPP)

    def accept(self, req: Request, flags: int) -> Reply:
        """**Errors** EOPNOTSUPP."""
        raise fail(errno.EOPNOTSUPP)

    def shutdown(self, req: Request) -> Reply:
        """**Errors** EOPNOTSUPP."""
        raise fail(errno.EOPNOTSUPP)

    # --- sending ---------------------------------------------------------------------------------

    def sendto(self, req: Request) -> None:
        """sendto(2): the kernel of this host can be sent to, and nobody else."""
        _check_destination(*_name(req, req.args[4], req.args[5]))

    def sendmsg(self, req: Request) -> None:
        """sendmsg(2)."""
        self._check_message(req, req.args[1])

    def sendmmsg(self, req: Request) -> None:
        """sendmmsg(2)."""
        for index in range(min(req.args[2] & 0xFFFFFFFF, receiving.IOV_MAX)):
            self._check_message(req, req.args[1] + index * receiving.MMSGHDR_SIZE)

    def _check_message(self, req: Request, at: int) -> None:
        name, size, *_ = receiving.MSGHDR.unpack(req.read(at, receiving.MSGHDR.size))
        if name and size:
            _check_destination(*_name(req, name, size))

    # --- receiving -------------------------------------------------------------------------------

    def recvfrom(self, req: Request) -> Reply:
        """recvfrom(2) with room for an address."""
        return receiving.recvfrom(self._server.vm, req, self._take)

    def recvmsg(self, req: Request) -> Reply:
        """recvmsg(2)."""
        return receiving.recvmsg(self._server.vm, req, self._take)

    def recvmmsg(self, req: Request) -> Reply:
        """recvmmsg(2)."""
        return receiving.recvmmsg(self._server.vm, req, self._take)

    def _take(self, copy: socket.socket, flags: int) -> receiving.Received:
        """A datagram; all come from the kernel."""
        self.serve()  # no need to wait for the thread to do it
        look = socket.MSG_PEEK | socket.MSG_TRUNC | socket.MSG_DONTWAIT
        size = copy.recv_into(bytearray(1), 1, look)
        control = b""
        if self._options.get("pktinfo"):
            control = _CMSG.pack(_CMSG.size, SOL_NETLINK, _PKTINFO, 0)
        data = copy.recv(max(size, 1), flags)
        return receiving.Received(data, _NAME.pack(socket.AF_NETLINK, 0, 0), control)

    # --- options ---------------------------------------------------------------------------------

    def setsockopt(self, req: Request) -> Reply | None:
        """setsockopt(2)."""
        _, level, option, at, size, _ = req.args
        if level != SOL_NETLINK:
            return None
        value = struct.unpack("=I", req.read(at, 4))[0] if signed(size) >= 4 else 0
        if option in (_ADD, _DROP):
            if not 0 < value <= _GROUPS_MAX:
                raise fail(errno.EINVAL)
            with self._lock:
                self._autobind()
                (self.session.groups.add if option == _ADD else self.session.groups.discard)(value)
            return Reply.value(0)
        name = _SWITCHES.get(option)
        if name is None:
            raise fail(errno.ENOPROTOOPT)
        self._options[name] = int(bool(value))
        if hasattr(self.session, name):
            setattr(self.session, name, bool(value))
        return Reply.value(0)

    def getsockopt(self, req: Request) -> Reply | None:
        """getsockopt(2)."""
        _, level, option, at, size_at, _ = req.args
        (room,) = struct.unpack("=i", req.read(size_at, 4))
        if level == socket.SOL_SOCKET:
            own = {_SO_TYPE: self.kind, _SO_PROTOCOL: self.protocol, _SO_DOMAIN: self.family}
            if option not in own:
                return None
            data = struct.pack("=I", own[option])
        elif level != SOL_NETLINK:
            raise fail(errno.ENOPROTOOPT)
        elif option == _LIST:
            bits = sum(1 << group - 1 for group in self.session.groups)
            data = bits.to_bytes(_GROUPS_MAX // 8, "little")
        elif option in _SWITCHES:
            data = struct.pack("=I", self._options.get(_SWITCHES[option], 0))
            if room < len(data):
                raise fail(errno.EINVAL)
        else:
            raise fail(errno.ENOPROTOOPT)
        if room < 0:
            raise fail(errno.EINVAL)
        req.write(at, data[:room])
        shown = len(data) if level == SOL_NETLINK else min(room, len(data))
        req.write(size_at, struct.pack("=i", shown))
        return Reply.value(0)

    def gone(self) -> None:
        """No process has it."""
        self._server.drop(self)


class Netlink:
    """The netlink sockets of one stack, all about one `NetState`."""

    def __init__(
        self, vm: Any, stack: NetworkStack, state: NetState,
        sockets: Callable[[], Iterable[InetSocket]] = lambda: (),
    ) -> None:  # fmt: skip
        """`sockets()`: what `ss` shows."""
        self.vm, self.stack, self.state = vm, stack, state
        self._make: dict[int, Callable[[], Session]] = {
            ROUTE: lambda: RouteSession(state, os.getuid()),
            SOCK_DIAG: lambda: DiagSession(sockets),
            UEVENT: _Silent,
        }
        self._open: dict[int, NetlinkSocket] = {}
        self.lock = state.lock  # one for all, as notifications go from one socket to another
        self._poll: select.epoll | None = None
        self._end = -1
        self._high = itertools.count(1)

    def socket(self, req: Request, kind: int, protocol: int) -> Made:
        """socket(AF_NETLINK, …). **Errors** EINVAL, ESOCKTNOSUPPORT, EPROTONOSUPPORT."""
        plain = kind & 0xF
        if plain not in (socket.SOCK_RAW, socket.SOCK_DGRAM):
            raise fail(errno.ESOCKTNOSUPPORT)
        make = self._make.get(protocol)
        if make is None:
            raise fail(errno.EPROTONOSUPPORT)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        theirs.setblocking(not kind & socket.SOCK_NONBLOCK)
        sock = NetlinkSocket(self, plain, protocol, make(), ours)
        sock.tgid = self.vm.procs.tgid(req.tid)
        self._add(sock)
        return Made(theirs.detach(), sock)

    def port(self, wanted: int, exactly: bool = False) -> int:
        """A port that no socket of the stack has, `wanted` if possible. **Errors** EADDRINUSE."""
        with self.lock:
            taken = {sock.session.portid for sock in self._open.values()}
            if wanted not in taken:
                return wanted
            if exactly:
                raise fail(errno.EADDRINUSE)
            return next(p for n in self._high if (p := 0xFFFFF000 - n) not in taken)

    def _add(self, sock: NetlinkSocket) -> None:
        with self.lock:
            if self._poll is None:
                self._poll = select.epoll()
                self._end = os.eventfd(0, os.EFD_CLOEXEC)
                self._poll.register(self._end, select.EPOLLIN)
                threading.Thread(
                    target=self._loop,
                    args=(self._poll, self._end),
                    daemon=True,
                    name="umvm-netlink",
                ).start()
            self._open[sock.end.fileno()] = sock
            self._poll.register(sock.end, select.EPOLLIN)

    def watch(self, sock: NetlinkSocket) -> None:
        """Look for room too while something waits to be sent."""
        with self.lock:
            if self._poll is not None and sock.end.fileno() in self._open:
                self._poll.modify(
                    sock.end, select.EPOLLIN | (select.EPOLLOUT if sock.waiting else 0)
                )

    def drop(self, sock: NetlinkSocket) -> None:
        """A socket is gone."""
        with self.lock:
            if self._open.pop(sock.end.fileno(), None) is not None and self._poll is not None:
                self._poll.unregister(sock.end)
        sock.close()

    def close(self) -> None:
        """The stack is unloaded."""
        with self.lock:
            for sock in list(self._open.values()):
                self.drop(sock)
            if self._poll is not None:
                os.eventfd_write(self._end, 1)  # the thread ends, and closes both
                self._poll = None

    def _loop(self, poll: select.epoll, end: int) -> None:
        while True:
            for fd, events in poll.poll():
                if fd == end:
                    poll.close()
                    os.close(end)
                    return
                sock = self._open.get(fd)
                if sock is None:
                    continue
                if events & select.EPOLLOUT:
                    sock.flush()
                if not sock.serve() or events & select.EPOLLHUP:
                    self.drop(sock)


def _hung_up(end: socket.socket) -> bool:
    poll = select.poll()
    poll.register(end, select.POLLIN)
    return any(events & select.POLLHUP for _, events in poll.poll(0))


def _name(req: Request, at: int, size: int) -> tuple[int, int]:
    """Port and groups of a sockaddr_nl. **Errors** EINVAL, EFAULT."""
    if signed(size) < _NAME.size:
        raise fail(errno.EINVAL)
    family, pid, groups = _NAME.unpack(req.read(at, _NAME.size))
    if family != socket.AF_NETLINK:
        raise fail(errno.EINVAL)
    return pid, groups


def _check_destination(pid: int, groups: int) -> None:
    if groups or pid:  # only root may try to reach another process
        raise fail(errno.EPERM if groups or os.geteuid() else errno.ECONNREFUSED)


def _put_name(req: Request, at: int, size_at: int, pid: int, groups: int) -> None:
    receiving.put_name(req, at, size_at, _NAME.pack(socket.AF_NETLINK, pid, groups))
