"""`umvm-fakeroot`, also `umvm fakeroot`: the command line of fakeroot(1), for tools that expect it.

    dpkg-buildpackage -rumvm-fakeroot; FAKEROOTCMD=umvm-fakeroot

Files that are not known are shown as root's. Options that only make sense for fakeroot's own
library and daemon (-l, -f, -b) are accepted and do nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from umvm.errors import UsageError

PROGRAM = "umvm-fakeroot"
_USAGE = f"""\
Usage: {PROGRAM} [OPTIONS] [--] [COMMAND [ARGUMENT...]]

Run COMMAND (default: your shell) as root, as far as it can see: owners, modes and devices that it
makes are remembered while it runs.

  -s FILE               save what is known of owners to FILE at the end
  -i FILE               load it from FILE first
  -u, --unknown-is-real show the real owners of files that are not known, not root
  -b, --fd-base N       accepted, does nothing
  -l, --lib FILE        accepted, does nothing
  -f, --faked FILE      accepted, does nothing
  -h, --help            show this
  -v, --version         show the version

FILE has fakeroot's format, or is a database of umvm if its name ends in .db.
"""
_WITH_VALUE = {
    "-s": "save", "-i": "load", "-b": "", "-l": "", "-f": "", "--fd-base": "", "--lib": "",
    "--faked": "",
}  # fmt: skip
_FLAGS = {
    "-u": "unknown", "--unknown-is-real": "unknown", "-h": "help", "--help": "help",
    "-v": "version", "--version": "version",
}  # fmt: skip


class Wish(NamedTuple):
    """A command line that was understood: the options of the module `ident`, and the command."""

    options: dict[str, str]
    command: list[str]
    show: str = ""
    """"help" or "version": that is all."""


def read(arguments: Sequence[str]) -> Wish:
    """Understand a command line as getopt(1) does for fakeroot. **Errors** UsageError."""
    options = {"unknown": "root"}
    rest = list(arguments)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        word = rest.pop(0)
        if word == "--":
            break
        value: str | None = None
        if word.startswith("--"):
            word, equals, text = word.partition("=")
            value = text if equals else None
        elif len(word) > 2:  # -sFILE, -uv
            if word[:2] in _WITH_VALUE:
                value, word = word[2:], word[:2]
            else:
                rest.insert(0, "-" + word[2:])
                word = word[:2]
        if word in _WITH_VALUE:
            if value is None and not rest:
                raise UsageError(f"option {word} needs a value")
            given = rest.pop(0) if value is None else value
            if _WITH_VALUE[word]:
                options[_WITH_VALUE[word]] = os.path.abspath(given)
        elif word not in _FLAGS or value is not None:
            raise UsageError(f"unknown option {word}")
        elif _FLAGS[word] == "unknown":
            options["unknown"] = "real"
        else:
            return Wish({}, [], _FLAGS[word])
    return Wish(options, rest)


def run(arguments: Sequence[str]) -> int:
    """Run one command line; the command's status. **Errors** UmvmError, OSError."""
    wish = read(arguments)
    if wish.show:
        from umvm._version import __version__

        print(_USAGE if wish.show == "help" else f"{PROGRAM} version {__version__}", end="")
        if wish.show == "version":
            print()
        return 0
    if os.environ.get("FAKEROOTKEY"):
        raise UsageError("FAKEROOTKEY is set: one fakeroot in another is not possible")
    from umvm import run_cli
    from umvm.run import run as run_vm

    command = wish.command or [os.environ.get("SHELL") or "/bin/sh"]
    how = "real" if wish.options["unknown"] == "real" else "root"
    environment = {"FAKEROOTKEY": f"umvm{os.getpid()}", "FAKED_MODE": f"unknown-is-{how}"}
    engine = os.environ.get("UMVM_ENGINE") or "auto"
    try:
        return run_vm(command, identity=wish.options, env=environment, engine=engine)
    except OSError as error:
        raise run_cli.exec_error(command[0], error) from error


def main(argv: Sequence[str] | None = None) -> None:
    """The entry point of `umvm-fakeroot`: never returns."""
    from umvm.__main__ import end, guarded

    arguments = list(sys.argv[1:] if argv is None else argv)
    end(guarded(lambda: run(arguments), PROGRAM))


if __name__ == "__main__":
    main()
