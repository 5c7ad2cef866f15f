"""struct msghdr, iovecs and control messages of guests; and the timeout of a socket."""

from __future__ import annotations

import errno
import select
import socket
import struct
from typing import TYPE_CHECKING, NamedTuple

from .address import fail

if TYPE_CHECKING:
    import _socket

    from umvm import Request

MSGHDR = struct.Struct("<QI4xQQQQi4x")
"""name, its size, iov, iovlen, control, its size, flags: 56 bytes."""
MMSGHDR_SIZE = 64
UIO_MAXIOV = 1024
SO_RCVTIMEO = 20
MOMENT = 2
"""Milliseconds that a worker may wait itself: an answer by another thread costs more."""


class Header(NamedTuple):
    """A guest's struct msghdr."""

    name: int
    namelen: int
    iov: int
    iovlen: int
    control: int
    controllen: int
    flags: int
    raw: bytes

    @classmethod
    def read(cls, req: Request, pointer: int) -> Header:
        """**Errors** EFAULT."""
        raw = req.read(pointer, MSGHDR.size)
        name, namelen, iov, iovlen, control, controllen, flags = MSGHDR.unpack(raw)
        return cls(name, namelen, iov, iovlen, control, controllen, flags, raw)

    def iovecs(self, req: Request) -> list[tuple[int, int]]:
        """(address, size) of each part. **Errors** EMSGSIZE, EFAULT."""
        if self.iovlen > UIO_MAXIOV:
            raise fail(errno.EMSGSIZE)
        return list(struct.iter_unpack("<QQ", req.read(self.iov, 16 * self.iovlen)))

    def gather(self, req: Request) -> bytes:
        """What the parts hold. **Errors** EMSGSIZE, EFAULT."""
        parts = self.iovecs(req)
        if sum(size for _, size in parts) > 1 << 20:
            raise fail(errno.EMSGSIZE)
        return b"".join(req.read(where, size) for where, size in parts)

    def room(self, req: Request) -> int:
        """How much the parts can take."""
        return sum(size for _, size in self.iovecs(req))

    def scatter(self, req: Request, data: bytes) -> None:
        """Store data in the parts."""
        at = 0
        for where, size in self.iovecs(req):
            if at >= len(data):
                return
            req.write(where, data[at : at + size])
            at += size


def cmsg(level: int, kind: int, data: bytes) -> bytes:
    """One control message, padded."""
    head = struct.pack("<QII", 16 + len(data), level, kind)
    return head + data + b"\0" * (-len(data) % 8)


def readable(copy: _socket.socket, patience: int) -> bool:
    """Is there something to receive or accept, now or within some ms?"""
    poll = select.poll()
    poll.register(copy.fileno(), select.POLLIN)
    return bool(poll.poll(patience))


def timeout_of(copy: _socket.socket) -> float | None:
    """SO_RCVTIMEO in seconds; None: it waits for ever."""
    raw = copy.getsockopt(socket.SOL_SOCKET, SO_RCVTIMEO, 16)
    seconds, micros = struct.unpack("<qq", raw)
    return float(seconds + micros / 1e6) or None
