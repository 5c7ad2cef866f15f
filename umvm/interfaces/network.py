"""The interface of network stacks: what answers socket(2) for the processes that use one.

A stack lets the kernel make a socket (`socket` returns None), or hands out a descriptor of its own
making (`Made`). With a `Socket` object beside it, the calls on that socket that carry addresses or
options are asked about, wherever it gets by fork, dup or SCM_RIGHTS; read, write, send and recv
without an address, poll and close stay the kernel's and are never seen.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from core_accel.request import Reply, Request
    from umvm.routes import Route

SOCK_TYPE_MASK = 0xF
SOCK_MAX, AF_MAX = 11, 46
"""Types and families end before these (linux/net.h, linux/socket.h)."""
SOCK_FLAGS = socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK


def refusal(family: int, kind: int) -> OSError:
    """What a kernel that lacks a family says.

    **Source**: __sys_socket() and __sock_create() of net/socket.c, Linux 6.18.
    """
    flags = kind & ~SOCK_TYPE_MASK
    number = errno.EAFNOSUPPORT
    if flags & ~SOCK_FLAGS or (0 <= family < AF_MAX and kind & SOCK_TYPE_MASK >= SOCK_MAX):
        number = errno.EINVAL
    return OSError(number, os.strerror(number))


class Socket:
    """One socket that a stack answers for, whatever descriptors lead to it.

    Each method is asked about one system call; its arguments are in `req.args`, the descriptor is
    the first. None: the kernel runs the call. OSError: the guest gets that.
    """

    table = "unix"
    """The kind of the kernel's socket: where /proc/net lists it."""

    def __init__(self, stack: NetworkStack, family: int, kind: int, protocol: int) -> None:
        """`kind` is SOCK_STREAM, SOCK_DGRAM…, without flags."""
        self.stack, self.family, self.kind, self.protocol = stack, family, kind, protocol

    def entered(self, inode: int) -> None:
        """It is known from now on, by its inode number."""

    def bind(self, req: Request) -> Reply | None:
        """bind(2)."""
        return None

    def connect(self, req: Request) -> Reply | None:
        """connect(2)."""
        return None

    def listen(self, req: Request) -> Reply | None:
        """listen(2)."""
        return None

    def accept(self, req: Request, flags: int) -> Reply | None:
        """accept(2), accept4(2)."""
        return None

    def getsockname(self, req: Request) -> Reply | None:
        """getsockname(2)."""
        return None

    def getpeername(self, req: Request) -> Reply | None:
        """getpeername(2)."""
        return None

    def sendto(self, req: Request) -> Reply | None:
        """sendto(2) with an address."""
        return None

    def sendmsg(self, req: Request) -> Reply | None:
        """sendmsg(2)."""
        return None

    def sendmmsg(self, req: Request) -> Reply | None:
        """sendmmsg(2)."""
        return None

    def recvfrom(self, req: Request) -> Reply | None:
        """recvfrom(2) with room for an address."""
        return None

    def recvmsg(self, req: Request) -> Reply | None:
        """recvmsg(2)."""
        return None

    def recvmmsg(self, req: Request) -> Reply | None:
        """recvmmsg(2)."""
        return None

    def getsockopt(self, req: Request) -> Reply | None:
        """getsockopt(2)."""
        return None

    def setsockopt(self, req: Request) -> Reply | None:
        """setsockopt(2)."""
        return None

    def shutdown(self, req: Request) -> Reply | None:
        """shutdown(2)."""
        return None

    def ioctl(self, req: Request) -> Reply | None:
        """ioctl(2)."""
        return None

    def gone(self) -> None:
        """No process has it any more. Noticed late: when room or an address is needed."""


class Made(NamedTuple):
    """A socket of a stack's own making: `fd` is given away. Without `socket` nothing is asked."""

    fd: int
    socket: Socket | None = None


class NetworkStack:
    """A network that processes of a VM can use. Sockets that exist are not affected by a change."""

    def socket(self, req: Request, family: int, kind: int, protocol: int) -> Made | None:
        """socket(2): None lets the kernel make it.

        `kind` includes SOCK_CLOEXEC and SOCK_NONBLOCK; SOCK_CLOEXEC is also obeyed by the caller of
        this. **Errors** EAFNOSUPPORT: the stack has no such family; EINVAL; any other of socket(2).
        """
        return None

    def pair(self, req: Request, family: int, kind: int, protocol: int) -> None:
        """socketpair(2), which the kernel then runs. **Errors** as `socket`."""

    def routes(self) -> Sequence[Route]:
        """What else it answers for while it is the VM's first stack, in all processes."""
        return ()

    def describe(self) -> str:
        """What reading the stack's file shows: lines of text."""
        return ""

    def hosts(self) -> str | None:
        """The /etc/hosts of processes that use this stack; None: the host's."""
        return None

    def resolv_conf(self) -> str | None:
        """Their /etc/resolv.conf; None: the host's."""
        return None

    def proc_net(self, name: str) -> bytes | None:
        """The text of a file of /proc/net; None: it is as the host's."""
        return None

    def close(self) -> None:
        """The stack is unloaded; it has no open sockets, or the VM ends."""
