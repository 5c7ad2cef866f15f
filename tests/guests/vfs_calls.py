"""Raw system calls by name, for the guests that compare them."""

from __future__ import annotations

import ctypes
import os
import struct

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long
NR = {
    "stat": 4, "lstat": 6, "fstat": 5, "open": 2, "close": 3, "access": 21, "truncate": 76,
    "ftruncate": 77, "getdents64": 217, "getcwd": 79, "chdir": 80, "fchdir": 81, "rename": 82,
    "mkdir": 83, "rmdir": 84, "creat": 85, "link": 86, "unlink": 87, "symlink": 88,
    "readlink": 89, "chmod": 90, "fchmod": 91, "chown": 92, "fchown": 93, "lchown": 94,
    "umask": 95, "mknod": 133, "statfs": 137, "setxattr": 188, "lsetxattr": 189, "fsetxattr": 190,
    "getxattr": 191, "lgetxattr": 192, "fgetxattr": 193, "listxattr": 194, "llistxattr": 195,
    "flistxattr": 196, "removexattr": 197, "lremovexattr": 198, "fremovexattr": 199,
    "openat": 257, "mkdirat": 258, "mknodat": 259, "fchownat": 260, "newfstatat": 262,
    "unlinkat": 263, "renameat": 264, "linkat": 265, "symlinkat": 266, "readlinkat": 267,
    "fchmodat": 268, "faccessat": 269, "utimensat": 280, "renameat2": 316, "statx": 332,
    "openat2": 437, "faccessat2": 439, "fchmodat2": 452, "setgroups": 116, "setresuid": 117,
    "setresgid": 119, "write": 1, "read": 0, "lseek": 8,
}  # fmt: skip


def call(name: str, *args: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    """A raw system call: its result, or minus the errno."""
    plain = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    result: int = LIBC.syscall(ctypes.c_long(NR[name]), *plain)
    return result if result != -1 else -ctypes.get_errno()


def become(uid: int, gid: int, groups: tuple[int, ...]) -> None:
    """Take these ids in effect; the real and saved ones stay root's, so that it can be undone."""
    call("setresuid", 0, 0, 0)
    call("setresgid", 0, gid, 0)
    call("setgroups", len(groups), struct.pack(f"<{len(groups)}I", *groups))
    call("setresuid", 0, uid, 0)


def open_up(directory: bytes) -> None:
    """Let the owner search and empty what is below a directory."""
    os.chmod(directory, 0o700)
    for entry in list(os.scandir(directory)):
        if entry.is_dir(follow_symlinks=False):
            open_up(entry.path)
