"""The passthrough file system: the contract, the host as oracle, and that nothing leads out."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from contract import ALL, Feature, FileSystemContract
from contract_base import NOBODY, exists, get, names, put, refused, this_process
from differential import DifferentialContract, host_offers
from umvm.modules import passthrough

from umvm.interfaces.filesystem import Caller, FileSystem, set_caller

PROBES = {
    "atime": Feature.ATIME,
    "nlink": Feature.DIRECTORY_NLINK,
    "punch": Feature.FALLOCATE,
    "xattr": Feature.XATTR,
    "zero": Feature.ZERO_RANGE,
}
USER = Caller(65534, 65533, os.getpid(), (65533, 65532))
only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root's guests have other ids")
only_users = pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")


def offered() -> frozenset[Feature]:
    """What this user gets from the file system where pytest makes its directories."""
    with tempfile.TemporaryDirectory() as place:
        there = host_offers(Path(place))
    lacking = {feature for name, feature in PROBES.items() if name not in there}
    return ALL - lacking - ({Feature.OWNERS} if os.geteuid() else set())


@contextmanager
def serve(source: Path, **options: str) -> Iterator[FileSystem]:
    """The file system of a directory, which is made if need be."""
    source.mkdir(exist_ok=True)
    fs = passthrough.make(str(source), options)
    fs.init()
    yield fs
    fs.destroy()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "source"


@pytest.fixture
def fs(source: Path) -> Iterator[FileSystem]:
    set_caller(this_process())
    with serve(source) as fs:
        yield fs
    set_caller(NOBODY)


class TestContract(FileSystemContract):
    features = offered()

    @pytest.fixture
    def fs(self, source: Path) -> Iterator[FileSystem]:
        with serve(source) as fs:
            yield fs


class TestDifferential(DifferentialContract):
    @contextmanager
    def make_fs(self, directory: Path) -> Iterator[FileSystem]:
        with serve(directory) as fs:
            yield fs


# --- the module -----------------------------------------------------------------------------------


def test_the_module_offers_the_type() -> None:
    assert set(passthrough.FILESYSTEMS) == {"passthrough"}
    assert (passthrough.__doc__ or "").startswith("A directory of the host")


@pytest.mark.parametrize("options", [{"nonsense": ""}, {"ro": "1"}, {"ro": "", "size": "5"}])
def test_bad_options_are_refused(options: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(OSError, match="passthrough: unknown option") as caught:
        passthrough.make(str(tmp_path), options)
    assert caught.value.errno == errno.EINVAL


def test_a_missing_source_is_refused(tmp_path: Path) -> None:
    refused(errno.ENOENT, passthrough.make(str(tmp_path / "x"), {}).init)


def test_it_is_the_directory_of_the_host(fs: FileSystem, source: Path) -> None:
    (source / "f").write_bytes(b"there")
    s, attr = (source / "f").stat(), fs.getattr(b"/f")
    assert get(fs, b"/f") == b"there"
    assert (attr.ino, attr.size, attr.blocks, attr.blksize) == (
        s.st_ino,
        5,
        s.st_blocks,
        s.st_blksize,
    )
    assert attr[7:10] == (s.st_atime_ns, s.st_mtime_ns, s.st_ctime_ns)
    put(fs, b"/g", b"here")
    assert (source / "g").read_bytes() == b"here"
    os.rename(source / "g", source / "h")
    assert names(fs, b"/") == [b"f", b"h"]
    v, found = os.statvfs(source), fs.statfs(b"/f")
    assert (found.frsize, found.blocks, found.namemax) == (v.f_frsize, v.f_blocks, v.f_namemax)


def test_a_file_as_source(source: Path) -> None:
    source.write_bytes(b"content")
    fs = passthrough.make(str(source), {})
    fs.init()
    assert stat.S_ISREG(fs.getattr(b"/").mode)
    fh = fs.open(b"/", os.O_RDWR)
    fs.write(b"/", fh, b"C", 0)
    assert fs.read(b"/", fh, 9, 0) == b"Content"
    fs.truncate(b"/", 3, fh)
    fs.chmod(b"/", 0o640)
    fs.release(b"/", fh)
    refused(errno.ENOTDIR, fs.getattr, b"/x")
    fs.destroy()
    assert (source.read_bytes(), stat.S_IMODE(source.stat().st_mode)) == (b"Con", 0o640)


def test_read_only(source: Path) -> None:
    source.mkdir()
    (source / "f").write_bytes(b"x")
    (source / "d").mkdir()
    with serve(source, ro="") as fs:
        for call, arguments in (
            (fs.create, (b"/n", 0o644, os.O_WRONLY)), (fs.mkdir, (b"/n", 0o755)),
            (fs.mknod, (b"/n", stat.S_IFIFO | 0o600, 0)), (fs.symlink, (b"x", b"/n")),
            (fs.link, (b"/f", b"/n")), (fs.rename, (b"/f", b"/n")), (fs.unlink, (b"/f",)),
            (fs.rmdir, (b"/d",)), (fs.chmod, (b"/f", 0o600)), (fs.chown, (b"/f", -1, -1)),
            (fs.truncate, (b"/f", 0)), (fs.utimens, (b"/f", 0, 0)), (fs.open, (b"/f", os.O_WRONLY)),
            (fs.open, (b"/f", os.O_RDWR)), (fs.setxattr, (b"/f", b"user.a", b"1", 0)),
            (fs.removexattr, (b"/f", b"user.a")), (fs.access, (b"/f", os.W_OK)),
        ):  # fmt: skip
            refused(errno.EROFS, call, *arguments)
        assert get(fs, b"/f") == b"x"
        fs.access(b"/f", os.R_OK)
    assert sorted(os.listdir(source)) == ["d", "f"]


def test_directories_are_released(fs: FileSystem) -> None:
    """Every descriptor that a failing call opened on its way is closed again."""
    fs.mkdir(b"/a", 0o755)
    fs.mkdir(b"/a/b", 0o755)
    put(fs, b"/a/b/f")
    before = len(os.listdir("/proc/self/fd"))
    for path in (b"/a/b/x", b"/a/x/y", b"/a/b/f/x", b"/a/b"):
        for call in (fs.unlink, fs.readlink, fs.getattr, fs.listxattr, fs.rmdir, fs.statfs):
            try:
                call(path)
            except OSError:
                pass
        refused((errno.ENOENT, errno.ENOTDIR), fs.rename, b"/a/b/f", path + b"/n/o")
    assert len(os.listdir("/proc/self/fd")) == before


def test_ioctls_that_name_descriptors_are_refused(fs: FileSystem) -> None:
    put(fs, b"/f")
    fh = fs.open(b"/f", os.O_RDWR)
    refused(errno.ENOTTY, fs.ioctl, b"/f", fh, 0x40049409, fh.to_bytes(4, "little"))  # FICLONE
    try:
        flags = fs.ioctl(b"/f", fh, 0x80086601, b"")  # FS_IOC_GETFLAGS, as lsattr does
        assert len(flags) == 8
    except OSError as error:  # not every file system has it
        assert error.errno in (errno.ENOTTY, errno.EOPNOTSUPP)
    fs.release(b"/f", fh)


def test_set_group_id_directories_and_another_umask(source: Path) -> None:
    """The bit that a directory inherits stays when bits that our umask took are put back."""
    before = os.umask(0o077)
    set_caller(this_process())
    try:
        with serve(source) as fs:
            fs.mkdir(b"/d", 0o777)
            fs.chmod(b"/d", 0o2777)
            fs.mkdir(b"/d/d", 0o775)
            put(fs, b"/d/f", mode=0o664)
            found = [stat.S_IMODE(fs.getattr(path).mode) for path in (b"/d/d", b"/d/f")]
    finally:
        os.umask(before)
        set_caller(NOBODY)
    assert found == [0o2775, 0o664]


# --- nothing leads out ----------------------------------------------------------------------------


@pytest.fixture
def trap(source: Path, tmp_path: Path, fs: FileSystem) -> Path:
    """`/way` and `/way2` lead to a directory outside, `/file` to a file in it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (outside / "secret").chmod(0o600)
    (outside / "sub").mkdir()
    (source / "way").symlink_to(outside)
    (source / "way2").symlink_to("../outside")
    (source / "file").symlink_to(outside / "secret")
    (source / "mine").write_bytes(b"mine")
    return outside


