"""A virtual network: a private directory that the hosts on it share, and nothing else.

    NAME/hosts/KEY     one host, as JSON; its VM holds a lock on it, so that one without is dead
    NAME/names/NAME    added names: the address as text
    NAME/KEY/…         the host's sockets (address.py)
    NAME/m.…+          multicast groups

The first host makes the directory, the last one removes it. What a killed VM leaves is removed by
its init process, or else by the next who joins or looks.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import shutil
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from umvm.control.protocol import locked, socket_dir
from umvm.errors import Exists, NotFound, UsageError
from umvm.specs import check_name

from . import address
from .address import Address

SUBNET4 = bytes([10, 0, 0])
SUBNET6 = bytes.fromhex("fd756d766d00000000000000")
FIRST, LAST = 1, 254
DOMAIN = "internal"
_COARSE = 50_000_000


class Host(NamedTuple):
    """One host of a network."""

    key: str
    names: tuple[str, ...]
    ips: tuple[bytes, ...]
    vm: str
    pid: int
    down: bool = False
    settings: dict[str, Any] = {}


def directory() -> Path:
    """Where the networks of this user are."""
    path = socket_dir() / "net"
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def second_address(ip: bytes) -> bytes:
    """The IPv6 address of a host with this IPv4 address."""
    return SUBNET6 + ip


class Network:
    """A network as one of its hosts sees it."""

    seen: Callable[[int, dict[str, Host]], object] = staticmethod(lambda stamp, hosts: None)
    """Told when the hosts are read: when their directory had changed (0: it may change yet)."""

    def __init__(self, name: str, vm: str, host_name: str, ips: list[bytes]) -> None:
        """Join. `ips` empty: the next free address. Exists: an address or name is taken."""
        self.name = check_name(name)
        self._hosts: tuple[int, dict[str, Host]] = (0, {})
        self._joined = False
        with locked(socket_dir()):
            self.path = directory() / self.name
            purge(self.path)
            (self.path / "hosts").mkdir(mode=0o700, parents=True, exist_ok=True)
            os.chmod(self.path, 0o700)
            found = os.stat(self.path)
            self.ident = struct.pack("<QI", found.st_ino, found.st_dev & 0xFFFFFFFF)
            others = self.hosts().values()
            self.host = self._new_host(vm, host_name, ips, list(others))
            self._file = self.path / "hosts" / self.host.key
            self._lock = _write_host(self._file, self.host)
            self._joined = True
            self.key = self.host.key
            (self.path / self.key).mkdir(mode=0o700)
        self.fd = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    changed: Callable[[], object] = staticmethod(lambda: None)
    """Told when our own host has changed."""

    def _new_host(self, vm: str, name: str, ips: list[bytes], others: list[Host]) -> Host:
        taken = {ip for host in others for ip in host.ips}
        if not ips:
            for number in range(FIRST, LAST + 1):
                if SUBNET4 + bytes([number]) not in taken:
                    ips = [SUBNET4 + bytes([number])]
                    break
            else:
                raise OSError(errno.EADDRNOTAVAIL, f"network {self.name}: no address is free")
        if len(ips) == 1 and len(ips[0]) == 4:
            ips = [ips[0], second_address(ips[0])]
        for ip in ips:
            if ip in taken:
                raise Exists(f"network {self.name}: there is a host {address.text(ip)} already")
        used = {known for host in others for known in host.names}
        if name in used:
            raise Exists(f"network {self.name}: there is a host {name} already")
        number = 1
        while f"{self.name}{number}" in used:
            number += 1
        names = dict.fromkeys((name, f"{self.name}{number}"))
        return Host(secrets.token_hex(4), tuple(names), tuple(ips), vm, os.getpid())

    def leave(self) -> None:
        """Remove the host, and the network with its last one."""
        if not self._joined:
            return
        self._joined = False
        with locked(socket_dir()):
            _unlock(self._lock)
            os.close(self.fd)
            self.fd = -1  # sockets that are left find nothing
            purge(self.path)
            _tidy()

    # --- hosts -----------------------------------------------------------------------------------

    def hosts(self) -> dict[str, Host]:
        """The hosts by key."""
        try:
            changed = os.stat(self.path / "hosts").st_mtime_ns
            if changed != self._hosts[0]:
                # the clock that stamps files is coarse: another change may get the same time
                old = time.time_ns() - changed > _COARSE
                self._hosts = (changed if old else 0, read_hosts(self.path))
                self.seen(*self._hosts)
        except FileNotFoundError:
            return {}
        return self._hosts[1]

    def update(self, **changes: Any) -> None:
        """Change what others see of our host."""
        self.host = self.host._replace(**changes)
        self.changed()
        with locked(socket_dir()):
            old = self._lock
            self._lock = _write_host(self._file, self.host)
            _unlock(old)

    def owner(self, ip: bytes) -> Host | None:
        """The host with an address."""
        for host in self.hosts().values():
            if ip in host.ips:
                return host
        return None

    def added_names(self) -> dict[str, bytes]:
        """The names that aren't those of hosts."""
        found: dict[str, bytes] = {}
        try:
            for path in (self.path / "names").iterdir():
                found[path.name] = address.packed(path.read_text())
        except (FileNotFoundError, ValueError):
            pass
        return found

    def lookup(self, name: str) -> list[bytes]:
        """The addresses of a name, with or without the domain; empty: there is none."""
        name = name.lower().rstrip(".")
        found: list[bytes] = []
        added = self.added_names()
        for each in dict.fromkeys((name, name.removesuffix("." + DOMAIN))):
            for host in self.hosts().values():
                if each in host.names:
                    found += host.ips
            if each in added:
                found.append(added[each])
        return list(dict.fromkeys(found))

    # --- sockets ---------------------------------------------------------------------------------

    def place(self, name: str) -> str:
        """The path of a socket, short wherever the directory is."""
        return f"/proc/self/fd/{self.fd}/{name}"

    def unlink(self, name: str) -> None:
        """Remove a name, if it is there."""
        if self.fd < 0:
            return
        try:
            os.unlink(name, dir_fd=self.fd)
        except FileNotFoundError:
            pass

    def alive(self, name: str, kind: int) -> bool:
        """Has any process the socket (SOCK_STREAM or SOCK_DGRAM) with this name?"""
        return alive(self.place(name), kind)

    def members(self, name: str) -> list[str]:
        """The names of sockets that share an address or are in a group."""
        try:
            with os.scandir(self.path / f"{name}+") as entries:
                return [f"{name}+/{entry.name}" for entry in entries]
        except FileNotFoundError:
            return []

    def join_group(self, name: str, member: str) -> str:
        """Let the socket called `member` be found under `name` too; what to unlink in the end."""
        group = f"{name}+"
        try:
            os.mkdir(group, 0o700, dir_fd=self.fd)
        except FileExistsError:
            pass
        link = f"{group}/{member.replace('/', '_')}"
        self.unlink(link)
        os.link(member, link, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        return link

    def leftovers(self) -> list[bytes]:
        """What there is to remove if we are killed; directories that may be shared end with "/"."""
        path = os.fsencode(self.path)
        own = [os.fsencode(self._file), path + b"/" + self.key.encode()]
        return [*own, path + b"/hosts/", path + b"/", os.path.dirname(path) + b"/"]

    def leave_group(self, name: str, member: str) -> None:
        """Undo `join_group`."""
        self.unlink(f"{name}+/{member.replace('/', '_')}")


# --- files ---------------------------------------------------------------------------------------


def _write_host(path: Path, host: Host) -> int:
    """Write a host's file and lock it; the descriptor that holds the lock."""
    text = json.dumps(host._asdict() | {"ips": [address.text(ip) for ip in host.ips]})
    new = path.with_name(f".{path.name}")
    fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    os.write(fd, text.encode())
    os.rename(new, path)
    return fd


def _unlock(fd: int) -> None:
    """Give a lock up: a child of ours, that of the first guest, may have the descriptor too."""
    fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)


