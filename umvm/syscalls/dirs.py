"""Reading directories, and the working directory."""

from __future__ import annotations

import errno
import os
import stat
import struct
from typing import TYPE_CHECKING

from umvm.guest.mounts import Mount
from umvm.guest.spaces import DELETED
from umvm.interfaces.filesystem import Caller, Entry
from umvm.interfaces.identity import CAP_SYS_CHROOT
from umvm.syscalls.context import (
    AT_FDCWD,
    DONE,
    Reply,
    Request,
    attributes,
    enter,
    fail,
    full_path,
    handles,
    host_path,
    inode_of_path,
    locate,
    opened,
    parent,
    run_host,
    signed,
)  # fmt: skip
from umvm.syscalls.identity import may
from umvm.syscalls.stat import AT_EACCESS, host_call, may_answer
from umvm.vfs.permission import EXEC, permit

if TYPE_CHECKING:
    from umvm.guest.openfile import OpenFile
    from umvm.vm import VirtualMachine

INT_MAX = 0x7FFFFFFF
NR_GETDENTS, NR_CHDIR, FACCESSAT2 = 78, 80, 439
PAGE = 4096
"""The room that getcwd(2) has."""
_HEAD = struct.Struct("<QqHB")
"""struct linux_dirent64: inode, offset of the next entry, length, type; then the name."""
_OLD_HEAD = struct.Struct("<QqH")
"""struct linux_dirent: the type is the last byte of an entry."""
_CHUNK = 1 << 20
_HIDDEN = b".umvm_hidden_"


# --- reading -------------------------------------------------------------------------------------


def _snapshot(file: OpenFile) -> list[Entry]:
    """All entries, "." and ".." first."""
    mount, path = file.mount, file.path
    found = mount.fs.readdir(path, file.fh)
    dots = [
        Entry(b".", _inode(mount, path), 0o040000),
        Entry(b"..", _inode(mount, parent(path)), 0o040000),
    ]
    prefix = b"" if path == b"/" else path
    return dots + [
        entry if entry.ino else entry._replace(ino=inode_of_path(prefix + b"/" + entry.name))
        for entry in found
        if entry.name not in (b".", b"..") and not entry.name.startswith(_HIDDEN)
    ]


def _inode(mount: Mount, path: bytes) -> int:
    return mount.fs.getattr(path).ino or inode_of_path(path)


def _pack(entries: list[Entry], start: int, room: int, old: bool) -> tuple[bytes, int]:
    """The entries from `start` on that fit into `room` bytes, and how many they are."""
    packed = bytearray()
    index = start
    fixed = 18 + 2 if old else 19 + 1  # header, the name's NUL, and an old entry's type
    for index in range(start, len(entries)):
        name, ino, kind = entries[index]
        length = (fixed + len(name) + 7) & ~7
        if len(packed) + length > room:
            break
        if old:
            packed += _OLD_HEAD.pack(ino, index + 1, length) + name
            packed += bytes(length - 19 - len(name)) + bytes((kind >> 12,))
        else:
            packed += _HEAD.pack(ino, index + 1, length, kind >> 12) + name
            packed += bytes(length - 19 - len(name))
    else:
        index = len(entries)
    return bytes(packed), index - start


@handles("getdents64", "getdents")
def sys_getdents64(vm: VirtualMachine, req: Request) -> Reply | None:
    """getdents64(2), getdents(2): a snapshot is taken when reading begins at offset 0."""
    fd, addr, size, *_ = req.args
    file = vm.files.of(req.tid, signed(fd))
    if file is None:
        return None
    if file.flags & os.O_PATH:
        raise fail(errno.EBADF)
    if not file.directory:
        raise fail(errno.ENOTDIR)
    enter(vm, req)
    with file.lock:
        if file.deleted:
            raise fail(errno.ENOENT)
        entries: list[Entry] | None = file.entries
        if entries is None or file.offset == 0:
            entries = file.entries = _snapshot(file)
        room = min(size & 0xFFFFFFFF, INT_MAX, _CHUNK)
        packed, count = _pack(entries, file.offset, room, req.nr == NR_GETDENTS)
        if not count and file.offset < len(entries):
            raise fail(errno.EINVAL)
        req.write(addr, packed)
        file.offset += count
    return Reply.value(len(packed))


# --- the working directory -----------------------------------------------------------------------


def _may_enter(mount: Mount, inside: bytes, caller: Caller) -> None:
    """path_permission(MAY_EXEC | MAY_CHDIR). **Errors** ENOTDIR, EACCES."""
    attr = mount.fs.getattr(inside)
    if attr.mode & 0o170000 != 0o040000:
        raise fail(errno.ENOTDIR)
    permit(mount, attr, caller, EXEC)
    if not mount.permissions():
        mount.fs.access(inside, EXEC)


