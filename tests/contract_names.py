"""The file system contract: names, directories, links and rename."""

from __future__ import annotations

import errno
import os
import stat
import threading

import pytest
from contract_base import ContractBase, Feature, exists, get, mode, names, needs, put, refused

from umvm.interfaces.filesystem import RENAME_EXCHANGE, RENAME_NOREPLACE, Attr, FileSystem

NOTHING, FILE, SYMLINK, EMPTY, FULL = "nothing", "file", "symlink", "empty", "full"
KINDS = (NOTHING, FILE, SYMLINK, EMPTY, FULL)
DIRECTORIES = (EMPTY, FULL)


def make(fs: FileSystem, path: bytes, kind: str) -> None:
    """Something of that kind; its name is in its content."""
    if kind == FILE:
        put(fs, path, path)
    elif kind == SYMLINK:
        fs.symlink(path, path)
    elif kind in DIRECTORIES:
        fs.mkdir(path, 0o755)
        if kind == FULL:
            put(fs, path + b"/x", path)


def identity(fs: FileSystem, path: bytes) -> object:
    """What is at a path, so that it is known again after a rename."""
    if not exists(fs, path):
        return NOTHING
    kind = stat.S_IFMT(fs.getattr(path).mode)
    if kind == stat.S_IFDIR:
        return [(name, get(fs, path + b"/" + name)) for name in names(fs, path)]
    return fs.readlink(path) if kind == stat.S_IFLNK else get(fs, path)


def rename_error(old: str, new: str, flags: int) -> int:
    """What rename(2) answers for things of these kinds, neither inside the other; 0 is success."""
    if old == NOTHING:
        return errno.ENOENT
    if flags & RENAME_EXCHANGE:
        return errno.ENOENT if new == NOTHING else 0
    if new == NOTHING:
        return 0
    if flags & RENAME_NOREPLACE:
        return errno.EEXIST
    if old in DIRECTORIES:
        return {EMPTY: 0, FULL: errno.ENOTEMPTY}.get(new, errno.ENOTDIR)
    return errno.EISDIR if new in DIRECTORIES else 0


