"""The adapter for Operations objects, called directly: what reaches the object, what comes back."""

from __future__ import annotations

import errno
import logging
import os
import stat
import struct
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from fuse_objects import (
    DIR,
    FILE,
    FUSE,
    GUESTS,
    MFUSE,
    REG,
    Call,
    Empty,
    Recorder,
    number_of,
    program,
)
from umvm.modules.fuse import mount

from umvm.interfaces.filesystem import Attr, Caller, Entry, StatFs, set_caller
from umvm.interfaces.fuse_adapter import FuseAdapter
from umvm.interfaces.fuse_options import FuseOptions
from umvm.standin import names

# --- what reaches the object ------------------------------------------------------------------

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


@pytest.mark.parametrize(("call", "expected"), CALLS, ids=[str(row[1][0]) for row in CALLS])
def test_arguments_arrive_as_from_libfuse(call: Call, expected: tuple[Any, ...]) -> None:
    recorder = Recorder()
    call(FuseAdapter(recorder))
    assert recorder.calls[-1] == expected


def test_read_and_write_arguments() -> None:
    recorder = Recorder(read=b"abc", write=3)
    fs = FuseAdapter(recorder)
    assert fs.read(b"/a", 5, 10, 2) == b"abc"
    assert fs.write(b"/a", 5, b"abc", 4) == 3
    assert recorder.calls == [("read", "/a", 10, 2, 5), ("write", "/a", b"abc", 4, 5)]


def test_large_reads_and_writes_are_cut_to_the_limits() -> None:
    recorder = Recorder()
    fs = FuseAdapter(recorder, FuseOptions(max_read=4, max_write=2))
    recorder.answers["read"] = b"1234"
    assert fs.read(b"/a", 5, 8, 0) == b"12341234"
    recorder.answers["write"] = 2
    assert fs.write(b"/a", 5, b"abcd", 10) == 4
    assert [call[2:4] for call in recorder.calls[:2]] == [(4, 0), (4, 4)]
    assert [call[2:4] for call in recorder.calls[2:]] == [(b"ab", 10), (b"cd", 12)]


def test_names_that_are_not_utf8_come_and_go_unchanged() -> None:
    recorder = Recorder(readdir=["a\udcff", "b"], readlink="x\udcfe")
    fs = FuseAdapter(recorder)
    fs.unlink(b"/a\xff")
    assert recorder.calls == [("unlink", "/a\udcff")]
    assert [entry.name for entry in fs.readdir(b"/", 7)] == [b"a\xff", b"b"]
    assert fs.readlink(b"/l") == b"x\xfe"


def test_another_encoding() -> None:
    recorder = Recorder()
    FuseAdapter(recorder, FuseOptions(encoding="latin-1")).unlink(b"/\xe4")
    assert recorder.calls == [("unlink", "/ä")]


def test_one_time_alone_is_completed_with_the_other() -> None:
    recorder = Recorder(getattr={**FILE, "st_atime": 7, "st_mtime": 8})
    recorder.use_ns = True
    fs = FuseAdapter(recorder)
    fs.utimens(b"/a", None, 5)
    fs.utimens(b"/a", 6, None)
    times = [call[2] for call in recorder.calls if call[0] == "utimens"]
    assert times == [(7, 5), (6, 8)]


def test_the_context_is_the_caller() -> None:
    fs = program("fuse_context.py")
    set_caller(Caller(12, 34, 56))
    try:
        assert [fs.read(name, 0, 9, 0) for name in (b"/uid", b"/gid", b"/pid")] == [
            b"12\n",
            b"34\n",
            b"56\n",
        ]
        assert fs.getattr(b"/pid").size == 3
    finally:
        set_caller(Caller(0, 0, 0))


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


def outcome(fs: FuseAdapter, call: Call) -> Any:
    try:
        return call(fs)
    except OSError as error:
        return error.errno


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


# --- what comes back --------------------------------------------------------------------------


def attr_of(options: FuseOptions | None = None, use_ns: bool = False, **given: Any) -> Attr:
    recorder = Recorder(getattr={"st_mode": REG | 0o644, **given})
    recorder.use_ns = use_ns
    return FuseAdapter(recorder, options).getattr(b"/a")


