"""The path walk against the kernel's: same place, same errno."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pathtree import (
    RESOLVE_BENEATH,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    RESOLVE_NO_XDEV,
    ROOT_MARK,
    Node,
    built,
    host_mounts,
    kernel_walk,
    look_at,
    path_texts,
    paths,
    trees,
)

from core_accel import pathwalk
from core_accel.pathwalk import (
    BENEATH,
    FOLLOW,
    IN_ROOT,
    MISSING_OK,
    NO_MAGICLINKS,
    NO_SYMLINKS,
    NO_XDEV,
    SLASH_OK,
    Found,
    Magic,
    View,
)

Look = Callable[[int, bytes], bytes | int | Magic]
HOST = View([(b"/", 0)])
RESOLVE = {
    BENEATH: RESOLVE_BENEATH,
    IN_ROOT: RESOLVE_IN_ROOT,
    NO_SYMLINKS: RESOLVE_NO_SYMLINKS,
    NO_XDEV: RESOLVE_NO_XDEV,
    NO_MAGICLINKS: RESOLVE_NO_MAGICLINKS,
}
SCOPES = [flag for flag in RESOLVE if flag != NO_XDEV]
fuzz = settings(
    max_examples=120,
    suppress_health_check=list(HealthCheck),
)


def nobody(mount: int, path: bytes) -> int:
    raise AssertionError(f"nothing is to be asked about {path!r} on mount {mount}")


def look_path(mount: int, path: bytes) -> bytes | int:
    return look_at(path)


def by_kernel(base: bytes, path: bytes, follow: bool, resolve: int = 0) -> bytes | str:
    try:
        return kernel_walk(base, path, follow, resolve)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def walked(
    base: bytes, path: bytes, flags: int, view: View = HOST, look: Look = nobody
) -> bytes | str:
    pathwalk.forget()
    try:
        return view.walk(base, path, flags, look).path
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def found_or_error(base: bytes, path: bytes, flags: int) -> Found | OSError:
    pathwalk.forget()
    try:
        return HOST.walk(base, path, flags, nobody)
    except OSError as error:
        return error


# --- the host -------------------------------------------------------------------------------------


@fuzz
@given(trees, paths, st.booleans(), st.sampled_from([*SCOPES, NO_SYMLINKS | BENEATH, 0, 0, 0]))
def test_host_like_kernel(nodes: list[Node], texts: list[str], follow: bool, extra: int) -> None:
    resolve = sum(bit for flag, bit in RESOLVE.items() if extra & flag)
    with built(nodes) as root:
        for text in texts:
            path = os.fsencode(text).replace(ROOT_MARK.encode(), root)
            for base in (root, root + b"/a"):
                if os.path.isdir(base) and not os.path.islink(base):
                    real = by_kernel(base, path, follow, resolve)
                    ours = walked(base, path, (FOLLOW if follow else 0) | extra)
                    assert ours == real, (base, path)


@fuzz
@given(trees, paths, st.booleans())
def test_no_xdev_like_kernel(nodes: list[Node], texts: list[str], follow: bool) -> None:
    """With the host's own mounts as served ones, NO_XDEV fails where the kernel's does."""
    view = View([(b"/", 0), *((point, i + 2) for i, point in enumerate(host_mounts()))])
    with built(nodes) as root:
        for text in [*texts, ROOT_MARK + "/../../../../" + texts[0], "/dev/..", "/proc/sys", "/"]:
            path = os.fsencode(text).replace(ROOT_MARK.encode(), root)
            real = by_kernel(root, path, follow, RESOLVE_NO_XDEV)
            flags = (FOLLOW if follow else 0) | NO_XDEV
            assert walked(root, path, flags, view, look_path) == real, path


@fuzz
@given(trees, paths)
def test_virtual_root_like_in_root(nodes: list[Node], texts: list[str]) -> None:
    """A root of the view is to all paths what RESOLVE_IN_ROOT makes of a descriptor."""
    with built(nodes, absolute="/") as root:
        view = View([(b"/", 0)], root=root)
        for text in texts:
            path = os.fsencode(text).replace(ROOT_MARK.encode(), b"")
            real = by_kernel(root, path, True, RESOLVE_IN_ROOT)
            assert walked(root, path, FOLLOW, view) == real, path
            assert walked(root, path, FOLLOW | IN_ROOT) == real, path


@fuzz
@given(trees, paths)
def test_missing_like_mkdir(nodes: list[Node], texts: list[str]) -> None:
    """MISSING_OK without FOLLOW: what a call that makes a name sees."""
    with built(nodes) as root:
        for text in texts:
            path = os.fsencode(text).replace(ROOT_MARK.encode(), root)
            found = found_or_error(root, path, MISSING_OK | SLASH_OK)
            at = os.open(root, os.O_PATH)
            try:
                os.mkdir(path, dir_fd=at)
            except OSError as error:
                if isinstance(found, Found):
                    assert error.errno == errno.EEXIST and not found.missing, path
                else:
                    assert error.errno == found.errno, path
            else:
                assert isinstance(found, Found) and found.missing, path
                assert found.slash == path.endswith(b"/") and not found.last_dot
                assert kernel_walk(root, path, False) == found.path
                os.rmdir(found.path)
            finally:
                os.close(at)


@fuzz
@given(trees, paths)
def test_missing_like_open_creat(nodes: list[Node], texts: list[str]) -> None:
    """FOLLOW and MISSING_OK: open with O_CREAT makes what a dangling link names."""
    with built(nodes) as root:
        for text in texts:
            path = os.fsencode(text).replace(ROOT_MARK.encode(), root)
            found = found_or_error(root, path, FOLLOW | MISSING_OK | SLASH_OK)
            at = os.open(root, os.O_PATH)
            try:
                fd = os.open(path, os.O_CREAT | os.O_WRONLY, dir_fd=at)
            except OSError as error:
                if isinstance(found, Found):
                    assert error.errno == errno.EISDIR, path
                    assert found.slash or os.path.isdir(found.path)
                else:
                    assert error.errno == found.errno, path
            else:
                assert isinstance(found, Found) and not found.slash, path
                assert os.readlink(b"/proc/self/fd/%d" % fd) == found.path
                os.close(fd)
                if found.missing:
                    os.unlink(found.path)
            finally:
                os.close(at)


def test_lengths(tmp_path: Path) -> None:
    """NAME_MAX and PATH_MAX: ENAMETOOLONG where the kernel says so."""
    base = os.fsencode(tmp_path)
    (tmp_path / "f").touch()
    (tmp_path / "d").mkdir()
    texts = [
        b"x" * 255, b"x" * 256, b"f/" + b"x" * 256, b"nothing/" + b"x" * 256,
        b"./" * 2047 + b"d", b"./" * 2048, b"./" * 2047 + b"d/", b"/" * 4095, b"/" * 4096,
        b"d/../" * 819, b"d/../" * 820, b"", b"/", b"//", b".", b"..", b"f/.", b"f/..", b"f/",
        b"d/", b"d/.", b"d/..", b"nothing/", b"nothing/.", b"f/nothing",
    ]  # fmt: skip
    for text in texts:
        for follow in (True, False):
            real = by_kernel(base, text, follow)
            assert walked(base, text, FOLLOW if follow else 0) == real, text[:20]


@pytest.mark.parametrize("count", [39, 40, 41])
def test_number_of_links(tmp_path: Path, count: int) -> None:
    """The 41st link on a walk is ELOOP, chained or one after another."""
    base = os.fsencode(tmp_path)
    (tmp_path / "l0").mkdir()
    for i in range(count):
        (tmp_path / f"l{i + 1}").symlink_to(f"l{i}")
    (tmp_path / "here").symlink_to(".")
    for text in (b"l%d" % count, b"here/" * count + b"l0", b"here/" * (count - 1) + b"l1/."):
        real = by_kernel(base, text, True)
        assert walked(base, text, FOLLOW) == real
        assert (real == "ELOOP") == (count > 40)


def test_long_links(tmp_path: Path) -> None:
    """Targets near PATH_MAX, one inside the other, with text after them."""
    base = os.fsencode(tmp_path)
    (tmp_path / "d").mkdir()
    os.symlink(b"./" * 2046 + b"d", base + b"/one")
    os.symlink(b"./" * 2045 + b"one", base + b"/two")
    for text in (b"two", b"two/" + b"./" * 2000 + b"../d", b"two/nothing"):
        assert walked(base, text, FOLLOW) == by_kernel(base, text, True)


def test_search_permission(tmp_path: Path) -> None:
    """A directory without x: EACCES for what is in it, for "." and "..", not for itself."""
    import ctypes
    import tempfile
    import threading

    top = tempfile.mkdtemp(prefix="pathwalk-")
    os.chmod(top, 0o755)
    base = os.fsencode(top)
    os.makedirs(base + b"/closed/d")
    os.chmod(base + b"/closed", 0o644)
    results: dict[bytes, tuple[bytes | str, bytes | str]] = {}

    def check() -> None:
        if os.geteuid() == 0:  # for this thread only: the system call itself, not libc's function
            ctypes.CDLL(None).syscall(117, 65534, 65534, 65534)
        for text in (b"closed", b"closed/", b"closed/.", b"closed/..", b"closed/d", b"closed/no"):
            results[text] = walked(base, text, FOLLOW), by_kernel(base, text, True)

    thread = threading.Thread(target=check)
    thread.start()
    thread.join()
    os.chmod(base + b"/closed", 0o755)
    shutil.rmtree(top)
    assert len(results) == 6
    assert results[b"closed/d"][1] == results[b"closed/.."][1] == "EACCES"
    for text, (ours, real) in results.items():
        assert ours == real, text


def test_moved_directory_is_forgotten(tmp_path: Path) -> None:
    """A directory seen a moment ago may be a link now: forget() makes the walk look again."""
    base = os.fsencode(tmp_path)
    for name in ("d", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").touch()
    for _ in range(3):
        assert walked(base, b"d/f", FOLLOW) == base + b"/d/f"
    (tmp_path / "d").rename(tmp_path / "e")
    (tmp_path / "d").symlink_to("other")
    pathwalk.forget()
    assert HOST.walk(base, b"d/f", FOLLOW, nobody).path == base + b"/other/f"


# --- a served tree --------------------------------------------------------------------------------


@fuzz
@given(trees, paths, st.booleans(), st.sampled_from([0, 0, BENEATH, IN_ROOT, NO_SYMLINKS]))
def test_served_like_host(nodes: list[Node], texts: list[str], follow: bool, extra: int) -> None:
    """The same tree on a mount gives the kernel's answers, with the mount's path in them."""
    resolve = sum(bit for flag, bit in RESOLVE.items() if extra & flag)
    with built(nodes) as real:
        point = os.path.dirname(real) + b"/real2"
        os.mkdir(point)

        def look(mount: int, path: bytes) -> bytes | int:
            assert mount == 7 and path.startswith(point + b"/")
            answer = look_at(real + path[len(point) :])
            return answer.replace(real, point) if isinstance(answer, bytes) else answer

        view = View([(b"/", 0), (point, 7)])
        for text in texts:
            path = os.fsencode(text).replace(ROOT_MARK.encode(), real)
            flags = (FOLLOW if follow else 0) | extra
            kernel = by_kernel(real, path, follow, resolve)
            pathwalk.forget()
            try:
                found = view.walk(point, path.replace(real, point), flags, look)
            except OSError as error:
                assert errno.errorcode[error.errno or 0] == kernel, path
                continue
            assert found.path.replace(point, real) == kernel, path
            assert found.mount == (7 if (found.path + b"/").startswith(point + b"/") else 0)
            assert found.crossed


# --- robustness -----------------------------------------------------------------------------------

_text = st.binary(max_size=40).map(lambda b: b.replace(b"\0", b"/"))
_slashy = st.lists(st.sampled_from([b"/", b".", b"..", b"a", b"mm", b"\xff", b"a" * 300])).map(
    lambda parts: b"/".join(parts)
)
_any = st.one_of(_text, _slashy, st.sampled_from([b"x" * 4095, b"x/" * 2047, b"../" * 1365]))
_answer = st.one_of(
    _any,
    st.sampled_from([-errno.EINVAL, -errno.ENOTDIR, -errno.ENOENT, -errno.EIO, -errno.EINVAL]),
    st.sampled_from([Magic(b"/a/mm"), Magic(b"/"), Magic(b""), Magic(b"/a", 3, True)]),
)


@settings(fuzz, max_examples=400)
@given(
    _any,
    _any,
    st.integers(0, 511),
    st.lists(_answer, min_size=1, max_size=30),
    st.lists(st.tuples(_slashy, st.integers(1, 9)), max_size=6),
)
def test_any_bytes(
    base: bytes, path: bytes, flags: int, answers: list[bytes | int | Magic],
    mounts: list[tuple[bytes, int]],
) -> None:  # fmt: skip
    """No input breaks the walk: an OSError, or a canonical path."""
    asked = 0

    def look(mount: int, full: bytes) -> bytes | int | Magic:
        nonlocal asked
        asked += 1
        assert mount > 0 and len(full) < 16384 + len("/.")
        return answers[asked % len(answers)]

    points = [(b"/" + p.strip(b"/"), i) for p, i in mounts if len(p) < 4000]
    base = b"/" + b"/".join(x for x in base.split(b"/") if x not in (b"", b".", b".."))
    view = View([(b"/", 2), *points], detached=points[:1])
    try:
        found = view.walk(base, path, flags, look)
    except OSError as error:
        assert error.errno in {
            errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EXDEV,
            errno.EIO, errno.EINVAL,
        }  # fmt: skip
        return
    assert asked <= 41 * 4096
    assert found.path.startswith(b"/") and b"\0" not in found.path and len(found.path) < 16384
    if found.path != b"/":
        assert not {b"", b".", b".."} & set(found.path[1:].split(b"/"))


@given(path_texts())
@settings(fuzz, max_examples=30)
def test_callback_errors(text: str) -> None:
    """What the callback raises comes out; an answer that makes no sense is a ValueError."""
    view = View([(b"/", 2)])

    def broken(mount: int, path: bytes) -> int:
        raise KeyError(path)

    path = os.fsencode(text.replace(ROOT_MARK, "")).strip(b"/.")
    if path:
        with pytest.raises(KeyError):
            view.walk(b"/", path, 0, broken)
        with pytest.raises(ValueError, match="look answered"):
            view.walk(b"/", path, 0, lambda mount, full: 5)


@pytest.mark.parametrize("bad", [b"m", b""])
def test_bad_points(bad: bytes) -> None:
    with pytest.raises(ValueError, match="not absolute"):
        View([(bad, 2)])
    with pytest.raises(ValueError, match="null byte"):
        HOST.walk(b"/", b"a\0b", 0, nobody)
