# mypy: ignore-errors
"""Answers an ioctl by adding one to its argument, written for fusepy: `data` is an address.

Run as `fuse_ioctl.py MOUNTPOINT`.
"""

import ctypes
import stat
import struct
import sys
from errno import ENOENT, ENOTTY

from fuse import FUSE, FuseOSError, Operations

INCREMENT = 3 << 30 | 4 << 16 | ord("M") << 8 | 1  # _IOWR('M', 1, uint32_t)


class Ioctl(Operations):
    def getattr(self, path, fh=None):
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
        if path == "/counter":
            return {"st_mode": stat.S_IFREG | 0o644, "st_nlink": 1}
        raise FuseOSError(ENOENT)

    def ioctl(self, path, cmd, arg, fip, flags, data):
        if cmd != INCREMENT:
            raise FuseOSError(ENOTTY)
        (number,) = struct.unpack("<I", ctypes.string_at(data, 4))
        ctypes.memmove(data, struct.pack("<I", number + 1), 4)
        return 0

    def readdir(self, path, fh):
        return [".", "..", "counter"]


if __name__ == "__main__":
    FUSE(Ioctl(), sys.argv[1], foreground=True)
