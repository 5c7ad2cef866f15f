"""A file system for fusepy, as it would be written without umvm: one file that greets.

umvm mount -t fusepy docs/examples/hello.py:Hello /mnt -o name=world
"""

import errno
import stat
import time

import fuse


class Hello(fuse.Operations):
    def __init__(self, name="world"):
        self.text = f"Hello, {name}!\n".encode()
        self.made = time.time()

    def getattr(self, path, fh=None):
        times = {"st_atime": self.made, "st_mtime": self.made, "st_ctime": self.made}
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2, **times}
        if path == "/hello":
            size = len(self.text)
            return {"st_mode": stat.S_IFREG | 0o444, "st_nlink": 1, "st_size": size, **times}
        raise fuse.FuseOSError(errno.ENOENT)

    def readdir(self, path, fh):
        return [".", "..", "hello"]

    def read(self, path, size, offset, fh):
        return self.text[offset : offset + size]
