"""The same random calls on a file system and on a directory of the host, which is the oracle.

A run is a list of steps made from a seed, without a look at any result, so that it can be replayed
and cut down to the few steps that show a difference.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import itertools
import os
import random
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from contract_base import NOBODY, this_process

from umvm.interfaces.filesystem import Attr, FileHandle, FileSystem, set_caller

_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100
RUNS = 25
STEPS = 1500
DIRECTORIES = (b"", b"/a", b"/b", b"/a/c", b"/a/c/d", b"/b/e")
LEAVES = (b"f", b"g", b"h", b"a", b"b", b"c", b"d", b"e", b"n" * 255, b"n" * 256)
HANDLES = 2
MODES = (0o600, 0o644, 0o755, 0o777)
DIRECTORY_MODES = (0o700, 0o755, 0o2755, 0o1777)


def _libc_call(name: str, *arguments: Any) -> None:
    if getattr(_libc, name)(*arguments):
        raise OSError(ctypes.get_errno(), name)


class Step(NamedTuple):
    """One call: a method of `Player` and its arguments."""

    name: str
    arguments: tuple[Any, ...]


class Oracle(FileSystem):
    """A directory of the host through the os module, for tests: nothing changes beneath it."""

    open_unlinked = True

    def __init__(self, root: Path) -> None:
        self.root = os.fsencode(root)

    def path(self, path: bytes) -> bytes:
        """The host's path. The interface has no symbolic link on the way."""
        at = self.root
        for name in path.split(b"/")[1:-1]:
            at += b"/" + name
            if os.path.islink(at):
                raise OSError(errno.ENOTDIR, "a symbolic link on the way")
        return self.root + path if path != b"/" else self.root

    def getattr(self, path: bytes, fh: FileHandle = None) -> Attr:
        s = os.lstat(self.path(path)) if fh is None else os.fstat(fh)
        return Attr(
            s.st_mode, s.st_ino, s.st_nlink, s.st_uid, s.st_gid, s.st_rdev, s.st_size,
            s.st_atime_ns, s.st_mtime_ns, s.st_ctime_ns,
        )  # fmt: skip

    def chmod(self, path: bytes, mode: int, fh: FileHandle = None) -> None:
        if fh is None and os.path.islink(self.path(path)):
            raise OSError(errno.EOPNOTSUPP, "chmod of a symbolic link")
        os.chmod(self.path(path) if fh is None else fh, mode)

    def truncate(self, path: bytes, size: int, fh: FileHandle = None) -> None:
        if fh is None and os.path.islink(self.path(path)):
            raise OSError(errno.EINVAL, "truncate of a symbolic link")
        os.truncate(self.path(path) if fh is None else fh, size)

    def utimens(
        self, path: bytes, atime_ns: int | None, mtime_ns: int | None, fh: FileHandle = None
    ) -> None:
        assert atime_ns is not None and mtime_ns is not None
        os.utime(self.path(path), ns=(atime_ns, mtime_ns), follow_symlinks=False)

    def readlink(self, path: bytes) -> bytes:
        return os.readlink(self.path(path))

    def mknod(self, path: bytes, mode: int, rdev: int) -> None:
        os.mknod(self.path(path), mode, rdev)

    def mkdir(self, path: bytes, mode: int) -> None:
        os.mkdir(self.path(path), mode)

    def unlink(self, path: bytes) -> None:
        os.unlink(self.path(path))

    def rmdir(self, path: bytes) -> None:
        os.rmdir(self.path(path))

    def symlink(self, target: bytes, path: bytes) -> None:
        os.symlink(target, self.path(path))

    def rename(self, old: bytes, new: bytes, flags: int = 0) -> None:
        names = self.path(old), self.path(new)
        _libc_call("renameat2", _AT_FDCWD, names[0], _AT_FDCWD, names[1], flags)

    def link(self, old: bytes, new: bytes) -> None:
        os.link(self.path(old), self.path(new), follow_symlinks=False)

    def opendir(self, path: bytes) -> FileHandle:
        return os.open(self.path(path), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)

    def open(self, path: bytes, flags: int) -> FileHandle:
        return os.open(self.path(path), flags | os.O_NOFOLLOW | os.O_NONBLOCK)

    def create(self, path: bytes, mode: int, flags: int) -> FileHandle:
        return os.open(self.path(path), flags | os.O_CREAT | os.O_EXCL, mode)

    def read(self, path: bytes, fh: FileHandle, size: int, offset: int) -> bytes:
        return os.pread(fh, size, offset)

    def write(self, path: bytes, fh: FileHandle, data: bytes, offset: int) -> int:
        return os.pwrite(fh, data, offset)

    def release(self, path: bytes, fh: FileHandle) -> None:
        os.close(fh)

    def fallocate(self, path: bytes, fh: FileHandle, mode: int, offset: int, length: int) -> None:
        _libc_call("fallocate", fh, mode, ctypes.c_int64(offset), ctypes.c_int64(length))

    def getxattr(self, path: bytes, name: bytes, fh: FileHandle = None) -> bytes:
        return os.getxattr(self.path(path), name, follow_symlinks=False)

    def setxattr(
        self, path: bytes, name: bytes, value: bytes, flags: int, fh: FileHandle = None
    ) -> None:
        os.setxattr(self.path(path), name, value, flags, follow_symlinks=False)

    def listxattr(self, path: bytes, fh: FileHandle = None) -> list[bytes]:
        found = os.listxattr(self.path(path), follow_symlinks=False)
        return [os.fsencode(name) for name in found]

    def removexattr(self, path: bytes, name: bytes, fh: FileHandle = None) -> None:
        os.removexattr(self.path(path), name, follow_symlinks=False)


