# mypy: ignore-errors
"""A file system in memory, written for mfusepy: handles instead of paths, inode numbers, ns times.

Run as `fuse_mfusepy.py MOUNTPOINT`.
"""

import stat
import sys
import time
from errno import ENOENT

import mfusepy as fuse


class Memory(fuse.Operations):
    """One directory. Every operation on an open file gets None for its path."""

    flag_nullpath_ok = True
    flag_nopath = True
    use_ns = True

    def __init__(self):
        self.files = {}
        self.opened = {}
        self.inode = 100

    @fuse.overrides(fuse.Operations)
    def init_with_config(
        self, conn_info: "fuse.fuse_conn_info | None", config_3: "fuse.fuse_config | None"
    ):
        if config_3:
            config_3.nullpath_ok = True
            config_3.use_ino = True

    def found(self, path, fh=None):
        if fh is not None:
            return self.opened[fh]
        if path not in self.files:
            raise fuse.FuseOSError(ENOENT)
        return self.files[path]

    @fuse.overrides(fuse.Operations)
    def getattr(self, path, fh=None):
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2, "st_ino": 31}
        return self.found(path, fh)["attributes"]

    @fuse.overrides(fuse.Operations)
    def create(self, path, mode, fi=None):
        uid, gid, _ = fuse.fuse_get_context()
        now = time.time_ns()
        self.files[path] = {
            "data": b"",
            "flags": fi,
            "attributes": {
                "st_mode": mode, "st_nlink": 1, "st_size": 0, "st_uid": uid, "st_gid": gid,
                "st_ino": self.inode, "st_atime": now, "st_mtime": now, "st_ctime": now,
            },
        }  # fmt: skip
        self.inode += 1
        return self.open(path, 0)

    @fuse.overrides(fuse.Operations)
    def open(self, path, flags):
        number = max(self.opened, default=0) + 1
        self.opened[number] = self.found(path)
        return number

    @fuse.overrides(fuse.Operations)
    def release(self, path, fh):
        del self.opened[fh]
        return 0

    @fuse.overrides(fuse.Operations)
    def read(self, path, size, offset, fh):
        assert path is None
        return self.opened[fh]["data"][offset : offset + size]

    @fuse.overrides(fuse.Operations)
    def write(self, path, data, offset, fh):
        assert path is None
        file = self.opened[fh]
        old = file["data"].ljust(offset, b"\0")
        file["data"] = old[:offset] + data + old[offset + len(data) :]
        file["attributes"]["st_size"] = len(file["data"])
        return len(data)

    @fuse.overrides(fuse.Operations)
    def truncate(self, path, length, fh=None):
        file = self.found(path, fh)
        file["data"] = file["data"][:length].ljust(length, b"\0")
        file["attributes"]["st_size"] = length
        return 0

    @fuse.overrides(fuse.Operations)
    def readdir(self, path, fh):
        assert path is None
        yield ".", stat.S_IFDIR, 0
        yield "..", stat.S_IFDIR, 0
        for name, file in self.files.items():
            yield name[1:], file["attributes"], 0

    @fuse.overrides(fuse.Operations)
    def rename(self, old, new):
        self.files[new] = self.files.pop(old)
        return 0

    @fuse.overrides(fuse.Operations)
    def unlink(self, path):
        del self.files[path]
        return 0

    @fuse.overrides(fuse.Operations)
    def utimens(self, path, times=None):
        attributes = self.found(path)["attributes"]
        attributes["st_atime"], attributes["st_mtime"] = times
        return 0


if __name__ == "__main__":
    fuse.FUSE(Memory(), sys.argv[1], foreground=True, use_ino=True)
