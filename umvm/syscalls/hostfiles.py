"""Files of the host under an identity: where a call's path leads, what guests see, and who may.

The supervisor makes calls itself: on the place where a path leads to in the view, or through
/proc/TID/fd/N, which leads to exactly the file that is open, also with O_PATH (proc_pid_fd(5)).
Checks are for guests that are not root; what the host forbids is forbidden to all of them.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, NamedTuple, cast

from umvm.guest.mounts import Mount
from umvm.interfaces.filesystem import Attr, Caller
from umvm.interfaces.identity import Identity
from umvm.owners.store import Seen
from umvm.syscalls import readonly
from umvm.syscalls.context import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_SYMLINK_NOFOLLOW,
    Reply,
    Request,
    Where,
    check_read_only,
    fail,
    host_path,
    locate,
    parent,
    registry,
)  # fmt: skip
from umvm.syscalls.stat import may_answer
from umvm.vfs.permission import EXEC, allowed

if TYPE_CHECKING:
    from umvm.vm import VirtualMachine

Handler = Callable[["VirtualMachine", Request, Identity], Reply | None]
CALLS: dict[str, Handler] = {}
"""Asked while an identity is active, after the calls on identity and before the call's family."""


handles = registry(CALLS)
"""Register a function for system calls, by name."""


_PATH_MAX = 4096
_JUMPS = (b"/proc/", b"/dev/")
"""Where paths begin that may lead over magic links (/dev/fd and /dev/stdin do)."""


class _Host:
    """The host as a mount, for the checks of umvm.vfs.permission."""

    read_only = False

    def permissions(self) -> bool:
        """Mode bits are checked."""
        return True


HOST = cast(Mount, _Host())


class _Held:
    """A descriptor that is closed with the last place that needs it."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


def _within_reach(path: bytes) -> tuple[bytes, _Held | None]:
    """A path that the kernel takes; a longer one becomes one through a descriptor. OSError.

    The guest's was short enough, from its working directory far down.
    """
    held = None
    while len(path) >= _PATH_MAX:
        head = path[:_PATH_MAX].rpartition(b"/")[0]
        fd = os.open(head, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        path = b"/dev/fd/%d%s" % (fd, path[len(head) :])
        held = _Held(fd)
    return path, held


class Place(NamedTuple):
    """A file of the host: a path for the supervisor, and the AT_* flags to use it with.

    `base`: the canonical directory that the guest's path started from; empty: it was a descriptor.
    `full`: the canonical path, where `path` is another one as that is too long; `held` is for it.
    """

    path: bytes
    flags: int
    base: bytes = b""
    missing: bool = False
    slash: bool = False
    bind: Mount | None = None
    """The bind mount that it was found in."""
    full: bytes = b""
    held: _Held | None = None

    @property
    def host(self) -> bytes:
        """The path, with the guest's trailing slash."""
        return self.path + b"/" if self.slash else self.path


def place_of_fd(vm: VirtualMachine, req: Request, fd: int) -> Place | None:
    """The file behind a descriptor; None: a served one. **Errors** EBADF."""
    path = b"/proc/%d/fd/%d" % (req.tid, fd)
    try:
        link = os.readlink(path) if fd >= 0 else None
    except FileNotFoundError:
        link = None
    except PermissionError:
        return None
    if link is None:
        raise fail(errno.EBADF)
    if vm.named(link) is None:
        check_read_only(vm, req, fd)
    return Place(path, 0) if vm.named(link) is None and may_answer(vm, req) else None


def place_at(
    vm: VirtualMachine, req: Request, dirfd: int, addr: int, flags: int, missing: bool = False,
    resolve: int = 0,
) -> Place | None:  # fmt: skip
    """Where on the host a path argument leads; None: it doesn't, or the kernel must judge.

    **Errors** EACCES: a directory on the way may not be searched by this guest.
    """
    if not may_answer(vm, req):
        return None
    path = req.string(addr) if addr else b""
    if not path:
        if not flags & AT_EMPTY_PATH:
            return None
        if dirfd == AT_FDCWD:
            link = vm.procs.cwd_link(req.tid)
            return Place(b"/proc/%d/cwd" % req.tid, 0) if vm.named(link) is None else None
        return place_of_fd(vm, req, dirfd)
    follow = not flags & AT_SYMLINK_NOFOLLOW
    try:
        where = locate(vm, req, dirfd, path, follow, missing, resolve)
    except PermissionError:
        if not vm.owners.adopter.open_way(_text(vm, req, dirfd, path)):
            return None
        return place_at(vm, req, dirfd, addr, flags, missing, resolve)
    except OSError:
        _check_prefix(vm, req, dirfd, path)
        return None  # the call's family finds it too, and tells it in its turn
    if where.mount is not None:
        return None
    kept = flags & AT_SYMLINK_NOFOLLOW
    if not path.startswith(b"/") and where.host.endswith(b" (deleted)"):
        base = b"cwd" if dirfd == AT_FDCWD else b"fd/%d" % dirfd  # a directory without a path
        return Place(b"/proc/%d/%s/%s" % (req.tid, base, path), kept)
    if where.last_dot and missing:
        return None  # no name to be made or removed
    bind = where.bind
    if bind is not None and bind.read_only and req.nr not in readonly.LOOKS:
        return None  # the call's family says what is refused
    if bind is not None and missing and where.path == bind.point:
        return None  # EBUSY
    start = _start(vm, req, bind) if path.startswith(b"/") else _base_link(vm, req, dirfd)
    if path.startswith(_JUMPS) and not where.host.startswith(_JUMPS):
        start = b""  # a magic link jumps, wherever its target is
    try:
        host, held = _within_reach(where.host)
    except OSError:
        return None  # the kernel says why
    full = where.host if held is not None else b""
    return Place(host, kept, start, where.missing, _slash(where), bind, full, held)