class Player:
    """Plays steps on one file system; results hold nothing that may differ between two."""

    def __init__(self, fs: FileSystem, offers: frozenset[str]) -> None:
        self.fs = fs
        self.offers = offers
        self.handles: list[tuple[FileHandle, int] | None] = [None] * HANDLES

    def play(self, step: Step) -> object:
        """The result of a step, or the name of its errno."""
        try:
            return getattr(self, step.name)(*step.arguments)
        except OSError as error:
            if error.errno == errno.ELOOP:  # a link on the way, where the VM never leaves one
                return "ENOTDIR"
            return errno.errorcode.get(error.errno or 0, str(error.errno))

    def close(self) -> None:
        """Release what is open."""
        for slot in range(HANDLES):
            self.release(slot)

    def call(self, name: str, *arguments: Any) -> object:
        """A method whose result can be compared as it is."""
        return getattr(self.fs, name)(*arguments)

    def found(self, name: str, path: bytes, *arguments: Any) -> object:
        """The same for a path that the VM looks up before anything else is looked at."""
        self.fs.getattr(path)
        return getattr(self.fs, name)(path, *arguments)

    def attr(self, path: bytes, slot: int = -1) -> object:
        """Attributes: of a directory the size is the file system's own."""
        a = self.fs.getattr(path, self.handle(slot))
        if stat.S_ISDIR(a.mode):
            return a.mode, a.nlink if "nlink" in self.offers else 0, a.uid, a.gid
        return a.mode, a.nlink, a.uid, a.gid, a.size

    def handle(self, slot: int) -> FileHandle:
        """An open file; EBADF if there is none."""
        if slot < 0:
            return None
        held = self.handles[slot]
        if held is None:
            raise OSError(errno.EBADF, "")
        return held[0]

    def usable(self, slot: int, write: bool) -> FileHandle:
        """An open file that was opened for this, which the VM checks."""
        fh, held = self.handle(slot), self.handles[slot]
        assert held is not None
        if held[1] == (os.O_RDONLY if write else os.O_WRONLY):
            raise OSError(errno.EBADF, "")
        return fh

    def regular(self, path: bytes) -> None:
        """The VM serves FIFOs and sockets itself."""
        mode = self.fs.getattr(path).mode
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
            raise OSError(errno.ENXIO, "")

    def put(self, path: bytes, data: bytes) -> object:
        """Make a file with content."""
        fh = self.fs.create(path, 0o644, os.O_RDWR)
        written = self.fs.write(path, fh, data, 0)
        self.fs.release(path, fh)
        return written

    def open(self, slot: int, path: bytes, flags: int) -> None:
        """Open a file into a slot."""
        self.regular(path)
        if stat.S_ISDIR(self.fs.getattr(path).mode) and flags == os.O_RDONLY:
            raise OSError(errno.EISDIR, "")  # the VM calls opendir
        fh = self.fs.open(path, flags)
        self.release(slot)
        self.handles[slot] = fh, flags

    def create(self, slot: int, path: bytes, mode: int) -> None:
        """Create a file into a slot."""
        fh = self.fs.create(path, mode, os.O_RDWR)
        self.release(slot)
        self.handles[slot] = fh, os.O_RDWR

    def release(self, slot: int) -> None:
        """Empty a slot."""
        held = self.handles[slot]
        if held is not None:
            self.handles[slot] = None
            self.fs.release(b"/", held[0])

    def read(self, slot: int, size: int, offset: int) -> object:
        return self.fs.read(b"/", self.usable(slot, False), size, offset)

    def write(self, slot: int, data: bytes, offset: int) -> object:
        return self.fs.write(b"/", self.usable(slot, True), data, offset)

    def ftruncate(self, slot: int, size: int) -> None:
        self.fs.truncate(b"/", size, self.usable(slot, True))

    def chmod(self, path: bytes, file_mode: int, directory_mode: int) -> None:
        """Never so that an ordinary user loses access, which the VM would check."""
        directory = stat.S_ISDIR(self.fs.getattr(path).mode)
        self.fs.chmod(path, directory_mode if directory else file_mode)

    def fchmod(self, slot: int, mode: int) -> None:
        self.fs.chmod(b"/", mode, self.handle(slot))

    def fallocate(self, slot: int, mode: int, offset: int, length: int) -> object:
        fh = self.usable(slot, True)
        self.fs.fallocate(b"/", fh, mode, offset, length)
        return self.fs.write(b"/", fh, b"x", offset)  # tmpfs alone doesn't set mtime by fallocate

    def truncate(self, path: bytes, size: int) -> None:
        self.regular(path)
        attr = self.fs.getattr(path)
        # whether one to the same size sets the times differs between file systems
        if not stat.S_ISREG(attr.mode) or size != attr.size:
            self.fs.truncate(path, size)

    def listxattr(self, path: bytes) -> object:
        return sorted(name for name in self.fs.listxattr(path) if name.startswith(b"user."))

    def tree(self) -> list[object]:
        """All there is, hard links told by the first of their names."""
        first: dict[int, bytes] = {}
        found: list[object] = []

        def visit(path: bytes) -> None:
            attr = self.fs.getattr(path)
            kind = stat.S_IFMT(attr.mode)
            name = first.setdefault(attr.ino, path)
            times = attr.mtime_ns if attr.mtime_ns < 10**18 else 0  # set by a step, or "now"
            found.append((path, self.attr(path), name, times, self.xattrs(path)))
            if kind == stat.S_IFLNK:
                found.append(self.fs.readlink(path))
            elif kind == stat.S_IFREG:
                fh = self.fs.open(path, os.O_RDONLY)
                found.append(self.fs.read(path, fh, attr.size + 1, 0))
                self.fs.release(path, fh)
            elif kind == stat.S_IFDIR:
                for child in self.names(path):
                    visit((b"" if path == b"/" else path) + b"/" + child)

        visit(b"/")
        return found

    def names(self, path: bytes) -> list[bytes]:
        """The names in a directory."""
        fh = self.fs.opendir(path)
        if isinstance(self.fs, Oracle):
            found = [os.fsencode(name) for name in os.listdir(fh)]
            os.close(fh)
        else:
            found = [entry.name for entry in self.fs.readdir(path, fh)]
            self.fs.releasedir(path, fh)
        return sorted(name for name in found if name not in (b".", b".."))

    def xattrs(self, path: bytes) -> object:
        names = sorted(name for name in self.fs.listxattr(path) if name.startswith(b"user."))
        return [(name, self.fs.getxattr(path, name)) for name in names]


