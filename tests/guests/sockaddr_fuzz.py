"""Nonsense as socket addresses, lengths and messages: `sockaddr_fuzz.py SEED FAMILY…`.

Prints how many calls were made, and which errors came. Sockets don't block.
"""

from __future__ import annotations

import ctypes
import errno
import random
import socket
import struct
import sys

libc = ctypes.CDLL(None, use_errno=True)
SOCKETS = {
    "inet": [(socket.AF_INET, 1), (socket.AF_INET, 2), (socket.AF_INET6, 1), (socket.AF_INET6, 2)],
    "unix": [(socket.AF_UNIX, 1), (socket.AF_UNIX, 2), (socket.AF_UNIX, 5)],
    "netlink": [(socket.AF_NETLINK, 3), (socket.AF_NETLINK, 2)],
}


def main() -> None:
    """Make the calls."""
    chance = random.Random(int(sys.argv[1]))
    kinds = [kind for family in sys.argv[2:] for kind in SOCKETS[family]]
    seen = set()
    for _ in range(150):
        family, kind = chance.choice(kinds)
        with socket.socket(family, kind) as sock:
            sock.setblocking(False)
            for _ in range(3):
                seen.add(one(chance, sock.fileno(), family))
    print(450, *sorted(errno.errorcode.get(number, str(number)) for number in seen - {0}))


def address(chance: random.Random, family: int) -> bytes:
    """An address that may make sense."""
    if chance.random() < 0.3:
        return chance.randbytes(chance.randrange(0, 40))
    tail = chance.randbytes(chance.randrange(0, 30))
    loop = struct.pack("!H", chance.randrange(1 << 16)) + bytes([127, 0, 0, chance.randrange(4)])
    body = chance.choice(
        [
            tail,
            loop + bytes(8),
            loop,
            b"\0" + tail,
            b"/tmp/umvm-none/" + tail.hex().encode(),
            bytes(10),
        ]
    )
    return struct.pack("=H", chance.choice([family, family, family, 0, 1, 2, 10, 16])) + body


def one(chance: random.Random, fd: int, family: int) -> int:
    """One call; its errno."""
    name = address(chance, family)
    size = chance.choice([len(name), len(name), len(name), 0, 2, 16, 28, 110, 200, 0xFFFFFFFF])
    pointer: object = chance.choice([name, name, name, ctypes.c_void_p(8), None])
    big = ctypes.create_string_buffer(256)
    length = ctypes.c_uint32(chance.choice([0, 2, 16, 256, 0xFFFFFFFF]))
    data = chance.randbytes(chance.randrange(64))
    flags = socket.MSG_DONTWAIT | chance.choice([0, 0, 0x20000000, 0x4000000, 1])
    vector = struct.pack("=QQ", ctypes.addressof(big), 16) * 2
    place = ctypes.create_string_buffer(vector)
    where = ctypes.create_string_buffer(name)
    head = struct.pack(
        "=QIIQQQQQ", ctypes.addressof(where), size & 0xFFFFFFFF, 0, ctypes.addressof(place),
        chance.choice([0, 1, 2, 2000]), ctypes.addressof(big), chance.choice([0, 0, 8, 24, 1 << 40]), 0,
    )  # fmt: skip
    message = ctypes.create_string_buffer(head + bytes(8))
    ctypes.set_errno(0)
    call = chance.randrange(10)
    if call == 0:
        libc.bind(fd, pointer, size)
    elif call in (1, 2):
        libc.connect(fd, pointer, size)
    elif call == 3:
        libc.sendto(fd, data, len(data), flags, pointer, size)
    elif call == 4:
        libc.sendmsg(fd, message, flags)
    elif call == 5:
        libc.sendmmsg(fd, message, chance.choice([0, 1]), flags)
    elif call == 6:
        libc.recvmsg(fd, message, flags)
    elif call == 7:
        libc.recvfrom(fd, big, 64, flags, big, ctypes.byref(length))
    elif call == 8:
        libc.getsockname(fd, big, ctypes.byref(length))
    else:
        libc.getpeername(fd, big, ctypes.byref(length))
    return ctypes.get_errno()


main()
