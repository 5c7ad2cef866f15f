"""How chmod, chown, utimensat and writing change the attributes of a file.

**Source**: fs/attr.c (setattr_prepare, notify_change, setattr_should_drop_suidgid) and fs/open.c of
Linux 6.18.
"""

from __future__ import annotations

import errno
import stat
import time
from typing import NamedTuple

from umvm.interfaces.filesystem import Attr, Caller
from umvm.vfs.permission import fail, in_group, owns

UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
SECOND = 10**9


def new_mode(attr: Attr, caller: Caller, mode: int) -> int:
    """The permission bits after chmod(2). **Errors** EPERM: not the owner."""
    if not owns(attr, caller):
        raise fail(errno.EPERM)
    mode &= 0o7777
    if caller.uid != 0 and not in_group(caller, attr.gid):
        mode &= ~stat.S_ISGID
    return mode


def create_mode(directory: Attr, caller: Caller, mode: int) -> int:
    """The mode of a new file that is no directory: vfs_prepare_mode()."""
    mode &= 0o7777
    if (
        mode & (stat.S_ISGID | stat.S_IXGRP) == stat.S_ISGID | stat.S_IXGRP
        and directory.mode & stat.S_ISGID
        and caller.uid != 0
        and not in_group(caller, directory.gid)
    ):
        mode &= ~stat.S_ISGID
    return mode & ~caller.umask


def without_set_ids(attr: Attr, caller: Caller) -> int:
    """The permission bits without those that a change of owner or content takes away.

    S_ISGID without the group's execute bit stays if the caller is in the file's group.
    """
    drop = stat.S_ISUID
    if attr.mode & stat.S_IXGRP or not (caller.uid == 0 or in_group(caller, attr.gid)):
        drop |= stat.S_ISGID
    return attr.mode & 0o7777 & ~drop


def check_owner(attr: Attr, caller: Caller, uid: int, gid: int) -> int | None:
    """chown(2), -1 keeps: the new permission bits if they change, else None.

    **Errors** EPERM: only the owner may give a file to a group of hers, only root to somebody.
    """
    mode = None
    if not stat.S_ISDIR(attr.mode):
        kept = without_set_ids(attr, caller)
        mode = kept if kept != attr.mode & 0o7777 else None
    if caller.uid != 0:
        if uid != -1 and not caller.uid == attr.uid == uid:
            raise fail(errno.EPERM)
        mine = caller.uid == attr.uid
        if gid != -1 and not (mine and (gid == attr.gid or in_group(caller, gid))):
            raise fail(errno.EPERM)
        if mode is not None and not mine:
            raise fail(errno.EPERM)
    return mode


class Times(NamedTuple):
    """What utimensat(2) asks for: nanoseconds or None, and which permission it takes."""

    atime_ns: int | None
    mtime_ns: int | None
    touch: bool
    """Both are set to now: who may write the file may do it."""


def times_now() -> Times:
    """Both times are to be now."""
    now = time.time_ns()
    return Times(now, now, True)


def times_of(atime: tuple[int, int], mtime: tuple[int, int]) -> Times | None:
    """(seconds, nanoseconds or UTIME_*) of each; None: nothing is to be done. **Errors** EINVAL."""
    kinds = (atime[1], mtime[1])
    if kinds == (UTIME_OMIT, UTIME_OMIT):
        return None
    if any(not 0 <= n < SECOND and n not in (UTIME_NOW, UTIME_OMIT) for n in kinds):
        raise fail(errno.EINVAL)
    if kinds == (UTIME_NOW, UTIME_NOW):
        return times_now()
    return Times(_stamp(*atime), _stamp(*mtime), False)


def _stamp(seconds: int, nanoseconds: int) -> int | None:
    if nanoseconds == UTIME_OMIT:
        return None
    return time.time_ns() if nanoseconds == UTIME_NOW else seconds * SECOND + nanoseconds
