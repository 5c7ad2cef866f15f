"""Files that keep owners: fakeroot's text is read and written, pseudo's database is read.

fakeroot(1), option -s: `dev=HEX,ino=N,mode=OCTAL,uid=N,gid=N,nlink=N,rdev=N`, a line for an inode.
pseudo(1): an SQLite database `files.db` with a table `files` (path, dev, ino, uid, gid, mode, rdev,
deleting) and perhaps one `xattrs` (dev, ino, name, value). Neither knows when an inode was born,
nor what mode the file really has: both are taken from the file when it is first seen
(`REAL_UNKNOWN`).
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

from core_accel.lazy import pattern
from umvm.errors import UmvmError
from umvm.owners.store import HAS_MODE, HAS_TYPE, HAS_XATTR, Key, Record

REAL_UNKNOWN = 0o177777
"""A `real_mode` that is to be learnt."""
_LINE = pattern(
    rb"dev=([0-9a-f]+),ino=(\d+),mode=([0-7]+),uid=(\d+),gid=(\d+),nlink=(\d+),rdev=(\d+)"
)
_SQLITE = b"SQLite format 3\0"
_DEVICES = (stat.S_IFCHR, stat.S_IFBLK)
_ID = 0xFFFFFFFF
Attributes = dict[Key, dict[bytes, bytes]]


def kind_of(path: Path) -> str:
    """What a file of owners is: "fakeroot", "pseudo", "umvm". OSError. UmvmError: none of them."""
    with open(path, "rb") as file:
        head = file.read(64)
    if head.startswith(_SQLITE):
        return _kind_of_database(path)
    if not head or head.startswith(b"dev="):
        return "fakeroot"
    raise UmvmError(f"{path}: neither fakeroot's nor pseudo's nor umvm's file of owners")


def _kind_of_database(path: Path) -> str:
    import sqlite3

    try:
        with closing(sqlite3.connect(f"file:{_quoted(path)}?mode=ro", uri=True)) as base:
            names = {row[0] for row in base.execute("SELECT name FROM sqlite_master")}
    except sqlite3.Error as error:
        raise UmvmError(f"{path}: {error}") from None
    if "owners" in names:
        return "umvm"
    if "files" in names:
        return "pseudo"
    raise UmvmError(f"{path}: a database of something else than owners")


def _quoted(path: Path) -> str:
    from urllib.parse import quote

    return quote(str(path))


def imported(dev: int, ino: int, uid: int, gid: int, mode: int, rdev: int) -> Record:
    """A record from numbers that a file of others holds."""
    flags = HAS_MODE | (HAS_TYPE if stat.S_IFMT(mode) in _DEVICES else 0)
    mode &= 0o177777
    if stat.S_ISLNK(mode):
        flags = 0
    return Record(dev, ino, 0, uid & _ID, gid & _ID, mode, REAL_UNKNOWN, rdev, flags)


def read_fakeroot(text: Iterable[bytes], name: str) -> Iterator[Record]:
    """The records of fakeroot's save file. UmvmError: a line is not of that form."""
    for number, line in enumerate(text, 1):
        if not line.strip():
            continue
        found = _LINE.fullmatch(line.strip())
        if found is None:
            raise UmvmError(f"{name}, line {number}: not a line of fakeroot's save file")
        ino, uid, gid, rdev = (int(found[i]) for i in (2, 4, 5, 7))
        yield imported(int(found[1], 16), ino, uid, gid, int(found[3], 8), rdev)


def fakeroot_line(record: Record) -> bytes:
    """A record as fakeroot saves it."""
    r = record
    links = 2 if stat.S_ISDIR(r.mode) else 1
    rdev = r.rdev if r.flags & HAS_TYPE else 0
    numbers = (r.dev, r.ino, r.mode, r.uid, r.gid, links, rdev)
    return b"dev=%x,ino=%d,mode=%o,uid=%d,gid=%d,nlink=%d,rdev=%d\n" % numbers


def write_fakeroot(path: Path, records: Iterable[Record]) -> None:
    """Write fakeroot's save file, whole or not at all. OSError."""
    replace(path, b"".join(map(fakeroot_line, sorted(records))))


def replace(path: Path, data: bytes) -> None:
    """Give a file new content at once; what isn't a regular file is written to as it is."""
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    path = Path(os.path.realpath(path))
    mask = os.umask(0)
    os.umask(mask)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
        try:
            file.write(data)
            file.flush()
            os.fchmod(
                file.fileno(), path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~mask
            )
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def read_pseudo(path: Path) -> tuple[list[Record], Attributes]:
    """The records and attributes of pseudo's files.db. UmvmError: it can't be read."""
    import sqlite3

    attributes: Attributes = {}
    query = "SELECT dev, ino, uid, gid, mode, rdev FROM files WHERE NOT ifnull(deleting, 0)"
    try:
        with closing(sqlite3.connect(f"file:{_quoted(path)}?mode=ro", uri=True)) as base:
            records = [imported(*map(int, row)) for row in base.execute(query)]
            tables = "SELECT count(*) FROM sqlite_master WHERE name = 'xattrs'"
            if base.execute(tables).fetchone()[0]:
                for dev, ino, name, value in base.execute(
                    "SELECT dev, ino, name, value FROM xattrs"
                ):
                    attributes.setdefault((dev, ino), {})[_bytes(name)] = _bytes(value)
    except sqlite3.Error as error:
        raise UmvmError(f"{path}: {error}") from None
    marked = [r._replace(flags=r.flags | HAS_XATTR) if r[:2] in attributes else r for r in records]
    return marked, attributes


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else os.fsencode(value)
