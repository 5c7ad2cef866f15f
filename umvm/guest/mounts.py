"""Mounts of one VM, and the walk from a guest's path to the mount that owns it."""

from __future__ import annotations

import errno
import itertools
import os
import stat
import threading
import time
import weakref
from collections.abc import Callable
from copy import copy
from typing import TYPE_CHECKING, NamedTuple, Protocol

from core_accel.lazy import pattern
from core_accel.pathwalk import (
    AMBIGUOUS,
    BENEATH,
    FOLLOW,
    IN_ROOT,
    MISSING_OK,
    NO_MAGICLINKS,
    NO_SYMLINKS,
    NO_XDEV,
    READ_ONLY,
    SEARCH,
    SLASH_OK,
    Magic,
    View,
)
from umvm.guest.loaded import program_behind
from umvm.interfaces.filesystem import Attr, Caller, FileSystem, caller, set_caller

if TYPE_CHECKING:
    from umvm.guest.spaces import Space, Spaces

__all__ = [
    "BENEATH",
    "FOLLOW",
    "HOST",
    "IN_ROOT",
    "MISSING_OK",
    "NO_MAGICLINKS",
    "NO_SYMLINKS",
    "NO_XDEV",
    "PROC",
    "SLASH_OK",
    "Mount",
    "MountTable",
    "NamedFiles",
    "OpenName",
    "Where",
]

HOST, PROC = 0, 1
_CACHED_DIRS = 4096
_MAGIC = pattern(rb"/proc/\d+/(?:task/\d+/)?(?:cwd|root|exe|(?:fd|ns|map_files)/[^/]+)\Z")
_DELETED = b" (deleted)"


class Mount:
    """A served file system, or (`bind`) files of the host, at a place in the view."""

    def __init__(
        self, ident: int, point: bytes, fs: FileSystem, fstype: str, source: str,
        options: dict[str, str | bool], module: str, read_only: bool = False, *,
        bind: bytes | None = None, glue: bool = False,
    ) -> None:  # fmt: skip
        """`bind`: the canonical path on the host of what a bind mount shows; `glue`: an empty tree,
        only there so that another mount has a mount point."""
        self.ident, self.point, self.fs, self.fstype, self.source = ident, point, fs, fstype, source
        self.options, self.module, self.read_only = options, module, read_only
        self.bind, self.glue = bind, glue
        self.uses = 0
        self.detached = self.destroyed = self.expiring = False
        self.lock = threading.RLock()
        self._directories: dict[bytes, tuple[float, Attr]] = {}

    def dead(self, fs: FileSystem) -> Mount:
        """What stands in for it once its file system is gone."""
        dead = copy(self)
        dead.fs, dead.detached, dead.destroyed = fs, True, True
        return dead

    @property
    def dev(self) -> int:
        """The st_dev that its files show: an anonymous device of its own."""
        return os.makedev(0, 0x400 + self.ident)

    def inside(self, path: bytes) -> bytes:
        """The path within the mount of a canonical path in the view."""
        return path if self.point == b"/" else path[len(self.point) :] or b"/"

    def outside(self, inside: bytes) -> bytes:
        """The path in the view of a path within the mount."""
        if inside == b"/":
            return self.point
        return inside if self.point == b"/" else self.point + inside

    def on_host(self, path: bytes) -> bytes:
        """The path on the host of a path in the view that lies in this bind mount."""
        assert self.bind is not None
        rest = path if self.point == b"/" else path[len(self.point) :]
        return (b"" if self.bind == b"/" else self.bind) + (b"" if rest == b"/" else rest) or b"/"

    def permissions(self) -> bool:
        """Whether mode bits are checked here, and not by the file system."""
        return self.fs.default_permissions or bool(self.options.get("default_permissions"))

    def lose_set_ids(self, inside: bytes, mode: int, fh: object) -> None:
        """Somebody changes a file's content, and so takes set-id bits away: `mode` is left.

        It isn't that caller who changes the mode. **Source** file_remove_privs, fs/inode.c.
        """
        if self.fs.drops_set_ids:
            return
        who = caller()
        set_caller(Caller(0, 0, 0))
        try:
            self.fs.chmod(inside, mode, fh)
        finally:
            set_caller(who)

    def directory(self, inside: bytes) -> Attr | None:
        """What is known of a directory, no older than the file system's `entry_timeout`."""
        known = self._directories.get(inside)
        return known[1] if known is not None and known[0] > time.monotonic() else None

    def trail(self, base: bytes, inside: bytes, may: Callable[[Attr], bool] | None) -> bool:
        """Are all directories from `base` to that of `inside` known, and may they be searched?"""
        directories, now = self._directories, time.monotonic()
        at = inside.rfind(b"/")
        start = len(base) if base != b"/" else 0
        if may is None or not self.permissions():
            known = directories.get(inside[:at])
            return at == start or (known is not None and known[0] > now)
        while at >= start:
            known = directories.get(inside[:at] or b"/")
            if known is None or known[0] <= now or not may(known[1]):
                return False
            if at == start:
                return True
            at = inside.rfind(b"/", 0, at)
        return False

    def look(self, inside: bytes) -> Attr:
        """Ask the file system, and believe what it says of a directory for `entry_timeout`."""
        directories = self._directories  # another one if forget() is called meanwhile
        attr = self.fs.getattr(inside)
        if self.fs.entry_timeout > 0 and stat.S_ISDIR(attr.mode):
            if len(directories) >= _CACHED_DIRS:
                directories.clear()
            directories[inside] = (time.monotonic() + self.fs.entry_timeout, attr)
        return attr

    def forget(self) -> None:
        """To be called after a name or a directory's attributes changed: believe nothing older."""
        self._directories = {}


