"""Starts guests: fork, filter, hand the listener over, exec. Watches over them."""

import mmap
from collections.abc import Sequence

class Init:
    """The process between supervisor and guests: parent of the first one and of orphans."""

    pid: int
    shared: mmap.mmap
    events: int
    far_end: int
    def __init__(self) -> None: ...
    @property
    def guest(self) -> int: ...
    def clean_up(self, paths: Sequence[bytes]) -> None: ...
    def wait(self) -> tuple[str, int]: ...
    def kill(self) -> None: ...

class Launched:
    """A guest that waits for `go`: its pid and its seccomp listener."""

    pid: int
    listener: int
    def __init__(self, pid: int, listener: int, sock: object) -> None: ...
    def go(self) -> int: ...

def spawn(
    program: bytes,
    paths: list[bytes],
    argv: list[bytes],
    envp: list[bytes],
    ignored: int = 0,
    open_files: tuple[int, int] = (0, 0),
    cwd: bytes | None = None,
    init: Init | None = None,
) -> Launched: ...
def control(option: int, value: int = 0) -> int: ...
def watch_closes() -> int: ...
def watch_directory(fd: int, path: bytes, mask: int) -> int: ...
def watch(guest: int) -> int: ...
