"""The process that analyses files for the cache, at low priority.

It is run as `python -m umvm.agent.analyse DIR`. Standard input is a Unix socket: each message is
a file's path with a descriptor on it; each answer a JSON array of the entries made for its
segments. It ends when it has read all and the socket is closed: what a short VM used is known to
the next one.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import sys
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from umvm.agent.cache import SHARE, Cache, Entry, Key

if TYPE_CHECKING:
    from umvm.agent.sites import Site

MAX_CODE = 96 << 20
"""Bytes of an executable segment; larger ones are left alone."""
SYSCALL = b"\x0f\x05"
MEMORY_CALLS = frozenset((10, 11, 12, 25, 329))
"""mprotect, munmap, brk, mremap, pkey_mprotect: after them the agent looks at pages once more."""


def analyse(cache: Cache, fd: int, path: str) -> list[Entry]:
    """Analyse an open file; the entries that were added. ValueError: it is no program."""
    from core_accel import agentarea
    from umvm.agent.calls import AGENT_KINDS
    from umvm.agent.elf import Elf

    st = os.fstat(fd)
    data = os.pread(fd, st.st_size, 0)
    elf = Elf(data)
    segments = elf.executable()
    entries = []
    build_id = elf.build_id()
    for segment in segments:
        found = []
        if SYSCALL in segment.data and segment.length <= MAX_CODE:
            from umvm.agent import sites, stubs  # the disassembler: most files need none

            found = sites.find(elf, segment)
        wanted = [
            site
            for site in found
            if site.nr is None
            or site.nr in MEMORY_CALLS
            or AGENT_KINDS.get(site.nr, ("run",))[0] != "run"
        ]
        wanted = _share(wanted, os.environ.get(SHARE, ""))
        stub = cache.free_stub(stubs.size(wanted)) if wanted else None
        patch = None
        if stub is not None:
            base = agentarea.BASES + 8 * ((stub - agentarea.STUBS) // 4096)
            text, code = stubs.build(segment, wanted, stub, agentarea.ENTRY, base)
            patch = (len(wanted), stub, text, code)
        if os.fstat(fd).st_mtime_ns != st.st_mtime_ns:
            return []  # it is being written
        key = Key.of(st, segment.offset)
        entries.append(cache.add(key, segment.length, segment.vaddr, path, build_id, patch))
    return entries


def _share(sites: list[Site], wanted: str) -> list[Site]:
    """Some of the sites, always the same: `wanted` is per cent, and after a colon a seed."""
    percent = wanted.partition(":")[0]
    if not percent.isdigit():
        return sites
    share = int(percent)
    return [one for one in sites if Random(f"{wanted} {one.start}").randrange(100) < share]


def main() -> None:
    """Serve one supervisor."""
    os.nice(10)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the supervisor has all blocked
    cache = Cache(Path(sys.argv[1]))
    with socket.socket(fileno=0) as sock:
        while True:
            try:
                message, fds, _, _ = socket.recv_fds(sock, 8192, 1)
            except ConnectionResetError:
                return
            if not message:
                return
            answer: list[Entry] = []
            try:
                with cache.alone():
                    known = cache.about(Key.of(os.fstat(fds[0]), 0))
                    answer = known or analyse(cache, fds[0], os.fsdecode(message))
            except (OSError, ValueError, struct.error):
                pass  # damaged, or no program: nothing is patched
            finally:
                for fd in fds:
                    os.close(fd)
            if not answer:
                continue
            with contextlib.suppress(BrokenPipeError):  # the VM has ended; the cache has it
                sock.sendall(json.dumps(answer).encode())


if __name__ == "__main__":
    main()
