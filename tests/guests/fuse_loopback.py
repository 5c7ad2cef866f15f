# mypy: ignore-errors
"""Shows a directory at another place, written for fusepy: os functions as operations.

`__call__` puts the root before every path, as fusepy's users do. Run as
`fuse_loopback.py ROOT MOUNTPOINT [FLAG…]`.
"""

import os
import sys
import threading

from fuse import FUSE, FuseOSError, Operations

STAT = ("blocks", "gid", "ino", "mode", "nlink", "rdev", "size", "uid")
TIMES = ("atime", "ctime", "mtime")
STATVFS = (
    "bavail",
    "bfree",
    "blocks",
    "bsize",
    "favail",
    "ffree",
    "files",
    "flag",
    "frsize",
    "namemax",
)


class Loopback(Operations):
    use_ns = True

    def __init__(self, root):
        self.root = os.path.realpath(root)
        self.lock = threading.Lock()

    def __call__(self, op, path, *args):
        return super().__call__(op, self.root + path, *args)

    chmod = os.chmod
    mkdir = os.mkdir
    mknod = os.mknod
    open = os.open
    readlink = os.readlink
    rmdir = os.rmdir
    unlink = os.unlink

    def access(self, path, amode):
        if not os.access(path, amode):
            raise FuseOSError(13)

    def chown(self, path, uid, gid):
        os.lchown(path, uid, gid)

    def create(self, path, mode):
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, mode)

    def flush(self, path, fh):
        os.fsync(fh)

    def fsync(self, path, datasync, fh):
        (os.fdatasync if datasync else os.fsync)(fh)

    def getattr(self, path, fh=None):
        status = os.lstat(path)
        return {
            **{f"st_{key}": getattr(status, f"st_{key}") for key in STAT},
            **{f"st_{key}": getattr(status, f"st_{key}_ns") for key in TIMES},
        }

    def getxattr(self, path, name, position=0):
        return os.getxattr(path, name, follow_symlinks=False)

    def setxattr(self, path, name, value, options, position=0):
        os.setxattr(path, name, value, options, follow_symlinks=False)

    def listxattr(self, path):
        return os.listxattr(path, follow_symlinks=False)

    def removexattr(self, path, name):
        os.removexattr(path, name, follow_symlinks=False)

    def link(self, target, source):
        os.link(self.root + source, target, follow_symlinks=False)

    def read(self, path, size, offset, fh):
        with self.lock:
            os.lseek(fh, offset, os.SEEK_SET)
            return os.read(fh, size)

    def readdir(self, path, fh):
        return [".", "..", *os.listdir(path)]

    def release(self, path, fh):
        os.close(fh)

    def rename(self, old, new):
        os.rename(old, self.root + new)

    def statfs(self, path):
        status = os.statvfs(path)
        return {f"f_{key}": getattr(status, f"f_{key}") for key in STATVFS}

    def symlink(self, target, source):
        os.symlink(source, target)

    def truncate(self, path, length, fh=None):
        os.truncate(path, length)

    def utimens(self, path, times=None):
        os.utime(path, ns=times, follow_symlinks=False)

    def write(self, path, data, offset, fh):
        with self.lock:
            os.lseek(fh, offset, os.SEEK_SET)
            return os.write(fh, data)


if __name__ == "__main__":
    options = dict.fromkeys(sys.argv[3:], True)
    FUSE(Loopback(sys.argv[1]), sys.argv[2], foreground=True, allow_other=True, **options)