def steps(seed: int, count: int, offers: frozenset[str]) -> list[Step]:
    """A run. Names are few, so that they meet; a run begins with some of the directories."""
    r = random.Random(seed)

    def path() -> bytes:
        directory = r.choice(DIRECTORIES[: r.choice((1, 3, len(DIRECTORIES)))])
        return directory + b"/" + r.choice(LEAVES[: r.choice((2, 5, 8, len(LEAVES)))])

    def some(size: int) -> bytes:
        return r.randbytes(r.randrange(1, 9)) * r.randrange(1, size)

    def offset() -> int:
        return r.choice((0, r.randrange(100), r.randrange(200_000), 65536, 4096 * r.randrange(40)))

    def slot() -> int:
        return r.randrange(HANDLES)

    def xattr() -> bytes:
        common = (b"user.a", b"user.a", b"user.b")
        return r.choice((*common, *common, b"user.", b"bad.a", b"user." + b"x" * 251))

    makers: dict[str, Callable[[], tuple[Any, ...]]] = {
        "mkdir": lambda: ("call", "mkdir", path(), r.choice((0o700, 0o755, 0o1777))),
        "rmdir": lambda: ("call", "rmdir", path()),
        "unlink": lambda: ("call", "unlink", path()),
        "link": lambda: ("found", "link", path(), path()),
        "symlink": lambda: ("call", "symlink", b"to/" * r.randrange(1, 9), path()),
        "readlink": lambda: ("call", "readlink", path()),
        "mknod": lambda: ("call", "mknod", path(), r.choice((0o010644, 0o140600, 0o100640)), 0),
        "rename": lambda: ("found", "rename", path(), path(), r.choice((0, 0, 0, 1, 2))),
        "put": lambda: ("put", path(), some(9000)),
        "open": lambda: ("open", slot(), path(), r.choice((os.O_RDONLY, os.O_WRONLY, os.O_RDWR))),
        "create": lambda: ("create", slot(), path(), r.choice(MODES)),
        "release": lambda: ("release", slot()),
        "read": lambda: ("read", slot(), r.randrange(200_000), offset()),
        "write": lambda: ("write", slot(), some(20_000), offset()),
        "ftruncate": lambda: ("ftruncate", slot(), offset()),
        "truncate": lambda: ("truncate", path(), offset()),
        "fattr": lambda: ("attr", b"/", slot()),
        "attr": lambda: ("attr", path()),
        "names": lambda: ("names", r.choice(DIRECTORIES) or b"/"),
        "chmod": lambda: ("chmod", path(), r.choice(MODES), r.choice(DIRECTORY_MODES)),
        "fchmod": lambda: ("fchmod", slot(), r.choice(MODES)),
        "utimens": lambda: ("call", "utimens", path(), r.randrange(10**18), r.randrange(10**18)),
        "reserve": lambda: (
            "fallocate",
            slot(),
            r.choice((0, 1)),
            offset(),
            r.randrange(1, 99_999),
        ),
    }
    if "punch" in offers:
        makers["punch"] = lambda: ("fallocate", slot(), 3, offset(), r.randrange(1, 99_999))
    if "zero" in offers:
        makers["zero"] = lambda: ("fallocate", slot(), r.choice((16, 17)), offset(), 40_000)
    if "xattr" in offers:
        makers["setxattr"] = lambda: (
            "found", "setxattr", path(), xattr(), some(20), r.choice((0, 0, 1, 2, 8)),
        )  # fmt: skip
        makers["getxattr"] = lambda: ("found", "getxattr", path(), xattr())
        makers["removexattr"] = lambda: ("found", "removexattr", path(), xattr())
        makers["listxattr"] = lambda: ("listxattr", path())
    weights = {"mkdir": 3, "put": 5, "rename": 6, "write": 4, "link": 3, "open": 3, "setxattr": 3}
    drawn = r.choices(list(makers), [weights.get(name, 1) for name in makers], k=count)
    made: list[tuple[Any, ...]]
    made = [("call", "mkdir", name, 0o755) for name in DIRECTORIES[1:]]
    made += [makers[name]() for name in drawn]
    return [Step(step[0], step[1:]) for step in made]


