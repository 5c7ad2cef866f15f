"""Random calls on owners and modes, and what comes of them, as root sees it: the same for the same seed.

Arguments: a directory, the first seed, how many sequences, calls in each. For tests/modules/test_owner_calls.py,
which compares real root with root in a VM.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import random
import stat
import sys
from collections.abc import Callable

LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD, AT_EMPTY_PATH, AT_SYMLINK_FOLLOW = -100, 0x1000, 0x400
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
IDS = (0, 33, 44, 1000, -1)
MODES = (
    0,
    0o400,
    0o444,
    0o555,
    0o600,
    0o644,
    0o640,
    0o666,
    0o700,
    0o711,
    0o750,
    0o755,
    0o770,
    0o777,
    0o1777,
    0o2755,
    0o2770,
    0o4755,
    0o6755,
    0o2644,
)
NAMES = ("a", "b", "d", "e", "d/a", "d/b", "d/s", "e/a", "d/s/x", "l")
USERS = ((33, 33, ()), (1000, 44, (33,)), (44, 1000, (44, 100)), (33, 0, (1000,)))


class Sequence:
    """One seed's calls."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.fd = -1

    def name(self) -> str:
        return self.random.choice(NAMES)

    def mode(self) -> int:
        return self.random.choice(MODES)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    # --- calls: each returns what is shown ---

    def create(self) -> object:
        flags = self.random.choice((0, os.O_EXCL, os.O_TRUNC))
        name, mode = self.name(), self.mode()
        there = os.path.exists(name)
        if there and is_device(name):
            return "a device"
        fd = os.open(name, os.O_CREAT | os.O_WRONLY | os.O_NONBLOCK | flags, mode)
        (use if there else os.close)(fd)
        return "made"

    def mkdir(self) -> object:
        os.mkdir(self.name(), self.mode())
        return None

    def symlink(self) -> object:
        os.symlink(self.random.choice(("a", "d", "d/a", "none")), self.name())
        return None

    def mknod(self) -> object:
        kind = self.random.choice((stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFREG))
        os.mknod(self.name(), kind | self.mode(), os.makedev(self.random.randrange(300), 7))
        return None

    def link(self) -> object:
        os.link(self.name(), self.name(), follow_symlinks=self.random.random() < 0.2)
        return None

    def rename(self) -> object:
        os.rename(self.name(), self.name())
        return None

    def unlink(self) -> object:
        os.unlink(self.name())
        return None

    def rmdir(self) -> object:
        os.rmdir(self.name())
        return None

    def chown(self) -> object:
        follow = self.random.random() < 0.6
        os.chown(
            self.name(), self.random.choice(IDS), self.random.choice(IDS), follow_symlinks=follow
        )
        return None

    def chmod(self) -> object:
        os.chmod(self.name(), self.mode())
        return None

    def fchown(self) -> object:
        os.fchown(self.fd, self.random.choice(IDS), self.random.choice(IDS))
        return None

    def fchmod(self) -> object:
        os.fchmod(self.fd, self.mode())
        return None

    def chown_empty(self) -> object:
        """fchownat(2) with AT_EMPTY_PATH, which takes a descriptor of O_PATH too."""
        ids = self.random.choice(IDS), self.random.choice(IDS)
        return libc("fchownat", self.fd, b"", *ids, AT_EMPTY_PATH)

    def chmod_link(self) -> object:
        """By the name that libraries use for a descriptor."""
        os.chmod(f"/proc/self/fd/{self.fd}", self.mode())
        return None

    def exchange(self) -> object:
        names = self.name().encode(), self.name().encode()
        flags = self.random.choice((0, RENAME_NOREPLACE, RENAME_EXCHANGE))
        return libc("renameat2", AT_FDCWD, names[0], AT_FDCWD, names[1], flags)

    def tmpfile(self) -> object:
        """A file without a name gets one."""
        fd = os.open(self.random.choice((".", "d", "e")), os.O_TMPFILE | os.O_RDWR, self.mode())
        try:
            seen = shown(os.fstat(fd))
            source = b"/proc/self/fd/%d" % fd
            libc("linkat", AT_FDCWD, source, AT_FDCWD, self.name().encode(), AT_SYMLINK_FOLLOW)
            return seen
        finally:
            os.close(fd)

    def renew(self) -> object:
        """A file takes the place of one, as a program does that saves."""
        name = self.name()
        fd = os.open(f"{name}.new", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        try:
            os.fchown(fd, self.random.choice(IDS), self.random.choice(IDS))
            os.fchmod(fd, self.mode())
            os.rename(f"{name}.new", name)
        except OSError:
            os.unlink(f"{name}.new")
            raise
        finally:
            os.close(fd)
        return shown(os.lstat(name))

    def fstat(self) -> object:
        return shown(os.fstat(self.fd))

    def keep(self) -> object:
        """Opens the descriptor of the f… calls, sometimes with O_PATH."""
        self.close()
        flags = os.O_PATH if self.random.random() < 0.2 else os.O_RDONLY
        name = self.name()
        if is_device(name):
            return "a device"  # opening is not what is compared
        self.fd = os.open(name, flags | os.O_NONBLOCK)
        return shown(os.fstat(self.fd))

    def opened(self) -> object:
        flags = self.random.choice((os.O_RDONLY, os.O_WRONLY, os.O_RDWR))
        name = self.name()
        if is_device(name):
            return "a device"
        use(os.open(name, flags | os.O_NONBLOCK))
        return "opened"

    def listdir(self) -> object:
        return sorted(os.listdir(self.name()))

    def access(self) -> object:
        return os.access(
            self.name(),
            self.random.choice((0, 1, 2, 4, 6, 7)),
            effective_ids=self.random.random() < 0.5,
        )

    def truncate(self) -> object:
        name = self.name()
        if not stat.S_ISREG(os.stat(name).st_mode):
            return "no file"
        os.truncate(name, 0)
        return None

    def utime(self) -> object:
        os.utime(self.name(), None if self.random.random() < 0.5 else (1, 2))
        return None

    def chdir(self) -> object:
        here = os.open(".", os.O_PATH)
        try:
            os.chdir(self.name())
            return shown(os.stat("."))
        finally:
            os.fchdir(here)
            os.close(here)

    def setxattr(self) -> object:
        flags = self.random.choice((0, 0, os.XATTR_CREATE, os.XATTR_REPLACE))
        key = self.random.choice(("trusted.x", "trusted.y", "security.zz", "user.u"))
        follow = self.random.random() < 0.7
        name = self.name()
        if key == "user.u" and (os.path.islink(name) or is_device(name)):
            return "no file"
        os.setxattr(name, key, b"%d" % self.random.randrange(9), flags, follow_symlinks=follow)
        return None

    def getxattr(self) -> object:
        return os.getxattr(self.name(), self.random.choice(("trusted.x", "security.zz", "user.u")))

    def removexattr(self) -> object:
        os.removexattr(self.name(), self.random.choice(("trusted.x", "security.zz")))
        return None

    def umask(self) -> object:
        return oct(os.umask(self.random.choice((0, 0o22, 0o77, 0o27))))

    def call(self, what: str) -> str:
        function: Callable[[], object] = getattr(self, what)
        try:
            return f"{what}: {function()}"
        except OSError as error:
            return f"{what}: {os.strerror(error.errno or 0)}"


CALLS = (
    "create create create mkdir mkdir symlink mknod link rename rename unlink unlink rmdir chown chown chown chmod chmod "
    "chmod fchown fchmod fstat keep keep opened opened opened access access truncate utime chdir listdir setxattr "
    "setxattr getxattr removexattr umask chown_empty chmod_link exchange renew renew tmpfile"
).split()


def libc(name: str, *arguments: object) -> int:
    if getattr(LIBC, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), name)
    return 0


