"""The private directory of one VM, where every virtual thing has a real object.

    DIR/umvm-UID/NAME.PID/   o  links of files while a guest opens them
                             d  directories while a guest opens them
                             s  one file for each served file in use
                             c  working directories
                             p  FIFOs and bound sockets
                             x  programs while they run
                             g  empty trees, mount points for what is mounted on missing names

A living VM holds an exclusive flock(2) on its directory: that tells leftovers from the living.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import mmap
import os
import stat
from collections.abc import Iterable, Sequence
from contextlib import suppress

from umvm.guest.watch import CloseWatch

KINDS = (b"o", b"d", b"s", b"c", b"p", b"x", b"g")
ROOMY = 256 << 20
"""Bytes that should be free: what guests map is kept there."""


def candidates() -> list[bytes]:
    """Directories to try, the best first: on tmpfs and with room, then any with room."""
    named = [os.environ.get("XDG_RUNTIME_DIR", ""), "/dev/shm", "/tmp", "/var/tmp"]
    found = [os.fsencode(path) for path in dict.fromkeys(named) if path.startswith("/")]
    return sorted((path for path in found if os.path.isdir(path)), key=_rank)


def _rank(path: bytes) -> int:
    try:
        free = os.statvfs(path)
    except OSError:
        return 9
    roomy = free.f_bavail * free.f_frsize >= ROOMY
    closed = os.geteuid() == 0 and not _open_to_all(path)
    no_programs = (
        free.f_flag & os.ST_NOEXEC != 0
    )  # those of mounts and the agent's loader run there
    return 8 * no_programs + 4 * closed + 2 * (not roomy) + (_fstype(path) != b"tmpfs")


def _open_to_all(path: bytes) -> bool:
    """May all users get through to it? Guests of root's VM may take other ids."""
    while os.stat(path).st_mode & stat.S_IXOTH:
        if path == b"/":
            return True
        path = os.path.dirname(path)
    return False


def _fstype(path: bytes) -> bytes:
    """The type of the file system that holds a path (proc_pid_mountinfo(5)); empty: not known."""
    device = os.stat(path).st_dev
    wanted = b"%d:%d" % (os.major(device), os.minor(device))
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            fields = line.split()
            if fields[2] == wanted:
                return fields[fields.index(b"-") + 1]
    return b""


class Shadow:
    """The shadow directory of the VM `name`, made on creation and removed by `close`."""

    def __init__(self, name: str, directories: Iterable[bytes] | None = None) -> None:
        """**Errors** ENOTSUP: no directory offers what is needed, with the reasons."""
        self._ids = itertools.count(1)
        reasons = []
        for directory in candidates() if directories is None else directories:
            try:
                self.path, self._lock = _make(directory, name)
            except OSError as error:
                reasons.append(f"{os.fsdecode(directory)}: {error.strerror}")
                continue
            self.watch = CloseWatch()  # one for all: to give one back takes the kernel milliseconds
            try:
                _probe(self.path, self.watch)
                return
            except OSError as error:
                reasons.append(f"{os.fsdecode(directory)}: {error.strerror}")
                self.close()
        raise OSError(errno.ENOTSUP, "no place for the VM's files: " + "; ".join(reasons))

    def place(self, kind: str, ident: int) -> bytes:
        """The path of one object; `kind` is one of the directories above."""
        return b"%s/%s/%d" % (self.path, kind.encode(), ident)

    def tree(self, below: Sequence[bytes], directory: bool) -> bytes:
        """Make an empty tree that has one path: a directory at its end, or a file."""
        place = self.place("g", next(self._ids))
        if not below and not directory:
            os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644))
            return place
        os.mkdir(place, 0o755)
        end = place
        for number, name in enumerate(below, 1):
            end += b"/" + name
            if number == len(below) and not directory:
                flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
                os.close(os.open(end, flags, 0o644))
            else:
                os.mkdir(end, 0o755)
        return place

    def close(self) -> None:
        """Remove the directory with all it holds. Idempotent."""
        if self._lock >= 0:
            self.watch.close()
            remove(self.path)
            os.close(self._lock)
            self._lock = -1


def _parent(directory: bytes) -> bytes:
    return b"%s/umvm-%d" % (directory.rstrip(b"/"), os.geteuid())


