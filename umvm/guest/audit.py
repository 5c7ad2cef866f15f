"""What is still open when the kernel dropped events: by leases, and by /proc for directories."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from umvm.guest.nodes import Node
    from umvm.guest.openfile import OpenFile


def unused(files: Iterable[OpenFile], prefix: bytes) -> list[OpenFile]:
    """Those descriptions that nobody holds any more. Call it while none can be made.

    A file of which some descriptions are in use keeps all of them until the last one is closed.
    """
    files = list(files)
    gone = {node for node in {file.node for file in files if not file.directory} if _free(node)}
    found = [file for file in files if file.node in gone]
    directories = [file for file in files if file.directory]
    if directories:
        held = _held(prefix + b"d/")
        found += [file for file in directories if file.ident not in held]
    return found


def _free(node: Node) -> bool:
    """Nobody has the placeholder open or mapped: only then a write lease is granted (fcntl(2))."""
    with node.lock, node.open() as fd:
        try:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError:
            return False
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return True


def _held(prefix: bytes) -> set[int]:
    """Numbers of the placeholders below `prefix` that some process has open."""
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        directory = f"/proc/{pid}/fd"
        try:
            numbers = os.listdir(directory)
        except OSError:
            continue  # gone, or another user's
        for number in numbers:
            try:
                link = os.fsencode(os.readlink(f"{directory}/{number}"))
            except OSError:
                continue
            if link.startswith(prefix):
                found.add(int(link[len(prefix) :].partition(b" ")[0]))
    return found
