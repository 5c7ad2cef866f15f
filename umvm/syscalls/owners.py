"""Calls that show or change owner and mode of the host's files, where guests have another identity.

Served files are left to the families (umvm/syscalls/stat.py, attrs.py). For guests that are root
the engine answers most of these calls itself (core_accel/ownercalls.h): what is here does the same.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from typing import TYPE_CHECKING

from umvm.interfaces.filesystem import Attr, Caller
from umvm.interfaces.identity import CAP_CHOWN, Identity
from umvm.owners.store import Seen
from umvm.syscalls.context import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_NO_AUTOMOUNT,
    AT_SYMLINK_NOFOLLOW,
    DONE,
    Reply,
    Request,
    fail,
    signed,
)  # fmt: skip
from umvm.syscalls.hostfiles import (
    HOST,
    Place,
    attr_of,
    check_way,
    handles,
    is_checked,
    place_at,
    place_of_fd,
    proc_device,
    see,
)  # fmt: skip
from umvm.syscalls.identity import credentials
from umvm.syscalls.stat import AT_EACCESS, AT_FLAGS, STATX_RESERVED, host_call
from umvm.vfs.attributes import (
    Times,
    check_owner,
    new_mode,
    times_now,
    times_of,
    without_set_ids,
)  # fmt: skip
from umvm.vfs.permission import EXEC, READ, WRITE, allowed, permit

if TYPE_CHECKING:
    from umvm.vm import VirtualMachine

NEWFSTATAT, STATX, FACCESSAT2, UTIMENSAT = 262, 332, 439, 280
_STAT_SIZE, _STAT_MODE, _STAT_RDEV = 144, 24, 40
_STATX_SIZE, _STATX_OWNER, _STATX_RDEV = 256, 20, 128
"""Bytes of the structures, and where mode, uid, gid and rdev are (stat.h, linux/stat.h)."""
_OWNER = struct.Struct("=III")
_OWNER_X = struct.Struct("=IIH")
CAPABILITY = b"security.capability"
"""The attribute that a change of owner takes away (capabilities(7))."""


# --- stat ----------------------------------------------------------------------------------------


def _stat(
    vm: VirtualMachine, req: Request, identity: Identity, place: Place, flags: int, out: int
) -> Reply:
    buffer = ctypes.create_string_buffer(_STAT_SIZE)
    flags = flags & AT_NO_AUTOMOUNT | place.flags
    host_call(NEWFSTATAT, AT_FDCWD, place.host, buffer, flags)
    seen = see(vm, identity, place.path, place.flags)
    data = bytearray(buffer.raw)
    _OWNER.pack_into(data, _STAT_MODE, seen.mode, seen.uid, seen.gid)
    struct.pack_into("=Q", data, _STAT_RDEV, seen.rdev)
    req.write(out, data)
    return DONE


def _stat_at(
    vm: VirtualMachine, req: Request, identity: Identity, dirfd: int, addr: int, flags: int,
    out: int,
) -> Reply | None:  # fmt: skip
    place = place_at(vm, req, dirfd, addr, flags)
    if place is None:
        return None
    check_way(vm, identity, vm.procs.caller(req.tid), place)
    return _stat(vm, req, identity, place, flags, out)


@handles("stat", "lstat")
def sys_stat(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """stat(2), lstat(2)."""
    flags = AT_SYMLINK_NOFOLLOW if req.nr == 6 else 0
    return _stat_at(vm, req, identity, AT_FDCWD, req.args[0], flags, req.args[1])


@handles("newfstatat")
def sys_newfstatat(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """fstatat(2)."""
    dirfd, addr, out, flags, *_ = req.args
    if flags & 0xFFFFFFFF & ~AT_FLAGS:
        return None
    return _stat_at(vm, req, identity, signed(dirfd), addr, flags & 0xFFFFFFFF, out)


@handles("fstat")
def sys_fstat(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """fstat(2)."""
    place = place_of_fd(vm, req, signed(req.args[0]))
    return None if place is None else _stat(vm, req, identity, place, 0, req.args[1])


@handles("statx")
def sys_statx(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """statx(2): the kernel fills in what the mask asks for, and owners always."""
    dirfd, addr, flags, mask, out, _ = req.args
    if flags & 0xFFFFFFFF & ~AT_FLAGS or mask & STATX_RESERVED:
        return None
    place = place_at(vm, req, signed(dirfd), addr, flags)
    if place is None:
        return None
    check_way(vm, identity, vm.procs.caller(req.tid), place)
    buffer = ctypes.create_string_buffer(_STATX_SIZE)
    flags = flags & 0xFFFFFFFF & ~(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH) | place.flags
    host_call(STATX, AT_FDCWD, place.host, flags, mask & 0xFFFFFFFF, buffer)
    seen = see(vm, identity, place.path, place.flags)
    data = bytearray(buffer.raw)
    _OWNER_X.pack_into(data, _STATX_OWNER, seen.uid, seen.gid, seen.mode)
    struct.pack_into("=II", data, _STATX_RDEV, os.major(seen.rdev), os.minor(seen.rdev))
    req.write(out, data)
    return DONE


# --- access --------------------------------------------------------------------------------------


def _access(
    vm: VirtualMachine, req: Request, identity: Identity, dirfd: int, addr: int, mask: int,
    flags: int,
) -> Reply | None:  # fmt: skip
    """What the identity may do to files of the real user; of others' the kernel says the truth."""
    if mask & ~7 or flags & ~(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH | AT_EACCESS):
        return None
    place = place_at(vm, req, dirfd, addr, flags)
    if place is None:
        return None
    task = vm.procs.task(req.tid)
    caller = task.caller if flags & AT_EACCESS else task.real
    check_way(vm, identity, caller, place)
    seen = see(vm, identity, place.path, place.flags)
    is_ours = caller.uid == 0 or is_checked(caller, place)
    if is_ours and not allowed(attr_of(seen), caller, mask & (READ | WRITE | EXEC)):
        raise fail(errno.EACCES)
    try:
        kept = flags & ~(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH) | place.flags
        host_call(FACCESSAT2, AT_FDCWD, place.host, mask, kept)
    except OSError as error:
        if error.errno != errno.EACCES or seen.real_uid != os.geteuid():
            raise
    return DONE


