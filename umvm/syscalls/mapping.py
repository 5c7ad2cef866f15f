"""mmap and msync of served files: the placeholder is filled, then the kernel maps it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from core_accel.lazy import pattern
from umvm.guest.openfile import OpenFile
from umvm.syscalls.context import Reply, Request, enter, handles
from umvm.syscalls.transfer import served

if TYPE_CHECKING:
    from umvm.vm import VirtualMachine

PAGE = 4096
MAP_SHARED, MAP_SHARED_VALIDATE, MAP_TYPE = 1, 3, 0xF
MS_SYNC = 4
_LINE = pattern(rb"^([0-9a-f]+)-([0-9a-f]+) .{3}s [0-9a-f]+ \S+ \d+ +(/.*)$", re.MULTILINE)


@handles("mmap")
def sys_mmap(vm: VirtualMachine, req: Request) -> Reply | None:
    """mmap(2). **Errors** ENOMEM: no room for the content.

    Others (EACCES, ENODEV…) are the kernel's, as the descriptor is what it should be.
    """
    file = served(vm, req, 4)
    if file is None:
        return None
    _, size, _, flags, _, offset = req.args
    if not size or offset % PAGE or not file.readable or file.directory:
        return None  # the kernel refuses it
    enter(vm, req)
    shared = flags & MAP_TYPE in (MAP_SHARED, MAP_SHARED_VALIDATE)
    vm.files.map(file, shared, req.alive)
    return None


@handles("msync")
def sys_msync(vm: VirtualMachine, req: Request) -> Reply | None:
    """msync(2) with MS_SYNC: the pages are written, and the files' data made to last."""
    addr, size, flags, *_ = req.args
    if flags & MS_SYNC and vm.files.shared_nodes():
        enter(vm, req)
        for file in _mapped(vm, req, addr, addr + size):
            file.fsync(False)
    return None


def _mapped(vm: VirtualMachine, req: Request, start: int, end: int) -> set[OpenFile]:
    """The served files with a shared mapping in a part of the guest's memory."""
    with open(f"/proc/{req.tid}/maps", "rb") as maps:
        text = maps.read()
    found = set()
    for low, high, link in _LINE.findall(text):
        if int(low, 16) < end and int(high, 16) > start:
            file = vm.files.named(link)
            if isinstance(file, OpenFile):
                found.add(file)
    return found
