"""What the call families share: their register, and the way from a path argument to a file."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar, cast

from core_accel.lazy import pattern
from core_accel.request import Reply, Request
from umvm.guest.mounts import (
    BENEATH,
    FOLLOW,
    HOST,
    IN_ROOT,
    MISSING_OK,
    PROC,
    SLASH_OK,
    Mount,
    Where,
)  # fmt: skip
from umvm.guest.spaces import Space
from umvm.interfaces.filesystem import Attr, Caller, set_caller
from umvm.syscalls import readonly
from umvm.vfs.permission import (
    allowed,
    check_follow,
    fail,
    permit,
    protections,
    searcher,
)  # fmt: skip

if TYPE_CHECKING:
    from umvm.vm import VirtualMachine

F = TypeVar("F")
Handler = Callable[["VirtualMachine", Request], Reply | None]
HANDLERS: dict[str, Handler] = {}
AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_SYMLINK_NOFOLLOW = 0x100
AT_SYMLINK_FOLLOW = 0x400
AT_NO_AUTOMOUNT = 0x800
EXECVEAT = 322
DONE = Reply.value(0)
_DELETED = b" (deleted)"
_SLASH, _DOT = b"/."
_PLAIN = pattern(rb"/?(?!\.{1,2}(?:/|\Z))[^/]+(?:/(?!\.{1,2}(?:/|\Z))[^/]+)*\Z")
_DOTS = pattern(rb"(?:\.(?:/+|\Z))+")


def registry(calls: dict[str, F]) -> Callable[..., Callable[[F], F]]:
    """A decorator that registers a function in `calls` for system calls, by name."""

    def handles(*names: str) -> Callable[[F], F]:
        def register(function: F) -> F:
            calls.update(dict.fromkeys(names, function))
            return function

        return register

    return handles


handles = registry(HANDLERS)
"""Register a function for system calls, by name."""


def signed(number: int) -> int:
    """A register as an int (C int)."""
    number &= 0xFFFFFFFF
    return number - (1 << 32) if number & 0x80000000 else number


def signed64(number: int) -> int:
    """A register as a C long."""
    return number - (1 << 64) if number & (1 << 63) else number


class Opened(Protocol):
    """What a link into the shadow directory stands for: an open file, a directory, a FIFO.

    `last`: its attributes when it lost its name, if the file system can't tell them any more.
    """

    last: Attr | None

    @property
    def mount(self) -> Mount: ...
    @property
    def path(self) -> bytes: ...
    @property
    def directory(self) -> bool: ...
    @property
    def deleted(self) -> bool: ...


def file_of(where: Where) -> Opened | None:
    """The open file that a magic link, or "." in a removed directory, led to."""
    return cast("Opened | None", where.file)


def full_path(file: Opened) -> bytes:
    """The path of an open served file in the view."""
    return file.mount.outside(file.path)


# --- from a path to a file ------------------------------------------------------------------------


class Base(NamedTuple):
    """The directory that a relative path starts from: canonical, and the mount it lies in."""

    path: bytes
    mount: int
    served: Opened | None = None
    gone: Opened | None = None
    """It was removed."""
    elsewhere: bool = False
    """It is a removed directory of the host, which has no path."""


_ROOT = Base(b"/", -1)


def _base(vm: VirtualMachine, space: Space, tid: int, dirfd: int) -> Base:
    """**Errors** EBADF, ENOTDIR; ENAMETOOLONG: the kernel can't tell its path."""
    if dirfd == AT_FDCWD:
        link = vm.procs.cwd_link(tid)
    elif dirfd < 0:
        raise fail(errno.EBADF)
    else:
        try:
            link = os.readlink(b"/proc/%d/fd/%d" % (tid, dirfd))
        except OSError as error:
            known = error.errno == errno.ENAMETOOLONG
            raise fail(errno.ENAMETOOLONG if known else errno.EBADF) from None
    named = vm.named(link)
    if named is not None:
        if not named.directory:
            raise fail(errno.ENOTDIR)
        if named.deleted:
            return Base(named.path, named.mount.ident, gone=named)
        return Base(named.mount.outside(named.path), named.mount.ident, named)
    if not link.startswith(b"/"):
        raise fail(errno.ENOTDIR)  # "pipe:[…]"; a directory out of reach can't be had here
    if link.endswith(_DELETED) and not os.path.exists(link):
        return Base(link, HOST, elsewhere=True)
    if not space.plain:
        place = vm.spaces.place(space, tid, None if dirfd == AT_FDCWD else dirfd, link)
        return Base(*place)
    return Base(link, PROC if link.startswith(b"/proc/") or link == b"/proc" else HOST)


