"""What fusepy's and mfusepy's kinds of objects differ in, and what a missing operation answers."""

from __future__ import annotations

import errno
import logging
import os
from typing import Any

import pytest
from fuse_objects import (
    CALLS,
    DIR,
    FUSE,
    MFUSE,
    REG,
    Call,
    Empty,
    Recorder,
    number_of,
    outcome,
)

from umvm.interfaces.filesystem import StatFs
from umvm.interfaces.fuse_adapter import FuseAdapter
from umvm.standin import names

# --- the dialects -----------------------------------------------------------------------------


def test_an_object_that_cannot_be_called_has_its_methods_called() -> None:
    class Plain:
        def getattr(self, path: str, fh: Any = None) -> dict[str, int]:
            return {"st_mode": REG, "st_size": len(path)}

    assert FuseAdapter(Plain()).getattr(b"/four").size == 5


def test_mfusepy_ignores_call_and_skips_its_defaults() -> None:
    class Methods(MFUSE.Operations):  # type: ignore[misc]
        def __call__(self, op: str, *args: Any) -> Any:
            raise AssertionError("called")

        def unlink(self, path: str) -> int:
            return 0

    fs = FuseAdapter(Methods())
    assert fs.mfusepy
    fs.unlink(b"/a")
    assert number_of(lambda: fs.rmdir(b"/a")) == errno.ENOSYS
    assert fs.getattr(b"/").mode == DIR | 0o755
    assert number_of(lambda: fs.getattr(b"/x")) == errno.ENOENT


@pytest.mark.parametrize("module", ["fuse", "mfusepy"])
def test_the_real_modules_classes_behave_as_the_stand_ins(module: str) -> None:
    try:
        real = __import__(module)
    except (ImportError, OSError):  # libfuse is not there
        pytest.skip(f"{module} can't be imported without libfuse")
    answers = []
    for operations in (real.Operations(), getattr(names.module(module), "Operations")()):  # noqa: B009
        fs = FuseAdapter(operations)
        answers.append((fs.mfusepy, fs.trivial, [outcome(fs, call) for call, _ in CALLS]))
    assert answers[0] == answers[1]


def test_mfusepys_create_gets_the_flags_if_it_has_room() -> None:
    class Two(MFUSE.Operations):  # type: ignore[misc]
        def create(self, path: str, mode: int) -> int:
            return 1

    class Three(MFUSE.Operations):  # type: ignore[misc]
        def create(self, path: str, mode: int, fi: Any = None) -> Any:
            return fi

    assert FuseAdapter(Two()).create(b"/a", 0o600, os.O_RDWR) == 1
    assert FuseAdapter(Three()).create(b"/a", 0o600, os.O_RDWR) == os.O_RDWR | os.O_CREAT


def test_mfusepys_logging_sees_what_is_overridden(caplog: pytest.LogCaptureFixture) -> None:
    class Logged(MFUSE.LoggingMixIn, MFUSE.Operations):  # type: ignore[misc]
        def unlink(self, path: str) -> int:
            return 0

    caplog.set_level(logging.DEBUG, "fuse.log-mixin")
    fs = FuseAdapter(Logged())
    fs.unlink(b"/a")
    assert [record.getMessage() for record in caplog.records] == [
        "-> unlink ('/a',)",
        "<- unlink 0",
    ]


# --- what is missing --------------------------------------------------------------------------

MISSING: list[tuple[str, Call, Any]] = [
    ("getattr", lambda fs: fs.getattr(b"/a"), errno.ENOSYS),
    ("access", lambda fs: fs.access(b"/a", 4), None),
    ("readlink", lambda fs: fs.readlink(b"/a"), errno.ENOSYS),
    ("unlink", lambda fs: fs.unlink(b"/a"), errno.ENOSYS),
    ("link", lambda fs: fs.link(b"/a", b"/b"), errno.EPERM),
    ("create", lambda fs: fs.create(b"/a", 0o600, 0), errno.ENOSYS),
    ("open", lambda fs: fs.open(b"/a", 0), 0),
    ("opendir", lambda fs: fs.opendir(b"/"), 0),
    ("read", lambda fs: fs.read(b"/a", 0, 1, 0), errno.ENOSYS),
    ("write", lambda fs: fs.write(b"/a", 0, b"x", 0), errno.ENOSYS),
    ("flush", lambda fs: fs.flush(b"/a", 0), None),
    ("fsync", lambda fs: fs.fsync(b"/a", 0, False), None),
    ("release", lambda fs: fs.release(b"/a", 0), None),
    ("releasedir", lambda fs: fs.releasedir(b"/a", 0), None),
    ("readdir", lambda fs: fs.readdir(b"/", 0), errno.ENOSYS),
    ("statfs", lambda fs: fs.statfs(b"/"), StatFs(bsize=512, frsize=512)),
    ("getxattr", lambda fs: fs.getxattr(b"/a", b"n"), errno.EOPNOTSUPP),
    ("listxattr", lambda fs: fs.listxattr(b"/a"), errno.EOPNOTSUPP),
    ("setxattr", lambda fs: fs.setxattr(b"/a", b"n", b"", 0), errno.EOPNOTSUPP),
    ("ioctl", lambda fs: fs.ioctl(b"/a", 0, 0, b""), errno.ENOTTY),
    ("fallocate", lambda fs: fs.fallocate(b"/a", 0, 0, 0, 1), errno.EOPNOTSUPP),
]


@pytest.mark.parametrize(("name", "call", "expected"), MISSING, ids=[row[0] for row in MISSING])
def test_a_missing_operation_answers_as_libfuse_and_linux_do(
    name: str, call: Call, expected: Any
) -> None:
    assert outcome(FuseAdapter(Empty()), call) == expected


def test_create_falls_back_to_mknod_and_open() -> None:
    class Older(Recorder):
        create = None

    recorder = Older()
    assert FuseAdapter(recorder).create(b"/a", 0o600, os.O_RDWR | os.O_EXCL) == 5
    assert recorder.calls == [("mknod", "/a", REG | 0o600, 0), ("open", "/a", os.O_RDWR)]
    recorder = Recorder(create=OSError(errno.ENOSYS, "x"))
    assert FuseAdapter(recorder).create(b"/a", 0o600, os.O_RDWR) == 5


def test_mknod_of_a_file_is_create_and_release() -> None:
    recorder = Recorder()
    FuseAdapter(recorder).mknod(b"/a", REG | 0o600, 0)
    assert recorder.calls == [("create", "/a", REG | 0o600), ("release", "/a", 6)]


def test_defaults_that_do_nothing_are_not_asked() -> None:
    class Plain(FUSE.Operations):  # type: ignore[misc]
        pass

    class Flushes(FUSE.Operations):  # type: ignore[misc]
        def flush(self, path: str, fh: int) -> int:
            return 0

    assert not FuseAdapter(Plain()).wants_flush
    assert FuseAdapter(Flushes()).wants_flush
    assert FuseAdapter(Recorder()).wants_flush, "an object with a __call__ of its own sees all"
