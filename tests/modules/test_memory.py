"""The memory file system: the contract, the host as oracle, and its own: limits and options."""

from __future__ import annotations

import errno
import os
import random
import stat
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from contract import FileSystemContract
from contract_base import NOBODY, get, names, put, refused
from differential import DifferentialContract
from umvm.modules import memory
from umvm.modules.memory.content import PAGE, Content, Runs

from umvm.interfaces.filesystem import Caller, FileSystem, set_caller

MIB = 1 << 20
GIB = 1 << 30
USER = Caller(1000, 100, 1, (100, 7))


@contextmanager
def new(**options: str) -> Iterator[FileSystem]:
    """A file system with these mount options."""
    fs = memory.make("none", options)
    fs.init()
    yield fs
    fs.destroy()


@pytest.fixture
def fs() -> Iterator[FileSystem]:
    with new() as fs:
        yield fs


@pytest.fixture(autouse=True)
def root_calls() -> Iterator[None]:
    """A test that changes the caller leaves none behind."""
    set_caller(NOBODY)
    yield
    set_caller(NOBODY)


class TestContract(FileSystemContract):
    @pytest.fixture
    def fs(self) -> Iterator[FileSystem]:
        with new() as fs:
            yield fs


class TestDifferential(DifferentialContract):
    @contextmanager
    def make_fs(self, directory: Path) -> Iterator[FileSystem]:
        with new() as fs:
            yield fs


# --- the module -----------------------------------------------------------------------------------


def test_the_module_offers_the_type() -> None:
    assert set(memory.FILESYSTEMS) == {"memory"}
    assert (memory.__doc__ or "").startswith("File system in memory")


@pytest.mark.parametrize(
    ("options", "attr"),
    [
        ({}, (0o1777, 5, 6)),
        ({"mode": "750", "uid": "1000", "gid": "0"}, (0o750, 1000, 0)),
        ({"mode": "02755"}, (0o2755, 5, 6)),
    ],
)
def test_options_of_the_root(options: dict[str, str], attr: tuple[int, int, int]) -> None:
    set_caller(Caller(5, 6, 1))
    found = memory.make("none", options).getattr(b"/")
    assert (stat.S_IMODE(found.mode), found.uid, found.gid) == attr


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("4096", 1), ("4097", 2), ("8k", 2), ("1M", 256), ("1g", 1 << 18), ("1t", 1 << 28),
        ("0", 0),
        ("25%", os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4096 * 25 // 100),
    ],
)  # fmt: skip
def test_size(text: str, blocks: int) -> None:
    s = memory.make("none", {"size": text}).statfs(b"/")
    assert (s.blocks, s.bfree, s.bavail, s.frsize) == (blocks, blocks, blocks, 4096)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("size", "x"), ("size", ""), ("size", "-1"), ("size", "1kk"), ("size", "1 k"),
        ("size", "%"), ("size", "\u0661"), ("nr_inodes", "1%"), ("mode", "888"), ("mode", "17777"),
        ("uid", "root"), ("gid", "4294967295"), ("max_links", "-1"), ("nonsense", ""), ("ro", ""),
        ("Size", "1k"),
    ],
)  # fmt: skip
def test_bad_options_are_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(OSError, match=f"memory: .*{name}") as caught:
        memory.make("none", {name: value})
    assert caught.value.errno == errno.EINVAL


# --- limits ---------------------------------------------------------------------------------------


def test_statfs_counts_pages_and_inodes() -> None:
    with new(size="1m", nr_inodes="100") as fs:

        def used() -> tuple[int, int]:
            s = fs.statfs(b"/")
            return s.blocks - s.bfree, s.files - s.ffree

        assert used() == (0, 1)
        put(fs, b"/f", b"x" * 5000)
        fs.mkdir(b"/d", 0o755)
        fs.symlink(b"f", b"/s")
        assert used() == (2, 4)
        fs.link(b"/f", b"/d/f")
        fh = fs.open(b"/f", os.O_RDWR)
        fs.unlink(b"/f")
        fs.unlink(b"/d/f")
        fs.unlink(b"/s")
        dh = fs.opendir(b"/d")
        fs.rmdir(b"/d")
        assert used() == (2, 3)  # both are open
        fs.truncate(b"/f", 4096, fh)
        assert used() == (1, 3)
        fs.fallocate(b"/f", fh, 0, 0, 40960)
        assert used() == (10, 3)
        fs.fallocate(b"/f", fh, 3, 0, 8192)
        assert used() == (8, 3)
        fs.release(b"/f", fh)
        fs.releasedir(b"/d", dh)
        assert used() == (0, 1)


