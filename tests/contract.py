"""The contract that every FileSystem keeps: inherit `FileSystemContract` in its test.

    class TestMine(FileSystemContract):
        features = ALL - {Feature.HARD_LINKS}

        @pytest.fixture
        def fs(self) -> Iterator[FileSystem]:
            fs = Mine()
            fs.init()
            yield fs
            fs.destroy()

The file system is called as the VM calls it; no VM is needed. `features` says what it offers: tests
of the rest are skipped and named, and what isn't offered must be refused with a proper errno. Where
it offers everything, `DifferentialContract` (differential.py) compares it with the host.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from contract_attributes import AttributesContract
from contract_base import ALL, Feature, needs, refused
from contract_files import FilesContract
from contract_names import NamesContract

from umvm.interfaces.filesystem import FileSystem

__all__ = ["ALL", "Feature", "FileSystemContract", "needs"]

_NO = (errno.EROFS, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def _with_handle(call: Callable[[FileSystem, object], object]) -> Callable[[FileSystem], object]:
    def act(fs: FileSystem) -> None:
        fh = fs.open(b"/f", os.O_RDWR)
        try:
            call(fs, fh)
        finally:
            fs.release(b"/f", fh)

    return act


REFUSALS: dict[Feature, Callable[[FileSystem], object]] = {
    Feature.CHMOD: lambda fs: fs.chmod(b"/f", 0o600),
    Feature.EXCHANGE: lambda fs: fs.rename(b"/f", b"/g", 2),
    Feature.FALLOCATE: _with_handle(lambda fs, fh: fs.fallocate(b"/f", fh, 0, 0, 10)),
    Feature.HARD_LINKS: lambda fs: fs.link(b"/f", b"/h"),
    Feature.NOREPLACE: lambda fs: fs.rename(b"/f", b"/h", 1),
    Feature.SOCKETS: lambda fs: fs.mknod(b"/h", stat.S_IFIFO | 0o600, 0),
    Feature.SYMLINKS: lambda fs: fs.symlink(b"x", b"/h"),
    Feature.XATTR: lambda fs: fs.setxattr(b"/f", b"user.a", b"1", 0),
    Feature.ZERO_RANGE: _with_handle(lambda fs, fh: fs.fallocate(b"/f", fh, 0x10, 0, 10)),
}
"""What a lack is told by. The others aren't refused, they are done otherwise."""


class FileSystemContract(NamesContract, FilesContract, AttributesContract):
    """All of it."""

    def test_what_is_not_offered_is_refused(self, fs: FileSystem) -> None:
        fs.release(b"/f", fs.create(b"/f", 0o644, os.O_RDWR))
        fs.release(b"/g", fs.create(b"/g", 0o644, os.O_RDWR))
        for feature, call in REFUSALS.items():
            if feature not in self.features:
                refused(_NO, call, fs)
        assert self.features <= ALL
