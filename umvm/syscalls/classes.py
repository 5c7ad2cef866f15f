"""Classes of system calls by strace's names: `%file`, `%desc`, `%network`, `%process`, `%creds`, …

strace(1) lists its classes under "-e trace=". Here they come from the table's columns, and hold
only calls that reach the supervisor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from umvm.errors import UmvmError
from umvm.syscalls.row import Row, Verdict
from umvm.syscalls.table import BY_NAME, ROWS

PREFIX = "%"


def _family(*names: str) -> Callable[[Row], bool]:
    return lambda row: row.family in names


CLASSES: dict[str, Callable[[Row], bool]] = {
    "all": lambda row: True,
    "file": lambda row: "path" in row.args.split() or row.name == "getcwd",
    "desc": lambda row: row.family == "desc" or bool({"fd", "dirfd"} & set(row.args.split())),
    "network": _family("network"),
    "net": _family("network"),
    "process": _family("process"),
    "creds": _family("identity"),
    "memory": _family("memory"),
    "clock": _family("time"),
    "dir": _family("dir"),
    "mount": _family("mount"),
    "system": _family("system"),
}
"""Class name → does a call belong to it?"""


def expand(names: Iterable[str]) -> tuple[str, ...]:
    """The calls that names and classes stand for, each once.

    **Errors** UmvmError: there is no such call or class, or the call isn't trapped.
    """
    found: dict[str, None] = {}
    for name in names:
        found.update(dict.fromkeys(_expand(name)))
    return tuple(found)


def _expand(name: str) -> list[str]:
    if name.startswith(PREFIX):
        member = CLASSES.get(name[1:])
        if member is None:
            known = " ".join(f"{PREFIX}{kind}" for kind in CLASSES)
            raise UmvmError(f"unknown class of system calls {name!r} (there are {known})")
        return [row.name for row in ROWS if row.verdict is Verdict.TRAPPED and member(row)]
    row = BY_NAME.get(name)
    if row is None:
        raise UmvmError(f"unknown system call {name!r}")
    if row.verdict is not Verdict.TRAPPED:
        raise UmvmError(f"system call {name!r} is not trapped, so it can't be hooked")
    return [name]
