"""Operations objects for the tests of the FUSE adapter, and what to do with them."""

from __future__ import annotations

import os
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


def outcome(fs: FuseAdapter, call: Call) -> Any:
    """What a call gives, or its errno."""
    try:
        return call(fs)
    except OSError as error:
        return error.errno


CALLS: list[tuple[Call, tuple[Any, ...]]] = [
    (lambda fs: fs.getattr(b"/a"), ("getattr", "/a", None)),
    (lambda fs: fs.getattr(b"/a", 5), ("getattr", "/a", 5)),
    (lambda fs: fs.access(b"/a", 6), ("access", "/a", 6)),
    (lambda fs: fs.chmod(b"/a", 0o600), ("chmod", "/a", REG | 0o600)),
    (lambda fs: fs.chown(b"/a", 3, -1), ("chown", "/a", 3, -1)),
    (lambda fs: fs.chown(b"/a", 0xFFFFFFFF, 4), ("chown", "/a", -1, 4)),
    (lambda fs: fs.truncate(b"/a", 9), ("truncate", "/a", 9)),
    (lambda fs: fs.truncate(b"/a", 9, 5), ("truncate", "/a", 9, 5)),
    (lambda fs: fs.utimens(b"/a", 1_500_000_000, 2), ("utimens", "/a", (1.5, 2e-9))),
    (lambda fs: fs.mknod(b"/p", stat.S_IFIFO | 0o600, 0), ("mknod", "/p", stat.S_IFIFO | 0o600, 0)),
    (lambda fs: fs.mkdir(b"/d", 0o755), ("mkdir", "/d", 0o755)),
    (lambda fs: fs.unlink(b"/a"), ("unlink", "/a")),
    (lambda fs: fs.rmdir(b"/d"), ("rmdir", "/d")),
    (lambda fs: fs.symlink(b"to/where", b"/l"), ("symlink", "/l", "to/where")),
    (lambda fs: fs.link(b"/old", b"/new"), ("link", "/new", "/old")),
    (lambda fs: fs.rename(b"/old", b"/new"), ("rename", "/old", "/new")),
    (lambda fs: fs.opendir(b"/d"), ("opendir", "/d")),
    (lambda fs: fs.fsyncdir(b"/d", 7, True), ("fsyncdir", "/d", 1, 7)),
    (lambda fs: fs.releasedir(b"/d", 7), ("releasedir", "/d", 7)),
    (lambda fs: fs.open(b"/a", os.O_RDWR), ("open", "/a", os.O_RDWR)),
    (lambda fs: fs.create(b"/a", 0o640, os.O_RDWR), ("create", "/a", REG | 0o640)),
    (lambda fs: fs.flush(b"/a", 5), ("flush", "/a", 5)),
    (lambda fs: fs.fsync(b"/a", 5, False), ("fsync", "/a", 0, 5)),
    (lambda fs: fs.release(b"/a", 5), ("release", "/a", 5)),
    (lambda fs: fs.setxattr(b"/a", b"user.n", b"v", 1), ("setxattr", "/a", "user.n", b"v", 1)),
    (lambda fs: fs.removexattr(b"/a", b"user.n"), ("removexattr", "/a", "user.n")),
]
"""Calls of the adapter, and what they ask the object for in the end."""
