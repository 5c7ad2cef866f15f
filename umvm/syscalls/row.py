"""The type of one row of the system call table, and short constructors for the three verdicts."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

MMAP_FD = "mmap-fd"
"""Value of `Row.when`: trapped only if the flags (4th argument) lack MAP_ANONYMOUS."""
ADDRESS = "address"
"""Trapped only with an address (5th argument), as in sendto(2)."""
PRCTL = "prctl"
"""Trapped only with an option about privilege as first argument (bpf.PRCTL_OPTIONS)."""
NAMESPACES = "namespaces"
"""Trapped only if the flags (1st argument) have CLONE_NEWNS or CLONE_NEWUSER."""
ATTACH = "attach"
"""Trapped only if the first argument is PTRACE_ATTACH or PTRACE_SEIZE."""
LIMITS = "limits"
"""Not trapped if it only asks for RLIMIT_STACK, as every program does at its start (prlimit(2))."""
CONDITIONS = frozenset((MMAP_FD, ADDRESS, PRCTL, NAMESPACES, ATTACH, LIMITS))

ARG_KINDS = frozenset("fd dirfd path str ptr int size off flags mode addr pid uid gid sock".split())
"""Argument kinds: `addr` is an address in the guest's memory, `sock` points to a socket address."""


class Verdict(Enum):
    """What the filter does with a call."""

    TRAPPED = "trapped"
    HARMLESS = "harmless"
    REFUSED = "refused"


class Row(NamedTuple):
    """One system call."""

    nr: int
    name: str
    args: str
    family: str
    verdict: Verdict
    errno: int = 0
    note: str = ""
    when: str = ""


def trap(nr: int, name: str, args: str, family: str, note: str = "", when: str = "") -> Row:
    """A call that goes to the supervisor."""
    return Row(nr, name, args, family, Verdict.TRAPPED, 0, note, when)


def free(nr: int, name: str, args: str, family: str, note: str = "") -> Row:
    """A call that the kernel runs unseen, because it can't reach anything outside the view."""
    return Row(nr, name, args, family, Verdict.HARMLESS, 0, note)


def deny(nr: int, name: str, args: str, family: str, errno: int, note: str) -> Row:
    """A call that the filter answers with an error."""
    return Row(nr, name, args, family, Verdict.REFUSED, errno, note)
