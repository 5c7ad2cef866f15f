"""Files of the user's own whose mode locks the user out, and that root in a VM may still use.

Such a file's mode is widened (u+rw, and x for a directory) while the VM runs; guests are shown the
mode that it had. With the VM's end it gets that back, unless guests changed it. A journal tells the
next VM of this user what a killed one left; it is written only if there is such a file.
"""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from core_accel.lazy import logger

if TYPE_CHECKING:
    from umvm.owners.store import Store

log = logger(__name__)


def journal_directory() -> Path:
    """Where VMs of this user keep their journals (XDG Base Directory Specification)."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(state) / "umvm" / "modes"


class Adopter:
    """The widened files of one VM."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._own = os.geteuid()
        self._journal: Path | None = None
        self._files: dict[bytes, tuple[int, int, int, int]] = {}

    def open_way(self, path: bytes, name: bool = False) -> bool:
        """Widen the directories on the way to a path, as it is written; was there one?

        `name`: and let names be made and removed in the last one.
        """
        found = False
        parts = path.split(b"/")[:-1]
        for end in range(1, len(parts) + 1):
            directory = b"/".join(parts[:end]) or b"/"
            last = end == len(parts)
            found |= self.widen(directory, 0o300 if last and name else 0o100)
        return found

    def widen(self, path: bytes, needed: int) -> bool:
        """Make a file of the user's usable for the user, if it lacks `needed` bits of 0o700."""
        try:
            st = os.stat(path)
            if st.st_uid != self._own or st.st_mode & needed == needed or self._own == 0:
                return False
            if not (stat.S_ISDIR(st.st_mode) or stat.S_ISREG(st.st_mode)):
                return False
            wider = st.st_mode | (0o700 if stat.S_ISDIR(st.st_mode) else 0o600)
            with self._lock:
                seen = self._store.look(path)
                self._write(path, st)
                os.chmod(path, stat.S_IMODE(wider))
                self._files[path] = (st.st_dev, st.st_ino, stat.S_IMODE(st.st_mode), wider)
                now = self._store.look(path)
                if seen.mode != now.mode:
                    self._store.set(now, uid=seen.uid, gid=seen.gid, mode=seen.mode)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Give the files their modes back."""
        with self._lock:
            for path, (dev, ino, mode, wider) in reversed(self._files.items()):
                record = self._store.get(dev, ino)
                if record is not None and record.mode & 0o7777 != mode:
                    continue  # a guest wanted another one
                _restore(path, dev, ino, mode, stat.S_IMODE(wider))
            if self._journal is not None:
                self._journal.unlink(missing_ok=True)

    def _write(self, path: bytes, st: os.stat_result) -> None:
        if self._journal is None:
            directory = journal_directory()
            directory.mkdir(parents=True, exist_ok=True)
            self._journal = directory / f"{os.getpid()}-{_started(os.getpid())}"
        wider = st.st_mode | (0o700 if stat.S_ISDIR(st.st_mode) else 0o600)
        numbers = (st.st_dev, st.st_ino, stat.S_IMODE(st.st_mode), stat.S_IMODE(wider))
        line = b"%d %d %o %o %s\0" % (*numbers, os.path.abspath(path))
        with open(self._journal, "ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


def recover() -> None:
    """Give back the modes of what VMs that were killed had widened."""
    try:
        journals = list(journal_directory().iterdir())
    except OSError:
        return
    for journal in journals:
        pid, _, started = journal.name.partition("-")
        if pid.isdecimal() and _started(int(pid)) == started:
            continue  # it runs
        try:
            lines = journal.read_bytes().split(b"\0")[:-1]
        except OSError:
            continue
        for line in reversed(lines):
            dev, ino, mode, wider, path = line.split(b" ", 4)
            _restore(path, int(dev), int(ino), int(mode, 8), int(wider, 8))
        journal.unlink(missing_ok=True)
        log.info("modes restored that the VM of process %s had changed", pid)


def _restore(path: bytes, dev: int, ino: int, mode: int, wider: int) -> None:
    try:
        st = os.stat(path)
        if (st.st_dev, st.st_ino, stat.S_IMODE(st.st_mode)) == (dev, ino, wider):
            os.chmod(path, mode)
    except OSError:
        pass  # gone, or another one


def _started(pid: int) -> str:
    """The time when a process started, in ticks (proc_pid_stat(5)); empty: there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2].split()[19].decode()
    except OSError:
        return ""
