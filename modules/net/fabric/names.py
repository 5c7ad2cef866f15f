"""The name server of a host: answers for the names of its network.

**Source**: RFC 1035, RFC 3596.
"""

from __future__ import annotations

import socket
import struct
import threading
from typing import TYPE_CHECKING

from . import address
from .address import DATAGRAM, Address
from .network import DOMAIN

if TYPE_CHECKING:
    from .stack import Fabric

A, PTR, AAAA, OPT, ANY, IN = 1, 12, 28, 41, 255, 1
RESPONSE, AUTHORITATIVE, RECURSION_DESIRED, RECURSION_AVAILABLE = 0x8000, 0x400, 0x100, 0x80
OPCODE, FORMERR, NXDOMAIN, NOTIMP = 0x7800, 1, 3, 4
TTL = 1
BUSY = 64
"""Questions for nameservers outside that may be under way."""
HEADER = struct.Struct(">6H")
_REVERSE4, _REVERSE6 = (b"in-addr", b"arpa"), (b"ip6", b"arpa")


class Question:
    """What a query asks. ValueError: it can't be read."""

    def __init__(self, query: bytes) -> None:
        self.ident, self.flags, count, *_ = HEADER.unpack_from(query)
        if count != 1 or self.flags & RESPONSE:
            raise ValueError("not a query")
        labels, at = [], HEADER.size
        while query[at]:
            if query[at] > 63:
                raise ValueError("compressed")
            labels.append(query[at + 1 : at + 1 + query[at]].lower())
            at += 1 + query[at]
        self.labels = labels
        self.type, self.qclass = struct.unpack_from(">HH", query, at + 1)
        self.raw = query[HEADER.size : at + 5]


class NameServer:
    """A datagram socket of the host, of the supervisor's."""

    bound: Address | None
    v6only = reuse = reuseport = listening = False

    def __init__(self, stack: Fabric, own: Address) -> None:
        self._stack = stack
        self._busy = threading.Semaphore(BUSY)
        self.bound = own
        self.name = address.name(DATAGRAM, stack.network.key, own)
        stack.ports[socket.IPPROTO_UDP].claim(self, own)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(stack.network.place(self.name))
        threading.Thread(target=self._work, daemon=True, name="umvm-names").start()

    def _work(self) -> None:
        while True:
            try:
                query, sender = self._socket.recvfrom(4096)
            except OSError:
                return
            if not sender:
                return
            name = "/".join(str(sender).rsplit("/", 2)[1:])
            try:
                reply = self.answer(query)
            except (ValueError, IndexError, struct.error, OSError):
                continue
            if reply is not None:
                self._stack.outbox.send(self._socket, reply, name)
            elif self._busy.acquire(blocking=False):
                threading.Thread(
                    target=self._ask_outside, args=(query, name), daemon=True, name="umvm-names"
                ).start()

    def _ask_outside(self, query: bytes, name: str) -> None:
        """Answer what only the real machine's nameservers know."""
        try:
            gateway = self._stack.gateway
            reply = None if gateway is None else gateway.ask(query)
            if reply is not None:
                self._stack.outbox.send(self._socket, reply, name)
        except OSError:
            pass  # we are closed
        finally:
            self._busy.release()

    def answer(self, query: bytes) -> bytes | None:
        """The reply to a query; None: those outside may know. ValueError, IndexError, struct.error:
        it can't be read."""
        asked = Question(query)
        code, answers = 0, []
        if asked.flags & OPCODE:
            code = NOTIMP
        elif asked.labels[-2:] in ([*_REVERSE4], [*_REVERSE6]):
            name = self._reverse(asked.labels)
            if name is None and self._stack.gateway is not None:
                return None
            if name is None:
                code = NXDOMAIN
            elif asked.type in (PTR, ANY):
                answers.append((PTR, name))
        else:
            text = b".".join(asked.labels).decode("ascii", "replace")
            ips = self._stack.network.lookup(text)
            outside = not ips and not text.endswith(f".{DOMAIN}") and text != DOMAIN
            if outside and self._stack.gateway is not None:
                return None
            if not ips:
                code = NXDOMAIN
            wanted = {A: (4,), AAAA: (16,), ANY: (4, 16)}.get(asked.type, ())
            answers = [(A if len(ip) == 4 else AAAA, ip) for ip in ips if len(ip) in wanted]
        flags = RESPONSE | AUTHORITATIVE | RECURSION_AVAILABLE
        flags |= asked.flags & (OPCODE | RECURSION_DESIRED) | code
        reply = HEADER.pack(asked.ident, flags, 1, len(answers), 0, 0) + asked.raw
        for kind, data in answers:
            reply += struct.pack(">HHHIH", 0xC000 | HEADER.size, kind, IN, TTL, len(data)) + data
        return reply

    def _reverse(self, labels: list[bytes]) -> bytes | None:
        """The name of an address, as labels."""
        digits = labels[-3::-1]
        if labels[-2] == b"in-addr":
            ip = bytes(int(digit) for digit in digits)
        else:
            ip = bytes.fromhex(b"".join(digits).decode())
        host = self._stack.network.owner(ip)
        if host is None:
            return None
        words = [*host.names[0].encode().split(b"."), DOMAIN.encode()]
        return b"".join(bytes([len(word)]) + word for word in words) + b"\0"

    def close(self) -> None:
        """End the thread."""
        path = self._stack.network.place(self.name)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
                last.sendto(b"", socket.MSG_DONTWAIT, path)
        except OSError:
            pass
        self._socket.close()
        self._stack.network.unlink(self.name)
