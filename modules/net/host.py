"""The stack `host`: the kernel's own."""

from __future__ import annotations

from typing import Any

from umvm.errors import UsageError
from umvm.interfaces.network import NetworkStack


class HostStack(NetworkStack):
    """The host's network."""

    def describe(self) -> str:
        """One line."""
        return "host\n"


def make(vm: Any, argument: str, options: dict[str, str]) -> HostStack:
    """The host's stack."""
    if argument or options:
        raise UsageError("the network stack host takes no options")
    return HostStack()
