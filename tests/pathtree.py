"""Random trees of directories, files and links, and the kernel's own path walk to compare with."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import stat
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from hypothesis import strategies as st

_libc = ctypes.CDLL(None, use_errno=True)
_OPENAT2 = 437
RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS = 1, 2, 4
RESOLVE_BENEATH, RESOLVE_IN_ROOT = 8, 16
ROOT_MARK = "%"
"""Stands for the absolute path of the tree at the beginning of paths and link targets."""


def openat2(dirfd: int, path: bytes, flags: int, resolve: int) -> int:
    """openat2(2); repeats EAGAIN, which a rename anywhere in the system may cause."""
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, 0, resolve)
    while True:
        fd = _libc.syscall(_OPENAT2, dirfd, ctypes.c_char_p(path), how, len(how))
        if fd >= 0:
            return int(fd)
        error = ctypes.get_errno()
        if error != errno.EAGAIN:
            raise OSError(error, os.strerror(error))


def kernel_walk(base: bytes, path: bytes, follow: bool, resolve: int = 0) -> bytes:
    """Where the kernel gets from directory `base`: the canonical path. OSError."""
    at = os.open(base, os.O_PATH | os.O_DIRECTORY)
    try:
        fd = openat2(at, path, os.O_PATH | (0 if follow else os.O_NOFOLLOW), resolve)
    finally:
        os.close(at)
    try:
        return os.readlink(b"/proc/self/fd/%d" % fd)
    finally:
        os.close(fd)


def host_mounts() -> list[bytes]:
    """The mount points of this process below "/", in the order of mounting (proc(5))."""
    with open("/proc/self/mountinfo", "rb") as file:
        points = [line.split()[4] for line in file]
    return [re.sub(rb"\\(\d{3})", lambda m: bytes([int(m[1], 8)]), p) for p in points if p != b"/"]


class Node(NamedTuple):
    """One thing to make: kind "d", "f" or "l", its path in the tree, a link's target."""

    kind: str
    path: str
    target: str


_name = st.sampled_from(["a", "b", "c", "d"])
_component = st.one_of(_name, _name, _name, st.sampled_from([".", "..", "x", "..."]))


@st.composite
def path_texts(draw: st.DrawFn) -> str:
    """A path as a guest might write it; ROOT_MARK first: absolute."""
    parts = draw(st.lists(_component, min_size=1, max_size=6))
    text = parts[0]
    for part in parts[1:]:
        text += draw(st.sampled_from(["/", "/", "/", "//", "/./"])) + part
    text += draw(st.sampled_from(["", "", "", "/", "//", "/."]))
    return draw(st.sampled_from(["", "", ROOT_MARK + "/", "./"])) + text


_node = st.builds(
    Node,
    st.sampled_from("ddfllll"),
    st.lists(_name, min_size=1, max_size=3).map("/".join),
    path_texts(),
)
trees = st.lists(_node, min_size=1, max_size=14)
paths = st.lists(path_texts(), min_size=1, max_size=8)


@contextmanager
def built(nodes: list[Node], absolute: str | None = None) -> Iterator[bytes]:
    """The tree on the host, two levels below a new directory; what can't be made is left out.

    ROOT_MARK in a link's target becomes `absolute`, or the tree's own path.
    """
    top = tempfile.mkdtemp(prefix="pathwalk-")
    root = os.path.join(top, "t", "real")
    os.makedirs(root)
    try:
        for node in nodes:
            path = os.path.join(root, node.path)
            try:
                if node.kind == "d":
                    os.mkdir(path)
                elif node.kind == "f":
                    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                else:
                    mark = root if absolute is None else absolute
                    os.symlink(node.target.replace(ROOT_MARK, mark), path)
            except OSError:
                pass
        yield os.fsencode(root)
    finally:
        shutil.rmtree(top)


def look_at(path: bytes) -> bytes | int:
    """What a look callback answers for a host file."""
    try:
        mode = os.lstat(path).st_mode
    except OSError as error:
        return -(error.errno or errno.EIO)
    if stat.S_ISLNK(mode):
        return os.readlink(path)
    return -errno.EINVAL if stat.S_ISDIR(mode) else -errno.ENOTDIR
