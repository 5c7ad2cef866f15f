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
    head = os.pread(fd, _HEADER.size, 0)
    if len(head) < _HEADER.size:
        return
    magic, kind, order, _, _, _, _, offset, _, _, _, size, count, *_ = _HEADER.unpack(head)
    if magic != b"\x7fELF" or kind != 2 or order != 1 or size != _PHDR.size or count > 128:
        return
    for number in range(count):
        at = offset + number * size
        raw = os.pread(fd, size, at)
        if len(raw) < size:
            return
        what, flags, start, vaddr, paddr, length, memory, align = _PHDR.unpack(raw)
        if what != PT_INTERP or not 2 <= length <= 4096:
            continue
        new = place(os.pread(fd, length, start).split(b"\0")[0])
        if new is not None:
            end = os.fstat(fd).st_size
            os.pwrite(fd, new + b"\0", end)
            changed = (what, flags, end, vaddr, paddr, len(new) + 1, memory, align)
            os.pwrite(fd, _PHDR.pack(*changed), at)
        return
