"""All open served files of a VM: their descriptors' names, their renames, their last close."""

from __future__ import annotations

import errno
import os
import select
import stat
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from core_accel.lazy import logger
from umvm.guest.audit import unused
from umvm.guest.nodes import Key, Node
from umvm.guest.openfile import DeadFileSystem, DirRef, OpenFile
from umvm.guest.opennames import OpenNames
from umvm.guest.releases import Releases
from umvm.guest.watch import IN_Q_OVERFLOW
from umvm.interfaces.filesystem import Attr, FileSystem

if TYPE_CHECKING:
    from umvm.guest.mounts import Mount
    from umvm.guest.shadow import Shadow

log = logger(__name__)

SETTLE = 10.0
"""Seconds that an unmount waits for a file system's `release`."""
ORDER = 0.05
"""Seconds that a call waits for what was closed before it; Linux queues one behind the other."""
KILL = 2.0
"""Seconds that a forced unmount waits for it."""
WRITE_BACK = 1.0
"""Seconds between looks at what guests wrote through mappings, longer when a look takes long."""
GATHER = 0.002
"""Seconds that closes are let pile up before they are read: one wake-up for many."""
_DELETED = b" (deleted)"
_STATUS = os.O_APPEND | os.O_NONBLOCK | os.O_NOATIME | os.O_SYNC | os.O_NOFOLLOW


