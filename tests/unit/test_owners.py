"""The table of owners, and the files that keep owners."""

from __future__ import annotations

import os
import random
import stat
import threading
from pathlib import Path

import pytest

from core_accel.owners import DEAD, GONE, HAS_MODE, HAS_TYPE, HAS_XATTR, Owners
from umvm.errors import UmvmError
from umvm.owners import formats
from umvm.owners.database import Database
from umvm.owners.store import Record, Store


def record(ino: int, uid: int = 1, flags: int = 0, dev: int = 7) -> Record:
    return Record(dev, ino, 5, uid, 2, 0o100644, 0o644, 0, flags)


# --- the table ------------------------------------------------------------------------------------


def test_as_a_dictionary() -> None:
    """Random changes, growth included, agree with a dict."""
    choose = random.Random(1)
    table, model = Owners(), {}
    for number in range(20000):
        key = choose.randrange(1, 4), choose.randrange(4000)
        if choose.random() < 0.7:
            entry = (*key, 9, number, 4, 0o100644, 0o644, 0, 0)
            table.put(*entry)
            model[key] = entry
        else:
            table.drop(*key)
            model.pop(key, None)
    assert len(table) == len(model) > 3000
    assert sorted(table.entries()) == sorted(model.values())
    assert all(table.entry(*key) == entry for key, entry in model.items())
    assert table.entry(9, 9) is None


def test_changes_are_told_once() -> None:
    table = Owners()
    table.put(*record(1))
    assert table.changed() == ([], [])  # nobody wanted to know
    table.set_logged(True)
    table.put(*record(2))
    table.put(*record(3))
    table.drop(7, 3)
    table.drop(7, 1)
    entries, gone = table.changed()
    assert entries == [record(2)]
    assert sorted(gone) == [(7, 1), (7, 3)]
    assert table.changed() == ([], [])
    table.mark([(7, 2)], [(7, 1)])
    assert [len(part) for part in table.changed()] == [1, 1]


def test_what_others_say_does_not_replace_what_changed_here() -> None:
    table = Owners()
    table.set_logged(True)
    table.put(*record(1, uid=10))
    assert not table.learn(*record(1, uid=20))
    table.changed()
    assert table.learn(*record(1, uid=20))
    assert table.entry(7, 1) == record(1, uid=20)
    assert table.learn(*record(1, flags=GONE))
    assert table.entry(7, 1) is None
    assert table.changed() == ([], [])


def test_growth_keeps_what_is_to_be_told() -> None:
    table = Owners()
    table.set_logged(True)
    for ino in range(1, 5000):
        table.put(*record(ino))
    for ino in range(1, 2500):
        table.drop(7, ino)
    for ino in range(5000, 9000):
        table.put(*record(ino))
    entries, gone = table.changed()
    assert len(entries) == 6500 == len(table)
    assert len(gone) == 2499


def test_the_guard_tells_files_of_one_number_apart(tmp_path: Path) -> None:
    store = Store()
    path = tmp_path / "f"
    path.touch()
    name = bytes(path)
    seen = store.look(name)
    assert seen.known == -1 and seen.real_uid == seen.uid == os.geteuid()
    if not seen.guard:
        pytest.skip("this file system doesn't tell times of birth")
    store.set(seen, uid=5, gid=6, mode=0o104755)
    assert store.look(name)[8:11] == (5, 6, 0o104755)
    mine = store.get(*seen.key)
    assert mine is not None and mine.flags == HAS_MODE
    store.put(mine._replace(guard=seen.guard - 1))
    assert store.look(name).known == -1
    assert store.get(*seen.key) is None


def test_the_dead_are_known_by_their_links(tmp_path: Path) -> None:
    store = Store()
    path = tmp_path / "f"
    fd = os.open(path, os.O_CREAT | os.O_WRONLY)
    try:
        seen = store.look(bytes(path))
        store.set(seen, uid=5)
        path.unlink()
        store.died(seen)
        assert store.look(b"/proc/self/fd/%d" % fd).uid == 5
        assert store.records() == []
        entry = store.get(*seen.key)
        assert entry is not None and entry.flags & DEAD
    finally:
        os.close(fd)


