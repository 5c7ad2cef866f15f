"""TCP between sockets of one host: what each call answers. Run natively and in a VM."""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

LOCAL = "127.0.0.1"


def told(call: Callable[..., Any], *args: Any) -> Any:
    try:
        return call(*args)
    except OSError as error:
        return errno.errorcode[error.errno] if error.errno else type(error).__name__


def pair(family: int = socket.AF_INET, ip: str = LOCAL) -> tuple[socket.socket, ...]:
    server = socket.create_server((ip, 0), family=family)
    client = socket.create_connection(server.getsockname()[:2])
    accepted, name = server.accept()
    assert name[:2] == client.getsockname()[:2] == accepted.getpeername()[:2]
    assert accepted.getsockname()[:2] == client.getpeername()[:2] == server.getsockname()[:2]
    return server, client, accepted


def addresses() -> Iterator[object]:
    plain = socket.socket()
    yield plain.getsockname(), told(plain.getpeername)
    yield (
        told(plain.bind, ("192.0.2.1", 0)),
        told(plain.bind, (LOCAL, 0)),
        told(plain.bind, ("", 0)),
    )
    yield plain.getsockname()[0], told(plain.accept), told(plain.shutdown, socket.SHUT_RD)
    server, client, accepted = pair()
    yield told(client.connect, server.getsockname()), told(server.connect, server.getsockname())
    yield told(client.listen), told(accepted.listen), told(client.bind, ("", 0))
    port = server.getsockname()[1]
    yield told(socket.create_server, (LOCAL, port)), told(socket.create_server, ("", port))
    bound = socket.socket()
    bound.bind((LOCAL, 0))
    yield bound.getsockname() == bound.getsockname(), told(bound.bind, (LOCAL, 0))
    bound.connect(server.getsockname())
    one, name = server.accept()
    yield name == bound.getsockname(), one.getpeername() == name
    any_address = socket.create_server(("", 0))
    for ip in (LOCAL, "127.0.0.5"):
        other = socket.create_connection((ip, any_address.getsockname()[1]))
        one, name = any_address.accept()
        yield name[0], one.getsockname()[0], other.getpeername()[0], any_address.getsockname()[0]


def refused() -> Iterator[object]:
    free = socket.create_server((LOCAL, 0))
    name = free.getsockname()
    free.close()
    again = socket.socket()
    yield told(again.connect, name), told(again.connect, name), told(again.getpeername)
    with socket.create_server(name):
        yield told(again.connect, name)
    for number in (2, 7, 12):
        yield told(socket.socket(socket.AF_INET, socket.SOCK_STREAM).connect_ex, (LOCAL, 1)), number
    libc_like = [(socket.AF_INET, 4, 0), (socket.AF_INET, 1, 17), (socket.AF_INET, 2, 6)]
    libc_like += [(socket.AF_INET, 1, 300), (socket.AF_INET, 11, 0), (socket.AF_INET6, 5, 0)]
    for arguments in libc_like:
        yield told(socket.socket, *arguments)


def six() -> Iterator[object]:
    server = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    port = server.getsockname()[1]
    for ip in (LOCAL, "::1"):
        client = socket.create_connection((ip, port))
        accepted, name = server.accept()
        yield name[0], accepted.getsockname()[0], accepted.getpeername()[0], client.getpeername()[0]
        yield name[2:], name[1] == client.getsockname()[1]
    yield told(socket.create_server, ("", port))
    alone = socket.create_server(("::1", 0), family=socket.AF_INET6)
    port = alone.getsockname()[1]
    yield told(socket.create_connection, (LOCAL, port)), alone.getsockname()[::2]
    only = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=False)
    port = only.getsockname()[1]
    yield told(socket.create_connection, (LOCAL, port)), only.getsockopt(41, socket.IPV6_V6ONLY)
    with socket.create_server(("", port)):
        socket.create_connection((LOCAL, port)).close()


def data() -> Iterator[object]:
    _server, client, accepted = pair()
    client.sendall(b"abc")
    yield accepted.recvfrom(2), accepted.recvmsg(10)
    client.sendall(b"def")
    yield struct.unpack("i", fcntl.ioctl(accepted, 0x541B, b"\0" * 4))  # FIONREAD
    yield accepted.recv(2, socket.MSG_PEEK), accepted.recv(10)
    yield client.sendto(b"to", (LOCAL, 9)), accepted.recv(10)
    yield client.sendmsg([b"x", b"y"]), accepted.recv(10)
    client.shutdown(socket.SHUT_WR)
    yield accepted.recv(1), accepted.send(b"still"), client.recv(10), told(client.shutdown, 1)
    accepted.close()
    yield client.recv(1)
    _server, client, accepted = pair(socket.AF_INET6, "::1")
    client.send(b"unread")
    accepted.close()
    yield told(client.recv, 1)
    accepted.close()


