"""mount and umount2 of guests: they change the view, and so need no privilege."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from umvm.errors import Busy, NotFound, UmvmError
from umvm.guest.mounts import Mount, Where
from umvm.syscalls.context import (
    AT_FDCWD,
    DONE,
    Reply,
    Request,
    fail,
    handles,
    locate,
    run_host,
    signed,
)  # fmt: skip

if TYPE_CHECKING:
    from umvm.vm import VirtualMachine

MS_RDONLY, MS_REMOUNT, MS_BIND, MS_MOVE = 1, 32, 4096, 8192
MS_PROPAGATION = 0xF << 17  # unbindable, private, slave, shared
MGC_VAL, MGC_MASK = 0xC0ED0000, 0xFFFF0000
_FLAGS = {
    1: "ro", 2: "nosuid", 4: "nodev", 8: "noexec", 16: "sync", 1024: "noatime", 2048: "nodiratime",
    1 << 21: "relatime", 1 << 24: "strictatime",
}  # fmt: skip
_LIKE = {"tmpfs": "memory", "ramfs": "memory"}
MNT_FORCE, MNT_DETACH, MNT_EXPIRE, UMOUNT_NOFOLLOW = 1, 2, 4, 8
_OPTIONS_MAX = 4096


def _text(req: Request, addr: int) -> str:
    return os.fsdecode(req.string(addr)) if addr else ""


def _options(req: Request, addr: int, flags: int) -> dict[str, str]:
    """The options of the flags and of the data, a text `key=value,key`."""
    options = {name: "" for bit, name in _FLAGS.items() if flags & bit}
    if addr:
        for item in os.fsdecode(req.string(addr, _OPTIONS_MAX)).split(","):
            key, _, value = item.partition("=")
            if key:
                options[key] = value
    return options


@handles("mount")
def sys_mount(vm: VirtualMachine, req: Request) -> Reply | None:
    """mount(2) of a type that a module offers, and MS_REMOUNT of such a mount.

    **Errors** ENODEV: no module offers the type; EPERM: bind mounts, moves and propagation;
    EINVAL: an option, or nothing to remount; else those of the file system.
    """
    source_addr, target_addr, type_addr, flags, data, _ = req.args
    if flags & MGC_MASK == MGC_VAL:
        flags &= ~MGC_MASK
    fstype, source = _text(req, type_addr), _text(req, source_addr)
    where = locate(vm, req, AT_FDCWD, req.string(target_addr))
    options = _options(req, data, flags)
    if flags & MS_REMOUNT:
        return _remount(vm, where, flags)
    if flags & (MS_BIND | MS_MOVE | MS_PROPAGATION):
        raise fail(errno.EPERM)
    if not fstype:
        raise fail(errno.EINVAL)
    try:
        vm.mount(_offered(vm, fstype), source or "none", where.path, options)
    except NotFound as error:
        raise fail(errno.ENODEV) from error
    except UmvmError as error:
        raise fail(_number(error)) from error
    return DONE


def _offered(vm: VirtualMachine, fstype: str) -> str:
    """The type to mount: ours of the same kind for one of the kernel's. NotFound: no such type."""
    try:
        vm.manager.filesystem(fstype)
    except NotFound:
        fstype = _LIKE.get(fstype, fstype)
    return fstype


def _number(error: UmvmError) -> int:
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.errno:
        return cause.errno
    return errno.EBUSY if isinstance(error, Busy) else errno.EINVAL


def _remount(vm: VirtualMachine, where: Where, flags: int) -> Reply:
    mount = where.mount
    if mount is None or where.inside != b"/":
        raise fail(errno.EINVAL)
    read_only = bool(flags & MS_RDONLY)
    if read_only and not mount.read_only and _written(vm, mount):
        raise fail(errno.EBUSY)
    mount.read_only = read_only
    kept = {key: value for key, value in mount.options.items() if key not in _FLAGS.values()}
    mount.options = {**kept, **{name: "" for bit, name in _FLAGS.items() if flags & bit}}
    return DONE


def _written(vm: VirtualMachine, mount: Mount) -> bool:
    """Is a file of the mount open for writing?"""
    vm.files.drain()
    return any(f.mount is mount and f.writable for f in list(vm.files.open.values()))


@handles("umount2")
def sys_umount2(vm: VirtualMachine, req: Request) -> Reply | None:
    """umount2(2). **Errors** EINVAL: no mount point, or a flag; EBUSY; EAGAIN: first MNT_EXPIRE."""
    flags = signed(req.args[1])
    if flags & ~(MNT_FORCE | MNT_DETACH | MNT_EXPIRE | UMOUNT_NOFOLLOW):
        raise fail(errno.EINVAL)
    where = locate(vm, req, AT_FDCWD, req.string(req.args[0]), not flags & UMOUNT_NOFOLLOW)
    mount = where.mount
    if mount is None and os.geteuid() == 0:
        return run_host(vm, req, (0, where))  # it may be one of the host's
    if mount is None:
        raise fail(errno.EINVAL)
    if where.inside != b"/":
        raise fail(errno.EINVAL)
    if flags & MNT_EXPIRE:
        if flags & (MNT_FORCE | MNT_DETACH):
            raise fail(errno.EINVAL)
        if not mount.uses and not mount.expiring:
            mount.expiring = True
            raise fail(errno.EAGAIN)
    try:
        vm.umount(where.path, bool(flags & MNT_FORCE), bool(flags & MNT_DETACH))
    except Busy as error:
        raise fail(errno.EBUSY) from error
    except NotFound as error:
        raise fail(errno.EINVAL) from error
    return DONE


@handles("pivot_root")
def sys_pivot_root(vm: VirtualMachine, req: Request) -> Reply | None:
    """pivot_root(2): EPERM, since guests can't have another root."""
    raise fail(errno.EPERM)