def test_attributes() -> None:
    assert attr_of() == Attr(mode=REG | 0o644, nlink=0)
    assert attr_of(st_atime=1.5, st_mtime=-1).atime_ns == 1_500_000_000
    assert attr_of(st_mtime=-1).mtime_ns == -(10**9)
    assert attr_of(use_ns=True, st_mtime=1_500_000_001).mtime_ns == 1_500_000_001
    assert attr_of(st_blocks=7, st_size=1).blocks == 7
    assert attr_of(st_size=1).blocks == -1, "made from the size"
    assert attr_of(st_ino=9).ino == 0, "inode numbers count with use_ino only"
    assert attr_of(FuseOptions(use_ino=True), st_ino=9).ino == 9
    assert attr_of(st_uid=-1).uid == 0xFFFFFFFF
    assert attr_of(FuseOptions(uid=3, gid=4, umask=0o077), st_uid=9)[:5] == (
        REG | 0o700,
        0,
        0,
        3,
        4,
    )
    assert attr_of(st_unknown="x").mode == REG | 0o644


def test_attributes_without_a_file_type_are_eio_and_of_a_wrong_type_einval() -> None:
    assert number_of(lambda: attr_of(st_mode=0o644)) == errno.EIO
    assert number_of(lambda: attr_of(st_size=1.5)) == errno.EINVAL


def test_a_handle_that_is_not_known_any_more_is_no_reason_to_fail() -> None:
    class Stale(FUSE.Operations):  # type: ignore[misc]
        def getattr(self, path: str, fh: Any = None) -> dict[str, int]:
            if fh is not None:
                raise FUSE.FuseOSError(errno.ENOENT)
            return {"st_mode": REG, "st_size": 8}

    assert FuseAdapter(Stale()).getattr(b"/a", 3).size == 8
    hard = FuseAdapter(Stale(), FuseOptions(hard_remove=True))
    assert number_of(lambda: hard.getattr(b"/a", 3)) == errno.ENOENT


READDIR: list[tuple[Any, list[Entry]]] = [
    ([".", "..", "a"], [Entry(b"."), Entry(b".."), Entry(b"a")]),
    ([("a", None, 0)], [Entry(b"a")]),
    ([("a", {"st_mode": REG | 1, "st_ino": 4}, 0)], [Entry(b"a", 0, REG)]),
    ([("a", DIR | 0o755, 0), ("b", 0, 0)], [Entry(b"a", 0, DIR), Entry(b"b")]),
    ([("a", {"st_mode": REG}, 1), ("b", None, 2)], [Entry(b"a", 0, REG), Entry(b"b")]),
    ((), []),
]  # fmt: skip


@pytest.mark.parametrize(("given", "expected"), READDIR)
def test_readdir_shapes(given: Any, expected: list[Entry]) -> None:
    assert list(FuseAdapter(Recorder(readdir=given)).readdir(b"/", 7)) == expected


@pytest.mark.parametrize("name", ["", "a/b", "a\0"])
def test_impossible_names_are_an_error(name: str) -> None:
    fs = FuseAdapter(Recorder(readdir=[name]))
    assert number_of(lambda: fs.readdir(b"/", 7)) == errno.EIO


@pytest.mark.parametrize(("kind", "asked"), [("Resumed", 17), ("Restarted", 1)])
def test_offsets_are_resumed_where_that_is_possible(kind: str, asked: int) -> None:
    fs = mount(f"{GUESTS / 'fuse_offsets.py'}:{kind}", {})
    assert isinstance(fs, FuseAdapter)
    names = [entry.name for entry in fs.readdir(b"/", 0)]
    assert names == [b".", b"..", *(b"%04d" % number for number in range(1000))]
    assert len(fs.operations.asked) == asked


def test_an_offset_that_comes_again_ends_the_directory() -> None:
    class Loop(MFUSE.Operations):  # type: ignore[misc]
        def readdir_with_offset(self, path: str, offset: int, fh: int) -> Iterator[Any]:
            yield "a", REG, 1

    assert len(list(FuseAdapter(Loop()).readdir(b"/", 0))) == 2