def read_hosts(path: Path) -> dict[str, Host]:
    """The hosts of a network by key."""
    found = {}
    for file in sorted((path / "hosts").iterdir()):
        try:
            fields = json.loads(file.read_text())
        except (OSError, ValueError):
            continue
        fields["ips"] = tuple(address.packed(ip) for ip in fields["ips"])
        fields["names"] = tuple(fields["names"])
        if not file.name.startswith("."):
            found[file.name] = Host(**fields)
    return found


def _dead(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def purge(path: Path) -> bool:
    """Remove what dead hosts left, and the network if no host lives; is it there still?

    To be called with `socket_dir()` locked.
    """
    try:
        files = list((path / "hosts").iterdir())
    except FileNotFoundError:
        return False
    dead = [file.name.lstrip(".") for file in files if _dead(file)]
    if len(dead) == len(files):
        shutil.rmtree(path, ignore_errors=True)
        return False
    for key in dead:
        (path / "hosts" / key).unlink(missing_ok=True)
        shutil.rmtree(path / key, ignore_errors=True)
    return True


def networks() -> dict[str, dict[str, Host]]:
    """All networks of this user and their hosts."""
    found = {}
    with locked(socket_dir()):
        for path in sorted(directory().iterdir()):
            if purge(path):
                found[path.name] = read_hosts(path)
        _tidy()
    return found


def _tidy() -> None:
    """Remove the directory of networks if there are none."""
    try:
        directory().rmdir()
    except OSError:
        pass


def listeners(network: str, key: str) -> list[str]:
    """What a host's sockets are bound to: tcp/PORT, udp/PORT."""
    found = set()
    for kind, protocol in ((address.STREAM, "tcp"), (address.DATAGRAM, "udp")):
        for path in (directory() / network / key).glob(f"{kind}.*"):
            parsed = address.parse_name(f"{key}/{path.name.rstrip('+')}")
            type_ = socket.SOCK_STREAM if kind == address.STREAM else socket.SOCK_DGRAM
            if parsed is not None and (path.is_dir() or alive(str(path), type_)):
                found.add((protocol, parsed[1].port))
    return [f"{protocol}/{port}" for protocol, port in sorted(found)]


def alive(path: str, kind: int) -> bool:
    """Has any process the socket (SOCK_STREAM or SOCK_DGRAM) with this path?

    A connect by a socket of the other type tells, and disturbs nobody.
    """
    other = socket.SOCK_DGRAM if kind == socket.SOCK_STREAM else socket.SOCK_STREAM
    with socket.socket(socket.AF_UNIX, other) as probe:
        try:
            probe.connect(path)
        except OSError as error:
            return error.errno == errno.EPROTOTYPE
    return True  # can't be


def change_name(network: str, name: str, text: str | None) -> None:
    """Let a name be an address, or (None) nothing. UsageError, NotFound."""
    name = name.lower().removesuffix("." + DOMAIN)
    if not name or "/" in name or name.startswith("."):
        raise UsageError(f"bad host name {name!r}")
    names = directory() / network / "names"
    if not names.parent.is_dir():
        raise NotFound(f"there is no network {network!r}")
    names.mkdir(mode=0o700, exist_ok=True)
    if text is None:
        try:
            (names / name).unlink()
        except FileNotFoundError:
            raise NotFound(f"no name {name!r} was added") from None
        return
    try:
        address.packed(text)
    except ValueError as error:
        raise UsageError(str(error)) from None
    (names / name).write_text(text)


def find_host(hosts: dict[str, Host], wanted: str) -> Host:
    """A host by name or address. NotFound."""
    name = wanted.removesuffix("." + DOMAIN)
    for host in hosts.values():
        if name in host.names or wanted in map(address.text, host.ips):
            return host
    raise NotFound(f"there is no host {wanted!r}")


__all__ = ["DOMAIN", "Address", "Host", "Network", "directory", "find_host", "networks"]
