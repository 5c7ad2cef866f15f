"""Calls that make, open and remove files of the host, where guests have another identity.

What is made belongs to the identity. Where that isn't what an unknown file is shown with, the
supervisor makes the file, so that nobody sees it with another owner. What loses its last name is
forgotten.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from umvm.guest.mounts import SLASH_OK
from umvm.interfaces.filesystem import RENAME_EXCHANGE, RENAME_NOREPLACE, Attr, Caller
from umvm.interfaces.identity import Identity
from umvm.owners.store import Seen
from umvm.syscalls.context import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_SYMLINK_FOLLOW,
    AT_SYMLINK_NOFOLLOW,
    DONE,
    Reply,
    Request,
    fail,
    parent,
    signed,
)  # fmt: skip
from umvm.syscalls.hostfiles import (
    HOST,
    Place,
    attr_of,
    check_way,
    directory_of,
    handles,
    is_checked,
    place_at,
    see,
)  # fmt: skip
from umvm.syscalls.hostopen import HOW_SIZE, note
from umvm.syscalls.owners import drop_set_ids
from umvm.vfs.attributes import create_mode
from umvm.vfs.openflags import TMPFILE, How, how_of, how_of2
from umvm.vfs.permission import (
    WRITE,
    check_create,
    check_delete,
    check_link_source,
    check_sticky_open,
    owns,
    permit,
)  # fmt: skip

if TYPE_CHECKING:
    from umvm.vm import VirtualMachine

AT_REMOVEDIR = 0x200
_DEVICES = (stat.S_IFCHR, stat.S_IFBLK)
_NODES = (0, stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK)
_BITS = 0o7777


# --- something new --------------------------------------------------------------------------------


class _New:
    """A name that is to be made: where, and what it will belong to."""

    def __init__(self, vm: VirtualMachine, req: Request, identity: Identity, place: Place) -> None:
        self.vm, self.req, self.identity, self.place = vm, req, identity, place
        self.caller: Caller = vm.procs.caller(req.tid)
        check_way(vm, identity, self.caller, place)
        self.directory: Attr = attr_of(directory_of(vm, identity, place))
        if is_checked(self.caller, place):
            check_create(HOST, self.directory, self.caller)
        inherits = self.directory.mode & stat.S_ISGID
        self.gid = self.directory.gid if inherits else self.caller.gid

    def mode(self, given: int) -> int:
        """The permission bits of a file that is no directory."""
        return create_mode(self.directory, self.caller, given)

    def own(self, mode: int | None, device: int | None = None, kind: int = 0) -> None:
        """The file is there now: let it have its owner and mode."""
        path = self.place.path
        seen = see(self.vm, self.identity, path, AT_SYMLINK_NOFOLLOW)
        self.own_seen(path, seen, mode, device, kind)

    def own_seen(
        self, path: bytes, seen: Seen, mode: int | None, device: int | None = None, kind: int = 0
    ) -> None:
        """As `own`, of the file that a path leads to."""
        wanted = seen.mode if mode is None else (kind or stat.S_IFMT(seen.mode)) | mode
        if mode is not None:
            real = mode & 0o777 | (0o700 if stat.S_ISDIR(seen.mode) else 0o600)
            if seen.real_mode & _BITS != real:
                os.chmod(path, real)
                seen = seen._replace(real_mode=stat.S_IFMT(seen.real_mode) | real)
        changed = None if mode is None else wanted
        self.vm.owners.set(
            seen._replace(known=-1), uid=self.caller.uid, gid=self.gid, mode=changed, device=device
        )


def _new(
    vm: VirtualMachine, req: Request, identity: Identity, dirfd: int, addr: int
) -> _New | None:
    """None: it isn't to be made here, or can't be made."""
    place = _place_of_new(vm, req, identity, dirfd, addr)
    return None if place is None else _New(vm, req, identity, place)


def _place_of_new(
    vm: VirtualMachine, req: Request, identity: Identity, dirfd: int, addr: int
) -> Place | None:
    place = place_at(vm, req, dirfd, addr, AT_SYMLINK_NOFOLLOW, True, SLASH_OK)
    if place is None or not place.missing or place.path.startswith(b"/proc/"):
        if place is not None:
            check_way(vm, identity, vm.procs.caller(req.tid), place)
        return None
    return place


def _made(new: _New, make: Callable[[], object]) -> bool:
    """Make it; False: the kernel is to say why it can't be made."""
    try:
        make()
    except PermissionError:
        adopter = new.vm.owners.adopter
        if new.caller.uid != 0 or not adopter.open_way(new.place.path, True):
            return False
        make()
    except OSError:
        return False
    return True


