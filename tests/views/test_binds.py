"""Bind mounts: the host's own (as root, in a mount namespace) is the oracle for the VM's."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import UMVM, Body, Result, Runner, argv_of, compare

Run = Callable[..., Result]


def _can_mount() -> bool:
    probe = ["unshare", "-m", "--propagation", "private", "true"]
    return os.geteuid() == 0 and subprocess.run(probe, check=False).returncode == 0


class Both:
    """Runs a body in a tree with `src` (a directory) and `dst`, on the host and in a VM."""

    def __init__(self, runner: Runner, place: Path) -> None:
        self._runner, self._place = runner, place

    def _tree(self) -> None:
        shutil.rmtree(self._place, ignore_errors=True)
        for name in ("src/sub/deep", "dst", "other", "again"):
            (self._place / name).mkdir(parents=True)
        (self._place / "src/f").write_text("data\n")
        (self._place / "src/sub/g").write_text("more\n")
        (self._place / "file").write_text("over\n")
        (self._place / "src/rel").symlink_to("sub/g")
        (self._place / "src/abs").symlink_to(self._place / "dst/f")
        (self._place / "src/up").symlink_to("../file")

    def __call__(self, body: Body, *options: str) -> str:
        self._tree()
        vm = self._runner.umvm(argv_of(body), options=["-C", str(self._place), *options])
        text = vm.ok().replace(str(self._place), "T")
        if _can_mount():
            self._tree()
            alone = ["unshare", "-m", "--propagation", "private", *argv_of(body)]
            native = self._runner.run(alone, cwd=self._place)
            compare(native, vm)
        return text


@pytest.fixture
def both(runner: Runner, tmp_path: Path) -> Both:
    return Both(runner, tmp_path / "t")


def test_path_only(both: Both) -> None:
    """Descriptors with O_PATH, of each kind of file, and what can be done with them."""

    def body() -> list[object]:
        import ctypes
        import os

        out: list[object] = []
        os.mkfifo("src/p")
        assert ctypes.CDLL(None).mount(b"src", b"dst", None, 4096, None) == 0
        for name in (
            "dst",
            "dst/f",
            "dst/sub",
            "dst/rel",
            "dst/abs",
            "dst/p",
            "dst/none",
            "dst/sub/..",
        ):
            for flags in (0, os.O_DIRECTORY, os.O_NOFOLLOW, os.O_NOFOLLOW | os.O_DIRECTORY):
                try:
                    fd = os.open(name, os.O_PATH | flags)
                except OSError as error:
                    out.append((name, flags, error.errno))
                    continue
                st, there = os.fstat(fd), os.path.exists(f"/proc/self/fd/{fd}")
                out.append(
                    (name, flags, st.st_mode, st.st_size if st.st_mode & 0o100000 else 0, there)
                )
                if st.st_mode & 0o170000 == 0o040000:
                    out.append(sorted(os.listdir(f"/proc/self/fd/{fd}")))
                    inner = os.open("sub/g", os.O_RDONLY, dir_fd=fd) if "sub" not in name else -1
                    out.append(os.read(inner, 9) if inner >= 0 else None)
                os.close(fd)
        return out

    assert "more" in both(body)


def test_names(both: Both) -> None:
    """Paths, "..", links, cwd and /proc/self show the path that was used, whichever it was."""

    def body() -> list[object]:
        import ctypes
        import os

        top = os.getcwd()
        libc = ctypes.CDLL(None, use_errno=True)
        out: list[object] = [libc.mount(b"src", b"dst", None, ctypes.c_ulong(4096), None)]

        def names(*fds: int) -> list[str]:
            return [os.readlink(f"/proc/self/fd/{fd}").replace(top, "T") for fd in fds]

        same = [
            os.path.samestat(os.stat(f"src{p}"), os.stat(f"dst{p}")) for p in ("", "/f", "/sub")
        ]
        out += [same, [open(f"dst/{n}").read() for n in ("f", "rel", "up", "abs")]]
        a, b = os.open("dst/sub", os.O_RDONLY), os.open("src/sub", os.O_RDONLY)
        both = [os.open(p, os.O_RDONLY, dir_fd=d) for d in (a, b) for p in ("g", "..", "../..")]
        out.append(names(a, b, *both))
        for step in ("dst/sub", "deep", "../../..", "src/sub", ".."):
            os.chdir(step)
            out.append([os.getcwd().replace(top, "T"), sorted(os.listdir("."))])
        out.append([os.readlink("/proc/self/cwd").replace(top, "T"), names(os.open("f", 0))])
        for fd in (a, b):
            os.fchdir(fd)
            os.chdir("..")
            out.append(os.getcwd().replace(top, "T"))
        os.chdir(top)
        kept = os.dup(a)
        if (pid := os.fork()) == 0:
            os.fchdir(kept)
            os.execvp("sh", ["sh", "-c", "pwd -P; cd ..; pwd -P; cat f; readlink /proc/$$/cwd"])
        os.waitpid(pid, 0)
        real = [os.path.realpath(p).replace(top, "T") for p in ("dst/rel", "src/rel", "dst/abs")]
        return [*out, real]

    assert "T/dst/sub/g" in both(body)


def test_only_paths(both: Both) -> None:
    """Descriptors that were opened with O_PATH, and links that execveat doesn't follow."""

    def body() -> list[object]:
        import ctypes
        import errno
        import os
        import stat

        libc = ctypes.CDLL(None, use_errno=True)
        out: list[object] = [libc.mount(b"src", b"dst", None, ctypes.c_ulong(4096), None)]
        top = os.getcwd()

        def attempt(action: object, *args: object, **more: object) -> object:
            try:
                return action(*args, **more)  # type: ignore[operator]
            except OSError as error:
                return errno.errorcode[error.errno or 0]

        for path in ("dst", "dst/sub", "dst/f", "dst/rel", "dst/gone", "dst/f/x"):
            for more in (0, os.O_DIRECTORY, os.O_NOFOLLOW, os.O_CLOEXEC | os.O_WRONLY | os.O_CREAT):
                fd = attempt(os.open, os.path.abspath(path), os.O_PATH | more)
                if not isinstance(fd, int):
                    out.append(fd)
                    continue
                out.append([oct(stat.S_IFMT(os.fstat(fd).st_mode)), os.get_inheritable(fd)])
                out += [attempt(os.read, fd, 1), attempt(os.fchmod, fd, 0o700)]
                inner = attempt(os.open, "g", os.O_PATH, dir_fd=fd)
                out.append(isinstance(inner, int) or inner)
                out.append(
                    [attempt(os.fchdir, fd), os.listdir(".") == os.listdir("/proc/self/cwd")]
                )
                os.chdir(top)
        number = ctypes.c_long(322)
        arguments = (ctypes.c_char_p * 2)(b"x", None)
        for name in (b"rel", b"f", b"gone", b"sub"):
            whole = os.path.abspath(b"dst/" + name)
            libc.syscall(number, -100, whole, arguments, None, 0x100)
            out.append(errno.errorcode[ctypes.get_errno()])

        def link(directory: int, old: str, new: str) -> str:
            failed = libc.linkat(directory, old.encode(), -100, new.encode(), 0x400)
            return errno.errorcode[ctypes.get_errno()] if failed else "linked"

        for place, new in (("dst", "dst/n"), ("dst", "other/n"), ("other", "dst/m")):
            fd = attempt(os.open, place, os.O_TMPFILE | os.O_RDWR, 0o600)
            out.append(isinstance(fd, int) and link(-100, f"/proc/self/fd/{fd}", new))
        os.mkdir("dst/old")
        directory = os.open("dst/old", os.O_RDONLY)
        os.rmdir("dst/old")
        out += [link(directory, "x", "dst/y"), link(-100, "/proc/self/status", "dst/y")]
        return out

    text = both(body)
    assert text.count("0o100000") == 5 and "ELOOP" in text


