"""Random sequences of system calls on names, attributes, descriptors and directories.

Usage: vfs_matrix.py SEED SEQUENCES CALLS [root]. Each sequence works in a new directory below the
working directory and prints one line a call, then the tree that it left. Nothing that is printed
depends on the file system's own choices (inode numbers, sizes of directories), so that the output
on two correct file systems is equal. With `root` the caller changes its ids between calls.

No call can reach beyond a sequence's directory: a path has at most two `..`, the target of a link
none, no descriptor or working directory above `here` is kept (`stay`), and `here` lies three
directories deep. Only calls that fail on it are given the root directory.
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import shutil
import stat
import struct
import sys
from collections.abc import Callable

sys.path.insert(0, os.path.dirname(__file__))
from vfs_calls import become, call, open_up

AT_FDCWD, NOFOLLOW, EMPTY_PATH, FOLLOW, REMOVEDIR = -100, 0x100, 0x1000, 0x400, 0x200
NOW, OMIT = (1 << 30) - 1, (1 << 30) - 2
UNFIT = (stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK)
LONG_OK, LONG_BAD = b"n" * 255, b"n" * 256
NAMES = (b"a", b"b", b"c", b"d", b"l", b"m")
GUARD = b"/1/2/3"
"""The directories between a sequence's own and the one where it works."""
ROOT_IDS = ((0, 0, ()), (65534, 65534, ()), (65533, 65533, (65532,)), (65532, 65532, ()))


def shown(result: int) -> str:
    """A result as text; which descriptor or address it is doesn't matter."""
    return errno.errorcode.get(-result, str(result)) if result < 0 else "ok"


def stat_text(raw: bytes) -> str:
    """What of struct stat any correct file system must agree on."""
    _, _, nlink, mode, uid, gid, _, rdev, size = struct.unpack_from("<QQQIIIIQq", raw)
    if stat.S_ISDIR(mode):
        size = 0
    return f"{mode:o} n{nlink} {uid}:{gid} r{rdev:x} s{size}"