def use(fd: int) -> None:
    """Write to a file that is open for writing, and close it: set-id bits go with the open here."""
    writable = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
    try:
        if writable and stat.S_ISREG(os.fstat(fd).st_mode):
            os.write(fd, b"x")
    finally:
        os.close(fd)


def is_device(name: str) -> bool:
    return stat.S_IFMT(os.stat(name).st_mode) in (stat.S_IFCHR, stat.S_IFBLK)


def shown(st: os.stat_result) -> str:
    return f"{st.st_mode:o} {st.st_uid}:{st.st_gid} {st.st_nlink} {st.st_rdev}"


def tree(top: str) -> list[str]:
    """All names, with their attributes; root sees everything."""
    lines = []
    for directory, _, files in sorted(os.walk(top)):
        for path in sorted([directory, *(os.path.join(directory, name) for name in files)]):
            st = os.lstat(path)
            kept = {
                key: os.getxattr(path, key, follow_symlinks=False)
                for key in sorted(os.listxattr(path, follow_symlinks=False))
                if key != "security.selinux"
            }
            links = st.st_nlink if not stat.S_ISDIR(st.st_mode) else 0
            lines.append(
                f"{path}: {st.st_mode:o} {st.st_uid}:{st.st_gid} {links} {st.st_rdev} {kept or ''}"
            )
    return lines


def become(sequence: Sequence, for_ever: bool) -> str:
    """Root becomes some user; or for a while, keeping what it needs to become another one."""
    uid, gid, groups = sequence.random.choice(USERS)
    if not for_ever:
        os.seteuid(0)
    os.setgroups(groups)
    os.setresgid(*(gid, gid, gid) if for_ever else (-1, gid, 0))
    os.setresuid(*(uid, uid, uid) if for_ever else (-1, uid, 0))
    return f"  {uid}:{gid}"


def as_user(sequence: Sequence, count: int) -> None:
    """Some of the calls by somebody who isn't root, or by several in turn, in a child process."""
    sys.stdout.flush()
    if os.fork() == 0:
        for_ever = sequence.random.random() < 0.6
        who = become(sequence, for_ever)
        for _ in range(count):
            if not for_ever and sequence.random.random() < 0.3:
                who = become(sequence, for_ever)
            print(who, sequence.call(sequence.random.choice(CALLS)))
        sys.stdout.flush()
        os._exit(0)
    assert os.wait()[1] == 0


def main(directory: str, first: int, count: int, length: int) -> None:
    os.chdir(directory)
    for seed in range(first, first + count):
        print("--- seed", seed)
        top = f"{directory}/t{seed}"
        os.mkdir(top)
        os.chmod(top, 0o777)
        os.chdir(top)
        os.umask(0o22)
        sequence = Sequence(seed)
        for number in range(length):
            print(sequence.call(sequence.random.choice(CALLS)))
            if number % 7 == 6:
                as_user(sequence, 6)
            if number % 10 == 9:
                print("\n".join(tree(".")))
        sequence.close()
        os.chdir(directory)


main(sys.argv[1], *map(int, sys.argv[2:]))
