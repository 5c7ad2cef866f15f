"""Open files, their last close, names and mapped content, on a real shadow directory."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from umvm.modules.memory import Limits, MemoryFileSystem

from umvm.guest.audit import unused
from umvm.guest.files import DirRef, Files, OpenFile
from umvm.guest.mounts import Mount
from umvm.guest.shadow import Shadow, _fstype, candidates, remove, sweep
from umvm.interfaces.filesystem import Caller, FileHandle, set_caller

PAGE = mmap.PAGESIZE
WAIT = 20.0


class Recorder(MemoryFileSystem):  # type: ignore[misc]
    """A memory file system that remembers what it was told of the end of open files."""

    def __init__(self) -> None:
        super().__init__(
            mode=0o777, uid=0, gid=0, limits=Limits(pages=1 << 20, inodes=1000, links=0)
        )
        self.log: list[tuple[str, bytes]] = []
        self.writes: list[tuple[int, int]] = []
        self.gate: threading.Event | None = None

    def release(self, path: bytes, fh: FileHandle) -> None:
        if self.gate is not None:
            self.gate.wait(WAIT)
        super().release(path, fh)
        self.log.append(("release", path))

    def releasedir(self, path: bytes, fh: FileHandle) -> None:
        super().releasedir(path, fh)
        self.log.append(("releasedir", path))

    def flush(self, path: bytes, fh: FileHandle) -> None:
        self.log.append(("flush", path))

    def unlink(self, path: bytes) -> None:
        super().unlink(path)
        self.log.append(("unlink", path))

    def write(self, path: bytes, fh: FileHandle, data: bytes, offset: int) -> int:
        self.writes.append((offset, len(data)))
        count: int = super().write(path, fh, data, offset)
        return count


class Plain(Recorder):
    """One that can't keep unlinked files, and has no file numbers."""

    open_unlinked = False
    stable_inodes = False


class World:
    """A mount, and the files open on it."""

    def __init__(self, shadow: Shadow, fs: Recorder) -> None:
        self.fs = fs
        self.mount = Mount(2, b"/mnt", fs, "memory", "none", {}, "memory")
        self.changes = 0
        self.finished: list[Mount] = []
        self.files = Files(shadow, self._changed, self.finished.append)
        self.descriptors: list[int] = []

    def _changed(self) -> None:
        self.changes += 1

    def make(self, path: bytes, data: bytes = b"") -> None:
        fh = self.fs.create(path, stat.S_IFREG | 0o644, os.O_RDWR)
        if data:
            MemoryFileSystem.write(self.fs, path, fh, data, 0)
        MemoryFileSystem.release(self.fs, path, fh)

    def open(self, path: bytes, flags: int = os.O_RDWR) -> tuple[OpenFile, int]:
        attr = self.fs.getattr(path)
        fh: Any = None
        if not flags & os.O_PATH:
            directory = stat.S_ISDIR(attr.mode)
            fh = self.fs.opendir(path) if directory else self.fs.open(path, flags)
        file, fd = self.files.create(self.mount, path, attr, fh, flags)
        self.descriptors.append(fd)
        return file, fd

    def close(self, fd: int) -> None:
        self.descriptors.remove(fd)
        os.close(fd)

    def link(self, fd: int) -> bytes:
        return os.readlink(b"/proc/self/fd/%d" % fd)

    def content(self, path: bytes) -> bytes:
        fh = self.fs.open(path, os.O_RDONLY)
        try:
            data: bytes = self.fs.read(path, fh, self.fs.getattr(path).size, 0)
            return data
        finally:
            MemoryFileSystem.release(self.fs, path, fh)

    def end(self) -> None:
        for fd in self.descriptors:
            os.close(fd)
        self.files.close()


