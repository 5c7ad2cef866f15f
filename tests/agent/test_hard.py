"""The hard cases of agent_hard.c, natively and in a VM whose guests are patched."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from agent_fixtures import InAgent
from harness import Compiler, Runner

NAMES = (
    "by_prctl by_seccomp low_addresses by_descriptor writable_text small_stack traced io_uring "
    "no_vdso"
).split()


@pytest.mark.parametrize("name", NAMES)
def test_as_on_the_host(
    runner: Runner, in_agent: InAgent, warm: Callable[..., None], guest_binary: Compiler, name: str
) -> None:
    program = str(guest_binary("agent_hard"))
    warm()
    native = runner.run([program, name])
    assert native.status == 0 and native.stdout, native
    assert in_agent([program, name]) == native


@pytest.mark.parametrize("name", ["mapped_text", "no_vdso"])
def test_a_static_program(
    runner: Runner, in_agent: InAgent, warm: Callable[..., None], guest_binary: Compiler, name: str
) -> None:
    program = guest_binary("agent_hard", static=True)
    argv = [str(program), name]
    warm("ld-linux-x86-64.so.2", program.name, run=f"{program} io_uring")
    native = runner.run(argv)
    assert native.status == 0 and native.stdout, native
    assert in_agent(argv) == native


def test_valgrind(runner: Runner, in_agent: InAgent, warm: Callable[..., None]) -> None:
    """It runs others' code by translating it, and never jumps to what lies outside of that."""
    if shutil.which("valgrind") is None:
        pytest.skip("valgrind is not installed")
    warm("ld-linux-x86-64.so.2")
    argv = ["valgrind", "-q", "--trace-children=yes", "sh", "-c", "ls -d /etc; echo hi | cat"]
    native = runner.run(argv, timeout=25)
    assert native.status == 0 and native.stdout, native
    assert in_agent(argv, timeout=25) == native


def test_the_agent_stays_where_it_is(
    in_agent: InAgent, warm: Callable[..., None], guest_binary: Compiler
) -> None:
    warm()
    shown = in_agent([str(guest_binary("agent_hard")), "over_the_agent"]).ok().splitlines()
    assert shown[:4] == [
        "fixed: -1 Cannot allocate memory",
        "mprotect: -1 Cannot allocate memory",
        "mremap: -1 Cannot allocate memory",
        "munmap: -1 Invalid argument",
    ]
    assert shown[4] == "stat: 0 "


def test_a_32_bit_program_is_refused(in_agent: InAgent, tmp_path: Path) -> None:
    header = struct.pack(
        "<4sBBB9xHHIIIIIHHHHHH",
        b"\x7fELF",
        1,
        1,
        1,
        2,
        3,
        1,
        0x8048054,
        52,
        0,
        0,
        52,
        32,
        1,
        0,
        0,
        0,
    )
    load = struct.pack("<8I", 1, 0, 0x8048000, 0x8048000, 100, 100, 5, 4096)
    program = tmp_path / "small"
    program.write_bytes(header + load + bytes.fromhex("b801000000bb07000000cd80"))  # exit(7)
    program.chmod(0o755)
    body = f"import os\ntry: os.execv({str(program)!r}, ['x'])\nexcept OSError as e: print(e.errno)"
    assert in_agent(["python3", "-c", body]).ok() == "8\n"


def test_a_program_where_the_agent_lies(runner: Runner, in_agent: InAgent, tmp_path: Path) -> None:
    """It runs without one."""
    (tmp_path / "p.c").write_text(
        '#include <stdio.h>\nint main(void) { puts("here"); return 3; }\n'
    )
    program = tmp_path / "p"
    command = f"cc -o {program} {tmp_path}/p.c -no-pie -Wl,-Ttext-segment=0x70000000"
    subprocess.run(command, shell=True, check=True, timeout=60)
    assert runner.run([str(program)]).status == 3
    assert in_agent(f"{program}; echo $?").ok() == "here\n3\n"
