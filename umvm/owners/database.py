"""A database of owners that lives as long as its file, for several VMs at once.

SQLite in WAL mode: what one VM commits another sees with its next look, a killed one leaves a sound
file, and at most what it changed in the last moments is missing. Guests never wait for it: a thread
writes what changed, and reads what others wrote, every `PERIOD` seconds and at the end.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from core_accel.lazy import logger
from core_accel.owners import GONE
from umvm.errors import UmvmError
from umvm.owners.store import Key, Record

if TYPE_CHECKING:
    from umvm.owners.store import Store

log = logger(__name__)

PERIOD = 0.05
_BUSY = 10.0
"""Seconds that another VM's transaction is waited for."""
_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS owners (
    dev INTEGER, ino INTEGER, guard INTEGER, uid INTEGER, gid INTEGER, mode INTEGER,
    real_mode INTEGER, rdev INTEGER, flags INTEGER, stamp INTEGER, PRIMARY KEY (dev, ino)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS attributes (
    dev INTEGER, ino INTEGER, name BLOB, value BLOB, PRIMARY KEY (dev, ino, name)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS stamps ON owners (stamp);
"""
_COLUMNS = "dev, ino, guard, uid, gid, mode, real_mode, rdev, flags"
_PUT = f"INSERT OR REPLACE INTO owners ({_COLUMNS}, stamp) VALUES (?,?,?,?,?,?,?,?,?,?)"
_SIGN = 1 << 63


def _signed(number: int) -> int:
    """SQLite's integers are signed; device and inode numbers use 64 bits."""
    return number - (1 << 64) if number & _SIGN else number


def _unsigned(number: int) -> int:
    return number & ((1 << 64) - 1)


class Database:
    """The connection of one VM to one file."""

    def __init__(self, path: Path, store: Store) -> None:
        """Open or make the file, and put what it holds into the store. UmvmError, OSError."""
        self._store, self._path = store, path
        self._seen = -1
        self._version = -1
        self._end = threading.Event()
        self._lock = threading.Lock()
        path.touch()  # for a plain error where that can't be
        try:
            self._base = sqlite3.connect(
                path, timeout=_BUSY, check_same_thread=False, isolation_level=None
            )
            self._open()
        except sqlite3.Error as error:
            raise UmvmError(f"{path}: {error}") from None
        store.table.set_logged(True)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _open(self) -> None:
        self._base.execute("PRAGMA journal_mode=WAL")
        self._base.execute("PRAGMA synchronous=NORMAL")
        self._base.executescript(_SCHEMA)
        version = self._base.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, _VERSION):
            raise UmvmError(f"{self._path}: made by a newer umvm (version {version})")
        self._base.execute(f"PRAGMA user_version={_VERSION}")
        self._read()

    def _run(self) -> None:
        failing = False
        while not self._end.wait(PERIOD):
            try:
                self.exchange()
                failing = False
            except (sqlite3.Error, OSError) as error:
                if not failing:
                    log.error("%s: %s", self._path, error)
                failing = True

    def exchange(self) -> None:
        """Write what changed here, read what others changed."""
        with self._lock:
            self._write()
            version = self._base.execute("PRAGMA data_version").fetchone()[0]
            if version != self._version:
                self._version = version
                self._read()

    def _write(self) -> None:
        store = self._store
        with store.lock:
            entries, gone = store.table.changed()
            touched, store.touched = store.touched, set()
            values = {key: store.attributes.get(key, {}) for key in touched}
        if not entries and not gone and not touched:
            return
        base = self._base
        try:
            base.execute("BEGIN IMMEDIATE")
            stamp = base.execute("SELECT ifnull(max(stamp), 0) + 1 FROM owners").fetchone()[0]
            rows = [Record(*entry) for entry in entries]
            rows += [Record(dev, ino, 0, 0, 0, 0, 0, 0, GONE) for dev, ino in gone]
            base.executemany(_PUT, [(*map(_signed, row), stamp) for row in rows])
            for (dev, ino), attributes in values.items():
                self._write_attributes((_signed(dev), _signed(ino)), attributes)
            base.execute("COMMIT")
        except sqlite3.Error:
            if base.in_transaction:
                base.execute("ROLLBACK")
            store.table.mark([entry[:2] for entry in entries], gone)
            store.touched |= touched
            raise

    def _write_attributes(self, key: Key, attributes: dict[bytes, bytes]) -> None:
        self._base.execute("DELETE FROM attributes WHERE dev = ? AND ino = ?", key)
        rows = [(*key, name, value) for name, value in attributes.items()]
        self._base.executemany("INSERT INTO attributes VALUES (?,?,?,?)", rows)

    def _read(self) -> None:
        """Take over rows that are newer than those seen; what is changed here meanwhile stays."""
        store = self._store
        query = f"SELECT {_COLUMNS}, stamp FROM owners WHERE stamp > ?"
        for *numbers, stamp in self._base.execute(query, (self._seen,)).fetchall():
            record = Record(*map(_unsigned, numbers))
            key = numbers[0], numbers[1]
            rows = self._base.execute(
                "SELECT name, value FROM attributes WHERE dev = ? AND ino = ?", key
            )
            store.learn(record, {bytes(name): bytes(value) for name, value in rows})
            self._seen = max(self._seen, stamp)

    def close(self) -> None:
        """Write the rest. UmvmError: it can't be written."""
        self._end.set()
        self._thread.join()
        try:
            self.exchange()
            self._base.close()
        except sqlite3.Error as error:
            raise UmvmError(f"{self._path}: {error}") from None


def read(path: Path) -> tuple[list[Record], dict[Key, dict[bytes, bytes]]]:
    """What a database holds, without changing it. UmvmError."""
    attributes: dict[Key, dict[bytes, bytes]] = {}
    try:
        with closing(sqlite3.connect(path, timeout=_BUSY)) as base:
            rows = base.execute(
                f"SELECT {_COLUMNS} FROM owners WHERE flags < ?", (GONE,)
            ).fetchall()
            for dev, ino, name, value in base.execute("SELECT * FROM attributes"):
                key = _unsigned(dev), _unsigned(ino)
                attributes.setdefault(key, {})[bytes(name)] = bytes(value)
    except sqlite3.Error as error:
        raise UmvmError(f"{path}: {error}") from None
    return [Record(*map(_unsigned, row)) for row in rows], attributes


def write(path: Path, store: Store) -> None:
    """Make a database of what a store holds, whole or not at all. OSError, UmvmError."""
    path = Path(os.path.realpath(path))
    new = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with closing(sqlite3.connect(new)) as base:
            base.executescript(_SCHEMA)
            base.execute(f"PRAGMA user_version={_VERSION}")
            base.executemany(_PUT, [(*map(_signed, row), 1) for row in store.records()])
            for record in store.records():
                for name, value in store.attributes.get(record[:2], {}).items():
                    row = (_signed(record.dev), _signed(record.ino), name, value)
                    base.execute("INSERT INTO attributes VALUES (?,?,?,?)", row)
            base.commit()
        os.replace(new, path)
    except sqlite3.Error as error:
        raise UmvmError(f"{path}: {error}") from None
    finally:
        new.unlink(missing_ok=True)
