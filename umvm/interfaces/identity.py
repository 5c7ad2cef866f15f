"""The interface of an identity: who the guests of a VM are, and whose files they see.

A module offers one by `routes.Identity(object)`. One is active at a time: the newest; unloading its
module uncovers the one before, in the end the kernel's own.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

ID_MAX = 0xFFFFFFFE
"""-1 is no id: it says "no change" to chown(2) and setresuid(2)."""
CAP_CHOWN, CAP_KILL, CAP_SETGID, CAP_SETUID, CAP_SETPCAP = 0, 5, 6, 7, 8
CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_SYS_NICE, CAP_SYS_RESOURCE, CAP_SYS_TIME = 19, 21, 23, 24, 25
"""Numbers of capabilities (include/uapi/linux/capability.h)."""
NOROOT, NO_SETUID_FIXUP, KEEP_CAPS, KEEP_CAPS_LOCKED, NO_AMBIENT_RAISE = 1, 4, 16, 32, 64
"""Bits of the securebits (include/uapi/linux/securebits.h)."""


class Credentials(NamedTuple):
    """What a process may change about itself: credentials(7), capabilities(7).

    `groups` is sorted, as the kernel keeps it. Capability sets have bit n for capability n.
    """

    ruid: int
    euid: int
    suid: int
    fsuid: int
    rgid: int
    egid: int
    sgid: int
    fsgid: int
    groups: tuple[int, ...]
    permitted: int = 0
    effective: int = 0
    inheritable: int = 0
    bounding: int = 0
    ambient: int = 0
    securebits: int = 0
    no_new_privs: bool = False
    dumpable: int = 1
    """PR_GET_DUMPABLE; unless it is 1 /proc/PID belongs to root, and others can't look in."""

    @property
    def keep(self) -> bool:
        """PR_SET_KEEPCAPS: the permitted set outlives the loss of user id 0."""
        return bool(self.securebits & KEEP_CAPS)

    def may(self, capability: int) -> bool:
        """Is a capability in the effective set?"""
        return bool(self.effective >> capability & 1)


@cache
def all_capabilities() -> int:
    """The capabilities that this kernel has."""
    try:
        with open("/proc/sys/kernel/cap_last_cap", "rb") as file:
            last = int(file.read())
    except (OSError, ValueError):
        last = 40
    return (2 << last) - 1


def login(
    uid: int, gid: int, groups: tuple[int, ...], capabilities: int | None = None
) -> Credentials:
    """The credentials of a user's first process.

    User 0 has all capabilities, others none. With `capabilities` the process has those, bounding
    set included, and keeps them when it executes a program.
    """
    every = all_capabilities()
    bounding = every if capabilities is None else capabilities & every
    own = bounding if uid == 0 or capabilities is not None else 0
    kept = own if uid != 0 else 0
    return Credentials(
        uid, uid, uid, uid, gid, gid, gid, gid, tuple(sorted(groups)), own, own, kept, bounding,
        kept,
    )  # fmt: skip


class Unknown(NamedTuple):
    """How files are shown whose owner no guest changed."""

    how: int
    """0: those of `own` (uid, gid) as `shown`, 1: as they are, 2: all of them as `shown`."""
    own: tuple[int, int]
    shown: tuple[int, int]


class Identity:
    """Who the guests are. Subclass it and override what differs; methods must not block."""

    lenient = False
    """What only root may do on the host, and means nothing in a VM, seems to succeed."""

    def first(self) -> Credentials:
        """The credentials of a process that never changed them and inherited no changed ones."""
        raise NotImplementedError

    def owner(self, uid: int, gid: int) -> tuple[int, int]:
        """The owner to show for a file with this one: on the host, unless guests changed it, or in
        a served file system."""
        return uid, gid

    def unknown(self) -> Unknown | None:
        """`owner` as numbers, so that the engine can do it; None: it has to be asked."""
        return None
