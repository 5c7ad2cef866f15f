"""The cache of patched programs and libraries, shared by all VMs of a user.

    DIR/index.json   what is known of each file, also that there is nothing to patch
    DIR/NAME         text, stubs, and a last page that describes them, with their digest

A file is known by device, inode, size, time of change and build id. Writers hold a lock, write
beside and rename. Nothing is used that others could have written: directory and files must belong
to the user, not writable by others; the agent checks that once more before it maps a copy.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from core_accel import agentarea
from umvm.agent.elf import PAGE

SHARE = "UMVM_PATCH"
"""Environment variable for tests: how many per cent of the sites are patched (50, or 50:SEED)."""
FORMAT = [6, agentarea.ENTRY, agentarea.BASES, agentarea.STUBS]
"""Changes with what copies look like; others are deleted."""
LIMIT = 512 << 20
"""Bytes of copies kept; the oldest go first."""
MAX_ENTRIES = 3000
"""Fewer than the route area has room for (UMVM_TEXTS)."""


class Key(NamedTuple):
    """The identity of an executable segment."""

    dev: int
    ino: int
    size: int
    mtime: int
    ctime: int
    offset: int

    @classmethod
    def of(cls, st: os.stat_result, offset: int) -> Key:
        """From the state of the file."""
        return cls(st.st_dev, st.st_ino, st.st_size, st.st_mtime_ns, st.st_ctime_ns, offset)


class Entry(NamedTuple):
    """One segment that was analysed; `stub_length` 0: nothing to patch, and no copy."""

    key: Key
    length: int
    vaddr: int
    stub: int
    stub_length: int
    name: str
    sites: int
    path: str
    build_id: str
    id_offset: int
    digest: str

    @property
    def copy_size(self) -> int:
        """Bytes of the copy."""
        return self.length + self.stub_length + PAGE if self.stub_length else 0


def default_directory() -> Path:
    """The user's cache directory for copies."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if base.startswith("/") else Path(os.path.expanduser("~")) / ".cache"
    return root / "umvm" / "text"


class Cache:
    """The cache in one directory, made if need be. OSError: it can't be used."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        st = os.stat(directory)
        if st.st_uid != os.geteuid() or st.st_mode & 0o022:
            raise PermissionError(f"{directory}: not ours alone")
        self.directory = directory

    def entries(self) -> list[Entry]:
        """All entries that may be used."""
        return [entry for entry in self.known() if self._usable(entry)]

    def add(
        self, key: Key, length: int, vaddr: int, path: str,
        build_id: tuple[int, bytes], patch: tuple[int, int, bytes, bytes] | None,
    ) -> Entry:  # fmt: skip
        """Keep the result for a segment; `patch`: (sites, stub address, text, stubs) or None."""
        id_offset, ident = build_id[0], build_id[1].hex()
        with self._locked():
            if patch is None:
                entry = Entry(key, length, vaddr, 0, 0, "", 0, path, ident, id_offset, "")
            else:
                sites, stub, text, stubs = patch
                digest = _digest(text + stubs)
                # another version of it is another file: a VM may still look for the one it knows
                about = repr((key, stub, digest)).encode()
                name = _digest(about)
                entry = Entry(
                    key,
                    length,
                    vaddr,
                    stub,
                    len(stubs),
                    name,
                    sites,
                    path,
                    ident,
                    id_offset,
                    digest,
                )
                self._write(name, text + stubs + _last_page(entry))
            kept = [one for one in self.known() if not _same(one.key, key)]
            self._store(_bounded([*kept, entry]))
        return entry

    def stubs(self, entry: Entry) -> bytes | None:
        """The stubs of an entry; None: its copy is gone or damaged."""
        if not entry.stub_length:
            return b""
        try:
            fd = os.open(self.directory / entry.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            data = os.pread(fd, entry.stub_length, entry.length)
        finally:
            os.close(fd)
        return data if len(data) == entry.stub_length else None

    def free_stub(self, length: int) -> int | None:
        """An address for `length` bytes of stubs that no entry has; None: all are taken."""
        taken = sorted((e.stub, e.stub + e.stub_length) for e in self.known() if e.stub_length)
        at = agentarea.STUBS
        for low, high in taken:
            if low - at >= length:
                break
            at = max(at, -(-high // PAGE) * PAGE)
        return at if at + length <= agentarea.GATE else None

    def clear(self) -> int:
        """Delete all; the number of entries. Guests that run keep what they have mapped."""
        with self._locked():
            count = len(self.known())
            self._store([])
        return count

    def intact(self, entry: Entry) -> bool:
        """Is the copy what was written (by its digest)?"""
        try:
            data = (self.directory / entry.name).read_bytes()
        except OSError:
            return False
        content = data[: entry.length + entry.stub_length]
        return _digest(content) == entry.digest

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other writers waiting, so that none takes the same stubs or does the same work."""
        fd = os.open(self.directory / "analysing", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def about(self, file: Key) -> list[Entry]:
        """The usable entries of a file, whatever the offset in its key."""
        return [one for one in self.entries() if one.key._replace(offset=0) == file]

    def _usable(self, entry: Entry) -> bool:
        if not entry.stub_length:
            return True
        try:
            st = os.lstat(self.directory / entry.name)
        except OSError:
            return False
        return (
            stat.S_ISREG(st.st_mode)
            and st.st_uid == os.geteuid()
            and not st.st_mode & 0o022
            and st.st_size == entry.copy_size
        )

    def known(self) -> list[Entry]:
        """All entries, also those whose copy was damaged."""
        try:
            data = json.loads((self.directory / "index.json").read_bytes())
            if data["format"] != FORMAT:
                return []
            return [Entry(Key(*one[0]), *one[1:]) for one in data["entries"]]
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def _store(self, entries: list[Entry]) -> None:
        text = json.dumps({"format": FORMAT, "entries": entries}, separators=(",", ":"))
        self._write("index.json", text.encode())
        wanted = {entry.name for entry in entries} | {"index.json", "lock", "analysing"}
        for file in os.listdir(self.directory):
            if file not in wanted:
                with contextlib.suppress(OSError):
                    os.unlink(self.directory / file)

    def _write(self, name: str, data: bytes) -> None:
        import tempfile

        fd, temporary = tempfile.mkstemp(dir=self.directory)
        try:
            with open(fd, "wb") as file:
                file.write(data)
                os.fchmod(file.fileno(), 0o600)
            os.rename(temporary, self.directory / name)
        except BaseException:
            os.unlink(temporary)
            raise

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        fd = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def _digest(data: bytes) -> str:
    import hashlib  # it takes milliseconds, and a start needs none

    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _same(one: Key, other: Key) -> bool:
    """Is it the same file, perhaps in another version?"""
    return (one.dev, one.ino, one.offset) == (other.dev, other.ino, other.offset)


def _bounded(entries: list[Entry]) -> list[Entry]:
    kept: list[Entry] = []
    room = LIMIT
    for entry in reversed(entries):
        room -= entry.copy_size
        if room < 0 or len(kept) >= MAX_ENTRIES:
            break
        kept.append(entry)
    return kept[::-1]


def _last_page(entry: Entry) -> bytes:
    about: dict[str, Any] = {"format": FORMAT, "path": entry.path, "digest": entry.digest}
    return json.dumps(about).encode()[: PAGE - 1].ljust(PAGE, b"\0")
