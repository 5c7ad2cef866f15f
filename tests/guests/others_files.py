"""What a user who isn't root may do to root's files, and what it does to them.

Argument: an empty directory. Run by root; prints one line an act, for tests/modules/test_others.py.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable

OTHER = 65534


def show(title: str, act: Callable[[], object]) -> None:
    try:
        result = act()
    except OSError as error:
        result = errno.errorcode[error.errno or 0]
    print(title, result, flush=True)


def as_other(title: str, act: Callable[[], object]) -> None:
    """An act of another user's, in a process of its own."""
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setresgid(OTHER, OTHER, OTHER)
        os.setresuid(OTHER, OTHER, OTHER)
        show(title, act)
        os._exit(0)
    os.waitpid(child, 0)


def mode(name: str) -> str:
    return oct(stat.S_IMODE(os.stat(name).st_mode))


def write(name: str) -> str:
    fd = os.open(name, os.O_WRONLY)
    os.write(fd, b"x")
    return oct(stat.S_IMODE(os.fstat(fd).st_mode))


def main(directory: str) -> None:
    os.chmod(directory, 0o755)
    os.chdir(directory)
    for name, bits in (("mine", 0o644), ("open", 0o666), ("setid", 0o6777), ("cut", 0o4777)):
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY))
        os.chmod(name, bits)
    os.mkdir("locked")
    os.chmod("locked", 0o744)
    os.mkfifo("fifo")
    os.chmod("fifo", 0o600)
    as_other("touch mine", lambda: os.utime("mine"))
    as_other("touch open", lambda: os.utime("open"))
    as_other("set times of open", lambda: os.utime("open", (1, 1)))
    as_other("write to set-id", lambda: write("setid"))
    show("set-id", lambda: mode("setid"))
    as_other("cut set-id off", lambda: os.truncate("cut", 0))
    show("set-id", lambda: mode("cut"))
    fd = os.open("locked", os.O_RDONLY)
    as_other("fchdir", lambda: os.fchdir(fd))
    as_other("list", lambda: os.listdir(fd))
    as_other("open a FIFO", lambda: os.open("fifo", os.O_RDWR | os.O_NONBLOCK))
    show("open one's own", lambda: os.open("fifo", os.O_RDWR | os.O_NONBLOCK) > 0)
    show("make a device", lambda: os.mknod("null", stat.S_IFCHR | 0o666, os.makedev(1, 3)))
    show("its attribute", lambda: os.setxattr("null", "user.umvm", b"x"))
    show("its attributes", lambda: os.listxattr("null"))
    os.symlink("mine", "link")
    os.utime("link", (1000, 2000), follow_symlinks=False)
    show("look at a link", lambda: stat.S_ISLNK(os.lstat("link").st_mode))
    show("its access time", lambda: os.lstat("link").st_atime)


main(sys.argv[1])
