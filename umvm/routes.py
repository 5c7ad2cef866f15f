"""What a module answers for: the values that `umvm_start` returns.

Only the key and the answering object; the manager turns them into tables.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from core_accel.request import Reply, Request
    from umvm.interfaces.filesystem import FileSystem

Options: TypeAlias = dict[str, str]
"""Options of a module or a mount: `a=b,flag` is `{"a": "b", "flag": ""}`."""

FileSystemFactory: TypeAlias = "Callable[[str, Options], FileSystem]"
"""`factory(source, options)` makes the file system of one mount. OSError refuses the mount."""

SyscallHandler: TypeAlias = "Callable[[Request], Reply | None]"
"""Answers one system call; None passes it to whoever answers next, in the end the kernel."""


class FsType(NamedTuple):
    """A file system type, as in `mount -t NAME`; one object per mount comes from the factory."""

    name: str
    factory: FileSystemFactory


class SyscallClass(NamedTuple):
    """System calls by the kernel's names; the module loaded last is asked first."""

    names: tuple[str, ...]
    handler: SyscallHandler


Route: TypeAlias = FsType | SyscallClass