def test_candidates_prefer_memory_with_room(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", os.fsdecode(place))
    found = candidates()
    assert os.fsencode(place) in found and b"/tmp" in found
    kinds = [_fstype(path) for path in found]
    assert kinds == sorted(kinds, key=lambda kind: kind != b"tmpfs")  # as all have room here
    monkeypatch.setenv("XDG_RUNTIME_DIR", "relative")
    assert b"relative" not in candidates()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def shadow(place: Path) -> Iterator[Shadow]:
    shadow = Shadow("test", [os.fsencode(place)])
    yield shadow
    shadow.close()


@pytest.fixture
def world(shadow: Shadow) -> Iterator[World]:
    set_caller(Caller(0, 0, 0))
    world = World(shadow, Recorder())
    yield world
    world.end()


@pytest.fixture
def plain(shadow: Shadow) -> Iterator[World]:
    set_caller(Caller(0, 0, 0))
    world = World(shadow, Plain())
    yield world
    world.end()


def until(condition: Callable[[], object]) -> bool:
    end = time.monotonic() + WAIT
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


# --- the shadow directory ---------------------------------------------------------------------


def test_shadow_is_private_and_goes(place: Path) -> None:
    shadow = Shadow("a/b c", [os.fsencode(place)])
    path = os.fsdecode(shadow.path)
    assert os.path.basename(path) == f"a_b_c.{os.getpid()}"
    assert not os.stat(path).st_mode & 0o066
    assert sorted(os.listdir(path)) == ["c", "d", "o", "p", "s", "x"]
    shadow.close()
    assert list(place.iterdir()) == []


def test_two_of_one_name(place: Path) -> None:
    first, second = Shadow("vm", [os.fsencode(place)]), Shadow("vm", [os.fsencode(place)])
    assert first.path != second.path
    first.close()
    assert os.path.isdir(second.path)
    second.close()


def test_sweep_takes_the_dead_only(place: Path) -> None:
    living = Shadow("living", [os.fsencode(place)])
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        dying = Shadow("dying", [os.fsencode(place)])
        os.write(write, dying.path)
        os.kill(os.getpid(), signal.SIGKILL)
    os.close(write)
    os.waitpid(pid, 0)
    left = os.read(read, 4096)
    os.close(read)
    assert os.path.isdir(left)
    sweep([os.fsencode(place)])
    assert not os.path.exists(left)
    assert os.path.isdir(living.path)
    remove(living.path)  # as the watchdog does for a supervisor that was killed
    living.close()
    assert list(place.iterdir()) == []


def test_foreign_directory_is_refused(place: Path) -> None:
    squatted = place / "x" / f"umvm-{os.geteuid()}"
    squatted.mkdir(parents=True)
    squatted.chmod(0o777)
    with pytest.raises(OSError, match="isn't ours alone") as caught:
        Shadow("vm", [os.fsencode(place / "x")])
    assert caught.value.errno == errno.ENOTSUP
    fallback = Shadow("vm", [os.fsencode(place / "x"), os.fsencode(place)])
    assert os.path.dirname(os.path.dirname(fallback.path)) == os.fsencode(place)
    fallback.close()


# --- descriptors and the last close -----------------------------------------------------------


def test_of_and_named(world: World) -> None:
    world.make(b"/f")
    file, fd = world.open(b"/f")
    other = os.open("/dev/null", os.O_RDONLY)
    copy = os.dup(fd)
    assert world.files.of(os.getpid(), fd) is file
    assert world.files.of(os.getpid(), copy) is file
    assert world.files.of(os.getpid(), other) is None
    assert world.files.of(os.getpid(), 999) is None
    assert world.files.of(os.getpid(), -1) is None
    link = world.link(fd)
    assert link.endswith(b" (deleted)")
    assert world.files.named(link) is file
    assert world.files.named(link.removesuffix(b" (deleted)")) is file
    assert world.files.named(b"/mnt/f") is None
    os.close(other)
    os.close(copy)


@pytest.mark.parametrize(
    "flags",
    [
        os.O_RDONLY,
        os.O_WRONLY,
        os.O_RDWR | os.O_APPEND,
        os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW,
        os.O_RDWR | os.O_SYNC | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC,
        3,
    ],
)
def test_descriptor_has_the_access_mode(world: World, place: Path, flags: int) -> None:
    host = place / "host"
    host.touch()
    native = os.open(host, flags)
    world.make(b"/f")
    file, fd = world.open(b"/f", flags)
    assert fcntl.fcntl(fd, fcntl.F_GETFL) == fcntl.fcntl(native, fcntl.F_GETFL)
    assert file.flags | 0o100000 == fcntl.fcntl(native, fcntl.F_GETFL)
    os.close(native)


def test_path_only(world: World) -> None:
    world.make(b"/f")
    file, fd = world.open(b"/f", os.O_PATH | os.O_NOFOLLOW | os.O_RDWR)
    assert file.is_path and not file.readable and not file.writable
    assert file.flags == os.O_PATH | os.O_NOFOLLOW
    world.close(fd)
    world.files.settle()
    assert world.fs.log == []
    assert len(world.files) == 0


def test_last_close_releases_once(world: World) -> None:
    world.make(b"/f")
    _, fd = world.open(b"/f")
    copy = os.dup(fd)
    world.close(fd)
    world.files.settle()
    assert world.fs.log == [] and world.mount.uses == 1
    os.close(copy)
    world.files.drain()
    assert world.mount.uses == 0 and len(world.files) == 0
    world.files.settle()
    assert world.fs.log == [("release", b"/f")]
    assert until(lambda: world.finished == [world.mount])


def test_close_is_noticed_without_being_asked(world: World) -> None:
    world.make(b"/f")
    _, fd = world.open(b"/f")
    world.close(fd)
    assert until(lambda: world.fs.log == [("release", b"/f")])


def test_directory_is_released(world: World) -> None:
    world.fs.mkdir(b"/d", 0o755)
    file, fd = world.open(b"/d", os.O_RDONLY | os.O_DIRECTORY)
    assert file.directory and os.listdir(fd) == []
    world.close(fd)
    world.files.settle()
    assert world.fs.log == [("releasedir", b"/d")]


def test_other_processes_keep_it_open(world: World) -> None:
    """A descriptor goes to a child as a message; the child forks, maps it, and ends."""
    world.make(b"/f", bytes(PAGE))
    file, fd = world.open(b"/f")
    world.files.map(file, False)
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        os.close(fd)
        ours.close()
        received = socket.recv_fds(theirs, 1, 1)[1][0]
        area = mmap.mmap(received, PAGE, prot=mmap.PROT_READ)
        theirs.sendall(b"m")
        theirs.recv(1)
        os.close(received)
        if os.fork() == 0:
            theirs.recv(1)
            os._exit(area[0])
        os._exit(0)
    socket.send_fds(ours, [b"x"], [fd])
    world.close(fd)
    assert ours.recv(1) == b"m"
    ours.sendall(b"c")
    os.waitpid(pid, 0)
    world.files.settle()
    assert world.fs.log == [] and world.mount.uses == 1  # the grandchild's mapping is left
    ours.sendall(b"e")
    assert until(lambda: world.fs.log == [("release", b"/f")])
    ours.close()
    theirs.close()


def test_killed_process_closes(world: World) -> None:
    world.make(b"/f")
    _, fd = world.open(b"/f")
    pid = os.fork()
    if pid == 0:
        signal.pause()
    world.close(fd)
    world.files.settle()
    assert world.mount.uses == 1
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    world.files.drain()
    assert world.mount.uses == 0


def test_slow_release_holds_nobody_up(world: World) -> None:
    world.make(b"/f")
    world.make(b"/g")
    world.fs.gate = threading.Event()
    _, fd = world.open(b"/f")
    world.close(fd)
    world.files.drain()
    assert world.mount.uses == 0
    assert not world.files.settle(world.mount, 0.05)
    file, fd = world.open(b"/g")
    assert world.files.of(os.getpid(), fd) is file
    world.fs.gate.set()
    assert world.files.settle(world.mount)
    assert world.fs.log == [("release", b"/f")]


def test_written_data_is_flushed_before_release(world: World) -> None:
    world.fs.wants_flush = True
    world.make(b"/f")
    file, fd = world.open(b"/f")
    file.write(b"data", 0)
    world.close(fd)
    world.files.settle()
    assert world.fs.log == [("flush", b"/f"), ("release", b"/f")]


def test_files_share_a_node_by_number(world: World) -> None:
    world.make(b"/f")
    world.fs.link(b"/f", b"/g")
    world.make(b"/h")
    f, _ = world.open(b"/f")
    g, _ = world.open(b"/g")
    h, _ = world.open(b"/h")
    assert f.node is g.node and f.node is not h.node


def test_locks_of_one_file_meet(world: World) -> None:
    """The kernel keeps locks on the placeholder: a child sees the parent's."""
    world.make(b"/f")
    world.make(b"/g")
    _, one = world.open(b"/f")
    _, two = world.open(b"/f")
    _, other = world.open(b"/g")
    fcntl.flock(one, fcntl.LOCK_EX)
    with pytest.raises(BlockingIOError):
        fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.lockf(one, fcntl.LOCK_EX, 10, 5)
    pid = os.fork()
    if pid == 0:
        try:
            fcntl.lockf(two, fcntl.LOCK_EX | fcntl.LOCK_NB, 3, 14)
            os._exit(1)
        except BlockingIOError:
            fcntl.lockf(two, fcntl.LOCK_EX | fcntl.LOCK_NB, 3, 15)
            os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


def test_kill_mount(world: World) -> None:
    world.make(b"/f")
    file, fd = world.open(b"/f")
    world.files.kill_mount(world.mount)
    assert world.mount.uses == 0
    assert world.fs.log == [("release", b"/f")]
    with pytest.raises(OSError) as caught:
        file.read(1, 0)
    assert caught.value.errno == errno.EIO
    world.close(fd)
    world.files.settle()
    assert world.mount.uses == 0 and len(world.files) == 0
    assert world.fs.log == [("release", b"/f")]


def test_kill_mount_does_not_wait_for_ever(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("umvm.guest.files.KILL", 0.05)
    world.make(b"/f")
    file, _ = world.open(b"/f")
    world.fs.gate = threading.Event()
    world.files.kill_mount(world.mount)
    assert world.mount.uses == 0 and file.dead and world.fs.log == []
    world.fs.gate.set()
    assert until(lambda: world.fs.log == [("release", b"/f")])


def test_release_that_fails_badly(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is logged, and the description is forgotten all the same."""
    world.make(b"/f")
    file, fd = world.open(b"/f")

    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(world.fs, "release", fail)
    world.close(fd)
    world.files.settle()
    assert world.mount.uses == 0 and not file.node.files
    assert "a bug" in caplog.text


def test_lost_events(world: World) -> None:
    """What the audit finds when the kernel's queue of events has overflowed."""
    world.make(b"/f")
    world.make(b"/g")
    world.make(b"/m", bytes(PAGE))
    world.fs.mkdir(b"/d", 0o755)
    world.fs.mkdir(b"/e", 0o755)
    f, fd = world.open(b"/f", os.O_RDONLY)
    open_g, _ = world.open(b"/g", os.O_RDONLY)
    d, dir_fd = world.open(b"/d", os.O_RDONLY)
    open_e, _ = world.open(b"/e", os.O_RDONLY)
    m, map_fd = world.open(b"/m", os.O_RDONLY)
    world.files.map(m, False)
    area = mmap.mmap(map_fd, PAGE, prot=mmap.PROT_READ)
    files = [f, open_g, d, open_e, m]
    prefix = world.link(fd).rpartition(b"o/")[0]
    assert unused(files, prefix) == []
    with world.files._drain:  # the events stay unread meanwhile
        for number in (fd, dir_fd, map_fd):
            world.close(number)
        assert set(unused(files, prefix)) == {f, d}
    area.close()


# --- names ------------------------------------------------------------------------------------


def test_rename_is_followed(world: World) -> None:
    world.fs.mkdir(b"/a", 0o755)
    world.make(b"/a/f")
    world.make(b"/ab")
    file, _ = world.open(b"/a/f")
    directory, _ = world.open(b"/a", os.O_RDONLY)
    other, _ = world.open(b"/ab")
    standing = world.files.directory(world.mount, b"/a")
    world.files.moved(world.mount, b"/a", b"/b")
    assert (file.path, directory.path, other.path) == (b"/b/f", b"/b", b"/ab")
    assert world.files.on_path(world.mount, b"/b/f") == [file]
    assert world.files.on_path(world.mount, b"/a/f") == []
    ref = world.files.named(standing)
    assert isinstance(ref, DirRef) and ref.path == b"/b" and not ref.deleted
    assert world.files.directory(world.mount, b"/b") == standing
    assert world.files.directory(world.mount, b"/a") != standing


def test_exchange(world: World) -> None:
    world.make(b"/a")
    world.make(b"/b")
    a, _ = world.open(b"/a")
    b, _ = world.open(b"/b")
    world.files.moved(world.mount, b"/a", b"/b", exchange=True)
    assert (a.path, b.path, a.deleted, b.deleted) == (b"/b", b"/a", False, False)


def test_rename_over_an_open_file(world: World) -> None:
    world.make(b"/a")
    world.make(b"/b")
    a, _ = world.open(b"/a")
    b, _ = world.open(b"/b")
    world.files.moved(world.mount, b"/a", b"/b")
    assert world.files.on_path(world.mount, b"/b") == [a]
    assert b.deleted and not a.deleted


def test_removed_file_and_a_new_one_of_the_same_name(plain: World) -> None:
    plain.make(b"/f")
    old, _ = plain.open(b"/f")
    plain.files.removed(plain.mount, b"/f")
    new, _ = plain.open(b"/f")
    assert old.deleted and not new.deleted and old.node is not new.node
    assert plain.files.on_path(plain.mount, b"/f") == [new]


def test_removed_directory_is_known(world: World) -> None:
    place = world.files.directory(world.mount, b"/gone")
    world.files.removed(world.mount, b"/gone")
    ref = world.files.named(place)
    assert isinstance(ref, DirRef) and ref.deleted
    assert world.files.directory(world.mount, b"/gone") != place


def test_working_directory_placeholder(world: World) -> None:
    place = world.files.directory(world.mount, b"/d")
    pid = os.fork()
    if pid == 0:
        os.chdir(place)
        link = os.readlink(b"/proc/self/cwd")
        ref = world.files.named(link)
        os._exit(0 if ref is not None and ref.path == b"/d" else 1)
    assert os.waitpid(pid, 0)[1] == 0
    world.files.forget_mount(world.mount)
    assert not os.path.exists(place)
    ref = world.files.named(place + b" (deleted)")
    assert ref is not None and ref.deleted


def test_hidden_until_the_last_close(plain: World) -> None:
    plain.fs.mkdir(b"/d", 0o755)
    plain.make(b"/d/f", b"content")
    one, fd1 = plain.open(b"/d/f")
    two, fd2 = plain.open(b"/d/f")
    hidden = plain.files.hide(plain.mount, b"/d/f")
    assert hidden.startswith(b"/d/.") and plain.files.is_hidden(plain.mount, hidden)
    assert one.path == two.path == hidden and one.deleted
    assert one.read(7, 0) == b"content"
    plain.files.moved(plain.mount, b"/d", b"/e")
    plain.fs.rename(b"/d", b"/e")
    assert plain.files.drop_hidden(plain.mount, b"/e")
    plain.fs.rmdir(b"/e")
    assert two.read(7, 0) == b"content"
    plain.close(fd1)
    plain.files.settle()
    assert [kind for kind, _ in plain.fs.log] == ["release"]
    plain.close(fd2)
    plain.files.settle()
    assert [kind for kind, _ in plain.fs.log] == ["release", "release", "unlink"]
    assert [entry.name for entry in plain.fs.readdir(b"/", plain.fs.opendir(b"/"))
            if entry.name.strip(b".")] == []  # fmt: skip


def test_nothing_to_hide(plain: World, world: World) -> None:
    plain.make(b"/f")
    assert plain.files.hide(plain.mount, b"/f") == b""
    world.make(b"/f")
    world.open(b"/f")
    assert world.files.hide(world.mount, b"/f") == b""


def test_reopened_without_a_name(world: World) -> None:
    world.make(b"/f", b"content")
    file, fd = world.open(b"/f", os.O_RDONLY)
    world.fs.unlink(b"/f")
    world.files.removed(world.mount, b"/f")
    world.fs.log.clear()
    with pytest.raises(PermissionError):
        world.files.reopen(file, os.O_RDWR)
    again, other = world.files.reopen(file, os.O_RDONLY)
    world.close(fd)
    world.files.settle()
    assert world.fs.log == []
    assert again.read(7, 0) == b"content" and again.deleted
    os.close(other)
    world.files.settle()
    assert world.fs.log == [("release", b"/f")]


# --- mapped content ---------------------------------------------------------------------------


def mapping(fd: int, size: int, write: bool = True) -> mmap.mmap:
    return mmap.mmap(fd, size, prot=mmap.PROT_READ | (mmap.PROT_WRITE if write else 0))


def test_map_shows_the_content(world: World) -> None:
    data = os.urandom(3 * PAGE + 17)
    world.make(b"/f", data)
    file, fd = world.open(b"/f", os.O_RDONLY)
    world.files.map(file, True)
    with mapping(fd, 0, write=False) as area:
        assert area[:] == data
    with pytest.raises(PermissionError):
        mapping(fd, 0)


def test_stores_reach_the_file(world: World) -> None:
    world.make(b"/f", bytes(8 * PAGE))
    file, fd = world.open(b"/f")
    world.files.map(file, True)
    with mapping(fd, 8 * PAGE) as area:
        area[3 * PAGE + 5 : 3 * PAGE + 8] = b"abc"
        area[4 * PAGE] = 1
        assert file.read(3, 3 * PAGE + 5) == b"abc"  # read(2) sees it at once
        file.node.write_back()
        assert world.content(b"/f")[3 * PAGE + 5 :][:3] == b"abc"
        assert world.fs.writes == [(3 * PAGE, 2 * PAGE)]  # two pages, in one piece
        file.node.write_back()
        assert len(world.fs.writes) == 1


def test_writes_are_seen_in_the_mapping(world: World) -> None:
    world.make(b"/f", b"x" * PAGE)
    mapped, fd = world.open(b"/f")
    writer, _ = world.open(b"/f", os.O_WRONLY)
    world.files.map(mapped, True)
    with mapping(fd, PAGE) as area:
        area[0] = ord("m")  # not yet written back
        writer.write(b"www", 10)
        assert area[:14] == b"mxxxxxxxxxwwwx"
        assert mapped.read(14, 0) == b"mxxxxxxxxxwwwx"
        mapped.node.write_back()
        assert world.content(b"/f")[:14] == b"mxxxxxxxxxwwwx"


def test_size_follows(world: World) -> None:
    world.make(b"/f", b"x" * (2 * PAGE))
    file, fd = world.open(b"/f")
    world.files.map(file, True)
    with mapping(fd, 2 * PAGE) as area:
        area[PAGE] = ord("y")
        file.truncate(10)
        assert os.fstat(fd).st_size == 10
        file.node.write_back()
        assert world.content(b"/f") == b"x" * 10
        file.write(b"z", PAGE + 1)
        assert area[PAGE : PAGE + 2] == b"\0z"
        node = world.files.node_at(world.mount, b"/f", world.fs.getattr(b"/f"))
        assert node is file.node
        node.resized(3)
        assert os.fstat(fd).st_size == 3


def test_last_unmapping_writes_back_and_drops(world: World) -> None:
    world.make(b"/f", bytes(PAGE))
    keeper, other = world.open(b"/f", os.O_RDONLY)
    file, fd = world.open(b"/f")
    world.files.map(file, True)
    area = mapping(fd, PAGE)
    world.close(fd)
    area[0:4] = b"last"
    world.files.settle()
    assert keeper.read(4, 0) == b"last"
    area.close()
    world.files.settle()
    assert world.content(b"/f")[:4] == b"last"
    assert not keeper.node.cached and os.fstat(other).st_size == 0
    assert keeper.read(4, 0) == b"last"


def test_timer_writes_back(world: World) -> None:
    world.make(b"/f", bytes(PAGE))
    file, fd = world.open(b"/f")
    world.files.map(file, True)
    with mapping(fd, PAGE) as area:
        area[0:4] = b"soon"
        assert until(lambda: world.content(b"/f")[:4] == b"soon")
        area[0:4] = b"then"
        assert until(lambda: world.content(b"/f")[:4] == b"then")


def test_two_mappings_of_one_file(world: World) -> None:
    world.make(b"/f", bytes(PAGE))
    one, fd1 = world.open(b"/f")
    two, fd2 = world.open(b"/f", os.O_RDONLY)
    world.files.map(one, True)
    world.files.map(two, True)
    with mapping(fd1, PAGE) as writer, mapping(fd2, PAGE, write=False) as reader:
        writer[7] = 7
        assert reader[7] == 7


def test_holes_stay_holes(world: World) -> None:
    size = 6 << 30
    world.make(b"/f", b"begin")
    file, fd = world.open(b"/f")
    file.write(b"end", size - 3)
    world.files.map(file, True)
    assert os.fstat(fd).st_size == size
    assert os.fstat(fd).st_blocks * 512 < 4 << 20
    assert file.read(3, size - 3) == b"end" and file.read(5, 0) == b"begin"
    with mmap.mmap(fd, PAGE, offset=size - PAGE) as area:
        area[-3:] = b"END"
        file.node.write_back()
    assert world.fs.read(b"/f", file.fh, 3, size - 3) == b"END"


def test_changes_from_outside_are_seen_by_the_next_mapping(world: World) -> None:
    world.make(b"/f", b"old")
    file, _ = world.open(b"/f", os.O_RDONLY)
    world.files.map(file, False)
    handle = world.fs.open(b"/f", os.O_WRONLY)
    world.fs.write(b"/f", handle, b"newer", 0)
    MemoryFileSystem.release(world.fs, b"/f", handle)
    again, fd = world.open(b"/f", os.O_RDONLY)
    world.files.map(again, False)
    with mapping(fd, 5, write=False) as area:
        assert area[:] == b"newer"


def test_write_back_error_keeps_the_pages(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.make(b"/f", bytes(PAGE))
    file, fd = world.open(b"/f")
    world.files.map(file, True)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with mapping(fd, PAGE) as area:
        area[0:4] = b"kept"
        with monkeypatch.context() as patch:
            patch.setattr(world.fs, "write", full)
            with pytest.raises(OSError) as caught:
                file.node.write_back()
            assert caught.value.errno == errno.ENOSPC
        file.node.write_back()
        assert world.content(b"/f")[:4] == b"kept"


def test_no_descriptor_for_writing_is_kept_for_a_private_mapping(world: World) -> None:
    world.make(b"/f", bytes(PAGE))
    file, fd = world.open(b"/f", os.O_RDONLY)
    world.files.map(file, False)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)  # refused while anybody may write
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    assert file.node.cached and not file.node.shared


def test_set_id_bits_go_with_a_write(world: World) -> None:
    world.make(b"/f", b"x")
    world.fs.chmod(b"/f", 0o6755)
    file, _ = world.open(b"/f")
    file.write(b"root", 0)
    assert world.fs.getattr(b"/f").mode & 0o7777 == 0o6755
    set_caller(Caller(1000, 1000, 0))
    try:
        file.write(b"user", 0)
        assert world.fs.getattr(b"/f").mode & 0o7777 == 0o755
        world.fs.chmod(b"/f", 0o2644)
        world.files.setid(world.mount, b"/f", world.fs.getattr(b"/f"))
        set_caller(Caller(1000, 0, 0))
        file.truncate(1)  # not executable by the group, which is the caller's
        assert world.fs.getattr(b"/f").mode & 0o7777 == 0o2644
        set_caller(Caller(1000, 1000, 0))
        file.truncate(1)
        assert world.fs.getattr(b"/f").mode & 0o7777 == 0o644
    finally:
        set_caller(Caller(0, 0, 0))


def test_sync_mount_writes_back(world: World) -> None:
    world.make(b"/f", bytes(PAGE))
    file, fd = world.open(b"/f")
    world.files.map(file, True)
    with mapping(fd, PAGE) as area:
        area[0] = 9
        world.files.sync_mount(world.mount)
        assert world.content(b"/f")[0] == 9