def options() -> Iterator[object]:
    server, client, _accepted = pair()
    fresh = socket.socket()
    for level, number in (
        (1, socket.SO_DOMAIN), (1, socket.SO_PROTOCOL), (1, socket.SO_TYPE), (1, socket.SO_ERROR),
        (1, socket.SO_ACCEPTCONN), (1, socket.SO_REUSEADDR), (1, socket.SO_KEEPALIVE),
        (1, socket.SO_REUSEPORT), (1, socket.SO_BROADCAST), (1, socket.SO_OOBINLINE),
        (6, socket.TCP_NODELAY), (6, socket.TCP_KEEPIDLE), (6, socket.TCP_KEEPINTVL),
        (6, socket.TCP_KEEPCNT), (6, socket.TCP_CORK), (6, 99), (0, socket.IP_TOS),
        (0, socket.IP_TTL), (41, socket.IPV6_V6ONLY),
    ):  # fmt: skip
        yield level, number, [told(s.getsockopt, level, number) for s in (fresh, server, client)]
    for level, number, value in (
        (6, socket.TCP_NODELAY, 7), (6, socket.TCP_KEEPIDLE, 30), (6, socket.TCP_KEEPIDLE, -1),
        (6, socket.TCP_KEEPCNT, 200), (0, socket.IP_TOS, 16), (0, socket.IP_TTL, 300),
        (1, socket.SO_REUSEPORT, 5), (1, socket.SO_KEEPALIVE, 1), (6, 99, 1), (17, 1, 1),
    ):  # fmt: skip
        yield level, number, told(fresh.setsockopt, level, number, value)
        yield told(fresh.getsockopt, level, number)
    yield client.getsockopt(6, socket.TCP_INFO, 1)[0], server.getsockopt(6, socket.TCP_INFO, 1)
    yield fresh.getsockopt(6, socket.TCP_CONGESTION, 16).rstrip(b"\0") != b""
    yield struct.unpack("iii", client.getsockopt(1, socket.SO_PEERCRED, 12))
    server.setsockopt(6, socket.TCP_NODELAY, 1)
    other = socket.create_connection(server.getsockname())
    yield server.accept()[0].getsockopt(6, socket.TCP_NODELAY), other.getsockopt(6, 1)


def waiting() -> Iterator[object]:
    server = socket.create_server((LOCAL, 0))
    name = server.getsockname()
    server.settimeout(0.05)
    yield told(server.accept)
    server.setblocking(False)
    yield told(server.accept)
    server.setblocking(True)
    late = threading.Timer(0.2, lambda: socket.create_connection(name).close())
    late.start()
    yield server.accept()[1][0]
    server.setsockopt(1, socket.SO_RCVTIMEO, struct.pack("qq", 0, 50_000))
    yield told(server.accept)
    first = socket.socket()
    first.setblocking(False)
    yield first.connect_ex(name) in (0, errno.EINPROGRESS)
    server.accept()
    yield first.getsockopt(1, socket.SO_ERROR), first.getpeername() == name


def shared() -> Iterator[object]:
    first = socket.socket()
    first.setsockopt(1, socket.SO_REUSEPORT, 1)
    first.bind((LOCAL, 0))
    first.listen()
    name = first.getsockname()
    second = socket.create_server(name, reuse_port=True)
    yield second.getsockname() == name, told(socket.create_server, name)
    clients = [socket.create_connection(name) for _ in range(40)]
    for server in (first, second):
        server.setblocking(False)
    counts = []
    for server in (first, second):
        count = 0
        while told(server.accept) != "EAGAIN":
            count += 1
        counts.append(count)
    yield sum(counts), min(counts) > 0, len(clients)
    first.close()
    socket.create_connection(name).close()
    second.setblocking(True)
    yield second.accept()[1][0]


for part in (addresses, refused, six, data, options, waiting, shared):
    for answer in part():
        print(part.__name__, answer)
