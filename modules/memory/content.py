"""The content of a regular file: chunks of memory, and which pages of it exist.

A chunk is a `bytearray` of up to CHUNK bytes; what lies behind its end reads as zero, so a short
file takes a short chunk and a hole takes none. Which pages are allocated is kept apart, by page of
4 KiB as on tmpfs, so that blocks, SEEK_DATA and SEEK_HOLE agree with what Linux answers.
"""

from __future__ import annotations

import errno
import os
from bisect import bisect_left, bisect_right

PAGE = 4096
CHUNK = 64 * 1024
_PAGES = CHUNK // PAGE
MAX_SIZE = (1 << 63) - 1
"""MAX_LFS_FILESIZE of a 64-bit kernel, in bytes."""
_END = MAX_SIZE // PAGE + 1


def pages(size: int) -> int:
    """The number of pages that hold `size` bytes."""
    return -(-size // PAGE)


class Runs(list[int]):
    """A set of integers as sorted, disjoint runs: [start, end, start, end, …], ends excluded."""

    __slots__ = ()

    def count(self, start: int, end: int) -> int:  # type: ignore[override]
        """How many members lie in [start, end)."""
        return self._within(start, end, bisect_left(self, start), bisect_right(self, end))

    def _within(self, start: int, end: int, i: int, j: int) -> int:
        """Members in [start, end), given the indices of the boundaries that lie in it.

        An odd index says that the position is inside a run (or touches its end).
        """
        if i == j:
            return end - start if i & 1 else 0
        total = sum(self[i + (i & 1) + 1 : j : 2]) - sum(self[i + (i & 1) : j : 2])
        if i & 1:
            total += self[i] - start
        return total + end if j & 1 else total

    def add(self, start: int, end: int) -> int:
        """Add [start, end); how many were new."""
        if self and self[-2] <= start <= self[-1]:  # appending, or inside the last run
            new = end - self[-1]
            if new <= 0:
                return 0
            self[-1] = end
            return new
        i, j = bisect_left(self, start), bisect_right(self, end)
        known = self._within(start, end, i, j)
        self[i:j] = ([] if i & 1 else [start]) + ([] if j & 1 else [end])
        return end - start - known

    def discard(self, start: int, end: int) -> int:
        """Take [start, end) out; how many there were."""
        i, j = bisect_left(self, start), bisect_right(self, end)
        known = self._within(start, end, i, j)
        self[i:j] = ([start] if i & 1 else []) + ([end] if j & 1 else [])
        return known

    def edge(self, number: int) -> tuple[bool, int]:
        """Whether `number` is a member, and where that changes (-1: never again)."""
        i = bisect_right(self, number)
        return bool(i & 1), self[i] if i < len(self) else -1


class Content:
    """Bytes with holes. Sizes and offsets in bytes; the file's size is kept by the inode."""

    __slots__ = ("_chunks", "_data", "_spare", "allocated")

    def __init__(self) -> None:
        self._chunks: dict[int, bytearray] = {}
        self._data = Runs()
        self._spare: Runs | None = None  # allocated by fallocate, never written
        self.allocated = 0
        """Pages that count against the file system's size."""

    def missing(self, offset: int, end: int) -> int:
        """Pages of [offset, end) that are not allocated yet."""
        first, last = offset // PAGE, pages(end)
        found = self._data.count(first, last)
        if self._spare:
            found += self._spare.count(first, last)
        return last - first - found

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes; holes read as zero."""
        index, start = divmod(offset, CHUNK)
        if start + size <= CHUNK:
            chunk = self._chunks.get(index)
            if chunk is None:
                return bytes(size)
            if start or size < len(chunk):
                piece = bytes(memoryview(chunk)[start : start + size])
            else:
                piece = bytes(chunk)
            return piece if len(piece) == size else piece.ljust(size, b"\0")
        parts: list[bytes | bytearray | memoryview] = []
        while size > 0:
            length = min(CHUNK - start, size)
            chunk = self._chunks.get(index)
            have = 0
            if chunk is not None:
                have = max(0, min(length, len(chunk) - start))
                parts.append(
                    chunk if have == len(chunk) else memoryview(chunk)[start : start + have]
                )
            if have < length:
                parts.append(bytes(length - have))
            index, start, size = index + 1, 0, size - length
        return b"".join(parts)

    def write(self, data: bytes, offset: int) -> None:
        """Store `data`, which is not empty."""
        end = offset + len(data)
        first, last = offset // PAGE, pages(end)
        new = self._data.add(first, last)
        if self._spare:
            new -= self._spare.discard(first, last)
        self.allocated += new
        index, start = divmod(offset, CHUNK)
        if start + len(data) <= CHUNK:
            self._put(index, start, data)
            return
        view = memoryview(data)
        at = 0
        while at < len(data):
            length = min(CHUNK - start, len(data) - at)
            self._put(index, start, view[at : at + length])
            index, start, at = index + 1, 0, at + length

    def _put(self, index: int, start: int, data: bytes | memoryview) -> None:
        chunk = self._chunks.get(index)
        if chunk is None:
            if start:
                chunk = self._chunks[index] = bytearray(start)
                chunk += data
            else:
                self._chunks[index] = bytearray(data)
            return
        have, end = len(chunk), start + len(data)
        if end <= have:
            # slice assignment would make a bytearray of `data` first: a second copy
            memoryview(chunk)[start:end] = data
            return
        if start > have:
            chunk += bytes(start - have)
        elif start < have:
            del chunk[start:]
        chunk += data

    def cut(self, size: int) -> None:
        """Forget everything from `size` on."""
        first = pages(size)
        self.allocated -= self._data.discard(first, _END)
        if self._spare:
            self.allocated -= self._spare.discard(first, _END)
        index, start = divmod(size, CHUNK)
        keep = index + 1 if start else index
        for key in [key for key in self._chunks if key >= keep]:
            del self._chunks[key]
        if start and index in self._chunks:
            del self._chunks[index][start:]

    def punch(self, offset: int, end: int) -> None:
        """Make [offset, end) read as zero and give its whole pages back."""
        self._clear(offset, end)
        first, last = pages(offset), end // PAGE
        if first < last:
            self.allocated -= self._data.discard(first, last)
            if self._spare:
                self.allocated -= self._spare.discard(first, last)
        self._shed(offset, end)

    def zero(self, offset: int, end: int) -> None:
        """Make [offset, end) read as zero and keep its pages allocated."""
        self._clear(offset, end)
        first, last = pages(offset), end // PAGE
        if first < last:
            self.allocated -= self._data.discard(first, last)
        self.reserve(offset, end)
        self._shed(offset, end)

    def reserve(self, offset: int, end: int) -> None:
        """Allocate the pages of [offset, end) that aren't, without writing them."""
        first, last = offset // PAGE, pages(end)
        self.allocated += self.missing(offset, end)
        spare = self._spare if self._spare is not None else Runs()
        self._spare = spare
        spare.add(first, last)
        at = first
        while 0 <= at < last:
            written, edge = self._data.edge(at)
            if written:
                spare.discard(at, min(edge, last))
            at = edge

    def _clear(self, offset: int, end: int) -> None:
        """Zero the bytes; chunks that are wholly inside go."""
        first, last = offset // CHUNK, -(-end // CHUNK)
        keys = [key for key in self._chunks if first <= key < last]
        for key in keys:
            chunk = self._chunks[key]
            start, stop = max(0, offset - key * CHUNK), min(len(chunk), end - key * CHUNK)
            if start == 0 and stop == len(chunk):
                del self._chunks[key]
            elif start < stop:
                chunk[start:stop] = bytes(stop - start)

    def _shed(self, offset: int, end: int) -> None:
        """Drop the chunks at both ends if no page of theirs has data any more."""
        for key in {offset // CHUNK, (end - 1) // CHUNK}:
            if not self._data.count(key * _PAGES, (key + 1) * _PAGES):
                self._chunks.pop(key, None)

    def seek(self, offset: int, size: int, whence: int) -> int:
        """SEEK_DATA or SEEK_HOLE in a file of `size` bytes. **Errors** ENXIO: no data follows."""
        data, edge = self._data.edge(offset // PAGE)
        if data == (whence == os.SEEK_DATA):
            return offset
        if whence == os.SEEK_HOLE:
            return min(edge * PAGE, size)
        if edge < 0 or edge * PAGE >= size:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        return edge * PAGE
