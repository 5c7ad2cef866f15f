"""Shows the owners of files by every call that tells them, as this process sees them.

Arguments: a file, its directory. Prints one line a question; for tests/modules/test_ident.py.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD, NOFOLLOW, EMPTY = -100, 0x100, 0x1000
STAT, FSTAT, LSTAT, FSTATAT, STATX = 4, 5, 6, 262, 332


def call(number: int, *args: object) -> int:
    plain = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    result: int = LIBC.syscall(ctypes.c_long(number), *plain)
    return result if result >= 0 else -ctypes.get_errno()


def owner(number: int, *args: object) -> str:
    """Owner by one of the calls; None among the arguments is where the result goes."""
    size, at = (256, 20) if number == STATX else (144, 28)
    buffer = ctypes.create_string_buffer(size)
    result = call(number, *(buffer if a is None else a for a in args))
    if result < 0:
        return f"error {os.strerror(-result)}"
    uid, gid = struct.unpack_from("=II", buffer.raw, at)
    return f"{uid} {gid}"


def main(path: str, directory: str) -> None:
    name = os.fsencode(path)
    base = os.path.basename(name)
    os.symlink(path, path + ".link")
    link = name + b".link"
    fd = os.open(path, os.O_RDONLY)
    only = os.open(path, os.O_PATH)
    only_link = os.open(path + ".link", os.O_PATH | os.O_NOFOLLOW)
    dirfd = os.open(directory, os.O_RDONLY)
    os.chdir(directory)
    questions: dict[str, tuple[int, *tuple[object, ...]]] = {
        "stat": (STAT, name, None),
        "stat relative": (STAT, base, None),
        "stat dots": (
            STAT,
            b"./../" + os.path.basename(os.fsencode(directory)) + b"/" + base,
            None,
        ),
        "stat link": (STAT, link, None),
        "lstat link": (LSTAT, link, None),
        "fstat": (FSTAT, fd, None),
        "fstat O_PATH": (FSTAT, only, None),
        "fstat O_PATH of link": (FSTAT, only_link, None),
        "fstat bad": (FSTAT, 999, None),
        "fstat -1": (FSTAT, -1, None),
        "fstatat dirfd": (FSTATAT, dirfd, base, None, 0),
        "fstatat nofollow": (FSTATAT, dirfd, base + b".link", None, NOFOLLOW),
        "fstatat empty": (FSTATAT, fd, b"", None, EMPTY),
        "fstatat empty O_PATH": (FSTATAT, only_link, b"", None, EMPTY),
        "fstatat empty cwd": (FSTATAT, AT_FDCWD, b"", None, EMPTY),
        "fstatat empty without flag": (FSTATAT, fd, b"", None, 0),
        "fstatat not a directory": (FSTATAT, fd, b"x", None, 0),
        "fstatat bad flags": (FSTATAT, fd, b"x", None, 1),
        "statx": (STATX, AT_FDCWD, name, 0, 0x7FF, None),
        "statx no mask": (STATX, AT_FDCWD, name, 0, 0, None),
        "statx empty": (STATX, fd, b"", EMPTY, 0x18, None),
        "statx null": (STATX, fd, 0, EMPTY, 0x18, None),
        "statx bad mask": (STATX, fd, b"", EMPTY, 0x80000000, None),
        "statx link": (STATX, dirfd, base + b".link", NOFOLLOW, 0x7FF, None),
        "proc fd": (STAT, b"/proc/self/fd/%d" % fd, None),
        "proc fd link": (LSTAT, b"/proc/self/fd/%d" % fd, None),
        "dev fd": (STAT, b"/dev/fd/%d" % only, None),
        "proc self": (STAT, b"/proc/self", None),
        "proc cwd": (STAT, b"/proc/self/cwd/" + base, None),
        "thread-self": (STAT, b"/proc/thread-self/status", None),
        "missing": (STAT, name + b".none", None),
        "slash": (STAT, name + b"/", None),
        "empty": (STAT, b"", None),
        "bad pointer": (STAT, 8, None),
        "bad result pointer": (STAT, name, 8),
        "long": (STAT, b"/" + b"x" * 5000, None),
        "root": (STAT, b"/", None),
        "passwd": (STAT, b"/etc/passwd", None),
    }
    for title, (number, *rest) in questions.items():
        print(f"{title}: {owner(number, *rest)}")
    os.unlink(path)
    os.unlink(path + ".link")
    print("fstat removed:", owner(FSTAT, fd, None))
    print("proc fd removed:", owner(STAT, b"/proc/self/fd/%d" % fd, None))
    gone = directory + "/gone"
    os.mkdir(gone)
    os.chdir(gone)
    os.rmdir(gone)
    print("removed directory:", owner(STAT, b".", None))
    print("above it:", owner(STAT, b"..", None))
    print("in it:", owner(STAT, b"x", None))
    for kind, end in (("pipe", os.pipe()[0]), ("memfd", os.memfd_create("x"))):
        print(f"{kind}:", owner(FSTAT, end, None))


main(*sys.argv[1:])
