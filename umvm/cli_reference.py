"""Makes docs/cli.md from the commands: `python3 -m umvm.cli_reference > docs/cli.md`."""

from __future__ import annotations

import inspect
import sys

import click

from umvm.__main__ import PROGRAM
from umvm.cli import EXIT_STATUS, cli

_HEAD = """\
# Commands

Made from `umvm/cli.py` and `umvm/run_cli.py` by `./dev docs`; don't edit.

Commands other than `run` and `exec` speak to a running VM over its control socket, from inside the
VM or from outside.
"""


def _usage(name: str, command: click.Command) -> str:
    words = [PROGRAM, name]
    words += ["[OPTION...]"] * any(isinstance(p, click.Option) for p in command.params)
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            continue
        words.append(parameter.metavar or (parameter.name or "").upper())
    return " ".join(words)


def _option(option: click.Option) -> str:
    names = ", ".join(f"`{name}`" for name in option.opts)
    value = "" if option.is_flag or option.count else f" {option.metavar or 'TEXT'}"
    again = " May be repeated." if option.multiple else ""
    return f"| {names}{value} | {option.help}{again} |"


def _section(name: str, command: click.Command) -> str:
    lines = [f"## {PROGRAM} {name}", "", "    " + _usage(name, command), ""]
    lines.append(inspect.cleandoc(command.help or ""))
    options = [_option(p) for p in command.params if isinstance(p, click.Option)]
    if options:
        lines += ["", "| option | meaning |", "|---|---|", *options]
    return "\n".join(lines) + "\n"


def markdown() -> str:
    """The whole document."""
    status = ["## Exit status\n", "| status | meaning |", "|---|---|"]
    status += [f"| {number} | {meaning} |" for number, meaning in EXIT_STATUS]
    sections = [_section(name, command) for name, command in sorted(cli.commands.items())]
    return "\n".join([_HEAD, *sections, *status]) + "\n"


if __name__ == "__main__":
    sys.stdout.write(markdown())