@functools.cache
def host_offers(directory: Path) -> frozenset[str]:
    """What the host's file system at a directory can do, beyond what every one can."""
    place = directory / "probe"
    place.mkdir()
    (place / "d").mkdir()
    fd = os.open(place / "f", os.O_RDWR | os.O_CREAT, 0o644)
    os.write(fd, bytes(100_000))

    def can(name: str, *arguments: Any) -> bool:
        try:
            _libc_call(name, *arguments)
        except OSError:
            return False
        return True

    size = ctypes.c_int64(50_000)
    probes = {
        "nlink": place.stat().st_nlink == 3,
        "atime": not os.statvfs(place).f_flag & os.ST_NOATIME,
        "punch": can("fallocate", fd, 3, ctypes.c_int64(0), size),
        "zero": can("fallocate", fd, 16, ctypes.c_int64(0), size),
        "xattr": can("fsetxattr", fd, b"user.a", b"1", ctypes.c_size_t(1), 0),
    }
    os.close(fd)
    shutil.rmtree(place)
    return frozenset(name for name, there in probes.items() if there)


def difference(fs: FileSystem, root: Path, made: list[Step], offers: frozenset[str]) -> str:
    """Play steps on both; the first step whose results differ, or nothing."""
    root.mkdir()
    players = Player(fs, offers), Player(Oracle(root), offers)
    try:
        for player in players:
            player.fs.chmod(b"/", 0o755)
        for number, step in enumerate(made):
            mine, theirs = (player.play(step) for player in players)
            if mine != theirs:
                return f"step {number} {step}: {_short(mine)}, the host says {_short(theirs)}"
        mine, theirs = (player.tree() for player in players)
        for one, other in itertools.zip_longest(mine, theirs):
            if one != other:
                return f"in the end: {_short(one)}, on the host {_short(other)}"
    finally:
        for player in players:
            player.close()
    return ""


