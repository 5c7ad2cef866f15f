from collections.abc import Iterable, Mapping, Sequence
from typing import Self, final

AGENT_BASE: int
AGENT_MASK: int
GATE: int
STUBS: int
ENTRY: int
BASES: int
FLOWS: list[str]

_Kind = tuple[str, int, Sequence[int], Sequence[int], int, int]

@final
class Area:
    directory: bytes
    def __new__(
        cls,
        directory: bytes,
        shadow: bytes,
        cache: bytes,
        kinds: Mapping[int, _Kind],
        mode: int = 0o600,
    ) -> Self: ...
    def answered(self) -> memoryview: ...
    def set_view(self, points: Iterable[tuple[bytes, int]], names: Iterable[bytes]) -> None: ...
    def set_descriptors(self, count: int, active: bool) -> None: ...
    def set_hooks(self, numbers: Iterable[int]) -> None: ...
    def set_identity(self, on: bool) -> None: ...
    def set_record(self, number: int, ids: Sequence[int]) -> None: ...
    def forget(self) -> None: ...
    def cwd_moved(self) -> None: ...
    def add_text(
        self,
        key: tuple[int, int, int, int, int, int],
        length: int,
        vaddr: int,
        stub: int,
        stubs: bytes,
        copy_size: int,
        name: bytes,
        id_offset: int = 0,
        build_id: bytes = b"",
    ) -> bool: ...
    def put(
        self, owner: int, program: bytes, name: bytes, front: Sequence[bytes]
    ) -> bytes | None: ...
    def counts(self) -> dict[str, int]: ...

def exe(pid: int) -> bytes: ...
def text_hash(text: bytes) -> int: ...
