"""Socket calls with arguments that make little sense: whatever they answer, nothing may break."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import socket
import struct
import sys

RNG = random.Random(int(sys.argv[1]))
LIBC = ctypes.CDLL(None, use_errno=True)
MEMORY = ctypes.create_string_buffer(1 << 20)
AT = ctypes.addressof(MEMORY) + (1 << 19)
ADDRESSES = (
    "127.0.0.1",
    "0.0.0.0",
    "10.0.0.1",
    "10.0.0.2",
    "255.255.255.255",
    "224.0.0.1",
    "8.8.8.8",
)
ADDRESSES6 = ("::1", "::", "::ffff:127.0.0.1", "ff02::1", "fe80::1")
LEVELS = (0, 1, 6, 17, 41, 136, 999)
DONTWAIT = socket.MSG_DONTWAIT


def store(at: int, data: bytes) -> int:
    ctypes.memmove(at, data, len(data))
    return at


def address() -> tuple[int, int]:
    """(pointer, size) of something like a socket address."""
    data = RNG.choice(
        (
            struct.pack("<H", RNG.choice((2, 10, 0, 1, 99))) + RNG.randbytes(RNG.randrange(40)),
            struct.pack("<H", 2)
            + struct.pack(">H", RNG.choice((0, 80, 7000)))
            + socket.inet_aton(RNG.choice(ADDRESSES))
            + bytes(8),
            struct.pack("<H", 10)
            + struct.pack(">HI", RNG.choice((0, 80, 7000)), 0)
            + socket.inet_pton(socket.AF_INET6, RNG.choice(ADDRESSES6))
            + bytes(4),
            RNG.randbytes(128),
        )
    )
    at = store(AT + 256 * RNG.randrange(3), data)
    sizes = (len(data), len(data), 0, 1, 2, 16, 28, 110, -1, 1 << 31, 4096)
    return RNG.choice((at, at, at, 0, 1)), RNG.choice(sizes)


def message() -> int:
    """The address of something like a struct msghdr."""
    pointer, size = address()
    parts = struct.pack("<QQQQ", AT + 2048, RNG.choice((0, 10, 100)), AT + 3000, 5)
    iov = store(AT + 1024, parts)
    head = struct.pack(
        "<Qii",
        RNG.choice((16, 20, 17, 0, 1 << 40)),
        RNG.choice(LEVELS),
        RNG.choice((1, 2, 50, 52, 67)),
    )
    control = store(AT + 1500, head + RNG.randbytes(8))
    fields = (
        pointer, size & 0xFFFFFFFF, 0, RNG.choice((iov, iov, 0)), RNG.choice((1, 2, 0, 5000)),
        RNG.choice((0, control)), RNG.choice((0, 16, 24, 100, 1 << 33)), 0, 0,
    )  # fmt: skip
    at = store(AT + 1200, struct.pack("<QIIQQQQII", *fields))
    return RNG.choice((at, at, at, 0, 5))


def call(number: int, *arguments: int) -> int:
    words = [ctypes.c_long(a - (1 << 64) if a >= 1 << 63 else a) for a in arguments]
    return int(LIBC.syscall(ctypes.c_long(number), *words))


def fresh() -> int:
    kind = RNG.choice((1, 2)) | socket.SOCK_NONBLOCK
    return socket.socket(RNG.choice((2, 10)), kind).detach()


def step(fds: list[int]) -> None:
    fd, (pointer, size) = RNG.choice(fds), address()
    room = store(AT + 3900, struct.pack("<i", RNG.choice((0, 16, 28, 128, -1))))
    room = RNG.choice((room, room, 0, 3))
    flags = DONTWAIT | RNG.choice((0, 1, 2, 32, 0x2000))
    arguments = {
        49: (pointer, size), 42: (pointer, size), 50: (RNG.choice((0, 5, -1)),),
        51: (pointer, room), 52: (pointer, room),
        44: (AT + 2048, RNG.choice((0, 10, 70000, 1 << 40)), flags, pointer, size),
        46: (message(), flags), 307: (message(), RNG.choice((0, 1, 2, -1)), flags),
        45: (AT + 4096, RNG.choice((0, 100, 1 << 40)), flags, pointer, room),
        47: (message(), flags), 299: (message(), RNG.choice((0, 1, 2)), flags, 0),
        54: (RNG.choice(LEVELS), RNG.randrange(80), pointer, size),
        55: (RNG.choice(LEVELS), RNG.randrange(80), pointer, room),
        48: (RNG.choice((0, 1, 2, 7)),),
        16: (0x8910 + RNG.randrange(64), pointer),
    }  # fmt: skip
    number = RNG.choice(list(arguments))
    call(number, fd, *arguments[number])
    if RNG.random() < 0.03:
        accepted = call(288, fd, pointer, room, RNG.choice((0, 2048, 5)))
        if accepted >= 0:
            os.close(accepted)
    if RNG.random() < 0.02:
        os.close(fd)
        fds[fds.index(fd)] = fresh()


signal.signal(signal.SIGPIPE, signal.SIG_IGN)
descriptors = [fresh() for _ in range(6)]
for _ in range(int(sys.argv[2])):
    step(descriptors)
server = socket.create_server(("127.0.0.1", 0))  # all is still well
socket.create_connection(server.getsockname()).close()
server.close()
print("done")
