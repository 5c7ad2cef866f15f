"""What a file system is told of closes and syncs, and what guests hear of its errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from harness import GUESTS, Result, Runner, argv_of

Run = Callable[..., Result]


@pytest.fixture
def run(runner: Runner, tmp_path: Path) -> Run:
    """Run a Python body in the recorder's root."""
    point = tmp_path / "mnt"
    point.mkdir()

    def run(body: Callable[[], object], options: str = "") -> Result:
        argv = ["sh", "-c", 'cd "$0" && exec "$@"', str(point), *argv_of(body)]
        mount = f"recorder:none:{point}" + (f":{options}" if options else "")
        module = str(GUESTS / "io_recorder.py")
        return runner.umvm(argv, modules=[module], mounts=[mount])

    return run


def test_flush_with_every_close_release_with_the_last(run: Run) -> None:
    def body() -> list[str]:
        import os
        import time

        fd = os.open("f", os.O_RDWR | os.O_CREAT)
        copy = os.dup(fd)
        os.close(fd)
        if os.fork() == 0:
            os.closerange(copy, copy + 1)
            os._exit(0)
        os.wait()
        os.close(copy)
        end = time.monotonic() + 20
        while time.monotonic() < end:
            lines = open("log").read().splitlines()
            if "release /f" in lines:
                break
        return lines

    assert "['flush /f', 'flush /f', 'flush /f', 'release /f']" in run(body).ok()


def test_no_flush_where_it_is_not_wanted(run: Run) -> None:
    def body() -> list[str]:
        import os
        import time

        os.close(os.open("f", os.O_RDWR | os.O_CREAT))
        end = time.monotonic() + 20
        while time.monotonic() < end:
            lines = open("log").read().splitlines()
            if lines:
                break
        return lines

    assert "['release /f']" in run(body, "quiet").ok()


def test_syncs(run: Run) -> None:
    def body() -> list[str]:
        import os

        fd = os.open("f", os.O_RDWR | os.O_CREAT)
        os.fsync(fd)
        os.fdatasync(fd)
        directory = os.open(".", os.O_RDONLY)
        os.fsync(directory)
        os.pwritev(fd, [b"data"], 0, os.RWF_DSYNC)
        os.pwritev(fd, [b"data"], 0, os.RWF_SYNC)
        for flags in (os.O_SYNC, os.O_DSYNC):
            os.write(os.open("g", os.O_WRONLY | os.O_CREAT | flags), b"data")
        with open("log") as f:
            return [line for line in f.read().splitlines() if "sync" in line]

    wanted = ["fsync /f", "fdatasync /f", "fsyncdir /", "fdatasync /f", "fsync /f"]
    assert f"{[*wanted, 'fsync /g', 'fdatasync /g']}" in run(body).ok()


def test_close_tells_of_an_error(run: Run) -> None:
    """The file is closed all the same."""

    def body() -> list[object]:
        import os

        fd = os.open("fullflush", os.O_RDWR | os.O_CREAT)
        out: list[object] = []
        try:
            os.close(fd)
        except OSError as error:
            out.append(error.errno)
        try:
            os.read(fd, 1)
        except OSError as error:
            out.append(error.errno)
        return out

    assert "[122, 9]" in run(body).ok()


@pytest.mark.expect_log("that can't be written")
def test_mapped_pages_that_cannot_be_written(run: Run) -> None:
    """msync, fsync and close tell of it; the pages that fit are written."""

    def body() -> list[object]:
        import mmap
        import os

        out: list[object] = []
        fd = os.open("full", os.O_RDWR | os.O_CREAT)
        os.ftruncate(fd, 3 * 4096)
        area = mmap.mmap(fd, 3 * 4096)
        area[0:4] = b"fits"
        area[8192:8196] = b"not!"
        calls = (lambda: area.flush(), lambda: os.fsync(fd), lambda: os.close(fd))
        for call in calls:
            try:
                out.append(call())  # type: ignore[no-untyped-call]
            except OSError as error:
                out.append(error.errno)
        with open("full", "rb") as f:
            data = f.read()
        out += [data[:4], data[8192:8196]]  # the mapping is still there
        area.close()
        return out

    assert "[28, 28, 28, b'fits', b'not!']" in run(body).ok()


