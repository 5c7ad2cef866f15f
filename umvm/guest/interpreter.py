"""The ELF interpreter that a copy of a program names (elf(5), fs/binfmt_elf.c)."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable

PT_INTERP = 3
_HEADER = struct.Struct("<4sBB10xHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")


def replace_interpreter(fd: int, place: Callable[[bytes], bytes | None]) -> None:
    """Make a program use another interpreter: `place(path)` gives its path, None keeps it.

    The kernel reads the name at the program header's file offset only, so that a new one may stand
    at the end of the file. What isn't a 64-bit ELF program stays as it is.
    """
    found = _find(fd)
    if found is None:
        return
    at, (what, flags, start, vaddr, paddr, length, memory, align) = found
    new = place(os.pread(fd, length, start).split(b"\0")[0])
    if new is not None:
        end = os.fstat(fd).st_size
        os.pwrite(fd, new + b"\0", end)
        changed = (what, flags, end, vaddr, paddr, len(new) + 1, memory, align)
        os.pwrite(fd, _PHDR.pack(*changed), at)


def interpreter_of(path: bytes) -> bytes | None:
    """The ELF interpreter that a program names; None: it has none. OSError: it can't be read."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = _find(fd)
        return None if found is None else os.pread(fd, found[1][5], found[1][2]).split(b"\0")[0]
    finally:
        os.close(fd)


def _find(fd: int) -> tuple[int, tuple[int, ...]] | None:
    """Where the program header of the interpreter's name is, and its fields."""
    head = os.pread(fd, _HEADER.size, 0)
    if len(head) < _HEADER.size:
        return None
    magic, kind, order, _, _, _, _, offset, _, _, _, size, count, *_ = _HEADER.unpack(head)
    if magic != b"\x7fELF" or kind != 2 or order != 1 or size != _PHDR.size or count > 128:
        return None
    for number in range(count):
        at = offset + number * size
        raw = os.pread(fd, size, at)
        if len(raw) < size:
            return None
        fields = _PHDR.unpack(raw)
        if fields[0] == PT_INTERP and 2 <= fields[5] <= 4096:
            return at, fields
    return None
