"""What goes over a network, written as packets that were never there (`umvm net capture`).

While a capture runs, streams that are connected go through the supervisor of the side that
connects, and datagrams through that of the sender, which write packets with IP, TCP and UDP headers
of their own making. **Source**: draft-ietf-opsawg-pcapng; RFC 791, 8200, 9293, 768.
"""

from __future__ import annotations

import os
import random
import struct
import threading
import time

from .address import Address

SECTION, INTERFACE, PACKET = 0x0A0D0D0A, 1, 6
BYTE_ORDER, LINKTYPE_RAW = 0x1A2B3C4D, 101
TCP, UDP = 6, 17
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
SEGMENT = 65483
WINDOW, HOPS = 65535, 64


def _block(kind: int, body: bytes) -> bytes:
    size = 12 + len(body)
    return struct.pack("<II", kind, size) + body + struct.pack("<I", size)


def header() -> bytes:
    """What a file begins with: one section with one interface, of IP packets."""
    return _block(SECTION, struct.pack("<IHHq", BYTE_ORDER, 1, 0, -1)) + _block(
        INTERFACE, struct.pack("<HHI", LINKTYPE_RAW, 0, 0)
    )


def _sum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def packet(protocol: int, source: bytes, target: bytes, segment: bytes, at: int) -> bytes:
    """An IP packet; its segment's checksum is put at an offset."""
    if len(source) != len(target):  # IPv4 between sockets of IPv6
        source, target = source.rjust(16, b"\0")[-16:], target.rjust(16, b"\0")[-16:]
    pseudo = source + target
    if len(source) == 4:
        pseudo += struct.pack(">BBH", 0, protocol, len(segment))
        head = struct.pack(
            ">BBHHHBBH4s4s",
            0x45,
            0,
            20 + len(segment),
            0,
            0x4000,
            HOPS,
            protocol,
            0,
            source,
            target,
        )
        head = head[:10] + struct.pack(">H", _sum(head)) + head[12:]
    else:
        pseudo += struct.pack(">IxxxB", len(segment), protocol)
        head = struct.pack(">IHBB16s16s", 6 << 28, len(segment), protocol, HOPS, source, target)
    checksum = _sum(pseudo + segment) or 0xFFFF
    return head + segment[:at] + struct.pack(">H", checksum) + segment[at + 2 :]


class Capture:
    """A file that packets are written to while the one who asked for it lives."""

    def __init__(self, path: str, pid: int) -> None:
        """`pid`: of the asking process. OSError: the file can't be opened."""
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        self._pid = pid

    def alive(self) -> bool:
        """Does anybody want it still?"""
        return os.path.exists(f"/proc/{self._pid}")

    def add(self, data: bytes) -> None:
        """Write one packet, whole, between those of others."""
        if self._fd < 0:
            return
        micros = time.time_ns() // 1000
        body = struct.pack("<IIIII", 0, micros >> 32, micros & 0xFFFFFFFF, len(data), len(data))
        try:
            os.write(self._fd, _block(PACKET, body + data + b"\0" * (-len(data) % 4)))
        except OSError:
            pass  # no room: the guests mustn't notice

    def datagram(self, source: Address, to: Address, data: bytes) -> None:
        """A datagram was sent."""
        head = struct.pack(">HHHH", source.port, to.port, 8 + len(data), 0)
        self.add(packet(UDP, source.ip, to.ip, head + data, 6))

    def close(self) -> None:
        """Write no more."""
        fd, self._fd = self._fd, -1
        os.close(fd)


class Conversation:
    """One TCP connection of a capture. Index 0: from the one who connected, 1: to him."""

    def __init__(self, capture: Capture, client: Address, server: Address) -> None:
        """Begins with the three packets that open it."""
        self._capture, self._ends = capture, (client, server)
        self._next = [random.getrandbits(32), random.getrandbits(32)]
        self._ended = [False, False]
        self._lock = threading.Lock()
        self._send(0, SYN)
        self._send(1, SYN | ACK)
        self._send(0, ACK)

    def data(self, index: int, data: bytes) -> None:
        """Data, or (empty) the end of what one side sends."""
        with self._lock:
            if not data and not self._ended[index]:
                self._ended[index] = True
                self._send(index, FIN | ACK)
                self._send(1 - index, ACK)
            for at in range(0, len(data), SEGMENT):
                self._send(index, PSH | ACK, data[at : at + SEGMENT])
                self._send(1 - index, ACK)

    def reset(self) -> None:
        """It was ended from outside."""
        with self._lock:
            self._send(0, RST | ACK)

    def _send(self, index: int, flags: int, data: bytes = b"") -> None:
        source, target = self._ends[index], self._ends[1 - index]
        acknowledged = self._next[1 - index] if flags & ACK else 0
        head = struct.pack(
            ">HHIIBBHHH", source.port, target.port, self._next[index], acknowledged, 5 << 4,
            flags, WINDOW, 0, 0,
        )  # fmt: skip
        step = len(data) + bool(flags & SYN) + bool(flags & FIN)
        self._next[index] = self._next[index] + step & 0xFFFFFFFF
        self._capture.add(packet(TCP, source.ip, target.ip, head + data, 16))
