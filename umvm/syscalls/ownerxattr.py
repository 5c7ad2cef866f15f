"""Extended attributes of the host's files that only root may set, under another identity.

trusted.* and security.* are remembered; all others are the kernel's, if the guest may use the file.
What the file really has of them is seen where nothing is remembered.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from umvm.interfaces.identity import Identity
from umvm.owners.store import Seen
from umvm.syscalls.context import (
    AT_EMPTY_PATH,
    AT_FDCWD,
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
    see,
)  # fmt: skip
from umvm.syscalls.owners import place_of_open_fd
from umvm.syscalls.xattr import (
    XATTR_CREATE,
    XATTR_LIST_MAX,
    XATTR_REPLACE,
    XATTR_SIZE_MAX,
    attribute_name,
    give,
    xattr_args,
)
from umvm.vfs.permission import READ, WRITE, owns, permit

if TYPE_CHECKING:
    from umvm.vm import VirtualMachine

_ROOTS = (b"trusted.", b"security.")
_FD = (190, 193, 196, 199)
_LINK = (189, 192, 195, 198)
_AT = (463, 464, 465, 466)


def _find(vm: VirtualMachine, req: Request) -> Place | None:
    """The file of a plain, l…, f… or …at call."""
    a = req.args
    if req.nr in _FD:
        return place_of_open_fd(vm, req, signed(a[0]))
    if req.nr in _AT:
        flags = a[2] & 0xFFFFFFFF
        if flags & ~(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH):
            return None
        return place_at(vm, req, signed(a[0]), a[1], flags)
    return place_at(vm, req, AT_FDCWD, a[0], AT_SYMLINK_NOFOLLOW if req.nr in _LINK else 0)


def _seen(
    vm: VirtualMachine, req: Request, identity: Identity, place: Place, name: bytes, mask: int
) -> Seen:
    """The file, after the checks of xattr_permission(). **Errors** EACCES, EPERM, ENODATA."""
    caller = vm.procs.caller(req.tid)
    check_way(vm, identity, caller, place)
    seen = see(vm, identity, place.path, place.flags)
    attr = attr_of(seen)
    if name.startswith(b"trusted.") and caller.uid != 0:
        raise fail(errno.EPERM if mask & WRITE else errno.ENODATA)
    if name.startswith(b"security.") and mask & WRITE and caller.uid != 0:
        raise fail(errno.EPERM)
    if name.startswith(b"user.") and not (stat.S_ISREG(seen.mode) or stat.S_ISDIR(seen.mode)):
        raise fail(errno.EPERM if mask & WRITE else errno.ENODATA)
    if name.startswith(b"user.") and is_checked(caller, place):
        sticky = stat.S_ISDIR(seen.mode) and seen.mode & stat.S_ISVTX
        if sticky and mask & WRITE and not owns(attr, caller):
            raise fail(errno.EPERM)
        permit(HOST, attr, caller, mask)
    if name.startswith(b"system.") and mask & WRITE and not owns(attr, caller):
        raise fail(errno.EPERM)
    return seen


def _really(place: Place, name: bytes) -> bytes | None:
    """What the real file has under a name."""
    try:
        return os.getxattr(place.path, name, follow_symlinks=not place.flags)
    except OSError:
        return None


@handles("setxattr", "lsetxattr", "fsetxattr", "setxattrat")
def sys_setxattr(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """setxattr(2)."""
    a = req.args
    at = req.nr in _AT
    name = attribute_name(req, a[3] if at else a[1])
    value_at, size, flags = xattr_args(req) if at else (a[2], a[3], signed(a[4]))
    if flags & ~(XATTR_CREATE | XATTR_REPLACE) or size > XATTR_SIZE_MAX:
        return None
    place = _find(vm, req)
    if place is None:
        return None
    seen = _seen(vm, req, identity, place, name, WRITE)
    if not name.startswith(_ROOTS):
        return None
    value = req.read(value_at, size)
    with vm.owners.lock:
        attributes = vm.owners.attributes_of(seen)
        there = name in attributes or _really(place, name) is not None
        if flags & XATTR_CREATE and there:
            raise fail(errno.EEXIST)
        if flags & XATTR_REPLACE and not there:
            raise fail(errno.ENODATA)
        vm.owners.set_attributes(seen, {**attributes, name: value})
    return DONE


@handles("getxattr", "lgetxattr", "fgetxattr", "getxattrat")
def sys_getxattr(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """getxattr(2)."""
    a = req.args
    at = req.nr in _AT
    name = attribute_name(req, a[3] if at else a[1])
    out, size, _ = xattr_args(req) if at else (a[2], a[3], 0)
    place = _find(vm, req)
    if place is None:
        return None
    seen = _seen(vm, req, identity, place, name, READ)
    value = vm.owners.attributes_of(seen).get(name)
    return None if value is None else give(req, value, out, min(size, XATTR_SIZE_MAX))


@handles("listxattr", "llistxattr", "flistxattr", "listxattrat")
def sys_listxattr(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """listxattr(2)."""
    a = req.args
    at = req.nr in _AT
    place = _find(vm, req)
    if place is None:
        return None
    caller = vm.procs.caller(req.tid)
    check_way(vm, identity, caller, place)
    kept = vm.owners.attributes_of(see(vm, identity, place.path, place.flags))
    if not kept:
        return None
    real = os.listxattr(place.path, follow_symlinks=not place.flags)
    names = list(dict.fromkeys([*map(os.fsencode, real), *kept]))
    if caller.uid != 0:
        names = [name for name in names if not name.startswith(b"trusted.")]
    out, size = (a[3], a[4]) if at else (a[1], a[2])
    text = b"".join(name + b"\0" for name in names)
    return give(req, text, out, min(size, XATTR_LIST_MAX))


@handles("removexattr", "lremovexattr", "fremovexattr", "removexattrat")
def sys_removexattr(vm: VirtualMachine, req: Request, identity: Identity) -> Reply | None:
    """removexattr(2)."""
    a = req.args
    name = attribute_name(req, a[3] if req.nr in _AT else a[1])
    place = _find(vm, req)
    if place is None:
        return None
    seen = _seen(vm, req, identity, place, name, WRITE)
    with vm.owners.lock:
        attributes = vm.owners.attributes_of(seen)
        if name not in attributes:
            if name.startswith(_ROOTS) and _really(place, name) is None:
                raise fail(errno.ENODATA)
            return None
        left = {kept: value for kept, value in attributes.items() if kept != name}
        vm.owners.set_attributes(seen, left)
    return DONE
