"""The file system contract: modes, owners, times and sizes."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable

import pytest
from contract_base import ContractBase, Feature, mode, needs, put, refused

from umvm.interfaces.filesystem import Attr, FileSystem

OLD = 1_000_000_000_123_456_789
"""A time in 2001: whatever is newer was set by the call under test."""

Change = tuple[str, tuple[Feature, ...], Callable[[FileSystem], object], dict[bytes, str]]


def _write(fs: FileSystem) -> None:
    fh = fs.open(b"/d/f", os.O_WRONLY)
    fs.write(b"/d/f", fh, b"x", 1)
    fs.release(b"/d/f", fh)


def _write_nothing(fs: FileSystem) -> None:
    fh = fs.open(b"/d/f", os.O_WRONLY)
    fs.write(b"/d/f", fh, b"", 1)
    fs.release(b"/d/f", fh)


def _read(fs: FileSystem) -> None:
    fh = fs.open(b"/d/f", os.O_RDONLY)
    fs.read(b"/d/f", fh, 5, 0)
    fs.release(b"/d/f", fh)


def _list(fs: FileSystem) -> None:
    fh = fs.opendir(b"/d")
    list(fs.readdir(b"/d", fh))
    fs.releasedir(b"/d", fh)


def _truncate_open(fs: FileSystem) -> None:
    fh = fs.open(b"/d/f", os.O_RDWR)
    fs.truncate(b"/d/f", 5, fh)
    fs.release(b"/d/f", fh)


CHANGES: tuple[Change, ...] = (
    # name, needs, what is done, which times of which files become new: a m c
    ("write", (), _write, {b"/d/f": "mc"}),
    ("write nothing", (), _write_nothing, {}),
    ("read", (Feature.ATIME,), _read, {b"/d/f": "a"}),
    ("readdir", (Feature.ATIME,), _list, {b"/d": "a"}),
    (
        "readlink",
        (Feature.ATIME, Feature.SYMLINKS),
        lambda fs: fs.readlink(b"/d/s"),
        {b"/d/s": "a"},
    ),
    ("truncate", (), lambda fs: fs.truncate(b"/d/f", 3), {b"/d/f": "mc"}),
    ("ftruncate to the same size", (), _truncate_open, {b"/d/f": "mc"}),
    ("chmod", (Feature.CHMOD,), lambda fs: fs.chmod(b"/d/f", 0o600), {b"/d/f": "c"}),
    ("chown", (), lambda fs: fs.chown(b"/d/f", os.geteuid(), os.getegid()), {b"/d/f": "c"}),
    ("utimens", (), lambda fs: fs.utimens(b"/d/f", None, OLD), {b"/d/f": "c"}),
    ("create", (), lambda fs: put(fs, b"/d/n"), {b"/d": "mc", b"/d/n": "amc"}),
    ("mkdir", (), lambda fs: fs.mkdir(b"/d/n", 0o755), {b"/d": "mc", b"/d/n": "amc"}),
    (
        "mknod",
        (Feature.SOCKETS,),
        lambda fs: fs.mknod(b"/d/n", stat.S_IFIFO | 0o600, 0),
        {b"/d": "mc", b"/d/n": "amc"},
    ),
    (
        "symlink",
        (Feature.SYMLINKS,),
        lambda fs: fs.symlink(b"x", b"/d/n"),
        {b"/d": "mc", b"/d/n": "amc"},
    ),
    (
        "link",
        (Feature.HARD_LINKS,),
        lambda fs: fs.link(b"/d/f", b"/e/n"),
        {b"/d/f": "c", b"/e/n": "c", b"/e": "mc"},
    ),
    (
        "unlink one of two names",
        (Feature.HARD_LINKS,),
        lambda fs: fs.unlink(b"/e/h"),
        {b"/d/h": "c", b"/e": "mc"},
    ),
    ("unlink", (), lambda fs: fs.unlink(b"/d/f"), {b"/d": "mc"}),
    ("rmdir", (), lambda fs: fs.rmdir(b"/d/s.d"), {b"/d": "mc"}),
    ("rename", (), lambda fs: fs.rename(b"/d/f", b"/d/n"), {b"/d": "mc", b"/d/n": "c"}),
    (
        "rename elsewhere",
        (),
        lambda fs: fs.rename(b"/d/f", b"/e/n"),
        {b"/d": "mc", b"/e": "mc", b"/e/n": "c"},
    ),
    (
        "rename over",
        (Feature.HARD_LINKS,),
        lambda fs: fs.rename(b"/d/f", b"/e/h"),
        {b"/d": "mc", b"/e": "mc", b"/e/h": "c", b"/d/h": "c"},
    ),
    (
        "rename of a directory",
        (),
        lambda fs: fs.rename(b"/d/s.d", b"/e/n"),
        {b"/d": "mc", b"/e": "mc", b"/e/n": "c"},
    ),
    (
        "exchange",
        (Feature.EXCHANGE, Feature.HARD_LINKS),
        lambda fs: fs.rename(b"/d/f", b"/e/h", 2),
        {b"/d": "mc", b"/e": "mc", b"/d/f": "c", b"/e/h": "c", b"/d/h": "c"},
    ),
    (
        "setxattr",
        (Feature.XATTR,),
        lambda fs: fs.setxattr(b"/d/f", b"user.a", b"2", 0),
        {b"/d/f": "c"},
    ),
    (
        "removexattr",
        (Feature.XATTR,),
        lambda fs: fs.removexattr(b"/d/f", b"user.x"),
        {b"/d/f": "c"},
    ),
    ("stat", (), lambda fs: fs.getattr(b"/d/f"), {}),
    ("open and close", (), lambda fs: fs.release(b"/d/f", fs.open(b"/d/f", os.O_RDWR)), {}),
)
WATCHED = (b"/d", b"/e", b"/d/f", b"/d/h", b"/d/s", b"/d/n", b"/e/n", b"/e/h", b"/d/s.d")


class AttributesContract(ContractBase):
    """What getattr shows, and what sets it."""

    def test_a_new_file_belongs_to_the_caller(self, fs: FileSystem) -> None:
        put(fs, b"/f")
        fs.mkdir(b"/d", 0o755)
        for path in (b"/f", b"/d"):
            attr = fs.getattr(path)
            assert (attr.uid, attr.gid) == (os.geteuid(), os.getegid())

    @needs(Feature.CHMOD)
    @pytest.mark.parametrize("bits", [0, 0o4, 0o200, 0o644, 0o1777, 0o2755, 0o4711, 0o7777])
    def test_chmod(self, fs: FileSystem, bits: int) -> None:
        put(fs, b"/f")
        fs.mkdir(b"/d", 0o755)
        for path, kind in ((b"/f", stat.S_IFREG), (b"/d", stat.S_IFDIR)):
            fs.chmod(path, bits)
            assert fs.getattr(path).mode == kind | bits
            fs.chmod(path, 0o700)
        refused(errno.ENOENT, fs.chmod, b"/x", 0o600)

    @needs(Feature.CHMOD)
    def test_chmod_of_an_open_file(self, fs: FileSystem) -> None:
        put(fs, b"/f")
        fh = fs.open(b"/f", os.O_RDONLY)
        fs.chmod(b"/f", 0o640, fh)
        assert mode(fs.getattr(b"/f")) == mode(fs.getattr(b"/f", fh)) == 0o640
        fs.release(b"/f", fh)

    @needs(Feature.CHMOD, Feature.SYMLINKS)
    def test_chmod_of_a_symbolic_link(self, fs: FileSystem) -> None:
        put(fs, b"/f", mode=0o644)
        fs.symlink(b"f", b"/s")
        refused(errno.EOPNOTSUPP, fs.chmod, b"/s", 0o600)
        assert mode(fs.getattr(b"/f")) == 0o644

    def test_chown_to_the_same_owner(self, fs: FileSystem) -> None:
        put(fs, b"/f")
        before = fs.getattr(b"/f")
        for uid, gid in ((-1, -1), (before.uid, -1), (-1, before.gid), (before.uid, before.gid)):
            fs.chown(b"/f", uid, gid)
            after = fs.getattr(b"/f")
            assert (after.uid, after.gid) == (before.uid, before.gid)
        refused(errno.ENOENT, fs.chown, b"/x", -1, -1)

    @needs(Feature.OWNERS)
    def test_chown(self, fs: FileSystem) -> None:
        put(fs, b"/f")
        fs.chown(b"/f", 1234, 5678)
        assert fs.getattr(b"/f")[3:5] == (1234, 5678)
        fs.chown(b"/f", -1, 9)
        assert fs.getattr(b"/f")[3:5] == (1234, 9)
        fh = fs.open(b"/f", os.O_RDONLY)
        fs.chown(b"/f", 8, -1, fh)
        fs.release(b"/f", fh)
        assert fs.getattr(b"/f")[3:5] == (8, 9)

    @needs(Feature.OWNERS, Feature.SYMLINKS)
    def test_chown_of_a_symbolic_link(self, fs: FileSystem) -> None:
        put(fs, b"/f")
        fs.symlink(b"f", b"/s")
        fs.chown(b"/s", 1234, 5678)
        assert fs.getattr(b"/s")[3:5] == (1234, 5678)
        assert fs.getattr(b"/f")[3:5] == (os.geteuid(), os.getegid())

    # --- times ---------------------------------------------------------------------------------

    @needs(Feature.TIMES)
    def test_utimens(self, fs: FileSystem) -> None:
        put(fs, b"/f")
        fs.mkdir(b"/d", 0o755)
        for path in (b"/f", b"/d", b"/"):
            fs.utimens(path, OLD, 2 * OLD)
            assert self.times(fs.getattr(path)) == (OLD, 2 * OLD)
            fs.utimens(path, None, 3)
            assert self.times(fs.getattr(path)) == (OLD, 3)
            fs.utimens(path, 4, None)
            assert self.times(fs.getattr(path)) == (4, 3)
        refused(errno.ENOENT, fs.utimens, b"/x", 1, 1)

    @needs(Feature.TIMES)
    def test_utimens_of_an_open_file(self, fs: FileSystem) -> None:
        put(fs, b"/f")
        fh = fs.open(b"/f", os.O_RDONLY)
        fs.utimens(b"/f", OLD, OLD + 1, fh)
        assert self.times(fs.getattr(b"/f", fh)) == (OLD, OLD + 1)
        fs.release(b"/f", fh)

    @needs(Feature.TIMES, Feature.SYMLINKS)
    def test_utimens_of_a_symbolic_link(self, fs: FileSystem) -> None:
        fs.symlink(b"missing", b"/s")
        fs.utimens(b"/s", OLD, OLD + 1)
        assert self.times(fs.getattr(b"/s")) == (OLD, OLD + 1)

    @staticmethod
    def times(attr: Attr) -> tuple[int, int]:
        """atime and mtime."""
        return attr.atime_ns, attr.mtime_ns

    @needs(Feature.TIMES)
    def test_new_files_have_the_present_time(self, fs: FileSystem) -> None:
        start = time.time_ns() - 20_000_000  # the kernel's clock for files is up to a tick behind
        put(fs, b"/f")
        end = time.time_ns()
        attr = fs.getattr(b"/f")
        for stamp in (attr.atime_ns, attr.mtime_ns, attr.ctime_ns, attr.btime_ns or start):
            assert start <= stamp <= end

    @needs(Feature.TIMES)
    @pytest.mark.parametrize("change", CHANGES, ids=[change[0] for change in CHANGES])
    def test_times_after(self, fs: FileSystem, change: Change) -> None:
        _, features, action, expected = change
        lacking = set(features) - self.features
        if lacking:
            pytest.skip(f"not offered: {lacking.pop().name}")
        fs.mkdir(b"/d", 0o755)
        fs.mkdir(b"/e", 0o755)
        fs.mkdir(b"/d/s.d", 0o755)
        put(fs, b"/d/f", b"12345")
        put(fs, b"/d/h", b"12345")
        if Feature.HARD_LINKS in self.features:
            fs.link(b"/d/h", b"/e/h")
        if Feature.SYMLINKS in self.features:
            fs.symlink(b"f", b"/d/s")
        if Feature.XATTR in self.features:
            fs.setxattr(b"/d/f", b"user.x", b"1", 0)
        for path in WATCHED:
            if path in self.all(fs):
                fs.utimens(path, OLD, OLD)
        before = self.all(fs)
        time.sleep(0.02)  # ctime can't be set: the kernel's clock for files must have moved on
        action(fs)
        assert self.news(before, self.all(fs)) == expected

    @staticmethod
    def all(fs: FileSystem) -> dict[bytes, Attr]:
        """The attributes of what there is."""
        found = {}
        for path in WATCHED:
            try:
                found[path] = fs.getattr(path)
            except FileNotFoundError:
                pass
        return found

    @staticmethod
    def news(before: dict[bytes, Attr], after: dict[bytes, Attr]) -> dict[bytes, str]:
        """Which times were updated, by file; of a moved file what it had is known by its inode."""
        known = {attr.ino: attr for attr in before.values()}
        found = {}
        for path, attr in after.items():
            old = known.get(attr.ino, Attr(0))
            pairs = zip("amc", attr[7:10], old[7:10], strict=True)
            changed = "".join(letter for letter, now, then in pairs if now != then)
            if changed:
                found[path] = changed
        return found

    @needs(Feature.ATIME)
    def test_atime_is_relative(self, fs: FileSystem) -> None:
        """A second read doesn't change atime; one with O_NOATIME never does."""
        put(fs, b"/f", b"12345")
        fs.utimens(b"/f", OLD, OLD)
        fh = fs.open(b"/f", os.O_RDONLY | os.O_NOATIME)
        fs.read(b"/f", fh, 5, 0)
        fs.release(b"/f", fh)
        assert fs.getattr(b"/f").atime_ns == OLD
        time.sleep(0.02)
        _read_once(fs)
        first = fs.getattr(b"/f").atime_ns
        time.sleep(0.02)
        _read_once(fs)
        assert OLD < first == fs.getattr(b"/f").atime_ns
        later = time.time_ns() + 10**13
        fs.utimens(b"/f", later, later + 1)
        _read_once(fs)
        assert fs.getattr(b"/f").atime_ns < later  # older than mtime, though not than ctime

    # --- sizes ---------------------------------------------------------------------------------

    def test_blocks_grow_with_content(self, fs: FileSystem) -> None:
        put(fs, b"/f", bytes(range(256)) * 4096)
        fh = fs.open(b"/f", os.O_RDWR)
        fs.fsync(b"/f", fh, False)
        fs.release(b"/f", fh)
        attr = fs.getattr(b"/f")
        assert attr.size == 1 << 20
        assert attr.blocks == -1 or attr.blocks * 512 >= 1 << 20
        assert attr.blksize >= 512

    @needs(Feature.STATFS)
    def test_statfs(self, fs: FileSystem) -> None:
        s = fs.statfs(b"/")
        assert s.bsize > 0 and s.frsize > 0
        assert s.blocks >= s.bfree >= s.bavail > 0
        assert s.files >= s.ffree
        assert s.namemax == 255


def _read_once(fs: FileSystem) -> None:
    fh = fs.open(b"/f", os.O_RDONLY)
    assert fs.read(b"/f", fh, 5, 0) == b"12345"
    fs.release(b"/f", fh)