def shortest(made: list[Step], differs: Callable[[list[Step]], bool]) -> list[Step]:
    """Leave out what isn't needed for a difference, in ever smaller pieces."""
    size = len(made) // 2
    while size:
        at = 0
        while at < len(made):
            fewer = made[:at] + made[at + size :]
            if differs(fewer):
                made = fewer
            else:
                at += size
        size //= 2
    return made


class DifferentialContract:
    """A test class gives `make_fs`: `make_fs(directory)` is a context with a new file system."""

    def make_fs(self, directory: Path) -> AbstractContextManager[FileSystem]:
        """A new, empty file system; what it keeps on the host goes into the directory."""
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    def _called_by_this_process(self) -> Iterator[None]:
        set_caller(this_process())
        before = os.umask(0)
        yield
        os.umask(before)
        set_caller(NOBODY)

    @pytest.mark.parametrize("seed", range(RUNS))
    def test_random_calls(self, seed: int, tmp_path: Path) -> None:
        offers = host_offers(tmp_path)
        numbers = itertools.count()

        def play(made: list[Step]) -> str:
            place = tmp_path / f"run{next(numbers)}"
            place.mkdir()
            with self.make_fs(place / "fs") as fs:
                found = difference(fs, place / "oracle", made, offers)
            shutil.rmtree(place)
            return found

        made = steps(seed, STEPS, offers)
        found = play(made)
        if found:
            few = shortest(made, lambda fewer: bool(play(fewer)))
            listing = "\n".join(f"  {_short(step)}" for step in few)
            pytest.fail(f"{play(few)}\n{listing}\n(first: {found})", pytrace=False)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 300 else f"{text[:200]}…{text[-50:]}"
