"""Calls that make, link, rename and remove names, with the errors in the order of fs/namei.c."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, NamedTuple

from umvm.guest.mounts import FOLLOW, SLASH_OK
from umvm.guest.openfile import OpenFile
from umvm.interfaces.filesystem import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    Attr,
    Caller,
    FileSystem,
)  # fmt: skip
from umvm.syscalls.context import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_SYMLINK_FOLLOW,
    DONE,
    Mount,
    Reply,
    Request,
    Target,
    Where,
    enter,
    fail,
    file_of,
    handles,
    locate,
    look,
    parent,
    run_host,
    signed,
    target_empty,
    target_of,
    writable,
)  # fmt: skip
from umvm.vfs.attributes import create_mode
from umvm.vfs.permission import (
    WRITE,
    check_create,
    check_delete,
    check_link_source,
    permit,
)  # fmt: skip

if TYPE_CHECKING:
    from umvm.vm import VirtualMachine

AT_REMOVEDIR = 0x200
NAME_MAX = 255
_NO_NAME = b"\1umvm"
"""A name that stands for one that can't exist."""
_KINDS = frozenset((stat.S_IFREG, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK, 0))


def is_dir(attr: Attr) -> bool:
    """Is it a directory?"""
    return stat.S_ISDIR(attr.mode)


# --- new names -----------------------------------------------------------------------------------


class Place(NamedTuple):
    """Where a new name goes: checked, its directory's attributes, and who makes it."""

    mount: Mount
    inside: bytes
    directory: Attr
    caller: Caller


def new_place(vm: VirtualMachine, req: Request, where: Where, directory: bool = False) -> Place:
    """filename_create(). **Errors** EEXIST, ENOENT (slash), EROFS."""
    mount = where.mount
    assert mount is not None
    if not where.missing or where.last_dot:
        raise fail(errno.EEXIST)
    if where.slash and not directory:
        raise fail(errno.ENOENT)
    caller = enter(vm, req)
    writable(mount)
    return Place(mount, where.inside, mount.fs.getattr(parent(where.inside)), caller)


def _make(
    vm: VirtualMachine, req: Request, dirfd: int, addr: int, index: int, directory: bool = False
) -> Place | Reply | None:
    """The place of a new name that may be made. A Reply, or None: the kernel makes it."""
    where = locate(vm, req, dirfd, req.string(addr), False, True, SLASH_OK)
    if where.mount is None:
        return run_host(vm, req, (index, where))
    place = new_place(vm, req, where, directory)
    check_create(place.mount, place.directory, place.caller)
    return place


@handles("mkdir", "mkdirat")
def sys_mkdir(vm: VirtualMachine, req: Request) -> Reply | None:
    """mkdir(2)."""
    a = req.args
    at = int(req.nr == 258)
    place = _make(vm, req, signed(a[0]) if at else AT_FDCWD, a[at], at, True)
    if not isinstance(place, Place):
        return place
    mount = place.mount
    with mount.lock:
        mount.fs.mkdir(place.inside, a[at + 1] & 0o1777 & ~place.caller.umask)
    return DONE


@handles("mknod", "mknodat")
def sys_mknod(vm: VirtualMachine, req: Request) -> Reply | None:
    """mknod(2): EPERM for devices unless root, but anybody may make a whiteout (0, 0)."""
    a = req.args
    at = int(req.nr == 259)
    mode, rdev = a[at + 1] & 0xFFFF, a[at + 2] & 0xFFFFFFFF
    kind = stat.S_IFMT(mode)
    if kind not in _KINDS:
        raise fail(errno.EPERM if kind == stat.S_IFDIR else errno.EINVAL)
    place = _make(vm, req, signed(a[0]) if at else AT_FDCWD, a[at], at)
    if not isinstance(place, Place):
        return place
    device = kind in (stat.S_IFCHR, stat.S_IFBLK)
    if device and place.caller.uid != 0 and not (kind == stat.S_IFCHR and rdev == 0):
        raise fail(errno.EPERM)
    mount = place.mount
    mode = (kind or stat.S_IFREG) | create_mode(place.directory, place.caller, mode)
    with mount.lock:
        mount.fs.mknod(place.inside, mode, rdev if device else 0)
    return DONE


@handles("symlink", "symlinkat")
def sys_symlink(vm: VirtualMachine, req: Request) -> Reply | None:
    """symlink(2)."""
    a = req.args
    target = req.string(a[0])
    if not target:
        raise fail(errno.ENOENT)
    at = int(req.nr == 266)
    place = _make(vm, req, signed(a[1]) if at else AT_FDCWD, a[1 + at], 1 + at)
    if not isinstance(place, Place):
        return place
    with place.mount.lock:
        place.mount.fs.symlink(target, place.inside)
    return DONE


