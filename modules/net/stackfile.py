"""The file that a mounted stack is: reading it describes the stack."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from umvm.interfaces.filesystem import Attr, FileHandle, FileSystem
from umvm.interfaces.network import NetworkStack

if TYPE_CHECKING:
    from .stacks import Stacks


class TextFile(FileSystem):
    """A file system that is one file, whose text is made when it is looked at."""

    stable_inodes = True
    open_unlinked = True
    needs_point = False

    def text(self) -> bytes:
        """The content now."""
        raise NotImplementedError

    def getattr(self, path: bytes, fh: FileHandle = None) -> Attr:
        """**Errors** ENOTDIR: a file has nothing below it."""
        if path != b"/":
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        size = len(fh if isinstance(fh, bytes) else self.text())
        return Attr(stat.S_IFREG | 0o444, ino=1, size=size)

    def open(self, path: bytes, flags: int) -> FileHandle:
        """The text stays as it is while the file is open."""
        return self.text()

    def read(self, path: bytes, fh: FileHandle, size: int, offset: int) -> bytes:
        """A part of the text."""
        data: bytes = fh
        return data[offset : offset + size]


class StackFile(TextFile):
    """A mounted stack."""

    def __init__(self, stacks: Stacks, stack: NetworkStack, owned: bool = False) -> None:
        """`owned`: the stack ends with the mount."""
        self._stacks, self.stack, self._owned = stacks, stack, owned

    def text(self) -> bytes:
        """What the stack says of itself."""
        return os.fsencode(self.stack.describe())

    def in_use(self) -> str:
        """Open sockets keep a stack that would end."""
        count = self._stacks.uses(self.stack) if self._owned else 0
        return f"{count} open socket{'s' * (count > 1)}" if count else ""

    def destroy(self) -> None:
        """End the stack, if it is this mount's."""
        self._stacks.unmounted(self.stack, self._owned)
