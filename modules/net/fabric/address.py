"""Addresses: as guests write them (struct sockaddr), and as names of AF_UNIX sockets.

An address is (ip, port); `ip` has 4 or 16 bytes. IPv4 addresses mapped into IPv6 become IPv4 here
and are mapped again for AF_INET6 sockets, so that the two families meet.

Every socket of a network that can be reached has a name in the network's directory:

    HOST/t.IP.PORT  HOST/u.IP.PORT   stream listener, datagram socket; IP in hex, 0… for any
    …~N                               one of several with that address (SO_REUSEPORT)
    …+/HOST_u.IP.PORT                 in a group of sockets

Connected streams have an abstract name with both addresses, in hex: the accepting side learns from
it who called, and which address was called. Neither name is ever shown to a guest.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from umvm import Request

SOCKADDR_IN, SOCKADDR_IN6, SIN6_LEN_RFC2133 = 16, 28, 24
SOCKADDR_STORAGE = 128
MAPPED = b"\0" * 10 + b"\xff\xff"
ANY4, ANY6 = b"\0" * 4, b"\0" * 16
LOOPBACK4, LOOPBACK6 = b"\x7f\0\0\1", b"\0" * 15 + b"\1"
BROADCAST = b"\xff" * 4
STREAM, DATAGRAM, LITE = "t", "u", "l"
TYPES = {STREAM: socket.SOCK_STREAM, DATAGRAM: socket.SOCK_DGRAM, LITE: socket.SOCK_DGRAM}


class Address(NamedTuple):
    """An IP address, packed, and a port."""

    ip: bytes
    port: int


class Tuple(NamedTuple):
    """A connection as the name of its client's socket tells it."""

    client: Address
    server: Address


def fail(number: int) -> OSError:
    """An OSError with its usual text."""
    return OSError(number, os.strerror(number))


def is_any(ip: bytes) -> bool:
    """INADDR_ANY or in6addr_any."""
    return not any(ip)


def is_loopback(ip: bytes) -> bool:
    """127.0.0.0/8 or ::1."""
    return ip[0] == 127 if len(ip) == 4 else ip == LOOPBACK6


def is_multicast(ip: bytes) -> bool:
    """224.0.0.0/4 or ff00::/8."""
    return ip[0] & 0xF0 == 0xE0 if len(ip) == 4 else ip[0] == 0xFF


def text(ip: bytes) -> str:
    """The address as people write it."""
    return socket.inet_ntop(socket.AF_INET if len(ip) == 4 else socket.AF_INET6, ip)


def packed(address: str) -> bytes:
    """The opposite. ValueError: not an IP address."""
    try:
        return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
    except OSError:
        raise ValueError(f"{address!r} is not an IP address") from None


# --- struct sockaddr -----------------------------------------------------------------------------


def read(req: Request, pointer: int, size: int, family: int) -> Address | None:
    """The address that a guest gives for a socket of a family; None: AF_UNSPEC.

    **Errors** EFAULT; EINVAL: its size; EAFNOSUPPORT: it is of another family.
    **Source**: inet_bind(), inet6_bind() and tcp_v4_connect() of Linux 6.18.
    """
    if not 0 <= size <= SOCKADDR_STORAGE:
        raise fail(errno.EINVAL)
    data = req.read(pointer, size)
    if size < 2:
        raise fail(errno.EINVAL)
    (found,) = struct.unpack_from("<H", data)
    if found == socket.AF_UNSPEC:
        return None
    if size < (SOCKADDR_IN if family == socket.AF_INET else SIN6_LEN_RFC2133):
        raise fail(errno.EINVAL)
    if found != family:
        raise fail(errno.EAFNOSUPPORT)
    (port,) = struct.unpack_from(">H", data, 2)
    if family == socket.AF_INET:
        return Address(data[4:8], port)
    ip = data[8:24]
    return Address(ip[12:] if ip.startswith(MAPPED) else ip, port)


def read_unspecified(req: Request, pointer: int) -> Address:
    """bind(2) of an AF_INET socket takes AF_UNSPEC with INADDR_ANY. **Errors** EAFNOSUPPORT."""
    data = req.read(pointer, SOCKADDR_IN)
    if data[4:8] != ANY4:
        raise fail(errno.EAFNOSUPPORT)
    return Address(ANY4, struct.unpack_from(">H", data, 2)[0])


def pack(family: int, address: Address) -> bytes:
    """struct sockaddr_in or sockaddr_in6."""
    if family == socket.AF_INET:
        ip = address.ip if len(address.ip) == 4 else ANY4
        return struct.pack("<H", family) + struct.pack(">H4s8x", address.port, ip)
    ip = address.ip
    if len(ip) == 4:
        ip = ANY6 if is_any(ip) else MAPPED + ip
    return struct.pack("<H", family) + struct.pack(">HI16sI", address.port, 0, ip, 0)


def write(req: Request, pointer: int, size_pointer: int, data: bytes) -> None:
    """Store an address as move_addr_to_user() does. **Errors** EFAULT, EINVAL."""
    (room,) = struct.unpack("<i", req.read(size_pointer, 4))
    if room < 0:
        raise fail(errno.EINVAL)
    req.write(pointer, data[:room])
    req.write(size_pointer, struct.pack("<i", len(data)))


# --- names ---------------------------------------------------------------------------------------


def name(kind: str, host: str, address: Address) -> str:
    """The name of a socket in its network's directory."""
    return f"{host}/{kind}.{address.ip.hex()}.{address.port:x}"


def parse_name(path: str | bytes) -> tuple[str, Address] | None:
    """(host, address) of a datagram socket by its name; None: it has none."""
    if isinstance(path, bytes):
        path = os.fsdecode(path)
    *_, host, base = f"/{path}".split("/")
    if "_" in base:
        host, _, base = base.partition("_")
    fields = base.partition("~")[0].split(".")
    if len(fields) != 3:
        return None
    try:
        return host, Address(bytes.fromhex(fields[1]), int(fields[2], 16))
    except ValueError:
        return None


_CALL = "\0umvm"


def call_name(network: bytes, call: Tuple) -> bytes:
    """The abstract name of a connected client's socket."""
    client, server = call
    ports = f"{client.port:04x}{server.port:04x}"
    return f"{_CALL}{network.hex()}{ports}{client.ip.hex()}{server.ip.hex()}".encode()


def parse_call(named: object, network: bytes) -> Tuple | None:
    """What `call_name` says; None: it isn't a name of this network."""
    prefix = f"{_CALL}{network.hex()}".encode()
    if not isinstance(named, bytes) or not named.startswith(prefix):
        return None
    try:
        data = bytes.fromhex(named[len(prefix) :].decode())
        client, server = struct.unpack_from(">HH", data)
    except (ValueError, struct.error):
        return None
    ips, size = data[4:], len(data) // 2 - 2
    return Tuple(Address(ips[:size], client), Address(ips[size:], server))
