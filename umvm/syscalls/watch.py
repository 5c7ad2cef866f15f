"""Calls that watch files or make handles of them: what is said where the file is served.

A served file has no inode of the kernel that could be watched. The answers are those that programs
know from file systems without the feature, so that they fall back on polling or on paths.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from umvm.syscalls.context import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_SYMLINK_FOLLOW,
    Reply,
    Request,
    fail,
    handles,
    locate,
    run_host,
    signed,
    target_empty,
)  # fmt: skip

if TYPE_CHECKING:
    from umvm.vm import VirtualMachine

IN_DONT_FOLLOW = 0x02000000
FAN_MARK_DONT_FOLLOW = 0x04
AT_HANDLE_FLAGS = AT_SYMLINK_FOLLOW | AT_EMPTY_PATH | 0x200 | 0x001 | 0x002


@handles("inotify_add_watch")
def sys_inotify_add_watch(vm: VirtualMachine, req: Request) -> Reply | None:
    """inotify_add_watch(2): ENOSPC on a mount, which programs take as "no watch to be had"."""
    follow = not req.args[2] & IN_DONT_FOLLOW
    where = locate(vm, req, AT_FDCWD, req.string(req.args[1]), follow)
    if where.mount is None:
        return run_host(vm, req, (1, where))
    raise fail(errno.ENOSPC)


@handles("fanotify_mark")
def sys_fanotify_mark(vm: VirtualMachine, req: Request) -> Reply | None:
    """fanotify_mark(2): ENODEV on a mount, as on a file system without an id."""
    a = req.args
    if a[4]:
        follow = not a[1] & FAN_MARK_DONT_FOLLOW
        where = locate(vm, req, signed(a[3]), req.string(a[4]), follow)
        if where.mount is None:
            return run_host(vm, req, (4, where))
    elif target_empty(vm, req, signed(a[3])) is None:
        return None
    raise fail(errno.ENODEV)


@handles("name_to_handle_at")
def sys_name_to_handle_at(vm: VirtualMachine, req: Request) -> Reply | None:
    """name_to_handle_at(2): EOPNOTSUPP on a mount, as on a file system that has no handles."""
    a = req.args
    flags = signed(a[4])
    if flags & ~AT_HANDLE_FLAGS:
        raise fail(errno.EINVAL)
    path = req.string(a[1])
    if not path and flags & AT_EMPTY_PATH:
        if target_empty(vm, req, signed(a[0])) is None:
            return None
        raise fail(errno.EOPNOTSUPP)
    where = locate(vm, req, signed(a[0]), path, bool(flags & AT_SYMLINK_FOLLOW))
    if where.mount is None:
        return run_host(vm, req, (1, where))
    raise fail(errno.EOPNOTSUPP)
