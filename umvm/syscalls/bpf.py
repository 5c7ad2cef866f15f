"""Assembles the seccomp filter, a classic BPF program, from the table.

The numbers are cut into ranges of equal action, and a balanced tree of comparisons finds the range.
Nothing but the number and the architecture is loaded on the way to ALLOW, so the kernel can see
which calls are always allowed and skips the program for them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from errno import ENOSYS

from .row import ADDRESS, ATTACH, LIMITS, MMAP_FD, NAMESPACES, PRCTL, Row, Verdict

AUDIT_ARCH = {"x86_64": 0xC000003E}
X32_BIT = 0x40000000
MAP_ANONYMOUS = 0x20
PRCTL_OPTIONS = (3, 4, 7, 8, 23, 24, 27, 28, 38, 39, 47)
"""PR_GET_DUMPABLE, PR_SET_DUMPABLE, PR_GET_KEEPCAPS, PR_SET_KEEPCAPS, PR_CAPBSET_READ,
PR_CAPBSET_DROP, PR_GET_SECUREBITS, PR_SET_SECUREBITS, PR_SET_NO_NEW_PRIVS, PR_GET_NO_NEW_PRIVS,
PR_CAP_AMBIENT."""
UNMAPPING = frozenset("munmap mprotect pkey_mprotect mremap brk".split())
"""Harmless, but an agent must hear of those that it isn't asked about: it remembers pages."""
RLIMIT_STACK = 3
PTRACE_ATTACH, PTRACE_SEIZE = 16, 0x4206
CLONE_NEWNS_NEWUSER = 0x10020000
RLIMIT_LOCKS = 10
MAX_INSTRUCTIONS = 4096

RET_ALLOW = 0x7FFF0000
RET_USER_NOTIF = 0x7FC00000
RET_ERRNO = 0x00050000

LD_ABS, JMP_JA, JMP_JEQ, JMP_JGE, JMP_JSET, RET = 0x20, 0x05, 0x15, 0x35, 0x45, 0x06
ALU_AND = 0x54
OFF_NR, OFF_ARCH, OFF_IP, OFF_ARGS = 0, 4, 8, 16

DATA_CALLS = frozenset(
    "read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek".split()
)
"""Calls that only move data; `program(io=False)` lets the kernel run them."""

Instruction = tuple[int, int, int, int]
Code = list[Instruction]
UNKNOWN = RET_ERRNO | ENOSYS
_MAX_JUMP = 255


def _return(action: int) -> Instruction:
    return (RET, 0, 0, action)


def _one_of(argument: int, values: Sequence[int]) -> tuple[Instruction, ...]:
    """Trapped if the low word of an argument is one of the values."""
    last = len(values) - 1
    tests = tuple((JMP_JEQ, last - index + 1, 0, value) for index, value in enumerate(values))
    return (
        (LD_ABS, 0, 0, OFF_ARGS + 8 * argument),
        *tests,
        _return(RET_ALLOW),
        _return(RET_USER_NOTIF),
    )


_CONDITIONS: dict[str, tuple[Instruction, ...]] = {
    MMAP_FD: (
        (LD_ABS, 0, 0, OFF_ARGS + 8 * 3),
        (JMP_JSET, 0, 1, MAP_ANONYMOUS),
        _return(RET_ALLOW),
        _return(RET_USER_NOTIF),
    ),
    ADDRESS: (
        (LD_ABS, 0, 0, OFF_ARGS + 8 * 4),
        (JMP_JEQ, 0, 3, 0),
        (LD_ABS, 0, 0, OFF_ARGS + 8 * 4 + 4),
        (JMP_JEQ, 0, 1, 0),
        _return(RET_ALLOW),
        _return(RET_USER_NOTIF),
    ),
    NAMESPACES: (
        (LD_ABS, 0, 0, OFF_ARGS),
        (JMP_JSET, 1, 0, CLONE_NEWNS_NEWUSER),
        _return(RET_ALLOW),
        _return(RET_USER_NOTIF),
    ),
    PRCTL: _one_of(0, PRCTL_OPTIONS),
    ATTACH: _one_of(0, (PTRACE_ATTACH, PTRACE_SEIZE)),
    LIMITS: (
        (LD_ABS, 0, 0, OFF_ARGS + 8),
        (JMP_JEQ, 0, 5, RLIMIT_STACK),
        (LD_ABS, 0, 0, OFF_ARGS + 8 * 2),
        (JMP_JEQ, 0, 3, 0),
        (LD_ABS, 0, 0, OFF_ARGS + 8 * 2 + 4),
        (JMP_JEQ, 0, 1, 0),
        _return(RET_ALLOW),
        _return(RET_USER_NOTIF),
    ),
}


