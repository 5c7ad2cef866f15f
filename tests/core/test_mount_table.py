"""The walk over served file systems and /proc: what is asked, what is believed, what comes out."""

from __future__ import annotations

import errno
import gc
import os
import stat
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from core_accel import pathwalk
from umvm.guest.mounts import (
    FOLLOW,
    HOST,
    MISSING_OK,
    NO_MAGICLINKS,
    NO_XDEV,
    Mount,
    MountTable,
    Where,
)
from umvm.interfaces.filesystem import Attr, FileHandle, FileSystem

DIR, FILE, LINK = stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK
NAMES: dict[bytes, Attr | bytes | int] = {
    b"/": Attr(DIR | 0o755),
    b"/a": Attr(DIR | 0o755, uid=1),
    b"/a/b": Attr(DIR | 0o755, uid=2),
    b"/a/b/f": Attr(FILE | 0o644, uid=3, size=7),
    b"/closed": Attr(DIR | 0o600),
    b"/closed/f": Attr(FILE),
    b"/link": b"a/b",
    b"/proc": b"/proc/self/stat",
    b"/broken": errno.EIO,
    b"/odd": errno.ENOTDIR,
    b"/odder": errno.EINVAL,
}


class Tree(FileSystem):
    """The names above; counts what is asked."""

    def __init__(self, timeout: float = 0.0) -> None:
        self.entry_timeout = timeout
        self.asked: Counter[bytes] = Counter()

    def getattr(self, path: bytes, fh: FileHandle = None) -> Attr:
        self.asked[path] += 1
        node = NAMES.get(path, errno.ENOENT)
        if isinstance(node, int):
            raise OSError(node, os.strerror(node))
        return node if isinstance(node, Attr) else Attr(LINK | 0o777)

    def readlink(self, path: bytes) -> bytes:
        node = NAMES[path]
        assert isinstance(node, bytes)
        return node


class Open(NamedTuple):
    mount: Mount
    path: bytes
    directory: bool
    deleted: bool = False


class Shadow:
    """Descriptions by the number at the end of their link, as `umvm.guest.files` has them."""

    def __init__(self, directory: Path) -> None:
        self._prefix = os.fsencode(directory) + b"/"
        self.open: dict[bytes, Open] = {}

    def named(self, link: bytes) -> Open | None:
        if not link.startswith(self._prefix):
            return None
        return self.open.get(link[len(self._prefix) :].removesuffix(b" (deleted)"))


def add(table: MountTable, point: bytes, fs: FileSystem) -> Mount:
    mount = Mount(table.next_id(), point, fs, "tree", "none", {}, "test")
    table.add(mount)
    return mount


def walk(
    table: MountTable, path: bytes, flags: int = FOLLOW, base: bytes = b"/m", **more: Any
) -> Where:
    tid, tgid = threading.get_native_id(), os.getpid()
    return table.walk(tid, tgid, base, path, flags, None, **more)


def failure(table: MountTable, path: bytes, flags: int = FOLLOW, **more: Any) -> int:
    with pytest.raises(OSError) as caught:
        walk(table, path, flags, **more)
    return caught.value.errno or 0


@pytest.fixture
def tree() -> Tree:
    return Tree()


@pytest.fixture
def table(tree: Tree) -> MountTable:
    table = MountTable()
    add(table, b"/m", tree)
    return table


def test_one_getattr_for_each_component(table: MountTable, tree: Tree) -> None:
    where = walk(table, b"a/b/f")
    assert (where.path, where.inside, where.changed) == (b"/m/a/b/f", b"/a/b/f", False)
    assert where.mount is table.at(b"/m")
    assert where.attr == NAMES[b"/a/b/f"]
    assert tree.asked == Counter({b"/a": 1, b"/a/b": 1, b"/a/b/f": 1})


