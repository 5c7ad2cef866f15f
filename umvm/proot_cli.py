"""`umvm-proot`, also `umvm proot`: the command line of proot(1), for scripts that expect it.

    umvm-proot -S rootfs apt-get update; umvm-proot -r alpine -b /proc -w /root /bin/sh

Symbolic links mean what they mean in the guests' root, also those that a binding brought.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from umvm.errors import UsageError

PROGRAM = "umvm-proot"
_USAGE = f"""\
Usage: {PROGRAM} [OPTIONS] [COMMAND [ARGUMENT...]]

Run COMMAND (default: /bin/sh -l) with another root directory, bindings and identity.

  -r, --rootfs DIR           DIR is /
  -b, --bind SRC[:DST], -m, --mount
                             show SRC of the host at DST; a SRC that is missing is left out
  -w, --cwd, --pwd DIR       run COMMAND in DIR
  -R DIR                     -r DIR, and what programs use of the host's: /dev, /proc, /sys,
                             /tmp, /run, your home, users, names of hosts, …
  -S DIR                     -0 -r DIR, and the same without users and /run
  -0, --root-id              be root; owners, modes and devices are remembered while it runs
  -i, --change-id UID:GID    be that user
  -k, --kernel-release TEXT  the release that uname(2) tells
  --kill-on-exit             end all processes with COMMAND
  -l, --link2symlink, -H, -L, --sysvipc
                             accepted: links and System V IPC are the host's
  -v, --verbose N            log more, if N > 0
  -V, --version, -h, --help  show it

Not there: -q (run foreign programs by an emulator), -p and -n (`umvm run --net` has rules).
"""
_USERS = (
    "/etc/hosts.equiv", "/etc/mtab", "/etc/netgroup", "/etc/networks", "/etc/passwd", "/etc/group",
    "/etc/localtime", "/run",
)  # fmt: skip
_WITH_VALUE = {
    "-r": "root", "--rootfs": "root", "-b": "bind", "--bind": "bind", "-m": "bind",
    "--mount": "bind", "-w": "cwd", "--cwd": "cwd", "--pwd": "cwd", "-R": "recommended",
    "-S": "system", "-i": "user", "--change-id": "user", "-k": "release",
    "--kernel-release": "release", "-v": "verbose", "--verbose": "verbose",
}  # fmt: skip
_FLAGS = {
    "-0": "fakeroot", "--root-id": "fakeroot", "--kill-on-exit": "kill", "-l": "",
    "--link2symlink": "", "-H": "", "-L": "", "--sysvipc": "", "-V": "version",
    "--version": "version", "--about": "version", "-h": "help", "--help": "help",
    "--usage": "help",
}  # fmt: skip
_REFUSED = frozenset(("-q", "--qemu", "-p", "--port", "-n", "--netcoop"))


class Wish(NamedTuple):
    """A command line that was understood."""

    flags: frozenset[str]
    values: dict[str, str]
    binds: list[str]
    command: list[str]


def read(arguments: Sequence[str]) -> Wish:
    """Understand a command line as proot(1) does. **Errors** UsageError."""
    from umvm.guest.roots import SYSTEM

    flags: set[str] = set()
    values: dict[str, str] = {}
    binds: list[str] = []
    rest = list(arguments)
    while rest and rest[0].startswith("-"):
        word = rest.pop(0)
        if word == "--":
            break
        word, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
        if word in _REFUSED:
            raise UsageError(f"option {word} is not supported (see {PROGRAM} -h)")
        if word not in _WITH_VALUE:
            if word not in _FLAGS or equals:
                raise UsageError(f"unknown option {word}")
            flags.add(_FLAGS[word])
            continue
        if not equals:
            if not rest:
                raise UsageError(f"option {word} needs a value")
            value = rest.pop(0)
        key = _WITH_VALUE[word]
        if key == "bind":
            binds.append(value)
        elif key in ("recommended", "system"):
            values["root"] = value
            more = [*SYSTEM, *(_USERS if key == "recommended" else ()), os.environ.get("HOME", "")]
            binds += filter(os.path.exists, more)
            flags |= {"fakeroot"} if key == "system" else set()
        else:
            values[key] = value
    return Wish(frozenset(flags), values, binds, rest or ["/bin/sh", "-l"])


def _usable(binds: Sequence[str]) -> list[str]:
    """The bindings whose source exists, as `umvm run` takes them; proot(1) warns of others."""
    found = []
    for text in binds:
        source, _, target = text.rstrip("!").partition(":")
        if os.path.exists(source):
            found.append(":".join(filter(None, (os.path.abspath(source), target.rstrip("!")))))
        else:
            print(f"{PROGRAM}: warning: no {source} to bind", file=sys.stderr)
    return found


def run(arguments: Sequence[str]) -> int:
    """Run one command line; the command's status. **Errors** UmvmError, OSError."""
    wish = read(arguments)
    if wish.flags & {"help", "version"}:
        from umvm._version import __version__

        print(_USAGE if "help" in wish.flags else f"{PROGRAM} version {__version__}\n", end="")
        return 0
    from umvm import run_cli, specs

    values = wish.values
    user = values.get("user")
    if user is not None and "fakeroot" in wish.flags:
        raise UsageError("-0 and -i exclude each other")
    if not values.get("verbose", "0").lstrip("-").isdigit():
        raise UsageError("-v takes a number")
    from umvm.become import module_of
    from umvm.run import run as run_vm

    identity: dict[str, str] | None = {} if "fakeroot" in wish.flags else None
    if user is not None:
        identity = dict(specs.parse_module(module_of(user, None)[0])[1])
    root = values.get("root", "/")
    try:
        return run_vm(
            wish.command,
            modules=[f"hostname,release={values['release']}"] if "release" in values else [],
            root=None if os.path.abspath(root) == "/" else root,
            binds=_usable(wish.binds),
            kill_on_exit="kill" in wish.flags,
            verbose=max(0, int(values.get("verbose", "0"))),
            chdir=values.get("cwd"),
            engine=os.environ.get("UMVM_ENGINE") or "auto",
            identity=identity,
        )
    except OSError as error:
        raise run_cli.exec_error(wish.command[0], error) from error


def main(argv: Sequence[str] | None = None) -> None:
    """The entry point of `umvm-proot`: never returns."""
    from umvm.__main__ import end, guarded

    arguments = list(sys.argv[1:] if argv is None else argv)
    end(guarded(lambda: run(arguments), PROGRAM))


if __name__ == "__main__":
    main()
