"""The rules of the VFS that are plain functions: permissions, attributes, flags of open."""

from __future__ import annotations

import errno
import os
import stat
from typing import Any

import pytest

from umvm.guest.mounts import Mount
from umvm.interfaces.filesystem import Attr, Caller, FileSystem
from umvm.vfs import attributes, openflags, permission

ROOT = Caller(0, 0, 1)
OWNER = Caller(100, 200, 1, (), 0o027)
MEMBER = Caller(101, 201, 1, (200, 300))
OTHER = Caller(102, 202, 1)
REG, DIR = stat.S_IFREG, stat.S_IFDIR


def attr(mode: int, uid: int = 100, gid: int = 200) -> Attr:
    return Attr(mode, uid=uid, gid=gid)


def mount(**changes: Any) -> Mount:
    made = Mount(2, b"/m", FileSystem(), "test", "none", {}, "test")
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def number(function: Any, *arguments: Any) -> int:
    """The errno that a function raises."""
    with pytest.raises(OSError) as caught:
        function(*arguments)
    return caught.value.errno or 0


@pytest.mark.parametrize(
    ("mode", "caller", "granted"),
    [
        (REG | 0o640, OWNER, 6), (REG | 0o640, MEMBER, 4), (REG | 0o640, OTHER, 0),
        (REG | 0o047, OWNER, 0), (REG | 0o047, MEMBER, 4), (REG | 0o007, OTHER, 7),
        (REG | 0o000, ROOT, 6), (REG | 0o001, ROOT, 7), (DIR | 0o000, ROOT, 7),
    ],
)  # fmt: skip
def test_mode_bits(mode: int, caller: Caller, granted: int) -> None:
    """The owner's bits count for the owner even if others have more; root needs some x bit."""
    for mask in range(1, 8):
        assert permission.allowed(attr(mode), caller, mask) == (mask & granted == mask)


def test_searching_is_the_same_rule() -> None:
    assert permission.searcher(ROOT) is None
    for caller in (OWNER, MEMBER, OTHER):
        search = permission.searcher(caller)
        assert search is not None
        for bits in range(0o1000):
            directory = attr(DIR | bits)
            assert search(directory) == permission.allowed(directory, caller, 1)


def test_read_only_comes_before_permission() -> None:
    closed = mount(read_only=True)
    assert number(permission.permit, closed, attr(REG), OTHER, 2) == errno.EROFS
    assert number(permission.permit, closed, attr(stat.S_IFIFO), OTHER, 2) == errno.EACCES
    permission.permit(closed, attr(REG | 0o444), OTHER, 4)


def test_sticky_directories() -> None:
    sticky = attr(DIR | 0o1777, 101, 0)
    permission.check_delete(mount(), sticky, attr(REG), OWNER, False)
    permission.check_delete(mount(), sticky, attr(REG), MEMBER, False)
    permission.check_delete(mount(), sticky, attr(REG), ROOT, False)
    assert number(permission.check_delete, mount(), sticky, attr(REG), OTHER, False) == errno.EPERM
    plain = attr(DIR | 0o777)
    assert number(permission.check_delete, mount(), plain, attr(DIR), OTHER, False) == errno.EISDIR
    assert number(permission.check_delete, mount(), plain, attr(REG), OTHER, True) == errno.ENOTDIR