def test_statfs() -> None:
    given = {"f_bsize": 512, "f_blocks": 4096, "f_bavail": 2048, "f_other": "x"}
    assert FuseAdapter(Recorder(statfs=given)).statfs(b"/") == StatFs(512, 512, 4096, 0, 2048)
    assert FuseAdapter(Recorder(statfs={})).statfs(b"/").namemax == 255


def test_extended_attributes() -> None:
    fs = program("fuse_memory.py")
    assert number_of(lambda: fs.getxattr(b"/", b"user.a")) == errno.ENODATA
    fs.setxattr(b"/", b"user.a", b"\0v", 0)
    assert fs.listxattr(b"/") == [b"user.a"]
    assert fs.getxattr(b"/", b"user.a") == b"\0v"
    fs.removexattr(b"/", b"user.a")
    assert fs.listxattr(b"/") == []


def test_ioctl_reads_and_changes_the_buffer() -> None:
    fs = program("fuse_ioctl.py")
    command = 3 << 30 | 4 << 16 | ord("M") << 8 | 1
    assert fs.ioctl(b"/counter", 0, command, struct.pack("<I", 41)) == struct.pack("<I", 42)
    assert number_of(lambda: fs.ioctl(b"/counter", 0, 0x5401, b"")) == errno.ENOTTY


def test_a_write_that_takes_nothing_or_too_much_is_eio() -> None:
    for count in (0, None, 4):
        fs = FuseAdapter(Recorder(write=count))
        assert number_of(partial(fs.write, b"/a", 5, b"abc", 0)) == errno.EIO
    assert FuseAdapter(Recorder(write=2)).write(b"/a", 5, b"abc", 0) == 2


# --- errors -----------------------------------------------------------------------------------


def test_errors_of_an_operation() -> None:
    for answer in (OSError(errno.EDQUOT, "full"), FUSE.FuseOSError(errno.EDQUOT), -errno.EDQUOT):
        fs = FuseAdapter(Recorder(unlink=answer))
        assert number_of(partial(fs.unlink, b"/a")) == errno.EDQUOT


def test_other_exceptions_are_einval_with_one_traceback_each(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for failure in (KeyError("x"), OSError("no errno"), OSError(-5, "negative")):
        fs = FuseAdapter(Recorder(unlink=failure))
        caplog.clear()
        for _ in range(3):
            assert number_of(partial(fs.unlink, b"/a")) == errno.EINVAL
        assert len(caplog.records) == 1
        assert caplog.records[0].exc_info


def test_an_exception_inside_a_generator_is_caught_too() -> None:
    class Broken(FUSE.Operations):  # type: ignore[misc]
        def readdir(self, path: str, fh: int) -> Iterator[str]:
            yield "."
            raise ValueError

    assert number_of(lambda: FuseAdapter(Broken()).readdir(b"/", 0)) == errno.EINVAL


def test_too_much_data_and_wrong_handles_are_einval() -> None:
    fs = FuseAdapter(Recorder(read=b"toolong", open=None))
    assert number_of(lambda: fs.read(b"/a", 5, 3, 0)) == errno.EINVAL
    assert number_of(lambda: fs.open(b"/a", 0)) == errno.EINVAL


@pytest.mark.parametrize("failure", [SystemExit(3), KeyboardInterrupt()])
def test_an_exit_ends_the_file_system_and_not_the_supervisor(failure: BaseException) -> None:
    fs = FuseAdapter(Recorder(unlink=failure))
    ended: list[bool] = []
    fs.on_end = lambda: ended.append(True)
    assert number_of(lambda: fs.unlink(b"/a")) == errno.EFAULT
    assert number_of(lambda: fs.getattr(b"/a")) == errno.ENOTCONN
    assert fs.failure is failure
    assert ended == [True]


def test_fuse_exit_ends_the_file_system_that_calls_it() -> None:
    one, two = program("fuse_memory.py"), program("fuse_memory.py")
    one.setxattr(b"/", b"user.exit", b"", 0)
    assert number_of(lambda: one.getattr(b"/")) == errno.ENOTCONN
    assert two.getattr(b"/").mode == DIR | 0o755
