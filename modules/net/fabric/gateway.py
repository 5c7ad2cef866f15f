"""The way out of a network: what a host with the option `gateway` can't reach on it, it reaches
through the real machine, under rules.

A stream to the outside is two: the guest's, to a socket of ours, and a real one. A datagram goes by
a real socket that belongs to the guest's; what comes back is sent to the guest by a socket that is
called as the sender.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import threading
import time
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from umvm.modules.net.rules import CONNECT, Where
from umvm.modules.net.rules_calls import Rules
from umvm.modules.net.rules_names import Forwarder, servers_of

from umvm import Reply
from umvm.errors import UsageError

from . import address
from .address import DATAGRAM, Address, Tuple, fail, is_loopback, is_multicast
from .forward import BACKLOG, PIECE, REACH_TIMEOUT, Forward

if TYPE_CHECKING:
    import _socket

    from umvm import Request

    from .datagram import Datagram
    from .stack import Fabric
    from .stream import Stream

OPTIONS = ("allow", "deny", "dns", "log")
IDLE = 60.0
"""Seconds after which the real socket of a guest's is closed."""
_FAMILIES = {4: socket.AF_INET, 16: socket.AF_INET6}


class _Outside:
    """The real datagram socket of a guest's."""

    def __init__(self, size: int) -> None:
        self.real = socket.socket(_FAMILIES[size], socket.SOCK_DGRAM)
        self.real.setblocking(False)
        self.used = time.monotonic()


