"""open, openat, openat2 and creat, with the errors in the order of path_openat() of fs/namei.c."""

from __future__ import annotations

import errno
import os
import stat
import struct
from typing import TYPE_CHECKING

from umvm.guest.mounts import SLASH_OK
from umvm.guest.openfile import DirRef, OpenFile
from umvm.guest.specials import Special
from umvm.interfaces.filesystem import Attr, Caller, FileHandle
from umvm.syscalls.context import (
    AT_FDCWD,
    Mount,
    Opened,
    Reply,
    Request,
    Where,
    enter,
    fail,
    file_of,
    handles,
    locate,
    look,
    nameless,
    parent,
    signed,
    writable,
)  # fmt: skip
from umvm.syscalls.hostopen import HOW_SIZE, open_host
from umvm.vfs.attributes import create_mode, without_set_ids
from umvm.vfs.openflags import TMPFILE, How, how_of, how_of2
from umvm.vfs.permission import WRITE, check_create, check_sticky_open, owns, permit

if TYPE_CHECKING:
    from umvm.vm import VirtualMachine

PAGE = 4096
NR_OPEN, NR_CREAT, NR_OPENAT = 2, 85, 257
_TRIES = 8
"""How often an O_CREAT is tried anew when others make and remove the file meanwhile."""
_NOT_FOR_FS = os.O_CREAT | os.O_EXCL | os.O_NOCTTY | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW


def open_at(
    vm: VirtualMachine, req: Request, dirfd: int, path: bytes, how: How, index: int
) -> Reply | None:
    """Open `path`, argument `index` of the call. OSError as open(2)."""
    flags = how.flags
    if flags & TMPFILE:
        where = locate(vm, req, dirfd, path, not flags & os.O_NOFOLLOW, False, how.walk)
        if where.mount is None:
            return open_host(vm, req, where, how, index)
        return _tmpfile(vm, req, where, how)
    for _ in range(_TRIES):
        where = _find(vm, req, dirfd, path, how)
        if where.mount is None:
            return open_host(vm, req, where, how, index)
        vm.files.in_order(where.mount)
        try:
            if where.missing:
                return _create(vm, req, where, how)
            return _open(vm, req, where, how, index)
        except FileExistsError:
            if how.exclusive or not where.missing:
                raise
        except FileNotFoundError:
            if not how.create or where.missing:
                raise
    raise fail(errno.ESTALE)


def _find(vm: VirtualMachine, req: Request, dirfd: int, path: bytes, how: How) -> Where:
    follow = not (how.flags & os.O_NOFOLLOW or how.exclusive)
    if not how.create:
        return locate(vm, req, dirfd, path, follow, False, how.walk)
    try:
        where = locate(vm, req, dirfd, path, follow, True, how.walk | SLASH_OK)
    except FileNotFoundError:
        if path.endswith(b"/") and b"/" not in path.rstrip(b"/"):
            raise fail(errno.EISDIR) from None  # in a directory that was removed
        raise
    if where.mount is not None and where.slash and not where.last_dot and where.inside != b"/":
        raise fail(errno.EISDIR)
    return where


def _create(vm: VirtualMachine, req: Request, where: Where, how: How) -> Reply:
    """Make the file. **Errors** EROFS, EACCES of lookup_open()."""
    mount, inside = where.mount, where.inside
    assert mount is not None
    caller = enter(vm, req)
    writable(mount)
    directory = mount.fs.getattr(parent(inside))
    check_create(mount, directory, caller)
    mode = stat.S_IFREG | create_mode(directory, caller, how.mode)
    with mount.lock:
        fh = mount.fs.create(inside, mode, how.flags & ~_NOT_FOR_FS)
    _, fd = vm.files.create(mount, inside, mount.fs.getattr(inside, fh), fh, how.flags)
    try:
        return Reply.value(req.addfd(fd, bool(how.flags & os.O_CLOEXEC)))
    except OSError as error:
        if error.errno == errno.EMFILE:  # the kernel finds that before it makes a file
            with mount.lock:
                mount.fs.unlink(inside)
                vm.files.removed(mount, inside)
        raise
    finally:
        os.close(fd)


