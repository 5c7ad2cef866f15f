"""Reading, writing and seeking: a served file behaves as one of the host."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from harness import Compiler, Result, Runner, argv_of

AssertSame = Callable[..., Result]


def test_matrix(assert_same: AssertSame, guest_binary: Compiler) -> None:
    """All forms of data calls with good and bad arguments: results, errnos and contents agree."""
    result = assert_same([str(guest_binary("io_matrix"))])
    assert "# set-id" in result.ok()


def test_appends_of_several_processes(assert_same: AssertSame) -> None:
    """No record of six writers is lost or torn: with O_APPEND, and with one shared description."""

    def body() -> list[object]:
        import os

        out: list[object] = []
        for own in (True, False):
            shared = os.open("f", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            pids = []
            for who in range(6):
                pid = os.fork()
                if pid == 0:
                    fd = os.open("f", os.O_WRONLY | os.O_APPEND) if own else shared
                    for n in range(60):
                        os.write(fd, b"%d:%03d:" % (who, n) + bytes([97 + who]) * (50 + n) + b"\n")
                    os._exit(0)
                pids.append(pid)
            out += [os.waitpid(pid, 0)[1] for pid in pids]
            with open("f", "rb") as f:
                lines = f.read().split(b"\n")
            out.append((len(lines), len(set(lines)), sum(map(len, lines))))
            out.append(all(set(line[6:]) <= {97 + line[0] - 48} for line in lines if line))
        return out

    assert "(361, 361" in assert_same(body).ok()


def test_position_is_shared(assert_same: AssertSame) -> None:
    """dup, fork, exec and SCM_RIGHTS share a description's position and flags; open doesn't."""

    def body() -> list[object]:
        import fcntl
        import os
        import socket
        import subprocess

        out: list[object] = []
        fd = os.open("f", os.O_RDWR | os.O_CREAT)
        os.write(fd, b"0123456789" * 10)
        os.lseek(fd, 0, os.SEEK_SET)
        copy, other = os.dup(fd), os.open("f", os.O_RDONLY)
        out += [os.read(fd, 3), os.read(copy, 3), os.read(other, 3)]
        if os.fork() == 0:
            os.read(fd, 4)
            os._exit(0)
        os.wait()
        out.append(os.read(fd, 2))
        said = subprocess.run(["head", "-c", "5"], stdin=fd, capture_output=True, check=True).stdout
        out += [said, os.lseek(copy, 0, os.SEEK_CUR) >= 17]
        ours, theirs = socket.socketpair()
        socket.send_fds(ours, [b"x"], [fd])
        (received,) = socket.recv_fds(theirs, 1, 1)[1]
        os.lseek(fd, 50, os.SEEK_SET)
        out.append(os.read(received, 4))
        fcntl.fcntl(received, fcntl.F_SETFL, os.O_APPEND)
        out.append(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND)
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
        out.append(os.read(again, 5))
        return out

    assert_same(body)


def test_large_transfers(assert_same: AssertSame) -> None:
    """More than one piece for the file system, with one buffer and with vectors."""

    def body() -> list[object]:
        import hashlib
        import os

        data = b"".join(hashlib.sha512(b"%d" % n).digest() for n in range(60000))
        fd = os.open("f", os.O_RDWR | os.O_CREAT)
        out: list[object] = [os.write(fd, data)]
        os.lseek(fd, 0, os.SEEK_SET)
        out.append(os.read(fd, 10 << 20) == data)
        out.append(os.pread(fd, 3 << 20, 12345) == data[12345 : 12345 + (3 << 20)])
        sizes = [1, 70000, 3, 1 << 20, 5, 999999, 4096]
        parts, at = [], 0
        for size in sizes:
            parts.append(data[at : at + size])
            at += size
        out.append(os.pwritev(fd, parts, 77))
        buffers = [bytearray(size) for size in reversed(sizes)]
        out.append(os.preadv(fd, buffers, 77))
        out.append(b"".join(buffers) == data[:at])
        out.append(os.preadv(fd, [bytearray(10), bytearray(5 << 20)], len(data) - 20))
        return out

    assert "True" in assert_same(body).ok()


def test_buffer_that_ends_in_the_middle(assert_same: AssertSame) -> None:
    """A transfer stops where the guest's memory ends, and tells how far it came."""

    def body() -> list[object]:
        import ctypes
        import os

        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        size = 3 << 20
        base = libc.mmap(None, ctypes.c_size_t(size + 4096), 3, 0x22, -1, ctypes.c_long(0))
        libc.munmap(ctypes.c_void_p(base + size), ctypes.c_size_t(4096))
        ctypes.memset(base, 65, size)
        fd = os.open("f", os.O_RDWR | os.O_CREAT)
        out: list[object] = []
        for call in (libc.write, libc.read):
            for before in (10, 5000, (1 << 20) + 3, size, 0):
                os.lseek(fd, 0, os.SEEK_SET)
                ctypes.set_errno(0)
                got = call(fd, ctypes.c_void_p(base + size - before), ctypes.c_size_t(8 << 20))
                out.append((before, got, ctypes.get_errno(), os.lseek(fd, 0, os.SEEK_CUR)))
        out.append(os.fstat(fd).st_size)
        return out

    assert_same(body)


