"""Whoever opens a file below a directory waits: umvm insmod ./slowly.py below=/srv seconds=0.5."""

import threading

from umvm import Reply, SyscallClass


def umvm_start(vm, options):
    below = options["below"].encode() + b"/"
    seconds = float(options.get("seconds", "1"))

    def openat(request):
        if not request.string(request.args[1]).startswith(below):
            return None
        timer = threading.Timer(seconds, request.answer, [Reply.run()])
        timer.start()
        return Reply.later()

    return [SyscallClass(("openat",), openat)]