class Files(OpenNames):
    """The open file descriptions and served working directories of one VM.

    `on_change()` is called when `len()` changes, `released(mount)` when the file system was told of
    every close so far. Methods may be called from any thread.
    """

    def __init__(
        self,
        shadow: Shadow,
        on_change: Callable[[], None] = lambda: None,
        released: Callable[[Mount], None] = lambda mount: None,
    ) -> None:
        super().__init__(shadow)
        self._on_change = on_change
        self._prefix = shadow.path + b"/"
        self.open: dict[int, OpenFile] = {}
        self._shared: set[Node] = set()
        self._releases = Releases(released)
        self._watch = shadow.watch
        self._drain = threading.Lock()
        for kind in (b"o", b"d"):
            self._watch.add(self._prefix + kind)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._ending = False
        self._thread = threading.Thread(target=self._wait, daemon=True, name="umvm-close")
        self._thread.start()

    def __len__(self) -> int:
        return len(self.open)

    # --- descriptors -----------------------------------------------------------------------------

    def of(self, tid: int, fd: int) -> OpenFile | None:
        """The served description behind a guest's descriptor, or None."""
        if not self.open or fd < 0:
            return None
        try:
            link = os.readlink(b"/proc/%d/fd/%d" % (tid, fd))
        except OSError:
            return None
        if not link.startswith(self._prefix):
            return None
        at = len(self._prefix)
        if link[at : at + 2] not in (b"o/", b"d/"):
            return None  # a FIFO, or a working directory
        return self.open.get(int(link[at + 2 : -len(_DELETED)]))

    def named(self, link: bytes) -> OpenFile | DirRef | None:
        """What a link in /proc/PID stands for, with or without " (deleted)"."""
        if not link.startswith(self._prefix):
            return None
        kind, _, name = link[len(self._prefix) :].removesuffix(_DELETED).partition(b"/")
        if not name.isdigit():
            return None
        if kind in (b"o", b"d"):
            return self.open.get(int(name))
        return self._dirs_by_id.get(int(name)) if kind == b"c" else None

    def create(
        self, mount: Mount, path: bytes, attr: Attr, fh: Any, flags: int
    ) -> tuple[OpenFile, int]:
        """A new description of a file the file system has opened as `fh`, and its descriptor.

        `flags` are open(2)'s. On failure `fh` is released.

        **Errors** EMFILE: the supervisor has too many open files. ENOSPC, ENOMEM: no room in the
        shadow directory. ETXTBSY: a guest runs the placeholder.
        """
        with self._lock:
            node = self._node(mount, path, attr)
            file = OpenFile(next(self._ids), node, path, fh, flags, stat.S_ISDIR(attr.mode))
            try:
                fd = self._add(file)
            except OSError:
                if not file.is_path:
                    (mount.fs.releasedir if file.directory else mount.fs.release)(path, fh)
                raise
            self._list(file)
            if (mount, path) in self._hidden:  # opened anew by /proc/PID/fd
                file.hidden, file.deleted = path, True
                self._hidden[mount, path] += 1
        return file, fd

    def reopen(self, known: OpenFile, flags: int) -> tuple[OpenFile, int]:
        """A new description of a file without a name, which shares an open one's file handle.

        **Errors** EACCES: none of them has the access mode. Those of `create`.
        """
        with self._lock:
            file = OpenFile(next(self._ids), known.node, known.path, None, flags, known.directory)
            file.deleted, file.last, file.linkable = True, known.last, known.linkable
            if not file.is_path:
                fits = [
                    other
                    for other in known.node.files
                    if not other.is_path
                    and other.readable >= file.readable
                    and other.writable >= file.writable
                ]
                if not fits:
                    raise OSError(errno.EACCES, os.strerror(errno.EACCES))
                file.fh, file.fh_users = fits[0].fh, fits[0].fh_users
            fd = self._add(file)
            file.fh_users[0] += not file.is_path
        if flags & os.O_TRUNC and not file.is_path:
            try:
                file.truncate(0)
            except OSError:
                os.close(fd)  # the last reference: it is released
                raise
        return file, fd

    def _add(self, file: OpenFile) -> int:
        node = file.node
        try:
            fd = self._placeholder(file)
        except OSError:
            if not node.files:
                self._forget_node(node)
            raise
        node.files.add(file)
        self._nodes[node.key] = node
        self.open[file.ident] = file
        file.mount.uses += 1
        self._on_change()
        return fd

    def _node(self, mount: Mount, path: bytes, attr: Attr) -> Node:
        if stat.S_ISDIR(attr.mode):
            key: Key = (mount, path, object())  # directories share nothing
        else:
            key = (mount, attr.ino) if mount.fs.stable_inodes and attr.ino else (mount, path)
        node = self._nodes.get(key)
        if node is None:
            node = Node(key, mount, self._shadow.place("s", next(self._ids)))
        node.setid = bool(attr.mode & (stat.S_ISUID | stat.S_ISGID))
        return node

    def _placeholder(self, file: OpenFile) -> int:
        """The real object behind a description, with the guest's access mode."""
        flags = os.O_CLOEXEC | file.flags & _STATUS
        if file.directory:
            place = self._shadow.place("d", file.ident)
            os.mkdir(place, 0o711)
            try:
                return os.open(place, flags & ~os.O_APPEND | os.O_DIRECTORY)
            finally:
                os.rmdir(place)
        place = self._shadow.place("o", file.ident)
        if not file.is_path:
            flags |= file.flags & os.O_ACCMODE
        if file.node.files:
            os.link(file.node.place, place)
            try:
                return os.open(place, flags)
            finally:
                os.unlink(place)
        fd = os.open(place, flags | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.link(place, file.node.place)
        except OSError:
            os.close(fd)
            raise
        finally:
            os.unlink(place)
        return fd

    # --- mapped content --------------------------------------------------------------------------

    def map(self, file: OpenFile, shared: bool, alive: Callable[[], bool] | None = None) -> None:
        """A guest is about to map a file: fill its placeholder. Errors as `Node.map`.

        A shared mapping of a description that may write may be made writable later by mprotect(2).
        """
        writable = shared and file.writable
        file.node.map(file, writable, alive)
        if writable and file.node not in self._shared:
            with self._lock:
                self._shared.add(file.node)
            os.eventfd_write(self._wake, 1)

    def shared_nodes(self, mount: Mount | None = None) -> list[Node]:
        """The files that guests may write through mappings (of one mount, or of all)."""
        if not self._shared:
            return []
        with self._lock:
            return [n for n in self._shared if n.shared and (mount is None or n.mount is mount)]

    def sync(self, mount: Mount | None = None) -> None:
        """Write all such files back; an error is logged and the pages are tried again later."""
        for node in self.shared_nodes(mount):
            node.write_back_quietly()

    # --- the last close --------------------------------------------------------------------------

    def drain(self) -> None:
        """Handle the last closes that have happened up to now: `Mount.uses` is exact then."""
        with self._drain:
            while self._watch.fd >= 0:
                events = self._watch.read()
                if not events:
                    return
                for event in events:
                    if event.mask & IN_Q_OVERFLOW:
                        log.warning("closes of served files were lost; looking for them")
                        self._audit()
                    elif event.name.isdigit():
                        self._closed(int(event.name))

    def _closed(self, ident: int) -> None:
        with self._lock:
            file = self.open.pop(ident, None)
            if file is None:
                return
            if not file.hidden:  # a hidden name follows renames until it is removed
                self._delist(file)
            if not file.dead:
                file.mount.uses -= 1
            self._on_change()
        self._releases.submit(file.node.mount, partial(self._release, file))

    def _release(self, file: OpenFile) -> None:
        fs = file.mount.fs
        try:
            file.node.unmap(file)
            if file.unflushed and fs.wants_flush:
                fs.flush(file.path, file.fh)
        except OSError as error:
            if not file.dead:
                log.warning("%r was closed with data that can't be written: %s", file.path, error)
        except Exception:
            log.exception("last close of %r", file.path)
        if not file.dead:
            self._tell(fs, file)
        self._unlist(file)

    def _tell(self, fs: FileSystem, file: OpenFile) -> None:
        """The file system's `release`, once for each file handle; its errors are nobody's."""
        if not self._last_user(file):
            return
        try:
            (fs.releasedir if file.directory else fs.release)(file.path, file.fh)
        except OSError as error:
            log.info("release of %r: %s", file.path, error)
        except Exception:
            log.exception("release of %r", file.path)

    def _last_user(self, file: OpenFile) -> bool:
        """Nobody else uses the file handle, if there is one."""
        if file.is_path:
            return False
        with self._lock:
            file.fh_users[0] -= 1
            return file.fh_users[0] == 0

    def _unlist(self, file: OpenFile) -> None:
        """Forget what belonged to a description that is gone: its node, its hidden name."""
        node = file.node
        with self._lock:
            node.files.discard(file)
            if not node.files:
                self._forget_node(node)
        if not file.hidden:
            return
        with file.mount.lock:  # no directory above it is renamed now
            with self._lock:
                self._delist(file)
                key = (file.mount, file.hidden)
                left = self._hidden[key] = self._hidden.get(key, 0) - 1
                if left <= 0:
                    del self._hidden[key]
            if left == 0 and not file.dead:
                try:
                    file.mount.fs.unlink(file.hidden)
                except OSError as error:
                    log.info("removal of %r: %s", file.hidden, error)

    def _forget_node(self, node: Node) -> None:
        if self._nodes.get(node.key) is node:
            del self._nodes[node.key]
        self._shared.discard(node)
        node.close()

    def _audit(self) -> None:
        """Events were lost (fs.inotify.max_queued_events): find what is still in use."""
        with self._lock:
            for file in unused(self.open.values(), self._prefix):
                self._closed(file.ident)

    def _wait(self) -> None:
        """The body of the thread that waits for closes and, now and then, writes mappings back."""
        poll = select.poll()
        poll.register(self._watch.fd, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        due = time.monotonic() + WRITE_BACK
        while not self._ending:
            wait = max(0.0, due - time.monotonic()) * 1000 if self._shared else None
            ready = dict(poll.poll(wait))
            if self._wake in ready:
                os.eventfd_read(self._wake)
                due = time.monotonic() + WRITE_BACK
            if self._watch.fd in ready:
                time.sleep(GATHER)
                try:
                    self.drain()
                except Exception:
                    log.exception("handling closes")
            if self._shared and time.monotonic() >= due:
                due = time.monotonic() + WRITE_BACK
                self._look_at_shared()

    def _look_at_shared(self) -> None:
        with self._lock:
            self._shared = {node for node in self._shared if node.shared}
        for node in self.shared_nodes():
            if node.due <= time.monotonic():
                node.due = float("inf")  # until it is done
                self._releases.submit(node.mount, partial(self._look_at, node))

    def _look_at(self, node: Node) -> None:
        start = time.monotonic()
        node.write_back_quietly()
        end = time.monotonic()
        node.due = end + max(WRITE_BACK / 2, 20 * (end - start))

    # --- the end of a mount, and of all ----------------------------------------------------------

    def settle(self, mount: Mount | None = None, timeout: float = SETTLE) -> bool:
        """Wait until file systems were told of the closes so far; False: it takes too long."""
        self.drain()
        return self._releases.settle(mount, timeout)

    def in_order(self, mount: Mount) -> None:
        """Where a file system wants it, have it told of earlier closes before what comes now."""
        if mount.fs.orderly:
            self.settle(mount, ORDER)

    def sync_mount(self, mount: Mount) -> None:
        """A mount is about to end: write mappings back, and finish its releases."""
        if not self.settle(mount):
            log.warning("%r: the file system doesn't finish closing files", mount.point)
        self.sync(mount)

    def kill_mount(self, mount: Mount) -> None:
        """Take a mount's open files away: they are released, and whoever uses them gets EIO."""
        dead = mount.dead(DeadFileSystem())
        with self._lock:
            files = [file for file in self.open.values() if file.mount is mount]
        for file in files:
            with self._lock:
                if file.dead or file.ident not in self.open:
                    continue
                file.dead = True
                mount.uses -= 1
            self._releases.submit(mount, partial(self._tell, mount.fs, file))
            file.mount = dead
        if not self._releases.settle(mount, KILL):
            log.warning("%r: the file system doesn't finish closing files", mount.point)
        with self._lock:
            self._paths.pop(mount, None)
            hidden = [path for owner, path in self._hidden if owner is mount]
            self._hidden = {key: n for key, n in self._hidden.items() if key[0] is not mount}
        for path in hidden:
            try:
                mount.fs.unlink(path)
            except OSError as error:
                log.info("removal of %r: %s", path, error)

    def forget_mount(self, mount: Mount) -> None:
        """The mount is no more: remove the placeholders of its directories."""
        with self._lock:
            for ref in [ref for ref in self._dirs_by_id.values() if ref.mount is mount]:
                ref.deleted = True
                self._dirs.pop((mount, ref.path), None)
                try:
                    os.rmdir(ref.place)
                except OSError:
                    pass  # done before
            self._paths.pop(mount, None)

    def close(self) -> None:
        """Release what is still open and stop. Call it when no guest is left."""
        if self._ending:
            return
        self.drain()
        for ident in list(self.open):
            self._closed(ident)
        if not self._releases.settle(None, SETTLE):
            log.warning("some files could not be closed in time")
        self._ending = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._watch.close()
        os.close(self._wake)


__all__ = ["DirRef", "Files", "OpenFile"]
