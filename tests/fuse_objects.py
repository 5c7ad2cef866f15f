"""Operations objects for the tests of the FUSE adapter, and what to do with them."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from umvm.modules.fuse import mount

from umvm.interfaces.filesystem import FileSystem
from umvm.interfaces.fuse_adapter import FuseAdapter
from umvm.standin import names

GUESTS = Path(__file__).parent / "guests"
FUSE: Any = names.module("fuse")
MFUSE: Any = names.module("mfusepy")
REG, DIR = stat.S_IFREG, stat.S_IFDIR
FILE = {"st_mode": REG | 0o644, "st_nlink": 1, "st_size": 3}

Call = Callable[[FuseAdapter], Any]


def program(name: str, **options: str) -> FileSystem:
    """The file system of an example program, ready."""
    fs: FileSystem = mount(str(GUESTS / name), options)
    fs.init()
    return fs


def number_of(call: Callable[[], Any]) -> int | None:
    """The errno of the error that a call raises."""
    with pytest.raises(OSError) as caught:
        call()
    return caught.value.errno


class Recorder(FUSE.Operations):  # type: ignore[misc]
    """Answers from a table and remembers every call, as it came through `__call__`."""

    def __init__(self, **answers: Any) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.answers = {"getattr": FILE, "open": 5, "create": 6, "opendir": 7, **answers}

    def __call__(self, op: str, *args: Any) -> Any:
        self.calls.append((op, *args))
        answer = self.answers.get(op, 0)
        if isinstance(answer, BaseException):
            raise answer
        return answer


class Empty:
    """Has no operation at all."""
