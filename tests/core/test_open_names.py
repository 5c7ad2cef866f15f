"""Renamed, removed and hidden files while they are open."""

# ruff: noqa: F811

from __future__ import annotations

import os

import pytest
from open_world import (  # noqa: F401
    World,
    plain,
    shadow,
    world,
)

from umvm.guest.files import DirRef


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
