"""All call families: importing this fills the register of handlers."""

from __future__ import annotations

import importlib

from umvm.syscalls.context import HANDLERS

FAMILIES = (
    "attrs", "copy", "dirs", "execute", "fcntl", "io", "ioctl", "locklimit", "mapping",
    "mountcalls", "names", "open", "process", "restart", "seek", "sockets", "stat", "sync",
    "watch", "xattr",
    "netsockets",  # after those that it asks for what isn't its own
)  # fmt: skip

for _family in FAMILIES:
    importlib.import_module(f"umvm.syscalls.{_family}")

__all__ = ["FAMILIES", "HANDLERS"]
