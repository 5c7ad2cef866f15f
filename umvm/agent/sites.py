"""Finds the `syscall` instructions of a program that can be replaced by a jump.

A jump through a table takes 7 bytes, so neighbours of the instruction move to the stub with it. A
disassembler tells which; it is done only where nothing jumps between them, and where they mean
the same elsewhere.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from iced_x86 import (
    Code,
    Decoder,
    FlowControl,
    Instruction,
    InstructionInfoFactory,
    Mnemonic,
    OpAccess,
    OpKind,
    Register,
)  # fmt: skip

from umvm.agent.elf import Elf, Segment

JUMP = 7
"""Bytes of `jmp *abs32`."""
BEFORE, AFTER = 3, 8
"""Neighbours that may move."""
BLOCK = 6
FAR = 1 << 15
RT_SIGRETURN = 15
_RESTORER = b"\x48\xc7\xc0\x0f\0\0\0\x0f\x05"
_WRITES = (OpAccess.WRITE, OpAccess.READ_WRITE, OpAccess.COND_WRITE, OpAccess.READ_COND_WRITE)


class Site(NamedTuple):
    """A place to patch: addresses of the file, and the number of the call if it is known."""

    start: int
    syscall: int
    end: int
    returns: bool  # the last instruction that moves is `ret`
    nr: int | None


class _Seen(NamedTuple):
    """One `syscall` and its neighbourhood."""

    before: list[Instruction]
    after: list[Instruction]


def find(elf: Elf, segment: Segment) -> list[Site]:
    """The sites of a segment, in order of address."""
    places = [segment.vaddr + found.start() for found in re.finditer(b"\x0f\x05", segment.data)]
    if not places:
        return []
    near = {
        block
        for place in places
        for block in ((place >> BLOCK) - 1, place >> BLOCK, (place >> BLOCK) + 1)
    }
    seen: dict[int, _Seen] = {}
    targets: set[int] = set()
    for first, end in elf.code(segment):
        _sweep(segment, first, end, near, seen, targets)
    starts, sites = elf.function_starts(), []
    last_end = 0
    for address in sorted(seen):
        start = starts.before(address)
        restorer = _is_restorer(segment, start, address)
        if starts and not restorer and (start is None or not _aligned(segment, start, address)):
            continue
        site = _site(address, seen[address], targets)
        if site is not None and site.start >= last_end and (site.nr != RT_SIGRETURN or restorer):
            sites.append(site)
            last_end = site.end
    return sites


def _is_restorer(segment: Segment, start: int | None, address: int) -> bool:
    """Is this rt_sigreturn, where handlers return to, with unwind information?

    That begins one byte before it. Without it debuggers and unwinders know it by its bytes.
    """
    at = address - 7 - segment.vaddr
    return start == address - 8 and segment.data[at : at + len(_RESTORER)] == _RESTORER


def _decode(segment: Segment, first: int, end: int) -> Iterator[Instruction]:
    data = segment.data[first - segment.vaddr : end - segment.vaddr]
    yield from Decoder(64, data, ip=first)


def _sweep(
    segment: Segment,
    first: int,
    end: int,
    near: set[int],
    seen: dict[int, _Seen],
    targets: set[int],
) -> None:
    """Look at every instruction: note calls with their neighbours, and jumps to near them."""
    last: deque[Instruction] = deque(maxlen=16)
    waiting: list[_Seen] = []
    plain = FlowControl.NEXT
    for instruction in _decode(segment, first, end):
        flow = instruction.flow_control
        if waiting:
            for one in waiting:
                one.after.append(instruction.copy())
            waiting = [one for one in waiting if len(one.after) < AFTER]
        if flow != plain:
            target = instruction.near_branch_target
            if target and target >> BLOCK in near:
                targets.add(target)
            if instruction.code == Code.SYSCALL:
                one = _Seen(list(last), [])
                seen[instruction.ip] = one
                waiting.append(one)
        if instruction.ip >> BLOCK in near:
            last.append(instruction.copy())


def _aligned(segment: Segment, start: int, address: int) -> bool:
    """Do instructions, read from the start of the function, come to this address?"""
    if not segment.contains(start) or address - start > FAR:
        return True  # it has no entry of its own: the sweep came to it
    for instruction in _decode(segment, start, address + 2):
        if instruction.ip >= address:
            return bool(instruction.ip == address)
    return False


def _site(address: int, seen: _Seen, targets: set[int]) -> Site | None:
    before = _adjoining(seen.before, address)
    nr = _number(before)
    if _is_cancellable(before):
        return None
    after: list[Instruction] = []
    returns = False
    end = address + 2
    for instruction in seen.after:
        if instruction.ip != end or end - address >= JUMP:
            break
        if returns:
            if (
                instruction.mnemonic not in (Mnemonic.NOP, Mnemonic.INT3)
                or instruction.ip in targets
            ):
                break  # behind a return there is only padding
        elif instruction.ip in targets or not (_movable(instruction) or _is_return(instruction)):
            break
        returns = returns or _is_return(instruction)
        after.append(instruction)
        end = instruction.next_ip
    for count in range(BEFORE + 1):
        if count:
            if count > len(before) or not _movable(before[-count], True):
                return None
            inner = address if count == 1 else before[1 - count].ip
            if inner in targets:
                return None
        start = before[-count].ip if count else address
        if end - start >= JUMP:
            return Site(
                start,
                address,
                _shortest(start, address, after),
                returns and _covers(start, after),
                nr,
            )
    return None


def _shortest(start: int, address: int, after: list[Instruction]) -> int:
    """The end of the fewest instructions that make room for the jump."""
    end = address + 2
    for instruction in after:
        if end - start >= JUMP:
            break
        end = instruction.next_ip
    return end


def _covers(start: int, after: list[Instruction]) -> bool:
    end = next((one.ip for one in after), start)
    for instruction in after:
        if end - start >= JUMP:
            return False
        if _is_return(instruction):
            return True
        end = instruction.next_ip
    return False


def _adjoining(instructions: list[Instruction], address: int) -> list[Instruction]:
    """The instructions that lead up to an address without a gap."""
    found: list[Instruction] = []
    for instruction in reversed(instructions):
        if instruction.next_ip != address:
            break
        found.insert(0, instruction)
        address = instruction.ip
    return found


def _is_return(instruction: Instruction) -> bool:
    return bool(instruction.code == Code.RETNQ)


def _movable(instruction: Instruction, before: bool = False) -> bool:
    """Does it mean the same at another place? After the call the stub needs r11 for itself."""
    if instruction.is_invalid or instruction.flow_control != FlowControl.NEXT:
        return False
    if instruction.is_ip_rel_memory_operand:
        return False
    if before:
        return True
    info = InstructionInfoFactory().info(instruction)
    return not any(
        used.register in (Register.R11, Register.R11D, Register.R11W, Register.R11L)
        for used in info.used_registers()
    ) and not any(
        used.base == Register.R11 or used.index == Register.R11 for used in info.used_memory()
    )


def _number(before: list[Instruction]) -> int | None:
    """The call's number if the last instruction that writes rax is `mov $nr,%eax` or clears it."""
    factory = InstructionInfoFactory()
    for instruction in reversed(before):
        if instruction.flow_control != FlowControl.NEXT:
            return None
        writes = any(
            used.register in (Register.RAX, Register.EAX, Register.AX, Register.AL, Register.AH)
            and used.access in _WRITES
            for used in factory.info(instruction).used_registers()
        )
        if not writes:
            continue
        if instruction.code == Code.MOV_R32_IMM32:
            return int(instruction.immediate(1))
        if instruction.code == Code.MOV_RM64_IMM32:
            return int(instruction.immediate(1))
        if (
            instruction.mnemonic == Mnemonic.XOR
            and instruction.op0_kind == instruction.op1_kind == OpKind.REGISTER
            and instruction.op0_register == instruction.op1_register
        ):
            return 0
        return None
    return None


def _is_cancellable(before: list[Instruction]) -> bool:
    """glibc (2.41) and musl make all calls that pthread_cancel may end in one function, by whose
    addresses the signal's handler tells whether the call has begun. Its 2nd argument is the
    number."""
    for instruction in reversed(before):
        if instruction.mnemonic == Mnemonic.MOV and instruction.op0_register == Register.RAX:
            return bool(instruction.op1_register == Register.RSI)
    return False