def _by_address(code: tuple[Instruction, ...], base: int, mask: int) -> tuple[Instruction, ...]:
    """Where `code` ends in a notification: only for calls made outside the agent's pages."""
    if code[-1] != _return(RET_USER_NOTIF):
        return code
    return (
        *code[:-1],
        (LD_ABS, 0, 0, OFF_IP + 4),
        (JMP_JEQ, 0, 3, 0),
        (LD_ABS, 0, 0, OFF_IP),
        (ALU_AND, 0, 0, mask),
        (JMP_JEQ, 1, 0, base),
        _return(RET_USER_NOTIF),
        _return(RET_ALLOW),
    )


def _leaf(row: Row, io: bool) -> tuple[Instruction, ...]:
    """The code for one call, once its number is known."""
    if row.verdict is Verdict.REFUSED:
        return (_return(RET_ERRNO | row.errno),)
    if row.verdict is Verdict.HARMLESS or (not io and row.name in DATA_CALLS):
        return (_return(RET_ALLOW),)
    if row.when:
        if row.when not in _CONDITIONS:
            raise ValueError(f"{row.name}: unknown condition {row.when!r}")
        return _CONDITIONS[row.when]
    return (_return(RET_USER_NOTIF),)


def _ranges(
    rows: Iterable[Row], io: bool, agent: tuple[int, int] | None
) -> list[tuple[int, tuple[Instruction, ...]]]:
    """(first number, code) of each range of equal code, from 0 up and without gaps."""
    unknown = (_return(UNKNOWN),)
    leaves = {row.nr: _leaf(row, io) for row in rows}
    if agent is not None:
        unmapping = (row.nr for row in rows if row.name in UNMAPPING)
        leaves |= dict.fromkeys(unmapping, (_return(RET_USER_NOTIF),))
        leaves = {number: _by_address(code, *agent) for number, code in leaves.items()}
    ranges = [(0, leaves.get(0, unknown))]
    for number in range(1, max(leaves, default=0) + 2):
        code = leaves.get(number, unknown)
        if code != ranges[-1][1]:
            ranges.append((number, code))
    return ranges


def _tree(ranges: Sequence[tuple[int, tuple[Instruction, ...]]]) -> Code:
    if len(ranges) == 1:
        return list(ranges[0][1])
    middle = len(ranges) // 2
    below, above = _tree(ranges[:middle]), _tree(ranges[middle:])
    first = ranges[middle][0]
    if len(below) <= _MAX_JUMP:
        return [(JMP_JGE, len(below), 0, first), *below, *above]
    return [(JMP_JGE, 0, 1, first), (JMP_JA, 0, 0, len(below)), *below, *above]


def program(
    rows: Iterable[Row],
    arch: str = "x86_64",
    *,
    io: bool = True,
    agent: tuple[int, int] | None = None,
) -> bytes:
    """The filter as an array of struct sock_filter; calls of a foreign ABI get ENOSYS.

    `agent`: (base, mask) of the addresses, below 4 GiB, from which trapped calls are let pass.
    """
    code: Code = [
        (LD_ABS, 0, 0, OFF_ARCH),
        (JMP_JEQ, 1, 0, AUDIT_ARCH[arch]),
        _return(UNKNOWN),
        (LD_ABS, 0, 0, OFF_NR),
        (JMP_JGE, 0, 1, X32_BIT),
        _return(UNKNOWN),
        *_tree(_ranges(rows, io, agent)),
    ]
    assert len(code) <= MAX_INSTRUCTIONS
    assert all(max(jt, jf) <= _MAX_JUMP for _, jt, jf, _ in code)
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)
