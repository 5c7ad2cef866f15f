"""Which names lead to an address, as far as the supervisor knows it from a resolver itself.

Guests' questions to the nameservers go through a small forwarder here (`Forwarder`), which
remembers the answers; names without wildcard are looked up by the supervisor too. So a rule about a
name holds for the addresses that the name had, whatever a later answer says.
**Source**: RFC 1035; resolv.conf(5).
"""

from __future__ import annotations

import logging
import secrets
import socket
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address

from .rules import IP, plain

log = logging.getLogger(__name__)

DNS = 53
KEPT = 300.0
"""Seconds that an answer counts at least: programs keep addresses longer than its TTL."""
FRESH = 30.0
"""Seconds after which the supervisor looks its names up again."""
TIMEOUT = 3.0
"""Seconds to wait for a nameserver before the next one is asked."""
_A, _CNAME, _AAAA, _IN = 1, 5, 28, 1
_HEADER = struct.Struct("!HHHHHH")
_RECORD = struct.Struct("!HHIH")
_MAX = 65535
_MAX_NAMES = 65536
_MAX_BUSY = 64

Server = tuple[str, int]


class Names:
    """What is known: address → name → until when."""

    def __init__(self) -> None:
        self._of: dict[IP, dict[str, float]] = {}
        self._lock = threading.Lock()

    def learn(self, name: str, addresses: Iterable[IP], ttl: float = 0) -> None:
        """A resolver has said that a name has these addresses."""
        until = time.monotonic() + max(ttl, KEPT)
        with self._lock:
            if len(self._of) > _MAX_NAMES:
                self._forget()
            for address in addresses:
                self._of.setdefault(plain(address), {})[name.lower().rstrip(".")] = until

    def of(self, address: IP) -> list[str]:
        """The names that lead to an address."""
        now = time.monotonic()
        with self._lock:
            return [name for name, until in self._of.get(address, {}).items() if until > now]

    def _forget(self) -> None:
        now = time.monotonic()
        self._of = {
            address: left
            for address, names in self._of.items()
            if (left := {name: until for name, until in names.items() if until > now})
        }


# --- messages -------------------------------------------------------------------------------------


def question(message: bytes) -> tuple[str, int, int]:
    """Name and type that a message asks for, and where its question ends. ValueError."""
    if len(message) < _HEADER.size or _HEADER.unpack_from(message)[2] != 1:
        raise ValueError("not one question")
    name, at = _name(message, _HEADER.size)
    if at + 4 > len(message):
        raise ValueError("a question without end")
    return name, int.from_bytes(message[at : at + 2], "big"), at + 4


def answers(message: bytes) -> tuple[str, list[IP], int]:
    """The name that was asked for, its addresses in the answer, the least TTL. ValueError."""
    name, _, at = question(message)
    aliases, found, least = {name}, [], _MAX
    for owner, kind, ttl, start, size in _records(message, at):
        if owner not in aliases:
            continue
        if kind == _CNAME:
            aliases.add(_name(message, start)[0])
        elif (kind, size) in ((_A, 4), (_AAAA, 16)):
            found.append(ip_address(message[start : start + size]))
            least = min(least, ttl)
    return name, found, least


def _records(message: bytes, at: int) -> Iterator[tuple[str, int, int, int, int]]:
    for _ in range(_HEADER.unpack_from(message)[3]):
        owner, at = _name(message, at)
        if at + _RECORD.size > len(message):
            raise ValueError("a record without end")
        kind, _, ttl, size = _RECORD.unpack_from(message, at)
        at += _RECORD.size
        if at + size > len(message):
            raise ValueError("a record without end")
        yield owner, kind, ttl, at, size
        at += size


def _name(message: bytes, at: int) -> tuple[str, int]:
    """A name, and where what follows it begins. ValueError."""
    labels: list[str] = []
    after = -1
    for _ in range(128):
        if at >= len(message):
            break
        size = message[at]
        if size & 0xC0 == 0xC0 and at + 1 < len(message):
            after = at + 2 if after < 0 else after
            at = (size & 0x3F) << 8 | message[at + 1]
            continue
        if size & 0xC0 or at + 1 + size > len(message):
            break
        if not size:
            return ".".join(labels).lower(), at + 1 if after < 0 else after
        labels.append(message[at + 1 : at + 1 + size].decode("latin-1"))
        at += 1 + size
    raise ValueError("a bad name")


def make_question(name: str, kind: int, ident: int) -> bytes:
    """A recursive question. ValueError: the name is too long."""
    text = b""
    for label in name.encode("idna").split(b"."):
        text += bytes([len(label)]) + label
    return _HEADER.pack(ident, 0x0100, 1, 0, 0, 0) + text + b"\0" + struct.pack("!HH", kind, _IN)


# --- the resolver ---------------------------------------------------------------------------------


def nameservers(path: str = "/etc/resolv.conf") -> list[IP]:
    """The nameservers that programs ask (resolv.conf(5))."""
    found: list[IP] = []
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                words = line.split()
                if len(words) > 1 and words[0] == "nameserver":
                    found.append(ip_address(words[1].partition("%")[0]))
    except (OSError, ValueError):
        pass
    return found or [IPv4Address("127.0.0.1")]