def test_a_full_file_system() -> None:
    with new(size="40k") as fs:
        fh = fs.create(b"/f", 0o644, os.O_RDWR)
        assert fs.write(b"/f", fh, b"a" * 30_000, 0) == 30_000
        assert fs.write(b"/f", fh, b"b" * 30_000, 30_000) == 10_960  # as much as there is room for
        refused(errno.ENOSPC, fs.write, b"/f", fh, b"c", 40_960)
        refused(errno.ENOSPC, fs.fallocate, b"/f", fh, 1, 0, 50_000)
        assert fs.write(b"/f", fh, b"d" * 40_960, 0) == 40_960  # overwriting needs none
        put(fs, b"/g")
        gh = fs.open(b"/g", os.O_WRONLY)
        refused(errno.ENOSPC, fs.write, b"/g", gh, b"e", 0)
        assert fs.getattr(b"/g").size == 0
        fs.truncate(b"/f", 5000, fh)
        assert fs.write(b"/g", gh, b"e" * 99_999, 0) == 8 * 4096
        fs.unlink(b"/g")
        refused(errno.ENOSPC, fs.write, b"/f", fh, b"f", 8192)
        fs.release(b"/g", gh)
        assert fs.write(b"/f", fh, b"f" * 4096, 8192) == 4096
        assert fs.read(b"/f", fh, 99_999, 0) == b"d" * 5000 + bytes(3192) + b"f" * 4096
        fs.release(b"/f", fh)
        fs.mkdir(b"/d", 0o755)  # names need no pages


def test_a_short_write_fills_from_the_middle_of_a_page() -> None:
    with new(size="8k") as fs:
        fh = fs.create(b"/f", 0o644, os.O_RDWR)
        assert fs.write(b"/f", fh, b"x" * 100_000, 1_000_000) == 2 * 4096 - 1_000_000 % 4096
        refused(errno.ENOSPC, fs.write, b"/f", fh, b"y", 0)
        fs.release(b"/f", fh)


def test_the_number_of_inodes() -> None:
    with new(nr_inodes="3") as fs:
        put(fs, b"/a")
        put(fs, b"/b")
        refused(errno.ENOSPC, fs.create, b"/c", 0o644, os.O_RDWR)
        refused(errno.ENOSPC, fs.mkdir, b"/c", 0o755)
        refused(errno.ENOSPC, fs.symlink, b"a", b"/c")
        refused(errno.ENOSPC, fs.mknod, b"/c", stat.S_IFIFO | 0o600, 0)
        fs.link(b"/a", b"/c")
        refused(errno.EEXIST, fs.mkdir, b"/c", 0o755)
        fs.rename(b"/a", b"/b")
        put(fs, b"/d")
        assert names(fs, b"/") == [b"b", b"c", b"d"]


def test_the_number_of_links() -> None:
    with new(max_links="4") as fs:
        put(fs, b"/f")
        for name in (b"/1", b"/2", b"/3"):
            fs.link(b"/f", name)
        refused(errno.EMLINK, fs.link, b"/f", b"/4")
        for name in (b"/d", b"/e"):
            fs.mkdir(name, 0o755)
        refused(errno.EMLINK, fs.mkdir, b"/g", 0o755)
        fs.mkdir(b"/d/g", 0o755)
        refused(errno.EMLINK, fs.rename, b"/d/g", b"/g")
        fs.rename(b"/d/g", b"/e")  # one goes, one comes
        fs.rename(b"/f", b"/d", 2)
        assert (fs.getattr(b"/").nlink, stat.S_ISDIR(fs.getattr(b"/f").mode)) == (4, True)


