"""Programs that the agent's loader runs: for the kernel they are the loader."""

from __future__ import annotations

import os

from core_accel import agentarea
from core_accel.lazy import pattern

_LOADER = pattern(rb"/umvm-\d+/[^/]+/l/\d\d\Z")


def program_behind(path: bytes, link: bytes) -> bytes:
    """What /proc/PID/exe (`path`), which reads as `link`, would be without the loader."""
    if not path.endswith(b"/exe") or not _LOADER.search(link):
        return link
    try:
        program = agentarea.exe(int(path.split(b"/")[2]))
    except (OSError, ValueError):
        return link
    return os.path.realpath(program) if program.startswith(b"/") else link
