"""The path walk through mounts and magic links, case by case."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from core_accel.pathwalk import (
    BENEATH,
    FOLLOW,
    IN_ROOT,
    NO_MAGICLINKS,
    NO_SYMLINKS,
    NO_XDEV,
    SLASH_OK,
    Found,
    Magic,
    View,
)


def nobody(mount: int, path: bytes) -> int:
    raise AssertionError(f"nothing is to be asked about {path!r} on mount {mount}")


def walked(base: bytes, path: bytes, flags: int, view: View) -> bytes | str:
    try:
        return view.walk(base, path, flags, nobody).path
    except OSError as error:
        return errno.errorcode[error.errno or 0]


# --- mounts by hand -------------------------------------------------------------------------------

TREE: dict[bytes, bytes | int] = {
    b"/m/d": -errno.EINVAL,
    b"/m/d/e": -errno.EINVAL,
    b"/m/d/f": -errno.ENOTDIR,
    b"/m/out": b"/tmp",
    b"/m/up": b"..",
    b"/m/again": b"/m/d",
    b"/m/empty": b"",
    b"/m/in": b"d/n/x",
    b"/m/d/n/x": -errno.ENOTDIR,
    b"/m/long": b"x" * 4095,
    b"/m/long2": b"y" * 4096,
}


def look_tree(mount: int, path: bytes) -> bytes | int:
    assert mount in (2, 3, 4)
    return TREE.get(path, -errno.ENOENT)


def in_mounts(
    path: bytes, flags: int = FOLLOW, base: bytes = b"/m", base_mount: int = -1
) -> tuple[int, bytes] | str:
    view = View([(b"/", 0), (b"/proc", 1), (b"/m", 2), (b"/m/d/n", 3)])
    try:
        found = view.walk(base, path, flags, look_tree, base_mount)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return found.mount, found.path


@pytest.mark.parametrize(
    ("path", "flags", "expected"),
    [
        (b"/m", FOLLOW, (2, b"/m")),
        (b"/m", 0, (2, b"/m")),
        (b"/m/", 0, (2, b"/m")),
        (b".", 0, (2, b"/m")),
        (b"..", 0, (0, b"/")),
        (b"d/n", 0, (3, b"/m/d/n")),
        (b"d/n/x", 0, (3, b"/m/d/n/x")),
        (b"d/n/y", 0, "ENOENT"),
        (b"d/n/..", 0, (2, b"/m/d")),
        (b"d/n/../e", 0, (2, b"/m/d/e")),
        (b"d/n/../../..", 0, (0, b"/")),
        (b"../m/d", 0, (2, b"/m/d")),
        (b"in", FOLLOW, (3, b"/m/d/n/x")),
        (b"in", 0, (2, b"/m/in")),
        (b"again/n", FOLLOW, (3, b"/m/d/n")),
        (b"out", FOLLOW, (0, b"/tmp")),
        (b"out/", 0, (0, b"/tmp")),
        (b"up/m/d", FOLLOW, (2, b"/m/d")),
        (b"empty", FOLLOW, "ENOENT"),
        (b"empty", 0, (2, b"/m/empty")),
        (b"long", FOLLOW, "ENAMETOOLONG"),
        (b"long2", FOLLOW, "ENAMETOOLONG"),
        (b"x" * 256, FOLLOW, "ENAMETOOLONG"),
        (b"d/f/.", 0, "ENOTDIR"),
        (b"d/f/..", 0, "ENOTDIR"),
        (b"d/f/x", 0, "ENOTDIR"),
        (b"d/f/", 0, "ENOTDIR"),
        (b"d/f/", SLASH_OK, (2, b"/m/d/f")),
        (b"/m/d/n", NO_XDEV, "EXDEV"),
        (b"d/n", NO_XDEV, "EXDEV"),
        (b"..", NO_XDEV, "EXDEV"),
        (b"again", FOLLOW | NO_XDEV, "EXDEV"),
        (b"/tmp", NO_XDEV, (0, b"/tmp")),
        (b"d/e", NO_XDEV, (2, b"/m/d/e")),
        (b"d/n/x", BENEATH, (3, b"/m/d/n/x")),
        (b"..", BENEATH, "EXDEV"),
        (b"d/n/../../..", BENEATH, "EXDEV"),
        (b"/m", BENEATH, "EXDEV"),
        (b"out", FOLLOW | BENEATH, "EXDEV"),
        (b"/d", IN_ROOT, (2, b"/m/d")),
        (b"/../d/n/../../../..", IN_ROOT, (2, b"/m")),
        (b"out", FOLLOW | IN_ROOT, "ENOENT"),
        (b"d", BENEATH | IN_ROOT, "EINVAL"),
    ],
)
def test_mounts(path: bytes, flags: int, expected: tuple[int, bytes] | str) -> None:
    assert in_mounts(path, flags) == expected


def test_link_to_a_mount_point(tmp_path: Path) -> None:
    """A host link that leads to a mount point enters it, relative or absolute, last or not."""
    base = os.fsencode(tmp_path)
    (tmp_path / "d").mkdir()
    (tmp_path / "m").mkdir()
    (tmp_path / "d" / "rel").symlink_to("../m")
    (tmp_path / "abs").symlink_to(tmp_path / "m")
    view = View([(b"/", 0), (base + b"/m", 2)])

    def look(mount: int, path: bytes) -> int:
        assert (mount, path) == (2, base + b"/m/x")
        return -errno.ENOTDIR

    for text in (b"d/rel", b"abs", b"abs/", b"d/../m"):
        found = view.walk(base, text, FOLLOW, look)
        assert (found.mount, found.path) == (2, base + b"/m")
        found = view.walk(base, text + b"/x", 0, look)
        assert (found.mount, found.path) == (2, base + b"/m/x")
    assert view.walk(base, b"abs", 0, look).mount == 0
    assert view.walk(base, b"d", 0, look).crossed is False
    found = view.walk(base, b"m/../d", 0, look)
    assert (found.mount, found.path, found.crossed) == (0, base + b"/d", True)
    assert walked(base, b"abs", FOLLOW | NO_XDEV, view) == "EXDEV"


def test_stacked_and_hidden_mounts() -> None:
    """Of equal points the last wins, and a mount hides those that were below its point."""
    view = View([(b"/", 0), (b"/m", 2), (b"/m/x", 3), (b"/m", 4), (b"/m/e", 5), (b"/m", 6)])

    def place(base: bytes, path: bytes, base_mount: int = -1) -> tuple[int, bytes]:
        found = view.walk(base, path, 0, lambda mount, path: -errno.EINVAL, base_mount)
        return found.mount, found.path

    assert place(b"/", b"m/x") == (6, b"/m/x")
    assert place(b"/", b"m/e") == (6, b"/m/e")
    # From a covered directory, as tried with tmpfs: names are those of then, mounts on them too,
    # and ".." sees what is on top now.
    assert place(b"/m", b".", 2) == (2, b"/m")
    assert place(b"/m", b"x/d", 2) == (3, b"/m/x/d")
    assert place(b"/m", b"e", 4) == (5, b"/m/e")
    assert place(b"/m", b"e", 2) == (2, b"/m/e")
    assert place(b"/m/y", b"..", 2) == (6, b"/m")
    assert place(b"/m/x", b"..", 3) == (6, b"/m")
    assert place(b"/m/x/d", b"../..", 3) == (6, b"/m")
    assert place(b"/m", b"../m", 4) == (6, b"/m")
    view = View([(b"/", 0), (b"/m", 2), (b"/m", 4), (b"/m/e", 5)])
    assert place(b"/", b"m/e") == (5, b"/m/e")


def test_covered_host_directory(tmp_path: Path) -> None:
    """A host directory that a mount covers: names in it are the host's, ".." sees the mount."""
    base = os.fsencode(tmp_path)
    (tmp_path / "m" / "d").mkdir(parents=True)
    view = View([(b"/", 0), (base + b"/m", 2)])
    found = view.walk(base + b"/m", b"d", 0, nobody, 0)
    assert (found.mount, found.crossed) == (0, False)
    assert view.walk(base + b"/m/d", b"..", 0, nobody, 0).mount == 2


