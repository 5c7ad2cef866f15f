"""Who may use a file, and who may change names in a directory.

**Source**: path_resolution(7), credentials(7), fs/namei.c of Linux 6.18 (generic_permission,
may_delete, may_linkat, may_create_in_sticky, may_follow_link). A caller with file system user id 0
has CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_CHOWN, CAP_FSETID and CAP_MKNOD; others have none.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from umvm.guest.mounts import Mount
from umvm.interfaces.filesystem import Attr, Caller

READ, WRITE, EXEC = 4, 2, 1
CHANGE_NAMES = WRITE | EXEC
_IFMT, _IFREG, _IFDIR, _IFLNK, _IFIFO = (
    0o170000, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO,
)  # fmt: skip
_READ_ONLY_MATTERS = frozenset((_IFREG, _IFDIR, _IFLNK))


def fail(number: int) -> OSError:
    """An OSError with the given errno, to be raised."""
    return OSError(number, os.strerror(number))


def in_group(caller: Caller, gid: int) -> bool:
    """Is it the caller's group, or one of the supplementary groups?"""
    return gid == caller.gid or gid in caller.groups


def owns(attr: Attr, caller: Caller) -> bool:
    """inode_owner_or_capable()."""
    return caller.uid == 0 or caller.uid == attr.uid


def allowed(attr: Attr, caller: Caller, mask: int) -> bool:
    """The check of the mode bits; mask is 4 read, 2 write, 1 search or execute."""
    mode = attr.mode
    if caller.uid == 0:
        return not mask & EXEC or mode & _IFMT == _IFDIR or mode & 0o111 != 0
    if attr.uid == caller.uid:
        mode >>= 6
    elif attr.gid == caller.gid or attr.gid in caller.groups:
        mode >>= 3
    return mode & mask == mask


def searcher(caller: Caller) -> Callable[[Attr], bool] | None:
    """What tells whether the caller may search a directory; None: all of them."""
    uid, gid, groups = caller.uid, caller.gid, caller.groups
    if uid == 0:
        return None

    def may_search(attr: Attr) -> bool:
        if attr.uid == uid:
            return attr.mode & 0o100 != 0
        if attr.gid == gid or attr.gid in groups:
            return attr.mode & 0o010 != 0
        return attr.mode & 0o001 != 0

    return may_search


def permit(mount: Mount, attr: Attr, caller: Caller, mask: int) -> None:
    """inode_permission(). **Errors** EROFS: a read-only mount, before EACCES."""
    if mask & WRITE and mount.read_only and attr.mode & _IFMT in _READ_ONLY_MATTERS:
        raise fail(errno.EROFS)
    if mount.permissions() and not allowed(attr, caller, mask):
        raise fail(errno.EACCES)


def check_create(mount: Mount, directory: Attr, caller: Caller) -> None:
    """may_create(): a new name in a directory."""
    permit(mount, directory, caller, CHANGE_NAMES)


def check_delete(mount: Mount, directory: Attr, victim: Attr, caller: Caller, isdir: bool) -> None:
    """may_delete(): `isdir` tells what the caller takes the victim for.

    **Errors** EROFS, EACCES: the directory; EPERM: it is sticky; ENOTDIR, EISDIR: the victim.
    """
    permit(mount, directory, caller, CHANGE_NAMES)
    sticky = directory.mode & stat.S_ISVTX and mount.permissions()
    if sticky and caller.uid not in (0, victim.uid, directory.uid):
        raise fail(errno.EPERM)
    if isdir != (victim.mode & _IFMT == _IFDIR):
        raise fail(errno.ENOTDIR if isdir else errno.EISDIR)


class Protections(NamedTuple):
    """The settings of /proc/sys/fs/protected_* (proc_sys_fs(5)); 0: off."""

    hardlinks: int
    symlinks: int
    regular: int
    fifos: int


@cache
def protections() -> Protections:
    """The host's settings, as they are when they are first asked for."""
    return Protections(*(_setting(f"protected_{name}") for name in Protections._fields))


def _setting(name: str) -> int:
    try:
        with open(f"/proc/sys/fs/{name}", "rb") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0


def check_link_source(mount: Mount, source: Attr, caller: Caller) -> None:
    """may_linkat(): with protected_hardlinks only an owner may link just any file. EPERM."""
    if not protections().hardlinks or not mount.permissions() or owns(source, caller):
        return
    mode = source.mode
    safe = (
        mode & _IFMT == _IFREG
        and not mode & stat.S_ISUID
        and mode & (stat.S_ISGID | stat.S_IXGRP) != stat.S_ISGID | stat.S_IXGRP
        and allowed(source, caller, READ | WRITE)
    )
    if not safe:
        raise fail(errno.EPERM)


def check_sticky_open(mount: Mount, directory: Attr, attr: Attr, caller: Caller) -> None:
    """may_create_in_sticky(): O_CREAT on a file that somebody put in a shared directory. EACCES."""
    if not directory.mode & stat.S_ISVTX or not mount.permissions():
        return
    kind, protect = attr.mode & _IFMT, protections()
    if (kind == _IFREG and not protect.regular) or (kind == _IFIFO and not protect.fifos):
        return
    if attr.uid in (directory.uid, caller.uid):
        return
    strict = (kind == _IFREG and protect.regular >= 2) or (kind == _IFIFO and protect.fifos >= 2)
    if directory.mode & 0o002 or (directory.mode & 0o020 and strict):
        raise fail(errno.EACCES)


def check_follow(mount: Mount, directory: Attr, link: Attr, caller: Caller) -> None:
    """may_follow_link(): a link as last component, in a sticky directory open to all. EACCES."""
    if directory.mode & (stat.S_ISVTX | 0o002) != stat.S_ISVTX | 0o002:
        return
    if mount.permissions() and link.uid not in (caller.uid, directory.uid):
        raise fail(errno.EACCES)
