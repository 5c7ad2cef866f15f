"""The file system contract: content, open files, holes and extended attributes."""

from __future__ import annotations

import errno
import os
import stat

import pytest
from contract_base import ContractBase, Feature, exists, get, needs, put, refused

from umvm.interfaces.filesystem import FileSystem

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 0x01, 0x02, 0x10
MIB = 1 << 20
CREATE, REPLACE = 1, 2


def pattern(size: int, seed: int = 1) -> bytes:
    """Bytes whose order can't go unnoticed."""
    words = ((seed + i) * 2654435761 % 2**32 for i in range(-(-size // 4)))
    return b"".join(word.to_bytes(4, "little") for word in words)[:size]


class FilesContract(ContractBase):
    """Reading, writing, sizes; what an open file allows."""

    def test_write_and_read_in_pieces(self, fs: FileSystem) -> None:
        data = pattern(300_001)
        fh = fs.create(b"/f", 0o644, os.O_RDWR)
        for at in range(0, len(data), 7001):
            piece = data[at : at + 7001]
            assert fs.write(b"/f", fh, piece, at) == len(piece)
        assert fs.getattr(b"/f", fh).size == len(data)
        assert fs.read(b"/f", fh, len(data), 0) == data
        for offset, size in ((0, 1), (65535, 2), (65536, 65536), (4095, 131072), (299_999, 2)):
            assert fs.read(b"/f", fh, size, offset) == data[offset : offset + size]
        fs.release(b"/f", fh)
        assert get(fs, b"/f") == data

    def test_the_end_of_a_file(self, fs: FileSystem) -> None:
        put(fs, b"/f", b"12345")
        fh = fs.open(b"/f", os.O_RDONLY)
        found = [fs.read(b"/f", fh, 10, offset) for offset in (0, 3, 5, 6, 10**12)]
        fs.release(b"/f", fh)
        assert found == [b"12345", b"45", b"", b"", b""]

    def test_overwriting(self, fs: FileSystem) -> None:
        model = bytearray(pattern(200_000))
        put(fs, b"/f", bytes(model))
        fh = fs.open(b"/f", os.O_RDWR)
        for i, (offset, size) in enumerate(
            ((0, 1), (65530, 12), (100, 140_000), (199_999, 1), (199_990, 100), (65536, 65536))
        ):
            data = pattern(size, i + 7)
            assert fs.write(b"/f", fh, data, offset) == size
            model[offset : offset + size] = data
        assert fs.read(b"/f", fh, len(model) + 1, 0) == bytes(model)
        fs.release(b"/f", fh)

    def test_a_write_past_the_end_leaves_zeros(self, fs: FileSystem) -> None:
        fh = fs.create(b"/f", 0o644, os.O_RDWR)
        fs.write(b"/f", fh, b"a", 0)
        fs.write(b"/f", fh, b"b", 5)
        fs.write(b"/f", fh, b"c", 200_000)
        expected = b"a\0\0\0\0b".ljust(200_000, b"\0") + b"c"
        assert fs.read(b"/f", fh, 300_000, 0) == expected
        fs.release(b"/f", fh)

    def test_an_empty_write_changes_nothing(self, fs: FileSystem) -> None:
        fh = fs.create(b"/f", 0o644, os.O_RDWR)
        assert fs.write(b"/f", fh, b"", 100) == 0
        assert fs.getattr(b"/f").size == 0
        fs.release(b"/f", fh)

    @pytest.mark.parametrize("opened", [False, True], ids=["path", "open"])
    def test_truncate(self, fs: FileSystem, opened: bool) -> None:
        model = bytearray(pattern(150_000))
        put(fs, b"/f", bytes(model))
        fh = fs.open(b"/f", os.O_RDWR)
        for size in (150_001, 65_537, 65_536, 100_000, 3, 5, 0, 70_000):
            fs.truncate(b"/f", size, fh if opened else None)
            del model[size:]
            model.extend(bytes(size - len(model)))
            assert fs.getattr(b"/f").size == size
            assert fs.read(b"/f", fh, 200_000, 0) == bytes(model)
        fs.release(b"/f", fh)

    def test_truncate_what_is_no_file(self, fs: FileSystem) -> None:
        fs.mkdir(b"/d", 0o755)
        refused(errno.EISDIR, fs.truncate, b"/d", 0)
        refused(errno.ENOENT, fs.truncate, b"/x", 0)
        refused(errno.EISDIR, fs.open, b"/d", os.O_WRONLY)
        refused(errno.EISDIR, fs.open, b"/d", os.O_RDWR)

    def test_truncate_of_a_file_opened_for_reading(self, fs: FileSystem) -> None:
        """open(2) with O_RDONLY | O_TRUNC: the VM calls truncate with the handle."""
        put(fs, b"/f", b"123")
        fh = fs.open(b"/f", os.O_RDONLY)
        fs.truncate(b"/f", 0, fh)
        assert fs.read(b"/f", fh, 10, 0) == b""
        fs.release(b"/f", fh)

    def test_handles_share_the_file(self, fs: FileSystem) -> None:
        put(fs, b"/f", b"first")
        one, two = fs.open(b"/f", os.O_RDWR), fs.open(b"/f", os.O_RDONLY)
        fs.write(b"/f", one, b"second", 0)
        assert fs.read(b"/f", two, 10, 0) == b"second"
        fs.release(b"/f", one)
        assert fs.read(b"/f", two, 10, 0) == b"second"
        fs.fsync(b"/f", two, False)
        fs.fsync(b"/f", two, True)
        fs.flush(b"/f", two)
        fs.release(b"/f", two)

    def test_fsync_of_a_directory(self, fs: FileSystem) -> None:
        fh = fs.opendir(b"/")
        fs.fsyncdir(b"/", fh, False)
        fs.fsyncdir(b"/", fh, True)
        fs.releasedir(b"/", fh)
        assert stat.S_ISDIR(fs.getattr(b"/").mode)

    def test_a_handle_follows_its_file(self, fs: FileSystem) -> None:
        fs.mkdir(b"/d", 0o755)
        put(fs, b"/d/f", b"x")
        fh = fs.open(b"/d/f", os.O_RDWR)
        fs.rename(b"/d/f", b"/g")
        fs.rename(b"/d", b"/e")
        fs.write(b"/g", fh, b"yz", 0)
        assert fs.getattr(b"/g", fh).size == 2
        fs.release(b"/g", fh)
        assert get(fs, b"/g") == b"yz"

    def test_unknown_ioctl(self, fs: FileSystem) -> None:
        put(fs, b"/f")
        fh = fs.open(b"/f", os.O_RDONLY)
        refused(errno.ENOTTY, fs.ioctl, b"/f", fh, 0x80045599, b"\0\0\0\0")
        fs.release(b"/f", fh)

    # --- without a name ------------------------------------------------------------------------

    @needs(Feature.UNLINKED, Feature.CHMOD)
    def test_a_file_without_a_name(self, fs: FileSystem) -> None:
        assert fs.open_unlinked and fs.stable_inodes
        put(fs, b"/f", b"content")
        fh = fs.open(b"/f", os.O_RDWR)
        ino = fs.getattr(b"/f").ino
        fs.unlink(b"/f")
        put(fs, b"/f", b"another")
        assert fs.read(b"/f", fh, 10, 0) == b"content"
        attr = fs.getattr(b"/f", fh)
        assert (attr.ino, attr.nlink, attr.size) == (ino, 0, 7)
        assert fs.getattr(b"/f").ino != ino
        fs.write(b"/f", fh, pattern(100_000), 7)
        fs.truncate(b"/f", 50_000, fh)
        fs.chmod(b"/f", 0o600, fh)
        fs.utimens(b"/f", 10**18, 2 * 10**18, fh)
        attr = fs.getattr(b"/f", fh)
        assert (attr.size, attr.mode & 0o7777) == (50_000, 0o600)
        if Feature.TIMES in self.features:
            assert (attr.atime_ns, attr.mtime_ns) == (10**18, 2 * 10**18)
        assert fs.read(b"/f", fh, 20, 3) == b"tent" + pattern(16)
        fs.release(b"/f", fh)
        assert get(fs, b"/f") == b"another"

    @needs(Feature.UNLINKED)
    def test_a_file_that_a_rename_replaced(self, fs: FileSystem) -> None:
        put(fs, b"/f", b"old")
        put(fs, b"/g", b"new")
        fh = fs.open(b"/f", os.O_RDWR)
        fs.rename(b"/g", b"/f")
        assert fs.getattr(b"/f", fh).nlink == 0
        fs.write(b"/f", fh, b"OLD", 0)
        assert (fs.read(b"/f", fh, 9, 0), get(fs, b"/f")) == (b"OLD", b"new")
        fs.release(b"/f", fh)

    @needs(Feature.UNLINKED)
    def test_an_inode_number_identifies_a_file(self, fs: FileSystem) -> None:
        fs.mkdir(b"/d", 0o755)
        paths = [b"/f%d" % i for i in range(20)] + [b"/d/f%d" % i for i in range(20)]
        handles = []
        for path in paths:
            handles.append(fs.create(path, 0o644, os.O_RDWR))
            fs.unlink(path)
        inos = [fs.getattr(p, fh).ino for p, fh in zip(paths, handles, strict=True)]
        inos += [fs.getattr(path).ino for path in (b"/", b"/d")]
        assert len(set(inos)) == len(inos)
        for path, fh in zip(paths, handles, strict=True):
            fs.release(path, fh)

    # --- holes ---------------------------------------------------------------------------------

    @needs(Feature.HOLES)
    def test_holes(self, fs: FileSystem) -> None:
        fh = fs.create(b"/f", 0o644, os.O_RDWR)
        fs.write(b"/f", fh, pattern(5000), 0)
        fs.write(b"/f", fh, pattern(5000), 4 * MIB)
        fs.truncate(b"/f", 8 * MIB, fh)
        fs.fsync(b"/f", fh, False)
        size, blocks = fs.getattr(b"/f").size, fs.getattr(b"/f").blocks

        def seek(offset: int, whence: int) -> int:
            return fs.seek(b"/f", fh, offset, whence)

        first = seek(0, os.SEEK_HOLE)
        assert seek(0, os.SEEK_DATA) == 0
        assert seek(100, os.SEEK_DATA) == 100
        assert 5000 <= first < 2 * MIB
        assert seek(first, os.SEEK_HOLE) == first
        assert seek(2 * MIB + 1, os.SEEK_HOLE) == 2 * MIB + 1
        assert 2 * MIB < seek(first, os.SEEK_DATA) <= 4 * MIB
        second = seek(4 * MIB, os.SEEK_HOLE)
        assert 4 * MIB + 5000 <= second < 6 * MIB
        refused(errno.ENXIO, seek, second, os.SEEK_DATA)
        refused(errno.ENXIO, seek, size, os.SEEK_HOLE)
        assert (size, blocks * 512 < MIB) == (8 * MIB, True)
        fs.truncate(b"/f", 4 * MIB + 10, fh)
        assert seek(4 * MIB, os.SEEK_HOLE) == 4 * MIB + 10  # the end is a hole
        assert fs.read(b"/f", fh, 20, 4 * MIB - 5) == bytes(5) + pattern(10)
        fs.release(b"/f", fh)

    @needs(Feature.FALLOCATE)
    def test_fallocate_reserves(self, fs: FileSystem) -> None:
        put(fs, b"/f", b"12345")
        fh = fs.open(b"/f", os.O_RDWR)
        fs.fallocate(b"/f", fh, KEEP_SIZE, 0, MIB)
        attr = fs.getattr(b"/f")
        assert (attr.size, attr.blocks * 512 >= MIB) == (5, True)
        fs.fallocate(b"/f", fh, 0, 2, 10)
        assert fs.read(b"/f", fh, 100, 0) == b"12345" + bytes(7)
        fs.fallocate(b"/f", fh, 0, 0, 3)
        assert fs.getattr(b"/f").size == 12
        fs.release(b"/f", fh)

    @needs(Feature.FALLOCATE)
    def test_fallocate_punches_holes(self, fs: FileSystem) -> None:
        model = bytearray(pattern(400_000))
        put(fs, b"/f", bytes(model))
        fh = fs.open(b"/f", os.O_RDWR)
        fs.fsync(b"/f", fh, False)
        before = fs.getattr(b"/f").blocks
        for offset, size in ((10, 20), (70_000, 200_000), (399_000, 5000), (600_000, 10)):
            fs.fallocate(b"/f", fh, PUNCH_HOLE | KEEP_SIZE, offset, size)
            end = min(offset + size, len(model))
            if offset < end:
                model[offset:end] = bytes(end - offset)
        assert fs.read(b"/f", fh, 500_000, 0) == bytes(model)
        attr = fs.getattr(b"/f")
        assert (attr.size, attr.blocks <= before - 300) == (400_000, True)
        refused(errno.EOPNOTSUPP, fs.fallocate, b"/f", fh, PUNCH_HOLE, 0, 10)
        refused(errno.EOPNOTSUPP, fs.fallocate, b"/f", fh, 0x8000, 0, 10)
        fs.release(b"/f", fh)

    @needs(Feature.ZERO_RANGE)
    def test_fallocate_zeroes(self, fs: FileSystem) -> None:
        data = pattern(300_000)
        put(fs, b"/f", data)
        fh = fs.open(b"/f", os.O_RDWR)
        fs.fallocate(b"/f", fh, ZERO_RANGE, 1000, 200_000)
        expected = data[:1000] + bytes(200_000) + data[201_000:]
        assert fs.read(b"/f", fh, 400_000, 0) == expected
        fs.fallocate(b"/f", fh, ZERO_RANGE | KEEP_SIZE, 290_000, 20_000)
        assert fs.getattr(b"/f").size == 300_000
        fs.fallocate(b"/f", fh, ZERO_RANGE, 290_000, 20_000)
        assert fs.getattr(b"/f").size == 310_000
        assert fs.read(b"/f", fh, 400_000, 0) == expected[:290_000] + bytes(20_000)
        fs.release(b"/f", fh)

    # --- extended attributes -------------------------------------------------------------------

    @needs(Feature.XATTR)
    @pytest.mark.parametrize("kind", ["file", "directory"])
    def test_xattr(self, fs: FileSystem, kind: str) -> None:
        put(fs, b"/f") if kind == "file" else fs.mkdir(b"/f", 0o755)
        assert list(fs.listxattr(b"/f")) == []
        refused(errno.ENODATA, fs.getxattr, b"/f", b"user.a")
        refused(errno.ENODATA, fs.removexattr, b"/f", b"user.a")
        refused(errno.ENODATA, fs.setxattr, b"/f", b"user.a", b"1", REPLACE)
        fs.setxattr(b"/f", b"user.a", b"\0one\xff", 0)
        fs.setxattr(b"/f", b"user.b", b"", CREATE)
        refused(errno.EEXIST, fs.setxattr, b"/f", b"user.a", b"2", CREATE)
        assert fs.getxattr(b"/f", b"user.a") == b"\0one\xff"
        assert fs.getxattr(b"/f", b"user.b") == b""
        fs.setxattr(b"/f", b"user.a", b"two", REPLACE)
        fs.setxattr(b"/f", b"user.b", b"three", 0)
        assert sorted(fs.listxattr(b"/f")) == [b"user.a", b"user.b"]
        assert [fs.getxattr(b"/f", n) for n in (b"user.a", b"user.b")] == [b"two", b"three"]
        fs.removexattr(b"/f", b"user.a")
        assert list(fs.listxattr(b"/f")) == [b"user.b"]
        fs.rename(b"/f", b"/g")
        assert fs.getxattr(b"/g", b"user.b") == b"three"

    @needs(Feature.XATTR)
    def test_xattr_limits(self, fs: FileSystem) -> None:
        put(fs, b"/f")
        refused(errno.ERANGE, fs.setxattr, b"/f", b"user." + b"x" * 251, b"1", 0)
        fs.setxattr(b"/f", b"user." + b"x" * 250, b"1", 0)
        refused(errno.E2BIG, fs.setxattr, b"/f", b"user.big", bytes(65537), 0)
        refused(errno.EINVAL, fs.setxattr, b"/f", b"user.a", b"1", 8)
        refused(errno.EOPNOTSUPP, fs.setxattr, b"/f", b"nospace.a", b"1", 0)
        refused(errno.EOPNOTSUPP, fs.getxattr, b"/f", b"nospace.a")
        refused(errno.EINVAL, fs.setxattr, b"/f", b"user.", b"1", 0)
        assert list(fs.listxattr(b"/f")) == [b"user." + b"x" * 250]

    @needs(Feature.XATTR, Feature.SYMLINKS)
    def test_xattr_of_a_symbolic_link(self, fs: FileSystem) -> None:
        put(fs, b"/f")
        fs.symlink(b"f", b"/s")
        refused(errno.EPERM, fs.setxattr, b"/s", b"user.a", b"1", 0)
        refused(errno.ENODATA, fs.getxattr, b"/s", b"user.a")
        assert list(fs.listxattr(b"/s")) == []
        assert list(fs.listxattr(b"/f")) == []

    @needs(Feature.XATTR, Feature.HARD_LINKS)
    def test_xattr_belongs_to_the_inode(self, fs: FileSystem) -> None:
        put(fs, b"/f")
        fs.link(b"/f", b"/g")
        fs.setxattr(b"/f", b"user.a", b"1", 0)
        fs.unlink(b"/f")
        put(fs, b"/f")
        assert exists(fs, b"/f")
        assert (list(fs.listxattr(b"/f")), fs.getxattr(b"/g", b"user.a")) == ([], b"1")
