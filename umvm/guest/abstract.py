"""Abstract AF_UNIX names that are private to a VM: on the host they begin with a name of its own.

**Source**: unix(7). The names of autobind, five hexadecimal digits, are the kernel's to choose and
stay as they are.
"""

from __future__ import annotations

import hashlib
import secrets

from core_accel.lazy import pattern

ROOM = 107
"""Bytes of an abstract name, without the NUL before it."""
_HASHED = b"#"
_AUTOBIND = pattern(rb"[0-9a-f]{5}\Z")


class AbstractNames:
    """Guests' names ↔ the host's. Names are without the NUL before them."""

    def __init__(self) -> None:
        self._prefix = b"umvm/" + secrets.token_hex(4).encode() + b"/"
        self._long: dict[bytes, bytes] = {}

    def outside(self, name: bytes) -> bytes:
        """The host's name for a guest's; long ones by their hash."""
        if name.startswith(self._prefix) or _AUTOBIND.match(name):
            return name  # a sender's, as recvfrom(2) shows it
        if len(self._prefix + name) <= ROOM and not name.startswith(_HASHED):
            return self._prefix + name
        short = self._prefix + _HASHED + hashlib.sha256(name).digest()
        self._long[short] = name
        return short

    def inside(self, name: bytes) -> bytes:
        """The guest's name for a host's."""
        if name in self._long:
            return self._long[name]
        return name.removeprefix(self._prefix)
