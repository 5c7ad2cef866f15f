"""Reading directories, and the working directory."""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING

from umvm.guest.mounts import Mount
from umvm.interfaces.filesystem import Caller, Entry
from umvm.syscalls.context import (
    AT_FDCWD,
    Reply,
    Request,
    attributes,
    enter,
    fail,
    full_path,
    handles,
    inode_of_path,
    locate,
    opened,
    parent,
    run_host,
    signed,
)  # fmt: skip
from umvm.vfs.permission import EXEC, permit

if TYPE_CHECKING:
    from umvm.guest.openfile import OpenFile
    from umvm.vm import VirtualMachine

INT_MAX = 0x7FFFFFFF
NR_GETDENTS, NR_CHDIR = 78, 80
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
        return run_host(vm, req, (0, where))
    if where.file is not None and where.file.deleted:
        raise fail(errno.ENOENT)
    _may_enter(where.mount, where.inside, enter(vm, req))
    return req.rewrite({0: vm.files.directory(where.mount, where.inside)})


@handles("fchdir")
def sys_fchdir(vm: VirtualMachine, req: Request) -> Reply | None:
    """fchdir(2): as chdir, since the descriptor's own placeholder goes when it is closed."""
    file = opened(vm, req, signed(req.args[0]))
    if file is None:
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
    file = vm.named(vm.procs.cwd_link(req.tid))
    if file is None:
        return None
    if file.deleted:
        raise fail(errno.ENOENT)
    path = full_path(file) + b"\0"
    if file.mount.detached:
        path = b"(unreachable)" + file.path + b"\0"
    if len(path) > PAGE:
        raise fail(errno.ENAMETOOLONG)
    if len(path) > req.args[1]:
        raise fail(errno.ERANGE)
    req.write(req.args[0], path)
    return Reply.value(len(path))


@handles("chroot")
def sys_chroot(vm: VirtualMachine, req: Request) -> Reply | None:
    """chroot(2): only to the root that the guest has; else EPERM, after the path's errors."""
    where = locate(vm, req, AT_FDCWD, req.string(req.args[0]))
    caller = enter(vm, req)
    if where.mount is not None:
        _may_enter(where.mount, where.inside, caller)
    elif where.path == b"/" or caller.uid != 0:
        return run_host(vm, req, (0, where))  # the kernel has the right error for other users
    elif not os.path.isdir(where.path):
        raise fail(errno.ENOTDIR)
    raise fail(errno.EPERM)
