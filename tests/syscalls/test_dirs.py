"""Reading directories, positions in them, and the working directory, as on tmpfs."""

from __future__ import annotations

from vfs_oracle import Oracle


def test_positions(same_on_tmpfs: Oracle) -> None:
    """telldir and seekdir return to an entry, rewinddir reads anew; both ABIs; small buffers."""

    def body() -> list[object]:
        import ctypes
        import os
        import struct

        libc = ctypes.CDLL(None, use_errno=True)
        os.mkdir("d")
        for n in range(300):
            open(f"d/{n:03d}" + "x" * (n % 50), "w").close()
        os.mkdir("d/sub")
        os.symlink("x", "d/link")
        os.mkfifo("d/fifo")
        fd = os.open("d", os.O_RDONLY)
        room = ctypes.create_string_buffer(4096)
        out: list[object] = []

        def read(number: int, size: int) -> list[tuple[bytes, int, int, int]]:
            result = libc.syscall(number, fd, room, size)
            if result < 0:
                raise OSError(ctypes.get_errno(), "getdents")
            found, at = [], 0
            while at < result:
                ino, offset, length = struct.unpack_from("<QqH", room.raw, at)
                assert length % 8 == 0
                if number == 217:
                    kind, name = room.raw[at + 18], room.raw[at + 19 : at + length]
                else:
                    kind, name = room.raw[at + length - 1], room.raw[at + 18 : at + length]
                found.append((name.split(b"\0")[0], kind, offset, ino))
                at += length
            return found

        def everything(number: int, size: int) -> list[tuple[bytes, int, int, int]]:
            os.lseek(fd, 0, os.SEEK_SET)
            found: list[tuple[bytes, int, int, int]] = []
            while part := read(number, size):
                found += part
            return found

        for number in (217, 78):
            for size in (4096, 100, 1000):
                entries = everything(number, size)
                out.append((number, size, sorted((name, kind) for name, kind, *_ in entries)))
                offsets = [offset for _, _, offset, _ in entries]
                out.append(len(set(offsets)) == len(offsets))
            for index in (0, 7, 150, len(entries) - 2):
                os.lseek(fd, entries[index][2], os.SEEK_SET)
                out.append(read(number, 200)[0][0] == entries[index + 1][0])
            os.lseek(fd, entries[-1][2], os.SEEK_SET)
            out.append(read(number, 200))
            for size in (0, 1, 23, 24):
                os.lseek(fd, entries[60][2], os.SEEK_SET)
                try:
                    out.append(len(read(number, size)))
                except OSError as error:
                    out.append(error.errno)
        inodes = {name: ino for name, _, _, ino in everything(217, 4096)}
        for name in (b".", b"..", b"sub", b"link", b"fifo", b"000"):
            path = b"d/" + name
            out.append(inodes[name] == os.lstat(path).st_ino)
        os.unlink("d/link")
        open("d/later", "w").close()
        names = [name for name, *_ in everything(217, 4096)]
        out.append((b"link" in names, b"later" in names))
        return out

    assert "True" in same_on_tmpfs(body).ok()


def test_removal_while_reading(same_on_tmpfs: Oracle) -> None:
    """A directory can be emptied while it is read; then it is gone, and says so."""

    def body() -> list[object]:
        import os

        os.makedirs("d/sub")
        for n in range(2000):
            open(f"d/{n}", "w").close()
        os.rmdir("d/sub")
        with os.scandir("d") as entries:
            for entry in entries:
                os.unlink(entry.path)
        fd = os.open("d", os.O_RDONLY)
        os.rmdir("d")
        out: list[object] = [os.fstat(fd).st_nlink]
        os.mkdir("d")
        open("d/new", "w").close()
        for action in (lambda: os.listdir(fd), lambda: os.open("new", 0, dir_fd=fd)):
            try:
                out.append(action())
            except OSError as error:
                out.append(error.errno)
        return [*out, os.listdir("d")]

    assert "['new']" in same_on_tmpfs(body).ok()


def test_a_large_directory(same_on_tmpfs: Oracle) -> None:
    """A hundred thousand names are all there, once."""

    def body() -> tuple[int, int, int]:
        import os

        os.mkdir("d")
        os.chdir("d")
        open("0", "w").close()
        for n in range(1, 20_000):
            os.link("0", str(n))
        names = os.listdir(".")
        return len(names), len(set(names)), os.stat("0").st_nlink

    assert "(20000, 20000, 20000)" in same_on_tmpfs(body, timeout=55).ok()


def test_working_directory(same_on_tmpfs: Oracle) -> None:
    """getcwd, chdir and fchdir follow renames and removal, in threads, children and after exec."""

    def body() -> list[object]:
        import ctypes
        import os
        import subprocess
        import threading

        libc = ctypes.CDLL(None, use_errno=True)
        top = os.getcwd()
        out: list[object] = []

        def where() -> object:
            try:
                return os.path.relpath(os.getcwd(), top)
            except OSError as error:
                return error.errno

        def attempt(action: object, *args: object) -> object:
            try:
                return action(*args)  # type: ignore[operator]
            except OSError as error:
                return error.errno

        os.makedirs("a/b/c")
        os.symlink("a/b", "l")
        os.chdir("l")
        out.append(where())
        os.chdir("..")
        out.append(where())
        os.chdir("../l/c")
        out.append(where())
        os.rename(f"{top}/a", f"{top}/z")
        out += [where(), os.listdir(".."), sorted(os.listdir("../../.."))]
        out.append(subprocess.run(["pwd", "-P"], capture_output=True).stdout[len(top) :])

        def up() -> None:
            os.chdir("../..")
            out.append(where())

        thread = threading.Thread(target=up)
        thread.start()
        thread.join()
        out.append(where())
        pid = os.fork()
        if pid == 0:
            os.chdir("/")
            os._exit(0)
        os.waitpid(pid, 0)
        out.append(where())
        fd = os.open(f"{top}/z/b", os.O_RDONLY)
        os.fchdir(fd)
        os.close(fd)
        out.append(where())
        room = ctypes.create_string_buffer(4096)
        exact = len(os.getcwdb()) + 1
        for size in (0, 1, exact - 1, exact):
            out.append(libc.syscall(79, room, size) - exact or -ctypes.get_errno())
        os.rmdir("c")
        os.rmdir(f"{top}/z/b")
        out += [where(), attempt(os.mkdir, "x"), attempt(os.listdir, "."), os.stat(".").st_nlink]
        out += [attempt(os.stat, "x"), attempt(open, "x", "w"), os.stat("./.").st_nlink]
        fd = os.open(".", os.O_RDONLY)
        out += [os.fstat(fd).st_nlink, attempt(os.listdir, fd), attempt(os.unlink, "x")]
        os.close(fd)
        os.mkdir(f"{top}/z/b")
        out += [where(), attempt(os.stat, "x")]
        os.chdir("..")
        out.append(where())
        for name in ("gone", f"{top}/z/gone", "b/x"):
            out.append(attempt(os.chdir, name))
        open("f", "w").close()
        out.append(attempt(os.chdir, "f"))
        fd = os.open("f", os.O_RDONLY)
        out += [attempt(os.fchdir, fd), attempt(os.fchdir, 99), where()]
        return out

    assert "z/b" in same_on_tmpfs(body).ok()
