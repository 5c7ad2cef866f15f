"""The filter, run by a small interpreter and loaded into the kernel."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from errno import ENOSYS

import pytest

from umvm.syscalls import bpf
from umvm.syscalls.row import LIMITS
from umvm.syscalls.table import BY_NR, MMAP_FD, ROWS, Row, Verdict, nr

X86_64 = 0xC000003E
I386 = 0x40000003
REFUSED = bpf.RET_ERRNO | ENOSYS


def run(code: bytes, number: int, arch: int = X86_64, args: tuple[int, ...] = ()) -> int:
    """Interpret the program as the kernel would; every jump must stay inside it."""
    data = struct.pack("=IIQ6Q", number, arch, 0, *(*args, *(0,) * (6 - len(args))))
    program = list(struct.iter_unpack("=HBBI", code))
    at = accumulator = 0
    while True:
        op, jt, jf, k = program[at]
        at += 1
        if op == bpf.RET:
            return int(k)
        if op == bpf.LD_ABS:
            (accumulator,) = struct.unpack_from("=I", data, k)
        elif op == bpf.JMP_JA:
            at += k
        elif op == bpf.JMP_JEQ:
            at += jt if accumulator == k else jf
        elif op == bpf.JMP_JGE:
            at += jt if accumulator >= k else jf
        elif op == bpf.JMP_JSET:
            at += jt if accumulator & k else jf
        else:
            raise AssertionError(f"unknown instruction {op:#x}")


def expected(row: Row | None, io: bool) -> int:
    if row is None:
        return REFUSED
    if row.verdict is Verdict.REFUSED:
        return bpf.RET_ERRNO | row.errno
    if row.verdict is Verdict.HARMLESS or (not io and row.name in bpf.DATA_CALLS):
        return bpf.RET_ALLOW
    # with all arguments 0 only mmap's condition holds
    return bpf.RET_USER_NOTIF if row.when in ("", MMAP_FD, LIMITS) else bpf.RET_ALLOW


@pytest.mark.parametrize("io", [True, False])
def test_action_of_each_number(io: bool) -> None:
    code = bpf.program(ROWS, io=io)
    for number in range(601):
        assert run(code, number) == expected(BY_NR.get(number), io), number


def test_foreign_abis_are_refused() -> None:
    code = bpf.program(ROWS)
    for number in range(601):
        assert run(code, number | bpf.X32_BIT) == REFUSED
        assert run(code, number, I386) == REFUSED
    assert run(code, 0x3FFFFFFF) == REFUSED
    assert run(code, 0x80000001) == REFUSED
    assert run(code, 0xFFFFFFFF) == REFUSED


@pytest.mark.parametrize(
    ("flags", "action"),
    [
        (0x22, bpf.RET_ALLOW),  # MAP_PRIVATE | MAP_ANONYMOUS
        (0x21, bpf.RET_ALLOW),
        (0x02, bpf.RET_USER_NOTIF),
        (0x01, bpf.RET_USER_NOTIF),
        (0x2000000001, bpf.RET_USER_NOTIF),  # the high word doesn't count
    ],
)
def test_mmap_of_a_descriptor_is_trapped(flags: int, action: int) -> None:
    for io in (True, False):
        assert run(bpf.program(ROWS, io=io), nr("mmap"), args=(0, 4096, 1, flags)) == action


@pytest.mark.parametrize(
    ("call", "args", "action"),
    [
        ("sendto", (1, 2, 3, 4, 0, 16), bpf.RET_ALLOW),
        ("sendto", (1, 2, 3, 4, 0x7FFD00000000, 16), bpf.RET_USER_NOTIF),
        ("sendto", (1, 2, 3, 4, 0x10, 16), bpf.RET_USER_NOTIF),
        ("prctl", (4, 0), bpf.RET_USER_NOTIF),
        ("prctl", (15, 0), bpf.RET_ALLOW),
        ("prctl", (47, 0), bpf.RET_USER_NOTIF),
        ("ptrace", (16, 1), bpf.RET_USER_NOTIF),
        ("ptrace", (0x4206, 1), bpf.RET_USER_NOTIF),
        ("ptrace", (17, 1), bpf.RET_ALLOW),
        ("prlimit64", (0, 3, 0, 8), bpf.RET_ALLOW),
        ("prlimit64", (0, 4, 0, 8), bpf.RET_USER_NOTIF),
        ("prlimit64", (0, 3, 8, 0), bpf.RET_USER_NOTIF),
        ("prlimit64", (0, 3, 0x7FFF00000000, 0), bpf.RET_USER_NOTIF),
        ("clone", (0x01200011,), bpf.RET_ALLOW),
        ("clone", (0x3D0F00,), bpf.RET_ALLOW),
        ("clone", (0x10000011,), bpf.RET_USER_NOTIF),
        ("clone", (0x00020011,), bpf.RET_USER_NOTIF),
    ],
)
def test_calls_trapped_on_a_condition(call: str, args: tuple[int, ...], action: int) -> None:
    assert run(bpf.program(ROWS), nr(call), args=args) == action


def test_data_calls_exist() -> None:
    assert {row.name for row in ROWS} >= bpf.DATA_CALLS


def test_long_jumps_use_a_trampoline() -> None:
    rows = [Row(n, f"call{n}", "", "path", Verdict.REFUSED, 1 + n % 7) for n in range(1500)]
    code = bpf.program(rows)
    assert any(op == bpf.JMP_JA for op, _, _, _ in struct.iter_unpack("=HBBI", code))
    for row in rows:
        assert run(code, row.nr) == bpf.RET_ERRNO | row.errno
    assert run(code, 1500) == REFUSED


def test_empty_table_refuses_everything() -> None:
    assert run(bpf.program(()), 0) == REFUSED


def test_unknown_condition_is_an_error() -> None:
    assert BY_NR[nr("mmap")].when == MMAP_FD
    with pytest.raises(ValueError, match="unknown condition"):
        bpf.program([Row(0, "read", "", "desc", Verdict.TRAPPED, when="on Sundays")])


class SockFprog(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="needs x86-64")
@pytest.mark.parametrize("io", [True, False])
def test_kernel_accepts_the_program(io: bool) -> None:
    code = bpf.program(ROWS, io=io)
    fprog = SockFprog(len(code) // 8, code)
    libc = ctypes.CDLL(None, use_errno=True)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            no_new_privs, set_mode_filter = 38, 1
            if libc.prctl(no_new_privs, 1, 0, 0, 0) != 0:
                os._exit(2)
            if libc.syscall(nr("seccomp"), set_mode_filter, 0, ctypes.byref(fprog)) != 0:
                os._exit(3)
            # refused by the filter, although the kernel may have it
            if libc.syscall(nr("io_uring_setup"), 0, None) != -1 or ctypes.get_errno() != ENOSYS:
                os._exit(4)
            status = 0 if libc.syscall(nr("getpid")) > 0 else 5
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