def test_changes(both: Both) -> None:
    """What is changed there is changed; EXDEV between mounts, EBUSY for mount points and users."""

    def body() -> list[object]:
        import ctypes
        import errno
        import mmap
        import os

        libc = ctypes.CDLL(None, use_errno=True)
        out: list[object] = []

        def attempt(action: object, *args: object, **more: object) -> str:
            try:
                action(*args, **more)  # type: ignore[operator]
            except OSError as error:
                return errno.errorcode[error.errno or 0]
            return "ok"

        def call(name: str, *args: object) -> str:
            plain = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in args]
            result = getattr(libc, name)(*plain)
            return errno.errorcode[ctypes.get_errno()] if result else "ok"

        out += [call("mount", s, t, None, 4096, None) for s, t in (
            (b"src", b"dst"), (b"file", b"src/f"), (b"src", b"file"), (b"file", b"dst"),
            (b"gone", b"dst"), (b"src", b"gone"), (b"", b"dst"), (b"src/sub", b"again"),
        )]  # fmt: skip
        out += [open("src/f").read(), open("dst/f").read(), os.listdir("again")]
        for old, new in (
            ("dst/f", "other/f"), ("dst/f", "src/x"), ("dst/f", "dst/x"), ("dst", "d"),
            ("other", "dst"), ("dst/gone", "other/f"), ("src/f", "src/y"), ("dst/x", "src/f"),
            ("again/g", "dst/sub/h"), ("again/g", "again/h"),
        ):  # fmt: skip
            out.append([attempt(os.link, old, new), attempt(os.rename, old, new)])
        out += [attempt(os.rmdir, "dst"), attempt(os.unlink, "dst"), attempt(os.unlink, "src/f")]
        out += [attempt(os.rmdir, "dst/sub/deep"), os.path.exists("src/sub/deep")]
        mask = os.umask(0o027)
        with open("dst/new", "w+b") as file:
            file.write(b"x" * 4096)
            file.flush()
            with mmap.mmap(file.fileno(), 4096) as memory:
                memory[:3] = b"abc"
            out += [open("src/new", "rb").read(4), oct(os.stat("src/new").st_mode)]
            out.append(call("umount2", b"dst", 0))
        os.mkdir("again/dir")
        out.append(oct(os.stat("src/sub/dir").st_mode))
        os.umask(mask)
        os.chdir("again")
        out.append(call("umount2", b"../again", 0))
        os.chdir("..")
        out += [call("umount2", p, 0) for p in (b"dst/sub", b"dst", b"dst", b"again", b"src/f")]
        return [*out, os.listdir("dst"), open("src/f").read()]

    assert "EXDEV" in both(body)


