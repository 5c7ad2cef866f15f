"""How capset, prctl and execve change capabilities.

**Source**: security/commoncap.c (cap_capset, cap_task_prctl, cap_bprm_creds_from_file),
kernel/capability.c and fs/exec.c (bprm_fill_uid, begin_new_exec) of Linux 6.18; capabilities(7).
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from typing import NamedTuple

from umvm.interfaces.identity import (
    CAP_SETPCAP,
    CAP_SETUID,
    KEEP_CAPS,
    KEEP_CAPS_LOCKED,
    NO_AMBIENT_RAISE,
    NOROOT,
    Credentials,
    all_capabilities,
)
from umvm.vfs.credentials import committed, suid_dumpable
from umvm.vfs.permission import fail

AMBIENT_IS_SET, AMBIENT_RAISE, AMBIENT_LOWER, AMBIENT_CLEAR_ALL = 1, 2, 3, 4
_UNPRIVILEGED = 0x100 | 0x400
"""SECBIT_EXEC_RESTRICT_FILE and SECBIT_EXEC_DENY_INTERACTIVE, since Linux 6.14."""
_BASE = 0x55


def _securebits() -> tuple[int, int]:
    """(settable bits, those that need no privilege), without their locks."""
    release = os.uname().release.split(".")
    new = (int(release[0]), int(release[1].split("-")[0])) >= (6, 14)
    return (_BASE | _UNPRIVILEGED, _UNPRIVILEGED) if new else (_BASE, 0)


def valid(capability: int) -> bool:
    """Does the kernel have a capability of this number?"""
    return capability < all_capabilities().bit_length()


def with_capabilities(
    old: Credentials, effective: int, permitted: int, inheritable: int
) -> Credentials:
    """capset(2). **Errors** EPERM: more than there is."""
    capped = 0 if old.may(CAP_SETPCAP) else inheritable & ~(old.inheritable | old.permitted)
    if (
        capped
        or inheritable & ~(old.inheritable | old.bounding)
        or permitted & ~old.permitted
        or effective & ~permitted
    ):
        raise fail(errno.EPERM)
    return old._replace(
        permitted=permitted,
        effective=effective,
        inheritable=inheritable,
        ambient=old.ambient & permitted & inheritable,
    )


# --- prctl ---------------------------------------------------------------------------------------


def without_bounding(old: Credentials, capability: int) -> Credentials:
    """PR_CAPBSET_DROP. **Errors** EPERM, EINVAL."""
    if not old.may(CAP_SETPCAP):
        raise fail(errno.EPERM)
    if not valid(capability):
        raise fail(errno.EINVAL)
    return old._replace(bounding=old.bounding & ~(1 << capability))


def with_securebits(old: Credentials, new: int) -> Credentials:
    """PR_SET_SECUREBITS. **Errors** EPERM."""
    settable, free = _securebits()
    locks = settable << 1
    changed = old.securebits ^ new
    if (old.securebits & locks) >> 1 & changed or old.securebits & locks & ~new:
        raise fail(errno.EPERM)
    if new & ~(settable | locks):
        raise fail(errno.EPERM)
    if not old.may(CAP_SETPCAP) and (not changed or changed & ~(free | free << 1)):
        raise fail(errno.EPERM)
    return old._replace(securebits=new)


def with_keep(old: Credentials, value: int) -> Credentials:
    """PR_SET_KEEPCAPS. **Errors** EINVAL; EPERM: it is locked."""
    if value > 1:
        raise fail(errno.EINVAL)
    if old.securebits & KEEP_CAPS_LOCKED:
        raise fail(errno.EPERM)
    bits = old.securebits | KEEP_CAPS if value else old.securebits & ~KEEP_CAPS
    return old._replace(securebits=bits)


def ambient(old: Credentials, what: int, cap: int, more: bool) -> tuple[int, Credentials]:
    """PR_CAP_AMBIENT: (result, credentials). `more`: later arguments aren't 0. EINVAL, EPERM."""
    if what == AMBIENT_CLEAR_ALL:
        if cap or more:
            raise fail(errno.EINVAL)
        return 0, old._replace(ambient=0)
    if more or not valid(cap) or what not in (AMBIENT_IS_SET, AMBIENT_RAISE, AMBIENT_LOWER):
        raise fail(errno.EINVAL)
    bit = 1 << cap
    if what == AMBIENT_IS_SET:
        return int(bool(old.ambient & bit)), old
    if what == AMBIENT_LOWER:
        return 0, old._replace(ambient=old.ambient & ~bit)
    if not old.permitted & old.inheritable & bit or old.securebits & NO_AMBIENT_RAISE:
        raise fail(errno.EPERM)
    return 0, old._replace(ambient=old.ambient | bit)