@pytest.fixture
def protect(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set the host's settings of /proc/sys/fs/protected_*, which the functions read."""

    def set_to(**settings: int) -> None:
        off = dict.fromkeys(permission.Protections._fields, 0)
        values = permission.Protections(**{**off, **settings})
        monkeypatch.setattr(permission, "protections", lambda: values)

    return set_to


def test_protected_hardlinks(protect: Any) -> None:
    protect(hardlinks=1)
    link = permission.check_link_source
    link(mount(), attr(REG | 0o666), OTHER)
    link(mount(), attr(REG), OWNER)
    for mode in (REG | 0o644, REG | 0o4666, REG | 0o2676, stat.S_IFIFO | 0o666):
        assert number(link, mount(), attr(mode), OTHER) == errno.EPERM, oct(mode)
    protect()
    link(mount(), attr(REG), OTHER)


def test_protected_regular_and_fifos(protect: Any) -> None:
    check, fifo = permission.check_sticky_open, stat.S_IFIFO
    shared, group = attr(DIR | 0o1777, 0, 0), attr(DIR | 0o1770, 0, 0)
    protect(regular=1)
    assert number(check, mount(), shared, attr(REG), OTHER) == errno.EACCES
    assert number(check, mount(), shared, attr(REG), ROOT) == errno.EACCES
    for directory, file, caller in (
        (shared, attr(REG), OWNER), (shared, attr(REG, 0), OTHER), (group, attr(REG), OTHER),
        (attr(DIR | 0o777), attr(REG), OTHER), (shared, attr(fifo), OTHER),
    ):  # fmt: skip
        check(mount(), directory, file, caller)
    protect(regular=2, fifos=2)
    assert number(check, mount(), group, attr(REG), OTHER) == errno.EACCES
    assert number(check, mount(), group, attr(fifo), OTHER) == errno.EACCES


def test_protected_symlinks() -> None:
    link = attr(stat.S_IFLNK | 0o777)
    for directory in (attr(DIR | 0o777, 0), attr(DIR | 0o1775, 0), attr(DIR | 0o1777, 100)):
        permission.check_follow(mount(), directory, link, OTHER)
    shared = attr(DIR | 0o1777, 0)
    permission.check_follow(mount(), shared, link, OWNER)
    assert number(permission.check_follow, mount(), shared, link, ROOT) == errno.EACCES


def test_chmod() -> None:
    assert attributes.new_mode(attr(REG), OWNER, 0o107777) == 0o7777
    assert attributes.new_mode(attr(REG, gid=999), OWNER, 0o2755) == 0o755
    assert attributes.new_mode(attr(REG, gid=999), ROOT, 0o2755) == 0o2755
    assert number(attributes.new_mode, attr(REG), MEMBER, 0) == errno.EPERM


@pytest.mark.parametrize(
    ("mode", "caller", "uid", "gid", "answer"),
    [
        (REG | 0o644, OWNER, -1, -1, None), (REG | 0o4755, OWNER, -1, -1, 0o755),
        (REG | 0o2644, OWNER, -1, 200, None), (REG | 0o2654, OWNER, -1, 200, 0o654),
        (REG | 0o6777, ROOT, 5, 5, 0o777), (DIR | 0o6777, ROOT, 5, 5, None),
        (REG | 0o644, OTHER, -1, -1, None), (REG | 0o4644, OTHER, -1, -1, "EPERM"),
        (REG | 0o644, OWNER, 101, -1, "EPERM"), (REG | 0o644, OWNER, 100, -1, None),
        (REG | 0o644, OWNER, -1, 300, "EPERM"), (REG | 0o644, MEMBER, -1, 300, "EPERM"),
        (REG | 0o644, ROOT, 7, 7, None),
    ],
)  # fmt: skip
def test_chown(mode: int, caller: Caller, uid: int, gid: int, answer: Any) -> None:
    """Set-id bits go, which takes the owner even if neither id changes."""
    if answer == "EPERM":
        assert number(attributes.check_owner, attr(mode), caller, uid, gid) == errno.EPERM
    else:
        assert attributes.check_owner(attr(mode), caller, uid, gid) == answer


def test_mode_of_a_new_file() -> None:
    plain, group = attr(DIR | 0o777), attr(DIR | 0o2777, gid=300)
    assert attributes.create_mode(plain, OWNER, 0o6777) == 0o6750
    assert attributes.create_mode(group, OWNER, 0o2770) == 0o750
    assert attributes.create_mode(group, MEMBER, 0o2770) == 0o2750
    assert attributes.create_mode(group, OWNER, 0o2640) == 0o2640


def test_times() -> None:
    now, keep = attributes.UTIME_NOW, attributes.UTIME_OMIT
    assert attributes.times_of((1, keep), (2, keep)) is None
    assert attributes.times_of((1, 5), (-2, 0)) == (10**9 + 5, -2 * 10**9, False)
    both = attributes.times_of((1, now), (2, now))
    assert both is not None and both.touch and both.atime_ns == both.mtime_ns
    one = attributes.times_of((1, now), (2, keep))
    assert one is not None and not one.touch and one.atime_ns and one.mtime_ns is None
    for bad in (10**9, -1, keep - 1):
        assert number(attributes.times_of, (0, bad), (0, 0)) == errno.EINVAL


def test_flags_of_open() -> None:
    """open forgives what openat2 doesn't."""
    how = openflags.how_of(os.O_PATH | os.O_CREAT | os.O_RDWR | 1 << 40, 0o17777)
    assert (how.flags, how.mode, how.access) == (os.O_PATH, 0, 0)
    how = openflags.how_of(os.O_CREAT | os.O_EXCL | os.O_TRUNC, 0o17777)
    assert how.exclusive and how.mode == 0o7777 and how.access == 6
    assert not how.flags & os.O_NOFOLLOW  # F_GETFL would show it
    assert openflags.how_of(3, 0).access == 6
    for flags, mode, resolve in (
        (1 << 40, 0, 0), (0, 0o600, 0), (os.O_CREAT, 0o10000, 0), (os.O_PATH | os.O_RDWR, 0, 0),
        (os.O_CREAT | os.O_DIRECTORY, 0, 0), (os.O_TMPFILE, 0, 0), (0, 0, 0x40), (0, 0, 0x18),
        (openflags.TMPFILE | os.O_RDWR, 0, 0), (os.O_TMPFILE | os.O_RDWR | os.O_CREAT, 0, 0),
    ):  # fmt: skip
        assert number(openflags.how_of2, flags, mode, resolve) == errno.EINVAL, (
            flags,
            mode,
            resolve,
        )
    assert number(openflags.how_of2, os.O_TRUNC | os.O_RDWR, 0, 0x20) == errno.EAGAIN
    assert openflags.how_of2(0, 0, 0x20).walk == 0