# --- link ----------------------------------------------------------------------------------------


def _apart(vm: VirtualMachine, req: Request, origin: Where, target: Where, flags: int) -> bool:
    """Do two places of the host lie in different mounts of the view? One that is gone doesn't."""
    bind = origin.bind
    if flags & AT_SYMLINK_FOLLOW and origin.host.startswith(b"/proc/"):
        bind = vm.spaces.bind_behind(vm.spaces.of(req.tid), origin.host)
    return bind is not target.bind and os.path.lexists(origin.host)


@handles("link", "linkat")
def sys_link(vm: VirtualMachine, req: Request) -> Reply | None:
    """link(2), linkat(2)."""
    a = req.args
    if req.nr == 86:
        olddir, old, newdir, new, flags, first = AT_FDCWD, a[0], AT_FDCWD, a[1], 0, 0
    else:
        olddir, old, newdir, new, flags = signed(a[0]), a[1], signed(a[2]), a[3], signed(a[4])
        first = 1
    if flags & ~(AT_SYMLINK_FOLLOW | AT_EMPTY_PATH):
        raise fail(errno.EINVAL)
    name = req.string(old)
    origin: Where | None = None
    source: Target | None = None
    if not name and flags & AT_EMPTY_PATH:
        source = target_empty(vm, req, olddir)
    else:
        origin = locate(vm, req, olddir, name, bool(flags & AT_SYMLINK_FOLLOW))
        if origin.mount is not None:
            source = _source(origin)
    target = locate(vm, req, newdir, req.string(new), False, True, SLASH_OK)
    if target.mount is None:
        if source is not None:
            raise fail(_host_error(target))
        if origin is not None and target.missing and _apart(vm, req, origin, target, flags):
            raise fail(
                errno.EXDEV if target.bind is None or not target.bind.read_only else errno.EROFS
            )
        # without a path of its own the source, a descriptor, is as the guest gave it
        changed = [(2 * first + 1, target)] + ([(first, origin)] if origin is not None else [])
        return run_host(vm, req, *changed)
    place = new_place(vm, req, target)
    if source is None or source.mount is not place.mount:
        raise fail(errno.EXDEV)
    check_link_source(place.mount, source.attr, place.caller)
    check_create(place.mount, place.directory, place.caller)
    if is_dir(source.attr):
        raise fail(errno.EPERM)
    _link(vm, source, place)
    return DONE


def _source(origin: Where) -> Target:
    file = file_of(origin)
    if file is not None:
        return target_of(file)
    assert origin.mount is not None
    return Target(origin.mount, origin.inside, look(origin))


def _link(vm: VirtualMachine, source: Target, place: Place) -> None:
    """The link itself; a file made with O_TMPFILE gets its first name."""
    file, mount = source.file, place.mount
    with mount.lock:
        if file is not None and file.deleted:
            if not isinstance(file, OpenFile) or not file.linkable or not file.hidden:
                raise fail(errno.ENOENT)
            mount.fs.rename(source.path, place.inside)
            vm.files.reveal(mount, source.path, place.inside)
        else:
            mount.fs.link(source.path, place.inside)


def _host_error(target: Where) -> int:
    """Why a served file can't get a name on the host."""
    return errno.EXDEV if target.missing and not target.last_dot else errno.EEXIST


# --- removal -------------------------------------------------------------------------------------


def _remove(
    vm: VirtualMachine, req: Request, dirfd: int, addr: int, directory: bool, index: int
) -> Reply | None:
    where = locate(vm, req, dirfd, req.string(addr), False, True, SLASH_OK)
    mount, inside = where.mount, where.inside
    if mount is None:
        root = vm.spaces.of(req.tid).root
        if is_mount_point(where) or (where.path == root != b"/" and not where.last_dot):
            raise fail(errno.EISDIR if not directory and is_host_dir(where) else errno.EBUSY)
        vm.engine.forget_paths()
        return run_host(vm, req, (index, where))
    if where.last_dot:
        if not directory:
            raise fail(errno.EISDIR)
        raise fail(errno.EINVAL if where.last_dot == 1 else errno.ENOTEMPTY)
    if inside == b"/":
        raise fail(errno.EBUSY if directory else errno.EISDIR)
    caller = enter(vm, req)
    writable(mount)
    if where.missing:
        raise fail(errno.ENOENT)
    attr = look(where)
    if where.slash and not directory:
        raise fail(errno.EISDIR if is_dir(attr) else errno.ENOTDIR)
    check_delete(mount, mount.fs.getattr(parent(inside)), attr, caller, directory)
    vm.files.in_order(mount)
    if directory:
        if vm.mounted_below(where.path):
            raise fail(errno.EBUSY)
        _rmdir(vm, mount, inside, attr)
    else:
        _unlink(vm, mount, inside, attr)
    return DONE