# --- inodes ---------------------------------------------------------------------------------------


def test_inode_numbers_are_never_used_again(fs: FileSystem) -> None:
    seen = set()
    for _ in range(100):
        put(fs, b"/f")
        seen.add(fs.getattr(b"/f").ino)
        fs.unlink(b"/f")
    assert len(seen) == 100


def test_owners_are_the_callers(fs: FileSystem) -> None:
    set_caller(USER)
    put(fs, b"/f")
    fs.mkdir(b"/d", 0o755)
    fs.symlink(b"x", b"/s")
    fs.mknod(b"/p", stat.S_IFIFO | 0o600, 0)
    owners = {fs.getattr(path)[3:5] for path in (b"/f", b"/d", b"/s", b"/p")}
    assert owners == {(1000, 100)}


@pytest.mark.parametrize(
    ("gid", "bits", "expected"),
    [(7, 0o2770, 0o2770), (50, 0o2770, 0o770), (50, 0o2760, 0o2760), (50, 0o755, 0o755)],
)
def test_set_group_id_in_a_directory_of_another_group(
    fs: FileSystem, gid: int, bits: int, expected: int
) -> None:
    """Who isn't in the group makes no set-group-id program of it: mode_strip_sgid()."""
    fs.mkdir(b"/d", 0o777)
    fs.chown(b"/d", 0, gid)
    fs.chmod(b"/d", 0o2777)
    set_caller(USER)
    put(fs, b"/d/f", mode=bits)
    fs.mkdir(b"/d/d", 0o700)
    found = [fs.getattr(path) for path in (b"/d/f", b"/d/d")]
    assert [stat.S_IMODE(attr.mode) for attr in found] == [expected, 0o2700]
    assert [attr.gid for attr in found] == [gid, gid]


@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK])
def test_devices_are_stored(fs: FileSystem, kind: int) -> None:
    device = os.makedev(4095, 1048575)
    fs.mknod(b"/x", kind | 0o660, device)
    attr = fs.getattr(b"/x")
    assert (attr.mode, attr.rdev, attr.blocks) == (kind | 0o660, device, 0)
    fs.mknod(b"/p", stat.S_IFIFO | 0o660, device)
    assert fs.getattr(b"/p").rdev == 0


def test_mknod_of_what_it_can_not_make(fs: FileSystem) -> None:
    refused(errno.EPERM, fs.mknod, b"/x", stat.S_IFDIR | 0o755, 0)
    refused(errno.EINVAL, fs.mknod, b"/x", stat.S_IFLNK | 0o755, 0)
    fs.mknod(b"/x", 0o640, 0)  # no type says a regular file: mknod(2)
    assert fs.getattr(b"/x").mode == stat.S_IFREG | 0o640


def test_name_spaces_of_extended_attributes(fs: FileSystem) -> None:
    put(fs, b"/f")
    fs.symlink(b"f", b"/s")
    for name in (b"trusted.a", b"security.b", b"user.c"):
        fs.setxattr(b"/f", name, name, 0)
    fs.setxattr(b"/s", b"trusted.a", b"1", 0)
    assert sorted(fs.listxattr(b"/f")) == [b"security.b", b"trusted.a", b"user.c"]
    set_caller(USER)
    assert sorted(fs.listxattr(b"/f")) == [b"security.b", b"user.c"]
    assert fs.getxattr(b"/f", b"security.b") == b"security.b"
    refused(errno.ENODATA, fs.getxattr, b"/f", b"trusted.a")
    for name in (b"trusted.a", b"security.b"):
        refused(errno.EPERM, fs.setxattr, b"/f", name, b"2", 0)
        refused(errno.EPERM, fs.removexattr, b"/f", name)
    refused(errno.EOPNOTSUPP, fs.getxattr, b"/f", b"system.posix_acl_access")
    set_caller(NOBODY)
    assert fs.getxattr(b"/f", b"trusted.a") == b"trusted.a"
    fs.setxattr(b"/f", b"user.big", bytes(65536), 0)
    assert len(fs.getxattr(b"/f", b"user.big")) == 65536