def test_modes_that_the_host_changed_count(tmp_path: Path) -> None:
    store = Store()
    path = tmp_path / "f"
    path.touch(0o600)
    name = bytes(path)
    store.table.chmod(name, 0, 0o4000)
    assert stat.S_IMODE(store.look(name).mode) == 0o4000
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o640)
    assert stat.S_IMODE(store.look(name).mode) == 0o640


def test_threads_share_it(tmp_path: Path) -> None:
    store = Store()
    names = [bytes(tmp_path / str(number)) for number in range(200)]
    for name in names:
        Path(os.fsdecode(name)).touch()

    def work(uid: int) -> None:
        for name in names:
            store.table.chown(name, 0, uid, -1)
            assert store.look(name).uid < 4

    threads = [threading.Thread(target=work, args=(uid,)) for uid in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.records()) == len(names)


def test_errors_are_the_kernels(tmp_path: Path) -> None:
    table = Owners()
    for call in (
        lambda p: table.look(p),
        lambda p: table.chown(p, 0, 1, 1),
        lambda p: table.chmod(p, 0, 0),
    ):
        with pytest.raises(FileNotFoundError):
            call(bytes(tmp_path / "none"))
    with pytest.raises(OSError, match="long"):
        table.look(b"/" + b"x" * 5000)


# --- files ----------------------------------------------------------------------------------------


def test_fakeroots_lines() -> None:
    line = b"dev=fe00,ino=12,mode=104755,uid=5,gid=6,nlink=1,rdev=0\n"
    device = b"dev=1f00000003,ino=18446744073709551615,mode=20644,uid=4294967294,gid=0,nlink=1,rdev=1281\n"
    first, second = formats.read_fakeroot([line, b"\n", device], "x")
    assert first[:6] == (0xFE00, 12, 0, 5, 6, 0o104755) and first.flags == HAS_MODE
    assert second.ino == 2**64 - 1 and second.rdev == 1281 and second.flags == HAS_MODE | HAS_TYPE
    assert [formats.fakeroot_line(r) for r in (first, second)] == [line, device]
    with pytest.raises(UmvmError, match="x, line 2"):
        list(formats.read_fakeroot([line, b"dev=1\n"], "x"))


def test_a_saved_file_keeps_its_mode_and_its_link(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("")
    target.chmod(0o640)
    (tmp_path / "link").symlink_to("target")
    formats.write_fakeroot(tmp_path / "link", [record(1)])
    assert target.read_bytes().startswith(b"dev=7,ino=1,")
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "target"]


def test_a_saved_database_is_read_again(tmp_path: Path) -> None:
    store = Store()
    big = Record(2**64 - 1, 2**64 - 2, 3, 2**32 - 2, 4, 0o60600, 0o600, 2**40, HAS_TYPE | HAS_XATTR)
    store.put(big)
    store.put(record(1))
    store.attributes[big[:2]] = {b"trusted.x": b"\0\xff"}
    store.save(tmp_path / "o.db")
    store.save(tmp_path / "o.db")
    again = Store()
    again.load(tmp_path / "o.db")
    assert sorted(again.records()) == sorted(store.records())
    assert again.attributes == store.attributes
    assert formats.kind_of(tmp_path / "o.db") == "umvm"


def test_two_stores_on_one_database(tmp_path: Path) -> None:
    path = tmp_path / "o.db"
    one, two = Store(), Store()
    first, second = Database(path, one), Database(path, two)
    one.put(record(1, uid=11))
    one.put(record(2, uid=12, flags=HAS_XATTR))
    one.attributes[7, 2] = {b"trusted.x": b"1"}
    one.touched.add((7, 2))
    first.exchange()
    second.exchange()
    assert sorted(two.records()) == sorted(one.records())
    assert two.attributes == one.attributes
    two.table.drop(7, 1)
    second.exchange()
    first.exchange()
    assert one.records() == two.records() and len(one.records()) == 1
    second.close()
    first.close()
    third = Store()
    third.load(path)
    assert third.records() == one.records()


@pytest.mark.parametrize("content", [b"junk\n", b"SQLite format 3\0" + b"x" * 100])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(UmvmError, match="f"):
        Store().load(tmp_path / "f")
