"""The stack `host`: the kernel's own, with rules about it if there are options."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from umvm.errors import UsageError
from umvm.interfaces.network import Made, NetworkStack
from umvm.routes import Route, SyscallClass

if TYPE_CHECKING:
    from umvm import Request

    from .rules_calls import Rules

OPTIONS = ("allow", "deny", "dns", "log", "map")
_FREE = frozenset((socket.AF_UNIX, socket.AF_NETLINK, socket.AF_ALG))
"""Families that lead to no network."""
_RAW = frozenset((socket.AF_PACKET, 44))  # 44: AF_XDP
_INET = frozenset((socket.AF_INET, socket.AF_INET6))


class HostStack(NetworkStack):
    """The host's network."""

    def __init__(self, rules: Rules | None = None) -> None:
        self.rules = rules

    def socket(self, req: Request, family: int, kind: int, protocol: int) -> Made | None:
        """**Errors** with rules: EPERM: raw and packet sockets; EAFNOSUPPORT: no IP."""
        if self.rules is not None:
            self._check(family, kind & 0xF, protocol)
        return None

    def pair(self, req: Request, family: int, kind: int, protocol: int) -> None:
        """**Errors** as `socket`."""
        self.socket(req, family, kind, protocol)

    def _check(self, family: int, kind: int, protocol: int) -> None:
        from .rules_calls import protocol_of

        number = 0
        if family in _RAW or (family in _INET and kind in (socket.SOCK_RAW, 10)):  # SOCK_PACKET
            number = errno.EPERM
        elif family in _INET and kind in (1, 2, 5) and not protocol_of(kind, protocol):
            number = errno.EPROTONOSUPPORT
        elif family not in _INET | _FREE:
            number = errno.EAFNOSUPPORT
        if number:
            raise OSError(number, os.strerror(number))

    def routes(self) -> Sequence[Route]:
        """The calls that rules are about, of all processes whatever stack they use."""
        rules = self.rules
        if rules is None:
            return ()
        calls = [("connect", rules.connect), ("bind", rules.bind), ("sendto", rules.sendto)]
        calls += [("sendmsg", rules.sendmsg), ("sendmmsg", rules.sendmmsg)]
        if rules.policy.ports:
            calls += [("getsockname", rules.getsockname), ("getpeername", rules.getpeername)]
        return [SyscallClass((name,), handler) for name, handler in calls]

    def describe(self) -> str:
        """The rules."""
        if self.rules is None:
            return "host\n"
        policy = self.rules.policy
        lines = ["host", *(f"deny {rule.text}" for rule in policy.deny)]
        lines += [f"allow {rule.text}" for rule in policy.allow]
        lines += [f"map {inner}:{outer} ({count})" for inner, outer, count in policy.ports]
        return "\n".join(lines) + "\n"

    def net_log(self) -> list[dict[str, Any]]:
        """What was denied."""
        return self.rules.denials.last() if self.rules is not None else []

    def close(self) -> None:
        """The VM ends."""
        if self.rules is not None:
            self.rules.close()


def make(vm: Any, argument: str, options: dict[str, str]) -> HostStack:
    """The host's stack."""
    unknown = set(options) - set(OPTIONS)
    if argument or unknown:
        bad = argument or min(unknown)
        raise UsageError(f"host: unknown option {bad!r} (there are {', '.join(OPTIONS)})")
    if not options:
        return HostStack()
    from .rules_calls import Rules

    try:
        return HostStack(Rules(vm, options))
    except ValueError as error:
        raise UsageError(f"host: {error}") from error