def _open(vm: VirtualMachine, req: Request, where: Where, how: How, index: int) -> Reply | None:
    """Open what is there: do_open() and may_open()."""
    mount, inside, flags = where.mount, where.inside, how.flags
    assert mount is not None
    caller = enter(vm, req)
    known = file_of(where)
    attr = look(where)
    kind = stat.S_IFMT(attr.mode)
    directory = kind == stat.S_IFDIR
    if how.create:
        if how.exclusive:
            raise fail(errno.EEXIST)
        if directory:
            raise fail(errno.EISDIR)
        if inside != b"/":
            check_sticky_open(mount, mount.fs.getattr(parent(inside)), attr, caller)
    if not directory and (flags & os.O_DIRECTORY or where.slash):
        raise fail(errno.ENOTDIR)
    if isinstance(known, Special | DirRef) and known.deleted:
        return None  # the kernel has it: the FIFO behind a link, or the working directory
    if how.path_only and known is not None and nameless(known):
        return _open_deleted(vm, known, how)
    if how.path_only:
        return install(vm, mount, inside, None, flags, attr)
    _may_open(mount, inside, attr, kind, caller, how)
    if kind == stat.S_IFIFO:
        # the guest opens the real FIFO itself, so that waiting is the kernel's
        return _open_elsewhere(req, vm.specials.fifo(mount, inside, attr), how, index)
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        return _open_elsewhere(req, _device(kind, attr.rdev), how, index)
    if kind == stat.S_IFSOCK:
        raise fail(errno.ENXIO)
    if known is not None and nameless(known):
        return _open_deleted(vm, known, how)
    if directory:
        return install(vm, mount, inside, mount.fs.opendir(inside), flags, attr)
    if how.access & WRITE and vm.images.running(mount, inside, attr):
        raise fail(errno.ETXTBSY)
    fh = mount.fs.open(inside, flags & ~_NOT_FOR_FS)
    if flags & os.O_TRUNC:
        try:
            truncate(vm, mount, inside, attr, 0, fh, caller)
        except OSError:
            mount.fs.release(inside, fh)
            raise
    return install(vm, mount, inside, fh, flags, attr)


def _may_open(mount: Mount, inside: bytes, attr: Attr, kind: int, caller: Caller, how: How) -> None:
    """**Errors** ELOOP, EISDIR, EACCES, EROFS, EPERM (O_NOATIME)."""
    if kind == stat.S_IFREG and how.flags & os.O_TRUNC:
        writable(mount)
    if kind == stat.S_IFLNK:
        raise fail(errno.ELOOP)
    if kind == stat.S_IFDIR and how.access & WRITE:
        raise fail(errno.EISDIR)
    if kind in (stat.S_IFCHR, stat.S_IFBLK) and "nodev" in mount.options:
        raise fail(errno.EACCES)
    permit(mount, attr, caller, how.access)
    if mount.fs.checks_special and kind not in (stat.S_IFREG, stat.S_IFDIR) and how.access:
        mount.fs.access(inside, how.access)
    if how.flags & os.O_NOATIME and mount.permissions() and not owns(attr, caller):
        raise fail(errno.EPERM)


def _open_elsewhere(req: Request, place: bytes, how: How, index: int) -> Reply:
    """Let the guest open a file of the host in place of the served one."""
    flags = how.flags & ~(os.O_CREAT | os.O_TRUNC | os.O_NOATIME)
    if index == 0:
        changes: dict[int, int | bytes] = {0: place, 1: flags}
        return req.rewrite(changes if req.nr == NR_OPEN else {**changes, 6: NR_OPEN})
    changes = {0: AT_FDCWD, 1: place, 2: flags, 3: 0}
    return req.rewrite(changes if req.nr == NR_OPENAT else {**changes, 6: NR_OPENAT})


def _device(kind: int, rdev: int) -> bytes:
    """The host's node of the same device, so that the kernel asks the guest's rights on it.

    **Errors** ENXIO: the host has none.
    """
    sort = "char" if kind == stat.S_IFCHR else "block"
    try:
        with open(f"/sys/dev/{sort}/{os.major(rdev)}:{os.minor(rdev)}/uevent", "rb") as file:
            name = next(line for line in file if line.startswith(b"DEVNAME="))[8:].strip()
        place = b"/dev/" + name
        info = os.stat(place)
    except (OSError, StopIteration):
        raise fail(errno.ENXIO) from None
    if stat.S_IFMT(info.st_mode) != kind or info.st_rdev != rdev:
        raise fail(errno.ENXIO)
    return place