class NamesContract(ContractBase):
    """Everything that makes, moves or removes a name."""

    # --- look-up -------------------------------------------------------------------------------

    def test_the_root_is_a_directory(self, fs: FileSystem) -> None:
        attr = fs.getattr(b"/")
        assert stat.S_ISDIR(attr.mode)
        assert names(fs, b"/") == []

    def test_a_missing_name(self, fs: FileSystem) -> None:
        fs.mkdir(b"/d", 0o755)
        for path in (b"/x", b"/d/x", b"/x/y"):
            refused(errno.ENOENT, fs.getattr, path)
        for call in (fs.unlink, fs.rmdir, fs.readlink, fs.opendir):
            refused(errno.ENOENT, call, b"/d/x")
        refused(errno.ENOENT, fs.open, b"/d/x", os.O_RDONLY)
        refused(errno.ENOENT, fs.mkdir, b"/x/y", 0o755)
        refused(errno.ENOENT, fs.create, b"/x/y", 0o644, os.O_WRONLY)

    def test_a_file_on_the_way(self, fs: FileSystem) -> None:
        put(fs, b"/f")
        refused(errno.ENOTDIR, fs.getattr, b"/f/x")
        refused(errno.ENOTDIR, fs.getattr, b"/f/x/y")
        refused(errno.ENOTDIR, fs.mkdir, b"/f/x", 0o755)
        refused(errno.ENOTDIR, fs.unlink, b"/f/x")
        refused(errno.ENOTDIR, fs.opendir, b"/f")

    def test_the_length_of_a_name(self, fs: FileSystem) -> None:
        longest = b"/" + b"n" * 255
        put(fs, longest, b"x")
        assert names(fs, b"/") == [longest[1:]]
        too_long = longest + b"n"
        refused(errno.ENAMETOOLONG, fs.getattr, too_long)
        refused(errno.ENAMETOOLONG, fs.mkdir, too_long, 0o755)
        refused(errno.ENAMETOOLONG, fs.create, too_long, 0o644, os.O_WRONLY)
        refused(errno.ENAMETOOLONG, fs.rename, longest, too_long)

    def test_any_byte_in_a_name(self, fs: FileSystem) -> None:
        strange = [b" ", b"\n", b"\xff\xfe", b"\x01", "ä".encode(), b"...", b"a\\b", b"-"]
        for name in strange:
            put(fs, b"/" + name, name)
        assert names(fs, b"/") == sorted(strange)
        assert [get(fs, b"/" + name) for name in strange] == strange

    # --- making and removing -------------------------------------------------------------------

    def test_create_makes_a_regular_file(self, fs: FileSystem) -> None:
        fh = fs.create(b"/f", 0o640, os.O_RDWR)
        attr = fs.getattr(b"/f")
        assert fs.getattr(b"/f", fh) == attr
        fs.release(b"/f", fh)
        assert (stat.S_IFMT(attr.mode), attr.size, attr.nlink) == (stat.S_IFREG, 0, 1)
        assert mode(attr) == 0o640
        refused(errno.EEXIST, fs.create, b"/f", 0o640, os.O_RDWR)
        refused(errno.EEXIST, fs.mkdir, b"/f", 0o755)

    def test_mode_bits_that_were_not_masked(self, fs: FileSystem) -> None:
        """The VM has applied the guest's umask; that of this process must not count."""
        before = os.umask(0o077)
        try:
            put(fs, b"/f", mode=0o666)
            fs.mkdir(b"/d", 0o777)
            fs.mknod(b"/n", stat.S_IFREG | 0o666, 0)
        finally:
            os.umask(before)
        assert [mode(fs.getattr(p)) for p in (b"/f", b"/d", b"/n")] == [0o666, 0o777, 0o666]

    def test_mknod_of_a_regular_file(self, fs: FileSystem) -> None:
        fs.mknod(b"/f", stat.S_IFREG | 0o600, 0)
        attr = fs.getattr(b"/f")
        assert (attr.mode, attr.size, attr.rdev) == (stat.S_IFREG | 0o600, 0, 0)
        refused(errno.EEXIST, fs.mknod, b"/f", stat.S_IFREG | 0o600, 0)

    @needs(Feature.SOCKETS)
    @pytest.mark.parametrize("kind", [stat.S_IFIFO, stat.S_IFSOCK])
    def test_mknod_of(self, fs: FileSystem, kind: int) -> None:
        fs.mknod(b"/n", kind | 0o620, 0)
        attr = fs.getattr(b"/n")
        assert (attr.mode, attr.nlink, attr.size, attr.rdev) == (kind | 0o620, 1, 0, 0)
        fh = fs.opendir(b"/")
        assert next(e.kind for e in fs.readdir(b"/", fh) if e.name == b"n") in (0, kind)
        fs.releasedir(b"/", fh)
        refused(errno.EINVAL, fs.readlink, b"/n")
        fs.unlink(b"/n")
        assert not exists(fs, b"/n")

    def test_unlink(self, fs: FileSystem) -> None:
        put(fs, b"/f")
        fs.mkdir(b"/d", 0o755)
        fs.unlink(b"/f")
        refused(errno.ENOENT, fs.getattr, b"/f")
        refused(errno.EISDIR, fs.unlink, b"/d")
        assert names(fs, b"/") == [b"d"]

    def test_rmdir(self, fs: FileSystem) -> None:
        put(fs, b"/f")
        fs.mkdir(b"/d", 0o755)
        put(fs, b"/d/x")
        refused(errno.ENOTDIR, fs.rmdir, b"/f")
        refused(errno.ENOTEMPTY, fs.rmdir, b"/d")
        fs.unlink(b"/d/x")
        fs.rmdir(b"/d")
        refused(errno.ENOENT, fs.getattr, b"/d")
        fs.mkdir(b"/d", 0o755)
        assert names(fs, b"/d") == []

    @needs(Feature.DIRECTORY_NLINK)
    def test_nlink_of_directories(self, fs: FileSystem) -> None:
        def counts() -> list[int]:
            return [fs.getattr(path).nlink for path in (b"/", b"/d", b"/e")]

        fs.mkdir(b"/d", 0o755)
        fs.mkdir(b"/e", 0o755)
        put(fs, b"/d/f")
        assert counts() == [4, 2, 2]
        fs.mkdir(b"/d/s", 0o755)
        assert counts() == [4, 3, 2]
        fs.rename(b"/d/s", b"/e/s")
        assert counts() == [4, 2, 3]
        fs.rename(b"/e/s", b"/d/s")
        fs.rename(b"/d/s", b"/e")  # over an empty directory
        assert counts() == [4, 2, 2]
        fs.rmdir(b"/e")
        assert fs.getattr(b"/").nlink == 3

    @needs(Feature.SETGID, Feature.CHMOD)
    def test_a_set_group_id_directory(self, fs: FileSystem) -> None:
        fs.mkdir(b"/d", 0o755)
        fs.chmod(b"/d", 0o2755)
        fs.mkdir(b"/d/s", 0o750)
        put(fs, b"/d/f", mode=0o640)
        group = fs.getattr(b"/d").gid
        found = [(mode(a), a.gid) for a in map(fs.getattr, (b"/d/s", b"/d/f"))]
        assert found == [(0o2750, group), (0o640, group)]

    # --- links ---------------------------------------------------------------------------------

    @needs(Feature.SYMLINKS)
    def test_symlink(self, fs: FileSystem) -> None:
        targets = [b"x", b"/an/absolute/one", b"../" * 300 + b"x", b"\xff\n", b"s0"]
        for i, target in enumerate(targets):
            path = b"/s%d" % i
            fs.symlink(target, path)
            attr = fs.getattr(path)
            assert (stat.S_IFMT(attr.mode), attr.size) == (stat.S_IFLNK, len(target))
            assert fs.readlink(path) == target
        refused(errno.EEXIST, fs.symlink, b"x", b"/s0")
        put(fs, b"/f")
        refused(errno.EINVAL, fs.readlink, b"/f")
        refused(errno.EINVAL, fs.readlink, b"/")
        refused(errno.ELOOP, fs.open, b"/s0", os.O_RDONLY)
        refused(errno.ENOTDIR, fs.rmdir, b"/s0")
        fs.unlink(b"/s0")
        assert not exists(fs, b"/s0")

    @needs(Feature.HARD_LINKS)
    def test_link(self, fs: FileSystem) -> None:
        put(fs, b"/a", b"one")
        fs.mkdir(b"/d", 0o755)
        fs.link(b"/a", b"/d/b")
        one, two = fs.getattr(b"/a"), fs.getattr(b"/d/b")
        assert one == two
        assert one.nlink == 2
        fh = fs.open(b"/d/b", os.O_WRONLY)
        fs.write(b"/d/b", fh, b"two!", 0)
        fs.release(b"/d/b", fh)
        assert get(fs, b"/a") == b"two!"
        refused(errno.EEXIST, fs.link, b"/a", b"/d/b")
        refused(errno.EEXIST, fs.link, b"/a", b"/d")
        refused(errno.ENOENT, fs.link, b"/x", b"/y")
        refused(errno.EPERM, fs.link, b"/d", b"/e")
        fs.unlink(b"/a")
        assert fs.getattr(b"/d/b").nlink == 1
        assert get(fs, b"/d/b") == b"two!"

    # --- rename --------------------------------------------------------------------------------

    @pytest.mark.parametrize("new", KINDS)
    @pytest.mark.parametrize("old", KINDS)
    def test_rename(self, fs: FileSystem, old: str, new: str) -> None:
        self.rename(fs, old, new, 0)

    @needs(Feature.NOREPLACE)
    @pytest.mark.parametrize("new", KINDS)
    @pytest.mark.parametrize("old", [FILE, FULL, NOTHING])
    def test_rename_noreplace(self, fs: FileSystem, old: str, new: str) -> None:
        self.rename(fs, old, new, RENAME_NOREPLACE)

    @needs(Feature.EXCHANGE)
    @pytest.mark.parametrize("new", KINDS)
    @pytest.mark.parametrize("old", KINDS)
    def test_rename_exchange(self, fs: FileSystem, old: str, new: str) -> None:
        self.rename(fs, old, new, RENAME_EXCHANGE)

    def rename(self, fs: FileSystem, old: str, new: str, flags: int) -> None:
        """Do it, and compare with what rename(2) says."""
        if SYMLINK in (old, new) and Feature.SYMLINKS not in self.features:
            old, new = old.replace(SYMLINK, FILE), new.replace(SYMLINK, FILE)
        fs.mkdir(b"/p", 0o755)
        fs.mkdir(b"/q", 0o755)
        make(fs, b"/p/o", old)
        make(fs, b"/q/n", new)
        before = identity(fs, b"/p/o"), identity(fs, b"/q/n")
        links = {path: fs.getattr(path).nlink for path in (b"/p", b"/q")}
        number = rename_error(old, new, flags)
        if number:
            refused(number, fs.rename, b"/p/o", b"/q/n", flags)
            assert (identity(fs, b"/p/o"), identity(fs, b"/q/n")) == before
        else:
            fs.rename(b"/p/o", b"/q/n", flags)
            left = before[1] if flags & RENAME_EXCHANGE else NOTHING
            assert (identity(fs, b"/p/o"), identity(fs, b"/q/n")) == (left, before[0])
            moved = [-(old in DIRECTORIES), (old in DIRECTORIES) - (new in DIRECTORIES)]
            if flags & RENAME_EXCHANGE:
                moved[0] = -moved[1]
            if Feature.DIRECTORY_NLINK in self.features:
                now = [fs.getattr(path).nlink - links[path] for path in (b"/p", b"/q")]
                assert now == moved

    def test_rename_within_a_directory_keeps_the_inode(self, fs: FileSystem) -> None:
        put(fs, b"/a", b"x")
        before = fs.getattr(b"/a")
        fs.rename(b"/a", b"/b")
        after = fs.getattr(b"/b")
        kept = [a._replace(ctime_ns=0, ino=0) for a in (before, after)]
        assert kept[0] == kept[1]
        if Feature.UNLINKED in self.features:
            assert before.ino == after.ino

    def test_rename_of_a_directory_moves_what_is_in_it(self, fs: FileSystem) -> None:
        for path in (b"/a", b"/a/b", b"/a/b/c", b"/z"):
            fs.mkdir(path, 0o755)
        put(fs, b"/a/b/c/f", b"x")
        assert get(fs, b"/a/b/c/f") == b"x"
        fs.rename(b"/a/b", b"/z/b")
        refused(errno.ENOENT, fs.getattr, b"/a/b/c/f")
        assert get(fs, b"/z/b/c/f") == b"x"
        fs.mkdir(b"/a/b", 0o755)
        refused(errno.ENOENT, fs.getattr, b"/a/b/c")
        fs.rename(b"/z", b"/a/b")
        assert get(fs, b"/a/b/b/c/f") == b"x"

    def test_rename_into_itself_or_over_an_ancestor(self, fs: FileSystem) -> None:
        fs.mkdir(b"/a", 0o755)
        fs.mkdir(b"/a/b", 0o755)
        put(fs, b"/a/f")
        refused(errno.EINVAL, fs.rename, b"/a", b"/a/x")
        refused(errno.EINVAL, fs.rename, b"/a", b"/a/b/x")
        refused(errno.EINVAL, fs.rename, b"/a", b"/a/b")
        refused(errno.ENOTEMPTY, fs.rename, b"/a/b", b"/a")
        refused(errno.ENOTEMPTY, fs.rename, b"/a/f", b"/a")
        fs.mkdir(b"/ab", 0o755)
        fs.rename(b"/a", b"/ab/x")  # a common beginning of names is no ancestry
        assert names(fs, b"/ab/x") == [b"b", b"f"]

    def test_rename_onto_itself(self, fs: FileSystem) -> None:
        put(fs, b"/a", b"x")
        fs.rename(b"/a", b"/a")
        assert get(fs, b"/a") == b"x"
        if Feature.NOREPLACE in self.features:
            refused(errno.EEXIST, fs.rename, b"/a", b"/a", RENAME_NOREPLACE)

    @needs(Feature.HARD_LINKS)
    def test_rename_onto_another_name_of_the_file_does_nothing(self, fs: FileSystem) -> None:
        put(fs, b"/a", b"x")
        fs.link(b"/a", b"/b")
        fs.rename(b"/a", b"/b")
        assert names(fs, b"/") == [b"a", b"b"]
        assert fs.getattr(b"/a").nlink == 2

    def test_unknown_rename_flags(self, fs: FileSystem) -> None:
        put(fs, b"/a")
        refused(errno.EINVAL, fs.rename, b"/a", b"/b", 0x80)
        refused(errno.EINVAL, fs.rename, b"/a", b"/b", RENAME_NOREPLACE | RENAME_EXCHANGE)
        assert names(fs, b"/") == [b"a"]

    # --- open directories ----------------------------------------------------------------------

    def test_readdir_agrees_with_getattr(self, fs: FileSystem) -> None:
        put(fs, b"/f")
        fs.mkdir(b"/d", 0o755)
        if Feature.SYMLINKS in self.features:
            fs.symlink(b"x", b"/s")
        fh = fs.opendir(b"/")
        for name, ino, kind in fs.readdir(b"/", fh):
            if name not in (b".", b".."):
                attr: Attr = fs.getattr(b"/" + name)
                assert ino in (0, attr.ino)
                assert kind in (0, stat.S_IFMT(attr.mode))
        fs.releasedir(b"/", fh)

    def test_readdir_again_after_a_change(self, fs: FileSystem) -> None:
        fs.mkdir(b"/d", 0o755)
        fh = fs.opendir(b"/d")
        seen = []
        for name in (b"a", b"b"):
            put(fs, b"/d/" + name)
            seen.append({e.name for e in fs.readdir(b"/d", fh)} - {b".", b".."})
        fs.releasedir(b"/d", fh)
        assert seen == [{b"a"}, {b"a", b"b"}]

    def test_readdir_while_names_change(self, fs: FileSystem) -> None:
        wanted = {b"n%03d" % i for i in range(300)}
        for name in wanted:
            put(fs, b"/" + name)
        fh = fs.opendir(b"/")
        seen = []
        for i, entry in enumerate(fs.readdir(b"/", fh)):
            seen.append(entry.name)
            if i < 100:
                put(fs, b"/new%d" % i)
                fs.rename(b"/new%d" % i, b"/moved%d" % i)
        fs.releasedir(b"/", fh)
        assert len(seen) == len(set(seen))
        assert wanted <= set(seen)

    def test_a_directory_that_is_removed_while_open(self, fs: FileSystem) -> None:
        fs.mkdir(b"/d", 0o755)
        fh = fs.opendir(b"/d")
        fs.rmdir(b"/d")
        refused(errno.ENOENT, fs.create, b"/d/f", 0o644, os.O_WRONLY)
        try:
            found = [e.name for e in fs.readdir(b"/d", fh) if e.name not in (b".", b"..")]
        except FileNotFoundError:  # getdents(2) on Linux; readdir(3) makes it an end
            found = []
        assert found == []
        fs.releasedir(b"/d", fh)

    # --- many at once --------------------------------------------------------------------------

    def test_threads(self, fs: FileSystem) -> None:
        """Four threads make, link, move and remove; what is left is what was left on purpose."""
        problems: list[BaseException] = []
        fs.mkdir(b"/to", 0o755)

        def work(me: int) -> None:
            try:
                for i in range(50):
                    path = b"/t%d-%d" % (me, i)
                    put(fs, path, path)
                    fs.mkdir(path + b".d", 0o755)
                    fs.rename(path, path + b".d/f")
                    fs.rename(path + b".d", b"/to" + path)
                    assert get(fs, b"/to" + path + b"/f") == path
                    if i % 2:
                        fs.unlink(b"/to" + path + b"/f")
                        fs.rmdir(b"/to" + path)
            except BaseException as error:
                problems.append(error)

        threads = [threading.Thread(target=work, args=(me,)) for me in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not problems
        assert names(fs, b"/") == [b"to"]
        left = [b"t%d-%d" % (me, i) for me in range(4) for i in range(0, 50, 2)]
        assert names(fs, b"/to") == sorted(left)
        if Feature.DIRECTORY_NLINK in self.features:
            assert fs.getattr(b"/to").nlink == 2 + 100
