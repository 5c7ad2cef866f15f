"""An identity that is what root on this host really is: with it the VM has to agree with the host."""

from __future__ import annotations

from pathlib import Path


def host_capabilities() -> int:
    """The bounding set of this process: a container's root lacks some capabilities."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapBnd:"):
            return int(line.split()[1], 16)
    raise AssertionError("no CapBnd")


def own() -> str:
    """The module, with options, that makes the guests what real root is here."""
    return f"ident,uid=0,gid=0,groups=0,caps={host_capabilities():#x}"
