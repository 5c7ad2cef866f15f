"""sendfile, splice and copy_file_range with a served side, against the host's own."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
from harness import Compiler, Result, Runner

AssertSame = Callable[..., Result]


def test_matrix(assert_same: AssertSame, guest_binary: Compiler) -> None:
    """All three calls with good and bad arguments, positions and offsets."""
    assert "# copy_file_range" in assert_same([str(guest_binary("io_copy"))]).ok()


def test_sendfile_to_a_blocking_socket(assert_same: AssertSame) -> None:
    """All is sent, though the other side reads late and slowly."""

    def body() -> list[object]:
        import hashlib
        import os
        import socket
        import time

        data = os.urandom(1 << 20) * 5
        with open("f", "wb") as f:
            f.write(data)
        fd = os.open("f", os.O_RDONLY)
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            ours.close()
            time.sleep(0.2)
            got = b""
            while part := theirs.recv(300000):
                got += part
            os._exit(0 if hashlib.sha1(got).digest() == hashlib.sha1(data).digest() else 1)
        theirs.close()
        sent = os.sendfile(ours.fileno(), fd, 0, len(data))
        ours.close()
        return [sent, os.lseek(fd, 0, os.SEEK_CUR), os.waitpid(pid, 0)[1]]

    assert "[5242880, 0, 0]" in assert_same(body).ok()


def test_sendfile_to_a_full_nonblocking_socket(assert_same: AssertSame) -> None:
    def body() -> list[object]:
        import os
        import socket

        with open("f", "wb") as f:
            f.truncate(8 << 20)
        fd = os.open("f", os.O_RDONLY)
        ours, _theirs = socket.socketpair()
        ours.setblocking(False)
        first = os.sendfile(ours.fileno(), fd, 0, 8 << 20)
        try:
            while True:
                os.sendfile(ours.fileno(), fd, 0, 8 << 20)
        except BlockingIOError as error:
            return [0 < first < 8 << 20, error.errno]

    assert "[True, 11]" in assert_same(body).ok()


def test_sendfile_interrupted(assert_same: AssertSame) -> None:
    """A signal ends a sendfile that waits: EINTR if nothing was sent, else a short count."""

    def body() -> list[object]:
        import ctypes
        import errno
        import os
        import signal
        import socket
        import time

        libc = ctypes.CDLL(None, use_errno=True)
        with open("f", "wb") as f:
            f.truncate(8 << 20)
        fd = os.open("f", os.O_RDONLY)
        out: list[object] = []
        handled: list[int] = []

        def on_usr1(number: int, frame: object) -> None:
            handled.append(number)

        signal.signal(signal.SIGUSR1, on_usr1)
        signal.siginterrupt(signal.SIGUSR1, True)

        def interrupted_by_child(call: object) -> int:
            me = os.getpid()
            pid = os.fork()
            if pid == 0:
                time.sleep(0.4)
                os.kill(me, signal.SIGUSR1)
                os._exit(0)
            ctypes.set_errno(0)
            got: int = call()  # type: ignore[operator]
            os.waitpid(pid, 0)
            return got

        ours, _theirs = socket.socketpair()
        got = interrupted_by_child(lambda: libc.sendfile(ours.fileno(), fd, None, 8 << 20))
        out += [0 < got < 8 << 20, os.lseek(fd, 0, os.SEEK_CUR) == got, len(handled)]
        os.lseek(fd, 0, os.SEEK_SET)
        read, write = os.pipe()
        os.set_blocking(write, False)
        try:
            while True:
                os.write(write, bytes(4096))
        except BlockingIOError:
            os.set_blocking(write, True)
        got = interrupted_by_child(lambda: libc.sendfile(write, fd, None, 8 << 20))
        out += [got, errno.errorcode.get(ctypes.get_errno()), len(handled)]
        del read
        return out

    source = assert_same(body)
    assert "[True, True, 1, -1, 'EINTR', 2]" in source.ok()


def test_splice_waits_for_the_pipe(assert_same: AssertSame) -> None:
    """Pipe to file waits for data, file to pipe for room; both move no more than there is."""

    def body() -> list[object]:
        import os
        import time

        out: list[object] = []
        fd = os.open("f", os.O_RDWR | os.O_CREAT)
        read, write = os.pipe()
        if os.fork() == 0:
            time.sleep(0.2)
            os.write(write, b"late data")
            os._exit(0)
        out.append(os.splice(read, fd, 1000))
        os.wait()
        out.append((os.pread(fd, 100, 0), os.lseek(fd, 0, os.SEEK_CUR)))
        os.ftruncate(fd, 1 << 20)
        os.set_blocking(write, False)
        try:
            while True:
                os.write(write, bytes(4096))
        except BlockingIOError as error:
            out.append(error.errno)
        try:
            os.splice(fd, write, 1000, offset_src=0)
        except BlockingIOError as error:
            out.append(error.errno)
        os.set_blocking(write, True)
        if os.fork() == 0:
            time.sleep(0.2)
            os.read(read, 16384)
            os._exit(0)
        out.append(0 < os.splice(fd, write, 1 << 20, offset_src=0) <= 16384)
        os.wait()
        os.close(write)
        total = 0
        while got := os.splice(read, fd, 1 << 16, offset_dst=0):
            total += got
        out.append(total > 0)
        return out

    assert "late data" in assert_same(body).ok()


def test_closed_pipe_gives_sigpipe(assert_same: AssertSame) -> None:
    def body() -> list[object]:
        import os
        import signal

        with open("f", "wb") as f:
            f.write(b"data")
        fd = os.open("f", os.O_RDONLY)
        read, write = os.pipe()
        os.close(read)
        out: list[object] = []
        for handler in (signal.SIG_IGN, signal.SIG_DFL):
            pid = os.fork()
            if pid == 0:
                signal.signal(signal.SIGPIPE, handler)
                try:
                    os.sendfile(write, fd, 0, 4)
                except BrokenPipeError:
                    os._exit(7)
                os._exit(0)
            out.append(os.waitpid(pid, 0)[1])
        return out

    assert "[1792, 13]" in assert_same(body).ok()


def test_between_mount_and_host(runner: Runner, tmp_path: object) -> None:
    """copy_file_range refuses (EXDEV) as between file systems; sendfile and cp copy both ways."""
    from pathlib import Path

    assert isinstance(tmp_path, Path)
    host, point = tmp_path / "host", tmp_path / "mnt"
    host.mkdir()
    point.mkdir()
    text = f"""