class Sequence:
    """One sequence: its random choices and its open descriptors."""

    def __init__(self, seed: str, root: bool) -> None:
        self.rng = random.Random(seed)
        self.root = root
        self.fds: list[int] = []
        self.here = os.getcwdb()
        self.umask = 0o022

    # --- choices ---------------------------------------------------------------------------------

    def path(self) -> bytes:
        """A path: mostly one or two names of a small set, sometimes a strange one."""
        rng = self.rng
        path = self.tame()
        strange = rng.random()
        if strange < 0.05:
            path += rng.choice((b"/", b"//"))
        elif strange < 0.09:
            path += rng.choice((b"/.", b"/..", b"/./", b"/../"))
        elif strange < 0.12:
            path = rng.choice((b".", b"..", b"./", b"../", b"", b"./.", b"../.."))
        elif strange < 0.14:
            path = rng.choice(
                (LONG_OK, LONG_BAD, b"a/" + LONG_BAD, b"a/" * 2047 + b"a", b"a/" * 2048)
            )
        elif strange < 0.19:
            path = self.here + b"/" + path
        elif strange < 0.24:
            path = rng.choice((b"./", b"../3/", b"a/../", b".//", b"b/./")) + path
        return path

    def tame(self) -> bytes:
        """A path that leads nowhere but down."""
        path = self.rng.choice(NAMES)
        while self.rng.random() < 0.3 and len(path) < 8:
            path += b"/" + self.rng.choice(NAMES)
        return path

    def name(self) -> bytes:
        """A path for calls that can't succeed on the root directory."""
        return self.rng.choice((b"/", b"/..", b"/.")) if self.rng.random() < 0.02 else self.path()

    def dirfd(self) -> int:
        """The directory of an *at call."""
        if self.rng.random() < 0.6 or not self.fds:
            return AT_FDCWD
        return self.rng.choice([*self.fds, 999])

    def fd(self) -> int:
        """An open descriptor of this sequence, or one that isn't."""
        return self.rng.choice([*self.fds, *self.fds, 999])

    def mode(self) -> int:
        """Permission bits."""
        common = (0o777, 0o755, 0o700, 0o644, 0o600, 0o1777, 0o2775, 0o4755, 0o2755, 0o2644, 0)
        return self.rng.choice((*common, 0o6777, 0o555, 0o444, 0o111, 0o070, 0o007))

    def ids(self) -> tuple[int, int]:
        """Owner and group for chown; -1 keeps."""
        known = [-1, -1, os.geteuid(), os.getegid()]
        if self.root:
            known = [-1, 0, 65534, 65533, 65532]
        return self.rng.choice(known), self.rng.choice(known)

    def open_flags(self) -> int:
        """Flags of open(2)."""
        flags = self.rng.choice((os.O_RDONLY, os.O_WRONLY, os.O_RDWR))
        for flag, odds in (
            (os.O_CREAT, 0.5), (os.O_EXCL, 0.15), (os.O_TRUNC, 0.2), (os.O_DIRECTORY, 0.12),
            (os.O_NOFOLLOW, 0.12), (os.O_PATH, 0.08), (os.O_APPEND, 0.1), (os.O_NOATIME, 0.05),
        ):  # fmt: skip
            if self.rng.random() < odds:
                flags |= flag
        if self.rng.random() < 0.04:
            flags |= os.O_TMPFILE
        return flags | os.O_NONBLOCK

    # --- calls -----------------------------------------------------------------------------------

    def opened(self, result: int) -> str:
        """Keep a descriptor that a call gave; the oldest goes when there are too many."""
        if result >= 0:
            self.fds.append(result)
            if len(self.fds) > 5:
                os.close(self.fds.pop(0))
        return shown(result)

    def stats(self) -> str:
        buffer = ctypes.create_string_buffer(144)
        kind = self.rng.choice(("stat", "lstat", "newfstatat", "fstat"))
        path = self.path()
        args: tuple[object, ...]
        if kind == "fstat":
            args = (fd,) = (self.fd(),)
            result = call("fstat", fd, buffer)
        elif kind == "newfstatat":
            dirfd, flags = self.dirfd(), self.rng.choice((0, NOFOLLOW, EMPTY_PATH, 0x800, 0x2))
            args = dirfd, path, flags
            result = call("newfstatat", dirfd, path, buffer, flags)
        else:
            args = (path,)
            result = call(kind, path, buffer)
        text = shown(result) if result < 0 else stat_text(buffer.raw)
        return f"{kind} {self.names(args)} {text}"

    def statx(self) -> str:
        buffer = ctypes.create_string_buffer(256)
        flags = self.rng.choice((0, NOFOLLOW, EMPTY_PATH, 0x6000, 0x1, 0x2000))
        mask = self.rng.choice((0x7FF, 0xFFF, 0, 0x80000000))
        args = self.dirfd(), self.path(), flags, mask
        result = call("statx", *args, buffer)
        if result < 0:
            return f"statx {self.names(args)} {shown(result)}"
        got, _, _, nlink, uid, gid, mode = struct.unpack_from("<IIQIIIH", buffer.raw)
        return f"statx {self.names(args)} {got & mask & 0xFFF:x} {mode:o} n{nlink} {uid}:{gid}"

    def accesses(self) -> str:
        mask = self.rng.choice((0, 1, 2, 4, 6, 7, 8))
        kind = self.rng.choice(("access", "faccessat", "faccessat2"))
        args: tuple[int | bytes, ...] = (self.path(), mask)
        if kind != "access":
            args = (self.dirfd(), *args)
        if kind == "faccessat2":
            args += (self.rng.choice((0, NOFOLLOW, 0x200, EMPTY_PATH, 0x4)),)
        return self.line(kind, *args)

    def reads_link(self) -> str:
        buffer = ctypes.create_string_buffer(64)
        size = self.rng.choice((64, 64, 1, 0, -1))
        args = self.dirfd(), self.path(), size
        result = call("readlinkat", args[0], args[1], buffer, size)
        text = shown(result) if result < 0 else repr(buffer.raw[:result])
        return f"readlinkat {self.names(args)} {text}"

    def unfit(self, dirfd: int, path: bytes) -> bool:
        """A device's driver, or a FIFO's reader, would have a say in its opening."""
        buffer = ctypes.create_string_buffer(144)
        if call("newfstatat", dirfd, path, buffer, 0) < 0:
            return False
        return stat.S_IFMT(struct.unpack_from("<I", buffer.raw, 24)[0]) in UNFIT

    def opens(self) -> str:
        if self.rng.random() < 0.1:
            created, mode = self.path(), self.mode()
            if self.unfit(AT_FDCWD, created):
                return "creat of a FIFO or device"
            result = call("creat", created, mode)
            return f"creat {self.names((created, mode))} {self.opened(result)}"
        args = self.dirfd(), self.path(), self.open_flags(), self.mode()
        if self.unfit(args[0], args[1]):
            return "openat of a FIFO or device"
        text = self.names(args)
        return f"openat {text} {self.opened(call('openat', *args))}"

    def opens2(self) -> str:
        flags = self.open_flags()
        mode = self.mode() if flags & os.O_CREAT or self.rng.random() < 0.2 else 0
        resolve = self.rng.choice((0, 0, 1, 2, 4, 8, 0x10, 0x18, 0x14, 0x40))
        how = struct.pack("<QQQQ", flags, mode, resolve, self.rng.random() < 0.1)
        size = self.rng.choice((24, 24, 24, 24, 32, 23, 0))
        args = self.dirfd(), self.path(), flags, mode, resolve, size, how[24]
        if self.unfit(args[0], args[1]):
            return "openat2 of a FIFO or device"
        text = self.names(args)
        return f"openat2 {text} {self.opened(call('openat2', args[0], args[1], how, size))}"

    def opens_fifo(self) -> str:
        """A FIFO of this sequence that is never waited for."""
        path = self.rng.choice(NAMES)
        buffer = ctypes.create_string_buffer(144)
        if call("lstat", path, buffer) < 0 or buffer.raw[25] >> 4 != 1:
            return "no FIFO"
        flags = self.rng.choice((os.O_RDONLY, os.O_WRONLY, os.O_RDWR)) | os.O_NONBLOCK
        flags |= self.rng.choice((0, os.O_CREAT, os.O_EXCL | os.O_CREAT, os.O_TRUNC))
        text = self.names((path, flags))
        return f"open FIFO {text} {self.opened(call('open', path, flags, 0))}"

    def makes(self) -> str:
        kind = self.rng.choice(("mkdir", "mkdirat", "mknod", "mknodat", "symlink", "symlinkat"))
        path = self.name()
        if kind == "mkdir":
            return self.line(kind, path, self.mode())
        if kind == "mkdirat":
            return self.line(kind, self.dirfd(), path, self.mode())
        if kind.startswith("symlink"):
            where = (self.dirfd(), path) if kind == "symlinkat" else (path,)
            return self.line(kind, self.target(), *where)
        types = (0, stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFDIR, stat.S_IFCHR,
                 stat.S_IFBLK, stat.S_IFLNK, 0o170000)  # fmt: skip
        # a character device 0:0 is a whiteout, which anybody may make
        device = self.rng.choice((0, 0x0103))
        args = (path, self.rng.choice(types) | self.mode(), device)
        return self.line(kind, *(args if kind == "mknod" else (self.dirfd(), *args)))

    def target(self) -> bytes:
        """What a symbolic link contains."""
        strange = (b"", b".", b"a/", LONG_BAD, b"x" * 4095, b"x" * 4096, self.here + b"/a")
        return self.rng.choice(strange) if self.rng.random() < 0.1 else self.tame()

    def removes(self) -> str:
        kind = self.rng.choice(("unlink", "rmdir", "unlinkat"))
        if kind != "unlinkat":
            return self.line(kind, self.name())
        return self.line(kind, self.dirfd(), self.name(), self.rng.choice((0, REMOVEDIR, 1)))

    def renames(self) -> str:
        if self.rng.random() < 0.5:
            return self.line("rename", self.name(), self.name())
        flags = self.rng.choice((0, 0, 1, 2, 2, 3, 8))
        return self.line("renameat2", self.dirfd(), self.path(), self.dirfd(), self.path(), flags)

    def links(self) -> str:
        if self.rng.random() < 0.5:
            return self.line("link", self.path(), self.path())
        flags = self.rng.choice((0, FOLLOW, FOLLOW, 0x100))
        return self.line("linkat", self.dirfd(), self.path(), self.dirfd(), self.path(), flags)

    def modes(self) -> str:
        kind = self.rng.choice(("chmod", "fchmod", "fchmodat", "fchmodat2"))
        mode = self.mode()
        if kind == "chmod":
            return self.line(kind, self.path(), mode)
        if kind == "fchmod":
            return self.line(kind, self.fd(), mode)
        args = self.dirfd(), self.path(), mode
        if kind == "fchmodat":
            return self.line(kind, *args)
        return self.line(kind, *args, self.rng.choice((0, NOFOLLOW, EMPTY_PATH, 0x2)))

    def owners(self) -> str:
        kind = self.rng.choice(("chown", "lchown", "fchown", "fchownat"))
        uid, gid = self.ids()
        if kind == "fchown":
            return self.line(kind, self.fd(), uid, gid)
        if kind != "fchownat":
            return self.line(kind, self.path(), uid, gid)
        flags = self.rng.choice((0, NOFOLLOW, EMPTY_PATH, 0x2))
        return self.line(kind, self.dirfd(), self.path(), uid, gid, flags)

    def sizes(self) -> str:
        size = self.rng.choice((0, 1, 5, 100, -1, 5000))
        if self.rng.random() < 0.5:
            return self.line("truncate", self.path(), size)
        return self.line("ftruncate", self.fd(), size)

    def times(self) -> str:
        """Set times and read them back: only those that were given are printed."""
        values = [
            (self.rng.randrange(2**31), self.rng.choice((0, 5, NOW, OMIT, 10**9))) for _ in "am"
        ]
        times = struct.pack("<qqqq", *values[0], *values[1]) if self.rng.random() < 0.8 else None
        flags = self.rng.choice((0, 0, NOFOLLOW, EMPTY_PATH, 0x2))
        path = None if self.rng.random() < 0.2 else self.path()
        dirfd = self.fd() if path is None else self.dirfd()
        result = call("utimensat", dirfd, path, times, flags)
        text = shown(result)
        if result == 0 and path is not None and times is not None:
            buffer = ctypes.create_string_buffer(144)
            if call("newfstatat", dirfd, path, buffer, flags) == 0:
                read = struct.unpack_from("<qqqq", buffer.raw, 72)
                for i, (second, nano) in enumerate(values):
                    text += f" {second} {nano}={read[2 * i : 2 * i + 2] == (second, nano)}"
        return f"utimensat {self.names((dirfd, path, values if times else None, flags))} {text}"

    def attributes(self) -> str:
        """Extended attributes, by path, by link and by descriptor."""
        which = self.rng.choice(("", "l", "f"))
        target: int | bytes = self.fd() if which == "f" else self.path()
        name = self.rng.choice((b"user.x", b"user.y", b"user.", b"", b"nothing", b"trusted.x",
                                b"user." + b"z" * 250, b"user." + b"z" * 251))  # fmt: skip
        kind = self.rng.choice(("set", "get", "list", "remove"))
        buffer = ctypes.create_string_buffer(64)
        if kind == "set":
            value = self.rng.choice((b"", b"1", b"value"))
            flags = self.rng.choice((0, 0, 1, 2, 4, 3))
            return self.line(f"{which}setxattr", target, name, value, len(value), flags)
        if kind == "remove":
            return self.line(f"{which}removexattr", target, name)
        size = self.rng.choice((64, 64, 0, 2))
        args: tuple[int | bytes, ...] = (target,) if kind == "list" else (target, name)
        result = call(f"{which}{kind}xattr", *args, buffer, size)
        text = shown(result) if result < 0 else str(result)
        if result > 0 and size:
            value = buffer.raw[:result]
            text += f" {sorted(value.split(bytes(1))) if kind == 'list' else value!r}"
        return f"{which}{kind}xattr {self.names((*args, size))} {text}"

    def moves(self) -> str:
        """Change the working directory, and tell it."""
        if self.rng.random() < 0.5:
            text = self.line("fchdir", self.fd())
        else:
            text = self.line("chdir", self.path())
        buffer = ctypes.create_string_buffer(4200)
        result = call("getcwd", buffer, self.rng.choice((4200, 4200, 3)))
        cwd = buffer.raw[: result - 1] if result > 0 else shown(result)
        return f"{text} {cwd!r}"

    def lists(self) -> str:
        """Read a directory through a descriptor: its names and types in order of names."""
        fd = self.fd()
        call("lseek", fd, 0, os.SEEK_SET)
        buffer = ctypes.create_string_buffer(self.rng.choice((2048, 2048, 10)))
        found: list[tuple[bytes, int]] = []
        while (result := call("getdents64", fd, buffer, len(buffer))) > 0:
            at = 0
            while at < result:
                length, kind = struct.unpack_from("<HB", buffer.raw, at + 16)
                name = buffer.raw[at + 19 : at + length].split(b"\0", 1)[0]
                found.append((name, kind))
                at += length
        return f"getdents64 {self.names((fd,))} {shown(result)} {sorted(found)}"

    def closes(self) -> str:
        if self.fds and self.rng.random() < 0.5:
            os.close(self.fds.pop(self.rng.randrange(len(self.fds))))
            return "close"
        self.umask = self.rng.choice((0o022, 0o077, 0, 0o027))
        os.umask(self.umask)
        return f"umask {self.umask:o}"

    def writes(self) -> str:
        """A little data, as sizes and set-id bits depend on it."""
        fd = self.fd()
        size = self.rng.choice((1, 10, 3000))
        result = call("write", fd, b"x" * size, size)
        return f"write {self.names((fd, size))} {shown(result) if result < 0 else result}"

    def becomes(self) -> str:
        """Other ids for the calls that follow."""
        if not self.root:
            return "nobody else"
        become(*self.rng.choice(ROOT_IDS))
        return f"ids {os.geteuid()} {os.getegid()} {os.getgroups()}"

    # --- the sequence ----------------------------------------------------------------------------

    def names(self, args: tuple[object, ...]) -> str:
        """Arguments as text: descriptors by their place among the open ones, short paths."""
        text = []
        for arg in args:
            if isinstance(arg, int) and arg in self.fds:
                text.append(f"fd{self.fds.index(arg)}")
            elif isinstance(arg, int):
                text.append(f"{arg:#o}")
            else:
                text.append(repr(arg)[:60])
        return " ".join(text)

    def line(self, name: str, *args: int | bytes | None) -> str:
        """Make a call; its line."""
        return f"{name} {self.names(args)} {shown(call(name, *args))}"

    def stay(self) -> None:
        """Let nothing that leads above `here` be the base of the next call."""
        inside = self.here + b"/"
        try:
            if not (os.getcwdb() + b"/").startswith(inside):
                os.chdir(self.here)
        except FileNotFoundError:  # removed
            os.chdir(self.here)
        for fd in list(self.fds):
            link = os.readlink(b"/proc/self/fd/%d" % fd)
            if not link.startswith(inside) and link != self.here:
                self.fds.remove(fd)
                os.close(fd)

    def begin(self) -> None:
        """Something to work with."""
        for step in self.rng.sample(BEGINNING, self.rng.randrange(len(BEGINNING))):
            self.becomes()
            print(self.line(*step))

    def run(self, calls: int) -> None:
        """The whole sequence."""
        steps: dict[Callable[[], str], int] = {
            self.opens: 10, self.makes: 10, self.renames: 9, self.links: 5, self.removes: 6,
            self.stats: 6, self.statx: 2, self.accesses: 4, self.reads_link: 2, self.opens2: 3,
            self.modes: 6, self.owners: 5, self.sizes: 3, self.times: 4, self.attributes: 5,
            self.moves: 3, self.lists: 3, self.closes: 3, self.writes: 3, self.becomes: 4,
            self.opens_fifo: 2,
        }  # fmt: skip
        self.begin()
        for step in self.rng.choices(list(steps), list(steps.values()), k=calls):
            print(step())
            self.stay()

    def finish(self) -> None:
        """Nothing open, and as who began it."""
        if self.root:
            become(*ROOT_IDS[0])
        os.umask(0o022)
        for fd in self.fds:
            os.close(fd)


