"""The interface of a network stack: what answers socket(2) for the processes that use it."""

from __future__ import annotations

import errno
import os
import socket

SOCK_TYPE_MASK = 0xF
SOCK_MAX, AF_MAX = 11, 46
"""Types and families end before these (linux/net.h, linux/socket.h)."""


def refusal(family: int, kind: int) -> OSError:
    """What a kernel that lacks a family says.

    **Source**: __sys_socket() and __sock_create() of net/socket.c, Linux 6.18.
    """
    flags = kind & ~SOCK_TYPE_MASK
    number = errno.EAFNOSUPPORT
    if flags & ~(socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) or (
        0 <= family < AF_MAX and kind & SOCK_TYPE_MASK >= SOCK_MAX
    ):
        number = errno.EINVAL
    return OSError(number, os.strerror(number))


class NetworkStack:
    """A network that processes of a VM can use. Sockets that exist are not affected by a change."""

    def socket(self, family: int, kind: int, protocol: int) -> None:
        """A guest asks for a socket, or a pair; returning lets the kernel make it.

        `kind` includes SOCK_CLOEXEC and SOCK_NONBLOCK. **Errors** EAFNOSUPPORT: the stack has no
        such family; EINVAL; any other of socket(2).
        """


class HostStack(NetworkStack):
    """The kernel's own stack."""


class NullStack(NetworkStack):
    """No network: as a kernel that knows only AF_UNIX, which connects processes and no machines."""

    def socket(self, family: int, kind: int, protocol: int) -> None:
        """**Errors** EAFNOSUPPORT: any family but AF_UNIX."""
        if family != socket.AF_UNIX:
            raise refusal(family, kind)