@handles("access")
def sys_access(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """access(2)."""
    return _access(vm, req, identity, AT_FDCWD, req.args[0], signed(req.args[1]), 0)


@handles("faccessat", "faccessat2")
def sys_faccessat(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """faccessat2(2)."""
    a = req.args
    flags = a[3] & 0xFFFFFFFF if req.nr == FACCESSAT2 else 0
    return _access(vm, req, identity, signed(a[0]), a[1], signed(a[2]), flags)


# --- owners --------------------------------------------------------------------------------------


def _chown(
    vm: VirtualMachine, req: Request, identity: Identity, place: Place | None, uid: int, gid: int
) -> Reply | None:
    if place is None:
        return None
    caller = vm.procs.caller(req.tid)
    check_way(vm, identity, caller, place)
    seen = see(vm, identity, place.path, place.flags)
    if not credentials(vm, req.tid, identity).may(CAP_CHOWN):
        check_owner(attr_of(seen), caller, uid, gid)
    store = vm.owners
    if seen.known < 0:
        _keep_shown(vm, place, seen)
    attributes = store.attributes_of(seen)
    if CAPABILITY in attributes and not stat.S_ISDIR(seen.mode):
        left = {name: value for name, value in attributes.items() if name != CAPABILITY}
        store.set_attributes(seen, left)
    store.table.chown(place.path, place.flags, uid, gid)
    kept = without_set_ids(attr_of(seen), caller)
    goes = seen.mode & ~kept & stat.S_ISGID and not stat.S_ISDIR(seen.mode)
    if goes and not seen.mode & stat.S_IXGRP:  # else it has gone already
        store.table.chmod(place.path, place.flags, kept)
    return DONE


def _keep_shown(vm: VirtualMachine, place: Place, seen: Seen) -> None:
    """A file that wasn't known is, from now on, with the owner that an identity makes up for it."""
    now = vm.owners.look(place.path, place.flags)
    if (now.uid, now.gid) != (seen.uid, seen.gid):
        vm.owners.table.put(
            seen.dev, seen.ino, seen.guard, seen.uid, seen.gid, seen.mode, seen.real_mode & 0o7777,
            seen.rdev, 0,
        )  # fmt: skip


@handles("chown", "lchown")
def sys_chown(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """chown(2), lchown(2)."""
    addr, uid, gid, *_ = req.args
    place = place_at(vm, req, AT_FDCWD, addr, AT_SYMLINK_NOFOLLOW if req.nr == 94 else 0)
    return _chown(vm, req, identity, place, signed(uid), signed(gid))


@handles("fchownat")
def sys_fchownat(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """fchownat(2)."""
    dirfd, addr, uid, gid, flags, _ = req.args
    if flags & 0xFFFFFFFF & ~(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH):
        raise fail(errno.EINVAL)
    place = place_at(vm, req, signed(dirfd), addr, flags)
    return _chown(vm, req, identity, place, signed(uid), signed(gid))


def is_path_only(req: Request, fd: int) -> bool:
    """Was a guest's descriptor opened with O_PATH? Its link gives no permission then."""
    try:
        return not os.lstat(b"/proc/%d/fd/%d" % (req.tid, fd)).st_mode & 0o600
    except OSError:
        return False


def place_of_open_fd(vm: VirtualMachine, req: Request, fd: int) -> Place | None:
    """As place_of_fd. **Errors** EBADF: O_PATH too."""
    place = place_of_fd(vm, req, fd)
    if place is not None and is_path_only(req, fd):
        raise fail(errno.EBADF)
    return place


@handles("fchown")
def sys_fchown(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """fchown(2). **Errors** EBADF: O_PATH."""
    place = place_of_open_fd(vm, req, signed(req.args[0]))
    return _chown(vm, req, identity, place, signed(req.args[1]), signed(req.args[2]))


# --- modes ---------------------------------------------------------------------------------------


def _chmod(
    vm: VirtualMachine, req: Request, identity: Identity, place: Place | None, mode: int
) -> Reply | None:
    if place is None:
        return None
    caller = vm.procs.caller(req.tid)
    check_way(vm, identity, caller, place)
    seen = see(vm, identity, place.path, place.flags)
    if stat.S_ISLNK(seen.mode) or (place.path.startswith(b"/proc/") and seen.dev == proc_device()):
        return None
    vm.owners.table.chmod(place.path, place.flags, new_mode(attr_of(seen), caller, mode))
    return DONE


@handles("chmod")
def sys_chmod(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """chmod(2)."""
    return _chmod(vm, req, identity, place_at(vm, req, AT_FDCWD, req.args[0], 0), req.args[1])


@handles("fchmodat", "fchmodat2")
def sys_fchmodat(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """fchmodat(2) without flags, fchmodat2(2) with them."""
    dirfd, addr, mode, flags, *_ = req.args
    flags = flags & 0xFFFFFFFF if req.nr == 452 else 0
    if flags & ~(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH):
        raise fail(errno.EINVAL)
    return _chmod(vm, req, identity, place_at(vm, req, signed(dirfd), addr, flags), mode)


@handles("fchmod")
def sys_fchmod(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """fchmod(2). **Errors** EBADF: O_PATH."""
    return _chmod(vm, req, identity, place_of_open_fd(vm, req, signed(req.args[0])), req.args[1])


def drop_set_ids(vm: VirtualMachine, place: Place, attr: Attr, caller: Caller) -> None:
    """Somebody who isn't root cuts a file off: its set-id bits go."""
    if stat.S_ISREG(attr.mode) and attr.mode & (stat.S_ISUID | stat.S_ISGID):
        mode = without_set_ids(attr, caller)
        if mode != attr.mode & 0o7777:
            vm.owners.table.chmod(place.path, place.flags, mode)


# --- what a guest that isn't root may do to a file, and the kernel does ---------------------------


def _times(req: Request, addr: int) -> Times | None:
    """What times are to be set; None: none. Only utimensat(2) can say "now" in so many words."""
    if not addr:
        return times_now()
    if req.nr != UTIMENSAT:
        return Times(0, 0, False)
    atime, atime_ns, mtime, mtime_ns = struct.unpack("<qqqq", req.read(addr, 32))
    return times_of((atime, atime_ns), (mtime, mtime_ns))


@handles("utime", "utimes", "futimesat", "utimensat")
def sys_utime(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """utimensat(2) and its elders: times are the owner's; whoever may write may set them to now."""
    caller = vm.procs.caller(req.tid)
    if caller.uid == 0:
        return None
    a = req.args
    at = int(req.nr in (261, UTIMENSAT))
    flags = a[3] & 0xFFFFFFFF if req.nr == UTIMENSAT else 0
    dirfd, addr = (signed(a[0]), a[1]) if at else (AT_FDCWD, a[0])
    if not addr and dirfd != AT_FDCWD:
        place = place_of_fd(vm, req, dirfd)
    else:
        place = place_at(vm, req, dirfd, addr, flags)
    if place is None:
        return None
    check_way(vm, identity, caller, place)
    attr = attr_of(see(vm, identity, place.path, place.flags))
    if caller.uid == attr.uid:
        return None
    times = _times(req, a[at + 1])
    if times is None:
        return None
    if not times.touch:
        raise fail(errno.EPERM)
    if not allowed(attr, caller, WRITE):
        raise fail(errno.EACCES)
    return None


@handles("fchdir")
def sys_fchdir(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """fchdir(2): the kernel does it, if the guest may search the directory."""
    caller = vm.procs.caller(req.tid)
    place = place_of_fd(vm, req, signed(req.args[0])) if caller.uid != 0 else None
    if place is None or os.readlink(place.path).startswith(b"/proc/"):
        return None
    seen = see(vm, identity, place.path)
    if stat.S_ISDIR(seen.mode):
        permit(HOST, attr_of(seen), caller, EXEC)
    return None


_MASKS = {76: WRITE, 80: EXEC, 59: EXEC, 322: EXEC, 161: EXEC, 254: READ}
"""What a call needs of the file that its path leads to; others only have to find it."""
_DIRECTORIES = (80, 161)
_TRUNCATE = 76


def _looked_at(
    vm: VirtualMachine, req: Request, identity: Identity, dirfd: int, addr: int, flags: int
) -> None:
    caller = vm.procs.caller(req.tid)
    place = place_at(vm, req, dirfd, addr, flags)
    if place is None:
        return
    if caller.uid == 0:
        vm.owners.adopter.widen(place.path, _MASKS.get(req.nr, 0) << 6)
        return
    check_way(vm, identity, caller, place)
    seen = see(vm, identity, place.path, place.flags)
    if req.nr in _DIRECTORIES and not stat.S_ISDIR(seen.mode):
        return  # ENOTDIR, before permissions are looked at
    if is_checked(caller, place):
        permit(HOST, attr_of(seen), caller, _MASKS.get(req.nr, 0))
        if req.nr == _TRUNCATE:
            drop_set_ids(vm, place, attr_of(seen), caller)


@handles("truncate", "chdir", "chroot", "execve", "statfs")
def sys_path(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """Calls on a path that the kernel runs, if the guest may."""
    _looked_at(vm, req, identity, AT_FDCWD, req.args[0], 0)
    return None


@handles("readlink")
def sys_readlink(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """readlink(2)."""
    _looked_at(vm, req, identity, AT_FDCWD, req.args[0], AT_SYMLINK_NOFOLLOW)
    return None


@handles("readlinkat", "execveat", "inotify_add_watch")
def sys_path_at(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """Calls on a path from a directory that the kernel runs, if the guest may."""
    dirfd = AT_FDCWD if req.nr == 254 else signed(req.args[0])
    flags = AT_SYMLINK_NOFOLLOW if req.nr == 267 else 0
    if req.nr == 322:
        flags = req.args[4] & (AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH)
    _looked_at(vm, req, identity, dirfd, req.args[1], flags)
    return None
