"""The network stack that guests use: `host` is the kernel's, `null` is none but AF_UNIX.

`umvm stack null` sets the stack of all processes of the VM that have no other; `umvm stack null
CMD…` that of a new process and its descendants. Sockets that exist keep working. Option: `default=`
the stack at first, `host` by default. Abstract AF_UNIX addresses are the host's with both.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import Any

import click

from umvm import Reply, Request
from umvm.control import client
from umvm.errors import UsageError
from umvm.interfaces.network import HostStack, NetworkStack, NullStack
from umvm.routes import Route, SyscallClass, Verb

VERB = "stack"
_MARK = "stack"


class Stacks:
    """The stacks of one VM by name, and the choice of each process."""

    def __init__(self, vm: Any, default: str) -> None:
        self._marks = vm.marks
        self._stacks: dict[str, NetworkStack] = {"host": HostStack(), "null": NullStack()}
        self._default = self._known(default)

    def _known(self, name: str) -> str:
        if name not in self._stacks:
            known = ", ".join(sorted(self._stacks))
            raise UsageError(f"there is no network stack {name!r} (there are {known})")
        return name

    def socket(self, req: Request) -> Reply | None:
        """socket(2), socketpair(2)."""
        family, kind, protocol = (_signed(number) for number in req.args[:3])
        name = self._marks.get(req.tid, _MARK) or self._default
        self._stacks[name].socket(family, kind, protocol)
        return None

    def choose(self, args: dict[str, Any]) -> dict[str, Any]:
        """Set the stack of the process `pid`, or of all; tell what there is."""
        name, pid = args.get("name"), args.get("pid")
        if isinstance(name, str):
            if isinstance(pid, int):
                self._marks.set(pid, _MARK, self._known(name))
            else:
                self._default = self._known(name)
        return {"default": self._default, "stacks": sorted(self._stacks)}


def _signed(number: int) -> int:
    number &= 0xFFFFFFFF
    return number - (1 << 32) if number & 0x80000000 else number


def umvm_start(vm: Any, options: dict[str, str]) -> list[Route]:
    """Answer for new sockets."""
    unknown = set(options) - {"default"}
    if unknown:
        raise UsageError(f"net: unknown option {min(unknown)!r} (there is default)")
    stacks = Stacks(vm, options.get("default", "host"))
    return [SyscallClass(("socket", "socketpair"), stacks.socket), Verb(VERB, stacks.choose)]


# --- the command ---------------------------------------------------------------------------------


def umvm_commands() -> Sequence[click.Command]:
    """`umvm stack`."""
    return [stack]


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--vm", "vm_name", metavar="VM", help="The VM (default: the one you are in).")
@click.argument("name", required=False, metavar="[STACK]")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[CMD...]")
def stack(vm_name: str | None, name: str | None, command: tuple[str, ...]) -> int:
    """Show or choose the network stack: of the whole VM, or of CMD and its descendants.

    STACK is `host`, the kernel's, or `null`, none. The module net is loaded if need be.
    """
    path = client.find_vm(vm_name)
    args = {"name": name, "pid": os.getpid() if command else None}
    if all(module["name"] != "net" for module in client.call(path, "lsmod")):
        client.call(path, "insmod", {"spec": "net"})
    answer = client.call(path, VERB, args)
    if name is None:
        for known in answer["stacks"]:
            click.echo(f"{known}{' (default)' * (known == answer['default'])}")
    return _become(vm_name, command) if command else 0


def _become(vm_name: str | None, command: Sequence[str]) -> int:
    """Run CMD in the VM with the mark that this process has got."""
    from umvm.run import enter, is_guest
    from umvm.run_cli import exec_error

    try:
        if not is_guest():
            return enter(vm_name, command)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores
            signal.signal(number, signal.SIG_DFL)
        os.execvp(command[0], list(command))
    except OSError as error:
        error.filename = error.filename or command[0]
        raise exec_error(command[0], error) from error