def locate(
    vm: VirtualMachine, req: Request, dirfd: int, path: bytes, follow: bool = True,
    missing: bool = False, resolve: int = 0, caller: Caller | None = None,
) -> Where:  # fmt: skip
    """Where a path leads; the file system is told who calls. OSError as path_resolution(7).

    `missing`: the last component may be missing; `resolve`: more flags of the walk; `caller`: on
    whose behalf, where it isn't the thread's file system user.
    """
    if not path:
        raise fail(errno.ENOENT)
    task = vm.procs.task(req.tid)
    space = vm.spaces.of(req.tid)
    if caller is None:
        caller = task.caller
    set_caller(caller)
    flags = resolve
    if follow:
        flags |= FOLLOW
    if missing:
        flags |= MISSING_OK
    search = searcher(caller)
    if path[0] == _SLASH and not resolve & IN_ROOT:
        if resolve & BENEATH:
            raise fail(errno.EXDEV)
        base = _ROOT
        if not resolve & ~SLASH_OK and space.root == b"/" and _is_plain(path):
            for prefix, mount in space.table.direct:
                if path.startswith(prefix):
                    inside = path[len(prefix) - 1 :]
                    found = _shortcut(mount, b"/", inside, follow, missing, search)
                    if found is not None:
                        return found
    else:
        try:
            base = _base(vm, space, req.tid, dirfd)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            return _far_down(req.tid, dirfd, path, missing)
        if base.served is not None and not resolve & ~SLASH_OK and _is_plain(path):
            mount, start = base.served.mount, base.served.path
            if mount in space.table.directs:
                inside = (start if start != b"/" else b"") + b"/" + path
                found = _shortcut(mount, start, inside, follow, missing, search)
                if found is not None:
                    return found
        elif base.gone is not None or base.elsewhere:
            start_again = _from_nowhere(base, path, search)
            if isinstance(start_again, Where):
                return start_again
            base, path = start_again
    follows = not resolve & SLASH_OK if path[-1] == _SLASH else follow
    if follows and protections().symlinks and not path.startswith(b"/proc/"):
        return _guarded(vm, req, space, base, path, flags, caller)
    return space.table.walk(
        req.tid, task.tgid, base.path, path, flags, vm, base.mount, search, space, vm.spaces
    )


def _far_down(tid: int, dirfd: int, path: bytes, missing: bool) -> Where:
    """A path from a directory of the host whose own is too long for a call: the kernel walks it."""
    start = b"cwd" if dirfd == AT_FDCWD else b"fd/%d" % dirfd
    place = b"/proc/%d/%s/%s" % (tid, start, path)
    gone = missing and not os.path.lexists(place)
    return Where(None, place, place, gone, False, 0, False, host=place)


def _is_plain(path: bytes) -> bool:
    """Has it no component that is empty, "." or ".."?"""
    if b"//" in path or path[-1] == _SLASH or path[0] == _DOT or b"/." in path:
        return _PLAIN.match(path) is not None
    return True


def _shortcut(
    mount: Mount, base: bytes, inside: bytes, follow: bool, missing: bool,
    search: Callable[[Attr], bool] | None,
) -> Where | None:  # fmt: skip
    """The walk of a plain path whose directories are known already. None: it has to be walked."""
    if not mount.trail(base, inside, search):
        return None
    try:
        attr = mount.fs.getattr(inside)
    except FileNotFoundError:
        if not missing:
            raise
        return Where(mount, mount.point + inside, inside, True, False, 0, False)
    if follow and attr.mode & 0o170000 == 0o120000:
        return None
    return Where(mount, mount.point + inside, inside, False, False, 0, False, attr)


def _guarded(
    vm: VirtualMachine, req: Request, space: Space, base: Base, path: bytes, flags: int,
    caller: Caller,
) -> Where:  # fmt: skip
    """The walk where protected_symlinks is on: a link as last component is judged before."""
    tgid, search = vm.procs.tgid(req.tid), searcher(caller)

    def step(flags: int) -> Where:
        return space.table.walk(
            req.tid, tgid, base.path, path, flags, vm, base.mount, search, space, vm.spaces
        )

    link = step(flags & ~FOLLOW | SLASH_OK | MISSING_OK)
    if link.mount is None or link.missing or link.last_dot or link.inside == b"/":
        return step(flags)
    attr = link.attr or link.mount.fs.getattr(link.inside)
    if stat.S_ISLNK(attr.mode):
        check_follow(link.mount, link.mount.fs.getattr(parent(link.inside)), attr, caller)
        return step(flags)
    return link if not link.slash else step(flags)