@handles("chdir")
def sys_chdir(vm: VirtualMachine, req: Request) -> Reply | None:
    """chdir(2): the kernel's working directory becomes the placeholder of the served one."""
    where = locate(vm, req, AT_FDCWD, req.string(req.args[0]))
    if where.mount is None:
        if vm.spaces.redirects:
            _check_enter(vm, req, host_path(where))
            vm.spaces.came_by(req.tid, where.bind)
        return run_host(vm, req, (0, where))
    if where.file is not None and where.file.deleted:
        raise fail(errno.ENOENT)
    _may_enter(where.mount, where.inside, enter(vm, req))
    return req.rewrite({0: vm.files.directory(where.mount, where.inside)})


def _check_enter(vm: VirtualMachine, req: Request, path: bytes) -> None:
    """Would the kernel let the guest in? What it says is final, so that nothing is noted in vain.

    **Errors** those of chdir(2)."""
    if not stat.S_ISDIR(os.stat(path).st_mode):
        raise fail(errno.ENOTDIR)
    if may_answer(vm, req):
        host_call(FACCESSAT2, AT_FDCWD, path, os.X_OK, AT_EACCESS)


def _came_by_fd(vm: VirtualMachine, req: Request, fd: int) -> None:
    """A guest changes to a directory of the host by its descriptor: note by which mount."""
    space = vm.spaces.of(req.tid)
    if space.plain and not vm.spaces.several:
        return
    path = b"/proc/%d/fd/%d" % (req.tid, fd)
    try:
        link = os.readlink(path)
        _check_enter(vm, req, path)
    except OSError:
        return  # the kernel says it
    mount = vm.spaces.place(space, req.tid, fd, link)[1]
    vm.spaces.came_by(req.tid, space.table.bind_by_id(mount))


@handles("fchdir")
def sys_fchdir(vm: VirtualMachine, req: Request) -> Reply | None:
    """fchdir(2): as chdir, since the descriptor's own placeholder goes when it is closed."""
    file = opened(vm, req, signed(req.args[0]))
    if file is None:
        _came_by_fd(vm, req, signed(req.args[0]))
        return None
    if not file.directory:
        raise fail(errno.ENOTDIR)
    caller = enter(vm, req)
    if file.deleted:
        permit(file.mount, attributes(file), caller, EXEC)
        return None  # the kernel knows the descriptor's placeholder as a removed directory
    _may_enter(file.mount, file.path, caller)
    place = vm.files.directory(file.mount, file.path)
    try:
        return req.rewrite({6: NR_CHDIR, 0: place})
    except PermissionError:
        return None  # traced: the descriptor's own placeholder does while it is open


@handles("getcwd")
def sys_getcwd(vm: VirtualMachine, req: Request) -> Reply | None:
    """getcwd(2): the length counts the NUL."""
    link = vm.procs.cwd_link(req.tid)
    file = vm.named(link)
    space = vm.spaces.of(req.tid)
    if file is None:
        if space.plain or not link.startswith(b"/"):
            return None
        if link.endswith(DELETED) and not os.path.exists(link):
            raise fail(errno.ENOENT)
        where = vm.spaces.place(space, req.tid, None, link)[0]
    else:
        if file.deleted:
            raise fail(errno.ENOENT)
        where = full_path(file)
    inner = space.inner(where)
    path = (b"(unreachable)" + where if inner is None else inner) + b"\0"
    if file is not None and file.mount.detached:
        path = b"(unreachable)" + file.path + b"\0"
    if len(path) > PAGE:
        raise fail(errno.ENAMETOOLONG)
    if len(path) > req.args[1]:
        raise fail(errno.ERANGE)
    req.write(req.args[0], path)
    return Reply.value(len(path))


@handles("chroot")
def sys_chroot(vm: VirtualMachine, req: Request) -> Reply | None:
    """chroot(2): the process's paths begin at another directory from now on, its children's too.

    It is a matter of the view only. **Errors** those of the path; EPERM: no CAP_SYS_CHROOT, as far
    as the guest can see; ENOMEM: too many different roots.
    """
    where = locate(vm, req, AT_FDCWD, req.string(req.args[0]))
    if where.mount is not None:
        _may_enter(where.mount, where.inside, enter(vm, req))
    else:
        _check_enter(vm, req, host_path(where))
    if not may(vm, req, CAP_SYS_CHROOT):
        if where.mount is None and vm.identity is None:
            return run_host(vm, req, (0, where))  # EPERM, unless a directory can't be searched
        raise fail(errno.EPERM)
    space = vm.spaces.of(req.tid)
    vm.spaces.enter(req.tid, vm.spaces.get(space.table, where.path))
    return DONE
