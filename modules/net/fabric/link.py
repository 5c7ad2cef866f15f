"""Links that are slow or lose datagrams, for testing programs that should bear it.

A host's settings hold for all that it sends to and gets from other hosts. A stream over such a link
passes through the supervisor, two threads for each direction; streams that exist when settings are
made stay as they are.
"""

from __future__ import annotations

import queue
import random
import re
import socket
import threading
import time
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from umvm.errors import UsageError

if TYPE_CHECKING:
    from .capture import Conversation

PIECE, PIECES = 1 << 14, 64
"""Bytes that are delayed together, and how many such pieces may be on their way."""
_UNITS = {
    "seconds": {"us": 1e-6, "ms": 1e-3, "s": 1.0},
    "bytes per second": {"bit": 1 / 8, "kbit": 1e3 / 8, "mbit": 1e6 / 8, "gbit": 1e9 / 8},
    "share": {"%": 0.01},
}


class Link(NamedTuple):
    """How a host is connected: seconds, bytes per second (0: no limit), share of datagrams."""

    latency: float = 0.0
    jitter: float = 0.0
    rate: float = 0.0
    drop: float = 0.0
    seen: bool = False
    """What passes is written down (capture.py)."""

    def with_other(self, other: Link) -> Link:
        """The way from one host to another."""
        rates = [rate for rate in (self.rate, other.rate) if rate]
        return Link(
            self.latency + other.latency,
            self.jitter + other.jitter,
            min(rates, default=0.0),
            1 - (1 - self.drop) * (1 - other.drop),
            self.seen or other.seen,
        )

    def delay(self) -> float:
        """Seconds that something takes now."""
        return self.latency + random.uniform(0, self.jitter)

    def loses(self) -> bool:
        """Is this datagram lost?"""
        return random.random() < self.drop


PERFECT = Link()
KINDS = {
    "latency": "seconds",
    "jitter": "seconds",
    "rate": "bytes per second",
    "drop": "share",
}


def parse(name: str, text: str) -> float:
    """The value of a setting: 20ms, 1mbit, 5%. UsageError."""
    units = _UNITS[KINDS[name]]
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([a-z%]+)", text.lower())
    if found is None or found[2] not in units:
        raise UsageError(f"bad {name} {text!r}: expected a number and one of {', '.join(units)}")
    value = float(found[1]) * units[found[2]]
    if name == "drop" and value > 1:
        raise UsageError(f"bad {name} {text!r}: more than 100%")
    return value


def of(settings: Mapping[str, Any]) -> Link:
    """The link that a host's settings describe."""
    latency, jitter, rate, drop = (float(settings.get(key, 0)) for key in KINDS)
    return Link(latency, jitter, rate, drop)


class Wire:
    """A stream over such a link: between the guest's end and the other host's."""

    def __init__(
        self,
        link: Link,
        near: socket.socket,
        far: socket.socket,
        seen: Conversation | None = None,
    ) -> None:
        """Both sockets are owned from now on. `seen` is told what passes."""
        self._link, self._ends, self._seen = link, (near, far), seen
        self._open = 2
        self._lock = threading.Lock()
        for index, (source, target) in enumerate(((near, far), (far, near))):
            pieces: queue.Queue[tuple[float, bytes]] = queue.Queue(PIECES)
            read = partial(self._read, index, source, pieces)
            for work in (read, partial(self._write, target, pieces)):
                threading.Thread(target=work, daemon=True, name="umvm-wire").start()

    def _read(
        self, index: int, source: socket.socket, pieces: queue.Queue[tuple[float, bytes]]
    ) -> None:
        free = last = time.monotonic()
        while True:
            try:
                data = source.recv(PIECE)
            except OSError:
                data = b""
            if self._seen is not None:
                self._seen.data(index, data)
            now = time.monotonic()
            if self._link.rate:
                free = now = max(now, free) + len(data) / self._link.rate
            last = max(last, now + self._link.delay())  # a stream keeps its order
            pieces.put((last, data))
            if not data:
                return

    def _write(self, target: socket.socket, pieces: queue.Queue[tuple[float, bytes]]) -> None:
        broken = False
        while True:
            due, data = pieces.get()
            time.sleep(max(0.0, due - time.monotonic()))
            try:
                if not data:
                    target.shutdown(socket.SHUT_WR)
                elif not broken:
                    target.sendall(data)
            except OSError:
                broken = True
                self.cut()
            if not data:
                break
        with self._lock:
            self._open -= 1
            if not self._open:
                for end in self._ends:
                    end.close()

    def cut(self) -> None:
        """End both directions."""
        for end in self._ends:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