def snapshot(place: Path) -> object:
    """Names, attributes and content."""
    found = []
    for path in sorted([place, *place.rglob("*")]):
        s = path.lstat()
        found.append((str(path), s.st_mode, s.st_nlink, s.st_uid, s.st_mtime_ns, s.st_ctime_ns))
    return found, (place / "secret").read_bytes()


@pytest.mark.parametrize("way", [b"/way", b"/way2", b"/../outside", b"/."])
def test_no_call_follows_a_link_on_the_way(fs: FileSystem, trap: Path, way: bytes) -> None:
    before = snapshot(trap)
    out = (errno.ELOOP, errno.ENOTDIR, errno.EXDEV, errno.ENOENT)
    secret, new = way + b"/secret", way + b"/new"
    if way == b"/.":  # stays inside, but isn't canonical: must find nothing of the outside
        secret, new = b"/./../outside/secret", b"/./../outside/new"
    for call, arguments in (
        (fs.getattr, (secret,)), (fs.open, (secret, os.O_RDONLY)), (fs.open, (secret, os.O_RDWR)),
        (fs.create, (new, 0o644, os.O_WRONLY)), (fs.mkdir, (new, 0o755)), (fs.unlink, (secret,)),
        (fs.mknod, (new, stat.S_IFREG | 0o644, 0)), (fs.symlink, (b"x", new)),
        (fs.link, (secret, b"/n")), (fs.link, (b"/mine", new)), (fs.rename, (secret, b"/n")),
        (fs.rename, (b"/mine", new)), (fs.rename, (b"/mine", secret, 2)),
        (fs.chmod, (secret, 0o777)), (fs.chown, (secret, -1, -1)), (fs.truncate, (secret, 0)),
        (fs.utimens, (secret, 1, 1)), (fs.readlink, (secret,)), (fs.access, (secret, 4)),
        (fs.statfs, (secret,)), (fs.setxattr, (secret, b"user.a", b"1", 0)),
        (fs.getxattr, (secret, b"user.a")),
        (fs.listxattr, (secret,)), (fs.removexattr, (secret, b"user.a")),
        (fs.opendir, (secret[:-6] + b"sub",)), (fs.rmdir, (secret[:-6] + b"sub",)),
    ):  # fmt: skip
        refused(out, call, *arguments)
    assert snapshot(trap) == before
    assert names(fs, b"/") == [b"file", b"mine", b"way", b"way2"]


