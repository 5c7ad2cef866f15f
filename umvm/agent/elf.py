"""The little of an ELF file that patching needs: executable segments, code, function starts."""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

PAGE = 4096
PT_LOAD, PT_NOTE, PT_GNU_EH_FRAME = 1, 4, 0x6474E550
PF_X, PF_W = 1, 2
SHF_EXECINSTR = 4
NT_GNU_BUILD_ID = 3


class Segment(NamedTuple):
    """An executable segment, in whole pages."""

    offset: int
    vaddr: int
    length: int
    data: bytes

    def contains(self, address: int) -> bool:
        """Is this virtual address of the file in the segment?"""
        return self.vaddr <= address < self.vaddr + self.length


class Elf:
    """A parsed file. ValueError: it is no 64-bit little-endian ELF file, or it is damaged."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        if data[:6] != b"\x7fELF\x02\x01":
            raise ValueError("not a 64-bit ELF file")
        try:
            (self._phoff, self._shoff) = struct.unpack_from("<QQ", data, 32)
            self._phentsize, self._phnum, self._shentsize, self._shnum = struct.unpack_from(
                "<HHHH", data, 54
            )
            self._headers = [
                struct.unpack_from("<IIQQQQQQ", data, self._phoff + i * self._phentsize)
                for i in range(self._phnum)
            ]
        except struct.error as error:
            raise ValueError(f"damaged ELF header: {error}") from error

    def executable(self) -> list[Segment]:
        """The segments that are mapped executable and not writable."""
        found = []
        for kind, flags, offset, vaddr, _, size, _, _ in self._headers:
            if kind != PT_LOAD or not flags & PF_X or flags & PF_W or not size:
                continue
            start, end = offset & ~(PAGE - 1), -(-(offset + size) // PAGE) * PAGE
            data = self._data[start:end]
            found.append(
                Segment(start, vaddr & ~(PAGE - 1), end - start, data.ljust(end - start, b"\0"))
            )
        return found

    def code(self, segment: Segment) -> list[tuple[int, int]]:
        """(first, end) addresses of the segment's sections of code; without headers all of it."""
        found = []
        for i in range(self._shnum):
            at = self._shoff + i * self._shentsize
            if at + 64 > len(self._data):
                break
            _, _, flags, address, _, size = struct.unpack_from("<IIQQQQ", self._data, at)
            if flags & SHF_EXECINSTR and size and segment.contains(address):
                found.append((address, min(address + size, segment.vaddr + segment.length)))
        return sorted(found) or [(segment.vaddr, segment.vaddr + segment.length)]

    def function_starts(self) -> Starts:
        """Where functions begin, from the table in .eh_frame_hdr (LSB core, 10.6.2)."""
        for kind, _, offset, vaddr, _, size, _, _ in self._headers:
            if kind == PT_GNU_EH_FRAME and size >= 12:
                version, _, count_kind, table_kind = self._data[offset : offset + 4]
                if (version, count_kind, table_kind) != (1, 0x03, 0x3B):
                    break
                (count,) = struct.unpack_from("<I", self._data, offset + 8)
                count = min(count, (size - 12) // 8)
                words = struct.unpack_from(f"<{2 * count}i", self._data, offset + 12)
                return Starts([vaddr + word for word in words[::2]])
        return Starts([])

    def build_id(self) -> tuple[int, bytes]:
        """The offset of the build id in the file, and the id; (0, b""): there is none."""
        for kind, _, offset, _, _, size, _, _ in self._headers:
            at = offset
            while kind == PT_NOTE and at + 12 <= offset + size and at + 12 <= len(self._data):
                name, length, what = struct.unpack_from("<III", self._data, at)
                text = at + 12 + -(-name // 4) * 4
                if what == NT_GNU_BUILD_ID and self._data[at + 12 : at + 15] == b"GNU":
                    return text, self._data[text : text + length]
                at = text + -(-length // 4) * 4
        return 0, b""


class Starts:
    """A sorted list of function starts."""

    def __init__(self, addresses: Sequence[int]) -> None:
        self._addresses = sorted(addresses)

    def __bool__(self) -> bool:
        return bool(self._addresses)

    def before(self, address: int) -> int | None:
        """The last function start at or before an address."""
        at = bisect_right(self._addresses, address)
        return self._addresses[at - 1] if at else None
