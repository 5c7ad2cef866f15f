"""umvm: partial virtual machines in user space.

What a module may use is exported here; everything else is private to umvm. `Reply` and `Request`
come from the compiled part and are imported on first use, so that `umvm --version` or a control
client never loads it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from umvm._version import __version__

if TYPE_CHECKING:
    from core_accel.request import Reply, Request
    from umvm.errors import UmvmError
    from umvm.hookspecs import hookimpl
    from umvm.interfaces.filesystem import FileSystem
    from umvm.routes import FsType, Route, SyscallClass

__all__ = [
    "FileSystem",
    "FsType",
    "Reply",
    "Request",
    "Route",
    "SyscallClass",
    "UmvmError",
    "__version__",
    "hookimpl",
]

_HOME = {
    "FileSystem": "umvm.interfaces.filesystem",
    "FsType": "umvm.routes",
    "Reply": "core_accel.request",
    "Request": "core_accel.request",
    "Route": "umvm.routes",
    "SyscallClass": "umvm.routes",
    "UmvmError": "umvm.errors",
    "hookimpl": "umvm.hookspecs",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for (PEP 562)."""
    import importlib

    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value
