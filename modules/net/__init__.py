"""Network stacks: `host`, `null`, `fabric`, `kernel`; chosen per VM, process and family.

`umvm mount -t net KIND[:ARG] /dev/net/NAME` loads one, `umvm stack /dev/net/NAME CMD…` runs a
command with it. Options of the module: `default=` the stack of processes that have chosen none, as
KIND[:ARG], `host` by default; `abstract=private` makes abstract AF_UNIX names the VM's own;
any other is an option of that stack.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from umvm.routes import FsType, Route, SyscallClass, Verb

from .stacks import Stacks

if TYPE_CHECKING:
    import click

__all__ = ["FILESYSTEMS", "Stacks", "umvm_commands", "umvm_start", "umvm_stop"]

FILESYSTEMS: dict[str, Any] = {"net": None}
"""The name for the manager's search; the factory, which needs the VM, comes with `umvm_start`."""


def umvm_start(vm: Any, options: dict[str, str]) -> list[Route]:
    """Answer for new sockets."""
    given = dict(options)
    stacks = vm.stacks = Stacks(vm, given.pop("default", "host"), given)
    return [
        FsType("net", stacks.mount),
        SyscallClass(("socket",), stacks.socket),
        SyscallClass(("socketpair",), stacks.socketpair),
        Verb("stack", stacks.choose),
        Verb("net", stacks.net),
        *stacks.routes(),
    ]


def umvm_stop(vm: Any) -> None:
    """Close the stacks."""
    vm.stacks.close()
    vm.stacks = None


def umvm_commands() -> Sequence[click.Command]:
    """`umvm stack`, `umvm net`."""
    from .commands import stack
    from .netcommands import net
    from .rules_cli import log

    net.add_command(log)
    return [stack, net]
