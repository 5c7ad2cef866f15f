"""The stack `null`: no network, as a kernel that knows only AF_UNIX."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from umvm.errors import UsageError
from umvm.interfaces.network import Made, NetworkStack, refusal

if TYPE_CHECKING:
    from umvm import Request


class NullStack(NetworkStack):
    """No network; AF_UNIX connects processes and no machines. Abstract addresses are the host's."""

    def socket(self, req: Request, family: int, kind: int, protocol: int) -> Made | None:
        """**Errors** EAFNOSUPPORT: any family but AF_UNIX."""
        if family != socket.AF_UNIX:
            raise refusal(family, kind)
        return None

    def pair(self, req: Request, family: int, kind: int, protocol: int) -> None:
        """**Errors** EAFNOSUPPORT, as `socket`."""
        self.socket(req, family, kind, protocol)

    def describe(self) -> str:
        """One line."""
        return "null\n"


def make(vm: Any, argument: str, options: dict[str, str]) -> NullStack:
    """A stack without networks."""
    if argument or options:
        raise UsageError("the network stack null takes no options")
    return NullStack()
