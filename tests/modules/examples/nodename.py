"""Answers uname(2) with another node name: umvm insmod ./nodename.py name=mars."""

import os

from umvm import Reply, SyscallClass


def umvm_start(vm, options):
    def uname(request):
        system, _, release, version, machine = os.uname()
        fields = (system, options.get("name", "mars"), release, version, machine, "(none)")
        data = b"".join(field.encode().ljust(65, b"\0") for field in fields)
        request.write(request.args[0], data)
        return Reply.value(0)

    return [SyscallClass(("uname",), uname)]