def _make(directory: bytes, name: str) -> tuple[bytes, int]:
    """Make the directory of a VM; its path and the descriptor that locks it."""
    # Guests of root's VM may have other user ids and must get through to what they are led to.
    mode = 0o711 if os.geteuid() == 0 else 0o700
    with _Parent(directory, mode) as parent:
        _sweep(parent.path)
        plain = (c if c.isascii() and (c.isalnum() or c in "_.-") else "_" for c in name[:32])
        label = "".join(plain).lstrip(".")
        base = path = b"%s/%s.%d" % (parent.path, label.encode() or b"vm", os.getpid())
        number = 0
        while True:
            try:
                os.mkdir(path, mode)
                break
            except FileExistsError:  # another VM of this process
                number += 1
                path = base + b"-%d" % number
        os.chmod(path, mode)
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    for kind in KINDS:
        os.mkdir(path + b"/" + kind)
        os.chmod(path + b"/" + kind, 0o1733 if kind == b"p" and mode == 0o711 else mode)
    return path, lock


class _Parent:
    """`DIR/umvm-UID`, locked: nobody makes, sweeps or removes a VM's directory meanwhile."""

    def __init__(self, directory: bytes, mode: int) -> None:
        self.path, self._mode, self._fd = _parent(directory), mode, -1

    def __enter__(self) -> _Parent:
        while True:
            try:
                os.mkdir(self.path, self._mode)
                os.chmod(self.path, self._mode)
            except FileExistsError:
                pass
            try:
                fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError:
                continue  # the last VM's end removed it
            fcntl.flock(fd, fcntl.LOCK_EX)
            held = os.fstat(fd)
            if held.st_uid != os.geteuid() or held.st_mode & 0o022:
                os.close(fd)
                raise PermissionError(errno.EPERM, f"{os.fsdecode(self.path)} isn't ours alone")
            if _same(self.path, held):
                self._fd = fd
                return self
            os.close(fd)

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _same(path: bytes, known: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.lstat(path), known)
    except FileNotFoundError:
        return False


def _probe(path: bytes, watch: CloseWatch) -> None:
    """Check that hard links, executable mappings and the event of the last close work here."""
    watch.add(path + b"/o")
    kept, link = path + b"/s/0", path + b"/o/0"
    with open(kept, "wb", buffering=0) as file:
        file.truncate(mmap.PAGESIZE)
    os.link(kept, link)
    fd = os.open(link, os.O_RDONLY | os.O_CLOEXEC)
    os.unlink(link)
    os.unlink(kept)
    try:
        mmap.mmap(fd, mmap.PAGESIZE, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC).close()
    finally:
        os.close(fd)
    if [event.name for event in watch.read()] != [b"0"]:
        raise OSError(errno.ENOTSUP, "no event tells of the last close")


def remove_tree(path: bytes) -> None:
    """Remove a directory with all it holds, as far as that can be done; follows no links."""
    with suppress(OSError):
        for _, directories, files, fd in os.fwalk(path, topdown=False):
            for name in (*files, *directories):
                with suppress(OSError):
                    try:
                        os.unlink(name, dir_fd=fd)
                    except IsADirectoryError:
                        os.rmdir(name, dir_fd=fd)
        os.rmdir(path)


def remove(path: bytes) -> None:
    """Remove the shadow directory `path` of a VM that has ended, also one that was killed."""
    remove_tree(path)
    try:
        os.rmdir(os.path.dirname(path))
    except OSError:
        pass  # other VMs are there


def _sweep(parent: bytes) -> None:
    for entry in os.listdir(parent):
        path = parent + b"/" + entry
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            continue
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_tree(path)
        except BlockingIOError:
            pass  # its VM is alive
        finally:
            os.close(fd)


def sweep(directories: Iterable[bytes] | None = None) -> None:
    """Remove what VMs of this user left that died without `close`."""
    for directory in candidates() if directories is None else directories:
        if not os.path.isdir(_parent(directory)):
            continue
        try:
            with _Parent(directory, 0o700) as parent:
                _sweep(parent.path)
                if not os.listdir(parent.path):
                    os.rmdir(parent.path)
        except OSError:
            continue  # not ours


__all__ = ["Shadow", "candidates", "remove", "sweep"]
