"""Sending datagrams for guests without waiting, and with names that guests' sockets don't have.

An AF_UNIX datagram socket takes few datagrams before senders have to wait (net.unix.max_dgram_qlen,
10 by default); those of UDP take many. What a receiver has no room for waits here, up to a limit,
in order; then it is lost, as UDP's would be.
"""

from __future__ import annotations

import _socket
import errno
import os
import select
import socket
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from itertools import count
from typing import TYPE_CHECKING

from . import address
from .address import Address
from .link import PERFECT, Link
from .sink import INBOX, enclosed

if TYPE_CHECKING:
    from core_accel.fabric import Home

    from .network import Network

ROOM = 212992
"""Bytes that may wait for one receiver: the usual receive buffer (net.core.rmem_default)."""
SNDBUF = 1 << 20
IDLE = 2.0
"""Seconds without anything to do after which the thread ends."""


def duplicate(sock: _socket.socket) -> _socket.socket:
    """Another descriptor of a socket."""
    return _socket.socket(socket.AF_UNIX, sock.type, 0, os.dup(sock.fileno()))


class Fate(Enum):
    """What became of a datagram."""

    SENT = "sent, or lost on the way"
    REFUSED = "the receiver takes none of this sender"
    NOBODY = "there is no receiver"


class _Queue:
    """What waits for one receiver."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[_socket.socket, bytes]] = deque()
        self.size = 0


class Outbox:
    """The datagrams of one host that wait."""

    def __init__(self, network: Network, home: Home) -> None:
        """`home` is told while datagrams wait, as those to come must not overtake them."""
        self._network, self._home = network, home
        self._queues: dict[str, _Queue] = {}
        self._voices: dict[tuple[str, Address, str], socket.socket] = {}
        self._serial = count(1)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def send(self, sender: _socket.socket, data: bytes, name: str) -> Fate:
        """Send to the socket called `name`.

        **Errors** EMSGSIZE, ENOMEM: none that UDP hasn't.
        """
        queue = self._queues.get(name)
        if queue is None:
            try:
                sender.sendto(data, socket.MSG_DONTWAIT, self._network.place(name))
                return Fate.SENT
            except OSError as error:
                if error.errno == errno.EPERM:
                    return self._enclose(sender, data, name)
                if error.errno in (errno.ECONNREFUSED, errno.ENOENT, errno.EPROTOTYPE):
                    return Fate.NOBODY
                if error.errno not in (errno.EAGAIN, errno.ENOBUFS):
                    raise
        with self._lock:
            queue = self._queues.get(name)
            if queue is None:
                queue = self._queues[name] = _Queue()
                self._home.wait(1)
            if queue.size + len(data) > ROOM:
                return Fate.SENT
            queue.waiting.append((duplicate(sender), data))
            queue.size += len(data) + 512
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True, name="umvm-outbox")
                self._thread.start()
        return Fate.SENT

    def _enclose(self, sender: _socket.socket, data: bytes, name: str) -> Fate:
        """Send to a socket that receives from its host's sink only, perhaps, by its inbox."""
        place = self._network.place(f"{name.partition('/')[0]}/{INBOX}")
        letter = enclosed(name, str(sender.getsockname()), data)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as own:
                own.sendto(letter, socket.MSG_DONTWAIT, place)
            return Fate.SENT
        except OSError:
            return Fate.REFUSED

    def send_over(self, link: Link, sender: _socket.socket, data: bytes, name: str) -> Fate:
        """As `send`, over a link that may be slow, or lose it."""
        if link == PERFECT:
            return self.send(sender, data, name)
        if not link.loses():
            if not (link.latency or link.jitter):
                return self.send(sender, data, name)
            late = threading.Timer(link.delay(), self._send_late, (duplicate(sender), data, name))
            late.daemon = True
            late.start()
        return Fate.SENT

    def _send_late(self, sender: _socket.socket, data: bytes, name: str) -> None:
        try:
            self.send(sender, data, name)
        except OSError:
            pass  # lost
        finally:
            sender.close()

    @contextmanager
    def speaking_as(self, kind: str, sender: Address, tells: str) -> Iterator[socket.socket]:
        """A socket of ours that receivers take for this sender's; `tells`: part of its name."""
        with self._lock:
            key = (kind, sender, tells)
            voice = self._voices.get(key)
            if voice is None:
                if len(self._voices) > 256:
                    self._close_voices()
                voice = self._voices[key] = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                name = address.name(kind, self._network.key, sender)
                name += f"~{tells}{next(self._serial)}"
                voice.bind(self._network.place(name))
                self._network.unlink(name)
            copy = voice.dup()
        with copy:
            yield copy

    def _work(self) -> None:
        """Send what waits as receivers get room for it."""
        while True:
            with self._lock:
                heads = [(name, queue.waiting[0]) for name, queue in self._queues.items()]
                if not heads:
                    self._thread = None
                    return
            moved = False
            for name, (sender, data) in heads:
                try:
                    sender.sendto(data, socket.MSG_DONTWAIT, self._network.place(name))
                except BlockingIOError:
                    continue
                except OSError:
                    pass  # the receiver is gone
                moved = True
                with self._lock:
                    queue = self._queues[name]
                    queue.waiting.popleft()
                    queue.size -= len(data) + 512
                    if not queue.waiting:
                        del self._queues[name]
                        self._home.wait(-1)
                sender.close()
            if not moved:
                select.select([], [], [], 0.001)

    def _close_voices(self) -> None:
        for voice in self._voices.values():
            voice.close()
        self._voices.clear()

    def close(self) -> None:
        """Drop everything."""
        with self._lock:
            for queue in self._queues.values():
                for sender, _ in queue.waiting:
                    sender.close()
                queue.waiting.clear()
            self._home.wait(-len(self._queues))
            self._queues.clear()
            self._close_voices()