def _start(vm: VirtualMachine, req: Request, bind: Mount | None) -> bytes:
    """Where the way of an absolute path begins on the host."""
    if bind is not None:
        return bind.bind or b"/"
    return vm.spaces.of(req.tid).root


def _slash(where: Where) -> bool:
    return host_path(where) != where.host


def _base_link(vm: VirtualMachine, req: Request, dirfd: int) -> bytes:
    try:
        if dirfd == AT_FDCWD:
            return vm.procs.cwd_link(req.tid)
        return os.readlink(b"/proc/%d/fd/%d" % (req.tid, dirfd))
    except OSError:
        return b"/"


def _text(vm: VirtualMachine, req: Request, dirfd: int, path: bytes) -> bytes:
    return os.path.join(_base_link(vm, req, dirfd), path)


def _check_prefix(
    vm: VirtualMachine, req: Request, dirfd: int, path: bytes, links: int = 8
) -> None:
    """The check of the way to where a walk failed. **Errors** EACCES."""
    identity, caller = vm.identity, vm.procs.caller(req.tid)
    if identity is None or caller.uid == 0 or path.startswith(_JUMPS):
        return
    start = b"/" if path.startswith(b"/") else _base_link(vm, req, dirfd)
    at = len(path)
    while (at := path.rstrip(b"/").rfind(b"/", 0, at)) >= 0:
        try:
            where = locate(vm, req, dirfd, path[:at] or b"/")
        except OSError:
            continue
        break
    else:
        where = None
    target = start if where is None else where.host
    if where is None or where.mount is None:
        check_way(vm, identity, caller, Place(os.path.join(target, b"x"), 0, start))
    link = os.path.join(target, path[max(at, 0) :].strip(b"/").partition(b"/")[0])
    if links and os.path.islink(link):  # the walk went on there
        text = os.path.join(target, os.readlink(link))
        _check_prefix(vm, req, AT_FDCWD, text, links - 1)


# --- what guests see ------------------------------------------------------------------------------


def see(vm: VirtualMachine, identity: Identity, path: bytes, flags: int = 0) -> Seen:
    """A file of the host as guests see it. OSError."""
    seen = vm.owners.look(path, flags)
    if seen.known >= 0:
        return seen
    uid, gid = identity.owner(seen.real_uid, seen.real_gid)
    return seen._replace(uid=uid, gid=gid)


@cache
def proc_device() -> int:
    """The device number of /proc."""
    return os.stat("/proc").st_dev


def attr_of(seen: Seen) -> Attr:
    """The part of the attributes that checks look at."""
    return Attr(seen.mode, seen.ino, seen.links, seen.uid, seen.gid, seen.rdev)


def directory_of(vm: VirtualMachine, identity: Identity, place: Place) -> Seen:
    """The directory that holds a name."""
    return see(vm, identity, parent(place.path))


# --- who may --------------------------------------------------------------------------------------


def _directories(base: bytes, path: bytes) -> Iterator[bytes]:
    """The directories that a walk from `base` to `path` looks into, as far as they can be told."""
    last = parent(path)
    common = os.path.commonpath([base, last]) if base.startswith(b"/") else b"/"
    yield common
    rest = last[len(common) :].strip(b"/")
    at = common.rstrip(b"/")
    for name in rest.split(b"/") if rest else ():
        at += b"/" + name
        yield at


def is_checked(caller: Caller, place: Place) -> bool:
    """Are permissions ours to check: the caller isn't root, and it is no file of /proc?"""
    return caller.uid != 0 and not place.path.startswith(b"/proc/")


def check_way(vm: VirtualMachine, identity: Identity, caller: Caller, place: Place) -> None:
    """**Errors** EACCES: the caller may not search a directory on the way to a place."""
    if not place.base or not is_checked(caller, place):
        return
    for directory in _directories(place.base, place.full or place.path):
        try:
            path, _held = _within_reach(directory)  # which lives as long as the path is used
            attr = attr_of(see(vm, identity, path))
        except OSError:
            return  # the kernel says why
        if not stat.S_ISDIR(attr.mode):
            return
        if not allowed(attr, caller, EXEC):
            raise fail(errno.EACCES)
