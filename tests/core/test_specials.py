"""FIFOs and sockets on mounts: which placeholder belongs to which file."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from umvm.modules.memory import MemoryFileSystem

from umvm.guest.mounts import Mount
from umvm.guest.shadow import Shadow
from umvm.guest.specials import Specials

MODE = stat.S_IFIFO | 0o644


class World:
    """A shadow directory, a mount and its specials."""

    def __init__(self, directory: Path) -> None:
        self.shadow = Shadow("specials", [os.fsencode(directory)])
        self.changes = 0
        self.specials = Specials(self.shadow, self.changed)
        self.fs = MemoryFileSystem()
        self.mount = Mount(2, b"/m", self.fs, "memory", "none", {}, "memory")

    def changed(self) -> None:
        self.changes += 1

    def fifo(self, path: bytes) -> bytes:
        return self.specials.fifo(self.mount, path, self.fs.getattr(path))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.shadow.close()


def test_hard_links_share_a_fifo(world: World) -> None:
    world.fs.mknod(b"/p", MODE, 0)
    world.fs.link(b"/p", b"/q")
    world.fs.mknod(b"/other", MODE, 0)
    place = world.fifo(b"/p")
    assert world.fifo(b"/q") == place != world.fifo(b"/other")
    assert stat.S_ISFIFO(os.stat(place).st_mode)
    assert len(world.specials) == 2 and world.changes == 2


def test_names_change(world: World) -> None:
    world.fs.mkdir(b"/d", 0o755)
    for path in (b"/d/p", b"/q"):
        world.fs.mknod(path, MODE, 0)
    inner, outer = world.fifo(b"/d/p"), world.fifo(b"/q")
    world.fs.rename(b"/d", b"/e")
    world.specials.moved(world.mount, b"/d", b"/e")
    named = world.specials.named(inner)
    assert named is not None and named.path == b"/e/p" and not named.deleted
    world.fs.rename(b"/e/p", b"/q", 2)
    world.specials.moved(world.mount, b"/e/p", b"/q", True)
    paths = [special.path for p in (inner, outer) if (special := world.specials.named(p))]
    assert paths == [b"/q", b"/e/p"]
    assert world.specials.find(world.mount, b"/q") == inner


def test_the_last_name_goes(world: World) -> None:
    world.fs.mknod(b"/p", MODE, 0)
    world.fs.link(b"/p", b"/q")
    place = world.fifo(b"/p")
    for path, there in ((b"/p", True), (b"/q", False)):
        attr = world.fs.getattr(path)
        world.fs.unlink(path)
        world.specials.removed(world.mount, path, attr)
        assert os.path.exists(place) == there
    named = world.specials.named(place + b" (deleted)")
    assert named is not None and named.deleted and named.last is not None
    assert named.last.nlink == 0
    world.fs.mknod(b"/p", MODE, 0)
    assert world.fifo(b"/p") != place


def test_a_mount_goes(world: World) -> None:
    world.fs.mknod(b"/p", MODE, 0)
    world.fs.mknod(b"/s", stat.S_IFSOCK | 0o755, 0)
    place = world.fifo(b"/p")
    socket = world.specials.new(world.mount, b"/s", b"given")
    assert world.specials.given_name(socket) == b"given"
    assert world.specials.named(b"/elsewhere") is None
    world.specials.forget_mount(world.mount)
    assert not os.path.exists(place) and len(world.specials) == 0
    assert world.specials.named(place) is None
