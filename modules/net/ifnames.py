"""Interfaces asked about by ioctl on AF_UNIX sockets, which know those of the host only.

if_nametoindex(3) and if_indextoname(3) of the C library open one for that.
**Source**: netdevice(7).
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from umvm import Reply, Request
from umvm.interfaces.network import NetworkStack
from umvm.routes import SyscallClass
from umvm.syscalls.context import signed
from umvm.syscalls.sockets import unix_copy

QUESTIONS = frozenset(
    (0x8910, 0x8913, 0x8915, 0x8917, 0x8919, 0x891B, 0x891D, 0x8921, 0x8927, 0x8933, 0x8942)
)
"""SIOCGIFNAME, FLAGS, ADDR, DSTADDR, BRDADDR, NETMASK, METRIC, MTU, HWADDR, INDEX, TXQLEN."""
IFREQ = 40
"""Bytes of struct ifreq."""


def route(vm: Any, stack: NetworkStack, answer: Callable[[Request], Reply | None]) -> SyscallClass:
    """Let `answer` answer such questions of processes that use a stack for IPv4."""

    def ioctl(req: Request) -> Reply | None:
        if req.args[1] & 0xFFFFFFFF not in QUESTIONS:
            return None
        if vm.stacks is None or vm.stacks.of(req.tid, socket.AF_INET) is not stack:
            return None
        fd = signed(req.args[0])
        return answer(req) if vm.sockets.of(req.tid, fd) is None and _is_unix(req, fd) else None

    ioctl.of_stack = True  # type: ignore[attr-defined]  # not asked about sockets of a stack
    return SyscallClass(("ioctl",), ioctl)


def _is_unix(req: Request, fd: int) -> bool:
    copy = unix_copy(req, fd)
    if copy is not None:
        copy.close()
    return copy is not None