def is_mount_point(where: Where) -> bool:
    """Is it the root of a bind mount, reached by its name?"""
    return where.bind is not None and where.path == where.bind.point and not where.last_dot


def is_host_dir(where: Where) -> bool:
    """Is it a directory of the host?"""
    try:
        return stat.S_ISDIR(os.lstat(where.host).st_mode)
    except OSError:
        return False


def _rmdir(vm: VirtualMachine, mount: Mount, inside: bytes, attr: Attr) -> None:
    with mount.lock:
        try:
            mount.fs.rmdir(inside)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            if _all_hidden(vm, mount, inside):
                vm.files.drop_hidden(mount, inside)
            mount.fs.rmdir(inside)
        vm.files.removed(mount, inside, attr._replace(nlink=0))
        mount.forget()


def _all_hidden(vm: VirtualMachine, mount: Mount, inside: bytes) -> bool:
    """Are only files in a directory that guests have unlinked, or made with O_TMPFILE?"""
    fh = mount.fs.opendir(inside)
    try:
        names = [e.name for e in mount.fs.readdir(inside, fh) if e.name not in (b".", b"..")]
    finally:
        mount.fs.releasedir(inside, fh)
    return all(vm.files.is_hidden(mount, inside + b"/" + name) for name in names)


def _unlink(vm: VirtualMachine, mount: Mount, inside: bytes, attr: Attr) -> None:
    """Remove a file; where the file system can't keep an open one, it is hidden until closed."""
    with mount.lock:
        if not vm.files.hide(mount, inside):
            mount.fs.unlink(inside)
            vm.files.removed(mount, inside, attr._replace(nlink=attr.nlink - 1))
        vm.specials.removed(mount, inside, attr)
        vm.images.removed(mount, inside)


@handles("unlink", "rmdir")
def sys_unlink(vm: VirtualMachine, req: Request) -> Reply | None:
    """unlink(2), rmdir(2)."""
    return _remove(vm, req, AT_FDCWD, req.args[0], req.nr == 84, 0)


@handles("unlinkat")
def sys_unlinkat(vm: VirtualMachine, req: Request) -> Reply | None:
    """unlinkat(2)."""
    flags = signed(req.args[2])
    if flags & ~AT_REMOVEDIR:
        raise fail(errno.EINVAL)
    return _remove(vm, req, signed(req.args[0]), req.args[1], bool(flags), 1)


# --- rename --------------------------------------------------------------------------------------


@handles("rename", "renameat", "renameat2")
def sys_rename(vm: VirtualMachine, req: Request) -> Reply | None:
    """rename(2), renameat2(2)."""
    a = req.args
    at = int(req.nr != 82)
    flags = a[4] & 0xFFFFFFFF if req.nr == 316 else 0
    olddir, newdir = (signed(a[0]), signed(a[2])) if at else (AT_FDCWD, AT_FDCWD)
    old, new = (a[1], a[3]) if at else (a[0], a[1])
    if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT):
        raise fail(errno.EINVAL)
    if flags & RENAME_EXCHANGE and flags & (RENAME_NOREPLACE | RENAME_WHITEOUT):
        raise fail(errno.EINVAL)
    source, source_long = _last_of(vm, req, olddir, req.string(old))
    target, target_long = _last_of(vm, req, newdir, req.string(new))
    holder = _holder(vm, req, source)
    if holder is not _holder(vm, req, target):
        raise fail(errno.EXDEV)
    on_host = holder is None or holder.bind is not None
    root = vm.spaces.of(req.tid).root
    if on_host and source.mount is None and target.mount is None:
        if not (source.last_dot or target.last_dot):
            if is_mount_point(source) or is_mount_point(target):
                raise fail(errno.EBUSY)
            if root in (source.path, target.path) and root != b"/":
                raise fail(errno.EBUSY)
            vm.engine.forget_paths()
        return run_host(vm, req, (at, source), (2 * at + 1, target))
    if source.last_dot or source.path == root:
        raise fail(errno.EBUSY)
    if target.last_dot or target.path == root:
        raise fail(errno.EEXIST if flags & RENAME_NOREPLACE else errno.EBUSY)
    if holder is None or on_host:
        raise fail(errno.ENOENT if source.missing else errno.EBUSY)  # a mount point on the host
    writable(holder)
    if source_long or (target_long and not source.missing):
        raise fail(errno.ENAMETOOLONG)
    _rename(vm, req, holder, source, target, flags)
    return DONE


