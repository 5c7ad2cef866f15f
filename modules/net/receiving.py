"""recvfrom, recvmsg and recvmmsg by the supervisor, where a sender's address must be changed.

Who has the socket says what was received (`Take`); the rest is the same for all.
**Source**: recv(2), recvmmsg(2).
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from umvm import Reply, Request
from umvm.syscalls.context import signed
from umvm.syscalls.waiting import ERESTARTSYS, wait
from umvm.vfs.permission import fail

MSGHDR = struct.Struct("=QIxxxxQQQQIxxxx")
"""name, its size, parts, how many, control, its size, flags: 56 bytes."""
MMSGHDR_SIZE = 64
IOV_MAX = 1024
_IOVEC = struct.Struct("=QQ")
_SO_RCVTIMEO, _SO_SNDTIMEO = 20, 21


class Received(NamedTuple):
    """A datagram: its data, the sender's address to show, ancillary data."""

    data: bytes
    name: bytes
    control: bytes = b""


Take: TypeAlias = Callable[[socket.socket, int], Received]
"""`take(copy, flags)` receives one, with MSG_PEEK or without. BlockingIOError: there is none."""


def recvfrom(vm: Any, req: Request, take: Take) -> Reply:
    """recvfrom(2) with room for an address."""
    _, buffer, size, flags, name, name_size = req.args

    def give(found: Received) -> Reply:
        req.write(buffer, found.data[:size])
        put_name(req, name, name_size, found.name)
        whole = flags & socket.MSG_TRUNC
        return Reply.value(len(found.data) if whole else min(len(found.data), size))

    return _receive(vm, req, flags, take, give)


def recvmsg(vm: Any, req: Request, take: Take) -> Reply:
    """recvmsg(2)."""
    _, at, flags, *_ = req.args
    head = req.read(at, MSGHDR.size)
    return _receive(vm, req, flags, take, lambda found: _give(req, at, head, flags, found))


def recvmmsg(vm: Any, req: Request, take: Take) -> Reply:
    """recvmmsg(2): one message, which is allowed."""
    at, count, flags = req.args[1:4]
    if not count & 0xFFFFFFFF:
        return Reply.value(0)
    head = req.read(at, MSGHDR.size)

    def give(found: Received) -> Reply:
        size = _give(req, at, head, flags, found).number
        req.write(at + MSGHDR.size, struct.pack("=I", size))
        return Reply.value(1)

    return _receive(vm, req, flags, take, give)


def _give(req: Request, at: int, head: bytes, flags: int, found: Received) -> Reply:
    """Fill in what a msghdr points to, and the msghdr."""
    name, name_size, vector, count, control, room, _ = MSGHDR.unpack(head)
    if count > IOV_MAX:
        raise fail(errno.EMSGSIZE)
    data, done = found.data, 0
    for base, size in _IOVEC.iter_unpack(req.read(vector, count * _IOVEC.size)):
        if done >= len(data):
            break
        req.write(base, data[done : done + size])
        done += min(size, len(data) - done)
    shown = 0
    if name:
        req.write(name, found.name[:name_size])
        shown = len(found.name)
    told, extra = socket.MSG_TRUNC if done < len(data) else 0, found.control
    if room < len(extra):
        extra, told = b"", told | socket.MSG_CTRUNC
    req.write(control, extra)
    req.write(at, MSGHDR.pack(name, shown, vector, count, control, len(extra), told))
    return Reply.value(len(data) if flags & socket.MSG_TRUNC else done)


def _receive(
    vm: Any, req: Request, flags: int, take: Take, give: Callable[[Received], Reply]
) -> Reply:
    """Give the next datagram when there is one."""
    if flags & socket.MSG_ERRQUEUE:
        raise fail(errno.EAGAIN)
    copy = socket.socket(fileno=req.getfd(signed(req.args[0])))
    peek = flags & socket.MSG_PEEK | socket.MSG_DONTWAIT

    def attempt() -> Reply | None:
        try:
            return give(take(copy, peek))
        except BlockingIOError:
            return None

    try:
        reply = attempt()
        no_wait = flags & socket.MSG_DONTWAIT or nonblocking(copy)
        timeout = timeout_of(copy, _SO_RCVTIMEO)
    except OSError:
        copy.close()
        raise
    if reply is not None or no_wait:
        copy.close()
        return reply or Reply.error(errno.EAGAIN)
    number = ERESTARTSYS if timeout is None else errno.EINTR
    return wait(
        vm, req, copy.fileno(), select.POLLIN, attempt, lambda: Reply.error(number), copy.close,
        timeout,
    )  # fmt: skip


def nonblocking(copy: socket.socket) -> bool:
    """Is O_NONBLOCK set?"""
    return bool(fcntl.fcntl(copy, fcntl.F_GETFL) & os.O_NONBLOCK)


def timeout_of(copy: socket.socket, option: int = _SO_SNDTIMEO) -> float | None:
    """SO_SNDTIMEO or SO_RCVTIMEO in seconds; None: it waits for ever."""
    raw = copy.getsockopt(socket.SOL_SOCKET, option, 16)
    seconds, micros = struct.unpack("=qq", raw)
    return float(seconds + micros / 1e6) or None


def put_name(req: Request, at: int, size_at: int, name: bytes) -> None:
    """Write an address as far as there is room for it, and its size. **Errors** EINVAL, EFAULT."""
    if not at:
        return
    (room,) = struct.unpack("=i", req.read(size_at, 4))
    if room < 0:
        raise fail(errno.EINVAL)
    req.write(at, name[:room])
    req.write(size_at, struct.pack("=i", len(name)))