class OpenName(Protocol):
    """What a link into the shadow directory stands for (`umvm.guest.files.OpenFile`)."""

    @property
    def mount(self) -> Mount: ...
    @property
    def path(self) -> bytes: ...
    @property
    def directory(self) -> bool: ...
    @property
    def deleted(self) -> bool: ...


class NamedFiles(Protocol):
    """The part of `umvm.guest.files.Files` that the walk asks."""

    def named(self, link: bytes, /) -> OpenName | None: ...


class Where(NamedTuple):
    """Where a path leads.

    `mount` is None on the host (and in /proc), `path` canonical in the view, `inside` the path in
    the mount. `slash`: the last component had a trailing slash; `last_dot`: it was "." (1) or ".."
    (2). `host`: the path for the host's kernel, in the bind mount `bind` if that isn't None.
    `changed`: on the host, but the kernel would not get there from the guest's text. `attr`:
    what the walk has just learnt of the file itself. `file`: the description that a magic link as
    the last component led to.
    """

    mount: Mount | None
    path: bytes
    inside: bytes
    missing: bool
    slash: bool
    last_dot: int
    changed: bool
    attr: Attr | None = None
    file: OpenName | None = None
    host: bytes = b""
    bind: Mount | None = None


class MountTable:
    """The mounts of a VM. A change replaces the view that walks use; walks keep the old one."""

    def __init__(self, parent: MountTable | None = None, name: str = "") -> None:
        """`parent`: the table that this one starts as a copy of; later changes are its own."""
        self.name = name
        self._ids: itertools.count[int] = itertools.count(2) if parent is None else parent._ids
        self._lock = threading.RLock()
        self.all: list[Mount] = [] if parent is None else list(parent.all)
        self.by_id: weakref.WeakValueDictionary[int, Mount] = (
            weakref.WeakValueDictionary() if parent is None else parent.by_id
        )
        self._compile()

    def _compile(self) -> None:
        self.binds = [m for m in self.all if m.bind is not None]
        self._views: dict[bytes, View] = {}
        self.view = self.view_of(b"/")
        for mount in list(self.by_id.values()):
            mount.forget()
        self.directs = frozenset(m for m in self.all if self._is_direct(m))
        """Mounts whose names lead to their own files: not hidden, and no other mount is in them."""
        self.direct = [(m.point + b"/", m) for m in self.all if m in self.directs]

    def view_of(self, root: bytes) -> View:
        """The table as a process with this root sees it."""
        view = self._views.get(root)
        if view is None:
            detached = [(m.point, i) for i, m in list(self.by_id.items()) if m not in self.all]
            binds = {m.ident: (m.bind or b"/", self._flags(m, root)) for m in self.binds}
            view = View(self.points(), root, detached, binds)
            self._views[root] = view
        return view

    def _flags(self, mount: Mount, root: bytes) -> int:
        flags = READ_ONLY if mount.read_only else 0
        return flags | (AMBIGUOUS if self.is_ambiguous(mount, root) else 0)

    def is_ambiguous(self, mount: Mount, root: bytes) -> bool:
        """Can files that a bind mount shows be reached at another place as well?"""
        assert mount.bind is not None
        for other in self.binds:
            if other is not mount and (below(root, other.point) or below(other.point, root)):
                assert other.bind is not None
                if below(other.bind, mount.bind) or below(mount.bind, other.bind):
                    return True
        if not below(root, mount.bind) and not below(mount.bind, root):
            return False
        inner = mount.bind if below(root, mount.bind) else root
        return not any(
            below(m.point, inner) for m in self.all
        )  # nothing covers the files themselves

    def _is_direct(self, mount: Mount) -> bool:
        later = self.all[self.all.index(mount) + 1 :]
        hidden = any((mount.point + b"/").startswith(m.point.rstrip(b"/") + b"/") for m in later)
        inner = mount.point.rstrip(b"/") + b"/"
        nested = any(m.point.startswith(inner) for m in self.all if m is not mount)
        shown = mount.bind is None and mount.point != b"/"  # /proc is in the last
        return shown and not hidden and not nested

    def next_id(self) -> int:
        """A mount id that was never used in this VM."""
        return next(self._ids)

    def add(self, mount: Mount) -> None:
        """Put a mount on top of its mount point."""
        with self._lock:
            self.by_id[mount.ident] = mount
            self.all = [*self.all, mount]
            self._compile()

    def remove(self, mount: Mount) -> None:
        """Take a mount out of the view; open descriptors keep it alive."""
        with self._lock:
            self.all = [m for m in self.all if m is not mount]
            self._compile()

    def recompile(self) -> None:
        """The options of a mount have changed."""
        with self._lock:
            self._compile()

    def bind_by_id(self, ident: int) -> Mount | None:
        """The bind mount with this id; None: it is something else, or gone."""
        mount = self.by_id.get(ident)
        return mount if mount is not None and mount.bind is not None else None

    def at(self, point: bytes) -> Mount | None:
        """The topmost mount at a mount point."""
        for mount in reversed(self.all):
            if mount.point == point:
                return mount
        return None

    def mounted_below(self, path: bytes, own: Mount | None = None) -> bool:
        """Is a mount on this path or below it (other than `own`)?"""
        return any(mount is not own and below(path, mount.point) for mount in self.all)

    def carries(self, mount: Mount) -> bool:
        """Are other mounts on this one?"""
        later = self.all[self.all.index(mount) + 1 :] if mount in self.all else []
        return any(below(mount.point, other.point) for other in later)

    def points(self) -> list[tuple[bytes, int]]:
        """The mount points in the order of mounting, for `View` and for the engine's table."""
        return [(b"/", HOST), (b"/proc", PROC)] + [(m.point, m.ident) for m in self.all]

    def walk(
        self,
        tid: int,
        tgid: int,
        base: bytes,
        path: bytes,
        flags: int,
        files: NamedFiles | None,
        base_mount: int = -1,
        searchable: Callable[[Attr], bool] | None = None,
        space: Space | None = None,
        spaces: Spaces | None = None,
    ) -> Where:
        """Resolve ``path`` from the canonical directory ``base``. OSError as path_resolution(7).

        ``base_mount``: id of the mount ``base`` lies in (HOST too), where another mount may cover
        it by now. ``searchable`` tells whether the caller may search a directory; it is asked on
        mounts whose permissions the VM checks (EACCES). ``space``: seen from its root; ``spaces``
        tell where magic links lead in it.
        """
        look = _Look(self.by_id, tid, tgid, files, searchable, space, spaces)
        if searchable is not None:
            flags |= SEARCH
        view = self.view if space is None else space.view
        found = view.walk(base, path, flags, look, base_mount)
        mount = self.by_id.get(found.mount)
        if mount is None:
            if found.mount > PROC:
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))  # unmounted meanwhile
        elif mount.bind is not None:
            return Where(
                None, found.path, found.path, found.missing, found.slash, found.last_dot,
                found.crossed, None, None, mount.on_host(found.path), mount,
            )  # fmt: skip
        inside = mount.inside(found.path) if mount else found.path
        same = look.path == found.path and look.mount is mount
        return Where(
            mount,
            found.path,
            inside,
            found.missing,
            found.slash,
            found.last_dot,
            mount is None and (found.crossed or look.loaded),
            look.attr if same else None,
            look.file if same else None,
            found.path if mount is None else b"",
        )


