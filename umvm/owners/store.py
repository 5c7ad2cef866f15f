"""The owners of one VM: the table of inodes, and the extended attributes that only root may set.

Entries are found by device and inode; `core_accel/owners.h` tells how they outlive renames and
links and don't pass to a later file of the same number. Nothing is on disk but in a database
(database.py).
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from core_accel.owners import DEAD, HAS_MODE, HAS_TYPE, HAS_XATTR, Owners
from umvm.owners.adopt import Adopter

if TYPE_CHECKING:
    from umvm.owners.database import Database

DATABASES = (".db", ".sqlite", ".sqlite3")
"""How the names of our own files end; others are fakeroot's."""
Key = tuple[int, int]
"""Device and inode."""


class Seen(NamedTuple):
    """A file of the host: who it is, what it really has, and what guests are shown.

    `known`: flags of its entry (HAS_*), -1: it has none. `guard`: time of birth in ns, 0: unknown.
    """

    dev: int
    ino: int
    guard: int
    links: int
    known: int
    real_uid: int
    real_gid: int
    real_mode: int
    uid: int
    gid: int
    mode: int
    rdev: int

    @property
    def key(self) -> Key:
        """What the file is found by."""
        return self.dev, self.ino


class Record(NamedTuple):
    """What is remembered of one file. `mode`: type and permissions, as far as `flags` say so."""

    dev: int
    ino: int
    guard: int
    uid: int
    gid: int
    mode: int
    real_mode: int
    rdev: int
    flags: int


class Store:
    """Records by inode. Methods may be called from any thread."""

    def __init__(self) -> None:
        self.table = Owners()
        self.adopter = Adopter(self)
        self.lock = threading.RLock()
        """Held while attributes change."""
        self._database: Database | None = None
        self._save: Path | None = None
        self.attributes: dict[Key, dict[bytes, bytes]] = {}
        self.touched: set[Key] = set()
        """Files whose attributes changed since a database was told."""

    def look(self, path: bytes, flags: int = 0) -> Seen:
        """What is at a path of the supervisor's; `flags` as for statx(2). OSError."""
        return Seen(*self.table.look(path, flags))

    def put(self, record: Record) -> None:
        """Set what is remembered of an inode."""
        self.table.put(*record)

    def get(self, dev: int, ino: int) -> Record | None:
        """What is remembered of an inode."""
        entry = self.table.entry(dev, ino)
        return None if entry is None else Record(*entry)

    def records(self) -> list[Record]:
        """All records of files that have a name."""
        return [Record(*entry) for entry in self.table.entries()]

    def set(
        self, seen: Seen, *, uid: int | None = None, gid: int | None = None,
        mode: int | None = None, device: int | None = None, flags: int = 0,
    ) -> None:  # fmt: skip
        """Remember what guests are to see of a file, unless they see it already.

        `mode`: with the type if `device` is given, the number of that device.
        """
        uid = seen.uid if uid is None else uid
        gid = seen.gid if gid is None else gid
        wanted = seen.mode if mode is None else mode
        flags |= 0 if seen.known < 0 else seen.known & (HAS_MODE | HAS_TYPE | HAS_XATTR)
        if mode is not None:
            flags = flags & ~HAS_MODE | (HAS_MODE if (wanted ^ seen.real_mode) & 0o7777 else 0)
        if device is not None:
            flags |= HAS_TYPE
        if seen.links == 0:
            flags |= DEAD
        if (uid, gid) == (seen.uid, seen.gid) and not flags and seen.known <= 0:
            return
        rdev = seen.rdev if device is None else device
        real = seen.real_mode & 0o7777
        self.put(Record(seen.dev, seen.ino, seen.guard, uid, gid, wanted, real, rdev, flags))

    def died(self, seen: Seen) -> None:
        """A file lost its last name."""
        self.table.died(seen.dev, seen.ino)
        if seen.key in self.attributes and seen.known & HAS_XATTR:
            self.touched.add(seen.key)

    def set_dead(self, seen: Seen, dead: bool) -> None:
        """A file without a name gets one, or doesn't get it after all."""
        record = self.get(*seen.key)
        if record is not None:
            self.put(record._replace(flags=record.flags & ~DEAD | (DEAD if dead else 0)))

    # --- files of owners -------------------------------------------------------------------------

    def learn(self, record: Record, attributes: dict[bytes, bytes]) -> None:
        """Take over what a database says of an inode, unless it was changed here as well."""
        with self.lock:
            if not self.table.learn(*record):
                return
            if attributes:
                self.attributes[record.dev, record.ino] = attributes
            else:
                self.attributes.pop((record.dev, record.ino), None)

    def load(self, path: Path) -> None:
        """Read a file of owners: fakeroot's, pseudo's or our own. OSError, UmvmError."""
        from umvm.owners import formats

        kind = formats.kind_of(path)
        if kind == "umvm":
            from umvm.owners.database import read

            records, attributes = read(path)
        elif kind == "pseudo":
            records, attributes = formats.read_pseudo(path)
        else:
            with open(path, "rb") as file:
                records, attributes = list(formats.read_fakeroot(file, str(path))), {}
        with self.lock:
            self.attributes.update(attributes)
            self.touched |= set(attributes)
            for record in records:
                self.put(record)

    def save(self, path: Path) -> None:
        """Write a file of owners: our database if the name ends so, else fakeroot's. OSError."""
        if path.suffix in DATABASES:
            from umvm.owners.database import write

            write(path, self)
        else:
            from umvm.owners import formats

            formats.write_fakeroot(path, self.records())

    def keep_in(self, path: Path) -> None:
        """Keep the owners in a database from now on. OSError, UmvmError."""
        from umvm.owners.database import Database

        self._database = Database(path, self)

    def save_at_end(self, path: Path) -> None:
        """`close` is to save. OSError: the file can't be written."""
        if path.exists():
            with open(path, "ab"):
                pass
        elif not os.access(path.parent, os.W_OK):
            path.open("xb").close()  # for its error
        self._save = path

    def close(self) -> None:
        """Give widened files their modes back, write what is to be written. OSError, UmvmError."""
        self.adopter.close()
        if self._database is not None:
            self._database.close()
        if self._save is not None:
            self.save(self._save)

    # --- attributes ------------------------------------------------------------------------------

    def attributes_of(self, seen: Seen) -> dict[bytes, bytes]:
        """The extended attributes that are remembered of a file."""
        if seen.known < 0 or not seen.known & HAS_XATTR:
            return {}
        return self.attributes.get(seen.key, {})

    def set_attributes(self, seen: Seen, attributes: dict[bytes, bytes]) -> None:
        """Replace the extended attributes that are remembered of a file."""
        with self.lock:
            record = self.get(*seen.key) if seen.known >= 0 else None
            if record is None:
                record = Record(
                    seen.dev,
                    seen.ino,
                    seen.guard,
                    seen.uid,
                    seen.gid,
                    seen.mode,
                    seen.real_mode & 0o7777,
                    seen.rdev,
                    0,
                )
            flags = record.flags & ~HAS_XATTR | (HAS_XATTR if attributes else 0)
            if attributes:
                self.attributes[seen.key] = dict(attributes)
            else:
                self.attributes.pop(seen.key, None)
            self.touched.add(seen.key)
            self.put(record._replace(flags=flags & ~DEAD))


__all__ = ["DEAD", "HAS_MODE", "HAS_TYPE", "HAS_XATTR", "Key", "Record", "Seen", "Store"]