def test_attributes_of_exactly_the_result(table: MountTable) -> None:
    """None where the walk went on after it asked, and where nothing is."""
    assert walk(table, b"link", 0).attr == Attr(LINK | 0o777)
    assert walk(table, b"link").attr == NAMES[b"/a/b"]
    assert walk(table, b"a/b/..").attr is None
    assert walk(table, b"a/b/.").attr == NAMES[b"/a/b"]
    missing = walk(table, b"a/b/new/", MISSING_OK)
    assert (missing.attr, missing.missing, missing.slash) == (None, True, True)
    root = walk(table, b"/m")
    assert (root.attr, root.inside) == (None, b"/")


def test_directories_are_believed_for_a_while() -> None:
    table, tree = MountTable(), Tree(timeout=100.0)
    mount = add(table, b"/m", tree)
    for _ in range(3):
        assert walk(table, b"a/b/f").attr == NAMES[b"/a/b/f"]
        assert walk(table, b"link", 0).attr == Attr(LINK | 0o777)
    assert tree.asked == Counter({b"/a": 1, b"/a/b": 1, b"/a/b/f": 3, b"/link": 3})
    assert walk(table, b"a/b").attr is None  # believed to be there, but not just seen
    mount.forget()
    assert walk(table, b"a/b").attr == NAMES[b"/a/b"]
    assert tree.asked[b"/a"] == 2


def test_belief_ends() -> None:
    table, tree = MountTable(), Tree(timeout=0.01)
    add(table, b"/m", tree)
    walk(table, b"a/b/f")
    time.sleep(0.02)
    walk(table, b"a/b/f")
    assert tree.asked[b"/a"] == 2


def test_nothing_is_believed_without_a_timeout(table: MountTable, tree: Tree) -> None:
    walk(table, b"a/b/f")
    walk(table, b"a/b/f")
    assert tree.asked[b"/a"] == 2


def test_search_permission(table: MountTable, tree: Tree) -> None:
    """EACCES in a directory, for dots too; not for the directory itself."""

    def searchable(attr: Attr) -> bool:
        return bool(attr.mode & 0o100)

    for path in (b"closed/f", b"closed/none", b"closed/.", b"closed/..", b"/m/closed/../a"):
        assert failure(table, path, searchable=searchable) == errno.EACCES
    assert walk(table, b"closed", searchable=searchable).attr == NAMES[b"/closed"]
    assert walk(table, b"closed/", searchable=searchable).slash
    tree.asked.clear()
    assert walk(table, b"a/b/f", searchable=searchable).attr == NAMES[b"/a/b/f"]
    assert tree.asked == Counter({b"/": 1, b"/a": 1, b"/a/b": 1, b"/a/b/f": 1})
    assert walk(table, b"closed/f").attr == NAMES[b"/closed/f"]


def test_search_is_the_file_systems_matter_where_it_checks(table: MountTable) -> None:
    class Own(Tree):
        default_permissions = False

    add(table, b"/own", Own())
    assert walk(table, b"/own/closed/f", searchable=lambda attr: False).inside == b"/closed/f"


@pytest.mark.parametrize(
    ("path", "error"),
    [
        (b"broken", errno.EIO),
        (b"odd", errno.ENOTDIR),
        (b"odder", errno.EINVAL),
        (b"none", errno.ENOENT),
        (b"none/x", errno.ENOENT),
        (b"a/b/f/x", errno.ENOTDIR),
    ],
)
def test_errors_of_the_file_system(table: MountTable, path: bytes, error: int) -> None:
    assert failure(table, path) == error
    if path == b"none":
        assert walk(table, path, MISSING_OK).missing
    else:
        assert failure(table, path, FOLLOW | MISSING_OK) == error


def test_a_broken_file_system_is_heard_of(table: MountTable) -> None:
    class Broken(FileSystem):
        def getattr(self, path: bytes, fh: FileHandle = None) -> Attr:
            raise RuntimeError("broken")

    add(table, b"/b", Broken())
    with pytest.raises(RuntimeError, match="broken"):
        walk(table, b"/b/x")


