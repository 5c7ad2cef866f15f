"""`umvm stack`: show or choose network stacks."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

import click

from umvm.control import client

from .stacks import FAMILIES


def _family_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for family in reversed(FAMILIES):
        text = f"The stack for {family} alone."
        function = click.option(f"--{family}", family, metavar="STACK", help=text)(function)
    return function


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--vm", "vm_name", metavar="VM", help="The VM (default: the one you are in).")
@_family_options
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[STACK] [CMD...]")
def stack(vm_name: str | None, words: tuple[str, ...], **families: str | None) -> int:
    """Show or choose the network stack: of the whole VM, or of CMD and its descendants.

    STACK is a path that a stack is mounted on (`umvm mount -t net KIND /dev/net/NAME`), or one
    that is always there: `host`, the kernel's; `null`, none; the VM's first one. With stacks for
    single families STACK may be left out. The module net is loaded if need be.
    """
    path = client.find_vm(vm_name)
    if all(module["name"] != "net" for module in client.call(path, "lsmod")):
        client.call(path, "insmod", {"spec": "net"})
    chosen = {family: _absolute(name) for family, name in families.items() if name}
    known = client.call(path, "stack", {})
    name: str | None = _absolute(words[0]) if words else None
    command = list(words[1:])
    if chosen and name is not None and name not in known["stacks"]:
        name, command = None, list(words)
    if chosen and not command:
        raise click.UsageError("a stack for one family needs a command")
    if name is None and not chosen:
        for each in known["stacks"]:
            click.echo(f"{each}{' (default)' * (each == known['default'])}")
        return 0
    pid = os.getpid() if command else None
    client.call(path, "stack", {"name": name, "pid": pid, "families": chosen})
    return _become(vm_name, command) if command else 0


def _absolute(name: str) -> str:
    """Paths are taken from the working directory; names have no slash."""
    return os.path.abspath(name) if "/" in name else name


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
