"""Every call on every kind of file: prints what each answers, to be compared with the host's.

Usage: vfs_table.py names | pairs | open | times | fds | perms, in an empty directory whose parent
may be changed too. `perms` needs root. No path leads further than to that parent.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import shutil
import stat
import struct
import sys
import time
from collections.abc import Callable, Iterator

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long
AT_FDCWD, NOFOLLOW, EMPTY_PATH, FOLLOW, REMOVEDIR = -100, 0x100, 0x1000, 0x400, 0x200
NR = {
    "stat": 4, "lstat": 6, "access": 21, "truncate": 76, "chdir": 80, "rename": 82, "mkdir": 83,
    "rmdir": 84, "link": 86, "unlink": 87, "symlink": 88, "readlink": 89, "chmod": 90,
    "chown": 92, "lchown": 94, "mknod": 133, "statfs": 137, "chroot": 161, "setxattr": 188,
    "getxattr": 191, "listxattr": 194, "removexattr": 197, "openat": 257, "newfstatat": 262,
    "unlinkat": 263, "linkat": 265, "faccessat2": 439, "utimensat": 280, "renameat2": 316,
    "statx": 332, "openat2": 437, "fchmodat2": 452, "fstat": 5, "fchmod": 91, "fchown": 93,
    "ftruncate": 77, "fchdir": 81, "getdents64": 217, "fsetxattr": 190, "fgetxattr": 193,
    "flistxattr": 196, "fremovexattr": 199, "fstatfs": 138, "fchownat": 260, "readlinkat": 267,
    "mkdirat": 258, "getcwd": 79, "name_to_handle_at": 303, "setresuid": 117, "setresgid": 119,
    "setgroups": 116, "inotify_add_watch": 254, "utime": 132, "utimes": 235, "futimesat": 261,
}  # fmt: skip
Arg = int | bytes | ctypes.Array[ctypes.c_char] | None
Call = tuple[str, *tuple[Arg, ...]]
ROOM = ctypes.create_string_buffer(4096)


def call(name: str, *args: Arg) -> int:
    """A raw system call: its result, or minus the errno."""
    plain = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    result: int = LIBC.syscall(ctypes.c_long(NR[name]), *plain)
    return result if result != -1 else -ctypes.get_errno()


def shown(result: int) -> str:
    """A result as text."""
    return errno.errorcode.get(-result, str(result)) if result < 0 else "ok"


def build() -> None:
    """One file of each kind, in the working directory."""
    for entry in os.scandir("."):
        if entry.is_dir(follow_symlinks=False):
            os.chmod(entry, 0o700)
            shutil.rmtree(entry)
        else:
            os.unlink(entry)
    for name, content in (("f", "four"), ("g", "")):
        with open(name, "w") as file:
            file.write(content)
    os.mkdir("d")
    os.mkdir("e")
    with open("d/x", "w"):
        pass
    for name, target in (("lf", "f"), ("ld", "d"), ("le", "e"), ("lost", "no"), ("loop", "loop"),
                         ("lx", "d/no"), ("l2", "ld/x"), ("lup", "d/..")):  # fmt: skip
        os.symlink(target, name)
    os.mkfifo("p", 0o644)
    os.mknod("s", stat.S_IFSOCK | 0o644)


def tree(directory: str = ".") -> list[str]:
    """What is there, in a few letters."""
    found = []
    for entry in sorted(os.scandir(directory), key=lambda e: e.name):
        info = entry.stat(follow_symlinks=False)
        text = f"{entry.path[2:]}:{info.st_mode:o}:{info.st_nlink}"
        if stat.S_ISREG(info.st_mode):
            text += f":{info.st_size}"
        found.append(text)
        if entry.is_dir(follow_symlinks=False):
            found += tree(entry.path)
    return found


def differ(before: list[str], after: list[str]) -> str:
    """What a call changed."""
    gone, new = sorted(set(before) - set(after)), sorted(set(after) - set(before))
    return f"-{gone} +{new}" if gone or new else ""


SUFFIXES = (b"", b"/", b"//", b"/.", b"/..", b"/./", b"/x", b"/no")
KINDS = (b"f", b"d", b"e", b"lf", b"ld", b"le", b"lost", b"loop", b"lx", b"l2", b"lup", b"p", b"s")
NEW = (b"no", b"d/no", b"no/no", b"f/no", b"ld/no", b"lost/no", b"n" * 255, b"n" * 256,
       b"d/" + b"n" * 256, b"a/" * 2047 + b"a", b"a/" * 2048)  # fmt: skip
SPECIAL = (
    b"",
    b".",
    b"..",
    b"./",
    b"../",
    b"./.",
    b"d//x",
    b"./d/./x",
    b"d/../f",
    b"f/../f",
)
PATHS = (*(kind + suffix for kind in KINDS for suffix in SUFFIXES), *NEW,
         *(new + b"/" for new in NEW[:6]), *SPECIAL)  # fmt: skip


def mode_of(path: bytes, room: ctypes.Array[ctypes.c_char]) -> str:
    """The mode in a struct stat, if there is one."""
    return f"{struct.unpack_from('<I', room.raw, 24)[0]:o}"


def single(path: bytes) -> Iterator[Call]:
    """The calls on one path; the last five changes are undone by building anew."""
    stamp = struct.pack("<qqqq", 5, 6, 7, 8)
    yield from (
        ("stat", path, ROOM), ("lstat", path, ROOM), ("access", path, 0), ("access", path, 1),
        ("newfstatat", AT_FDCWD, path, ROOM, EMPTY_PATH), ("readlink", path, ROOM, 99),
        ("statfs", path, ROOM), ("chdir", path), ("listxattr", path, ROOM, 99),
        ("getxattr", path, b"user.no", ROOM, 99), ("openat", AT_FDCWD, path, 0o4000, 0),
        ("openat", AT_FDCWD, path, os.O_PATH | os.O_NOFOLLOW, 0), ("chmod", path, 0o700),
        ("fchmodat2", AT_FDCWD, path, 0o711, NOFOLLOW), ("lchown", path, -1, -1),
        ("utimensat", AT_FDCWD, path, stamp, 0), ("utimensat", AT_FDCWD, path, None, NOFOLLOW),
        ("truncate", path, 2), ("setxattr", path, b"user.a", b"v", 1, 0),
        ("removexattr", path, b"user.a"), ("faccessat2", AT_FDCWD, path, 4, NOFOLLOW),
        ("statx", AT_FDCWD, path, 0, 0x7FF, ROOM), ("chroot", path),
        ("mkdir", path, 0o777), ("mknod", path, stat.S_IFIFO | 0o666, 0),
        ("mknod", path, stat.S_IFREG | 0o666, 0), ("symlink", b"to", path), ("unlink", path),
        ("rmdir", path), ("unlinkat", AT_FDCWD, path, REMOVEDIR),
        ("openat", AT_FDCWD, path, os.O_CREAT | os.O_RDWR | os.O_NONBLOCK, 0o666),
        ("openat", AT_FDCWD, path, os.O_CREAT | os.O_EXCL, 0o666),
    )  # fmt: skip


def tell(args: tuple[Arg, ...]) -> str:
    """Arguments as short text."""
    return " ".join(repr(a)[:40] for a in args if a is None or isinstance(a, int | bytes))


def check(here: str, before: list[str], name: str, *args: Arg) -> bool:
    """Make a call, print its answer and what it changed; True if the tree must be built anew."""
    if name == "chroot" and os.geteuid() == 0:
        return False  # the host would do it
    result = call(name, *args)
    detail = ""
    if result >= 0 and name in ("stat", "lstat", "newfstatat"):
        detail = mode_of(b"", ROOM)
    elif result > 0 and name == "readlink":
        detail = repr(ROOM.raw[:result])
    elif result >= 0 and name == "chdir":
        detail = os.path.relpath(os.getcwd(), here)
        os.chdir(here)
    elif result >= 0 and name.startswith("open"):
        info = os.fstat(result)
        detail = f"{info.st_mode:o}"
        os.close(result)
    changed = differ(before, tree())
    print(name, tell(args), shown(result), detail, changed)
    return bool(changed) or name in ("setxattr", "removexattr", "chmod", "utimensat")


def names() -> None:
    """Each call on each path."""
    here = os.getcwd()
    for path in PATHS:
        build()
        before = tree()
        for one in single(path):
            if check(here, before, *one):
                build()


def pairs() -> None:
    """rename, link and their flags on pairs of paths."""
    here = os.getcwd()
    paths = (b"f", b"g", b"d", b"e", b"d/x", b"lf", b"ld", b"lost", b"p", b"no", b"f/", b"e/",
             b"ld/", b"no/", b"d/no", b"d/no/", b"e/.", b"e/..", b".", b"f/x", b"no/no", b"d/.",
             b"", b"n" * 256)  # fmt: skip
    build()
    before = tree()
    for old, new in itertools.product(paths, paths):
        for one in (
            ("rename", old, new), ("renameat2", AT_FDCWD, old, AT_FDCWD, new, 1),
            ("renameat2", AT_FDCWD, old, AT_FDCWD, new, 2), ("link", old, new),
            ("linkat", AT_FDCWD, old, AT_FDCWD, new, FOLLOW),
        ):  # fmt: skip
            if check(here, before, *one):
                build()


def opens() -> None:
    """Combinations of the flags of open on each kind of file."""
    paths = (b"f", b"d", b"lf", b"ld", b"lost", b"loop", b"s", b"no", b"no/", b"f/", b"d/", b"lf/",
             b"ld/", b"lost/", b"d/.", b"d/..", b"ld/x", b"f/x", b"lx", b".", b"p")  # fmt: skip
    bits = (os.O_CREAT, os.O_EXCL, os.O_TRUNC, os.O_DIRECTORY, os.O_NOFOLLOW, os.O_PATH)
    build()
    before = tree()
    for path in paths:
        for access in range(4):
            for chosen in itertools.product((0, 1), repeat=len(bits)):
                flags = sum(bit for bit, on in zip(bits, chosen, strict=True) if on)
                if path == b"p" and flags & (os.O_CREAT | os.O_TRUNC):
                    continue
                flags |= access | os.O_NONBLOCK
                result = call("openat", AT_FDCWD, path, flags, 0o666)
                text = shown(result)
                if result >= 0:
                    text += f" {os.fstat(result).st_mode:o}"
                    os.close(result)
                changed = differ(before, tree())
                print(f"open {path!r} {flags:o} {text} {changed}")
                if changed:
                    build()


# --- times ---------------------------------------------------------------------------------------

OLD = struct.pack("<qqqq", 10**9, 0, 10**9, 0)


def stamps(directory: str = ".") -> dict[str, tuple[int, int, int]]:
    """The times of all files, without following a link, as that is an access to it."""
    found = {}
    for entry in [".", *(e.name for e in os.scandir(directory))]:
        path = os.path.normpath(os.path.join(directory, entry))
        info = os.lstat(path)
        found[path] = (info.st_atime_ns, info.st_mtime_ns, info.st_ctime_ns)
        if stat.S_ISDIR(info.st_mode) and entry != ".":
            found |= stamps(path)
    return found


def times() -> None:
    """Which times of which files each action changes."""
    actions: dict[str, Callable[[], object]] = {
        "nothing": lambda: None,
        "mkdir": lambda: os.mkdir("new"), "mkdir deep": lambda: os.mkdir("d/new"),
        "rmdir": lambda: os.rmdir("e"), "create": lambda: os.close(os.open("new", os.O_CREAT)),
        "create again": lambda: os.close(os.open("f", os.O_CREAT)),
        "truncate on open": lambda: os.close(os.open("f", os.O_TRUNC | os.O_WRONLY)),
        "truncate empty on open": lambda: os.close(os.open("g", os.O_TRUNC | os.O_WRONLY)),
        "truncate": lambda: os.truncate("f", 1), "truncate same": lambda: os.truncate("f", 4),
        "ftruncate same": lambda: with_fd("f", os.O_WRONLY, lambda fd: os.ftruncate(fd, 4)),
        "write": lambda: with_fd("f", os.O_WRONLY, lambda fd: os.write(fd, b"x")),
        "write nothing": lambda: with_fd("f", os.O_WRONLY, lambda fd: os.write(fd, b"")),
        "read": lambda: with_fd("f", os.O_RDONLY, lambda fd: os.read(fd, 1)),
        "read end": lambda: with_fd("g", os.O_RDONLY, lambda fd: os.read(fd, 1)),
        "read noatime": lambda: with_fd("f", os.O_NOATIME, lambda fd: os.read(fd, 1)),
        "unlink": lambda: os.unlink("f"), "unlink deep": lambda: os.unlink("d/x"),
        "link": lambda: os.link("f", "d/new"), "symlink": lambda: os.symlink("f", "new"),
        "mkfifo": lambda: os.mkfifo("new"), "rename": lambda: os.rename("f", "new"),
        "rename away": lambda: os.rename("f", "d/new"), "rename over": lambda: os.rename("f", "g"),
        "rename dir": lambda: os.rename("e", "d/new"), "rename same": lambda: os.rename("f", "f"),
        "exchange": lambda: call("renameat2", AT_FDCWD, b"f", AT_FDCWD, b"d", 2),
        "chmod": lambda: os.chmod("f", 0o600), "chmod same": lambda: os.chmod("f", 0o644),
        "chmod dir": lambda: os.chmod("d", 0o700), "chown none": lambda: os.chown("f", -1, -1),
        "lchown": lambda: os.lchown("lf", -1, os.getegid()),
        "utime": lambda: os.utime("f", (5, 6)), "utime now": lambda: os.utime("f"),
        "utime link": lambda: os.utime("lf", (5, 6), follow_symlinks=False),
        "setxattr": lambda: os.setxattr("f", "user.a", b"b"), "stat": lambda: os.stat("f"),
        "readlink": lambda: os.readlink("lf"), "follow": lambda: os.stat("ld/x"),
        "listdir": lambda: os.listdir("d"), "access": lambda: os.access("d/x", os.R_OK),
    }  # fmt: skip
    for name, action in actions.items():
        build()
        for path in stamps():
            assert call("utimensat", AT_FDCWD, path.encode(), OLD, NOFOLLOW) == 0
        time.sleep(0.012)  # the kernel's coarse clock
        before = stamps()
        action()
        after = stamps()
        changed = []
        for path in sorted(before.keys() | after.keys()):
            if path not in before or path not in after:
                changed.append(f"{path}!")
                continue
            pairs = zip("amc", before[path], after[path], strict=True)
            letters = "".join(letter for letter, x, y in pairs if x != y)
            if letters:
                changed.append(f"{path}:{letters}")
        print(name, *changed)


def with_fd(path: str, flags: int, use: Callable[[int], object]) -> None:
    """Use a file while it is open."""
    fd = os.open(path, flags)
    try:
        use(fd)
    finally:
        os.close(fd)


# --- descriptors ---------------------------------------------------------------------------------


def fds() -> None:
    """Each call on descriptors of each kind, also after the name is gone."""
    kinds: tuple[tuple[str, int], ...] = (
        ("f", os.O_RDONLY), ("f", os.O_WRONLY), ("f", os.O_RDWR), ("f", os.O_PATH), ("d", 0),
        ("d", os.O_PATH), ("lf", os.O_PATH | os.O_NOFOLLOW), ("p", os.O_RDONLY | os.O_NONBLOCK),
        ("p", os.O_PATH), ("s", os.O_PATH), (".", os.O_TMPFILE | os.O_RDWR),
        (".", os.O_TMPFILE | os.O_WRONLY | os.O_EXCL),
    )  # fmt: skip
    stamp = struct.pack("<qqqq", 5, 6, 7, 8)
    for (path, flags), removed in itertools.product(kinds, (False, True)):
        build()
        fd = os.open(path, flags, 0o644)
        if removed and path != ".":
            if path == "d":
                shutil.rmtree(path)
            else:
                os.unlink(path)
        place = f"/proc/self/fd/{fd}".encode()
        calls: tuple[Call, ...] = (
            ("fstat", fd, ROOM), ("newfstatat", fd, b"", ROOM, EMPTY_PATH), ("fstatfs", fd, ROOM),
            ("newfstatat", fd, b"", ROOM, 0), ("newfstatat", fd, b"x", ROOM, 0),
            ("newfstatat", fd, b".", ROOM, 0), ("stat", place, ROOM),
            ("fchmod", fd, 0o640), ("fchmodat2", fd, b"", 0o644, EMPTY_PATH),
            ("chmod", place, 0o640),
            ("fchown", fd, -1, -1), ("fchownat", fd, b"", -1, -1, EMPTY_PATH),
            ("utimensat", fd, None, stamp, 0), ("utimensat", fd, b"", stamp, EMPTY_PATH),
            ("utimensat", fd, None, stamp, EMPTY_PATH), ("ftruncate", fd, 2), ("ftruncate", fd, -1),
            ("truncate", place, 3), ("faccessat2", fd, b"", 4, EMPTY_PATH), ("fchdir", fd),
            ("readlinkat", fd, b"", ROOM, 99), ("getdents64", fd, ROOM, 4096),
            ("getdents64", fd, ROOM, 1), ("openat", fd, b"x", 0, 0), ("openat", fd, b".", 0, 0),
            ("openat", fd, b"", 0, 0), ("openat", AT_FDCWD, place, os.O_NONBLOCK, 0),
            ("openat", AT_FDCWD, place, os.O_WRONLY | os.O_NONBLOCK, 0),
            ("mkdirat", fd, b"new", 0o777), ("fstat", fd, ROOM),
            ("linkat", fd, b"", AT_FDCWD, b"linked", EMPTY_PATH), ("fstat", fd, ROOM),
            ("linkat", AT_FDCWD, place, AT_FDCWD, b"linked2", FOLLOW), ("fstat", fd, ROOM),
        )  # fmt: skip
        here = os.getcwd()
        for name, *args in calls:
            if removed and (place in args or b"." in args):
                continue  # a file without a name can't be opened again everywhere
            if removed and name == "readlinkat":
                continue
            result = call(name, *args)
            detail = ""
            if result >= 0 and name in ("fstat", "stat", "newfstatat"):
                nlink, mode, *_, size = struct.unpack_from("<QIIIIQq", ROOM.raw, 16)
                detail = f"{mode:o} n{nlink} s{size if stat.S_ISREG(mode) else 0}"
            elif result >= 0 and name == "fchdir":
                detail = shown(call("getcwd", ROOM, 4096))
                os.chdir(here)
            elif result >= 0 and name == "openat":
                detail = f"{os.fstat(result).st_mode:o}"
                os.close(result)
            print(path, f"{flags:o}", removed, name, tell(tuple(args[1:])).replace(str(fd), "N"),
                  shown(result), detail)  # fmt: skip
        os.close(fd)


# --- permissions ---------------------------------------------------------------------------------

CALLERS: tuple[tuple[int, int, tuple[int, ...]], ...] = (
    (0, 0, ()), (101, 201, ()), (102, 202, (201,)), (103, 203, ()), (101, 202, (203,)),
)  # fmt: skip


def become(uid: int, gid: int, groups: tuple[int, ...]) -> None:
    """Take these ids in effect; root can be had back."""
    call("setresuid", 0, 0, 0)
    call("setresgid", 0, gid, 0)
    call("setgroups", len(groups), struct.pack(f"<{len(groups)}I", *groups))
    call("setresuid", 0, uid, 0)


def perms() -> None:
    """Who may do what in directories and to files of all owners and modes."""
    become(*CALLERS[0])
    os.chmod(".", 0o777)
    os.umask(0)
    stamp = struct.pack("<qqqq", 5, 6, 7, 8)
    modes = (0o777, 0o700, 0o070, 0o007, 0o711, 0o1777, 0o3777, 0o555, 0o333, 0o000, 0o6777, 0o2770)
    owners = ((0, 0), (101, 201), (102, 201), (101, 203))
    for mode, (uid, gid) in itertools.product(modes, owners):
        for caller in CALLERS:
            become(*CALLERS[0])
            shutil.rmtree("t", ignore_errors=True)
            os.mkdir("t")
            for name, owner in (("mine", caller[:2]), ("root", (0, 0)), ("other", (109, 209))):
                with open(f"t/{name}", "w") as file:
                    file.write("x")
                os.chown(f"t/{name}", *owner)
                os.chmod(f"t/{name}", 0o644)
            with open("t/same", "w") as file:
                file.write("x")
            os.mkdir("t/sub")
            for name in ("t/same", "t/sub", "t"):
                os.chown(name, uid, gid)
                os.chmod(name, mode)
            become(*caller)
            print("perms", f"{mode:o}", uid, gid, caller, end=":")
            for name, *args in (
                ("access", b"t/same", 4), ("access", b"t/same", 2), ("access", b"t/same", 1),
                ("faccessat2", AT_FDCWD, b"t/same", 7, 0x200),
                ("faccessat2", AT_FDCWD, b"t", 2, 0x200),
                ("openat", AT_FDCWD, b"t", 0, 0), ("openat", AT_FDCWD, b"t/same", 0, 0),
                ("openat", AT_FDCWD, b"t/same", os.O_RDWR, 0), ("chdir", b"t/sub"),
                ("openat", AT_FDCWD, b"t/same", os.O_NOATIME, 0),
                ("openat", AT_FDCWD, b"t/mine", os.O_CREAT | os.O_WRONLY, 0o666),
                ("openat", AT_FDCWD, b"t/other", os.O_CREAT | os.O_RDONLY, 0o666),
                ("utimensat", AT_FDCWD, b"t/same", None, 0),
                ("utimensat", AT_FDCWD, b"t/same", stamp, 0), ("truncate", b"t/same", 3),
                ("setxattr", b"t/same", b"user.a", b"b", 1, 0),
                ("getxattr", b"t/same", b"user.a", ROOM, 9),
                ("setxattr", b"t", b"user.a", b"b", 1, 0),
                ("setxattr", b"t/same", b"trusted.a", b"b", 1, 0),
                ("link", b"t/same", b"linked"), ("link", b"t/other", b"linked2"),
                ("chmod", b"t/same", 0o6755), ("stat", b"t/same", ROOM),
                ("chown", b"t/same", -1, -1),
                ("stat", b"t/same", ROOM), ("chmod", b"t/same", 0o2644),
                ("chown", b"t/same", -1, 201),
                ("stat", b"t/same", ROOM), ("chown", b"t/same", -1, 203),
                ("chown", b"t/same", 101, -1),
                ("chown", b"t/same", 103, -1), ("stat", b"t/same", ROOM),
                ("mkdir", b"t/new", 0o2777), ("stat", b"t/new", ROOM), ("mkdir", b"t/sub/n", 0o777),
                ("mknod", b"t/nod", stat.S_IFREG | 0o2775, 0), ("stat", b"t/nod", ROOM),
                ("mknod", b"t/chr", stat.S_IFCHR | 0o666, 0x103),
                ("openat", AT_FDCWD, b"t/made", os.O_CREAT | os.O_WRONLY, 0o6777),
                ("stat", b"t/made", ROOM),
                ("symlink", b"x", b"t/sym"), ("rename", b"t/mine", b"t/mine2"),
                ("rename", b"t/root", b"t/root2"), ("rename", b"t/mine2", b"t/other"),
                ("rename", b"t/sub", b"subs"), ("rename", b"t/same", b"outside"),
                ("unlink", b"t/root"), ("unlink", b"t/other"), ("unlink", b"t/same"),
                ("rmdir", b"t/new"), ("rmdir", b"t/sub"),
            ):  # fmt: skip
                result = call(name, *args)
                text = shown(result)
                if result >= 0 and name == "stat":
                    shown_mode, owner, group = struct.unpack_from("<III", ROOM.raw, 24)
                    text = f"{shown_mode:o}/{owner}/{group}"
                elif result >= 0 and name == "openat":
                    os.close(result)
                elif result >= 0 and name == "chdir":
                    os.chdir("../..")
                print(f" {text}", end="")
            print()
            become(*CALLERS[0])
            for name in ("linked", "linked2", "outside"):
                if os.path.lexists(name):
                    os.unlink(name)
            shutil.rmtree("subs", ignore_errors=True)


if __name__ == "__main__":
    actions = {
        "names": names, "pairs": pairs, "open": opens, "times": times, "fds": fds, "perms": perms,
    }  # fmt: skip
    actions[sys.argv[1]]()
    build()  # what is left can be removed by its owner
