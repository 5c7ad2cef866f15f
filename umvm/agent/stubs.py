"""Makes the patched copy of an executable segment, and its stubs.

A site becomes `jmp *slot`, and the slot, in the stubs' first pages, holds the stub's address:

    stub:  (instructions that were before the call)
           mov $next,%r11d ; jmp *entry    to the agent
    next:  jrcxz 1f ; jmp 2f               rcx is 0: the stub makes the call
    1:     syscall
    2:     (instructions that were after the call)
           mov base,%r11 ; lea END-1(%r11),%r11 ; jmp *%r11

The agent leaves all registers but rax, rcx and r11 as they are, as the kernel does.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from umvm.agent.elf import PAGE, Segment
from umvm.agent.sites import JUMP, Site

ALIGN = 16


def build(
    segment: Segment, sites: Sequence[Site], stub: int, entry: int, base: int
) -> tuple[bytes, bytes]:
    """(text, stubs) for stubs at the address `stub`.

    `entry`: address of the word that holds the agent's; `base`: of the one with the load bias + 1.
    """
    text = bytearray(segment.data)
    code = bytearray()
    slots = bytearray()
    first = stub + 8 * len(sites)
    first = -(-first // ALIGN) * ALIGN
    for index, site in enumerate(sites):
        at = first + len(code)
        slots += struct.pack("<Q", at)
        code += _stub(segment, site, at, entry, base)
        code += b"\xcc" * (-len(code) % ALIGN)
        low, high = site.start - segment.vaddr, site.end - segment.vaddr
        jump = b"\xff\x24\x25" + struct.pack("<I", stub + 8 * index)
        text[low:high] = jump + b"\x90" * (high - low - JUMP)
    slots += b"\0" * (first - stub - len(slots))
    stubs = bytes(slots + code)
    return bytes(text), stubs.ljust(-(-len(stubs) // PAGE) * PAGE, b"\xcc")


def size(sites: Sequence[Site]) -> int:
    """An upper bound of the bytes that the stubs will take, in whole pages."""
    each = 8 + sum((72, ALIGN))
    return -(-(len(sites) * each + ALIGN) // PAGE) * PAGE


def _stub(segment: Segment, site: Site, at: int, entry: int, base: int) -> bytes:
    def original(low: int, high: int) -> bytes:
        return segment.data[low - segment.vaddr : high - segment.vaddr]

    before = original(site.start, site.syscall)
    after = original(site.syscall + 2, site.end)
    next_at = at + len(before) + 6 + JUMP
    code = before
    code += b"\x41\xbb" + struct.pack("<I", next_at)
    code += b"\xff\x24\x25" + struct.pack("<I", entry)
    code += b"\xe3\x02\xeb\x02\x0f\x05" + after
    if not site.returns:
        code += b"\x4c\x8b\x1c\x25" + struct.pack("<I", base)
        code += b"\x4d\x8d\x9b" + struct.pack("<i", site.end - 1)
        code += b"\x41\xff\xe3"
    return code