def _from_nowhere(
    base: Base, path: bytes, search: Callable[[Attr], bool] | None
) -> Where | tuple[Base, bytes]:
    """A path from a directory that was removed: it is still there as ".", and has a parent."""
    dots = _DOTS.match(path)
    rest = path[dots.end() :] if dots else path
    if base.elsewhere:
        return Where(None, base.path, base.path, False, False, 1, False, host=base.path)
    gone = base.gone
    assert gone is not None
    if search is not None and gone.mount.permissions() and not search(attributes(gone)):
        raise fail(errno.EACCES)
    if not rest:
        if not path:
            raise fail(errno.ENOENT)
        return Where(
            gone.mount, full_path(gone), gone.path, False, path.endswith(b"/"), 1, False, file=gone
        )
    if rest != b".." and not rest.startswith(b"../"):
        raise fail(errno.ENOENT)
    return Base(gone.mount.outside(parent(gone.path)), gone.mount.ident), b"./" + rest[3:]


def parent(inside: bytes) -> bytes:
    """The directory that holds a path of a mount."""
    return inside.rpartition(b"/")[0] or b"/"


def enter(vm: VirtualMachine, req: Request) -> Caller:
    """Tell the file system who is calling."""
    caller = vm.procs.task(req.tid).caller
    set_caller(caller)
    return caller


def look(where: Where) -> Attr:
    """Attributes of what a path led to; the walk often knows them."""
    if where.attr is not None:
        return where.attr
    file = file_of(where)
    if file is not None:
        return attributes(file)
    assert where.mount is not None
    return where.mount.fs.getattr(where.inside)


class Target(NamedTuple):
    """A served file that a call is about, found by path or by descriptor."""

    mount: Mount
    path: bytes
    attr: Attr
    fh: object = None
    file: Opened | None = None


def opened(vm: VirtualMachine, req: Request, fd: int) -> Opened | None:
    """The served file behind a guest's descriptor: regular, directory, or FIFO; None: not one."""
    if fd < 0:
        return None
    try:
        link = os.readlink(b"/proc/%d/fd/%d" % (req.tid, fd))
    except OSError:
        return None
    named: Opened | None = vm.named(link)
    return named


def attributes(file: Opened) -> Attr:
    """Attributes of an open file, also of one that was removed."""
    fh = getattr(file, "fh", None)
    if not file.deleted:
        return file.mount.fs.getattr(file.path, fh)
    if not nameless(file):
        attr = file.mount.fs.getattr(file.path, fh)
        return attr._replace(nlink=attr.nlink - 1) if attr.nlink else attr
    if fh is not None and file.mount.fs.open_unlinked:
        return file.mount.fs.getattr(file.path, fh)
    if file.last is None:
        raise fail(errno.ESTALE)
    return file.last


def nameless(file: Opened) -> bool:
    """It was removed, and hasn't got a hidden name instead."""
    return file.deleted and not getattr(file, "hidden", b"")


def target_of(file: Opened) -> Target:
    """The target that a descriptor stands for."""
    return Target(file.mount, file.path, attributes(file), getattr(file, "fh", None), file)


def target_fd(vm: VirtualMachine, req: Request, fd: int, path_too: bool = False) -> Target | None:
    """The target of a call on a descriptor; None: not a served file. **Errors** EBADF: O_PATH."""
    file = opened(vm, req, fd)
    if file is None:
        check_read_only(vm, req, fd)
        return None
    if not path_too and getattr(file, "flags", 0) & os.O_PATH:
        raise fail(errno.EBADF)
    enter(vm, req)
    return target_of(file)


def check_read_only(vm: VirtualMachine, req: Request, fd: int) -> None:
    """EROFS for a call that changes a file of a read-only bind mount by its descriptor."""
    space = vm.spaces.of(req.tid)
    if not readonly.changes(req) or not any(m.read_only for m in space.table.binds) or fd < 0:
        return
    try:
        link = os.readlink(b"/proc/%d/fd/%d" % (req.tid, fd))
    except OSError:
        return
    if link.startswith(b"/"):
        mount = space.table.by_id.get(vm.spaces.place(space, req.tid, fd, link)[1])
        if mount is not None and mount.read_only:
            raise fail(errno.EROFS)


