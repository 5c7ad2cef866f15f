"""File system in memory: `umvm mount -t memory -o size=1g none /mnt`.

A complete POSIX file system that behaves as tmpfs does; it is gone with its mount. Options:

- `size=` bytes, with k, m, g or t, or a percentage of the memory; 0 is no limit; 50% by default
- `nr_inodes=` files of all kinds, the root included, with k, m, g or t; 0 is no limit; by default
  half of the memory's pages
- `max_links=` names of one file, or directories in one directory and 2; 0 is no limit, the default
- `mode=` octal permissions of the root directory, 1777 by default
- `uid=`, `gid=` owner of the root directory, by default who mounts it

**Source**: tmpfs(5).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from umvm.interfaces.filesystem import caller

from .content import PAGE, pages
from .filesystem import MemoryFileSystem
from .nodes import Limits

__all__ = ["FILESYSTEMS", "Limits", "MemoryFileSystem", "make"]

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_ID_MAX = 0xFFFFFFFE  # -1 says "no change" to chown(2)


def _number(text: str) -> int:
    digits = text.rstrip("kmgtKMGT")
    return _whole(digits) * _UNITS[text[len(digits) :].lower()]


def _size(text: str) -> int:
    """Pages; rounded up, as tmpfs does."""
    if text.endswith("%"):
        memory_pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // PAGE
        return memory_pages * _whole(text[:-1]) // 100
    return pages(_number(text))


def _whole(text: str, base: int = 10, most: int | None = None) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(text)
    value = int(text, base)
    if most is not None and value > most:
        raise ValueError(text)
    return value


_OPTIONS: dict[str, Callable[[str], int]] = {
    "size": _size,
    "nr_inodes": _number,
    "max_links": _number,
    "mode": lambda text: _whole(text, 8, 0o7777),
    "uid": lambda text: _whole(text, 10, _ID_MAX),
    "gid": lambda text: _whole(text, 10, _ID_MAX),
}


def make(source: str, options: dict[str, str]) -> MemoryFileSystem:
    """A new, empty file system; `source` is only shown.

    **Errors** EINVAL: an option is unknown or has a bad value; the message says which.
    """
    values: dict[str, int] = {}
    for name, text in options.items():
        parse = _OPTIONS.get(name)
        if parse is None:
            known = ", ".join(_OPTIONS)
            raise OSError(errno.EINVAL, f"memory: unknown option {name!r} (there are {known})")
        try:
            values[name] = parse(text)
        except (ValueError, KeyError):
            raise OSError(errno.EINVAL, f"memory: bad value in {name}={text}") from None
    half = _size("50%")
    who = caller()
    return MemoryFileSystem(
        mode=values.get("mode", 0o1777),
        uid=values.get("uid", who.uid),
        gid=values.get("gid", who.gid),
        limits=Limits(
            pages=values.get("size", half),
            inodes=values.get("nr_inodes", half),
            links=values.get("max_links", 0),
        ),
    )


FILESYSTEMS = {"memory": make}
