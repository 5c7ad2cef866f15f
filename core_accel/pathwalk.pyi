from collections.abc import Callable, Iterable, Mapping
from typing import Final, Self, final

FOLLOW: Final = 1
MISSING_OK: Final = 2
BENEATH: Final = 4
IN_ROOT: Final = 8
NO_SYMLINKS: Final = 16
NO_XDEV: Final = 32
NO_MAGICLINKS: Final = 64
SLASH_OK: Final = 128
SEARCH: Final = 256
BIND: Final = 1
READ_ONLY: Final = 2
AMBIGUOUS: Final = 4

@final
class Magic:
    @property
    def target(self) -> bytes: ...
    @property
    def mount(self) -> int: ...
    @property
    def directory(self) -> bool | None: ...
    def __init__(self, target: bytes, mount: int = -1, directory: bool | None = None) -> None: ...

@final
class Found:
    @property
    def mount(self) -> int: ...
    @property
    def path(self) -> bytes: ...
    @property
    def missing(self) -> bool: ...
    @property
    def slash(self) -> bool: ...
    @property
    def last_dot(self) -> int: ...
    @property
    def crossed(self) -> bool: ...

@final
class View:
    def __new__(
        cls,
        points: Iterable[tuple[bytes, int]],
        root: bytes = b"/",
        detached: Iterable[tuple[bytes, int]] = (),
        binds: Mapping[int, tuple[bytes, int]] = ...,
    ) -> Self: ...
    def walk(
        self,
        base: bytes,
        path: bytes,
        flags: int,
        look: Callable[[int, bytes], bytes | int | Magic],
        base_mount: int = -1,
    ) -> Found: ...
    def points(self) -> list[tuple[bytes, int]]: ...
    def parts(
        self,
    ) -> tuple[list[tuple[bytes, int]], bytes, dict[int, tuple[bytes, int]]]: ...
    def binds(self) -> int: ...
    def shown(self, host: bytes, hint: int | None = None) -> tuple[bytes, int, int]: ...

def forget() -> None: ...

__pyx_capi__: Final[dict[str, object]]
