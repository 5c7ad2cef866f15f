# mypy: ignore-errors
"""Gets and sets `struct fuse_file_info` itself, written for fusepy with raw_fi.

Run as `fuse_raw_fi.py MOUNTPOINT`.
"""

import stat
import sys
from errno import EBADF, ENOENT

from fuse import FUSE, FuseOSError, Operations, fuse_file_info


class RawFi(Operations):
    def __init__(self):
        self.files = {}
        self.paths = {}

    def getattr(self, path, fh=None):
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
        if path not in self.files:
            raise FuseOSError(ENOENT)
        return {"st_mode": stat.S_IFREG | 0o644, "st_nlink": 1, "st_size": len(self.files[path])}

    def handle(self, path, fi):
        assert isinstance(fi, fuse_file_info)
        fi.fh = len(self.paths) + 100
        fi.direct_io = 1
        self.paths[fi.fh] = path
        return 0

    def create(self, path, mode, fi):
        self.files[path] = b""
        return self.handle(path, fi)

    def open(self, path, fi):
        return self.handle(path, fi)

    def name(self, fi):
        if fi.fh not in self.paths:
            raise FuseOSError(EBADF)
        return self.paths[fi.fh]

    def read(self, path, size, offset, fi):
        return self.files[self.name(fi)][offset : offset + size]

    def write(self, path, data, offset, fi):
        old = self.files[self.name(fi)].ljust(offset, b"\0")
        self.files[self.name(fi)] = old[:offset] + data + old[offset + len(data) :]
        return len(data)

    def truncate(self, path, length, fh=None):
        self.files[path] = self.files[path][:length].ljust(length, b"\0")

    def release(self, path, fi):
        del self.paths[fi.fh]

    def opendir(self, path):
        return 7

    def readdir(self, path, fh):
        assert fh == 7, "directories have plain handles"
        return [".", "..", *(name[1:] for name in self.files)]


if __name__ == "__main__":
    FUSE(RawFi(), sys.argv[1], raw_fi=True, foreground=True)