def target_at(
    vm: VirtualMachine, req: Request, dirfd: int, addr: int, flags: int, index: int
) -> Target | Reply | None:
    """The target of a call on a path, with AT_SYMLINK_NOFOLLOW and AT_EMPTY_PATH in `flags`.

    `index`: the path among the arguments. A Reply, or None, says that the kernel runs the call.
    """
    path = req.string(addr)
    if not path:
        if not flags & AT_EMPTY_PATH:
            raise fail(errno.ENOENT)
        return target_empty(vm, req, dirfd)
    where = locate(vm, req, dirfd, path, not flags & AT_SYMLINK_NOFOLLOW)
    if where.mount is None:
        return run_host(vm, req, (index, where))
    file = file_of(where)
    if file is not None:
        return target_of(file)
    return Target(where.mount, where.inside, look(where))


def target_empty(vm: VirtualMachine, req: Request, dirfd: int) -> Target | None:
    """The target of an empty path: the descriptor itself, or the working directory."""
    if dirfd != AT_FDCWD:
        return target_fd(vm, req, dirfd, True)
    file = vm.named(vm.procs.cwd_link(req.tid))
    if file is None:
        return None
    enter(vm, req)
    return target_of(file)


def program_of(vm: VirtualMachine, req: Request) -> bytes | None:
    """The path in the view of the program that an exec names; None: it can't be executed."""
    at = int(req.nr == EXECVEAT)
    dirfd = signed(req.args[0]) if at else AT_FDCWD
    flags = req.args[4] if at else 0
    try:
        path = req.string(req.args[at])
        if not path and flags & AT_EMPTY_PATH:
            return vm.shown(os.readlink(b"/proc/%d/fd/%d" % (req.tid, dirfd)))
        where = locate(vm, req, dirfd, path, not flags & AT_SYMLINK_NOFOLLOW)
        mode = os.stat(where.host).st_mode if where.mount is None else look(where).mode
    except OSError:
        return None
    runs = os.access(where.host, os.X_OK) if where.mount is None else bool(mode & 0o111)
    return where.path if runs and stat.S_ISREG(mode) else None


# --- checks that several families make ------------------------------------------------------------


def check(mount: Mount, inside: bytes, caller: Caller, mask: int) -> None:
    """EACCES unless the caller may use the file so; mask is 4 read, 2 write, 1 execute."""
    permit(mount, mount.fs.getattr(inside), caller, mask)


def writable(mount: Mount) -> None:
    """EROFS on a mount that is read-only."""
    if mount.read_only:
        raise fail(errno.EROFS)


def inode(mount: Mount, inside: bytes, attr: Attr) -> int:
    """The st_ino to show: the file system's, or one made from the path."""
    return attr.ino or inode_of_path(inside)


def inode_of_path(inside: bytes) -> int:
    """A number for a file whose file system has none."""
    import hashlib

    digest = hashlib.blake2b(inside, digest_size=6).digest()
    return int.from_bytes(digest, "little") | 1


def run_host(vm: VirtualMachine, req: Request, *paths: tuple[int, Where]) -> Reply | None:
    """Let the kernel run a path call on the host, with the resolved path where it differs.

    **Errors** EROFS, and those that come before it, where a bind mount is read-only.
    """
    changes: dict[int, int | bytes] = {}
    for index, where in paths:
        if where.bind is not None and where.bind.read_only:
            readonly.check(req.nr, where)
        if where.changed:
            changes[index] = host_path(where)
    if not changes:
        return None
    return req.rewrite(changes)


def host_path(where: Where) -> bytes:
    """The path to give the kernel for a file of the host."""
    path = where.host or where.path
    return path + b"/" if where.slash and path != b"/" else path


__all__ = [
    "AT_EMPTY_PATH", "AT_FDCWD", "AT_NO_AUTOMOUNT", "AT_SYMLINK_FOLLOW", "AT_SYMLINK_NOFOLLOW",
    "DONE", "HANDLERS", "Mount", "Opened", "Reply", "Request", "Target", "Where", "allowed",
    "attributes", "check", "check_read_only", "enter", "fail", "file_of",
    "full_path", "handles", "host_path", "inode", "locate", "look", "nameless", "opened", "parent",
    "run_host", "signed", "signed64", "target_at", "target_empty", "target_fd", "target_of",
    "writable",
]  # fmt: skip