def test_user_attributes_of_a_sticky_directory(fs: FileSystem) -> None:
    fs.mkdir(b"/d", 0o755)
    fs.chmod(b"/d", 0o1777)
    set_caller(USER)
    refused(errno.EPERM, fs.setxattr, b"/d", b"user.a", b"1", 0)


def test_a_removed_directory_has_no_entries(fs: FileSystem) -> None:
    fs.mkdir(b"/d", 0o755)
    fh = fs.opendir(b"/d")
    fs.rmdir(b"/d")
    refused(errno.ENOENT, lambda: fs.readdir(b"/d", fh))
    assert fs.getattr(b"/d", fh).nlink == 0
    fs.mkdir(b"/d", 0o755)
    put(fs, b"/d/f")
    refused(errno.ENOENT, lambda: fs.readdir(b"/d", fh))  # another directory of that name
    fs.releasedir(b"/d", fh)


def test_a_long_path(fs: FileSystem) -> None:
    path = b""
    for _ in range(1500):
        path += b"/d"
        fs.mkdir(path, 0o755)
    put(fs, path + b"/f", b"deep")
    fs.rename(b"/d", b"/e")
    assert get(fs, b"/e" + path[2:] + b"/f") == b"deep"
    refused(errno.ENOENT, fs.getattr, path)


def test_times_before_1970(fs: FileSystem) -> None:
    put(fs, b"/f")
    fs.utimens(b"/f", -1, -(10**18))
    assert fs.getattr(b"/f")[7:9] == (-1, -(10**18))


# --- content --------------------------------------------------------------------------------------


def test_holes_take_no_memory(fs: FileSystem) -> None:
    tracemalloc.start()
    try:
        fh = fs.create(b"/f", 0o644, os.O_RDWR)
        fs.truncate(b"/f", 1 << 62, fh)
        for at in range(1000):
            fs.write(b"/f", fh, b"x", at * GIB)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    attr = fs.getattr(b"/f")
    assert (attr.size, attr.blocks) == (1 << 62, 1000 * 8)
    assert peak < 4 * MIB
    assert fs.read(b"/f", fh, 3, 5 * GIB - 1) == b"\0x\0"
    assert fs.seek(b"/f", fh, 5 * GIB + PAGE, os.SEEK_DATA) == 6 * GIB
    fs.truncate(b"/f", 0, fh)
    assert fs.getattr(b"/f").blocks == 0
    fs.release(b"/f", fh)


def test_the_largest_file(fs: FileSystem) -> None:
    most = (1 << 63) - 1
    fh = fs.create(b"/f", 0o644, os.O_RDWR)
    refused(errno.EFBIG, fs.truncate, b"/f", most + 1, fh)
    fs.truncate(b"/f", most, fh)
    assert fs.write(b"/f", fh, b"z", most - 1) == 1
    refused(errno.EFBIG, fs.write, b"/f", fh, b"zz", most - 1)
    refused(errno.EFBIG, fs.fallocate, b"/f", fh, 0, most, 1)
    assert fs.read(b"/f", fh, 10, most - 2) == b"\0z"
    fs.release(b"/f", fh)


def test_dense_content(fs: FileSystem) -> None:
    piece = random.Random(1).randbytes(MIB)
    fh = fs.create(b"/f", 0o644, os.O_RDWR)
    for at in range(32):
        assert fs.write(b"/f", fh, piece, at * MIB) == MIB
    assert fs.getattr(b"/f").blocks == 32 * MIB // 512
    assert fs.read(b"/f", fh, MIB, 7 * MIB + 9) == piece[9:] + piece[:9]
    fs.release(b"/f", fh)