def test_read_only(both: Both) -> None:
    """EROFS by all ways to change a file of a read-only bind mount, and by none the source's."""

    def body() -> list[object]:
        import ctypes
        import errno
        import os

        libc = ctypes.CDLL(None, use_errno=True)
        out: list[object] = []

        def attempt(action: object, *args: object, **more: object) -> str:
            try:
                action(*args, **more)  # type: ignore[operator]
            except OSError as error:
                return errno.errorcode[error.errno or 0]
            return "ok"

        def mount(source: bytes | None, target: bytes, flags: int) -> str:
            result = libc.mount(source, target, None, ctypes.c_ulong(flags), None)
            return errno.errorcode[ctypes.get_errno()] if result else "ok"

        os.mkfifo("src/p")
        out += [mount(b"src", b"dst", 4096), mount(None, b"dst", 4096 | 32 | 1)]
        out.append(bool(os.statvfs("dst").f_flag & os.ST_RDONLY))
        fd = os.open("dst/f", os.O_RDONLY)
        directory = os.open("dst", os.O_RDONLY)
        inner = os.open("sub", os.O_RDONLY, dir_fd=directory)
        where = os.getcwd()
        for place in (None, "dst"):
            if place:
                os.chdir(place)
            at = "" if place else "dst/"
            for do, *args in (
                (os.mkdir, "sub"), (os.mkdir, "n"), (os.unlink, "f"), (os.unlink, "n"),
                (os.rmdir, "sub"), (os.symlink, "x", "n"), (os.symlink, "x", "f"),
                (os.mkfifo, "n"), (os.chmod, "f", 0o600), (os.chown, "f", -1, -1),
                (os.utime, "f"), (os.truncate, "f", 0), (os.truncate, "sub", 0),
                (os.setxattr, "f", "user.a", b""), (os.open, "f", os.O_RDWR),
                (os.open, "sub", os.O_RDWR), (os.open, "f", os.O_CREAT), (os.open, "n", os.O_CREAT),
                (os.open, "f", os.O_TRUNC), (os.open, "p", os.O_RDWR), (os.stat, "f"),
                (os.open, "sub", os.O_TMPFILE | os.O_RDWR), (os.open, "f", os.O_CREAT | os.O_EXCL),
                (os.listdir, "sub"), (os.open, "rel", os.O_WRONLY), (os.open, "up", os.O_WRONLY),
            ):  # fmt: skip
                index = 1 if do is os.symlink else 0
                args[index] = at + str(args[index])
                out.append(attempt(do, *args))
            out += [attempt(os.rename, at + "f", at + "g"), attempt(os.link, at + "f", at + "g")]
            out += [os.access(at + n, os.W_OK) for n in ("f", "p", "sub", "gone")]
            out.append(os.access(at + "f", os.R_OK))
        os.chdir(where)
        out += [
            attempt(os.chmod, fd, 0o600), attempt(os.chown, fd, -1, -1), attempt(os.utime, fd),
            attempt(os.chmod, directory, 0), attempt(os.setxattr, fd, "user.a", b""),
            attempt(os.ftruncate, fd, 0),
        ]  # fmt: skip
        for base in (directory, inner):
            out += [attempt(os.mkdir, "n", dir_fd=base), attempt(os.unlink, "g", dir_fd=base)]
            out.append(attempt(os.open, "n", os.O_CREAT | os.O_WRONLY, dir_fd=base))
        out += [attempt(os.chmod, "src/f", 0o640), attempt(os.unlink, "src/sub/g")]
        out += [
            mount(None, b"dst", 4096 | 32),
            attempt(os.unlink, "dst/f"),
            os.path.exists("src/f"),
        ]
        return out

    assert "EROFS" in both(body)


