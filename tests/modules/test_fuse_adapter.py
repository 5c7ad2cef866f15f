"""The adapter for Operations objects, called directly: what reaches the object, what comes back."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from fuse_objects import (
    CALLS,
    DIR,
    FILE,
    FUSE,
    GUESTS,
    MFUSE,
    REG,
    Call,
    Recorder,
    number_of,
    program,
)
from umvm.modules.fuse import mount

from umvm.interfaces.filesystem import Attr, Caller, Entry, StatFs, set_caller
from umvm.interfaces.fuse_adapter import FuseAdapter
from umvm.interfaces.fuse_options import FuseOptions

# --- what reaches the object ------------------------------------------------------------------


@pytest.mark.parametrize(("call", "expected"), CALLS, ids=[str(row[1][0]) for row in CALLS])
def test_arguments_arrive_as_from_libfuse(call: Call, expected: tuple[Any, ...]) -> None:
    recorder = Recorder()
    call(FuseAdapter(recorder))
    assert recorder.calls[-1] == expected


DIRECT = FuseOptions(direct_io=True)


def test_read_and_write_arguments() -> None:
    recorder = Recorder(read=b"abc", write=3)
    fs = FuseAdapter(recorder, DIRECT)
    assert fs.read(b"/a", 5, 10, 2) == b"abc"
    assert fs.write(b"/a", 5, b"abc", 4) == 3
    assert recorder.calls == [("read", "/a", 10, 2, 5), ("write", "/a", b"abc", 4, 5)]


def test_large_reads_and_writes_are_cut_to_the_limits() -> None:
    recorder = Recorder()
    fs = FuseAdapter(recorder, DIRECT._replace(max_read=4, max_write=2))
    recorder.answers["read"] = b"1234"
    assert fs.read(b"/a", 5, 8, 0) == b"12341234"
    recorder.answers["write"] = 2
    assert fs.write(b"/a", 5, b"abcd", 10) == 4
    assert [call[2:4] for call in recorder.calls[:2]] == [(4, 0), (4, 4)]
    assert [call[2:4] for call in recorder.calls[2:]] == [(b"ab", 10), (b"cd", 12)]


class Content(Recorder):
    """A file with some content, read as asked for."""

    content = bytes(range(256)) * 40

    def __call__(self, op: str, *args: Any) -> Any:
        self.answers["getattr"] = {**FILE, "st_size": len(self.content)}
        _, size, offset = (*args, 0, 0)[:3]
        self.answers["read"] = self.content[offset : offset + size] if op == "read" else b""
        return super().__call__(op, *args)

    def asked(self) -> list[Any]:
        """The (size, offset) of reads since the last time."""
        reads = [call[2:4] for call in self.calls if call[0] == "read"]
        self.calls.clear()
        return reads


def test_reads_are_of_whole_pages_before_the_end_as_from_the_kernels_cache() -> None:
    recorder = Content()
    fs = FuseAdapter(recorder)
    size = len(recorder.content)
    for offset, length, asked in (
        (0, 4096, [(4096, 0)]),
        (1, 1, [(4096, 0)]),
        (4095, 2, [(8192, 0)]),
        (9000, 99999, [(4096, 8192)]),
        (size, 5, []),
        (size + 5, 5, []),
    ):
        data = fs.read(b"/a", 5, length, offset)
        assert data == recorder.content[offset : offset + length]
        assert recorder.asked() == asked


def test_a_file_is_as_long_as_its_attributes_say_for_their_time() -> None:
    recorder = Content()
    fs = FuseAdapter(recorder, FuseOptions(attr_timeout=1000))
    fs.getattr(b"/a", 5)
    recorder.content += b"more"
    assert len(fs.read(b"/a", 5, 99999, 0)) == 10240, "as with libfuse: it isn't asked again yet"
    fs.truncate(b"/a", 10244, 5)
    assert len(fs.read(b"/a", 5, 99999, 0)) == 10244
    fresh = FuseAdapter(recorder, FuseOptions(attr_timeout=0))
    assert len(fresh.read(b"/a", 5, 99999, 0)) == 10244
    recorder.content += b"more"
    assert len(fresh.read(b"/a", 5, 99999, 0)) == 10248


def test_what_was_written_can_be_read_at_once() -> None:
    fs = program("fuse_memory.py", attr_timeout="1000")
    fh = fs.create(b"/a", 0o644, os.O_RDWR)
    assert fs.getattr(b"/a", fh).size == 0
    assert fs.write(b"/a", fh, b"hello", 3) == 5
    assert fs.read(b"/a", fh, 99, 0) == b"\0\0\0hello"
    fs.rename(b"/a", b"/b")
    assert fs.read(b"/b", fh, 99, 5) == b"llo"
    fs.unlink(b"/b")
    assert fs.create(b"/b", 0o644, os.O_RDWR)
    assert fs.read(b"/b", fh, 99, 0) == b""


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


def test_the_handle_of_a_directory_is_not_taken_for_a_files() -> None:
    recorder = Recorder(getattr={"st_mode": DIR | 0o755}, readdir=["."])
    fs = FuseAdapter(recorder)
    handle = fs.opendir(b"/d")
    fs.getattr(b"/d", handle)
    fs.readdir(b"/d", handle)
    assert recorder.calls[1:] == [("getattr", "/d", None), ("readdir", "/d", 7)]


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


def test_errors_are_of_pythons_own_classes() -> None:
    fs = FuseAdapter(FUSE.Operations())
    with pytest.raises(FileNotFoundError):
        fs.getattr(b"/a")


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
    fs = FuseAdapter(Recorder(read=b"toolong", open=None), DIRECT)
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
