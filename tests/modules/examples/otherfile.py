"""Whoever opens one path gets another: umvm insmod ./otherfile.py /etc/motd=/tmp/mine."""

from umvm import SyscallClass


def umvm_start(vm, options):
    paths = {path.encode(): other.encode() for path, other in options.items()}

    def openat(request):
        other = paths.get(request.string(request.args[1]))
        return request.rewrite({1: other}) if other is not None else None

    return [SyscallClass(("openat",), openat)]
