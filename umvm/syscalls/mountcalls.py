"""mount and umount2 of guests: they change the view, and so need no privilege."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from umvm.errors import Busy, NotFound, UmvmError
from umvm.guest import bound
from umvm.guest.mounts import Mount, Where, below
from umvm.guest.spaces import Space
from umvm.interfaces.identity import CAP_SYS_ADMIN
from umvm.syscalls.context import (
    AT_FDCWD,
    DONE,
    Reply,
    Request,
    fail,
    handles,
    locate,
    look,
    run_host,
    signed,
)  # fmt: skip
from umvm.syscalls.identity import may

if TYPE_CHECKING:
    from umvm.vm import VirtualMachine

MS_RDONLY, MS_REMOUNT, MS_BIND, MS_MOVE, MS_REC = 1, 32, 4096, 8192, 16384
MS_PROPAGATION = 0xF << 17  # unbindable, private, slave, shared
MGC_VAL, MGC_MASK = 0xC0ED0000, 0xFFFF0000
_FLAGS = {
    1: "ro", 2: "nosuid", 4: "nodev", 8: "noexec", 16: "sync", 1024: "noatime", 2048: "nodiratime",
    1 << 21: "relatime", 1 << 24: "strictatime",
}  # fmt: skip
_KERNELS = {
    "proc": b"/proc", "sysfs": b"/sys", "devtmpfs": b"/dev", "devpts": b"/dev/pts",
    "mqueue": b"/dev/mqueue", "cgroup2": b"/sys/fs/cgroup", "securityfs": b"/sys/kernel/security",
}  # fmt: skip
"""Types of the kernel's that a guest gets by seeing the host's own mount."""
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
    space = vm.spaces.of(req.tid)
    if flags & MS_REMOUNT:
        return _remount(vm, where, flags)
    if flags & MS_BIND:
        return _bind(vm, req, os.fsencode(source), where, flags)
    if flags & MS_PROPAGATION:
        return _propagation(vm, req, where)
    if flags & MS_MOVE:
        raise fail(errno.EPERM)
    options = _options(req, data, flags)
    if not fstype:
        raise fail(errno.EINVAL)
    there = _KERNELS.get(fstype)
    if there is not None and os.path.isdir(there):
        return _kernels(vm, where, there, flags, space)
    try:
        vm.mount(_offered(vm, fstype), source or "none", _target(space, where), options, space)
    except NotFound as error:
        raise fail(errno.ENODEV) from error
    except UmvmError as error:
        raise fail(_number(error)) from error
    return DONE


def _kernels(vm: VirtualMachine, where: Where, there: bytes, flags: int, space: Space) -> Reply:
    """A file system of the kernel's, of which the host's own mount is shown."""
    host = Where(None, there, there, False, False, 0, False, host=there)
    options = {"ro": ""} if flags & MS_RDONLY else {}
    bound.bind_found(vm, host, os.fsdecode(there), _target(space, where), options, space)
    return DONE


def _target(space: Space, where: Where) -> bytes:
    path = space.inner(where.path)
    if path is None:
        raise fail(errno.EINVAL)  # outside the caller's root
    return path


def _bind(vm: VirtualMachine, req: Request, source: bytes, where: Where, flags: int) -> Reply:
    """do_loopback() of fs/namespace.c: all options but MS_REC are ignored; MS_REC copies the bind
    mounts below the source too. **Errors** EINVAL: no source, or it is in a served file system."""
    space = vm.spaces.of(req.tid)
    if not source:
        raise fail(errno.EINVAL)
    found = locate(vm, req, AT_FDCWD, source)
    target = _target(space, where)
    below_it = []
    if flags & MS_REC:
        below_it = [m for m in space.table.binds if m.point != found.path]
        below_it = [m for m in below_it if below(found.path, m.point)]
    bound.bind(vm, _target(space, found), target, {}, space)
    for mount in below_it:
        point = target.rstrip(b"/") + mount.point[len(found.path.rstrip(b"/")) :]
        bound.bind(vm, _target(space, locate(vm, req, AT_FDCWD, mount.point)), point, {}, space)
    return DONE


def _propagation(vm: VirtualMachine, req: Request, where: Where) -> Reply:
    """MS_PRIVATE and the like: views propagate nothing. **Errors** EPERM; EINVAL: no mount."""
    if not may(vm, req, CAP_SYS_ADMIN):
        raise fail(errno.EPERM)
    mount = where.mount or where.bind
    point = where.path == mount.point if mount is not None else os.path.ismount(where.host)
    if not point and where.path != vm.spaces.of(req.tid).root:
        raise fail(errno.EINVAL)
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
    mount = where.mount or where.bind
    if mount is None or where.path != mount.point:
        raise fail(errno.EINVAL)
    read_only = bool(flags & MS_RDONLY)
    if read_only and not mount.read_only and _written(vm, mount):
        raise fail(errno.EBUSY)
    mount.read_only = read_only
    kept = {key: value for key, value in mount.options.items() if key not in _FLAGS.values()}
    mount.options = {**kept, **{name: "" for bit, name in _FLAGS.items() if flags & bit}}
    if mount.bind is not None:
        vm.remounted()
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
    mount = where.mount or where.bind
    space = vm.spaces.of(req.tid)
    if mount is None and os.geteuid() == 0:
        return run_host(vm, req, (0, where))  # it may be one of the host's
    if mount is None:
        raise fail(errno.EINVAL)
    if where.path != mount.point:
        raise fail(errno.EINVAL)
    if flags & MNT_EXPIRE:
        if flags & (MNT_FORCE | MNT_DETACH):
            raise fail(errno.EINVAL)
        if not mount.uses and not mount.expiring:
            mount.expiring = True
            raise fail(errno.EAGAIN)
    try:
        vm.umount(_target(space, where), bool(flags & MNT_FORCE), bool(flags & MNT_DETACH), space)
    except Busy as error:
        raise fail(errno.EBUSY) from error
    except NotFound as error:
        raise fail(errno.EINVAL) from error
    return DONE


@handles("pivot_root")
def sys_pivot_root(vm: VirtualMachine, req: Request) -> Reply | None:
    """pivot_root(2): all processes of the view that have the caller's root get the new one.

    The old root shows what the host has there, without mounts of the VM.
    **Errors** EPERM: no CAP_SYS_ADMIN; EBUSY: one of them is in the root's mount; EINVAL: the new
    root is no mount point, or the place for the old root isn't below it, or that root is served.
    """
    if not may(vm, req, CAP_SYS_ADMIN):
        raise fail(errno.EPERM)
    new = locate(vm, req, AT_FDCWD, req.string(req.args[0]))
    put = locate(vm, req, AT_FDCWD, req.string(req.args[1]))
    for where in (new, put):
        if not stat.S_ISDIR(
            os.stat(where.host).st_mode if where.mount is None else look(where).mode
        ):
            raise fail(errno.ENOTDIR)
    space = vm.spaces.of(req.tid)
    old = vm.walk(b"/", space)
    mount = new.mount or new.bind
    if (old.mount or old.bind) in (mount, put.mount or put.bind):
        raise fail(errno.EBUSY)
    if mount is None or new.path != mount.point or not below(new.path, put.path):
        raise fail(errno.EINVAL)
    inner = vm.spaces.get(space.table, new.path)
    bound.bind_found(vm, old, "/", inner.label(put.path), {}, inner)
    for pid in vm.guest_pids():
        try:
            if vm.spaces.of(pid) is space:
                vm.spaces.enter(pid, inner)
        except OSError:
            continue  # it has just ended
    return DONE
