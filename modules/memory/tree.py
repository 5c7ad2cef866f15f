"""Names and inodes: look-up, making, linking, moving and removing, under one lock."""

from __future__ import annotations

import errno
import itertools
import os
import stat
import threading

from umvm.interfaces.filesystem import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    FileHandle,
    FileSystem,
    caller,
)

from .nodes import UNLIMITED, Directory, Limits, Node, Regular, Symlink

NAME_MAX = 255
_PATH_MAX = 4096
_SPECIAL = (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)


def no(number: int) -> OSError:
    """An OSError with the given errno, to be raised."""
    return OSError(number, os.strerror(number))


class Tree(FileSystem):
    """The half of the memory file system that deals in names."""

    def __init__(
        self, mode: int = 0o1777, uid: int = 0, gid: int = 0, limits: Limits = UNLIMITED
    ) -> None:
        self._lock = threading.Lock()
        self._limits = limits
        self._used_pages = 0
        self._used_inodes = 1
        self._inos = itertools.count(2)
        self._root = Directory(1, stat.S_IFDIR | mode, uid, gid)
        # Directories by path, so that a look-up is two steps however deep the path. Files come, go
        # and move without touching it; removing a directory takes its entry, moving one takes all.
        self._dirs = {b"": self._root}

    # --- look-up -------------------------------------------------------------------------------

    def _find(self, path: bytes) -> Node:
        """The inode of a path. **Errors** ENOENT, ENOTDIR, ENAMETOOLONG."""
        head, _, name = path.rpartition(b"/")
        try:
            return self._dirs[head].children[name]
        except KeyError:
            pass
        if not name:
            return self._root
        node = self._directory(head).children.get(name)
        if node is None:
            raise no(errno.ENOENT if len(name) <= NAME_MAX else errno.ENAMETOOLONG)
        return node

    def _directory(self, head: bytes) -> Directory:
        """The directory of a path without the last slash; empty for the root."""
        found = self._dirs.get(head)
        if found is not None:
            return found
        at: Node = self._root
        for name in head.split(b"/")[1:]:
            if not isinstance(at, Directory):
                raise no(errno.ENOTDIR)
            child = at.children.get(name)
            if child is None:
                raise no(errno.ENOENT if len(name) <= NAME_MAX else errno.ENAMETOOLONG)
            at = child
        if not isinstance(at, Directory):
            raise no(errno.ENOTDIR)
        self._dirs[head] = at
        return at

    def _slot(self, path: bytes, at_root: int) -> tuple[Directory, bytes]:
        """The directory and the name of a path that is to be made, moved or removed."""
        head, _, name = path.rpartition(b"/")
        if not name:
            raise no(at_root)
        directory = self._directory(head)
        if len(name) > NAME_MAX:
            raise no(errno.ENAMETOOLONG)
        return directory, name

    def _free_slot(self, path: bytes) -> tuple[Directory, bytes]:
        directory, name = self._slot(path, errno.EEXIST)
        if name in directory.children:
            raise no(errno.EEXIST)
        return directory, name

    def _taken_slot(self, path: bytes, at_root: int) -> tuple[Directory, bytes, Node]:
        directory, name = self._slot(path, at_root)
        node = directory.children.get(name)
        if node is None:
            raise no(errno.ENOENT)
        return directory, name, node

    def _node(self, path: bytes, fh: FileHandle) -> Node:
        if fh is None:
            return self._find(path)
        node: Node = fh.node
        return node

    def _regular(self, path: bytes, fh: FileHandle) -> Regular:
        node = self._node(path, fh)
        if isinstance(node, Regular):
            return node
        raise no(errno.EISDIR if isinstance(node, Directory) else errno.EINVAL)

    # --- inodes --------------------------------------------------------------------------------

    def _owner(self, directory: Directory, mode: int) -> tuple[int, int, int]:
        """(mode, uid, gid) of a new inode.

        **Source**: inode_init_owner() and mode_strip_sgid() of fs/inode.c.
        """
        who = caller()
        if not directory.mode & stat.S_ISGID:
            return mode, who.uid, who.gid
        gid = directory.gid
        if stat.S_ISDIR(mode):
            mode |= stat.S_ISGID
        elif mode & 0o2010 == 0o2010 and who.uid and gid != who.gid and gid not in who.groups:
            mode &= ~stat.S_ISGID
        return mode, who.uid, gid

    def _count_inode(self) -> int:
        if 0 < self._limits.inodes <= self._used_inodes:
            raise no(errno.ENOSPC)
        self._used_inodes += 1
        return next(self._inos)

    def _check_links(self, node: Node) -> None:
        if 0 < self._limits.links <= node.nlink:
            raise no(errno.EMLINK)

    def _enter(self, directory: Directory, name: bytes, node: Node) -> None:
        directory.children[name] = node
        directory.modified()

    def _make(self, path: bytes, mode: int, rdev: int = 0) -> Node:
        """A new file that is neither directory nor symbolic link."""
        directory, name = self._free_slot(path)
        mode, uid, gid = self._owner(directory, mode)
        kind = Regular if stat.S_ISREG(mode) else Node
        node = kind(self._count_inode(), mode, uid, gid)
        node.rdev = rdev
        self._enter(directory, name, node)
        return node

    def _dropped(self, node: Node) -> None:
        """A name or a handle is gone; so is the inode, if that was the last."""
        if node.nlink or node.opens:
            return
        self._used_inodes -= 1
        if isinstance(node, Regular) and node.content is not None:
            self._used_pages -= node.content.allocated
            node.content = None

    def _unnamed(self, node: Node) -> None:
        """A name of an inode was removed or replaced."""
        node.nlink = 0 if isinstance(node, Directory) else node.nlink - 1
        node.changed()
        self._dropped(node)

    # --- names ---------------------------------------------------------------------------------

    def readlink(self, path: bytes) -> bytes:
        with self._lock:
            node = self._find(path)
            if not isinstance(node, Symlink):
                raise no(errno.EINVAL)
            node.accessed()
            return node.target

    def mknod(self, path: bytes, mode: int, rdev: int) -> None:
        kind = stat.S_IFMT(mode) or stat.S_IFREG
        with self._lock:
            if kind == stat.S_IFREG:
                self._make(path, kind | (mode & 0o7777))
            elif kind in _SPECIAL:
                device = kind in (stat.S_IFCHR, stat.S_IFBLK)
                self._make(path, mode, rdev if device else 0)
            else:
                raise no(errno.EPERM if kind == stat.S_IFDIR else errno.EINVAL)

    def mkdir(self, path: bytes, mode: int) -> None:
        with self._lock:
            parent, name = self._free_slot(path)
            self._check_links(parent)
            mode, uid, gid = self._owner(parent, stat.S_IFDIR | (mode & 0o7777))
            self._enter(parent, name, Directory(self._count_inode(), mode, uid, gid))
            parent.nlink += 1

    def symlink(self, target: bytes, path: bytes) -> None:
        with self._lock:
            if not target:
                raise no(errno.ENOENT)
            if len(target) >= _PATH_MAX:
                raise no(errno.ENAMETOOLONG)
            parent, name = self._free_slot(path)
            _, uid, gid = self._owner(parent, stat.S_IFLNK | 0o777)
            self._enter(parent, name, Symlink(self._count_inode(), uid, gid, target))

    def link(self, old: bytes, new: bytes) -> None:
        with self._lock:
            node = self._find(old)
            parent, name = self._free_slot(new)
            if isinstance(node, Directory):
                raise no(errno.EPERM)
            self._check_links(node)
            node.nlink += 1
            node.changed()
            self._enter(parent, name, node)

    def unlink(self, path: bytes) -> None:
        with self._lock:
            parent, name, node = self._taken_slot(path, errno.EISDIR)
            if isinstance(node, Directory):
                raise no(errno.EISDIR)
            del parent.children[name]
            parent.modified()
            self._unnamed(node)

    def rmdir(self, path: bytes) -> None:
        with self._lock:
            parent, name, node = self._taken_slot(path, errno.EBUSY)
            if not isinstance(node, Directory):
                raise no(errno.ENOTDIR)
            if node.children:
                raise no(errno.ENOTEMPTY)
            del parent.children[name]
            self._dirs.pop(path, None)
            parent.nlink -= 1
            parent.modified()
            self._unnamed(node)

    def rename(self, old: bytes, new: bytes, flags: int = 0) -> None:
        """As the interface says. **Source**: rename(2), vfs_rename() of fs/namei.c."""
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            raise no(errno.EINVAL)
        exchange = flags == RENAME_EXCHANGE
        with self._lock:
            source, name, node = self._taken_slot(old, errno.EBUSY)
            parent, new_name = self._slot(new, errno.EBUSY)
            target = parent.children.get(new_name)
            if target is None and exchange:
                raise no(errno.ENOENT)
            if target is not None and flags == RENAME_NOREPLACE:
                raise no(errno.EEXIST)
            if new.startswith(old + b"/"):
                raise no(errno.EINVAL)
            if old.startswith(new + b"/"):
                raise no(errno.EINVAL if exchange else errno.ENOTEMPTY)
            if node is target:
                return
            is_dir, was_dir = isinstance(node, Directory), isinstance(target, Directory)
            if target is not None and not exchange:
                self._check_replace(is_dir, target)
            to_parent = is_dir - was_dir  # directories that the new parent gains
            if source is not parent:
                if to_parent > 0:
                    self._check_links(parent)
                if exchange and to_parent < 0:
                    self._check_links(source)
            if is_dir or was_dir:
                self._dirs = {b"": self._root}
            if exchange and target is not None:
                source.children[name] = target
                target.changed()
                source.nlink -= to_parent
            else:
                del source.children[name]
                source.nlink -= is_dir
                if target is not None:
                    self._unnamed(target)
            parent.children[new_name] = node
            parent.nlink += to_parent
            node.changed()
            source.modified()
            parent.modified()

    @staticmethod
    def _check_replace(is_dir: bool, target: Node) -> None:
        if not isinstance(target, Directory):
            if is_dir:
                raise no(errno.ENOTDIR)
        elif not is_dir:
            raise no(errno.EISDIR)
        elif target.children:
            raise no(errno.ENOTEMPTY)