@pytest.mark.expect_log("handling Request")
def test_bugs_become_eio(run: Run) -> None:
    def body() -> list[object]:
        import os

        fd = os.open("broken", os.O_RDWR | os.O_CREAT)
        out: list[object] = []
        for _ in range(2):
            try:
                os.write(fd, b"x")
            except OSError as error:
                out.append(error.errno)
        out.append(os.pread(fd, 5, 0))
        return out

    assert "[5, 5, b'']" in run(body).ok()


def test_short_writes(run: Run) -> None:
    """A file system that takes less is asked again by write-back, and by guests otherwise."""

    def body() -> list[object]:
        import mmap
        import os

        fd = os.open("short", os.O_RDWR | os.O_CREAT)
        out: list[object] = [os.write(fd, b"abcdef"), os.lseek(fd, 0, os.SEEK_CUR)]
        os.ftruncate(fd, 100)
        area = mmap.mmap(fd, 100)
        area[50:60] = b"0123456789"
        area.flush()
        out.append(os.pread(fd, 10, 50))
        return out

    assert "[3, 3, b'0123456789']" in run(body).ok()


def test_slow_release_holds_no_guest(run: Run) -> None:
    def body() -> list[str]:
        import os
        import time

        for n in range(6):
            os.close(os.open(f"slow{n}", os.O_RDWR | os.O_CREAT))
        early = open("log").read()
        os.close(os.open("go", os.O_RDWR | os.O_CREAT))
        end = time.monotonic() + 20
        while time.monotonic() < end:
            lines = open("log").read().splitlines()
            if len(lines) == 7:
                break
        return [early, *sorted(lines)]

    released = ["release /go", *(f"release /slow{n}" for n in range(6))]
    assert f"result {['', *released]}" in run(body, "quiet").ok()


@pytest.mark.parametrize("options", ["plain,quiet", "quiet"])
def test_unlinked_files_live_until_the_last_close(run: Run, options: str) -> None:
    """With and without a file system that can do that itself."""

    def body() -> list[object]:
        import mmap
        import os

        out: list[object] = []
        os.mkdir("d")
        fd = os.open("d/f", os.O_RDWR | os.O_CREAT)
        os.write(fd, b"content")
        os.unlink("d/f")
        out += [os.listdir("d"), os.fstat(fd).st_nlink, os.pread(fd, 9, 0)]
        new = os.open("d/f", os.O_RDWR | os.O_CREAT | os.O_EXCL)
        os.write(new, b"another")
        out += [os.pread(fd, 9, 0), os.pread(new, 9, 0)]
        os.unlink("d/f")
        os.rmdir("d")
        os.write(fd, b" and more")
        area = mmap.mmap(fd, 0)
        area[0:1] = b"C"
        area.flush()
        out.append(os.pread(fd, 20, 0))
        other = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
        out.append(os.read(other, 3))
        with open("a", "w") as a, open("b", "w") as b:
            a.write("a")
            b.write("b")
            a.flush()
            b.flush()
            os.rename("a", "b")
            out += [os.fstat(a.fileno()).st_nlink, os.fstat(b.fileno()).st_nlink]
        return out

    seen = [[], 0, b"content", b"content", b"another", b"Content and more", b"Con", 1, 0]
    assert f"result {seen}" in run(body, options).ok()


def test_unmount_waits_for_nobody_but_users(run: Run) -> None:
    """EBUSY while a file is open or mapped, at once free after the last use."""

    def body() -> list[object]:
        import ctypes
        import mmap
        import os

        libc = ctypes.CDLL(None, use_errno=True)
        here = os.getcwd().encode()
        out: list[object] = []
        os.chdir("/")

        def umount() -> int:
            return 0 if libc.umount2(here, 0) == 0 else ctypes.get_errno()

        fd = os.open(here + b"/f", os.O_RDWR | os.O_CREAT)
        os.ftruncate(fd, 4096)
        out.append(umount())
        area = mmap.mmap(fd, 4096)
        os.close(fd)
        out.append(umount())
        area.close()
        out.append(umount())
        out.append(os.listdir(here))
        return out

    assert "[16, 16, 0, []]" in run(body, "quiet").ok()
