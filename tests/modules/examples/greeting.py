"""A file system with one file: umvm mount -t greeting none /mnt -o text=hey."""

import errno
import stat

from umvm import FileSystem, FsType
from umvm.interfaces.filesystem import Attr, Entry


class Greeting(FileSystem):
    def __init__(self, text):
        self.text = text.encode() + b"\n"

    def getattr(self, path, fh=None):
        if path == b"/":
            return Attr(stat.S_IFDIR | 0o755, nlink=2)
        if path == b"/hello":
            return Attr(stat.S_IFREG | 0o444, size=len(self.text))
        raise OSError(errno.ENOENT, "no such file")

    def readdir(self, path, fh):
        return [Entry(b"hello")]

    def read(self, path, fh, size, offset):
        return self.text[offset : offset + size]


def umvm_start(vm, options):
    return [FsType("greeting", lambda source, options: Greeting(options.get("text", "hi")))]