def test_detached_mount() -> None:
    """A lazily unmounted mount isn't entered, works from within, and its root has no parent."""
    view = View([(b"/", 0)], detached=[(b"/m", 2)])
    found = view.walk(b"/m/d", b"../../../d", 0, look_tree, 2)
    assert (found.mount, found.path) == (2, b"/m/d")
    assert walked(b"/", b"m", 0, view) == "ENOENT"


def test_served_root() -> None:
    """A mount on "/" is the root of everything; /proc, mounted before, is hidden by it."""
    view = View([(b"/", 0), (b"/proc", 1), (b"/", 2)])

    def look(mount: int, path: bytes) -> int:
        return -errno.EINVAL if mount == 2 else -errno.EIO

    for text, path in ((b"/", b"/"), (b"..", b"/"), (b"/../a", b"/a"), (b"/proc", b"/proc")):
        found = view.walk(b"/", text, 0, look)
        assert (found.mount, found.path) == (2, path)


# --- magic links ----------------------------------------------------------------------------------


def magic(path: bytes, flags: int, answer: Magic) -> Found | str:
    view = View([(b"/", 0), (b"/proc", 1), (b"/m", 2)])

    def look(mount: int, full: bytes) -> bytes | int | Magic:
        if mount == 2:
            return look_tree(mount, full)
        return answer if full == b"/proc/9/cwd" else -errno.EINVAL

    try:
        return view.walk(b"/", path, flags, look)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def test_magic_links() -> None:
    """The walk jumps; NO_MAGICLINKS and NO_SYMLINKS give ELOOP, scopes and NO_XDEV EXDEV."""
    served = Magic(b"/m/d", 2, True)
    found = magic(b"/proc/9/cwd/e", 0, served)
    assert isinstance(found, Found) and (found.mount, found.path) == (2, b"/m/d/e")
    assert found.crossed
    found = magic(b"/proc/9/cwd", 0, served)
    assert isinstance(found, Found) and (found.mount, found.path) == (1, b"/proc/9/cwd")
    for flag, error in (
        (NO_MAGICLINKS, "ELOOP"),
        (NO_SYMLINKS, "ELOOP"),
        (NO_XDEV, "EXDEV"),
        (IN_ROOT, "EXDEV"),
    ):
        base_error = magic(b"/proc/9/cwd", FOLLOW | flag, served)
        assert base_error == ("EXDEV" if flag == NO_XDEV else error)
    # a covered mount is reached although the path means another
    found = magic(b"/proc/9/cwd", FOLLOW, Magic(b"/m/d", 0))
    assert isinstance(found, Found) and (found.mount, found.crossed) == (0, False)


def test_magic_link_without_a_name() -> None:
    """A pipe or a deleted file: the walk ends at the link itself."""
    found = magic(b"/proc/9/cwd", FOLLOW, Magic(b"", directory=False))
    assert isinstance(found, Found) and (found.mount, found.path) == (1, b"/proc/9/cwd")
    for text in (b"/proc/9/cwd/", b"/proc/9/cwd/x", b"/proc/9/cwd/."):
        assert magic(text, 0, Magic(b"", directory=False)) == "ENOTDIR"
    found = magic(b"/proc/9/cwd/x", 0, Magic(b"", directory=True))
    assert isinstance(found, Found) and found.path == b"/proc/9/cwd/x"