# --- exec ----------------------------------------------------------------------------------------


class FileCapabilities(NamedTuple):
    """The value of security.capability."""

    permitted: int
    inheritable: int
    effective: bool


def parse_capabilities(value: bytes) -> FileCapabilities | None:
    """Read a security.capability attribute (struct vfs_ns_cap_data); None: it isn't valid here."""
    if len(value) < 4:
        return None
    (magic,) = struct.unpack_from("<I", value)
    pieces = {(0x01000000, 12): 1, (0x02000000, 20): 2, (0x03000000, 24): 2}.get(
        (magic & 0xFF000000, len(value))
    )
    if pieces is None or (len(value) == 24 and value[20:] != bytes(4)):
        return None  # of another form, or of another user namespace's root
    words = struct.unpack_from(f"<{2 * pieces}I", value, 4)
    every = all_capabilities()
    permitted, inheritable = (
        sum(word << 32 * n for n, word in enumerate(words[which::2])) & every for which in (0, 1)
    )
    return FileCapabilities(permitted, inheritable, bool(magic & 1))


class Program(NamedTuple):
    """What about a file matters to those who execute it. Without set-id bits on a nosuid mount."""

    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    capabilities: FileCapabilities | None = None


PLAIN = Program()
"""A program without set-id bits and capabilities."""


def after_exec(
    old: Credentials, program: Program = PLAIN, traced: bool = False
) -> tuple[Credentials, bool]:
    """What execve(2) makes of credentials, and is it AT_SECURE?

    `traced`: by somebody who lacks CAP_SYS_PTRACE. **Errors** EPERM: the file's capabilities can't
    all be had, and it relies on them.
    """
    euid, egid, mode = old.euid, old.egid, program.mode
    if not old.no_new_privs and mode & 0o111:
        if mode & stat.S_ISUID:
            euid = program.uid
        if mode & (stat.S_ISGID | stat.S_IXGRP) == stat.S_ISGID | stat.S_IXGRP:
            egid = program.gid
    caps = program.capabilities
    permitted, effective = 0, False
    if caps is not None:
        permitted = old.bounding & caps.permitted | old.inheritable & caps.inheritable
        effective = caps.effective
        if effective and caps.permitted & ~permitted:
            raise fail(errno.EPERM)
    if not old.securebits & NOROOT and not (caps is not None and euid == 0 != old.ruid):
        if 0 in (euid, old.ruid):
            permitted = old.bounding | old.inheritable
        effective |= euid == 0
    changed = euid != old.euid or (egid != old.fsgid and egid not in old.groups)
    if (changed or permitted & ~old.permitted) and (old.no_new_privs or traced):
        if old.no_new_privs or not old.may(CAP_SETUID):
            euid, egid = old.ruid, old.rgid
        permitted &= old.permitted
    ambient = 0 if changed or caps is not None else old.ambient
    grown = permitted & ~ambient
    permitted |= ambient
    new = old._replace(
        euid=euid, suid=euid, fsuid=euid, egid=egid, sgid=egid, fsgid=egid,
        permitted=permitted,
        effective=permitted if effective else ambient,
        ambient=ambient,
        securebits=old.securebits & ~KEEP_CAPS,
        dumpable=1 if (old.euid, old.egid) == (old.ruid, old.rgid) else suid_dumpable(),
    )  # fmt: skip
    secure = (
        changed or euid != old.ruid or egid != old.rgid
        or (old.ruid != 0 and (effective or bool(grown)))
    )  # fmt: skip
    return committed(old, new), bool(secure)