def test_no_space(runner: Runner, tmp_path: Path) -> None:
    """A write that doesn't fit is short; the next one fails, and nothing is lost."""
    point = tmp_path / "mnt"
    point.mkdir()

    def body() -> list[object]:
        import mmap
        import os

        fd = os.open("f", os.O_RDWR | os.O_CREAT)
        out: list[object] = [os.write(fd, b"a" * (1 << 20)), os.lseek(fd, 0, os.SEEK_CUR)]
        try:
            os.write(fd, b"b")
        except OSError as error:
            out.append(error.errno)
        out += [os.fstat(fd).st_size, os.lseek(fd, 0, os.SEEK_CUR), os.pread(fd, 3, 65533)]
        os.ftruncate(fd, 100)
        out.append(os.write(fd, b"c"))
        area = mmap.mmap(fd, 0)
        out.append(area[0:2])
        return out

    source = argv_of(body)
    argv = ["sh", "-c", 'cd "$0" && exec "$@"', str(point), *source]
    result = runner.umvm(argv, mounts=[f"memory:none:{point}:size=64k"])
    assert result.ok() == "result [65536, 65536, 28, 65536, 65536, b'aaa', 1, b'aa']\n"


def test_synchronous_writes_and_flags(assert_same: AssertSame) -> None:
    def body() -> list[object]:
        import errno
        import fcntl
        import os

        out: list[object] = []
        for flags in (os.O_SYNC, os.O_DSYNC, os.O_APPEND | os.O_NONBLOCK, os.O_NOATIME, 3):
            fd = os.open("f", os.O_CREAT | (flags if flags == 3 else os.O_RDWR | flags))
            out.append(oct(fcntl.fcntl(fd, fcntl.F_GETFL)))
            for call, what in ((os.write, b"data"), (os.read, 4)):
                try:
                    out.append(call(fd, what))  # type: ignore[arg-type]
                except OSError as error:
                    out.append(errno.errorcode[error.errno or 0])
            fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NONBLOCK)
            out.append(oct(fcntl.fcntl(fd, fcntl.F_GETFL)))
            out.append(fcntl.fcntl(fd, fcntl.F_GETFD))
            high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 50)
            out += [high, fcntl.fcntl(high, fcntl.F_GETFD)]
            for command in (fcntl.F_GETLEASE, fcntl.F_GETSIG, fcntl.F_GETOWN):
                out.append(fcntl.fcntl(fd, command))
            try:
                fcntl.fcntl(fd, 77)
            except OSError as error:
                out.append(errno.errorcode[error.errno or 0])
            os.close(fd)
            os.close(high)
        return out

    assert_same(body)


def test_path_only_descriptor(assert_same: AssertSame) -> None:
    """What open(2) says of O_PATH: these work, all others fail with EBADF."""

    def body() -> list[object]:
        import errno
        import fcntl
        import os
        import socket

        with open("f", "wb") as f:
            f.write(b"data")
        fd = os.open("f", os.O_PATH)
        copy = os.dup(fd)
        calls = (
            lambda: os.read(fd, 1),
            lambda: os.lseek(fd, 0, 0),
            lambda: os.ftruncate(fd, 0),
            lambda: os.fchmod(fd, 0o600),
            lambda: os.fsync(fd),
            lambda: fcntl.flock(fd, fcntl.LOCK_SH),
            lambda: fcntl.fcntl(fd, fcntl.F_SETFL, 0),
            lambda: fcntl.fcntl(fd, fcntl.F_GETOWN),
            lambda: oct(fcntl.fcntl(copy, fcntl.F_GETFL)),
            lambda: fcntl.fcntl(fd, fcntl.F_GETFD),
            lambda: os.fstat(copy).st_size,
            lambda: os.read(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY), 9),
            lambda: os.close(copy),
        )
        out: list[object] = []
        for call in calls:
            try:
                out.append(call())
            except OSError as error:
                out.append(errno.errorcode[error.errno or 0])
        ours, theirs = socket.socketpair()
        socket.send_fds(ours, [b"x"], [fd])
        (received,) = socket.recv_fds(theirs, 1, 1)[1]
        out.append(os.fstat(received).st_size)
        return out

    assert_same(body)


def test_close_in_every_way(assert_same: AssertSame) -> None:
    """A file that was written and closed by any means has its data and can be unlinked."""

    def body() -> list[object]:
        import os

        out: list[object] = []
        for how in range(5):
            fd = os.open("f", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            os.write(fd, b"data %d" % how)
            if how == 0:
                os.close(fd)
            elif how == 1:
                os.closerange(fd, fd + 1)
            elif how == 2:
                os.dup2(0, fd)
                os.close(fd)
            elif how == 3:
                if os.fork() == 0:
                    os._exit(0)
                os.wait()
                os.close(fd)
            else:
                if os.fork() == 0:
                    os.execvp("true", ["true"])
                os.wait()
                os.close(fd)
            try:
                os.fstat(fd)
            except OSError as error:
                out.append(error.errno)
            with open("f", "rb") as f:
                out.append(f.read())
            os.unlink("f")
            out.append(os.listdir("."))
        return out

    assert_same(body)