@pytest.mark.parametrize("seed", range(20))
def test_runs_are_a_set(seed: int) -> None:
    r = random.Random(seed)
    runs = Runs()
    model: set[int] = set()
    for _ in range(400):
        start = r.randrange(60)
        end = start + r.randrange(1, 20)
        members = set(range(start, end))
        assert runs.count(start, end) == len(members & model)
        if r.random() < 0.5:
            assert runs.add(start, end) == len(members - model)
            model |= members
        else:
            assert runs.discard(start, end) == len(members & model)
            model -= members
        assert sorted(set(runs)) == list(runs)
        assert {n for a, b in zip(runs[::2], runs[1::2], strict=True) for n in range(a, b)} == model
        inside, edge = runs.edge(start)
        assert inside == (start in model)
        later = [n for n in range(start, 100) if (n in model) != inside]
        assert edge == (later[0] if later else -1)


@pytest.mark.parametrize("seed", range(20))
def test_content_is_bytes_with_holes(seed: int) -> None:
    """Random calls on Content and on plain bytes with two sets of pages."""
    r = random.Random(seed)
    content, model = Content(), bytearray(400_000)
    data: set[int] = set()
    spare: set[int] = set()
    for _ in range(150):
        offset = r.choice((r.randrange(300_000), r.randrange(70) * PAGE, r.randrange(5) * 65536))
        size = r.choice((1, r.randrange(1, 99_000), PAGE, 65536, r.randrange(1, 300)))
        end = offset + size
        touched = set(range(offset // PAGE, -(-end // PAGE)))
        whole = set(range(-(-offset // PAGE), end // PAGE))
        action = r.choice(("write", "write", "cut", "punch", "zero", "reserve"))
        assert content.missing(offset, end) == len(touched - data - spare)
        if action == "write":
            piece = r.randbytes(size)
            content.write(piece, offset)
            model[offset:end] = piece
            data, spare = data | touched, spare - touched
        elif action == "cut":
            content.cut(offset)
            model[offset:] = bytes(len(model) - offset)
            kept = set(range(-(-offset // PAGE)))
            data, spare = data & kept, spare & kept
        elif action == "punch":
            content.punch(offset, end)
            model[offset:end] = bytes(size)
            data, spare = data - whole, spare - whole
        elif action == "zero":
            content.zero(offset, end)
            model[offset:end] = bytes(size)
            data -= whole
            spare |= touched - data
        else:
            content.reserve(offset, end)
            spare |= touched - data
        assert content.allocated == len(data) + len(spare)
        at = r.randrange(300_000)
        length = r.choice((10, r.randrange(1, 99_000)))
        assert content.read(at, length) == bytes(model[at : at + length])
        for whence in (os.SEEK_DATA, os.SEEK_HOLE):
            check_seek(content, data, at, whence)
    assert content.read(0, len(model)) == bytes(model)


def check_seek(content: Content, data: set[int], at: int, whence: int) -> None:
    """The first byte from `at` on that is (not) in a page with data."""
    wanted = whence == os.SEEK_DATA
    size = 400_000
    pages = [page for page in range(at // PAGE, -(-size // PAGE)) if (page in data) == wanted]
    if pages:
        assert content.seek(at, size, whence) == min(max(at, pages[0] * PAGE), size)
    elif wanted:
        refused(errno.ENXIO, content.seek, at, size, whence)
    else:
        assert content.seek(at, size, whence) == size


def test_threads_write_one_file(fs: FileSystem) -> None:
    """Each byte is one thread's, and the sums of the file system stay right."""
    fh = fs.create(b"/f", 0o644, os.O_RDWR)

    def work(me: int) -> None:
        for i in range(100):
            fs.write(b"/f", fh, bytes([me]) * 5000, (4 * i + me) * 5000)
            fs.read(b"/f", fh, 100_000, i * 4000)

    threads = [threading.Thread(target=work, args=(me,)) for me in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    expected = b"".join(bytes([i % 4]) * 5000 for i in range(400))
    assert fs.read(b"/f", fh, len(expected) + 1, 0) == expected
    s = fs.statfs(b"/")
    assert s.blocks - s.bfree == -(-len(expected) // PAGE)
    fs.release(b"/f", fh)
