"""Names: every call on every kind of path answers as on tmpfs, and leaves the same behind."""

from __future__ import annotations

import pytest
from vfs_oracle import Oracle, guest


def test_every_call_on_every_path(same_on_tmpfs: Oracle) -> None:
    """Each call on each kind of file, with slashes, dots, links and names too long."""
    lines = same_on_tmpfs(guest("vfs_table", "names")).ok().splitlines()
    assert len(lines) > 3000
    for error in ("ENOENT", "ENOTDIR", "EISDIR", "ELOOP", "EEXIST", "ENAMETOOLONG", "ENOTEMPTY"):
        assert any(error in line for line in lines), error


def test_pairs_of_paths(same_on_tmpfs: Oracle) -> None:
    """rename, renameat2 and link between all kinds of files."""
    text = same_on_tmpfs(guest("vfs_table", "pairs"), timeout=55).ok()
    assert "renameat2" in text and "EBUSY" in text and "EINVAL" in text


@pytest.mark.parametrize("seed", ["a", "b", "c", "d"])
def test_random_sequences(same_on_tmpfs: Oracle, seed: str) -> None:
    """Sequences of random calls, 550 a seed."""
    text = same_on_tmpfs(guest("vfs_matrix", seed, "550", "25"), timeout=58).ok()
    assert text.count("sequence") == 550


def test_open_files_follow_renames(same_on_tmpfs: Oracle) -> None:
    """A renamed, replaced, exchanged or removed file stays what its descriptor says."""

    def body() -> list[object]:
        import ctypes
        import os

        out: list[object] = []

        def put(name: str, text: str) -> None:
            with open(name, "w") as file:
                file.write(text)

        def got(fd: int) -> tuple[bytes, int, str]:
            link = os.readlink(f"/proc/self/fd/{fd}")
            return os.pread(fd, 9, 0), os.fstat(fd).st_nlink, link

        put("a", "one")
        put("b", "two")
        os.mkdir("d")
        put("d/c", "three")
        a, b, c = (os.open(name, os.O_RDWR) for name in ("a", "b", "d/c"))
        directory = os.open("d", os.O_RDONLY)
        os.rename("a", "b")
        out += [got(a), got(b)]
        os.rename("d", "e")
        out += [got(c), os.listdir(directory), os.readlink(f"/proc/self/fd/{directory}")]
        put("f", "four")
        f = os.open("f", os.O_RDONLY)
        ctypes.CDLL(None).renameat2(-100, b"f", -100, b"b", 2)
        out += [got(a), got(f), sorted(os.listdir("."))]
        os.link("e/c", "g")
        os.unlink("e/c")
        os.write(c, b"new")
        out += [os.fstat(c).st_nlink, open("g").read()]
        os.unlink("g")
        os.rmdir("e")
        out += [os.fstat(c).st_nlink, os.fstat(directory).st_nlink]
        try:
            os.listdir(directory)
        except OSError as error:
            out.append(error.errno)
        return out

    assert "three" in same_on_tmpfs(body).ok()


def test_many_processes_make_one_name(same_on_tmpfs: Oracle) -> None:
    """Of those that make the same name exactly one succeeds; O_CREAT without O_EXCL always does."""

    def body() -> list[object]:
        import os

        out: list[object] = []
        for kind in ("mkdir", "open exclusive", "open", "symlink", "link", "rename"):
            open("source", "w").close()
            pids = []
            for _ in range(8):
                pid = os.fork()
                if pid == 0:
                    try:
                        for n in range(20):
                            name = f"{kind}{n}"
                            try:
                                if kind == "mkdir":
                                    os.mkdir(name)
                                elif kind == "open":
                                    os.close(os.open(name, os.O_CREAT | os.O_WRONLY))
                                elif kind == "open exclusive":
                                    os.close(os.open(name, os.O_CREAT | os.O_EXCL))
                                elif kind == "symlink":
                                    os.symlink("x", name)
                                elif kind == "link":
                                    os.link("source", name)
                                else:
                                    open(f"t{os.getpid()}", "w").close()
                                    os.rename(f"t{os.getpid()}", name)
                                with open("log", "a") as log:
                                    log.write(f"{name}\n")
                            except FileExistsError:
                                pass
                    finally:
                        os._exit(0)
                pids.append(pid)
            for pid in pids:
                os.waitpid(pid, 0)
            lines = open("log").read().split("\n")
            out.append((kind, len(lines) - 1, len(set(lines)) - 1, os.stat("source").st_nlink))
            os.unlink("log")
            os.unlink("source")
        return out

    assert "('mkdir', 20, 20, 1)" in same_on_tmpfs(body).ok()
