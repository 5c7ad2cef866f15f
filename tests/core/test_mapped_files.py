"""Mapped files: content, coherence and write-back, without a VM."""

# ruff: noqa: F811

from __future__ import annotations

import errno
import fcntl
import mmap
import os

import pytest
from open_world import (  # noqa: F401
    PAGE,
    World,
    shadow,
    until,
    world,
)
from umvm.modules.memory import MemoryFileSystem

from umvm.interfaces.filesystem import Caller, set_caller


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
