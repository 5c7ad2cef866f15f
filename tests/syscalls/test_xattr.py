"""Extended attributes by path, link, descriptor and with the *xattrat calls, as on tmpfs."""

from __future__ import annotations

from vfs_oracle import Oracle


def test_values_and_names(same_on_tmpfs: Oracle) -> None:
    """Setting, reading, listing and removing; sizes, flags, names too long or of no kind."""

    def body() -> list[object]:
        import itertools
        import os

        out: list[object] = []
        os.mkdir("d")
        os.mkfifo("p")
        open("f", "w").close()
        os.symlink("f", "l")
        os.symlink("gone", "lost")

        def attempt(action: object, *args: object, **keywords: object) -> None:
            try:
                out.append(action(*args, **keywords))  # type: ignore[operator]
            except OSError as error:
                out.append(error.errno)

        names = (
            "user.a",
            "user.b" * 40,
            "user." + "x" * 251,
            "user.",
            "",
            "a",
            "system.a",
            "trusted.a",
        )
        for path, name in itertools.product(("f", "d", "p", "l", "lost", "gone"), names):
            for follow in (True, False):
                attempt(os.setxattr, path, name, b"value", follow_symlinks=follow)
                attempt(os.getxattr, path, name, follow_symlinks=follow)
                attempt(os.removexattr, path, name, follow_symlinks=follow)
                attempt(os.removexattr, path, name, follow_symlinks=follow)
        for flags in (
            0,
            os.XATTR_REPLACE,
            os.XATTR_CREATE,
            os.XATTR_CREATE,
            os.XATTR_REPLACE,
            3,
            4,
        ):
            attempt(os.setxattr, "f", "user.flags", b"%d" % flags, flags)
            attempt(os.getxattr, "f", "user.flags")
        for size in (0, 1, 1000, 60_000, 65_536, 65_537):
            attempt(os.setxattr, "f", "user.size", b"s" * size)
            attempt(lambda: len(os.getxattr("f", "user.size")))
        fd = os.open("f", os.O_RDWR)
        attempt(os.setxattr, fd, "user.fd", b"by descriptor")
        attempt(os.getxattr, "f", "user.fd")
        path_only = os.open("f", os.O_PATH)
        attempt(os.getxattr, path_only, "user.fd")
        out.append(sorted(os.listxattr("f")))
        os.link("f", "g")
        os.unlink("f")
        out.append(sorted(os.listxattr("g")))
        os.unlink("g")
        attempt(os.setxattr, fd, "user.late", b"nameless")
        attempt(os.getxattr, fd, "user.late")
        out.append(sorted(os.listxattr(fd)))
        return out

    assert "by descriptor" in same_on_tmpfs(body).ok()


def test_raw_calls(same_on_tmpfs: Oracle) -> None:
    """Buffers that are too small or bad, and the calls of Linux 6.13 with struct xattr_args."""

    def body() -> list[object]:
        import ctypes
        import os
        import struct

        libc = ctypes.CDLL(None, use_errno=True)
        libc.syscall.restype = ctypes.c_long
        room = ctypes.create_string_buffer(100)
        out: list[object] = []

        def call(*args: object) -> None:
            plain = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
            result = libc.syscall(*plain)
            out.append(-ctypes.get_errno() if result < 0 else result)

        open("f", "w").close()
        os.symlink("f", "l")
        os.setxattr("f", "user.a", b"12345")
        for size in (0, 4, 5, 100):
            call(191, b"f", b"user.a", room, size)
            call(194, b"f", room, size + 2)
        call(191, b"f", b"user.a", ctypes.c_void_p(1), 100)
        call(191, b"f", ctypes.c_void_p(1), room, 100)
        call(188, b"f", b"user.b", ctypes.c_void_p(1), 5, 0)
        call(188, b"f", b"user.b", None, 0, 0)
        call(188, ctypes.c_void_p(1), b"user.b", b"x", 1, 0)
        value = ctypes.create_string_buffer(b"by struct")
        for size, flags, tail in (
            (16, 0, 0),
            (15, 0, 0),
            (24, 0, 0),
            (24, 0, 1),
            (16, 9, 0),
            (5000, 0, 0),
        ):
            text = struct.pack("<QIIQ", ctypes.addressof(value), 9, flags, tail).ljust(5000, b"\0")
            call(463, -100, b"f", 0, b"user.c", text, size)
            call(464, -100, b"f", 0, b"user.c", text, size)
        for flags in (0, 0x100, 0x1000, 0x200):
            call(465, -100, b"l", flags, room, 100)
            call(466, -100, b"l", flags, b"user.none")
        fd = os.open("f", os.O_RDONLY)
        call(465, fd, b"", 0x1000, room, 100)
        call(466, fd, b"", 0x1000, b"user.a")
        call(465, fd, b"", 0, room, 100)
        return [*out, sorted(os.listxattr("f"))]

    assert "user.b" in same_on_tmpfs(body).ok()
