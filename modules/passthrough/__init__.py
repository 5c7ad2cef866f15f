"""A directory of the host, served by Python: `umvm mount -t passthrough DIR /mnt`.

Nothing outside DIR can be reached, not even through a symbolic link that appears while a call runs.
An open file is a descriptor of the supervisor, so it stays usable without a name. Options: `ro`.
"""

from __future__ import annotations

import errno
import os

from .filesystem import PassthroughFileSystem

__all__ = ["FILESYSTEMS", "PassthroughFileSystem", "make"]


def make(source: str, options: dict[str, str]) -> PassthroughFileSystem:
    """The file system of a host directory (or file). **Errors** EINVAL: an option is unknown."""
    for name, value in options.items():
        if name != "ro" or value:
            text = f"{name}={value}" if value else name
            raise OSError(errno.EINVAL, f"passthrough: unknown option {text!r} (there is ro)")
    return PassthroughFileSystem(os.fsencode(source), read_only="ro" in options)


FILESYSTEMS = {"passthrough": make}
