"""Messages of the control socket: a length, then JSON; descriptors travel alongside.

    request   {"v": 1, "verb": "mount", "args": {…}}
    answer    {"ok": true, "result": …}   or   {"ok": false, "error": "…", "code": 16}

The length is 4 bytes, big-endian. File names that are not UTF-8 travel as lone surrogates
(os.fsdecode), which JSON's escapes keep.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import stat
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

from umvm.errors import Denied, UmvmError
from umvm.specs import check_name

VERSION = 1
MAX_MESSAGE = 16 << 20
MAX_FDS = 16
SUFFIX = ".sock"

_LENGTH = struct.Struct(">I")
_UCRED = struct.Struct("3i")
_SUN_PATH_MAX = 107


class ProtocolError(UmvmError):
    """The peer doesn't speak this protocol."""


class Peer(NamedTuple):
    """Who is at the other end, as the kernel saw it at connect(2) or listen(2)."""

    pid: int
    uid: int
    gid: int


caller: ContextVar[Peer | None] = ContextVar("caller", default=None)
"""Who asks for the verb that is being answered in this thread."""


def peer_of(sock: socket.socket) -> Peer:
    """Return the peer's credentials. **Source**: unix(7), SO_PEERCRED."""
    return Peer(*_UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))


def socket_dir() -> Path:
    """Return the private directory of this user's control sockets, made if missing.

    **Errors** Denied: it exists and is not a directory of ours that others can't enter.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime and _owned(Path(runtime)):
        path = Path(runtime) / "umvm"
    else:
        path = Path(f"/tmp/umvm-{os.geteuid()}")
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        pass
    if not _owned(path) or path.lstat().st_mode & 0o077:
        raise Denied(f"{path} must be a directory of yours with mode 0700")
    return path


def socket_path(name: str) -> Path:
    """Return the control socket's path of the VM called `name`."""
    path = socket_dir() / f"{check_name(name)}{SUFFIX}"
    if len(os.fsencode(path)) > _SUN_PATH_MAX:
        raise UmvmError(f"{path}: too long for a socket; choose a shorter name")
    return path


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a directory's lock: nobody takes a socket that is about to listen for a dead one."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def send(sock: socket.socket, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
    """Send one message; copies of `fds` go with its first byte."""
    body = json.dumps(message).encode("ascii")
    if len(body) > MAX_MESSAGE:
        raise ProtocolError("message too long")
    data = _LENGTH.pack(len(body)) + body
    sent = socket.send_fds(sock, [data], list(fds)) if fds else 0
    sock.sendall(data[sent:])


def receive(sock: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Receive one message and its descriptors, which the caller then owns; None at the end.

    **Errors** ProtocolError: not a message; descriptors received so far are closed.
    """
    fds: list[int] = []
    try:
        head = _exactly(sock, _LENGTH.size, fds)
        if not head:
            return None
        (length,) = _LENGTH.unpack(head)
        if length > MAX_MESSAGE:
            raise ProtocolError("message too long")
        message = json.loads(_exactly(sock, length, fds))
        if not isinstance(message, dict):
            raise ProtocolError("message is not an object")
    except BaseException as error:
        close_all(fds)
        if isinstance(error, ValueError | RecursionError):
            raise ProtocolError(f"message is not JSON: {error}") from None
        raise
    return message, fds


def close_all(fds: list[int]) -> None:
    """Close and forget descriptors."""
    while fds:
        os.close(fds.pop())


def _exactly(sock: socket.socket, length: int, fds: list[int]) -> bytes:
    """Read `length` bytes; empty only if the peer closed before the first one."""
    data = bytearray()
    while len(data) < length:
        chunk, received, _, _ = socket.recv_fds(
            sock, min(length - len(data), 1 << 16), MAX_FDS, socket.MSG_CMSG_CLOEXEC
        )
        fds.extend(received)
        if not chunk:
            if data:
                raise ProtocolError("connection closed inside a message")
            break
        data += chunk
    return bytes(data)


def _owned(path: Path) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
