"""UDP between sockets of one host: what each call answers. Run natively and in a VM."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

LOCAL = "127.0.0.1"


def told(call: Callable[..., Any], *args: Any) -> Any:
    try:
        return call(*args)
    except OSError as error:
        return errno.errorcode[error.errno] if error.errno else type(error).__name__


def made(ip: str = LOCAL, family: int = socket.AF_INET) -> tuple[socket.socket, Any]:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.bind((ip, 0))
    return sock, sock.getsockname()


def addresses() -> Iterator[object]:
    server, name = made()
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    yield client.getsockname(), told(client.getpeername)
    yield client.sendto(b"one", name), client.getsockname()[0]
    data, sender = server.recvfrom(10)
    yield data, sender == (LOCAL, client.getsockname()[1])
    yield server.sendto(b"back", sender), client.recvfrom(10) == (b"back", name)
    client.connect(name)
    yield client.getpeername() == name, client.getsockname() == sender
    yield client.send(b"two"), server.recvfrom(10) == (b"two", sender)
    other, other_name = made()
    yield client.sendto(b"past", other_name), other.recvfrom(10) == (b"past", sender)
    yield other.sendto(b"unasked", sender), server.sendto(b"asked", sender), client.recv(10)
    yield told(client.connect, other_name), client.send(b"new"), other.recvfrom(10)[0]
    yield told(server.bind, (LOCAL, 0)), told(made, "192.0.2.1")
    third = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    yield told(third.bind, name)
    yield told(third.sendto, b"x" * 65508, name), told(third.sendto, b"x", (LOCAL, 0))
    yield third.sendto(b"", name), server.recvfrom(5)[0]
    yield told(third.listen), told(third.accept)


def nobody() -> Iterator[object]:
    free, name = made()
    free.close()
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    yield sock.sendto(b"lost", name), sock.getsockopt(1, socket.SO_ERROR)
    sock.connect(name)
    yield sock.send(b"lost")
    time.sleep(0.1)
    yield told(sock.getsockopt, 1, socket.SO_ERROR)
    late = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    late.bind(name)
    yield os.write(sock.fileno(), b"now"), late.recvfrom(10) == (b"now", sock.getsockname())


def messages() -> Iterator[object]:
    server, name = made()
    client, own = made()
    client.sendmsg([b"ab", b"cd"], [], 0, name)
    yield server.recvmsg(3)[:3], server.gettimeout()
    client.sendto(b"abcdef", name)
    yield server.recvfrom(3, socket.MSG_PEEK)[0], server.recv(10, socket.MSG_PEEK)
    buffers = [bytearray(2), bytearray(10)]
    size, _, flags, sender = server.recvmsg_into(buffers)
    yield size, flags, sender == own, buffers
    client.sendto(b"abcdef", name)
    yield (
        server.recv_into(bytearray(2), 2, socket.MSG_TRUNC),
        told(server.recvfrom, 1, socket.MSG_DONTWAIT),
    )
    server.settimeout(0.05)
    yield told(server.recvfrom, 1)
    server.settimeout(None)
    threading.Timer(0.1, lambda: client.sendto(b"late", name)).start()
    yield server.recvfrom(10) == (b"late", own)
    for number in range(200):
        client.sendto(b"%d" % number, name)
    yield [server.recvfrom(10)[0] for _ in range(200)] == [b"%d" % n for n in range(200)]
    server.setsockopt(0, 8, 1)  # IP_PKTINFO
    client.sendto(b"x", name)
    data, control, flags, _ = server.recvmsg(10, 100)
    yield data, [(lv, kind, c[4:]) for lv, kind, c in control], flags


def six() -> Iterator[object]:
    server, name = made("::", socket.AF_INET6)
    for family, ip in ((socket.AF_INET, LOCAL), (socket.AF_INET6, "::1")):
        client = socket.socket(family, socket.SOCK_DGRAM)
        client.sendto(b"x", (ip, name[1]))
        _data, sender = server.recvfrom(10)
        yield sender[0], server.sendto(b"y", sender), client.recvfrom(10)[1][:1]
    yield told(socket.socket(socket.AF_INET, 2).bind, (LOCAL, name[1]))


def options() -> Iterator[object]:
    sock, _name = made()
    for level, number in ((1, socket.SO_DOMAIN), (1, 38), (1, 3), (0, 2), (0, 10), (0, 33), (6, 1)):
        yield level, number, told(sock.getsockopt, level, number)
    yield told(sock.setsockopt, 0, 33, 5), told(sock.getsockopt, 0, 33)
    yield told(sock.setsockopt, 6, 1, 1), told(sock.shutdown, 2)
    group = socket.inet_aton("224.3.4.5") + socket.inet_aton(LOCAL)
    yield told(sock.setsockopt, 0, socket.IP_DROP_MEMBERSHIP, group)
    bad = socket.inet_aton("10.3.4.5") + socket.inet_aton(LOCAL)
    yield told(sock.setsockopt, 0, socket.IP_ADD_MEMBERSHIP, bad)


def shared() -> Iterator[object]:
    first = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    first.setsockopt(1, socket.SO_REUSEADDR, 1)
    first.bind((LOCAL, 0))
    name = first.getsockname()
    second = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    yield told(second.bind, name)
    second.setsockopt(1, socket.SO_REUSEADDR, 1)
    yield told(second.bind, name)
    client, own = made()
    client.sendto(b"x", name)
    second.settimeout(2)
    yield second.recvfrom(10) == (b"x", own)


for part in (addresses, nobody, messages, six, options, shared):
    for answer in part():
        print(part.__name__, answer)
