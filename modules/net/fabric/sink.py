"""Where datagrams go that a connected socket sends while nobody is at the other end.

The sender's socket is connected to the sink in the kernel. The sink looks whether there is somebody
by now; if not, the sender will be told, as by an ICMP message. As the kernel lets such a socket
receive from the sink only, what others send to it comes by the host's inbox (`enclose`).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from typing import TYPE_CHECKING

from . import address
from .address import Address

if TYPE_CHECKING:
    from .datagram import Datagram
    from .stack import Fabric


INBOX = "inbox"
_SIZES = struct.Struct(">HH")


def enclosed(receiver: str, sender: str, data: bytes) -> bytes:
    """A datagram, and the names of the sockets that it is for, and from."""
    names = os.fsencode(receiver), os.fsencode(sender)
    return _SIZES.pack(*map(len, names)) + b"".join(names) + data


def _opened(letter: bytes) -> tuple[str, str, bytes]:
    """The opposite. ValueError: it is none."""
    if len(letter) < _SIZES.size:
        raise ValueError("too short")
    first, second = _SIZES.unpack_from(letter)
    end = _SIZES.size + first
    receiver, sender = letter[_SIZES.size : end], letter[end : end + second]
    return os.fsdecode(receiver), os.fsdecode(sender), letter[end + second :]


class Sink:
    """The sink of one host."""

    def __init__(self, stack: Fabric) -> None:
        self._stack = stack
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.name = f"{stack.network.key}/sink"
        self.path = stack.network.place(self.name)
        self._socket.bind(self.path)
        self._inbox = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._inbox.bind(stack.network.place(f"{stack.network.key}/{INBOX}"))
        for work in (self._work, self._take_in):
            threading.Thread(target=work, daemon=True, name="umvm-sink").start()

    def _work(self) -> None:
        while True:
            try:
                data, named = self._socket.recvfrom(1 << 18)
            except OSError:
                return
            if not named:  # close() sends us something
                return
            parsed = address.parse_name(named)
            sender = self._find(str(named)) if parsed is not None else None
            if sender is None or sender.peer is None or parsed is None:
                continue
            try:
                self._pass_on(sender, data, parsed[1])
            except OSError:
                pass  # lost

    def _take_in(self) -> None:
        """Hand on what has come by the inbox, to those who are connected to its sender."""
        while True:
            try:
                receiver, named, data = _opened(self._inbox.recv(1 << 18))
                if not receiver:
                    return
                sock, sender = self._find(f"/{receiver}"), address.parse_name(named)
                if sock is not None and sender is not None and sock.shown(*sender) == sock.peer:
                    self._stack.outbox.send(self._socket, data, receiver)
            except ValueError:
                continue
            except OSError:
                return

    def _find(self, named: str) -> Datagram | None:
        from .datagram import Datagram

        name = "/".join(named.rsplit("/", 2)[1:])
        parsed = address.parse_name(name)
        for protocol in (socket.IPPROTO_UDP, socket.IPPROTO_UDPLITE):
            for sock in self._stack.ports[protocol].at(parsed[1].port if parsed else 0):
                if isinstance(sock, Datagram) and sock.name == name:
                    return sock
        return None

    def _pass_on(self, sender: Datagram, data: bytes, own: Address) -> None:
        to = sender.peer
        assert to is not None
        stack = self._stack
        if address.is_multicast(to.ip) or stack.is_broadcast(to.ip):
            many = stack.group_members(to) if address.is_multicast(to.ip) else None
            names = stack.listening_everywhere(to) if many is None else many
        else:
            host, _ = stack.route(to.ip)
            name = stack.reachable(sender.letter, host, to)
            if name is None:
                sender.error = errno.ECONNREFUSED
            names = [name] if name is not None else []
        if stack.capture is not None and sender.bound is not None:
            stack.show(sender.bound, to, data)
        with stack.outbox.speaking_as(sender.letter, own, "") as voice:
            for name in names:
                stack.outbox.send_over(stack.link_of(name), voice, data, name)

    def close(self) -> None:
        """End the threads."""
        inbox = f"{self._stack.network.key}/{INBOX}"
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
                last.sendto(b"", socket.MSG_DONTWAIT, self.path)
                place = self._stack.network.place(inbox)
                last.sendto(enclosed("", "", b""), socket.MSG_DONTWAIT, place)
        except OSError:
            pass
        for sock, name in ((self._socket, self.name), (self._inbox, inbox)):
            sock.close()
            self._stack.network.unlink(name)