def test_changed_only_where_the_kernel_would_go_wrong(table: MountTable) -> None:
    assert walk(table, b"/m/../usr").changed
    assert walk(table, b"../usr").changed
    assert walk(table, b"proc").changed
    assert walk(table, b"proc").path == b"/proc/%d/stat" % os.getpid()
    for path in (b"/usr", b"/usr/..", b"/proc/self/stat", b"/proc/../usr"):
        assert not walk(table, path).changed


def test_mount_root(tree: Tree) -> None:
    table = MountTable()
    mount = add(table, b"/", tree)
    assert walk(table, b"/a/b", base=b"/").inside == b"/a/b"
    assert (mount.outside(b"/a"), mount.outside(b"/"), mount.inside(b"/")) == (b"/a", b"/", b"/")


# --- /proc ----------------------------------------------------------------------------------------


def test_proc_self_is_the_guests(table: MountTable) -> None:
    where = table.walk(7, 5, b"/", b"/proc/self", 0, None)
    assert (where.mount, where.path) == (None, b"/proc/self")
    with pytest.raises(FileNotFoundError):
        table.walk(7, 999999999, b"/", b"/proc/self/stat", FOLLOW, None)
    tid, tgid = threading.get_native_id(), os.getpid()
    assert walk(table, b"/proc/self").path == b"/proc/%d" % tgid
    assert walk(table, b"/proc/thread-self/stat").path == b"/proc/%d/task/%d/stat" % (tgid, tid)
    assert walk(table, b"/proc/mounts").path == b"/proc/%d/mounts" % tgid
    assert failure(table, b"/proc/self/none") == errno.ENOENT
    assert walk(table, b"/proc/self/none", MISSING_OK).missing
    assert failure(table, b"/proc/self/stat/x") == errno.ENOTDIR


