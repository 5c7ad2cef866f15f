"""Open files: their descriptors, what they share, and their last close."""

# ruff: noqa: F811

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import signal
import socket
import threading
from pathlib import Path

import pytest
from open_world import (  # noqa: F401
    PAGE,
    World,
    plain,
    shadow,
    until,
    world,
)

from umvm.guest.audit import unused


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
def test_descriptor_has_the_access_mode(world: World, tmp_path: Path, flags: int) -> None:
    host = tmp_path / "host"
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