class Gateway:
    """The way out for the guests of one host."""

    def __init__(self, stack: Fabric, options: dict[str, str]) -> None:
        """Options: those of rules. UsageError, ValueError, OSError: a bad one."""
        self._stack = stack
        self._rules = Rules(stack.vm, options)
        servers, _ = servers_of(options.get("dns", ""))
        self.names = self._rules.forwarder or Forwarder(self._rules.names, servers)
        self._ready: dict[Tuple, socket.socket] = {}
        self._outside: dict[tuple[int, int], _Outside] = {}
        self._lock = threading.Lock()
        self._select = selectors.DefaultSelector()
        self._closed = False
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._place = f"{stack.network.key}/gate"
        listener.bind(stack.network.place(self._place))
        listener.listen(BACKLOG)
        self._relay = Forward(listener, self._reach, "gateway", "the outside")

    def leads_to(self, ip: bytes) -> bool:
        """Is an address outside the network?"""
        own = self._stack.network.host.ips
        near = 3 if len(ip) == 4 else 8
        if is_loopback(ip) or is_multicast(ip) or self._stack.is_broadcast(ip):
            return False
        if any(len(mine) == len(ip) and mine[:near] == ip[:near] for mine in own):
            return False
        return self._stack.network.owner(ip) is None

    def judge(self, req: Request, protocol: str, to: Address) -> None:
        """**Errors** EACCES: a rule forbids it."""
        self._rules.judge(req, Where(CONNECT, protocol, ip_address(to.ip), to.port))

    # --- streams ---------------------------------------------------------------------------------

    def connect(self, req: Request, sock: Stream, to: Address, source: bytes) -> Reply:
        """connect(2) of a stream; answered when the real connection is there, or fails."""
        copy = sock.kept_copy(req)

        def work() -> None:
            try:
                self.judge(req, "tcp", to)
                real = self._real(to)
                try:
                    with sock.lock:
                        sock.join(copy, source, to, self._ready, real, self._place)
                except BaseException:
                    real.close()
                    raise
                reply = Reply.error(errno.EINPROGRESS) if sock.state.in_progress else Reply.value(0)
            except OSError as error:
                reply = Reply.error(error.errno or errno.EHOSTUNREACH)
            finally:
                copy.close()
            req.answer(reply)

        threading.Thread(target=work, daemon=True, name="umvm-gateway").start()
        return Reply.later()

    def _real(self, to: Address) -> socket.socket:
        """A connection of the real machine's. **Errors** of connect(2)."""
        real = socket.socket(_FAMILIES[len(to.ip)], socket.SOCK_STREAM)
        real.settimeout(REACH_TIMEOUT)
        try:
            real.connect((address.text(to.ip), to.port))
        except TimeoutError:
            real.close()
            raise fail(errno.ETIMEDOUT) from None
        except OSError:
            real.close()
            raise
        return real

    def _reach(self, named: Any) -> socket.socket:
        """The real connection for a guest that arrives at our socket. OSError: there is none."""
        call = address.parse_call(named, self._stack.network.ident)
        real = self._ready.pop(call, None) if call is not None else None
        if real is None:
            raise fail(errno.ECONNREFUSED)
        return real

    # --- datagrams -------------------------------------------------------------------------------

    def send(self, sock: Datagram, data: bytes, to: Address) -> None:
        """Send a datagram to the outside. **Errors** of send(2)."""
        key = (id(sock), len(to.ip))
        with self._lock:
            found = self._outside.get(key)
            if found is None:
                self._drop_idle()
                found = self._outside[key] = _Outside(len(to.ip))
                self._select.register(found.real, selectors.EVENT_READ, (sock, found))
                if len(self._outside) == 1:
                    threading.Thread(target=self._receive, daemon=True, name="umvm-out").start()
            found.used = time.monotonic()
        try:
            found.real.sendto(data, (address.text(to.ip), to.port))
        except BlockingIOError:
            pass  # lost

    def _drop_idle(self) -> None:
        now = time.monotonic()
        for key, found in list(self._outside.items()):
            if now - found.used > IDLE or self._closed:
                self._select.unregister(found.real)
                found.real.close()
                del self._outside[key]

    def _receive(self) -> None:
        """Pass on what comes from outside, while there is anybody who waits for it."""
        while True:
            for key, _ in self._select.select(1.0):
                sock, found = key.data
                try:
                    data, sender = found.real.recvfrom(PIECE)
                    self._deliver(sock, data, Address(address.packed(sender[0]), sender[1]))
                    found.used = time.monotonic()
                except (OSError, ValueError):
                    continue
            with self._lock:
                self._drop_idle()
                if not self._outside:
                    return

    def _deliver(self, sock: Datagram, data: bytes, sender: Address) -> None:
        if sock.name:
            outbox = self._stack.outbox
            with outbox.speaking_as(DATAGRAM, sender, "g") as voice:
                outbox.send(voice, data, sock.name)

    def open_for(self, sock: Datagram, copy: _socket.socket, to: Address) -> None:
        """Lead a guest's connected socket to one of ours, which knows where it goes."""
        line = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        network = self._stack.network
        name = f"{address.name(DATAGRAM, network.key, to)}~g{os.fstat(line.fileno()).st_ino}"
        line.bind(network.place(name))
        copy.connect(network.place(name))
        network.unlink(name)
        real = socket.socket(_FAMILIES[len(to.ip)], socket.SOCK_DGRAM)
        real.connect((address.text(to.ip), to.port))
        threading.Thread(
            target=self._line, args=(sock, line, real), daemon=True, name="umvm-line"
        ).start()

    def _line(self, sock: Datagram, line: socket.socket, real: socket.socket) -> None:
        """Move what a connected socket sends and gets, until it has been idle for long."""
        with line, real, selectors.DefaultSelector() as select:
            select.register(line, selectors.EVENT_READ)
            select.register(real, selectors.EVENT_READ)
            used = time.monotonic()
            while not self._closed and time.monotonic() - used < IDLE:
                for key, _ in select.select(IDLE):
                    used = time.monotonic()
                    try:
                        if key.fileobj is line:
                            real.send(line.recv(PIECE))
                        else:
                            data = real.recv(PIECE)
                            line.sendto(data, self._stack.network.place(sock.name))
                    except ConnectionRefusedError:
                        sock.error = errno.ECONNREFUSED
                    except OSError:
                        if key.fileobj is line and not os.path.exists(
                            self._stack.network.path / sock.name
                        ):
                            return

    # --- names -----------------------------------------------------------------------------------

    def ask(self, query: bytes) -> bytes | None:
        """What the real machine's nameservers say."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(REACH_TIMEOUT)
            try:
                sock.sendto(query, ("127.0.0.1", self.names.port))
                return sock.recv(PIECE)
            except OSError:
                return None

    def denied(self) -> list[dict[str, Any]]:
        """What rules denied."""
        denied: list[dict[str, Any]] = self._rules.denials.last()
        return denied

    def close(self) -> None:
        """End it; connections are cut."""
        self._closed = True
        self._relay.close()
        if self.names is not self._rules.forwarder:
            self.names.close()
        self._rules.close()
        self._stack.network.unlink(self._place)


def make(stack: Fabric, options: dict[str, str]) -> Gateway | None:
    """The gateway that options of a fabric ask for; they are taken out. UsageError."""
    wanted = options.pop("gateway", "off")
    rules = {key: options.pop(key) for key in OPTIONS if key in options}
    if wanted not in ("on", "off"):
        raise UsageError(f"fabric: gateway is on or off, not {wanted!r}")
    if wanted == "off":
        if rules:
            raise UsageError(f"fabric: {min(rules)} needs gateway=on")
        return None
    try:
        return Gateway(stack, rules)
    except ValueError as error:
        raise UsageError(f"fabric: {error}") from error
