"""open, openat2 and O_TMPFILE behave as on tmpfs; FIFOs and devices on a mount are real ones."""

from __future__ import annotations

from vfs_oracle import Oracle, guest


def test_flags_on_every_kind_of_file(same_on_tmpfs: Oracle) -> None:
    """All combinations of access modes and O_CREAT … O_PATH on files, links, directories…"""
    lines = same_on_tmpfs(guest("vfs_table", "open"), timeout=55).ok().splitlines()
    assert len(lines) > 5000


def test_descriptors_of_every_kind(same_on_tmpfs: Oracle) -> None:
    """Calls on descriptors of every kind, O_PATH and O_TMPFILE too; after removal as well."""
    lines = same_on_tmpfs(guest("vfs_table", "fds")).ok().splitlines()
    assert len(lines) > 600


def test_openat2(same_on_tmpfs: Oracle) -> None:
    """RESOLVE_* and struct open_how: sizes, unknown bits, modes without O_CREAT."""

    def body() -> list[object]:
        import ctypes
        import itertools
        import os
        import struct

        libc = ctypes.CDLL(None, use_errno=True)
        os.makedirs("d/e")
        open("d/f", "w").close()
        for target, name in (("f", "d/lf"), ("../d/f", "d/out"), ("/", "d/root"), ("e", "d/le")):
            os.symlink(target, name)
        os.symlink(os.path.abspath("d/f"), "d/abs")
        top = os.open("d", os.O_PATH)
        out: list[object] = []
        paths = (
            b"f", b"lf", b"out", b"abs", b"root", b"le", b"..", b"e/../f", b"/f", b"/proc/self",
            b"le/../f", b"e/../../d/f", b".", b"/proc/self/fd/0", b"le/.", b"root/proc",
        )  # fmt: skip
        for path, resolve in itertools.product(paths, (0, 1, 2, 4, 8, 16, 12, 20, 24, 32, 64)):
            how = struct.pack("<QQQ", 0, 0, resolve)
            fd = libc.syscall(437, top, path, how, 24)
            out.append((path, resolve, ctypes.get_errno() if fd < 0 else "ok"))
            if fd >= 0:
                os.close(fd)
        for flags, mode, size, tail in itertools.product(
            (0, os.O_CREAT | os.O_RDWR, os.O_PATH, 1 << 40, os.O_PATH | os.O_RDWR),
            (0, 0o600, 0o17777), (0, 23, 24, 32, 4096, 4097), (0, 1),
        ):  # fmt: skip
            how = (struct.pack("<QQQ", flags, mode, 0) + bytes((tail,))).ljust(5000, b"\0")
            fd = libc.syscall(437, top, b"new", how, size)
            out.append((flags, mode, size, tail, ctypes.get_errno() if fd < 0 else "ok"))
            if fd >= 0:
                os.close(fd)
                if os.path.exists("d/new"):
                    os.unlink("d/new")
        return out

    assert "'ok'" in same_on_tmpfs(body).ok()


def test_tmpfile(same_on_tmpfs: Oracle) -> None:
    """O_TMPFILE: no name, a first one by linkat unless O_EXCL, and no trace in its directory."""

    def body() -> list[object]:
        import ctypes
        import os

        libc = ctypes.CDLL(None, use_errno=True)
        out: list[object] = []
        os.mkdir("d")
        for extra in (0, os.O_EXCL):
            fd = os.open("d", os.O_TMPFILE | os.O_RDWR | extra, 0o640)
            os.write(fd, b"content")
            out += [os.fstat(fd).st_nlink, os.listdir("d"), oct(os.fstat(fd).st_mode)]
            place = f"/proc/self/fd/{fd}".encode()
            result = libc.linkat(-100, place, -100, b"d/named", 0x400)
            out += [result, result and ctypes.get_errno(), os.fstat(fd).st_nlink, os.listdir("d")]
            os.close(fd)
        out.append(open("d/named").read())
        os.unlink("d/named")
        fd = os.open("d", os.O_TMPFILE | os.O_WRONLY)
        os.rmdir("d")
        out += [os.write(fd, b"x"), os.fstat(fd).st_size, os.fstat(fd).st_nlink]
        return out

    assert "content" in same_on_tmpfs(body).ok()


def test_fifo_waits_and_is_interrupted(same_on_tmpfs: Oracle) -> None:
    """A FIFO's open waits for the other side; O_NONBLOCK doesn't; a signal ends the waiting."""

    def body() -> list[object]:
        import os
        import signal
        import time

        out: list[object] = []
        os.mkfifo("p", 0o600)
        try:
            os.open("p", os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            out.append(error.errno)
        pid = os.fork()
        if pid == 0:
            time.sleep(0.2)
            with open("p", "w") as file:
                file.write("through")
            os._exit(0)
        with open("p") as file:
            out.append(file.read())
        os.waitpid(pid, 0)

        def stop(*_: object) -> None:
            raise InterruptedError

        signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        try:
            os.open("p", os.O_RDONLY)
        except InterruptedError:
            out.append("interrupted")
        reader = os.open("p", os.O_RDONLY | os.O_NONBLOCK)
        os.rename("p", "q")
        os.link("q", "r")
        writer = os.open("r", os.O_WRONLY)
        out += [os.write(writer, b"same"), os.read(reader, 9), os.fstat(reader).st_nlink]
        os.fchmod(reader, 0o644)
        out += [oct(os.stat("q").st_mode), os.path.samestat(os.fstat(writer), os.stat("r"))]
        os.unlink("q")
        os.unlink("r")
        out += [os.write(writer, b"still"), os.read(reader, 9), os.fstat(reader).st_nlink]
        return out

    assert "interrupted" in same_on_tmpfs(body).ok()


def test_a_full_descriptor_table(same_on_tmpfs: Oracle) -> None:
    """EMFILE from open, and no file is made then."""

    def body() -> list[object]:
        import os
        import resource

        open("f", "w").close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))
        fds: list[int] = []
        out: list[object] = []
        try:
            while len(fds) < 30:
                fds.append(os.open("f", os.O_RDONLY))
        except OSError as error:
            number = error.errno
        try:
            os.open("new", os.O_CREAT)
        except OSError as error:
            out.append(error.errno)
        for fd in fds:
            os.close(fd)
        return [*out, len(fds) < 20, number, os.listdir(".")]

    assert "24" in same_on_tmpfs(body).ok()