def below(outer: bytes, inner: bytes) -> bool:
    """Is a canonical path at or below another one?"""
    return inner == outer or inner.startswith(outer.rstrip(b"/") + b"/")


class _Look:
    """What the walk asks: one object for one walk."""

    def __init__(
        self,
        by_id: weakref.WeakValueDictionary[int, Mount],
        tid: int,
        tgid: int,
        files: NamedFiles | None,
        searchable: Callable[[Attr], bool] | None,
        space: Space | None,
        spaces: Spaces | None,
    ) -> None:
        self._space, self._spaces = space, spaces
        self._by_id, self._tid, self._tgid = by_id, tid, tgid
        self._files, self._searchable = files, searchable
        self.loaded = False  # it went by /proc/PID/exe, which is the agent's loader for the kernel
        self._gone = b""  # what a removed directory was called, that the walk is in
        # What the last answer was about:
        self.path = b""
        self.mount: Mount | None = None
        self.attr: Attr | None = None
        self.file: OpenName | None = None

    def __call__(self, ident: int, full: bytes) -> bytes | int | Magic:
        self.file = None
        try:
            if ident == PROC:
                self.path, self.mount, self.attr = full, None, None
                return self._proc(full)
            mount = self._by_id.get(ident)
            if mount is None:
                return -errno.ENOENT  # unmounted, and nobody uses it any more
            return self._served(mount, full)
        except FileNotFoundError:
            return -errno.ENOENT  # which the walk may accept; other errors end it

    def _served(self, mount: Mount, full: bytes) -> bytes | int:
        if self._gone and full.startswith(self._gone):
            return -errno.ENOENT  # in a removed directory, though there may be a new one
        inside = mount.inside(full)
        check = self._searchable if mount.permissions() else None
        if inside.endswith(b"/."):  # only SEARCH asks so
            return self._search(mount, inside[:-2] or b"/", check)
        if check is not None:
            error = self._search(mount, inside.rpartition(b"/")[0] or b"/", check)
            if error != -errno.EINVAL:
                return error
        believed = mount.directory(inside)
        attr = believed or mount.look(inside)
        self.path, self.mount, self.attr = full, mount, None if believed else attr
        if stat.S_ISDIR(attr.mode):
            return -errno.EINVAL
        if stat.S_ISLNK(attr.mode):
            return mount.fs.readlink(inside)
        return -errno.ENOTDIR

    def _search(self, mount: Mount, inside: bytes, check: Callable[[Attr], bool] | None) -> int:
        """May the caller look up a name in this directory of a mount? -EINVAL: yes."""
        if check is None:
            return -errno.EINVAL
        attr = mount.directory(inside)
        if attr is None and self.mount is mount and mount.inside(self.path) == inside:
            attr = self.attr
        return -errno.EINVAL if check(attr or mount.look(inside)) else -errno.EACCES

    def _proc(self, full: bytes) -> bytes | int | Magic:
        """One component below /proc, as the guest thread sees it (proc(5))."""
        if full == b"/proc/self":
            return b"%d" % self._tgid
        if full == b"/proc/thread-self":
            return b"%d/task/%d" % (self._tgid, self._tid)
        mode = os.lstat(full).st_mode
        if stat.S_ISDIR(mode):
            return -errno.EINVAL
        if not stat.S_ISLNK(mode):
            return -errno.ENOTDIR
        link = os.readlink(full)
        target = program_behind(full, link)
        self.loaded |= target != link
        return self._magic(full, target) if _MAGIC.match(full) else target

    def _magic(self, full: bytes, target: bytes) -> Magic:
        """Where a magic link leads: the text is for people, the kernel jumps to the file itself."""
        file = self._files.named(target) if self._files is not None else None
        if file is not None:
            path = file.mount.outside(file.path)
            self.path, self.mount, self.file = path, file.mount, file
            self._gone = path + b"/" if file.deleted else b""
            return Magic(path, file.mount.ident, file.directory)
        if self._space is not None and self._spaces is not None and not self._space.plain:
            if full.endswith(b"/root"):
                return Magic(*self._spaces.link_place(self._space, full, target))
            if target.startswith(b"/") and not (
                target.endswith(_DELETED) and not _same(full, target)
            ):
                return Magic(*self._spaces.link_place(self._space, full, target))
        if target.startswith(b"/") and not (target.endswith(_DELETED) and not _same(full, target)):
            in_proc = target == b"/proc" or target.startswith(b"/proc/")
            return Magic(target, PROC if in_proc else HOST)
        return Magic(b"", directory=os.path.isdir(full))


def _same(link: bytes, target: bytes) -> bool:
    """Whether the text of a magic link is the name of the file that it leads to."""
    try:
        return os.path.samestat(os.stat(link), os.lstat(target))
    except OSError:
        return False