def test_files_and_tables(both: Both) -> None:
    """A file on a file; /proc/self/mounts and mountinfo name what is mounted, stacked mounts too."""

    def body() -> list[object]:
        import ctypes
        import os
        import subprocess

        top = os.getcwd()
        libc = ctypes.CDLL(None, use_errno=True)
        flag = ctypes.c_ulong(4096)
        out: list[object] = [
            libc.mount(source, target, None, flag, None)
            for source, target in (
                (b"file", b"src/f"), (b"src", b"dst"), (b"other", b"dst"), (b"/usr", b"again"),
            )
        ]  # fmt: skip
        lines = [line.split() for line in open("/proc/self/mountinfo") if top in line]
        out.append([(w[4].replace(top, "T"), w[3].replace(top, "T")[-8:]) for w in lines])
        lines = [line.split() for line in open("/proc/self/mounts") if top in line]
        out.append([(w[1].replace(top, "T"), w[2]) for w in lines])
        out += [open("src/f").read(), os.listdir("dst")]
        for path in ("src/f/", "src/f/x", "src/f/.", "dst/../file"):
            try:
                out.append(os.stat(path).st_size)
            except OSError as error:
                out.append(error.errno)
        os.chdir("again/bin")
        ran = subprocess.run(["./cat", "/proc/self/cmdline"], stdout=subprocess.PIPE, check=True)
        out += [ran.stdout, os.getcwd().replace(top, "T")]
        exe = subprocess.run(["./readlink", "/proc/self/exe"], stdout=subprocess.PIPE, check=True)
        return [*out, exe.stdout.decode().replace(top, "T").rpartition("/")[2]]

    assert "T/dst" in both(body)


def test_commands(runner: Runner, tmp_path: Path) -> None:
    """`umvm mount --bind` and -t bind, --bind of `umvm run`, and what is refused."""
    (tmp_path / "s").mkdir()
    (tmp_path / "s/f").write_text("seen\n")
    (tmp_path / "t").mkdir()
    umvm = " ".join(UMVM)
    script = f"""
        {umvm} mount --bind s t; cat t/f; {umvm} umount t; ls t
        {umvm} mount -t bind -o ro s t; {{ echo x > t/f; }} 2>/dev/null || echo refused; cat s/f
        {umvm} mounts | tail -n 1 | cut -d ' ' -f 1; cat b
        {umvm} mount s t 2>&1; echo $?; {umvm} mount --bind gone t 2>&1; echo $?
        {umvm} mount --bind -o size=1 s t 2>&1; echo $?
    """
    ran = runner.umvm(
        script, options=["-C", str(tmp_path), "--bind", "/etc/passwd:b"], cwd=tmp_path
    )
    lines = ran.ok().splitlines()
    assert lines[:4] == ["seen", "refused", "seen", "bind"]
    assert Path("/etc/passwd").read_text().splitlines() == lines[4:-6]
    assert lines[-5:-4] == ["2"] and lines[-3] == "3" and lines[-1] == "1"
    assert not (tmp_path / "b").exists()
