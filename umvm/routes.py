"""What a module answers for: the values that `umvm_start` returns.

Only the key and the answering object; the manager turns them into tables.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from core_accel.request import Reply, Request
    from umvm.interfaces.filesystem import FileSystem
    from umvm.interfaces.identity import Identity as IdentityObject

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
    """System calls by the kernel's names, or classes by strace's (`%file`, umvm.syscalls.classes);
    the module loaded last is asked first."""

    names: tuple[str, ...]
    handler: SyscallHandler


class Identity(NamedTuple):
    """Who the guests are. One is active: that of the module loaded last."""

    answers: IdentityObject


class Verb(NamedTuple):
    """A request that `umvm` commands of the module can send to the VM (umvm.control.client.call).

    `handler(arguments)` returns what JSON can carry; UmvmError and OSError go to the operator.
    """

    name: str
    handler: Callable[[dict[str, Any]], object]


Route: TypeAlias = FsType | SyscallClass | Identity | Verb
