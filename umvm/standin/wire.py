"""The protocol between the supervisor and a guest that serves a file system.

One SOCK_SEQPACKET connection; the supervisor asks, the guest answers, in any order. All numbers are
little-endian; nothing is ever unpickled, and the supervisor checks what it gets.

    request   ident u32, operation u8, uid u32, gid u32, pid i32, then the arguments
    answer    ident u32, errno i32 (0: done), more u8 (another part follows), then the result

Arguments and results are written by their letters in `OPERATIONS`:

    p  bytes: length u32, data        h  file handle: u64, 0 is None
    q  i64     ?  bool u8     d  f64  t  i64 that may be None: bool, i64
    A  Attr    S  StatFs              E  entries: count u32, then p ino u64 kind u32 each
    L  list of bytes: count u32, then p each

A result longer than a message is cut into parts. Importable by itself on Python 3.8 and later.
"""

# ruff: noqa: TID252 (this package has another name in guests)
from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from ..interfaces.filesystem import Attr, Entry, StatFs

REQUEST = struct.Struct("<IBIIi")
ANSWER = struct.Struct("<IiB")
CHUNK = 1 << 17
"""The most file content in one message, as in Linux's FUSE by default."""
MESSAGE = CHUNK + (1 << 14)
"""No message is longer: well below a socket's default buffer."""

OPERATIONS: dict[str, tuple[str, str]] = {
    "init": ("", "?????dpL"),
    "getattr": ("ph", "A"),
    "access": ("pq", ""),
    "chmod": ("pqh", ""),
    "chown": ("pqqh", ""),
    "truncate": ("pqh", ""),
    "utimens": ("ptth", ""),
    "statfs": ("p", "S"),
    "readlink": ("p", "p"),
    "mknod": ("pqq", ""),
    "mkdir": ("pq", ""),
    "unlink": ("p", ""),
    "rmdir": ("p", ""),
    "symlink": ("pp", ""),
    "rename": ("ppq", ""),
    "link": ("pp", ""),
    "opendir": ("p", "h"),
    "readdir": ("ph", "E"),
    "fsyncdir": ("ph?", ""),
    "releasedir": ("ph", ""),
    "open": ("pq", "h"),
    "create": ("pqq", "h"),
    "read": ("phqq", "p"),
    "write": ("phpq", "q"),
    "flush": ("ph", ""),
    "fsync": ("ph?", ""),
    "release": ("ph", ""),
    "fallocate": ("phqqq", ""),
    "ioctl": ("phqp", "p"),
    "getxattr": ("pp", "p"),
    "setxattr": ("pppq", ""),
    "listxattr": ("p", "L"),
    "removexattr": ("pp", ""),
}
"""The methods of `FileSystem` that travel, with the letters of their arguments and result."""

NAMES = tuple(OPERATIONS)
NUMBERS = {name: number for number, name in enumerate(NAMES)}

_U32 = struct.Struct("<I")
_PLAIN = {
    "h": struct.Struct("<Q"),
    "q": struct.Struct("<q"),
    "?": struct.Struct("<?"),
    "d": struct.Struct("<d"),
}
_TIME = struct.Struct("<?q")
_ATTR = struct.Struct("<IQIIIQqqqqqIq")
_STATFS = struct.Struct("<QQQQQQQI")
_ENTRY = struct.Struct("<QI")


class WireError(Exception):
    """The peer sent what isn't a message of this protocol."""


def pack(letters: str, values: Sequence[Any]) -> bytes:
    """Write values by their letters. struct.error: a number is out of range."""
    parts: list[bytes] = []
    for letter, value in zip(letters, values):  # noqa: B905 (Python 3.8)
        if letter in _PLAIN:
            parts.append(_PLAIN[letter].pack(value))
        elif letter == "p":
            parts += (_U32.pack(len(value)), value)
        elif letter == "t":
            parts.append(_TIME.pack(value is not None, value or 0))
        elif letter == "A":
            parts.append(_ATTR.pack(*value))
        elif letter == "S":
            parts.append(_STATFS.pack(*value))
        elif letter == "L":
            parts.append(_U32.pack(len(value)))
            parts += [_U32.pack(len(item)) + item for item in value]
        else:
            parts.append(_U32.pack(len(value)))
            for name, ino, kind in value:
                parts.append(_U32.pack(len(name)) + name + _ENTRY.pack(ino, kind))
    return b"".join(parts)


def unpack(letters: str, data: bytes) -> list[Any]:
    """Read what `pack` wrote. **Errors** WireError: it isn't that."""
    reader = _Reader(data)
    try:
        values = [reader.value(letter) for letter in letters]
    except struct.error as error:
        raise WireError(str(error)) from None
    if reader.at != len(data):
        raise WireError("message too long")
    return values


class _Reader:
    """Takes values from the front of a message."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, kind: struct.Struct) -> Any:
        values = kind.unpack_from(self.data, self.at)
        self.at += kind.size
        return values

    def bytes(self) -> bytes:
        (length,) = self.take(_U32)
        end = self.at + length
        if end > len(self.data):
            raise WireError("message too short")
        data = self.data[self.at : end]
        self.at = end
        return data

    def value(self, letter: str) -> Any:
        if letter in _PLAIN:
            return self.take(_PLAIN[letter])[0]
        if letter == "p":
            return self.bytes()
        if letter == "t":
            given, value = self.take(_TIME)
            return value if given else None
        if letter == "A":
            return Attr(*self.take(_ATTR))
        if letter == "S":
            return StatFs(*self.take(_STATFS))
        (count,) = self.take(_U32)
        if count > len(self.data):
            raise WireError("message too short")
        if letter == "L":
            return [self.bytes() for _ in range(count)]
        return [Entry(self.bytes(), *self.take(_ENTRY)) for _ in range(count)]


def answers(ident: int, error: int, result: bytes = b"") -> list[bytes]:
    """The messages that answer a request."""
    parts = [result[at : at + CHUNK] for at in range(0, len(result), CHUNK)] or [b""]
    last = len(parts) - 1
    return [ANSWER.pack(ident, error, at < last) + part for at, part in enumerate(parts)]
