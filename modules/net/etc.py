"""/etc/hosts and /etc/resolv.conf as the caller's stack wants them."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from umvm.interfaces.filesystem import caller

from .stackfile import TextFile

if TYPE_CHECKING:
    from .stacks import Stacks


class EtcFile(TextFile):
    """One of the two files."""

    def __init__(self, stacks: Stacks, path: bytes, method: str) -> None:
        """`method` of a stack gives its text, or None for that of the host's file at `path`."""
        self._stacks, self._path, self._method = stacks, path, method

    def text(self) -> bytes:
        """By the stack that the caller uses for IPv4."""
        stack = self._stacks.of(caller().pid or os.getpid(), socket.AF_INET)
        own: str | None = getattr(stack, self._method)()
        if own is not None:
            return own.encode()
        try:
            with open(self._path, "rb") as file:
                return file.read()
        except OSError:
            return b""