class Forwarder:
    """Passes guests' questions on to the real nameservers and learns from the answers."""

    def __init__(self, names: Names, servers: list[Server]) -> None:
        self._names, self._servers = names, servers
        self._first = 0
        self._looked: dict[str, float] = {}
        self._busy = threading.Semaphore(_MAX_BUSY)
        self._closed = False
        self._tcp = socket.create_server(("127.0.0.1", 0))
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind(self._tcp.getsockname())
        self.port: int = self._tcp.getsockname()[1]
        for loop in (self._serve_udp, self._serve_tcp):
            threading.Thread(target=loop, daemon=True, name="umvm-dns").start()

    def close(self) -> None:
        """Stop."""
        self._closed = True
        for sock in (self._tcp, self._udp):
            try:
                sock.shutdown(socket.SHUT_RDWR)  # wakes the thread
            except OSError:
                pass
            sock.close()

    def _serve_udp(self) -> None:
        while not self._closed:
            try:
                query, sender = self._udp.recvfrom(_MAX)
            except OSError:
                return
            if not self._closed and self._busy.acquire(blocking=False):
                self._start(self._answer_udp, query, sender)

    def _serve_tcp(self) -> None:
        while not self._closed:
            try:
                sock, _ = self._tcp.accept()
            except OSError:
                return
            if self._busy.acquire(blocking=False):
                self._start(self._answer_tcp, sock)
            else:
                sock.close()

    def _start(self, work: object, *arguments: object) -> None:
        def run() -> None:
            try:
                work(*arguments)  # type: ignore[operator]
            except (OSError, ValueError) as error:
                log.debug("dns: %s", error)
            finally:
                self._busy.release()

        threading.Thread(target=run, daemon=True, name="umvm-dns").start()

    def _answer_udp(self, query: bytes, sender: tuple[str, int]) -> None:
        answer = self._ask(query)
        if answer is not None:
            self._udp.sendto(answer, sender)

    def _answer_tcp(self, sock: socket.socket) -> None:
        with sock:
            sock.settimeout(10 * TIMEOUT)
            while query := _read_tcp(sock):
                answer = self._ask(query, True)
                if answer is None:
                    return
                sock.sendall(len(answer).to_bytes(2, "big") + answer)

    def _ask(self, query: bytes, tcp: bool = False) -> bytes | None:
        """Ask the nameservers, the one first that answered last; learn. ValueError."""
        _, _, end = question(query)
        for step in range(len(self._servers)):
            index = (self._first + step) % len(self._servers)
            try:
                answer = _exchange(self._servers[index], query, end, tcp)
            except OSError:
                continue
            self._first = index
            name, addresses, ttl = answers(answer)
            self._names.learn(name, addresses, ttl)
            return answer
        return None

    def look_up(self, wanted: Iterable[str], by_host: bool) -> None:
        """Learn the present addresses of names; `by_host`: as programs of the host find them."""
        for name in wanted:
            now = time.monotonic()
            if self._looked.get(name, 0) > now:
                continue
            self._looked[name] = now + FRESH
            self._names.learn(name, _from_hosts(name))
            try:
                if by_host:
                    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
                    self._names.learn(name, [ip_address(f[4][0].partition("%")[0]) for f in found])  # type: ignore[union-attr]
                else:
                    for kind in (_A, _AAAA):
                        self._ask(make_question(name, kind, secrets.randbelow(1 << 16)))
            except (OSError, ValueError) as error:
                log.debug("dns: %s: %s", name, error)


def _exchange(server: Server, query: bytes, end: int, tcp: bool) -> bytes:
    """Ask one nameserver, under another id; its answer to exactly this question. OSError."""
    ident = secrets.token_bytes(2)
    kind = socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM
    family = socket.AF_INET6 if ":" in server[0] else socket.AF_INET
    with socket.socket(family, kind) as sock:
        sock.settimeout(TIMEOUT)
        sock.connect(server)
        text = ident + query[2:]
        sock.sendall(len(text).to_bytes(2, "big") + text if tcp else text)
        until = time.monotonic() + TIMEOUT
        while time.monotonic() < until:
            answer = _read_tcp(sock) if tcp else sock.recv(_MAX)
            if answer[:2] == ident and answer[2:3] >= b"\x80" and _same(answer, query, end):
                return query[:2] + answer[2:]
            if tcp:
                break
    raise OSError("no answer")


def _same(answer: bytes, query: bytes, end: int) -> bool:
    return answer[_HEADER.size : end].lower() == query[_HEADER.size : end].lower()


def _read_tcp(sock: socket.socket) -> bytes:
    """A message with its length before it; empty at the end."""
    size = int.from_bytes(_read(sock, 2), "big")
    return _read(sock, size)


def _read(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            return b""
        data += piece
    return data


def _from_hosts(name: str) -> list[IP]:
    """The addresses of a name in /etc/hosts (hosts(5))."""
    found: list[IP] = []
    try:
        with open("/etc/hosts", encoding="utf-8", errors="replace") as file:
            for line in file:
                address, *names = line.partition("#")[0].split() or [""]
                if name in (known.lower() for known in names):
                    try:
                        found.append(ip_address(address.partition("%")[0]))
                    except ValueError:
                        continue
    except OSError:
        pass
    return found


def parse_server(text: str) -> Server:
    """`ADDRESS[:PORT]`, an IPv6 address before a port in brackets. ValueError."""
    host, port = text, str(DNS)
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest[1:] if rest.startswith(":") else port
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    ip_address(host)
    return host, int(port)


def mapped(address: IPv4Address, family: int) -> IP:
    """An IPv4 address for a socket of a family."""
    if family == socket.AF_INET:
        return address
    return IPv6Address(bytes(10) + b"\xff\xff" + address.packed)


def servers_of(option: str) -> tuple[list[Server], bool]:
    """The nameservers to ask: those of the option `dns`, or the host's (True). ValueError."""
    if option:
        return [parse_server(item) for item in option.split(",")], False
    return [(str(address), DNS) for address in nameservers()], True
