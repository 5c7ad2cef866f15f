"""Mappings of served files: coherent between processes, with read and write, and written back."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Compiler, Result, Runner

AssertSame = Callable[..., Result]


def test_errors(assert_same: AssertSame) -> None:
    def body() -> list[str]:
        import ctypes
        import errno
        import os

        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [
            ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int,
            ctypes.c_long,
        ]  # fmt: skip
        with open("f", "wb") as f:
            f.write(b"x" * 5000)
        fds = {
            "ro": os.open("f", os.O_RDONLY),
            "wo": os.open("f", os.O_WRONLY),
            "rw": os.open("f", os.O_RDWR),
            "path": os.open("f", os.O_PATH),
            "dir": os.open(".", os.O_RDONLY),
            "none": 99,
        }
        R, W, X, SHARED, PRIVATE, VALIDATE, SYNC = 1, 2, 4, 1, 2, 3, 0x80000
        out = []
        for name, fd in fds.items():
            for size, prot, flags, offset in (
                (4096, R, SHARED, 0),
                (4096, R | W, SHARED, 0),
                (4096, R | W, PRIVATE, 0),
                (4096, R | X, PRIVATE, 4096),
                (4096, W, SHARED, 0),
                (4096, R, VALIDATE, 0),
                (4096, R, VALIDATE | (0 if name == "wo" else SYNC), 0),
                (0, R, SHARED, 0),
                (4096, R, SHARED, 100),
                (4096, R, 0, 0),
            ):
                got = libc.mmap(None, size, prot, flags, fd, offset)
                failed = got in (None, 2**64 - 1)
                what = errno.errorcode[ctypes.get_errno()] if failed else "mapped"
                out.append(f"{name} {size} {prot} {flags:x} {offset} {what}")
        return out

    result = assert_same(body).ok()
    assert "dir 4096 1 1 0 ENODEV" in result and "none 0 1 1 0 EBADF" in result


def test_coherent_with_read_and_write(assert_same: AssertSame) -> None:
    def body() -> list[object]:
        import mmap
        import os

        out: list[object] = []
        fd = os.open("f", os.O_RDWR | os.O_CREAT)
        os.write(fd, b"a" * 10000)
        other = os.open("f", os.O_RDWR)
        area = mmap.mmap(fd, 10000)
        area[5000:5003] = b"map"
        out.append(os.pread(other, 5, 4999))
        os.pwrite(other, b"write", 5001)
        out.append(area[4999:5008])
        area[0] = ord("z")
        os.ftruncate(other, 5002)
        out.append((os.fstat(fd).st_size, os.pread(fd, 10, 4998)))
        os.ftruncate(other, 10000)
        out.append(area[4998:5010])
        os.lseek(other, 0, os.SEEK_END)
        os.write(other, b"more")
        out.append((os.fstat(fd).st_size, os.pread(fd, 10, 9998), area[0:2]))
        area.resize(12000)
        out.append((os.fstat(fd).st_size, area[9998:10006]))
        private = mmap.mmap(fd, 100, flags=mmap.MAP_PRIVATE)
        private[0] = ord("p")
        out.append((os.pread(other, 2, 0), area[0:2], private[0:2]))
        area.flush()
        area.close()
        os.close(fd)
        os.close(other)
        with open("f", "rb") as f:
            data = f.read()
        out.append((len(data), data[:3], data[4998:5010], data[9998:10006]))
        return out

    assert_same(body)


def test_every_way_to_write_is_seen(assert_same: AssertSame) -> None:
    """fallocate, copy_file_range, sendfile, splice and O_TRUNC on a file that is mapped."""

    def body() -> list[object]:
        import mmap
        import os

        out: list[object] = []
        fd = os.open("f", os.O_RDWR | os.O_CREAT)
        os.write(fd, b"x" * 12288)
        area = mmap.mmap(fd, 12288)
        area[4096:4100] = b"keep"
        source = os.open("s", os.O_RDWR | os.O_CREAT)
        os.write(source, b"0123456789")
        os.copy_file_range(source, fd, 5, 0, 10)
        out.append(area[8:18])
        os.lseek(fd, 20, os.SEEK_SET)
        os.sendfile(fd, source, 0, 4)
        out.append(area[18:26])
        read, write = os.pipe()
        os.write(write, b"spliced")
        os.splice(read, fd, 7, offset_dst=30)
        out.append(area[28:39])
        os.posix_fallocate(fd, 0, 16384)
        out.append((os.fstat(fd).st_size, area[4094:4102]))
        os.pwritev(fd, [b"vec", b"tor"], 50)
        out.append(area[48:58])
        area.close()
        out.append(os.pread(fd, 10, 4094))
        area = mmap.mmap(fd, 12288)
        os.close(os.open("f", os.O_WRONLY | os.O_TRUNC))
        os.truncate("f", 8192)
        out.append((os.fstat(fd).st_size, area[4094:4102]))
        return out

    assert "keep" in assert_same(body).ok()


def test_between_processes(assert_same: AssertSame) -> None:
    """A child by fork and a program of its own share a counter; what they leave is in the file."""

    def body() -> list[object]:
        import mmap
        import os
        import subprocess
        import sys

        with open("f", "wb") as f:
            f.write(bytes(4096))
        fd = os.open("f", os.O_RDWR)
        area = mmap.mmap(fd, 4096)
        os.close(fd)
        if os.fork() == 0:
            area[0:5] = b"child"
            os._exit(0)
        os.wait()
        text = (
            "import mmap, os\n"
            "fd = os.open('f', os.O_RDWR)\n"
            "area = mmap.mmap(fd, 4096)\n"
            "print(area[0:5])\n"
            "area[10:15] = b'other'\n"
        )
        said = subprocess.run([sys.executable, "-c", text], capture_output=True, check=True).stdout
        seen = area[0:16]
        area[20:26] = b"parent"
        area.close()
        with open("f", "rb") as f:
            return [said, seen, f.read(30)]

    assert "parent" in assert_same(body).ok()


def test_truncated_mapping_gets_sigbus(assert_same: AssertSame) -> None:
    def body() -> list[int]:
        import mmap
        import os

        out = []
        for keep, at in ((4096, 4096), (0, 0), (10, 100), (8192, 8191)):
            fd = os.open("f", os.O_RDWR | os.O_CREAT)
            os.ftruncate(fd, 8192)
            area = mmap.mmap(fd, 8192)
            os.ftruncate(fd, keep)
            pid = os.fork()
            if pid == 0:
                area[at]
                os._exit(7)
            out.append(os.waitpid(pid, 0)[1])
        return out

    assert "[7, 7, 1792, 1792]" in assert_same(body).ok()


def test_what_is_stored_behind_the_end_is_not_in_the_file(runner: Runner, tmp_path: Path) -> None:
    def body() -> list[bytes]:
        import mmap
        import os

        def grown(how: str) -> bytes:
            fd = os.open("f", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            os.write(fd, b"x" * 4096)
            with mmap.mmap(fd, 4096) as mapping:
                os.ftruncate(fd, 10)
                mapping[10:100] = b"y" * 90  # in the last page, behind the end
                if how == "truncate":
                    os.ftruncate(fd, 20)
                elif how == "write":
                    os.pwrite(fd, b"z", 19)
                else:
                    os.posix_fallocate(fd, 0, 20)
                seen = os.pread(fd, 100, 0) + mapping[10:19]
            os.close(fd)
            return seen

        return [grown(how) for how in ("truncate", "write", "fallocate")]

    zeros = b"x" * 10 + bytes(9)
    expected = [zeros + b"\0" + bytes(9), zeros + b"z" + bytes(9), zeros + b"\0" + bytes(9)]
    # not compared with the host, whose tmpfs may keep it
    shown = runner.umvm(body, mounts=[f"memory:none:{tmp_path}"], options=["-C", str(tmp_path)])
    assert shown.ok() == f"result {expected!r}\n"


def test_times_and_size(assert_same: AssertSame) -> None:
    def body() -> list[object]:
        import mmap
        import os

        with open("f", "wb") as f:
            f.write(bytes(5000))
        os.utime("f", ns=(10**18, 10**18))
        fd = os.open("f", os.O_RDWR)
        area = mmap.mmap(fd, 5000)
        area[4999] = 1
        area.flush()
        st = os.stat("f")
        return [st.st_size, st.st_mtime_ns > 10**18]

    assert "[5000, True]" in assert_same(body).ok()


def test_executable_mapping(assert_same: AssertSame) -> None:
    """Code in a served file runs: mov eax, 42; ret."""

    def body() -> int:
        import ctypes
        import mmap
        import os

        fd = os.open("code", os.O_RDWR | os.O_CREAT)
        os.write(fd, b"\xb8\x2a\0\0\0\xc3")
        os.ftruncate(fd, 4096)
        everything = mmap.PROT_READ | mmap.PROT_EXEC | mmap.PROT_WRITE
        area = mmap.mmap(fd, 4096, mmap.MAP_PRIVATE, everything)
        address = ctypes.addressof(ctypes.c_char.from_buffer(area))
        result: int = ctypes.CFUNCTYPE(ctypes.c_int)(address)()
        return result

    assert "42" in assert_same(body).ok()


def test_mprotect_makes_it_writable(assert_same: AssertSame) -> None:
    def body() -> bytes:
        import ctypes
        import mmap
        import os

        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        with open("f", "wb") as f:
            f.write(bytes(4096))
        fd = os.open("f", os.O_RDWR)
        at = libc.mmap(None, ctypes.c_size_t(4096), 1, 1, fd, ctypes.c_long(0))
        assert libc.mprotect(ctypes.c_void_p(at), ctypes.c_size_t(4096), 3) == 0
        ctypes.memmove(at, b"stored", 6)
        libc.munmap(ctypes.c_void_p(at), ctypes.c_size_t(4096))
        os.close(fd)
        del mmap
        with open("f", "rb") as f:
            return f.read(6)

    assert "stored" in assert_same(body).ok()


def test_unlinked_and_renamed_while_mapped(assert_same: AssertSame) -> None:
    def body() -> list[object]:
        import mmap
        import os

        for name in ("gone", "old"):
            with open(name, "wb") as f:
                f.write(bytes(4096))
        gone, moved = os.open("gone", os.O_RDWR), os.open("old", os.O_RDWR)
        areas = [mmap.mmap(gone, 4096), mmap.mmap(moved, 4096)]
        os.unlink("gone")
        os.rename("old", "new")
        for area in areas:
            area[0:3] = b"abc"
            area.flush()
        out: list[object] = [os.pread(gone, 3, 0), os.fstat(gone).st_nlink]
        with open("new", "rb") as f:
            out.append(f.read(3))
        return out

    assert_same(body)


def test_sparse_and_far(assert_same: AssertSame) -> None:
    def body() -> list[object]:
        import mmap
        import os

        fd = os.open("f", os.O_RDWR | os.O_CREAT)
        far = 5 << 30
        os.pwrite(fd, b"start", 0)
        os.pwrite(fd, b"far", far)
        os.ftruncate(fd, far + 4096)
        area = mmap.mmap(fd, 4096, offset=far)
        out: list[object] = [area[0:3]]
        area[0:3] = b"FAR"
        area.flush()
        out += [os.pread(fd, 3, far), os.fstat(fd).st_size, os.fstat(fd).st_blocks < 1000]
        return out

    assert "True" in assert_same(body).ok()


def test_shared_library_is_loaded(
    assert_same: AssertSame, guest_binary: Compiler, tmp_path: Path
) -> None:
    library = guest_binary("io_library", "-shared", "-fPIC")
    text = (
        f"import ctypes, shutil\n"
        f"shutil.copy({str(library)!r}, 'lib.so')\n"
        f"lib = ctypes.CDLL('./lib.so')\n"
        f"print(lib.count(), lib.count(), ctypes.c_char_p.in_dll(lib, 'greeting').value)\n"
    )
    assert "1 2 b'hello'" in assert_same(["python3", "-I", "-c", text]).ok()


@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="sqlite3 is not installed")
def test_sqlite_with_a_write_ahead_log(assert_same: AssertSame) -> None:
    """Two processes, a shared memory index that is mapped, and byte range locks."""

    def body() -> list[object]:
        import os
        import sqlite3
        import subprocess
        import sys

        first = sqlite3.connect("db", timeout=20)
        out = first.execute("pragma journal_mode=wal").fetchall()
        first.execute("create table t (who text, n integer)")
        first.commit()
        text = (
            "import sqlite3, sys\n"
            "db = sqlite3.connect('db', timeout=20, isolation_level=None)\n"
            "db.execute('pragma mmap_size=1000000')\n"
            "for n in range(40):\n"
            "    db.execute('begin immediate')\n"
            "    db.execute('insert into t values (?, ?)', (sys.argv[1], n))\n"
            "    db.execute('commit')\n"
        )
        children = [subprocess.Popen([sys.executable, "-c", text, who]) for who in "ab"]
        out += [child.wait() for child in children]
        out += first.execute("select who, count(*), sum(n) from t group by who").fetchall()
        out += first.execute("pragma integrity_check").fetchall()
        out.append(sorted(os.listdir(".")))
        first.close()
        out.append(sorted(os.listdir(".")))
        return out

    assert "'ok'" in assert_same(body).ok()


def test_written_back_to_the_host(runner: Runner, tmp_path: Path) -> None:
    """What a guest stored is in the file behind the mount when the VM has ended, even by a kill."""
    behind, point = tmp_path / "behind", tmp_path / "mnt"
    behind.mkdir()
    point.mkdir()
    (behind / "f").write_bytes(bytes(8192))
    text = (
        "import mmap, os, signal\n"
        "fd = os.open('f', os.O_RDWR)\n"
        "area = mmap.mmap(fd, 8192)\n"
        "area[4096:4100] = b'kept'\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    result = runner.umvm(
        ["sh", "-c", 'cd "$0" && exec python3 -I -c "$1"', str(point), text],
        mounts=[f"passthrough:{behind}:{point}"],
    )
    assert result.status == 137
    assert (behind / "f").read_bytes()[4096:4100] == b"kept"
