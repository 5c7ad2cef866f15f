"""Modes, owners, times and sizes change as on tmpfs."""

from __future__ import annotations

from vfs_oracle import Oracle, guest


def test_which_times_change(same_on_tmpfs: Oracle) -> None:
    """What each call does to the times of the file and of its directory."""
    lines = same_on_tmpfs(guest("vfs_table", "times")).ok().splitlines()
    assert any(line.startswith("rmdir .:") and line.endswith("mc e!") for line in lines)


def test_times_as_asked(same_on_tmpfs: Oracle) -> None:
    """utime, utimes, futimesat and utimensat: values kept, also before 1970, and refused."""

    def body() -> list[object]:
        import ctypes
        import itertools
        import os
        import struct

        libc = ctypes.CDLL(None, use_errno=True)
        fd = os.open("f", os.O_CREAT | os.O_RDWR)
        os.symlink("f", "l")
        out: list[object] = []

        def call(*args: object) -> None:
            plain = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
            result = libc.syscall(*plain)
            out.append(ctypes.get_errno() if result < 0 else 0)

        now, keep = (1 << 30) - 1, (1 << 30) - 2
        for seconds, nanos in itertools.product((0, 1, -1, 2**31, -(2**31)), (0, 1, 10**9 - 1)):
            call(280, -100, b"f", struct.pack("<qqqq", seconds, nanos, seconds + 1, nanos), 0)
            info = os.stat("f")
            out.append((info.st_atime_ns, info.st_mtime_ns))
        for pair in itertools.product((0, now, keep, 10**9, -1), repeat=2):
            os.utime(fd, ns=(7, 8))
            call(280, -100, b"f", struct.pack("<qqqq", 3, pair[0], 4, pair[1]), 0)
            info = os.stat("f")
            out.append((pair, min(info.st_atime_ns, 10**18), min(info.st_mtime_ns, 10**18)))
        call(280, fd, None, struct.pack("<qqqq", 5, 5, 6, 6), 0)
        call(280, fd, None, None, 0x100)
        call(280, -100, None, None, 0)
        call(280, 99, b"", None, 0)
        call(280, -100, b"f", ctypes.c_void_p(1), 0)
        call(235, b"f", struct.pack("<qqqq", 9, 999999, 10, 5))
        out.append((os.stat("f").st_atime_ns, os.stat("f").st_mtime_ns))
        call(235, b"f", struct.pack("<qqqq", 9, 10**6, 10, 5))
        call(132, b"f", struct.pack("<qq", 11, 12))
        call(132, b"gone", None)
        call(261, fd, None, struct.pack("<qqqq", 13, 1, 14, 2))
        out.append((os.stat("f").st_atime_ns, os.stat("f").st_mtime_ns))
        os.utime("l", (1, 2), follow_symlinks=False)
        out.append((os.lstat("l").st_mtime, os.stat("l").st_mtime))
        return out

    assert "2147483648000000001" in same_on_tmpfs(body).ok()


def test_sizes(same_on_tmpfs: Oracle) -> None:
    """truncate: growing is zeros, limits are EFBIG with SIGXFSZ, a mapping sees the new size."""

    def body() -> list[object]:
        import mmap
        import os
        import resource
        import signal

        out: list[object] = []
        with open("f", "wb") as file:
            file.write(b"x" * 5000)
        fd = os.open("f", os.O_RDWR)
        memory = mmap.mmap(fd, 5000)
        os.truncate("f", 100)
        out += [os.fstat(fd).st_size, bytes(memory[98:103])]
        os.truncate("f", 6000)
        memory[4999] = 65
        memory.flush()
        out += [os.fstat(fd).st_size, os.pread(fd, 3, 4999), os.pread(fd, 3, 98)]
        os.close(os.open("f", os.O_TRUNC | os.O_WRONLY))
        out += [os.fstat(fd).st_size, os.stat("f").st_blocks]
        caught: list[int] = []
        signal.signal(signal.SIGXFSZ, lambda number, _: caught.append(number))
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        for size in (10_000, 10_001, 9_000):
            try:
                os.truncate("f", size)
                out.append(size)
            except OSError as error:
                out.append(error.errno)
        out.append(len(caught))
        for name, size in ((".", 1), ("gone", 1), ("f", -1)):
            try:
                os.truncate(name, size)
            except OSError as error:
                out.append(error.errno)
        return out

    assert "[100, " in same_on_tmpfs(body).ok()


def test_statx(same_on_tmpfs: Oracle) -> None:
    """The fields of statx, those that a file system chooses itself apart."""

    def body() -> list[object]:
        import ctypes
        import os
        import struct

        libc = ctypes.CDLL(None, use_errno=True)
        out: list[object] = []
        os.mkdir("d")
        os.mkfifo("p")
        os.symlink("d", "l")
        with open("f", "w") as file:
            file.write("x" * 10_000)
        os.utime("f", ns=(1_000_000_001, 2_000_000_002))
        room = ctypes.create_string_buffer(256)
        for path, flags in ((b"f", 0), (b"d", 0), (b"p", 0), (b"l", 0), (b"l", 0x100), (b".", 0)):
            assert libc.syscall(332, -100, path, flags, 0xFFF, room) == 0
            mask, _, attributes, links, uid, gid, mode = struct.unpack_from("<IIQIIIH", room.raw)
            ino, size = struct.unpack_from("<QQ", room.raw, 32)
            stamps = struct.unpack_from("<qIiqIiqIiqIi", room.raw, 64)
            device = struct.unpack_from("<IIII", room.raw, 128)
            info = os.stat(path) if not flags else os.lstat(path)
            out.append(
                (path, mask & 0xFFF, attributes & 0x2000, links, mode, mode >> 12 == 4 or size)
            )
            out.append((uid, gid) == (info.st_uid, info.st_gid) and ino == info.st_ino)
            out.append(os.makedev(*device[2:]) == info.st_dev)
            out.append(stamps[0] * 10**9 + stamps[1] == info.st_atime_ns)
            out.append(stamps[9] * 10**9 + stamps[10] == info.st_mtime_ns)
            out.append(stamps[6] * 10**9 + stamps[7] == info.st_ctime_ns)
            out.append(0 < stamps[3] * 10**9 + stamps[4] <= info.st_ctime_ns)
        return out

    assert "False" not in same_on_tmpfs(body).ok()
