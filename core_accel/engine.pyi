"""Receives notifications on worker threads; passes unclaimed calls through without the GIL."""

from collections.abc import Callable, Iterable, Mapping
from typing import Self, TypeAlias, final

from core_accel.request import Reply, Request

_Kind: TypeAlias = tuple[int, int, tuple[int, ...], tuple[int, ...]]
"""(1 always handled, 2 while anything is mounted, else 0; index of the descriptor argument or -1;
indexes of path arguments; for each its directory descriptor's index or -1)"""

@final
class Engine:
    """Worker threads on every listener of one VM."""

    def __new__(
        cls,
        kinds: Mapping[int, _Kind],
        handler: Callable[[Request], Reply | None],
        on_gone: Callable[[int], None],
    ) -> Self: ...
    def add_listener(self, fd: int, workers: int = 2) -> None: ...
    def set_view(self, points: Iterable[tuple[bytes, int]]) -> None: ...
    def set_shadow(self, prefix: bytes) -> None: ...
    def set_state(self, descriptors: int, virtual_cwd: int) -> None: ...
    def set_hooks(self, numbers: Iterable[int]) -> None: ...
    def forget_paths(self) -> None: ...
    def counts(self) -> tuple[int, int, int]: ...