def test_no_call_follows_a_link_at_the_end(fs: FileSystem, trap: Path) -> None:
    before = snapshot(trap)
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
        refused(errno.ELOOP, fs.open, b"/file", flags)
    refused((errno.ELOOP, errno.ENOTDIR), fs.opendir, b"/way")
    refused(errno.EEXIST, fs.create, b"/file", 0o644, os.O_WRONLY)
    refused(errno.EOPNOTSUPP, fs.chmod, b"/file", 0o777)
    refused(errno.EINVAL, fs.truncate, b"/file", 0)
    refused(errno.EPERM, fs.setxattr, b"/file", b"user.a", b"1", 0)
    fs.utimens(b"/file", 1, 1)
    fs.chown(b"/file", -1, -1)
    fs.link(b"/file", b"/file2")
    assert stat.S_ISLNK(fs.getattr(b"/file2").mode)
    fs.rename(b"/mine", b"/file")
    assert snapshot(trap) == before


def test_a_link_that_is_swapped_in_while_calls_run(
    fs: FileSystem, source: Path, trap: Path
) -> None:
    """`/d` is by turns a directory with a file `secret` and a link to where there is another."""
    (source / "d").mkdir()
    (source / "d" / "secret").write_bytes(b"inside")
    done = threading.Event()

    def swap() -> None:
        while not done.is_set():
            fs.rename(b"/d", b"/way", 2)

    before = snapshot(trap)
    thread = threading.Thread(target=swap)
    thread.start()
    seen = set()
    try:
        for _ in range(2000):
            try:
                seen.add(get(fs, b"/d/secret"))
                fs.chmod(b"/d/secret", 0o644)
                fs.truncate(b"/d/secret", 6)
            except OSError as error:
                assert error.errno in (errno.ELOOP, errno.ENOTDIR)
    finally:
        done.set()
        thread.join(30)
    assert seen == {b"inside"}
    assert snapshot(trap) == before


def test_a_fifo_that_is_swapped_in_blocks_nobody(fs: FileSystem) -> None:
    fs.mknod(b"/p", stat.S_IFIFO | 0o600, 0)
    fh = fs.open(b"/p", os.O_RDONLY)
    refused(errno.ESPIPE, fs.read, b"/p", fh, 10, 0)
    fs.release(b"/p", fh)
    refused(errno.ENXIO, fs.open, b"/p", os.O_WRONLY)


def test_inode_numbers_differ_between_devices() -> None:
    """Below / of the host there are others: /proc at least. The same numbers there mean others."""
    fs = passthrough.make("/", {})
    fs.init()
    same, other = os.lstat("/"), os.lstat("/proc")
    assert same.st_dev != other.st_dev
    assert fs.getattr(b"/").ino == same.st_ino
    inos = {fs.getattr(b"/proc").ino, fs.getattr(b"/proc/self").ino, fs.getattr(b"/proc/stat").ino}
    assert len(inos) == 3
    assert not inos & {other.st_ino, os.lstat("/proc/stat").st_ino}
    fh = fs.opendir(b"/proc")
    listed = {entry.name: entry.ino for entry in fs.readdir(b"/proc", fh)}
    fs.releasedir(b"/proc", fh)
    assert listed[b"stat"] == fs.getattr(b"/proc/stat").ino
    fs.destroy()


