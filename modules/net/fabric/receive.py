"""The receiving half of UDP sockets."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from umvm import Reply
from umvm.syscalls.waiting import ERESTARTSYS, wait

from . import address, ancillary, message
from .address import Address, fail, is_any
from .ancillary import Traffic
from .inet import InetSocket, signed
from .outbox import duplicate

if TYPE_CHECKING:
    import _socket

    from umvm import Request

_KEEP_FLAGS = socket.MSG_PEEK


class Receiver(InetSocket):
    """A UDP socket, as far as it receives."""

    def recvfrom(self, req: Request) -> Reply | None:
        """recvfrom(2) with room for an address."""
        flags = signed(req.args[3])
        self.stack.network.hosts()  # the engine does it while it knows them

        def take(copy: _socket.socket) -> Reply:
            size = req.args[2]
            data, sender, _ = self._receive(copy, flags)
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
        if not head.name and not ancillary.wanted(self):
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
        data, sender, traffic = self._receive(copy, flags)
        head.scatter(req, data[:room])
        size, told, control = 0, 0, b""
        if head.name and sender is not None:
            packed = address.pack(self.family, sender)
            req.write(head.name, packed[: head.namelen])
            size = len(packed)
        if sender is not None and ancillary.wanted(self):
            local, space = self._reached_at(sender), head.controllen if head.control else 0
            control, told = ancillary.received(self, local, traffic, space)
            req.write(head.control, control)
        if len(data) > room:
            told |= socket.MSG_TRUNC
        raw = (head.name, size, head.iov, head.iovlen, head.control, len(control), told)
        req.write(pointer, message.MSGHDR.pack(*raw))
        return len(data) if flags & socket.MSG_TRUNC else min(len(data), room)

    def _reached_at(self, sender: Address) -> bytes:
        """Our address that a datagram was sent to, as far as can be told."""
        if self.bound is not None and not is_any(self.bound.ip):
            return self.bound.ip
        try:
            return self.stack.route(sender.ip)[1]
        except OSError:
            return self.any().ip

    def _receive(self, copy: _socket.socket, flags: int) -> tuple[bytes, Address | None, Traffic]:
        """One datagram, whole, its sender and the rest of its IP header."""
        flags = flags & _KEEP_FLAGS | socket.MSG_DONTWAIT
        data, _, _, named = copy.recvmsg(1 << 18, 0, flags)
        parsed = address.parse_name(named) if named else None
        if parsed is None:  # by the sink: from the one that we are connected to
            return data, self.peer if named else None, ancillary.PLAIN
        return data, self.shown(*parsed), ancillary.parse(os.fsdecode(named))

    def shown(self, host: str, named: Address) -> Address:
        """The address to show of a sender whose socket has this name."""
        ip = named.ip
        if is_any(ip):
            four = self.family == socket.AF_INET or len(ip) == 4
            if self.bound is not None and not is_any(self.bound.ip):
                four = len(self.bound.ip) == 4
            ip = self.stack.ip_of(host, 4 if four else 16, self.bound)
        return Address(ip, named.port)

    def _waiting(
        self,
        req: Request,
        flags: int,
        take: Callable[[_socket.socket], Reply],
        timeout: float | None = None,
    ) -> Reply:
        """Receive now, or later where the guest waits."""
        with self.copy(req) as copy:
            if self.error:
                error, self.error = self.error, 0
                raise fail(error)
            try:
                return take(copy)
            except BlockingIOError:
                if flags & socket.MSG_DONTWAIT or not os.get_blocking(copy.fileno()):
                    raise
            if message.readable(copy, message.MOMENT):
                try:
                    return take(copy)
                except BlockingIOError:
                    pass  # another thread was faster
            timeout = message.timeout_of(copy) if timeout is None else timeout
            kept = duplicate(copy)

        def attempt() -> Reply | None:
            try:
                return take(kept)
            except BlockingIOError:
                return None

        return wait(
            self.stack.vm, req, kept.fileno(), select.POLLIN, attempt,
            lambda: Reply.error(ERESTARTSYS), kept.close, timeout,
        )  # fmt: skip
