"""What the flags of open(2) and openat2(2) mean, and which combinations are refused.

**Source**: build_open_flags(), build_open_how() of fs/open.c of Linux 6.18.
"""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from umvm.guest.mounts import BENEATH, IN_ROOT, NO_MAGICLINKS, NO_SYMLINKS, NO_XDEV
from umvm.vfs.permission import READ, WRITE, fail

O_LARGEFILE = 0o100000  # os.O_LARGEFILE is 0 on x86-64
O_FASYNC = 0o20000
TMPFILE = 0o20000000  # __O_TMPFILE, without the O_DIRECTORY that O_TMPFILE includes
PATH_FLAGS = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_PATH | os.O_CLOEXEC
VALID = (
    os.O_ACCMODE | os.O_CREAT | os.O_EXCL | os.O_NOCTTY | os.O_TRUNC | os.O_APPEND | os.O_NONBLOCK
    | os.O_SYNC | os.O_DSYNC | O_FASYNC | os.O_DIRECT | O_LARGEFILE | os.O_DIRECTORY
    | os.O_NOFOLLOW | os.O_NOATIME | os.O_CLOEXEC | os.O_PATH | TMPFILE
)  # fmt: skip
_RESOLVE = {0x01: NO_XDEV, 0x02: NO_MAGICLINKS, 0x04: NO_SYMLINKS, 0x08: BENEATH, 0x10: IN_ROOT}
_CACHED = 0x20
_ACCESS = (READ, WRITE, READ | WRITE, READ | WRITE)


class How(NamedTuple):
    """A valid wish to open a file."""

    flags: int
    mode: int
    access: int
    """READ and WRITE as needed; none for O_PATH."""
    walk: int
    """Flags of the path walk that RESOLVE_* stand for."""

    @property
    def create(self) -> bool:
        """O_CREAT."""
        return bool(self.flags & os.O_CREAT)

    @property
    def exclusive(self) -> bool:
        """O_CREAT with O_EXCL."""
        return self.flags & (os.O_CREAT | os.O_EXCL) == os.O_CREAT | os.O_EXCL

    @property
    def path_only(self) -> bool:
        """O_PATH."""
        return bool(self.flags & os.O_PATH)


def how_of(flags: int, mode: int) -> How:
    """The wish of open(2), which forgives unknown flags and bits. **Errors** EINVAL."""
    flags &= VALID
    if flags & os.O_PATH:
        flags &= PATH_FLAGS
    return how_of2(flags, mode & 0o7777 if flags & (os.O_CREAT | TMPFILE) else 0, 0)


def how_of2(flags: int, mode: int, resolve: int) -> How:
    """The wish of openat2(2). **Errors** EINVAL; EAGAIN: RESOLVE_CACHED where it can't be."""
    if flags & ~VALID or resolve & ~0x3F or resolve & 0x18 == 0x18:
        raise fail(errno.EINVAL)
    creates = flags & (os.O_CREAT | TMPFILE)
    if mode & ~0o7777 or (mode and not creates):
        raise fail(errno.EINVAL)
    if flags & os.O_DIRECTORY and flags & os.O_CREAT:
        raise fail(errno.EINVAL)
    access = _ACCESS[flags & os.O_ACCMODE]
    if flags & TMPFILE and (not flags & os.O_DIRECTORY or not access & WRITE):
        raise fail(errno.EINVAL)
    if flags & os.O_PATH:
        if flags & ~PATH_FLAGS:
            raise fail(errno.EINVAL)
        access = 0
    if flags & os.O_TRUNC:
        access |= WRITE
    if resolve & _CACHED and (creates or flags & os.O_TRUNC):
        raise fail(errno.EAGAIN)
    return How(flags, mode, access, sum(bit for flag, bit in _RESOLVE.items() if resolve & flag))
