"""Copies of served programs, made when they are executed.

A program that the kernel is to execute must be a file that nobody has open for writing, so it
can't be the node's own. A copy `x/ID/NAME` in the shadow directory has the program's name, since
the kernel takes a process's name from it; it is kept for the next execution until the file changes.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import threading
from collections.abc import Callable
from typing import NamedTuple

from umvm.guest.interpreter import replace_interpreter
from umvm.guest.mounts import Mount
from umvm.guest.shadow import Shadow
from umvm.interfaces.filesystem import Attr

KEPT = 64
"""Copies kept; the kernel keeps the content of a deleted one while it runs."""
REMEMBERED = 4096
"""Copies whose program is known by name, should it still run."""
PIECE = 1 << 20


class Image(NamedTuple):
    """A copy of a program."""

    mount: Mount
    path: bytes
    version: tuple[int, int, int, int]
    file: bytes
    interpreter: tuple[bytes, bytes | None] | None = None
    """The ELF interpreter that the program names, and what the copy names instead."""
    deleted: bool = False
    directory: bool = False


class Images:
    """The copies of one VM."""

    def __init__(self, shadow: Shadow) -> None:
        self._base = shadow.path + b"/x"
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._known: dict[tuple[int, bytes], Image] = {}
        self._by_id: dict[bytes, Image] = {}

    def get(
        self, mount: Mount, path: bytes, attr: Attr, interpreter: Callable[[bytes], bytes | None]
    ) -> bytes:
        """The path of an executable copy of a served file. OSError: it can't be read.

        `interpreter(path)`: where a copy of an ELF interpreter that is served itself lies, or None.
        """
        version = (attr.ino, attr.size, attr.mtime_ns, attr.ctime_ns)
        key = (mount.ident, path)
        with self._lock:
            known = self._known.pop(key, None)
            if known is not None:
                self._known[key] = known  # the last to be dropped
        if known is not None and known.version == version:
            name, used = known.interpreter or (b"", None)
            if not name or interpreter(name) == used:
                return known.file
        with self._lock:
            if known is not None and self._known.get(key) is known:
                self._drop(self._known.pop(key))
            while len(self._known) >= KEPT:
                self._drop(self._known.pop(next(iter(self._known))))
        ident = b"%d" % next(self._ids)
        file = os.path.join(self._base, ident, os.path.basename(path) or b"program")
        os.mkdir(os.path.dirname(file), 0o711)
        asked: list[tuple[bytes, bytes | None]] = []

        def place(name: bytes) -> bytes | None:
            asked.append((name, interpreter(name)))
            return asked[0][1]

        try:
            _copy(mount, path, file, attr, place)
        except OSError:
            shutil.rmtree(os.path.dirname(file), ignore_errors=True)
            raise
        image = Image(mount, path, version, file, asked[0] if asked else None)
        with self._lock:
            self._known[key] = image
            self._by_id[ident] = image
            if len(self._by_id) > REMEMBERED:
                del self._by_id[next(iter(self._by_id))]
        return file

    def named(self, link: bytes) -> Image | None:
        """The image that a /proc/PID/exe link names; it may be one that was dropped."""
        if not link.startswith(self._base + b"/"):
            return None
        return self._by_id.get(link[len(self._base) + 1 :].split(b"/", 1)[0])

    def running(self, mount: Mount, path: bytes) -> bool:
        """Is a served file being executed? Opening it for writing is ETXTBSY then."""
        image = self._known.get((mount.ident, path))
        if image is None:
            return False
        try:
            os.close(os.open(image.file, os.O_WRONLY | os.O_CLOEXEC))
        except OSError as error:
            return error.errno == errno.ETXTBSY
        return False

    def forget(self, mount: Mount) -> None:
        """Delete the copies of a mount's programs."""
        with self._lock:
            for key, image in list(self._known.items()):
                if image.mount is mount:
                    self._drop(self._known.pop(key))

    def _drop(self, image: Image) -> None:
        shutil.rmtree(os.path.dirname(image.file), ignore_errors=True)


def _copy(
    mount: Mount, path: bytes, file: bytes, attr: Attr, interpreter: Callable[[bytes], bytes | None]
) -> None:
    fh = mount.fs.open(path, os.O_RDONLY)
    try:
        out = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o700)
        try:
            at = 0
            while at < attr.size:
                data = mount.fs.read(path, fh, min(PIECE, attr.size - at), at)
                if not data:
                    break
                at += os.pwrite(out, data, at)
            replace_interpreter(out, interpreter)
            os.fchmod(out, 0o755)
        finally:
            os.close(out)
    finally:
        mount.fs.release(path, fh)