def test_magic_links_to_the_host(
    table: MountTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = os.fsencode(tmp_path)
    (tmp_path / "f").touch()
    (tmp_path / "odd (deleted)").touch()
    monkeypatch.chdir(tmp_path)
    assert walk(table, b"/proc/self/cwd").path == top
    assert walk(table, b"/proc/self/cwd/f").path == top + b"/f"
    assert walk(table, b"/proc/self/cwd", 0).path == b"/proc/%d/cwd" % os.getpid()
    assert walk(table, b"/proc/self/root/usr").path == b"/usr"
    assert walk(table, b"/proc/self/root/m/a").inside == b"/a"
    assert failure(table, b"/proc/self/cwd", FOLLOW | NO_MAGICLINKS) == errno.ELOOP
    assert failure(table, b"/proc/self/cwd/f", FOLLOW | NO_XDEV) == errno.EXDEV
    with open(tmp_path / "odd (deleted)", "rb") as file:
        where = walk(table, b"/proc/self/fd/%d" % file.fileno())
        assert (where.path, where.changed) == (top + b"/odd (deleted)", False)
        assert failure(table, b"/proc/self/fd/%d/" % file.fileno()) == errno.ENOTDIR


def test_magic_links_without_a_name(
    table: MountTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pipes and deleted files: the walk ends at the link, and the kernel runs the call as it is."""
    read, write = os.pipe()
    path = b"/proc/%d/fd/%d" % (os.getpid(), read)
    assert walk(table, path).path == path
    assert failure(table, path + b"/") == errno.ENOTDIR
    assert failure(table, path + b"/x") == errno.ENOTDIR
    os.close(read)
    os.close(write)
    assert failure(table, path) == errno.ENOENT
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    where = walk(table, b"/proc/self/cwd")
    assert (where.path, where.changed) == (b"/proc/%d/cwd" % os.getpid(), False)
    assert failure(table, b"/proc/self/cwd/x") == errno.ENOENT


def test_magic_link_to_a_covered_host_file(tmp_path: Path) -> None:
    """The name means a mount now, the descriptor still the host's file."""
    (tmp_path / "f").touch()
    table = MountTable()
    with open(tmp_path / "f", "rb") as file:
        add(table, os.fsencode(tmp_path), Tree())
        where = walk(table, b"/proc/self/fd/%d" % file.fileno())
    assert (where.mount, where.changed) == (None, False)


def test_magic_links_to_served_files(table: MountTable, tmp_path: Path) -> None:
    mount = table.at(b"/m")
    assert mount is not None
    shadow = Shadow(tmp_path)
    shadow.open[b"1"] = Open(mount, b"/a/b/f", False)
    shadow.open[b"2"] = Open(mount, b"/a", True)
    tid, tgid = threading.get_native_id(), os.getpid()
    file = os.open(tmp_path / "1", os.O_CREAT | os.O_RDONLY)
    (tmp_path / "2").mkdir()
    directory = os.open(tmp_path / "2", os.O_RDONLY)
    os.unlink(tmp_path / "1")
    try:
        where = table.walk(tid, tgid, b"/", b"/proc/self/fd/%d" % file, FOLLOW, shadow)
        assert (where.mount, where.inside) == (mount, b"/a/b/f")
        assert where.file is shadow.open[b"1"] and where.attr is None
        with pytest.raises(NotADirectoryError):
            table.walk(tid, tgid, b"/", b"/proc/self/fd/%d/" % file, FOLLOW, shadow)
        where = table.walk(tid, tgid, b"/", b"/proc/self/fd/%d/b/f" % directory, FOLLOW, shadow)
        assert (where.inside, where.file) == (b"/a/b/f", None)
        assert where.attr == NAMES[b"/a/b/f"]
        where = table.walk(tid, tgid, b"/", b"/proc/self/fd/%d/../.." % directory, FOLLOW, shadow)
        assert (where.mount, where.path, where.changed) == (None, b"/", True)
        shadow.open[b"2"] = Open(mount, b"/a", True, deleted=True)
        where = table.walk(tid, tgid, b"/", b"/proc/self/fd/%d" % directory, FOLLOW, shadow)
        assert where.file is shadow.open[b"2"]
        with pytest.raises(FileNotFoundError):
            table.walk(tid, tgid, b"/", b"/proc/self/fd/%d/b" % directory, FOLLOW, shadow)
        where = table.walk(tid, tgid, b"/", b"/proc/self/fd/%d" % file, 0, shadow)
        assert where.path == b"/proc/%d/fd/%d" % (tgid, file) and where.file is None
    finally:
        os.close(file)
        os.close(directory)


# --- changes of the table -------------------------------------------------------------------------


def test_unmounting(tree: Tree) -> None:
    """A lazily unmounted mount is reached from within only, and goes with its last user."""
    table = MountTable()
    lower, upper = add(table, b"/m", Tree()), add(table, b"/m", tree)
    assert walk(table, b"/m/a").mount is upper is table.at(b"/m")
    table.remove(upper)
    assert walk(table, b"/m/a").mount is lower
    where = walk(table, b"../../link/f", base=b"/m/a", base_mount=upper.ident)
    assert (where.mount, where.inside) == (upper, b"/a/b/f")
    table.remove(lower)
    assert failure(table, b"/m/a") == errno.ENOENT
    assert table.at(b"/m") is None
    ident = upper.ident
    del upper, where
    gc.collect()
    assert ident not in table.by_id
    assert failure(table, b"a", base_mount=ident) == errno.ENOENT


def test_covered_host_directory(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    table = MountTable()
    mount = add(table, os.fsencode(tmp_path), Tree())
    base = os.fsencode(tmp_path)
    assert walk(table, b"a", base=base).mount is mount
    assert walk(table, b"d", base=base, base_mount=HOST).mount is None
    pathwalk.forget()
    assert walk(table, b"d/..", base=base, base_mount=HOST).mount is mount


def test_mounting_while_others_walk(table: MountTable) -> None:
    """A walk sees the table before or after a change, never something between."""
    problems: list[object] = []
    stop = threading.Event()

    def go() -> None:
        while not stop.is_set():
            where = walk(table, b"a/../a/b")
            if where.path != b"/m/a/b" or where.mount is None:
                problems.append(where)

    threads = [threading.Thread(target=go) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(200):
        table.remove(add(table, b"/m", Tree()))
    stop.set()
    for thread in threads:
        thread.join()
    assert problems == []
