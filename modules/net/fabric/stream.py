"""TCP: AF_UNIX stream sockets.

A listener's socket has a name in the network's directory, one that connects an abstract name that
tells both ends of the connection (address.py). A connect succeeds or fails at once, as it does
between AF_UNIX sockets; one that must not block is told that it is in progress when it is done.
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

from . import address, message
from .address import ANY4, ANY6, STREAM, Address, Tuple, fail, is_any
from .forward import connect
from .inet import DONE, InetSocket, signed
from .link import PERFECT, Link, Wire
from .outbox import duplicate

if TYPE_CHECKING:
    import _socket

    from core_accel.fabric import SocketState
    from umvm import Request

    from .network import Host
    from .stack import Fabric

BACKLOG = 4096
"""What listeners get at least: a connect can't wait for room without holding up others."""
_FLAGS = socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
_TRIES = 64


class Stream(InetSocket):
    """A TCP socket."""

    def __init__(
        self,
        stack: Fabric,
        family: int,
        kind: int,
        protocol: int,
        state: SocketState | None = None,
    ) -> None:
        super().__init__(stack, family, kind, protocol, state)
        self._names: list[str] = []
        self._shares = False

    @property
    def _called(self) -> Address | None:
        """Whom its name tells: the first that it tried to connect to."""
        found = self.state.called
        return None if found is None else Address(*found)

    @_called.setter
    def _called(self, value: Address) -> None:
        self.state.called = value

    @property
    def name(self) -> str:
        """The name of a listener's socket; empty: it isn't one."""
        return self._names[0] if self._names else ""

    # --- the listening side ----------------------------------------------------------------------

    def bind(self, req: Request) -> Reply:
        """bind(2). The kernel learns of it with listen or connect."""
        wanted = self.own_address(req)
        with self.lock:
            if self.bound is not None or self.peer is not None:
                raise fail(errno.EINVAL)
            self.stack.ports[self.protocol].claim(self, wanted)
        return DONE

    def listen(self, req: Request) -> Reply:
        """listen(2)."""
        ports = self.stack.ports[self.protocol]
        with self.lock, self.copy(req) as copy:
            if self.peer is not None:
                raise fail(errno.EINVAL)
            if not self.listening:
                bound = self.bound or ports.claim(self, self.any())
                self.listening = True
                try:
                    ports.recheck(self, bound)
                    self._publish(copy, bound)
                except OSError:
                    self.listening = False
                    raise
            copy.listen(max(BACKLOG, signed(req.args[1])))
        return DONE

    def _publish(self, copy: _socket.socket, bound: Address) -> None:
        """Let the listener be found under its address; a dual-stack one under both."""
        network = self.stack.network
        names = [address.name(STREAM, network.key, bound)]
        if self.family == socket.AF_INET6 and is_any(bound.ip) and not self.v6only:
            names = [
                address.name(STREAM, network.key, Address(ip, bound.port)) for ip in (ANY6, ANY4)
            ]
        first = names[0]
        if self.reuseport:
            self._shares = True
            self.stack.home.share(1)
            first = f"{names[0]}~{os.fstat(copy.fileno()).st_ino}"
        network.unlink(first)
        copy.bind(network.place(first))
        self._names = [first]
        for name in names:
            if self.reuseport:
                self._names.append(network.join_group(name, first))
            elif name != first:
                network.unlink(name)
                os.link(first, name, src_dir_fd=network.fd, dst_dir_fd=network.fd)
                self._names.append(name)

    def accept(self, req: Request, flags: int) -> Reply | None:
        """accept(2), accept4(2)."""
        if flags & ~_FLAGS:
            raise fail(errno.EINVAL)
        with self.copy(req) as copy:
            if not self.listening or not os.get_blocking(copy.fileno()):
                return self._accepted(req, flags, *copy._accept())  # type: ignore[attr-defined]
            found = self._accept_now(copy, message.MOMENT)
            if found is not None:
                return self._accepted(req, flags, *found)
            timeout = message.timeout_of(copy)
            kept = duplicate(copy)

        def attempt() -> Reply | None:
            found = self._accept_now(kept)
            return None if found is None else self._accepted(req, flags, *found)

        return wait(
            self.stack.vm, req, kept.fileno(), select.POLLIN, attempt,
            lambda: Reply.error(ERESTARTSYS), kept.close, timeout,
        )  # fmt: skip

    def _accept_now(self, copy: _socket.socket, patience: int = 0) -> tuple[int, object] | None:
        """A connection that is there, or comes within some ms.

        The lock keeps others, who all are here, from taking it.
        """
        if not self.state.begin_accept():
            return None
        try:
            if not message.readable(copy, patience):
                return None
            found: tuple[int, object] = copy._accept()  # type: ignore[attr-defined]
            return found
        finally:
            self.state.end_accept()

    def _accepted(self, req: Request, flags: int, fd: int, named: object) -> Reply:
        call = address.parse_call(named, self.stack.network.ident)
        if call is None:  # nobody of this network
            os.close(fd)
            raise fail(errno.ECONNABORTED)
        new = Stream(self.stack, self.family, self.kind, self.protocol)
        new.bound, new.peer, new.state.reuse = call.server, call.client, self.reuse
        new.options.inherit(self.options)
        try:
            if req.args[1]:
                data = address.pack(self.family, call.client)
                address.write(req, req.args[1], req.args[2], data)
            if flags & socket.SOCK_NONBLOCK:
                os.set_blocking(fd, False)
            self.stack.vm.sockets.add(fd, new)
        except OSError:
            os.close(fd)
            raise
        return Reply.fd(fd, bool(flags & socket.SOCK_CLOEXEC))

    # --- the connecting side ---------------------------------------------------------------------

    def connect(self, req: Request) -> Reply:
        """connect(2). **Errors** ECONNREFUSED, ENETUNREACH, EHOSTUNREACH, EISCONN…"""
        to = address.read(req, req.args[1], signed(req.args[2]), self.family)
        with self.lock:
            if self.state.in_progress and to is not None:
                self.state.in_progress = False
                return DONE
            if self.peer is not None or self.listening:
                raise fail(errno.EISCONN)
            if to is None:
                return DONE
            if is_any(to.ip):
                to = Address(address.LOOPBACK4 if len(to.ip) == 4 else address.LOOPBACK6, to.port)
            if len(to.ip) == 4 and self.family == socket.AF_INET6 and self.v6only:
                raise fail(errno.ENETUNREACH)
            gateway = self.stack.gateway
            if gateway is not None and gateway.leads_to(to.ip):
                return gateway.connect(req, self, to, self.stack.source(to.ip))
            host, source = self.stack.route(to.ip)
            if self.bound is not None and not is_any(self.bound.ip):
                source = self.bound.ip
                if len(source) != len(to.ip):
                    raise fail(errno.EINVAL)
            if not self._connect(req, host, source, to):
                raise fail(errno.ECONNREFUSED)
            self.peer = to
            if self.state.in_progress:
                raise fail(errno.EINPROGRESS)
        return DONE

    def _connect(self, req: Request, host: Host, source: bytes, to: Address) -> bool:
        """Connect in the kernel; False: nobody listens."""
        network = self.stack.network
        link = self.stack.link_to(host)
        if link != PERFECT:
            return self._connect_slowly(req, link, source, to)
        name = self.stack.listener(to) if host.key == network.key else None
        known = name is not None
        if name is None:
            name = self.stack.reachable(STREAM, host, to)
        if name is None:
            return False
        with self.copy(req) as copy:
            self._name(copy, source, to)
            try:
                copy.connect(network.place(name))
                self._tell(copy)
                return True
            except (ConnectionRefusedError, FileNotFoundError):
                pass
            if known:  # it is gone, which nobody has told us; there may be another one
                self.stack.vm.sockets.sweep()
                name = self.stack.reachable(STREAM, host, to)
                if name is not None:
                    copy.connect(network.place(name))
                    self._tell(copy)
                    return True
        return False

    def _connect_slowly(self, req: Request, link: Link, source: bytes, to: Address) -> bool:
        """Connect by way of the supervisor, which holds data up."""
        port = self.bound.port if self.bound is not None else 0
        try:
            far = connect(self.stack, to, port)
        except ConnectionRefusedError:
            return False
        network = self.stack.network
        name = f"{network.key}/wire.{far.fileno()}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, self.copy(req) as copy:
            try:
                network.unlink(name)
                listener.bind(network.place(name))
                listener.listen(1)
                copy.connect(network.place(name))
                near = listener.accept()[0]
            except OSError:
                far.close()
                raise
            finally:
                network.unlink(name)
            self._tell(copy)
        call = address.parse_call(far.getsockname(), network.ident)
        assert call is not None
        self._called, self.bound = to, call.client
        seen = self.stack.conversation(call.client, to) if link.seen else None
        self.stack.wires.append(Wire(link, near, far, seen))
        return True

    def kept_copy(self, req: Request) -> _socket.socket:
        """The guest's socket, for an answer that comes later."""
        with self.copy(req) as copy:
            return duplicate(copy)

    def join(
        self,
        copy: _socket.socket,
        source: bytes,
        to: Address,
        ready: dict[Tuple, socket.socket],
        real: socket.socket,
        place: str,
    ) -> None:
        """Connect to the gateway's socket at `place`, which finds `real` in `ready`."""
        if self.peer is not None:
            raise fail(errno.EISCONN)
        self._name(copy, source, to)
        assert self.bound is not None
        ready[Tuple(Address(source, self.bound.port), to)] = real
        copy.connect(self.stack.network.place(place))
        self.peer = to
        self._tell(copy)

    def _tell(self, copy: _socket.socket) -> None:
        """Let one that doesn't block believe that it took some time, as it does with TCP.

        Who polls it already must hear that it can be written to: setting the size of the send
        buffer, to what it was, wakes them (sk_setsockopt() of net/core/sock.c).
        """
        if not os.get_blocking(copy.fileno()):
            self.state.in_progress = True
            size = copy.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
            copy.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size // 2)

    def _name(self, copy: _socket.socket, source: bytes, to: Address) -> None:
        """Give the socket a name that tells the connection. **Errors** EADDRNOTAVAIL."""
        ident, ports = self.stack.network.ident, self.stack.ports[self.protocol]
        if self._called is not None:  # it has got a name by an attempt that failed
            if self._called != to:
                raise fail(errno.ECONNABORTED)
            return
        for _ in range(_TRIES):
            port = self.bound.port if self.bound is not None else ports.free()
            own = Address(source, port)
            try:
                copy.bind(address.call_name(ident, Tuple(own, to)))
            except OSError as error:
                if error.errno != errno.EADDRINUSE or self.bound is not None:
                    raise fail(errno.EADDRNOTAVAIL) from None
                continue
            self._called = to
            self.bound = own
            return
        raise fail(errno.EADDRNOTAVAIL)

    # --- the rest --------------------------------------------------------------------------------

    def sendto(self, req: Request) -> Reply:
        """sendto(2): a connected stream ignores the address."""
        if self.peer is None:
            raise fail(errno.EPIPE)
        return req.rewrite({4: 0, 5: 0})

    def sendmsg(self, req: Request) -> Reply | None:
        """sendmsg(2): as sendto."""
        head = message.Header.read(req, req.args[1])
        if not head.name or not head.namelen:
            return None
        if self.peer is None:
            raise fail(errno.EPIPE)
        block = struct.pack("<QI", 0, 0) + head.raw[12:]
        return req.rewrite({1: (block, [])})

    def recvfrom(self, req: Request) -> Reply | None:
        """recvfrom(2) with room for an address: there is none to store, its size becomes 0."""
        if req.args[5]:
            req.write(req.args[5], struct.pack("<i", 0))
        return req.rewrite({4: 0, 5: 0})

    def recvmsg(self, req: Request) -> Reply | None:
        """recvmsg(2): without an address."""
        head = message.Header.read(req, req.args[1])
        if not head.name:
            return None
        req.write(req.args[1], struct.pack("<QI", 0, 0))
        return None

    def gone(self) -> None:
        """Remove the names."""
        if self._shares:
            self.stack.home.share(-1)
        self.stack.ports[self.protocol].release(self)
        for name in self._names:
            self.stack.network.unlink(name)
