"""The names of open files: what rename(2), unlink(2) and rmdir(2) do to open descriptions."""

from __future__ import annotations

import itertools
import os
import threading
from typing import TYPE_CHECKING

from core_accel.lazy import logger
from umvm.guest.nodes import Key, Node
from umvm.guest.openfile import DirRef, OpenFile
from umvm.interfaces.filesystem import Attr

if TYPE_CHECKING:
    from umvm.guest.mounts import Mount
    from umvm.guest.shadow import Shadow

log = logger(__name__)
_HIDDEN = b".umvm_hidden_"


class OpenNames:
    """Finds open descriptions and served working directories by mount and path."""

    def __init__(self, shadow: Shadow) -> None:
        self._shadow = shadow
        self._ids = itertools.count(1)
        self._lock = threading.RLock()
        self._nodes: dict[Key, Node] = {}
        self._paths: dict[Mount, dict[bytes, list[OpenFile]]] = {}
        self._dirs: dict[tuple[Mount, bytes], DirRef] = {}
        self._dirs_by_id: dict[int, DirRef] = {}
        self._hidden: dict[tuple[Mount, bytes], int] = {}

    # --- by name ---------------------------------------------------------------------------------

    def on_path(self, mount: Mount, path: bytes) -> list[OpenFile]:
        """The open descriptions of the file that has this name now."""
        with self._lock:
            return list(self._paths.get(mount, {}).get(path, ()))

    def node_at(self, mount: Mount, path: bytes, attr: Attr) -> Node | None:
        """The node of a file in use, by whatever name it was opened."""
        stable = mount.fs.stable_inodes and attr.ino
        return self._nodes.get((mount, attr.ino) if stable else (mount, path))

    def setid(self, mount: Mount, path: bytes, attr: Attr) -> None:
        """A file got set-id bits: the next write by an ordinary user clears them."""
        node = self.node_at(mount, path, attr)
        if node is not None:
            node.setid = True

    def directory(self, mount: Mount, path: bytes) -> bytes:
        """The path of the placeholder that a guest's kernel stands in for a served directory."""
        with self._lock:
            known = self._dirs.get((mount, path))
            if known is None:
                ident = next(self._ids)
                known = DirRef(ident, mount, path, self._shadow.place("c", ident))
                os.mkdir(known.place, 0o711)
                self._dirs[mount, path] = self._dirs_by_id[ident] = known
            return known.place

    # --- changes of names ------------------------------------------------------------------------

    def moved(self, mount: Mount, old: bytes, new: bytes, exchange: bool = False) -> None:
        """A file or directory was renamed, with what is below it; `exchange`: both were."""
        with self._lock:
            if not exchange:
                self.removed(mount, new)
            there = self._take(mount, old)
            back = self._take(mount, new) if exchange else []
            self._give(mount, there, old, new)
            self._give(mount, back, new, old)

    def removed(self, mount: Mount, path: bytes, last: Attr | None = None) -> None:
        """The file or empty directory lost this name; open descriptions go on as deleted.

        `last`: its attributes then, to be shown where the file system can't tell them any more.
        """
        with self._lock:
            for file in self._paths.get(mount, {}).pop(path, ()):
                file.deleted, file.last = True, last
                if file.node.key == (mount, path):
                    self._rekey(file.node, (mount, path, file.node))
            ref = self._dirs.pop((mount, path), None)
            if ref is not None:
                ref.deleted, ref.last = True, last

    def conceal(self, file: OpenFile) -> None:
        """A file was made under a hidden name (O_TMPFILE), which is removed with the last close."""
        with self._lock:
            file.hidden, file.deleted, file.linkable = file.path, True, True
            self._hidden[file.mount, file.path] = 1

    def reveal(self, mount: Mount, hidden: bytes, path: bytes) -> None:
        """Such a file was renamed to its first name (linkat)."""
        with self._lock:
            self._hidden.pop((mount, hidden), None)
            for file in self._paths.get(mount, {}).pop(hidden, ()):
                file.path, file.hidden, file.deleted, file.linkable = path, b"", False, False
                self._list(file)
                if file.node.key == (mount, hidden):
                    self._rekey(file.node, (mount, path))

    def hidden_name(self, directory: bytes) -> bytes:
        """A new name in a directory that guests don't see."""
        return _hidden_name(b"" if directory == b"/" else directory)

    def _take(self, mount: Mount, path: bytes) -> list[OpenFile | DirRef]:
        """Unlist all that has this path or one below it."""
        below = path + b"/"
        taken: list[OpenFile | DirRef] = []
        paths = self._paths.get(mount)
        if paths:
            for name in [name for name in paths if name == path or name.startswith(below)]:
                taken += paths.pop(name)
        for key in [key for key in self._dirs if key[0] is mount]:
            if key[1] == path or key[1].startswith(below):
                taken.append(self._dirs.pop(key))
        return taken

    def _give(self, mount: Mount, items: list[OpenFile | DirRef], old: bytes, new: bytes) -> None:
        """List what `_take` gave under its new path."""
        for item in items:
            before, item.path = item.path, new + item.path[len(old) :]
            if isinstance(item, DirRef):
                self._dirs[mount, item.path] = item
                continue
            if item.hidden:  # a directory above it was renamed
                item.hidden = item.path
                if (mount, before) in self._hidden:
                    self._hidden[mount, item.path] = self._hidden.pop((mount, before))
            self._list(item)
            if item.node.key == (mount, before):
                self._rekey(item.node, (mount, item.path))

    def _list(self, file: OpenFile) -> None:
        self._paths.setdefault(file.mount, {}).setdefault(file.path, []).append(file)

    def _delist(self, file: OpenFile) -> None:
        paths = self._paths.get(file.mount, {})
        same = paths.get(file.path)
        if same and file in same:
            same.remove(file)
            if not same:
                del paths[file.path]

    def _rekey(self, node: Node, key: Key) -> None:
        if self._nodes.get(node.key) is node:
            del self._nodes[node.key]
        node.key = key
        self._nodes[key] = node

    # --- hidden files ----------------------------------------------------------------------------

    def hide(self, mount: Mount, path: bytes) -> bytes:
        """Unlink a file that is open where the file system can't: rename it until the last close.

        The new name; empty if nobody needs that, so that the caller removes the file as usual.
        OSError: that of the file system's `rename`.
        """
        if mount.fs.open_unlinked:
            return b""
        if all(file.is_path for file in self.on_path(mount, path)):
            return b""
        hidden = _hidden_name(path.rpartition(b"/")[0])
        mount.fs.rename(path, hidden)
        self._rename_hidden(mount, path, hidden)
        return hidden

    def drop_hidden(self, mount: Mount, directory: bytes) -> bool:
        """Make room for rmdir(2): move hidden files elsewhere. False: none, or it fails."""
        with self._lock:
            names = [
                p for m, p in self._hidden if m is mount and p.rpartition(b"/")[0] == directory
            ]
        for name in names:
            hidden = _hidden_name(b"")
            try:
                mount.fs.rename(name, hidden)
            except OSError as error:
                log.info("can't move %r away: %s", name, error)
                return False
            self._rename_hidden(mount, name, hidden)
        return bool(names)

    def is_hidden(self, mount: Mount, path: bytes) -> bool:
        """Is this the name of a file that guests have unlinked?"""
        return (mount, path) in self._hidden

    def _rename_hidden(self, mount: Mount, path: bytes, hidden: bytes) -> None:
        with self._lock:
            files = self._paths.get(mount, {}).pop(path, [])
            for file in files:
                if file.node.key == (mount, path):
                    self._rekey(file.node, (mount, hidden))
                file.path = file.hidden = hidden
                file.deleted = True
                self._list(file)
            self._hidden.pop((mount, path), None)
            if files:
                self._hidden[mount, hidden] = len(files)
                return
        mount.fs.unlink(hidden)  # it was closed meanwhile


def _hidden_name(directory: bytes) -> bytes:
    return b"%s/%s%s" % (directory, _HIDDEN, os.urandom(8).hex().encode())
