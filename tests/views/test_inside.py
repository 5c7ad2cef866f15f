"""Views with the agent: what it remembers of paths is void when a path leads elsewhere."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from harness import Body, Runner, argv_of, compare

AS_ROOT = [] if os.geteuid() == 0 else ["ident"]
ENGINES = ("agent", "notify")


def _can_chroot() -> bool:
    probe = ["/usr/sbin/chroot", "/", "true"]
    return subprocess.run(probe, check=False, stderr=subprocess.DEVNULL).returncode == 0


def changing_ways() -> list[object]:
    """Links and directories on the way are replaced between calls that follow each other at once."""
    import errno
    import os
    import shutil

    def attempt(action: object, *args: object, **more: object) -> object:
        try:
            return action(*args, **more)  # type: ignore[operator]
        except OSError as error:
            return errno.errorcode[error.errno or 0]

    def read(path: str, **more: object) -> object:
        fd = os.open(path, os.O_RDONLY, **more)  # type: ignore[arg-type]
        try:
            return os.read(fd, 99)
        finally:
            os.close(fd)

    for name in ("a", "b", "c/d"):
        os.makedirs(f"r/{name}/sub")
        with open(f"r/{name}/sub/f", "w") as file:
            file.write(name)
    os.mkdir("a")  # what a link would lead to outside of the root
    with open("outside", "w") as file:
        file.write("outside")
    here = os.open(".", os.O_RDONLY)
    os.chroot("r")
    os.chdir("/")
    out: list[object] = []
    ways = (
        "/l/sub/f", "l/sub/f", "/l/../a/sub/f", "./l/sub/../sub/f", "/c/d/../d/sub/f", "/k", "k",
        "/c/k", "/../../l/sub/f", "c/d/sub/../../../l/sub/f", "/outside", "../outside", "/l/sub/",
    )  # fmt: skip

    def look() -> None:
        for _ in range(2):  # the second time it is known
            row = []
            for path in ways:
                row += [attempt(read, path), attempt(os.access, path, os.R_OK)]
                row += [attempt(lambda p: os.stat(p).st_size if os.path.isfile(p) else 0, path)]
                row += [attempt(os.path.islink, path), attempt(os.readlink, path)]
            out.append(row)

    steps = (
        lambda: os.symlink("/a", "/l"), lambda: os.symlink("/l/sub/f", "/k"),
        lambda: os.symlink("../b/sub/f", "/c/k"), lambda: os.unlink("/l"),
        lambda: os.symlink("b", "/l"), lambda: os.rename("/l", "/m"), lambda: os.mkdir("/l"),
        lambda: os.rmdir("/l"), lambda: os.symlink("c/d", "l"), lambda: os.rename("/c", "/e"),
        lambda: os.rename("/e", "/c"), lambda: os.symlink("/b/sub/f", "/n"),
        lambda: os.rename("/n", "/k"), lambda: os.rename("/a/sub/f", "/k"),
        lambda: os.link("/k", "/a/sub/f"), lambda: shutil.rmtree("/c/d"),
        lambda: os.symlink("/b", "/c/d"), lambda: os.unlink("/c/d"), lambda: os.chdir("/b"),
        lambda: os.symlink("sub/f", "k"), lambda: os.chdir(".."), lambda: os.chmod("/b/sub", 0),
        lambda: os.chmod("b/sub", 0o755), lambda: os.truncate("/k", 1), lambda: os.utime("c/k"),
        lambda: os.symlink("/new", "/dangling"), lambda: os.mkdir("/k/x"), lambda: os.chroot("/b"),
        lambda: os.fchdir(here), lambda: os.chroot("r"), lambda: os.chdir("/"),
    )  # fmt: skip
    for step in steps:
        out.append(attempt(step))
        look()
        out.append(attempt(os.getcwd))
    for flags in (os.O_CREAT, os.O_CREAT | os.O_EXCL, os.O_NOFOLLOW, os.O_PATH | os.O_NOFOLLOW):
        out.append(attempt(lambda f: os.close(os.open("/dangling", f | os.O_RDONLY)), flags))
    for name in ("l/", "k/", "dangling/", "/", "b/.", "nowhere/", "sub"):
        for do in (os.rmdir, os.unlink, os.mkdir, lambda p: os.rename(p, "/moved"), os.lstat):
            got = attempt(do, name)
            out.append(got if isinstance(got, str) or got is None else "found")
    out.append(sorted(os.listdir("/")))
    return out


@pytest.mark.parametrize("engine", ENGINES)
def test_changing_ways(runner: Runner, tmp_path: Path, engine: str) -> None:
    for name in ("native", "vm", "again"):
        (tmp_path / name).mkdir()

    def inside(where: str, *more: str) -> object:
        options = ["-C", str(tmp_path / where), *more]
        return runner.umvm(changing_ways, options=options, modules=AS_ROOT)

    vm = inside("vm", "--engine", engine)
    assert "b'b'" in vm.ok()  # type: ignore[attr-defined]
    if _can_chroot():
        compare(runner.run(argv_of(changing_ways), cwd=tmp_path / "native"), vm)  # type: ignore[arg-type]


def bound_ways() -> list[object]:
    """A directory bound to another: names, descriptors, renames between them, and vfork's children."""
    import errno
    import os
    import subprocess
    import threading

    def attempt(action: object, *args: object, **more: object) -> object:
        try:
            return action(*args, **more)  # type: ignore[operator]
        except OSError as error:
            return errno.errorcode[error.errno or 0]

    top = os.getcwd()
    out: list[object] = []

    def name(path: str) -> str:
        fd = os.open(path, os.O_RDONLY)
        try:
            return os.readlink(f"/proc/self/fd/{fd}").replace(top, "T")
        finally:
            os.close(fd)

    for place in ("", "dst/", "src/", f"{top}/dst/sub/../", "dst/../dst/"):
        for path in ("f", "sub", "sub/g", "rel", "up", "gone", "sub/../f", "../dst/f"):
            out.append([attempt(name, place + path), attempt(os.path.realpath, place + path)])
            out[-1] = [str(x).replace(top, "T") for x in out[-1]]  # type: ignore[attr-defined]
    at = os.open("dst/sub", os.O_RDONLY)
    other = os.open("src", os.O_RDONLY)
    for old, new, fds in (
        ("g", "h", (at, at)), ("h", "g", (at, other)), ("sub/h", "g", (other, at)),
    ):  # fmt: skip
        out.append(attempt(os.rename, old, new, src_dir_fd=fds[0], dst_dir_fd=fds[1]))
    out += [attempt(os.rename, "dst/f", "src/f2"), attempt(os.rename, "dst/f", "dst/f2")]
    out += [attempt(os.link, "dst/f2", "src/f3"), attempt(os.rename, "dst/f2", "dst/f")]
    run = "import os; print(os.getcwd(), open('../f').read(), os.path.exists('../sub/deep'))"
    stop = threading.Event()
    wrong: list[str] = []

    def watch() -> None:
        while not stop.is_set():
            if os.getcwd() != top or not os.path.exists("dst/f"):
                wrong.append(os.getcwd())

    thread = threading.Thread(target=watch)
    thread.start()
    for cwd in ("dst/sub", "src/sub", "dst/sub"):
        text = subprocess.run(
            ["/bin/sh", "-c", "pwd -P; cat ../f; ls ..; readlink /proc/self/cwd"],
            cwd=cwd, stdout=subprocess.PIPE, check=True, text=True,
        ).stdout  # fmt: skip
        out.append(text.replace(top, "T"))
    stop.set()
    thread.join()
    del run
    return [*out, wrong]