Step = tuple[str, *tuple[int | bytes, ...]]
BEGINNING: tuple[Step, ...] = (
    ("mkdir", b"a", 0o755), ("mkdir", b"a/b", 0o777), ("mkdir", b"d", 0o1777),
    ("mkdir", b"a", 0o2777), ("mkdir", b"d/a", 0o700), ("creat", b"b", 0o644),
    ("creat", b"a/c", 0o666), ("creat", b"d/b", 0o4755), ("symlink", b"a", b"c"),
    ("symlink", b"b", b"l"), ("symlink", b"nowhere", b"a/l"), ("symlink", b"m", b"m"),
    ("mknod", b"m", 0o10644, 0), ("link", b"b", b"d/l"), ("mknod", b"d/m", 0o140755, 0),
)  # fmt: skip


def tree(directory: bytes) -> None:
    """Print what is below a directory."""
    for name in sorted(os.listdir(directory)):
        path = directory + b"/" + name
        info = os.lstat(path)
        size = 0 if stat.S_ISDIR(info.st_mode) else info.st_size
        target = os.readlink(path) if stat.S_ISLNK(info.st_mode) else b""
        print(
            f"  {path[:80]!r} {info.st_mode:o} n{info.st_nlink} {info.st_uid}:{info.st_gid}"
            f" s{size} {target[:60]!r} {sorted(os.listxattr(path, follow_symlinks=False))}"
        )
        if stat.S_ISDIR(info.st_mode):
            tree(path)


def main(seed: str, sequences: int, calls: int, root: bool) -> None:
    """Run the sequences, one after the other."""
    top = os.getcwdb()
    for number in range(sequences):
        print(f"sequence {seed} {number}")
        directory = b"%d" % number
        here = directory + GUARD
        os.makedirs(here)
        os.chmod(here, 0o1777 if number % 3 == 0 else 0o777)
        os.chdir(here)
        sequence = Sequence(f"{seed}-{number}", root)
        sequence.run(calls)
        sequence.finish()
        os.chdir(top)
        if not root:
            open_up(directory)
        tree(directory)
        shutil.rmtree(directory)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), "root" in sys.argv[4:])