import os
host, mnt = {str(host)!r}, {str(point)!r}
data = os.urandom(300000)
with open(host + "/a", "wb") as f: f.write(data)
out = []
a = os.open(host + "/a", os.O_RDWR)
b = os.open(mnt + "/b", os.O_RDWR | os.O_CREAT)
for one, two in ((a, b), (b, a)):
    try: os.copy_file_range(one, two, 100)
    except OSError as error: out.append(error.errno)
sent = 0
while sent < len(data): sent += os.sendfile(b, a, None, 1 << 20)
out += [sent, os.lseek(a, 0, 1), os.lseek(b, 0, 1), os.pread(b, 1 << 20, 0) == data]
c = os.open(host + "/c", os.O_RDWR | os.O_CREAT)
out += [os.sendfile(c, b, 10, 1 << 20), os.lseek(b, 0, 1), os.pread(c, 1 << 20, 0) == data[10:]]
for one, two in ((host + "/a", mnt + "/x"), (mnt + "/x", mnt + "/y"), (mnt + "/y", host + "/z")):
    assert os.spawnlp(os.P_WAIT, "cp", "cp", one, two) == 0
with open(host + "/z", "rb") as f: out.append(f.read() == data)
print(out)
"""
    result = runner.umvm(["python3", "-I", "-c", text], mounts=[f"memory:none:{point}"])
    assert result.ok() == "[18, 18, 300000, 300000, 300000, True, 299990, 300000, True, True]\n"


@pytest.mark.skipif(shutil.which("cp") is None, reason="cp is not installed")
def test_coreutils_copy(assert_same: AssertSame) -> None:
    body = (
        "head -c 3000000 /dev/urandom > a; truncate -s 5000000 a; cp a b; cp --sparse=always a c;"
        "cp --reflink=auto a d; cat a > e; dd if=a of=f bs=64k 2>/dev/null; mv f g; install a h;"
        "for x in b c d e g h; do cmp a $x && stat -c '%s %a' $x; done; tail -c 10 b | wc -c;"
        "sort -R a > /dev/null; tar cf t.tar a b; mkdir u; tar xf t.tar -C u; cmp a u/b && echo ok"
    )
    assert assert_same(body).ok().endswith("ok\n")