# --- permissions ----------------------------------------------------------------------------------


def test_access(fs: FileSystem) -> None:
    put(fs, b"/f", mode=0o644)
    fs.symlink(b"missing", b"/s")
    fs.access(b"/f", os.R_OK | os.W_OK)
    fs.access(b"/s", os.F_OK)
    refused(errno.EACCES, fs.access, b"/f", os.X_OK)
    refused(errno.ENOENT, fs.access, b"/x", os.F_OK)


@only_users
def test_the_host_checks_permissions(fs: FileSystem) -> None:
    put(fs, b"/f", b"x", mode=0)
    fs.mkdir(b"/d", 0o755)
    put(fs, b"/d/f")
    fs.chmod(b"/d", 0o500)
    assert not fs.default_permissions
    refused(errno.EACCES, fs.open, b"/f", os.O_RDONLY)
    refused(errno.EACCES, fs.access, b"/f", os.R_OK)
    refused(errno.EACCES, fs.unlink, b"/d/f")
    refused(errno.EACCES, fs.create, b"/d/g", 0o644, os.O_WRONLY)
    refused(errno.EPERM, fs.chown, b"/f", 0, -1)
    fs.chmod(b"/d", 0)
    refused(errno.EACCES, fs.getattr, b"/d/f")
    fs.chmod(b"/d", 0o700)
    fs.unlink(b"/d/f")


def ids() -> list[str]:
    """The ids of this thread, those for files included."""
    with open("/proc/thread-self/status") as status:
        return [line for line in status if line.startswith(("Uid:", "Gid:", "Groups:", "CapEff:"))]


@only_root
def test_roots_guests_with_other_ids(fs: FileSystem, source: Path) -> None:
    """What the supervisor may isn't what they may, and what they make is theirs."""
    me, before = this_process(), ids()
    os.chmod(source, 0o777)
    put(fs, b"/secret", b"x", mode=0o600)
    put(fs, b"/group", b"x", mode=0o640)
    fs.chown(b"/group", 0, 65532)
    fs.setxattr(b"/group", b"trusted.a", b"1", 0)
    set_caller(USER)
    refused(errno.EACCES, fs.open, b"/secret", os.O_RDONLY)
    refused(errno.EACCES, fs.access, b"/secret", os.R_OK)
    refused(errno.EPERM, fs.chmod, b"/secret", 0o666)
    refused(errno.EPERM, fs.chown, b"/secret", USER.uid, -1)
    refused(errno.EACCES, fs.truncate, b"/secret", 0)
    refused(errno.EPERM, fs.mknod, b"/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    refused(errno.ENODATA, fs.getxattr, b"/group", b"trusted.a")
    refused(errno.EPERM, fs.setxattr, b"/group", b"trusted.a", b"2", 0)
    refused(errno.EPERM, fs.setxattr, b"/group", b"security.a", b"2", 0)
    assert b"trusted.a" not in fs.listxattr(b"/group")
    assert get(fs, b"/group") == b"x"  # by a supplementary group
    put(fs, b"/mine", b"y")
    fs.mkdir(b"/dir", 0o755)
    fs.symlink(b"x", b"/link")
    found = {fs.getattr(path)[3:5] for path in (b"/mine", b"/dir", b"/link")}
    assert found == {(USER.uid, USER.gid)}
    fs.chmod(b"/mine", 0o600)
    assert ids() == before  # nothing stays behind in the thread
    set_caller(me)
    assert get(fs, b"/secret") == b"x"
    put(fs, b"/root")
    assert fs.getattr(b"/root").uid == 0
    assert exists(fs, b"/mine")


@only_root
def test_roots_guests_with_other_ids_at_once(fs: FileSystem, source: Path) -> None:
    """The ids are the thread's: each thread's files are its caller's."""
    os.chmod(source, 0o777)
    problems: list[object] = []

    def work(me: int) -> None:
        set_caller(Caller(60000 + me, 60000 + me, os.getpid(), (60000 + me,)))
        for i in range(100):
            path = b"/%d-%d" % (me, i)
            put(fs, path)
            attr = fs.getattr(path)
            if (attr.uid, attr.gid) != (60000 + me, 60000 + me):
                problems.append((me, attr))
        set_caller(NOBODY)

    threads = [threading.Thread(target=work, args=(me,)) for me in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not problems
    assert len(names(fs, b"/")) == 400
