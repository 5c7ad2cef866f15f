"""Copies of served programs, made when they are executed.

A program that the kernel is to execute must be a file that nobody has open for writing, so it
can't be the node's own. A copy `x/ID/NAME` in the shadow directory has the program's name, since
the kernel takes a process's name from it; it is kept for the next execution until the file changes.
"""

from __future__ import annotations

import errno
import itertools
import os
import threading
from collections.abc import Callable
from typing import Any

from umvm.guest.interpreter import replace_interpreter
from umvm.guest.mounts import Mount
from umvm.guest.shadow import Shadow, remove_tree
from umvm.interfaces.filesystem import Attr

KEPT = 64
"""Copies kept; the kernel keeps the content of a deleted one while it runs."""
REMEMBERED = 4096
"""Copies whose program is known by name, should it still run."""
PIECE = 1 << 20


class Image:
    """A copy of a program, served or (mount None) of the host."""

    def __init__(
        self,
        mount: Mount | None,
        path: bytes,
        version: tuple[int, int, int, int],
        file: bytes,
        interpreter: tuple[bytes, bytes | None] | None = None,
    ) -> None:
        """`interpreter`: the ELF interpreter that the program names, and what the copy names."""
        self.mount, self.path, self.version, self.file = mount, path, version, file
        self.interpreter = interpreter
        self.deleted = self.directory = False
        self.last: Attr | None = None
        self.fh: None = None


class Images:
    """The copies of one VM."""

    def __init__(self, shadow: Shadow) -> None:
        self._base = shadow.path + b"/x"
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._known: dict[tuple[int, bytes], Image] = {}
        self._by_id: dict[bytes, Image] = {}
        self._links: dict[tuple[bytes, bytes], bytes] = {}

    def get(
        self, mount: Mount | None, path: bytes, attr: Attr,
        interpreter: Callable[[bytes], bytes | None], fh: Any = None,
    ) -> bytes:  # fmt: skip
        """The path of an executable copy of a served file. OSError: it can't be read.

        `interpreter(path)`: where a copy of an ELF interpreter that is served itself lies, or None.
        `fh`: the handle by which a file that has no name any more is read.
        """
        version = (attr.ino, attr.size, attr.mtime_ns, attr.ctime_ns)
        ident = b"%d" % next(self._ids)
        number = mount.ident if mount is not None else 0
        key = (number, path if fh is None else b"\0" + ident)
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
                _remove(self._known.pop(key).file)
            while len(self._known) >= KEPT:
                _remove(self._known.pop(next(iter(self._known))).file)
        image = Image(mount, path, version, self._place(ident, path))
        image.deleted = fh is not None

        def place(name: bytes) -> bytes | None:
            image.interpreter = name, interpreter(name)
            return image.interpreter[1]

        try:
            _copy(image, attr, place, fh)
        except OSError:
            _remove(image.file)
            raise
        with self._lock:
            self._known[key] = image
            self._by_id[ident] = image
            if len(self._by_id) > REMEMBERED:
                del self._by_id[next(iter(self._by_id))]
        return image.file

    def called(self, file: bytes, name: bytes) -> bytes:
        """A path of `file` whose last component is `name`: the kernel calls the process so."""
        if os.path.basename(file) == name:
            return file
        with self._lock:
            link = self._links.pop((file, name), None)
            if link is None:
                link = self._place(b"%d" % next(self._ids), name)
                os.symlink(file, link)
            self._links[file, name] = link
            if len(self._links) > KEPT:
                _remove(self._links.pop(next(iter(self._links))))
            return link

    def named(self, link: bytes) -> Image | None:
        """The served program that a /proc/PID/exe link names; it may be one that was dropped."""
        image = self._of(link)
        return image if image is not None and image.mount is not None else None

    def real(self, link: bytes) -> bytes:
        """What a link to the copy of a program of the host stands for; others as they are."""
        image = self._of(link)
        return image.path if image is not None and image.mount is None else link

    def _of(self, link: bytes) -> Image | None:
        if not link.startswith(self._base + b"/"):
            return None
        return self._by_id.get(link[len(self._base) + 1 :].split(b"/", 1)[0])

    def running(self, mount: Mount, path: bytes, attr: Attr) -> bool:
        """Is a served file being executed? Opening it for writing is ETXTBSY then."""
        if not self._known:
            return False
        ino = attr.ino if mount.fs.stable_inodes else 0
        with self._lock:
            images = [image for image in self._known.values() if image.mount is mount]
        for image in images:
            if image.version[0] == ino if ino else image.path == path and not image.deleted:
                try:
                    os.close(os.open(image.file, os.O_WRONLY | os.O_CLOEXEC))
                except OSError as error:
                    if error.errno == errno.ETXTBSY:
                        return True
        return False

    def moved(self, mount: Mount, old: bytes, new: bytes, exchange: bool = False) -> None:
        """A file or directory was renamed; `exchange`: both were."""
        if not self._known:
            return
        pairs = ((old, new), (new, old)) if exchange else ((old, new),)
        with self._lock:
            for key, image in list(self._known.items()):
                for one, other in pairs if image.mount is mount and not image.deleted else ():
                    if image.path == one or image.path.startswith(one + b"/"):
                        image.path = other + image.path[len(one) :]
                        del self._known[key]
                        self._known[mount.ident, image.path] = image
                        break

    def removed(self, mount: Mount, path: bytes) -> None:
        """A name was removed: what runs goes on."""
        if not self._known:
            return
        with self._lock:
            image = self._known.pop((mount.ident, path), None)
            if image is not None:
                image.deleted = True
                self._known[mount.ident, b"\0" + image.file] = image

    def forget(self, mount: Mount) -> None:
        """Delete the copies of a mount's programs."""
        with self._lock:
            for key, image in list(self._known.items()):
                if image.mount is mount:
                    _remove(self._known.pop(key).file)

    def _place(self, ident: bytes, path: bytes) -> bytes:
        file = os.path.join(self._base, ident, os.path.basename(path) or b"program")
        os.mkdir(os.path.dirname(file), 0o711)
        return file


def _remove(file: bytes) -> None:
    remove_tree(os.path.dirname(file))


def _copy(image: Image, attr: Attr, place: Callable[[bytes], bytes | None], fh: Any) -> None:
    out = os.open(image.file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o700)
    try:
        if image.mount is None:
            _from_host(image.path, out)
        else:
            _from_mount(image.mount, image.path, out, attr, fh)
        replace_interpreter(out, place)
        os.fchmod(out, 0o755)
    finally:
        os.close(out)


def _from_host(path: bytes, out: int) -> None:
    source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while os.sendfile(out, source, None, PIECE):
            pass
    finally:
        os.close(source)


def _from_mount(mount: Mount, path: bytes, out: int, attr: Attr, fh: Any) -> None:
    fs = mount.fs
    own = fs.open(path, os.O_RDONLY) if fh is None else fh
    try:
        at = 0
        while at < attr.size:
            data = fs.read(path, own, min(PIECE, attr.size - at), at)
            if not data:
                break
            at += os.pwrite(out, data, at)
    finally:
        if fh is None:
            fs.release(path, own)
