"""What the parts of the file system contract share: features, preparation, short forms of calls."""

from __future__ import annotations

import enum
import errno
import os
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, TypeVar

import pytest

from umvm.interfaces.filesystem import Attr, Caller, FileSystem, set_caller

Test = TypeVar("Test", bound=Callable[..., Any])
NOBODY = Caller(0, 0, 0)


class Feature(enum.Enum):
    """What a file system may lack. A test class says so in `features`; the rest is required."""

    ATIME = "reading updates atime, as with relatime"
    CHMOD = "chmod"
    DIRECTORY_NLINK = "a directory counts the directories in it"
    EXCHANGE = "rename with RENAME_EXCHANGE"
    FALLOCATE = "fallocate reserves, and punches holes"
    HARD_LINKS = "link"
    HOLES = "SEEK_DATA and SEEK_HOLE tell holes, which take no blocks"
    NOREPLACE = "rename with RENAME_NOREPLACE"
    OWNERS = "chown to any ids"
    SETGID = "what is made in a set-group-id directory has its group"
    SOCKETS = "mknod of FIFOs and sockets"
    STATFS = "statfs tells sizes"
    SYMLINKS = "symlink and readlink"
    TIMES = (
        "mtime and ctime of files and directories, set and updated as Linux does, in nanoseconds"
    )
    UNLINKED = "open files stay usable without a name, and inode numbers identify files"
    XATTR = "extended attributes of name space user"
    ZERO_RANGE = "fallocate with FALLOC_FL_ZERO_RANGE"


ALL = frozenset(Feature)


def needs(*features: Feature) -> Callable[[Test], Test]:
    """Mark a test: it concerns file systems that offer these."""

    def mark(test: Test) -> Test:
        vars(test)["features"] = features
        return test

    return mark


class ContractBase:
    """A test class inherits this through `FileSystemContract` and gives the fixture `fs`."""

    features: ClassVar[frozenset[Feature]] = ALL

    @pytest.fixture
    def fs(self) -> Iterator[FileSystem]:
        """A new, empty, writable file system on which `init` was called."""
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    def _called_by_this_process(self, request: pytest.FixtureRequest) -> Iterator[None]:
        wanted = getattr(request.function, "features", ())
        lacking = [feature for feature in wanted if feature not in self.features]
        if lacking:
            pytest.skip(f"not offered: {lacking[0].name}, {lacking[0].value}")
        set_caller(this_process())
        yield
        set_caller(NOBODY)


def this_process() -> Caller:
    """The ids of the process that runs the tests."""
    return Caller(os.geteuid(), os.getegid(), os.getpid(), tuple(os.getgroups()))


def refused(numbers: int | tuple[int, ...], call: Callable[..., object], *args: Any) -> None:
    """The call must fail with (one of) the errno."""
    wanted = (numbers,) if isinstance(numbers, int) else numbers
    with pytest.raises(OSError) as caught:
        call(*args)
    number = caught.value.errno or 0
    names = [errno.errorcode[n] for n in wanted]
    assert number in wanted, f"{errno.errorcode.get(number, number)}, not {' or '.join(names)}"


def put(fs: FileSystem, path: bytes, data: bytes = b"", mode: int = 0o644) -> None:
    """Make a file with some content."""
    fh = fs.create(path, mode, os.O_WRONLY)
    if data:
        assert fs.write(path, fh, data, 0) == len(data)
    fs.release(path, fh)


def get(fs: FileSystem, path: bytes) -> bytes:
    """The content of a file."""
    fh = fs.open(path, os.O_RDONLY)
    data = fs.read(path, fh, fs.getattr(path, fh).size + 1, 0)
    fs.release(path, fh)
    return data


def names(fs: FileSystem, path: bytes) -> list[bytes]:
    """The names in a directory, sorted, without `.` and `..`."""
    fh = fs.opendir(path)
    found = [entry.name for entry in fs.readdir(path, fh)]
    fs.releasedir(path, fh)
    return sorted(name for name in found if name not in (b".", b".."))


def exists(fs: FileSystem, path: bytes) -> bool:
    """Whether a name is there."""
    try:
        fs.getattr(path)
    except FileNotFoundError:
        return False
    return True


def mode(attr: Attr) -> int:
    """The permission bits."""
    return attr.mode & 0o7777
