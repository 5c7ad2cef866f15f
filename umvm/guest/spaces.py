"""What processes see of the file system: a table of mounts and a root directory for each.

All paths that the VM works with are *canonical in the view*: absolute, in a table of mounts, not
seen from anybody's root. A bind mount shows files of the host at another path, so that the kernel's
links (/proc/PID/cwd, fd/N) are host paths, which have to be found in the view again. Which of
several places was meant is known

- of a working directory by the process's mark (`umvm.guest.marks`), which names the mount,
- of a descriptor that was opened at such a place by the signal number that its open file
  description has for O_ASYNC (F_SETSIG in fcntl(2)): dup, fork and SCM_RIGHTS pass it on, and files
  and directories never send it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from core_accel.lazy import pattern
from core_accel.pathwalk import View
from umvm.guest.marks import Marks

if TYPE_CHECKING:
    from umvm.guest.mounts import Mount, MountTable

SPACE, CWD = "space", "cwd"
"""Keys of marks: the index of a process's space, the mount by which it came to its directory."""
MAX_SPACES = 1000
HOST = 0
_F_SETSIG, _F_GETSIG = 10, 11
_SIGNALS = 64
_PIDFD_GETFD = 438
_LINK = pattern(rb"/proc/(\d+)/(?:task/(\d+)/)?(cwd|root|exe|fd/(\d+))\Z")
DELETED = b" (deleted)"


class Space:
    """A table of mounts, seen from a root directory (canonical in the view)."""

    def __init__(self, index: int, table: MountTable, root: bytes) -> None:
        self.index, self.table, self.root = index, table, root

    @property
    def view(self) -> View:
        """The table as the walk needs it."""
        return self.table.view if self.root == b"/" else self.table.view_of(self.root)

    @property
    def plain(self) -> bool:
        """Are all paths of the host what they are for the kernel?"""
        return self.root == b"/" and not self.table.binds

    def is_ambiguous(self, mount: Mount) -> bool:
        """Can files that a bind mount shows be reached at another place as well?"""
        return self.table.is_ambiguous(mount, self.root)

    def inner(self, path: bytes) -> bytes | None:
        """A path of the view as it is from the root; None: it isn't below it."""
        if self.root == b"/":
            return path
        if path == self.root:
            return b"/"
        return path[len(self.root) :] if path.startswith(self.root + b"/") else None

    def outer(self, path: bytes) -> bytes:
        """The path in the view of one from the root."""
        return path if self.root == b"/" else self.root + (b"" if path == b"/" else path)

    def label(self, path: bytes) -> bytes:
        """A path as d_path() shows it: whole where it isn't below the root."""
        inner = self.inner(path)
        return path if inner is None else inner


