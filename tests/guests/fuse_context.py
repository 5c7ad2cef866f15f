# mypy: ignore-errors
"""Shows who asks, written for fusepy: files uid, gid and pid. Unused operations are set to None.

Run as `fuse_context.py MOUNTPOINT`.
"""

import stat
import sys
import time
from errno import ENOENT

from fuse import FUSE, FuseOSError, Operations, fuse_get_context

NAMES = ("uid", "gid", "pid")


def content(path):
    return b"%d\n" % fuse_get_context()[NAMES.index(path[1:])]


class Context(Operations):
    access = flush = getxattr = listxattr = open = opendir = release = releasedir = statfs = None

    def getattr(self, path, fh=None):
        if path == "/":
            attributes = {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
        elif path[1:] in NAMES:
            attributes = {"st_mode": stat.S_IFREG | 0o444, "st_size": len(content(path))}
        else:
            raise FuseOSError(ENOENT)
        return dict(attributes, st_atime=time.time(), st_mtime=time.time(), st_ctime=time.time())

    def read(self, path, size, offset, fh):
        return content(path)[offset : offset + size]

    def readdir(self, path, fh):
        return [".", "..", *NAMES]


if __name__ == "__main__":
    FUSE(Context(), sys.argv[1], foreground=True, ro=True, allow_other=True)
