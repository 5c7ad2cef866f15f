"""sock_diag answers: what `ss` shows of the sockets of a stack.

**Source**: sock_diag(7), include/uapi/linux/inet_diag.h, net/ipv4/inet_diag.c.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv6Address
from socket import AF_INET, AF_INET6
from typing import NamedTuple

from . import netlink_codec as codec
from .netlink_things import (
    IP,
    NetlinkError,
)

SOCK_DIAG_BY_FAMILY = 20
ESTABLISHED, SYN_SENT, CLOSE, LISTEN = 1, 2, 7, 10
"""States, as in /proc/net/tcp (include/net/tcp_states.h)."""
_REQUEST = struct.Struct("=BBBxI")
_ID_TAIL = struct.Struct("=III")
_TAIL = struct.Struct("=IIIII")
_CHUNK = 3776


class InetSocket(NamedTuple):
    """One socket. `protocol` is IPPROTO_TCP or IPPROTO_UDP; `queued`: bytes to be read, sent."""

    protocol: int
    state: int
    local: tuple[IP, int]
    remote: tuple[IP, int] | None = None
    inode: int = 0
    uid: int = 0
    queued: tuple[int, int] = (0, 0)

    @property
    def family(self) -> int:
        return AF_INET if self.local[0].version == 4 else AF_INET6


class DiagSession:
    """The NETLINK_SOCK_DIAG side of one guest socket."""

    def __init__(self, sockets: Callable[[], Iterable[InetSocket]] = lambda: ()) -> None:
        """`sockets()`: those of the stack."""
        self._sockets = sockets
        self.portid = 0
        self.groups: set[int] = set()
        self.strict = self.extended = self.capped = False
        self.deliver: Callable[[bytes], None] = lambda datagram: None

    def close(self) -> None:
        """The guest's socket is gone."""

    def handle(self, data: bytes) -> list[bytes]:
        """The datagrams that answer a datagram of requests."""
        answer: list[bytes] = []
        for header, request in codec.split(data):
            number = 0
            if header.flags & codec.F_REQUEST and header.type >= 16:
                try:
                    self._message(header, request[codec.HEADER.size :], answer)
                    continue
                except NetlinkError as error:
                    number = error.errno or errno.EINVAL
            if number or header.flags & codec.F_ACK:
                answer.append(
                    codec.error(request, header, number, "", self.portid,
                                capped=self.capped, extended=self.extended)
                )  # fmt: skip
        return answer

    def _message(self, header: codec.Header, body: bytes, answer: list[bytes]) -> None:
        if header.type != SOCK_DIAG_BY_FAMILY or len(body) < 1:
            raise NetlinkError(errno.EINVAL)
        if not header.flags & codec.F_DUMP:
            raise NetlinkError(errno.ENOENT)
        found = []
        if body[0] in (AF_INET, AF_INET6):
            if len(body) < _REQUEST.size:
                raise NetlinkError(errno.EINVAL)
            family, protocol, _, states = _REQUEST.unpack_from(body)
            found = [
                s
                for s in self._sockets()
                if (s.family, s.protocol) == (family, protocol) and states >> s.state & 1
            ]
        piece = b""
        for sock in found:
            message = self._encode(sock, header.seq)
            if piece and len(piece) + len(message) > _CHUNK:
                answer.append(piece)
                piece = b""
            piece += message
        if piece:
            answer.append(piece)
        answer.append(codec.done(header.seq, self.portid))

    def _encode(self, sock: InetSocket, seq: int) -> bytes:
        """struct inet_diag_msg, 72 bytes."""
        nowhere = IPv4Address(0) if sock.family == AF_INET else IPv6Address(0)
        remote, port = sock.remote or (nowhere, 0)
        body = struct.pack("=BBBB", sock.family, sock.state, 0, 0)
        body += struct.pack("!HH", sock.local[1], port)
        body += sock.local[0].packed.ljust(16, b"\0") + remote.packed.ljust(16, b"\0")
        body += _ID_TAIL.pack(0, sock.inode & 0xFFFFFFFF, 0)
        body += _TAIL.pack(0, *sock.queued, sock.uid, sock.inode & 0xFFFFFFFF)
        size = codec.HEADER.size + len(body)
        return codec.HEADER.pack(size, SOCK_DIAG_BY_FAMILY, codec.F_MULTI, seq, self.portid) + body
