"""mount(2) and umount2(2) of guests: the view changes, with the errors of the kernel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from harness import Result

Run = Callable[..., Result]


def test_mounting(umvm_run: Run, tmp_path: Path) -> None:
    """A guest mounts, uses, and unmounts; what can't be done is refused with the right errno."""

    def body() -> list[object]:
        import ctypes
        import errno
        import os

        libc = ctypes.CDLL(None, use_errno=True)
        out: list[object] = []

        def call(name: str, *args: object) -> str:
            plain = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in args]
            result = getattr(libc, name)(*plain)
            return errno.errorcode[ctypes.get_errno()] if result else "ok"

        os.mkdir("m")
        open("f", "w").close()
        os.symlink("m", "l")
        out += [
            call("mount", b"none", b"m", b"nothing", 0, None),
            call("mount", b"none", b"gone", b"memory", 0, None),
            call("mount", b"none", b"f", b"memory", 0, None),
            call("mount", b"none", b"m", b"memory", 0, b"size=x"),
            call("mount", b"m", b"m", None, 8192, None),
            call("mount", None, b"m", None, 32, None),
            call("mount", b"none", b"m", ctypes.c_char_p(None), 0, None),
            call("umount2", b"m", 0),
            call("umount2", b"m", 64),
            call("mount", b"none", b"m", b"memory", 0, b"size=1m,mode=755"),
        ]
        dev = os.stat("m").st_dev
        out += [
            oct(os.stat("m").st_mode),
            dev != os.stat(".").st_dev,
            os.stat("m/..").st_dev != dev,
        ]
        out.append(os.statvfs("m").f_blocks * os.statvfs("m").f_frsize)
        with open("m/file", "w") as file:
            file.write("content")
            out.append(call("umount2", b"m", 0))
        out += [call("rmdir", b"m"), call("rename", b"m", b"n"), call("rename", b"m/file", b"file")]
        out += [call("link", b"m/file", b"file"), call("unlink", b"m")]
        out += [call("umount2", b"l", 8), call("umount2", b"m", 5)]
        os.chdir("m")
        out.append(call("umount2", b".", 0))
        os.chdir("..")
        out += [call("umount2", b"m", 4), os.path.exists("m/file"), call("umount2", b"m", 4)]
        out += [os.listdir("m"), call("mount", b"none", b"l", b"tmpfs", 0, None)]
        fd = os.open("m/kept", os.O_CREAT | os.O_RDWR)
        out += [
            call("umount2", b"m", 2),
            os.listdir("m"),
            os.write(fd, b"still"),
            os.pread(fd, 9, 0),
        ]
        return out

    text = umvm_run(body, options=["-C", str(tmp_path)]).ok()
    assert (
        text
        == "result "
        + repr(
            [
                *("ENODEV", "ENOENT", "ENOTDIR", "EINVAL", "EPERM", "EINVAL", "EINVAL", "EINVAL"),
                *(
                    "EINVAL",
                    "ok",
                    "0o40755",
                    True,
                    True,
                    1 << 20,
                    "EBUSY",
                    "EBUSY",
                    "EBUSY",
                    "EXDEV",
                ),
                *("EXDEV", "EISDIR", "EINVAL", "EINVAL", "EBUSY", "EAGAIN", True, "ok", [], "ok"),
                *("ok", [], 5, b"still"),
            ]
        )
        + "\n"
    )


def test_read_only(umvm_run: Run, tmp_path: Path) -> None:
    """EROFS from all that would change a read-only mount, in the order of the kernel's checks."""

    def body() -> list[object]:
        import ctypes
        import errno
        import os

        libc = ctypes.CDLL(None, use_errno=True)
        out: list[object] = []

        def mount(flags: int) -> str:
            result = libc.mount(None, b".", None, ctypes.c_ulong(flags), None)
            return errno.errorcode[ctypes.get_errno()] if result else "ok"

        def attempt(action: object, *args: object) -> str:
            try:
                action(*args)  # type: ignore[operator]
            except OSError as error:
                return errno.errorcode[error.errno or 0]
            return "ok"

        os.makedirs("d/e")
        os.mkfifo("p")
        os.symlink("f", "l")
        with open("f", "w") as file:
            file.write("x")
            out.append(mount(33))
        out += [mount(33), bool(os.statvfs(".").f_flag & os.ST_RDONLY)]
        for action, *args in (
            (os.mkdir, "d"), (os.mkdir, "n"), (os.unlink, "f"), (os.unlink, "n"), (os.rmdir, "d"),
            (os.rmdir, "n"), (os.rename, "f", "g"), (os.rename, "n", "g"), (os.link, "f", "g"),
            (os.link, "f", "d"), (os.symlink, "x", "n"), (os.symlink, "x", "f"),
            (os.mkfifo, "n"), (os.chmod, "f", 0o600), (os.chown, "f", -1, -1), (os.utime, "f"),
            (os.truncate, "f", 0), (os.truncate, "d", 0), (os.setxattr, "f", "user.a", b""),
            (os.removexattr, "f", "user.a"), (os.open, "f", os.O_RDWR), (os.open, "d", os.O_RDWR),
            (os.open, "f", os.O_CREAT), (os.open, "n", os.O_CREAT), (os.open, "f", os.O_TRUNC),
            (os.open, "p", os.O_RDWR), (os.open, "d", os.O_TMPFILE | os.O_RDWR), (os.stat, "f"),
            (os.open, "f", os.O_CREAT | os.O_EXCL), (os.listdir, "d"), (os.unlink, "f/"),
        ):  # fmt: skip
            out.append(attempt(action, *args))
        out += [os.access("f", os.W_OK), os.access("p", os.W_OK), os.access("f", os.R_OK)]
        out += [mount(32), attempt(os.mkdir, "n")]
        return out

    mounts = [f"memory:none:{tmp_path}"]
    text = umvm_run(body, mounts=mounts, options=["-C", str(tmp_path)]).ok()
    assert (
        text
        == "result "
        + repr(
            [
                *(
                    "EBUSY",
                    "ok",
                    True,
                    "EEXIST",
                    "EROFS",
                    "EROFS",
                    "EROFS",
                    "EROFS",
                    "EROFS",
                    "EROFS",
                ),
                *(
                    "EROFS",
                    "EROFS",
                    "EEXIST",
                    "EROFS",
                    "EEXIST",
                    "EROFS",
                    "EROFS",
                    "EROFS",
                    "EROFS",
                ),
                *(
                    "EROFS",
                    "EISDIR",
                    "EROFS",
                    "EROFS",
                    "EROFS",
                    "EISDIR",
                    "ok",
                    "EROFS",
                    "EROFS",
                    "ok",
                ),
                *("EROFS", "ok", "EEXIST", "ok", "EROFS", False, True, True, "ok", "ok"),
            ]
        )
        + "\n"
    )