def test_bound_ways(runner: Runner, tmp_path: Path) -> None:
    """The agent and the notify engine agree, and for root with the host."""

    def tree() -> Path:
        place = tmp_path / "t"
        subprocess.run(["rm", "-rf", str(place)], check=True)
        for name in ("src/sub/deep", "dst"):
            (place / name).mkdir(parents=True)
        (place / "src/f").write_text("data\n")
        (place / "src/sub/g").write_text("more\n")
        (place / "src/rel").symlink_to("sub/g")
        (place / "src/up").symlink_to("../src/f")
        return place

    def vm(engine: str) -> object:
        options = ["-C", str(tree()), "--bind", f"{tmp_path}/t/src:{tmp_path}/t/dst"]
        return runner.umvm(body, options=[*options, "--engine", engine])

    body: Body = bound_ways
    agent, notify = vm("agent"), vm("notify")
    assert "T/dst/sub/g" in agent.ok()  # type: ignore[attr-defined]
    compare(notify, agent)  # type: ignore[arg-type]
    if os.geteuid() == 0 and subprocess.run(["unshare", "-m", "true"], check=False).returncode == 0:
        place = tree()
        mount = f'mount --bind {place}/src {place}/dst && cd {place} && exec "$@"'
        alone = ["unshare", "-m", "--propagation", "private", "sh", "-c", mount, "sh"]
        compare(runner.run([*alone, *argv_of(body)], cwd=place), agent)  # type: ignore[arg-type]
