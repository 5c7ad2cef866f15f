"""Writes the path of every openat(2) to a file: umvm insmod ./openlog.py file=/tmp/opened."""

from umvm import SyscallClass


class OpenLog:
    def __init__(self, path):
        self.file = open(path, "ab", buffering=0)

    def openat(self, request):
        self.file.write(request.string(request.args[1]) + b"\n")  # no reply: the call goes on


def umvm_start(vm, options):
    global log
    log = OpenLog(options["file"])
    return [SyscallClass(("openat",), log.openat)]


def umvm_stop(vm):
    log.file.close()