class Spaces:
    """The spaces of one VM, and who is in which."""

    def __init__(self, marks: Marks, table: MountTable) -> None:
        self._marks = marks
        self._lock = threading.RLock()
        self.first = self.main = Space(0, table, b"/")
        """`main` is that of `umvm run`'s command, which `umvm exec` gets too."""
        self._all = [self.first]
        self._free: list[int] = []
        self.members: Callable[[], list[int]] = list
        """The processes of the VM (`VirtualMachine.guest_pids`)."""
        self.engine: Any = None
        self.real: Callable[[bytes], bytes] = lambda link: link
        """The program of the host that a link to an executed copy stands for (`Images.real`)."""

    def set_engine(self, engine: Any) -> None:
        """The engine that is to know them."""
        self.engine = engine
        self._marks.tell(self._told)

    # --- which ------------------------------------------------------------------------------------

    def of(self, tid: int) -> Space:
        """The space of a process, or of a thread's. **Errors** ESRCH: it is gone."""
        if len(self._all) == 1:
            return self.first
        index: int = self._marks.of_process(tid).get(SPACE, 0)
        return self._all[index]

    @property
    def several(self) -> bool:
        """Was there ever more than the first space?"""
        return len(self._all) > 1

    @property
    def redirects(self) -> bool:
        """Can there be processes that find files of the host at other paths?"""
        return self.several or not self.first.plain

    def get(self, table: MountTable, root: bytes) -> Space:
        """The space with this table and root, made if need be. **Errors** ENOMEM: too many."""
        with self._lock:
            for space in self._all:
                if space.table is table and space.root == root:
                    return space
            if len(self._all) >= MAX_SPACES and not self._free:
                self._collect()
            if self._free:
                space = Space(self._free.pop(), table, root)
                self._all[space.index] = space
            elif len(self._all) < MAX_SPACES:
                space = Space(len(self._all), table, root)
                self._all.append(space)
            else:
                raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
            self.commit()
            return space

    def drop(self, table: MountTable) -> None:
        """No process has this table any more."""
        with self._lock:
            for space in self._all:
                if space.table is table:
                    self._release(space)
            self.commit()

    def _release(self, space: Space) -> None:
        self._all[space.index] = Space(space.index, self.first.table, b"/")
        self._free.append(space.index)

    def _collect(self) -> None:
        """Find spaces that no process is in."""
        used = {0}
        for pid in self.members():
            try:
                used.add(self._marks.of_process(pid).get(SPACE, 0))
            except OSError:
                continue
        for space in self._all:
            if space.index not in used and space.index not in self._free:
                self._release(space)

    def enter(self, pid: int, space: Space) -> None:
        """From now on the process is in this space; so will be its children."""
        self._marks.set(pid, SPACE, space.index or None)

    def commit(self) -> None:
        """Tell the engine of changed tables."""
        with self._lock:
            self.engine.set_views([space.view for space in self._all])

    def tables(self) -> list[MountTable]:
        """All tables, the first one first."""
        return list(dict.fromkeys(space.table for space in self._all))

    def _told(self, number: int, record: dict[Any, Any]) -> None:
        self.engine.set_place(number, record.get(SPACE, 0), record.get(CWD, HOST))

    # --- where ------------------------------------------------------------------------------------

    def came_by(self, pid: int, mount: Mount | None) -> None:
        """The process is about to change into a directory that it reached by this bind mount."""
        ident = None if mount is None else mount.ident
        if self._marks.get(pid, CWD) != ident:
            self._marks.set(pid, CWD, ident)

    def cwd_mount(self, pid: int) -> int:
        """The bind mount by which a process came to its directory; 0: by none."""
        ident: int = self._marks.get(pid, CWD) or HOST
        return ident

    def place(self, space: Space, tid: int, fd: int | None, link: bytes) -> tuple[bytes, int]:
        """Where `space` shows the directory (None) or descriptor of a thread that reads `link`: its
        path and its mount."""
        if fd is None:
            path, mount, _ = space.view.shown(link, self.cwd_mount(tid))
            return path, mount
        path, mount, places = space.view.shown(link)
        if places > 1:
            number = signal_of(tid, fd)
            if number:
                for other in space.table.all:
                    if other.bind is not None and signal_for(other) == number:
                        found = space.view.shown(link, other.ident)
                        if found[1] == other.ident:
                            return found[0], found[1]
        return path, mount

    def link_place(self, space: Space, full: bytes, target: bytes) -> tuple[bytes, int]:
        """Where the magic link `full` of /proc, which reads as `target`, leads in `space`."""
        found = _LINK.match(full)
        if found is None:
            return space.view.shown(target)[:2]
        tid = int(found[2] or found[1])
        if found[3] == b"root":
            return self.of(tid).root, -1
        if found[3] == b"exe":
            return space.view.shown(self.real(target))[:2]
        return self.place(space, tid, int(found[4]) if found[4] else None, target)

    def bind_behind(self, space: Space, full: bytes) -> Mount | None:
        """The bind mount that the file behind a magic link of /proc lies in; it needs no name."""
        try:
            target = os.readlink(full)
        except OSError:
            return None
        if _LINK.fullmatch(full) is None or not target.startswith(b"/"):
            return None
        return space.table.bind_by_id(self.link_place(space, full, target)[1])


def signal_for(mount: Mount) -> int:
    """The signal number that says: opened by this bind mount."""
    return 1 + mount.ident % (_SIGNALS - 1)


def set_signal(fd: int, mount: Mount) -> None:
    """Note on an open file description of ours that it was opened by a bind mount."""
    fcntl.fcntl(fd, _F_SETSIG, signal_for(mount))


def signal_of(tid: int, fd: int) -> int:
    """What `set_signal` noted on a guest's descriptor; 0: nothing."""
    try:
        copy = guest_fd(tid, fd)
    except OSError:
        return 0
    try:
        return fcntl.fcntl(copy, _F_GETSIG)
    except OSError:
        return 0  # O_PATH
    finally:
        os.close(copy)


def guest_fd(tid: int, fd: int) -> int:
    """A copy of a process's descriptor (pidfd_getfd(2)). OSError."""
    import ctypes

    with open(b"/proc/%d/status" % tid, "rb") as file:
        tgid = next(int(line.split()[1]) for line in file if line.startswith(b"Tgid:"))
    libc = ctypes.CDLL(None, use_errno=True)
    pidfd = os.pidfd_open(tgid)
    try:
        copy = int(libc.syscall(ctypes.c_long(_PIDFD_GETFD), pidfd, fd, 0))
        if copy < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return copy
    finally:
        os.close(pidfd)


__all__ = [
    "CWD", "DELETED", "SPACE", "Space", "Spaces", "guest_fd", "set_signal",
    "signal_for", "signal_of",
]  # fmt: skip