@handles("mkdir", "mkdirat")
def sys_mkdir(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """mkdir(2)."""
    a = req.args
    at = int(req.nr == 258)
    new = _new(vm, req, identity, signed(a[0]) if at else AT_FDCWD, a[at])
    if new is None:
        return None
    mode = a[at + 1] & 0o1777 & ~new.caller.umask
    if not _made(new, lambda: os.mkdir(new.place.path, mode & 0o777 | 0o700)):
        return None
    new.own(mode | new.directory.mode & stat.S_ISGID)
    return DONE


@handles("mknod", "mknodat")
def sys_mknod(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """mknod(2): an empty file takes the place of a device, and is shown as one.

    **Errors** EPERM: a device, and the guest isn't root. Anybody may make a whiteout (0, 0).
    """
    a = req.args
    at = int(req.nr == 259)
    given, rdev = a[at + 1] & 0xFFFF, a[at + 2] & 0xFFFFFFFF
    kind = stat.S_IFMT(given)
    if kind not in (*_DEVICES, *_NODES):
        return None
    new = _new(vm, req, identity, signed(a[0]) if at else AT_FDCWD, a[at])
    if new is None or new.place.slash:
        return None
    device = kind in _DEVICES
    if device and new.caller.uid != 0 and (kind, rdev) != (stat.S_IFCHR, 0):
        raise fail(errno.EPERM)
    mode = new.mode(given)
    real = (stat.S_IFREG if device else kind or stat.S_IFREG) | mode & 0o777 | 0o600
    if not _made(new, lambda: os.mknod(new.place.path, real)):
        return None
    new.own(mode, rdev if device else None, kind if device else 0)
    return DONE


@handles("symlink", "symlinkat")
def sys_symlink(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """symlink(2)."""
    a = req.args
    at = int(req.nr == 266)
    target = req.string(a[0])
    new = _new(vm, req, identity, signed(a[1]) if at else AT_FDCWD, a[1 + at])
    if new is None or new.place.slash or not target:
        return None
    if not _made(new, lambda: os.symlink(target, new.place.path)):
        return None
    new.own(None)
    return DONE


@handles("link", "linkat")
def sys_link(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """link(2): the kernel makes it, if the guest may.

    A file without a name (O_TMPFILE) that gets one is no longer forgotten when it is closed.
    """
    caller = vm.procs.caller(req.tid)
    a = req.args
    if req.nr == 86:
        olddir, old, newdir, new, flags = AT_FDCWD, a[0], AT_FDCWD, a[1], 0
    else:
        olddir, old, newdir, new, flags = signed(a[0]), a[1], signed(a[2]), a[3], signed(a[4])
    source = place_at(
        vm, req, olddir, old,
        flags & AT_EMPTY_PATH | (0 if flags & AT_SYMLINK_FOLLOW else AT_SYMLINK_NOFOLLOW),
    )  # fmt: skip
    if source is None:
        return None
    seen = see(vm, identity, source.path, source.flags)
    nameless = seen.links == 0 and seen.known >= 0
    if caller.uid == 0 and not nameless:
        return None
    check_way(vm, identity, caller, source)
    target = _place_of_new(vm, req, identity, newdir, new)
    if target is None or target.slash or target.bind is not source.bind:
        return None
    check_way(vm, identity, caller, target)
    above = directory_of(vm, identity, target)
    if above.dev != seen.dev:
        return None
    if caller.uid != 0:
        check_link_source(HOST, attr_of(seen), caller)
        check_create(HOST, attr_of(above), caller)
    return _name(vm, seen, source, target) if nameless else None


def _name(vm: VirtualMachine, seen: Seen, source: Place, target: Place) -> Reply:
    """Give a name to a file that is open and has none."""
    base = os.open("/", os.O_PATH | os.O_CLOEXEC)
    vm.owners.set_dead(seen, False)
    try:
        os.link(source.path, target.path, src_dir_fd=base, follow_symlinks=True)
    except OSError:
        vm.owners.set_dead(seen, True)
        raise
    finally:
        os.close(base)
    return DONE


# --- open -----------------------------------------------------------------------------------------


@handles("open", "creat")
def sys_open(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """open(2), creat(2)."""
    a = req.args
    creat = req.nr == 85
    how = how_of(os.O_CREAT | os.O_WRONLY | os.O_TRUNC, a[1]) if creat else how_of(a[1], a[2])
    return _open(vm, req, identity, AT_FDCWD, a[0], how)


@handles("openat")
def sys_openat(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """openat(2)."""
    a = req.args
    return _open(vm, req, identity, signed(a[0]), a[1], how_of(a[2], a[3]))


@handles("openat2")
def sys_openat2(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """openat2(2)."""
    dirfd, path, addr, size, *_ = req.args
    if not HOW_SIZE <= size <= 4096:
        return None
    how = how_of2(*struct.unpack_from("<QQQ", req.read(addr, size)))
    return _open(vm, req, identity, signed(dirfd), path, how)


def _open(
    vm: VirtualMachine, req: Request, identity: Identity, dirfd: int, addr: int, how: How
) -> Reply | None:
    follow = not (how.flags & os.O_NOFOLLOW or how.exclusive)
    flags = 0 if follow else AT_SYMLINK_NOFOLLOW
    resolve = how.walk | (SLASH_OK if how.create else 0)
    place = place_at(vm, req, dirfd, addr, flags, how.create, resolve)
    if place is None or place.path.startswith(b"/proc/"):
        return None
    if place.missing:
        return None if place.slash else _create(_New(vm, req, identity, place), how)
    caller = vm.procs.caller(req.tid)
    check_way(vm, identity, caller, place)
    try:
        seen = see(vm, identity, place.path, place.flags)
    except OSError:
        return None
    if how.flags & TMPFILE:
        return _tmpfile(vm, req, identity, place, seen, how)
    if how.exclusive or how.path_only:
        return None
    if stat.S_ISDIR(seen.mode) and (how.create or how.access & WRITE):
        return None  # EISDIR, before permissions are looked at
    if how.flags & os.O_DIRECTORY and not stat.S_ISDIR(seen.mode):
        return None  # ENOTDIR
    attr = attr_of(seen)
    if is_checked(caller, place) and not stat.S_ISLNK(seen.mode):
        if how.create and place.base and not stat.S_ISDIR(seen.mode):
            check_sticky_open(HOST, attr_of(directory_of(vm, identity, place)), attr, caller)
        permit(HOST, attr, caller, how.access)
        if how.flags & os.O_NOATIME and not owns(attr, caller):
            raise fail(errno.EPERM)
        if how.access & WRITE or how.flags & os.O_TRUNC:  # writes themselves aren't asked about
            drop_set_ids(vm, place, attr, caller)
    needed = how.access << 6
    if seen.real_uid == os.geteuid() and seen.real_mode & needed != needed:
        vm.owners.adopter.widen(place.path, needed)
    return None


def _create(new: _New, how: How) -> Reply | None:
    """O_CREAT of what isn't there. None: somebody else made it meanwhile, or it can't be made."""
    mode = new.mode(how.mode)
    flags = how.flags & ~(os.O_TRUNC | os.O_NOCTTY) | os.O_EXCL | os.O_CLOEXEC
    made: list[int] = []
    path = new.place.path
    if not _made(new, lambda: made.append(os.open(path, flags, mode & 0o777 | 0o600))):
        return None
    fd = made[0]
    try:
        name = b"/proc/self/fd/%d" % fd
        new.own_seen(name, see(new.vm, new.identity, name), mode)
        note(new.vm, new.req, fd, new.place.bind)
    except BaseException:
        os.close(fd)
        raise
    return Reply.fd(fd, bool(how.flags & os.O_CLOEXEC))


def _tmpfile(
    vm: VirtualMachine, req: Request, identity: Identity, place: Place, seen: Seen, how: How
) -> Reply | None:
    """O_TMPFILE in the directory that was found."""
    if not stat.S_ISDIR(seen.mode):
        return None
    inside = Place(place.path.rstrip(b"/") + b"/.", 0, place.base, True)
    new = _New(vm, req, identity, inside)
    mode = new.mode(how.mode)
    try:
        fd = os.open(place.path, how.flags | os.O_CLOEXEC, mode & 0o777 | 0o600)
    except OSError:
        return None
    name = b"/proc/self/fd/%d" % fd
    new.own_seen(name, see(vm, identity, name), mode)
    return Reply.fd(fd, bool(how.flags & os.O_CLOEXEC))


# --- removal --------------------------------------------------------------------------------------


def _removed(
    vm: VirtualMachine, req: Request, identity: Identity, dirfd: int, addr: int, directory: bool
) -> Reply | None:
    place = place_at(vm, req, dirfd, addr, AT_SYMLINK_NOFOLLOW, True, SLASH_OK)
    if place is None or place.path.startswith(b"/proc/"):
        return None
    caller = vm.procs.caller(req.tid)
    check_way(vm, identity, caller, place)
    if place.missing or (place.slash and not directory):
        return None
    seen = see(vm, identity, place.path, AT_SYMLINK_NOFOLLOW)
    if is_checked(caller, place):
        above = attr_of(directory_of(vm, identity, place))
        check_delete(HOST, above, attr_of(seen), caller, directory)
    elif caller.uid == 0:
        vm.owners.adopter.open_way(place.path, True)
    if seen.known < 0 or (seen.links > 1 and not stat.S_ISDIR(seen.mode)):
        return None
    vm.engine.forget_paths()
    if directory:
        os.rmdir(place.path)
    else:
        os.unlink(place.path)
    vm.owners.died(seen)
    return DONE


@handles("unlink", "rmdir")
def sys_unlink(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """unlink(2), rmdir(2)."""
    return _removed(vm, req, identity, AT_FDCWD, req.args[0], req.nr == 84)


@handles("unlinkat")
def sys_unlinkat(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """unlinkat(2)."""
    flags = signed(req.args[2])
    if flags & ~AT_REMOVEDIR:
        return None
    return _removed(vm, req, identity, signed(req.args[0]), req.args[1], bool(flags))


@handles("rename", "renameat", "renameat2")
def sys_rename(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """rename(2), renameat2(2)."""
    a = req.args
    at = int(req.nr != 82)
    flags = a[4] & 0xFFFFFFFF if req.nr == 316 else 0
    olddir, newdir = (signed(a[0]), signed(a[2])) if at else (AT_FDCWD, AT_FDCWD)
    old, new = (a[1], a[3]) if at else (a[0], a[1])
    caller = vm.procs.caller(req.tid)
    source = place_at(vm, req, olddir, old, AT_SYMLINK_NOFOLLOW, True, SLASH_OK)
    if source is None:
        return None
    check_way(vm, identity, caller, source)
    target = place_at(vm, req, newdir, new, AT_SYMLINK_NOFOLLOW, True, SLASH_OK)
    if target is None:
        return None
    check_way(vm, identity, caller, target)
    if source.missing or source.bind is not target.bind:
        return None
    moved = see(vm, identity, source.path, AT_SYMLINK_NOFOLLOW)
    replaced = None if target.missing else see(vm, identity, target.path, AT_SYMLINK_NOFOLLOW)
    if replaced is not None and replaced.key == moved.key:
        return None
    if is_checked(caller, source):
        _check_rename(vm, identity, caller, source, moved, target, replaced, flags)
    elif caller.uid == 0:
        vm.owners.adopter.open_way(source.path, True)
        vm.owners.adopter.open_way(target.path, True)
    if replaced is None or replaced.known < 0 or flags:
        return None
    if replaced.links > 1 and not stat.S_ISDIR(replaced.mode):
        return None
    vm.engine.forget_paths()
    os.rename(source.host, target.host)
    vm.owners.died(replaced)
    return DONE


def _holds(directory: bytes, path: bytes) -> bool:
    return path.startswith(directory + b"/")


def _check_rename(
    vm: VirtualMachine, identity: Identity, caller: Caller, source: Place, moved: Seen,
    target: Place, replaced: Seen | None, flags: int,
) -> None:  # fmt: skip
    """The checks of vfs_rename(). **Errors** EACCES, EPERM, ENOTDIR, EISDIR."""
    if _holds(source.path, target.path) or _holds(target.path, source.path):
        return  # EINVAL, ENOTEMPTY: before anybody is asked
    attr, is_dir = attr_of(moved), stat.S_ISDIR(moved.mode)
    old_dir = attr_of(directory_of(vm, identity, source))
    new_dir = attr_of(directory_of(vm, identity, target))
    if flags & RENAME_NOREPLACE and replaced is not None:
        return
    check_delete(HOST, old_dir, attr, caller, is_dir)
    if replaced is None:
        check_create(HOST, new_dir, caller)
    else:
        kind = replaced.mode if flags & RENAME_EXCHANGE else moved.mode
        check_delete(HOST, new_dir, attr_of(replaced), caller, stat.S_ISDIR(kind))
    if parent(source.full or source.path) != parent(target.full or target.path):
        if is_dir:
            permit(HOST, attr, caller, WRITE)
        if flags & RENAME_EXCHANGE and replaced is not None and stat.S_ISDIR(replaced.mode):
            permit(HOST, attr_of(replaced), caller, WRITE)
