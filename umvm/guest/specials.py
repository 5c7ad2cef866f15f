"""FIFOs and bound sockets on mounts: each has a real object `p/ID` in the shadow directory.

Reading, writing, connecting and waiting are the kernel's; the name, owner and mode are the served
file's. A placeholder belongs to a file, so that all its hard links meet in one.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from typing import Any

from umvm.guest.mounts import Mount
from umvm.guest.shadow import Shadow
from umvm.interfaces.filesystem import Attr


class Special:
    """A served FIFO or socket that is, or was, in use."""

    def __init__(self, mount: Mount, path: bytes, place: bytes, given: bytes, ino: int = 0) -> None:
        """`given`: the name that the guest bound a socket to."""
        self.mount, self.path, self.place, self.given, self.ino = mount, path, place, given, ino
        self.deleted = self.directory = False
        self.last: Attr | None = None
        self.fh: Any = None
        self.flags = 0


class Specials:
    """The FIFOs and sockets of one VM."""

    def __init__(self, shadow: Shadow, on_change: Callable[[], None] = lambda: None) -> None:
        """`on_change()` is called when `len()` changes."""
        self._shadow, self._on_change = shadow, on_change
        self._prefix = shadow.path + b"/p/"
        self._ids = itertools.count(1)
        self._lock = threading.RLock()
        self._by_id: dict[bytes, Special] = {}
        self._short: dict[bytes, bytes] = {}
        self._given: dict[bytes, bytes] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def named(self, link: bytes) -> Special | None:
        """What a /proc/PID/fd link into `p` stands for."""
        if not link.startswith(self._prefix):
            return None
        return self._by_id.get(link[len(self._prefix) :].split(b" ", 1)[0])

    def find(self, mount: Mount, path: bytes) -> bytes | None:
        """The placeholder of a file, if it has one."""
        with self._lock:
            special = self._of(mount, path, _ino(mount, mount.fs.getattr(path)))
            return special.place if special is not None else None

    def new(self, mount: Mount, path: bytes, given: bytes) -> bytes:
        """Where the object of a file that was just made is to be made."""
        return self._new(mount, path, mount.fs.getattr(path), given).place

    def fifo(self, mount: Mount, path: bytes, attr: Attr) -> bytes:
        """The real FIFO of a served one."""
        with self._lock:
            special = self._of(mount, path, _ino(mount, attr))
            if special is None:
                special = self._new(mount, path, attr, b"")
                os.mkfifo(special.place)
                os.chmod(special.place, 0o666)  # who may open it was checked
            return special.place

    def given_name(self, place: bytes) -> bytes | None:
        """The name that a guest gave a socket with this placeholder."""
        special = self.named(place)
        return special.given if special is not None else self._given.get(place)

    def short_path(self, path: bytes, given: bytes, bound: bool) -> bytes:
        """A shorter path that leads to a long one of the host; `given` is what the guest said, and
        what its socket is called if it is `bound` by that."""
        directory, _, name = path.rpartition(b"/")
        with self._lock:
            link = self._short.get(directory)
            if link is None:
                link = self._shadow.place("p", next(self._ids))
                os.symlink(directory, link)
                self._short[directory] = link
            short = link + b"/" + name
            if bound:
                self._given[short] = given
            else:
                self._given.setdefault(short, given)
        return short

    def moved(self, mount: Mount, old: bytes, new: bytes, exchange: bool = False) -> None:
        """A file or directory was renamed; `exchange`: both were."""
        with self._lock:
            for special in self._of_mount(mount):
                for one, other in ((old, new), (new, old)) if exchange else ((old, new),):
                    if special.path == one or special.path.startswith(one + b"/"):
                        special.path = other + special.path[len(one) :]
                        break

    def removed(self, mount: Mount, path: bytes, attr: Attr) -> None:
        """A name was removed; `attr` is what the file was before. With the last one it is gone."""
        if attr.nlink > 1 or not self._by_id:
            return
        with self._lock:
            special = self._of(mount, path, _ino(mount, attr))
            if special is None:
                return
            special.deleted = True
            special.last = attr._replace(nlink=0)
            self._drop(special)

    def forget_mount(self, mount: Mount) -> None:
        """The mount is gone."""
        with self._lock:
            for special in self._of_mount(mount):
                self._drop(special)
                self._by_id.pop(os.path.basename(special.place), None)
        self._on_change()

    # --- how -------------------------------------------------------------------------------------

    def _of_mount(self, mount: Mount) -> list[Special]:
        return [s for s in self._by_id.values() if s.mount is mount and not s.deleted]

    def _of(self, mount: Mount, path: bytes, ino: int) -> Special | None:
        for special in self._of_mount(mount):
            if (special.ino == ino) if ino else (special.path == path):
                return special
        return None

    def _new(self, mount: Mount, path: bytes, attr: Attr, given: bytes) -> Special:
        ident = next(self._ids)
        place = self._shadow.place("p", ident)
        special = Special(mount, path, place, given, _ino(mount, attr))
        with self._lock:
            self._by_id[b"%d" % ident] = special
        self._on_change()
        return special

    def _drop(self, special: Special) -> None:
        try:
            os.unlink(special.place)
        except FileNotFoundError:
            pass


def _ino(mount: Mount, attr: Attr) -> int:
    """What tells a file from others whatever its name; 0: nothing does."""
    return attr.ino if mount.fs.stable_inodes else 0
