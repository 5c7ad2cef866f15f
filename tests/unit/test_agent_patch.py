"""Finding and patching call sites, the cache's rules, and the filter's variant for agents."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

import pytest

from core_accel import agentarea
from umvm.agent import sites, stubs
from umvm.agent.cache import Cache, Key
from umvm.agent.calls import AGENT_KINDS
from umvm.agent.elf import Elf
from umvm.syscalls import bpf, table

CODE = """
.globl _start, plain, known, jumped, relative, cancellable, keeps_r11, returns
_start:
plain:       mov %edi,%eax; syscall; cmp $-4096,%rax; ret
known:       mov $39,%eax; syscall; jmp known
jumped:      mov %edi,%eax; je 1f; nop; nop; nop; nop; nop; nop; 1: syscall; ja jumped; ret
relative:    lea data(%rip),%rax; syscall; ja relative; ret
cancellable: mov %rsi,%rax; mov %rdx,%rdi; syscall; ret
             nop; nop; nop; nop; nop
keeps_r11:   jmp 2f; 2: syscall; mov %rax,%r11; cmp $-4096,%r11; ja keeps_r11; ret
returns:     mov %edi,%eax; jmp 3f; 3: syscall; ret
             nop; nop; nop; nop; nop
.section .rodata
data: .quad 0
"""


FUNCTIONS = "plain known jumped relative cancellable keeps_r11 returns".split()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("elf")
    (place / "p.s").write_text(CODE)
    flags = ["-nostdlib", "-static", "-Wl,--build-id=sha1"]
    command = ["cc", *flags, "-o", str(place / "p"), str(place / "p.s")]
    subprocess.run(command, check=True, timeout=60)
    return place / "p"


def symbols(program: Path) -> dict[str, int]:
    text = subprocess.run(["nm", program], check=True, capture_output=True, text=True).stdout
    return {line.split()[2]: int(line.split()[0], 16) for line in text.splitlines()}


def test_sites(program: Path) -> None:
    elf = Elf(program.read_bytes())
    (segment,) = elf.executable()
    names = symbols(program)
    found = {site.start: site for site in sites.find(elf, segment)}

    def owner(address: int) -> str:
        return max((at, name) for name, at in names.items() if at <= address and name in FUNCTIONS)[
            1
        ]

    assert {owner(start) for start in found} == {"plain", "known", "returns"}
    by_name = {owner(site.start): site for site in found.values()}
    assert by_name["known"].nr == 39
    assert by_name["plain"].nr is None
    assert by_name["returns"].returns and not by_name["plain"].returns
    assert all(site.end - site.start >= sites.JUMP for site in found.values())


def test_copies(program: Path) -> None:
    elf = Elf(program.read_bytes())
    (segment,) = elf.executable()
    found = sites.find(elf, segment)
    at = agentarea.STUBS + 4096 * 5
    text, code = stubs.build(segment, found, at, agentarea.ENTRY, agentarea.BASES)
    assert len(text) == segment.length and len(code) % 4096 == 0
    changed = {i for i in range(len(text)) if text[i] != segment.data[i]}
    inside = {
        i for site in found for i in range(site.start - segment.vaddr, site.end - segment.vaddr)
    }
    assert changed and changed <= inside
    for index, site in enumerate(found):
        jump = text[site.start - segment.vaddr :][:7]
        assert jump == b"\xff\x24\x25" + struct.pack("<I", at + 8 * index)
        (stub,) = struct.unpack_from("<Q", code, 8 * index)
        assert at <= stub < at + len(code)
    assert len(code) <= stubs.size(found)


def test_damaged_files() -> None:
    data = Path("/proc/self/exe").read_bytes()
    for broken in (b"", b"\x7fELF", b"#!/bin/sh\n", b"\x7fELF\x01\x01" + data[6:64]):
        with pytest.raises(ValueError, match="ELF"):
            Elf(broken)
    assert Elf(data[:64] if struct.unpack_from("<H", data, 56) == (0,) else data).executable()


def test_the_cache_keeps_one_version_of_a_file(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c")
    old, new = Key(1, 2, 3, 4, 5, 0), Key(1, 2, 3, 9, 9, 0)
    text, code = b"t" * 4096, b"s" * 4096
    stub = cache.free_stub(len(code))
    assert stub == agentarea.STUBS
    cache.add(old, 4096, 0, "/a", (0, b""), (1, stub, text, code))
    other = cache.free_stub(len(code))
    assert other == stub + 4096
    assert other is not None
    entry = cache.add(new, 4096, 0, "/a", (64, b"id"), (1, other, text, code))
    assert [one.key for one in cache.entries()] == [new]
    assert cache.stubs(entry) == code and cache.intact(entry)
    file = tmp_path / "c" / entry.name
    file.write_bytes(b"x" + file.read_bytes()[1:])
    assert not cache.intact(entry), "its digest tells"
    file.write_bytes(b"short")
    assert cache.entries() == [], "its size tells at once"
    assert cache.clear() == 1 and cache.known() == []
    assert sorted(os.listdir(tmp_path / "c")) == ["index.json", "lock"]


def test_the_cache_refuses_a_directory_that_others_write(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c").chmod(0o777)
    with pytest.raises(PermissionError):
        Cache(tmp_path / "c")


def test_a_damaged_index_is_an_empty_one(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c")
    for text in ("", "{", '{"format": 0, "entries": []}', '{"entries": 3}', "[]"):
        (tmp_path / "c/index.json").write_text(text)
        assert cache.entries() == []


def test_stubs_in_use_are_not_replaced(tmp_path: Path) -> None:
    area = agentarea.Area(os.fsencode(tmp_path), b"/s/", b"/c", AGENT_KINDS)
    key = (1, 2, 3, 4, 5, 0)
    stub = agentarea.STUBS
    assert area.add_text(key, 4096, 0, stub, b"a" * 4096, 12288, b"n")
    assert area.add_text(key, 4096, 0, stub, b"a" * 4096, 12288, b"n"), "the same again"
    assert not area.add_text((1, 9, 3, 4, 5, 0), 4096, 0, stub, b"b" * 4096, 12288, b"m")
    assert not area.add_text(key, 4096, 0, agentarea.GATE - 4096, b"c" * 8192, 12288, b"n")


def test_every_call_has_a_flow() -> None:
    for row in table.ROWS:
        flow = AGENT_KINDS[row.nr][0]
        assert flow in agentarea.FLOWS
        if row.verdict is not table.Verdict.TRAPPED and row.name not in (
            "ptrace",
            "seccomp",
            "vfork",
        ):
            assert flow == "run", row
        if row.verdict is table.Verdict.TRAPPED:
            assert flow != "run", row


@pytest.mark.parametrize(
    ("ip", "action"),
    [
        (agentarea.AGENT_BASE, bpf.RET_ALLOW),
        (agentarea.GATE - 2, bpf.RET_ALLOW),
        (agentarea.GATE, bpf.RET_USER_NOTIF),
        (agentarea.AGENT_BASE - 1, bpf.RET_USER_NOTIF),
        (agentarea.AGENT_BASE | 1 << 32, bpf.RET_USER_NOTIF),
        (0x7FFFF7C00000, bpf.RET_USER_NOTIF),
    ],
)
def test_the_filter_looks_where_a_trapped_call_comes_from(ip: int, action: int) -> None:
    code = bpf.program(table.ROWS, agent=(agentarea.AGENT_BASE, agentarea.AGENT_MASK))
    assert run(code, table.nr("openat"), ip) == action
    assert run(code, table.nr("getpid"), ip) == bpf.RET_ALLOW
    refused, number = next(iter(table.refused().items()))
    assert run(code, refused, ip) == bpf.RET_ERRNO | number
    assert run(code, table.nr("mmap"), ip, args=(0, 0, 0, bpf.MAP_ANONYMOUS)) == bpf.RET_ALLOW
    assert run(code, table.nr("mmap"), ip) == action


def run(code: bytes, nr: int, ip: int, args: tuple[int, ...] = ()) -> int:
    """Interpret a classic BPF program (linux/filter.h) on a struct seccomp_data."""
    padded = (*args, 0, 0, 0, 0, 0, 0)[:6]
    data = struct.pack("<IIQ6Q", nr, bpf.AUDIT_ARCH["x86_64"], ip, *padded)
    program = list(struct.iter_unpack("=HBBI", code))
    at, accumulator = 0, 0
    while True:
        operation, jt, jf, k = program[at]
        at += 1
        match operation:
            case bpf.LD_ABS:
                (accumulator,) = struct.unpack_from("<I", data, k)
            case bpf.ALU_AND:
                accumulator &= k
            case bpf.JMP_JA:
                at += k
            case bpf.JMP_JEQ:
                at += jt if accumulator == k else jf
            case bpf.JMP_JGE:
                at += jt if accumulator >= k else jf
            case bpf.JMP_JSET:
                at += jt if accumulator & k else jf
            case bpf.RET:
                return int(k)
            case _:
                raise AssertionError(f"unknown instruction {operation:#x}")
