# mypy: ignore-errors
"""A file system in memory, written for fusepy: directories, links, attributes, logging.

Run as `fuse_memory.py MOUNTPOINT [OPTION[=VALUE]…]`; options are FUSE()'s keywords.
"""

import logging
import os
import stat
import sys
import time
from errno import EEXIST, ENODATA, ENOENT, ENOTEMPTY

from fuse import FUSE, FuseOSError, LoggingMixIn, Operations, fuse_exit, fuse_get_context


class Node:
    """A file, directory or link."""

    def __init__(self, mode, owner):
        self.mode, (self.uid, self.gid) = mode, owner
        self.times = [time.time()] * 3
        self.links = 2 if stat.S_ISDIR(mode) else 1
        self.data = bytearray()
        self.attributes = {}


class Memory(LoggingMixIn, Operations):
    """Everything by path; handles are only counted."""

    def __init__(self, greeting="", count: int = 0):
        self.nodes = {"/": Node(stat.S_IFDIR | 0o755, (os.getuid(), os.getgid()))}
        self.opened = 0
        for number in range(count):
            self.create(f"/file{number}", stat.S_IFREG | 0o644)
        if greeting:
            self.create("/greeting", stat.S_IFREG | 0o644)
            self.nodes["/greeting"].data += greeting.encode()

    def node(self, path):
        try:
            return self.nodes[path]
        except KeyError:
            raise FuseOSError(ENOENT) from None

    def make(self, path, mode):
        if path in self.nodes:
            raise FuseOSError(EEXIST)
        self.nodes[path] = Node(mode, fuse_get_context()[:2])
        return self.nodes[path]

    def below(self, path):
        prefix = path.rstrip("/") + "/"
        return [name for name in self.nodes if name.startswith(prefix) and name != "/"]

    def destroy(self, path):
        if os.environ.get("FUSE_TEST_LOG"):
            with open(os.environ["FUSE_TEST_LOG"], "a") as file:
                file.write(f"destroy {path}\n")

    def chmod(self, path, mode):
        node = self.node(path)
        node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(mode)
        node.times[2] = time.time()

    def chown(self, path, uid, gid):
        node = self.node(path)
        if uid != -1:
            node.uid = uid
        if gid != -1:
            node.gid = gid

    def create(self, path, mode):
        self.make(path, mode)
        return self.open(path, 0)

    def getattr(self, path, fh=None):
        node = self.node(path)
        return {
            "st_mode": node.mode,
            "st_nlink": node.links,
            "st_uid": node.uid,
            "st_gid": node.gid,
            "st_size": len(node.data),
            "st_atime": node.times[0],
            "st_mtime": node.times[1],
            "st_ctime": node.times[2],
        }

    def getxattr(self, path, name, position=0):
        try:
            return self.node(path).attributes[name]
        except KeyError:
            raise FuseOSError(ENODATA) from None

    def setxattr(self, path, name, value, options, position=0):
        if name == "user.exit":
            fuse_exit()
        if name == "user.crash":
            sys.exit(7)
        self.node(path).attributes[name] = value

    def listxattr(self, path):
        return self.node(path).attributes.keys()

    def removexattr(self, path, name):
        if self.node(path).attributes.pop(name, None) is None:
            raise FuseOSError(ENODATA)

    def link(self, target, source):
        self.nodes[target] = self.node(source)
        self.nodes[target].links += 1

    def mkdir(self, path, mode):
        self.make(path, stat.S_IFDIR | mode)

    def mknod(self, path, mode, dev):
        self.make(path, mode)

    def open(self, path, flags):
        self.opened += 1
        return self.opened

    def read(self, path, size, offset, fh):
        return bytes(self.node(path).data[offset : offset + size])

    def readdir(self, path, fh):
        start = len(path.rstrip("/")) + 1
        yield from (".", "..")
        for name in self.below(path):
            if "/" not in name[start:]:
                yield name[start:]

    def readlink(self, path):
        return self.node(path).data.decode()

    def rename(self, old, new):
        self.nodes[new] = self.nodes.pop(old)
        for name in self.below(old):
            self.nodes[new + name[len(old) :]] = self.nodes.pop(name)

    def rmdir(self, path):
        if self.below(path):
            raise FuseOSError(ENOTEMPTY)
        del self.nodes[path]

    def statfs(self, path):
        return {"f_bsize": 512, "f_blocks": 4096, "f_bavail": 2048}

    def symlink(self, target, source):
        node = self.make(target, stat.S_IFLNK | 0o777)
        node.data += source.encode()

    def truncate(self, path, length, fh=None):
        data = self.node(path).data
        del data[length:]
        data.extend(bytes(length - len(data)))

    def unlink(self, path):
        self.nodes.pop(path).links -= 1

    def utimens(self, path, times=None):
        self.node(path).times[:2] = times or (time.time(), time.time())

    def write(self, path, data, offset, fh):
        node = self.node(path)
        node.data.extend(bytes(max(0, offset - len(node.data))))
        node.data[offset : offset + len(data)] = data
        node.times[1] = time.time()
        return len(data)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    options = {}
    for word in sys.argv[2:]:
        key, given, value = word.partition("=")
        options[key] = value if given else True
    FUSE(Memory(), sys.argv[1], **options)
    print("unmounted")