def _open_deleted(vm: VirtualMachine, known: Opened, how: How) -> Reply:
    """A file without a name, by /proc/self/fd. **Errors** ENOENT: it can't be opened again."""
    if not isinstance(known, OpenFile):
        raise fail(errno.ENOENT)
    _, fd = vm.files.reopen(known, how.flags)
    return Reply.fd(fd, bool(how.flags & os.O_CLOEXEC))


def truncate(
    vm: VirtualMachine, mount: Mount, inside: bytes, attr: Attr, size: int, fh: FileHandle,
    caller: Caller,
) -> None:  # fmt: skip
    """Set the size (bytes) of a file and of what guests have mapped of it; set-id bits go."""
    if attr.mode & (stat.S_ISUID | stat.S_ISGID) and caller.uid != 0:
        mode = without_set_ids(attr, caller)
        if mode != attr.mode & 0o7777:
            mount.lose_set_ids(inside, mode, fh)
    node = vm.files.node_at(mount, inside, attr)
    if node is None:
        mount.fs.truncate(inside, size, fh)
        return
    with node.lock:
        mount.fs.truncate(inside, size, fh)
        node.resized(size)


def install(
    vm: VirtualMachine, mount: Mount, inside: bytes, fh: FileHandle, flags: int, attr: Attr
) -> Reply:
    """Make the descriptor of an opened file."""
    _, fd = vm.files.create(mount, inside, attr, fh, flags)
    return Reply.fd(fd, bool(flags & os.O_CLOEXEC))


def _tmpfile(vm: VirtualMachine, req: Request, where: Where, how: How) -> Reply:
    """O_TMPFILE: a file without a name, which linkat(2) may give it unless O_EXCL forbids it.

    Until then it has a hidden one.
    """
    mount, flags = where.mount, how.flags
    assert mount is not None
    caller = enter(vm, req)
    directory = look(where)
    if not stat.S_ISDIR(directory.mode):
        raise fail(errno.ENOTDIR)
    writable(mount)
    check_create(mount, directory, caller)
    fs = mount.fs
    path = vm.files.hidden_name(where.inside)
    mode = stat.S_IFREG | create_mode(directory, caller, how.mode)
    with mount.lock:
        fh = fs.create(path, mode, flags & ~(_NOT_FOR_FS | os.O_TMPFILE))
        file, fd = vm.files.create(mount, path, fs.getattr(path, fh), fh, flags)
        vm.files.conceal(file)
        file.linkable = not flags & os.O_EXCL
    return Reply.fd(fd, bool(flags & os.O_CLOEXEC))


@handles("open", "creat")
def sys_open(vm: VirtualMachine, req: Request) -> Reply | None:
    """open(2), creat(2)."""
    a = req.args
    if req.nr == NR_CREAT:
        how = how_of(os.O_CREAT | os.O_WRONLY | os.O_TRUNC, a[1])
    else:
        how = how_of(a[1], a[2])
    return open_at(vm, req, AT_FDCWD, req.string(a[0]), how, 0)


@handles("openat")
def sys_openat(vm: VirtualMachine, req: Request) -> Reply | None:
    """openat(2)."""
    a = req.args
    return open_at(vm, req, signed(a[0]), req.string(a[1]), how_of(a[2], a[3]), 1)


@handles("openat2")
def sys_openat2(vm: VirtualMachine, req: Request) -> Reply | None:
    """openat2(2)."""
    dirfd, path, addr, size, *_ = req.args
    if size < HOW_SIZE:
        raise fail(errno.EINVAL)
    if size > PAGE:
        raise fail(errno.E2BIG)
    text = req.read(addr, size)
    if any(text[HOW_SIZE:]):
        raise fail(errno.E2BIG)
    how = how_of2(*struct.unpack_from("<QQQ", text))
    return open_at(vm, req, signed(dirfd), req.string(path), how, 1)