def _last_of(vm: VirtualMachine, req: Request, dirfd: int, path: bytes) -> tuple[Where, bool]:
    """Where a name is, and if it is too long: its directory counts before that."""
    try:
        return locate(vm, req, dirfd, path, False, True, SLASH_OK), False
    except OSError as error:
        before, _, name = path.rstrip(b"/").rpartition(b"/")
        if error.errno != errno.ENAMETOOLONG or len(name) <= NAME_MAX:
            raise
        short = path[: len(before) + 1] if len(path) > len(name) else b""
        where = locate(vm, req, dirfd, short + _NO_NAME, False, True)
        return where._replace(missing=True), True


def _holder(vm: VirtualMachine, req: Request, where: Where) -> Mount | None:
    """The mount that the name itself is in: a mount point's is the one beneath."""
    mount = where.mount or where.bind
    space = vm.spaces.of(req.tid)
    if mount is None or where.path != mount.point or where.last_dot or where.path == space.root:
        return mount
    above = space.table.walk(os.getpid(), os.getpid(), b"/", parent(mount.point), FOLLOW, vm)
    return above.mount or above.bind


def _rename(
    vm: VirtualMachine, req: Request, mount: Mount, source: Where, target: Where, flags: int
) -> None:
    """do_renameat2() from the look-up of the last components on, and vfs_rename()."""
    if source.missing:
        raise fail(errno.ENOENT)
    if source.mount is not mount or target.mount is not mount:
        raise fail(errno.EBUSY)  # one is a mount point
    exchange = flags & RENAME_EXCHANGE
    if flags & RENAME_NOREPLACE and not target.missing:
        raise fail(errno.EEXIST)
    if exchange and target.missing:
        raise fail(errno.ENOENT)
    fs, old, new = mount.fs, source.inside, target.inside
    attr = look(source)
    replaced = None if target.missing else look(target)
    if exchange and target.slash and replaced is not None and not is_dir(replaced):
        raise fail(errno.ENOTDIR)
    if not is_dir(attr) and (source.slash or (target.slash and not exchange)):
        raise fail(errno.ENOTDIR)
    if new.startswith(old + b"/"):
        raise fail(errno.EINVAL)
    if old.startswith(new + b"/"):
        raise fail(errno.EINVAL if exchange else errno.ENOTEMPTY)
    if old == new or (replaced is not None and same_file(mount, attr, replaced)):
        return
    caller = enter(vm, req)
    old_dir = fs.getattr(parent(old))
    new_dir = old_dir if parent(old) == parent(new) else fs.getattr(parent(new))
    check_delete(mount, old_dir, attr, caller, is_dir(attr))
    if replaced is None:
        check_create(mount, new_dir, caller)
    else:
        check_delete(mount, new_dir, replaced, caller, is_dir(replaced if exchange else attr))
    if new_dir is not old_dir:  # ".." of a directory that moves is written
        if is_dir(attr):
            permit(mount, attr, caller, WRITE)
        if exchange and replaced is not None and is_dir(replaced):
            permit(mount, replaced, caller, WRITE)
    if vm.mounted_below(source.path) or vm.mounted_below(target.path):
        raise fail(errno.EBUSY)
    vm.files.in_order(mount)
    with mount.lock:
        _move(vm, mount, old, new, flags, replaced)
        if is_dir(attr) or (replaced is not None and is_dir(replaced)):
            mount.forget()


def same_file(mount: Mount, a: Attr, b: Attr) -> bool:
    """Are two names links to one file?"""
    return mount.fs.stable_inodes and a.ino != 0 and a.ino == b.ino


def _rename_in(fs: FileSystem, old: bytes, new: bytes, flags: int) -> None:
    """Rename; what the flags ask for was checked, so a file system needn't know them."""
    if not flags:
        fs.rename(old, new)
        return
    try:
        fs.rename(old, new, flags)
        return
    except OSError as error:
        if error.errno != errno.EINVAL or flags & RENAME_EXCHANGE:
            raise
    fs.rename(old, new)
    if flags & RENAME_WHITEOUT:
        fs.mknod(old, stat.S_IFCHR, 0)


def _move(
    vm: VirtualMachine, mount: Mount, old: bytes, new: bytes, flags: int, replaced: Attr | None
) -> None:
    """The renaming itself; open files follow."""
    files, specials = vm.files, vm.specials
    if flags & RENAME_EXCHANGE:
        _rename_in(mount.fs, old, new, flags)
        files.moved(mount, old, new, True)
        specials.moved(mount, old, new, True)
        vm.images.moved(mount, old, new, True)
    else:
        if replaced is not None and not is_dir(replaced):
            vm.files.hide(mount, new)
        _rename_in(mount.fs, old, new, flags)
        if replaced is not None:
            links = 0 if is_dir(replaced) else replaced.nlink - 1
            files.removed(mount, new, replaced._replace(nlink=links))
            specials.removed(mount, new, replaced)
            vm.images.removed(mount, new)
        files.moved(mount, old, new)
        specials.moved(mount, old, new)
        vm.images.moved(mount, old, new)
