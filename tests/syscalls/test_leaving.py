"""Paths that start in a mount and lead out of it, and the other way round."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import Runner, argv_of, compare


def body() -> list[object]:
    import os
    import subprocess

    out: list[object] = []
    top = os.getcwd()

    def attempt(action: object, *args: object, **keywords: object) -> None:
        try:
            result = action(*args, **keywords)  # type: ignore[operator]
            out.append(oct(result.st_mode) if hasattr(result, "st_mode") else result)
        except OSError as error:
            out.append(error.errno)

    def text(path: str) -> str:
        with open(path) as file:
            return file.read()

    os.chmod("m", 0o755)
    with open("host", "w") as file:
        file.write("on the host")
    os.mkdir("hd")
    os.symlink("../host", "m/out")
    os.symlink(f"{top}/host", "m/abs")
    os.symlink("../hd", "m/dir")
    os.symlink("m/in", "into")
    os.chdir("m")
    with open("in", "w") as file:
        file.write("in the mount")
    for path in ("../host", "out", "abs", "dir/../host", "../m/in", "../into", "dir", "../gone",
                 "../host/", "out/", "../hd/gone", "./../m/../host", "../../gone"):  # fmt: skip
        attempt(os.stat, path)
        attempt(os.lstat, path)
        attempt(text, path)
        for mask in (os.R_OK, os.W_OK, os.X_OK):
            attempt(os.access, path, mask)
        attempt(os.readlink, path)
        attempt(os.listxattr, path)
        attempt(os.chmod, path, 0o700)
        attempt(os.utime, path, (1, 2))
        attempt(lambda p=path: os.statvfs(p).f_namemax)
    attempt(os.mkdir, "../new")
    attempt(os.rename, "../new", "../hd/newer")
    attempt(os.rmdir, "dir/newer")
    attempt(os.symlink, "host", "dir/link")
    attempt(text, "dir/link/../../host")
    attempt(os.link, "../host", "dir/hard")
    attempt(lambda: os.stat("dir/hard").st_nlink)
    attempt(os.unlink, "dir/hard")
    attempt(os.truncate, "out", 2)
    attempt(text, "../host")
    with open("dir/created", "w") as file:
        file.write("by a link")
    attempt(text, f"{top}/hd/created")
    attempt(os.chdir, "dir")
    attempt(lambda: os.path.relpath(os.getcwd(), top))
    attempt(os.chdir, "../m")
    attempt(lambda: os.path.relpath(os.getcwd(), top))
    fd = os.open("dir", os.O_RDONLY)
    attempt(lambda: sorted(os.listdir(fd)))
    attempt(os.stat, "../m/in", dir_fd=fd)
    done = subprocess.run(["cat", "out", "../m/in"], capture_output=True)
    out.append(done.stdout)
    os.chdir(top)
    attempt(text, "into")
    attempt(os.stat, "m/in", dir_fd=os.open("m/..", os.O_RDONLY))
    return [*out, sorted(os.listdir(".")), sorted(os.listdir("m"))]


@pytest.mark.parametrize("where", ["host", "mount"])
def test_leaving_and_entering(runner: Runner, tmp_path: Path, where: str) -> None:
    """Calls with paths that cross the border of a mount act on the right file, whichever it is.

    `mount`: the directory outside is another mount, and not the host's.
    """
    results = []
    for kind in ("native", "vm"):
        top = tmp_path / "top"
        (top / "m").mkdir(parents=True)
        command = ["/bin/sh", "-c", 'mkdir -p m && exec "$@"', "sh", *argv_of(body)]
        if kind == "native":
            results.append(runner.run(command, cwd=top))
        elif where == "host":
            mounts = [f"memory:none:{top}/m"]
            results.append(runner.umvm(command, mounts=mounts, options=["-C", str(top)]))
        else:
            mounts = [f"memory:none:{top}:mode=755"]
            inner = [
                "/bin/sh",
                "-c",
                f'mkdir m && umvm mount -t memory none {top}/m && exec "$@"',
                "sh",
            ]
            results.append(runner.umvm([*inner, *command], mounts=mounts, options=["-C", str(top)]))
        for path in sorted(top.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        top.rmdir()
    compare(results[0], results[1])
    assert "by a link" in results[1].ok()
