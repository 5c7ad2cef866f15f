# mypy: ignore-errors
"""A large directory given in batches, written for mfusepy: readdir with offsets, two ways.

Run as `fuse_offsets.py resumed|restarted MOUNTPOINT`.
"""

import stat
import sys
from errno import ENOENT

import mfusepy as fuse

COUNT, BATCH = 1000, 64
NAMES = [".", "..", *(f"{number:04d}" for number in range(COUNT))]


class Numbers(fuse.Operations):
    use_ns = True

    def __init__(self):
        self.asked = []

    def getattr(self, path, fh=None):
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
        if path[1:] in NAMES:
            return {"st_mode": stat.S_IFREG | 0o444, "st_nlink": 1}
        raise fuse.FuseOSError(ENOENT)


class Resumed(Numbers):
    """Goes on where it is told to; an offset is that of the next entry."""

    def readdir_with_offset(self, path, offset, fh):
        self.asked.append(offset)
        for number in range(offset, min(offset + BATCH, len(NAMES))):
            yield NAMES[number], stat.S_IFREG | 0o444, number + 1


class Restarted(Numbers):
    """Gives offsets and can't be told any."""

    def readdir(self, path, fh):
        self.asked.append(0)
        for number, name in enumerate(NAMES):
            yield name, {"st_mode": stat.S_IFREG | 0o444}, number + 1


if __name__ == "__main__":
    kind = Resumed if sys.argv[1] == "resumed" else Restarted
    fuse.FUSE(kind(), sys.argv[2], foreground=True)
