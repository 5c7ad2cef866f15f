from collections.abc import Iterable
from typing import TypeAlias, final

HAS_MODE: int
HAS_TYPE: int
HAS_XATTR: int
DEAD: int
CHANGED: int
GONE: int
UNKNOWN_OWN: int
UNKNOWN_REAL: int
UNKNOWN_ALL: int

_Entry: TypeAlias = tuple[int, int, int, int, int, int, int, int, int]
"""dev, ino, guard, uid, gid, mode, real_mode, rdev, flags."""
_Look: TypeAlias = tuple[int, int, int, int, int, int, int, int, int, int, int, int]

@final
class Owners:
    def __len__(self) -> int: ...
    def fileno(self) -> int: ...
    def set_unknown(self, how: int, own: tuple[int, int], shown: tuple[int, int]) -> None: ...
    def set_guests(self, plain: bool, new_differ: bool) -> None: ...
    def set_split(self, split: bool) -> None: ...
    def set_hint(
        self, area: memoryview, shown: memoryview, notes: memoryview, numbers: Iterable[int]
    ) -> None: ...
    def set_logged(self, wanted: bool) -> None: ...
    def look(self, path: bytes, flags: int = 0, fd: int = -100) -> _Look: ...
    def chown(self, path: bytes, flags: int, uid: int, gid: int, fd: int = -100) -> None: ...
    def chmod(self, path: bytes, flags: int, mode: int, fd: int = -100) -> None: ...
    def put(
        self,
        dev: int,
        ino: int,
        guard: int,
        uid: int,
        gid: int,
        mode: int,
        real_mode: int,
        rdev: int,
        flags: int,
    ) -> None: ...
    def learn(
        self,
        dev: int,
        ino: int,
        guard: int,
        uid: int,
        gid: int,
        mode: int,
        real_mode: int,
        rdev: int,
        flags: int,
    ) -> bool: ...
    def mark(self, entries: Iterable[tuple[int, int]], gone: Iterable[tuple[int, int]]) -> None: ...
    def entry(self, dev: int, ino: int) -> _Entry | None: ...
    def drop(self, dev: int, ino: int) -> None: ...
    def died(self, dev: int, ino: int) -> None: ...
    def entries(self) -> list[_Entry]: ...
    def changed(self) -> tuple[list[_Entry], list[tuple[int, int]]]: ...
