"""How set*id calls change credentials.

**Source**: kernel/sys.c (setreuid, setregid, setuid, setgid, setresuid, setresgid, setfsuid,
setfsgid), kernel/groups.c, security/commoncap.c (cap_task_fix_setuid) and kernel/cred.c
(commit_creds) of Linux 6.18; credentials(7), capabilities(7). Ids are None where the call says -1,
"no change".
"""

from __future__ import annotations

import errno
from functools import cache
from typing import NamedTuple

from umvm.interfaces.identity import CAP_SETGID, CAP_SETUID, NO_SETUID_FIXUP, Credentials
from umvm.vfs.permission import fail

FS_CAPABILITIES = sum(1 << n for n in (0, 1, 2, 3, 4, 9, 27, 32))
"""Those that only mean something to file systems: CAP_FS_MASK of security/commoncap.c."""


class Ids(NamedTuple):
    """The ids of one kind."""

    real: int
    effective: int
    saved: int


def set_id(ids: Ids, new: int, privileged: bool) -> Ids:
    """setuid(2), setgid(2). **Errors** EPERM."""
    real, _, saved = ids
    if privileged:
        return Ids(new, new, new)
    if new not in (real, saved):
        raise fail(errno.EPERM)
    return Ids(real, new, saved)


def set_re(ids: Ids, real: int | None, effective: int | None, privileged: bool) -> Ids:
    """setreuid(2), setregid(2). **Errors** EPERM."""
    old_real, old_effective, saved = ids
    if not privileged:
        if real not in (None, old_real, old_effective):
            raise fail(errno.EPERM)
        if effective not in (None, *ids):
            raise fail(errno.EPERM)
    new_real = old_real if real is None else real
    new_effective = old_effective if effective is None else effective
    if real is not None or effective not in (None, old_real):
        saved = new_effective
    return Ids(new_real, new_effective, saved)


def set_res(ids: Ids, wanted: tuple[int | None, int | None, int | None], privileged: bool) -> Ids:
    """setresuid(2), setresgid(2). **Errors** EPERM."""
    if not privileged and any(new not in (None, *ids) for new in wanted):
        raise fail(errno.EPERM)
    real, effective, saved = (
        old if new is None else new for old, new in zip(ids, wanted, strict=True)
    )
    return Ids(real, effective, saved)


# --- on credentials ------------------------------------------------------------------------------


def uids(old: Credentials) -> tuple[Ids, bool]:
    """The user ids, and may they be set to anything?"""
    return Ids(old.ruid, old.euid, old.suid), old.may(CAP_SETUID)


def gids(old: Credentials) -> tuple[Ids, bool]:
    """The group ids, and may they be set to anything?"""
    return Ids(old.rgid, old.egid, old.sgid), old.may(CAP_SETGID)


def with_uids(old: Credentials, ids: Ids) -> Credentials:
    """New user ids; the file system's follows the effective one, capabilities come and go."""
    real, effective, saved = ids
    changed = old._replace(ruid=real, euid=effective, suid=saved, fsuid=effective)
    if old.securebits & NO_SETUID_FIXUP:
        return changed
    permitted, active, ambient = old.permitted, old.effective, old.ambient
    if 0 in (old.ruid, old.euid, old.suid) and 0 not in ids:
        ambient = 0
        if not old.keep:
            permitted = active = 0
    if old.euid == 0 and effective != 0:
        active = 0
    if old.euid != 0 and effective == 0:
        active = permitted
    return changed._replace(permitted=permitted, effective=active, ambient=ambient)


def with_gids(old: Credentials, ids: Ids) -> Credentials:
    """New group ids; the file system's follows the effective one."""
    real, effective, saved = ids
    return old._replace(rgid=real, egid=effective, sgid=saved, fsgid=effective)


def with_fsuid(old: Credentials, new: int) -> Credentials:
    """setfsuid(2): the same credentials if it isn't allowed, which is no error."""
    if new not in (old.ruid, old.euid, old.suid, old.fsuid) and not old.may(CAP_SETUID):
        return old
    active = old.effective
    fixed = not old.securebits & NO_SETUID_FIXUP
    if fixed and old.fsuid == 0 and new != 0:
        active &= ~FS_CAPABILITIES
    if fixed and old.fsuid != 0 and new == 0:
        active |= old.permitted & FS_CAPABILITIES
    return old._replace(fsuid=new, effective=active)


def with_fsgid(old: Credentials, new: int) -> Credentials:
    """setfsgid(2): as with_fsuid."""
    if new not in (old.rgid, old.egid, old.sgid, old.fsgid) and not old.may(CAP_SETGID):
        return old
    return old._replace(fsgid=new)


def with_groups(old: Credentials, groups: tuple[int, ...]) -> Credentials:
    """setgroups(2) by somebody who may."""
    return old._replace(groups=tuple(sorted(groups)))


def committed(old: Credentials, new: Credentials) -> Credentials:
    """`new` as it takes effect: whoever becomes another user or gains anything isn't dumpable."""
    same = (old.euid, old.egid, old.fsuid, old.fsgid) == (new.euid, new.egid, new.fsuid, new.fsgid)
    if same and not new.permitted & ~old.permitted:
        return new
    return new._replace(dumpable=suid_dumpable())


@cache
def suid_dumpable() -> int:
    """What is dumpable of a process that changed its ids: /proc/sys/fs/suid_dumpable."""
    try:
        with open("/proc/sys/fs/suid_dumpable", "rb") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0
