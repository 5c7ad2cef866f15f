"""What the modules `fuse`, `fusepy` and `mfusepy` contain. Importable on Python 3.8 and later."""

# ruff: noqa: TID252 (this package has another name in guests)
from __future__ import annotations

import ctypes
import errno
import logging
import platform
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

from ..interfaces import fuse_structs
from ..interfaces.fuse_calls import fuse_get_context
from . import moperations, operations
from .mounting import FUSE, fuse_exit

MODULES = ("fuse", "fusepy", "mfusepy")


class _MethodFUSE(FUSE):
    """mfusepy's FUSE: calls methods, whether or not the object can be called."""

    _dialect = "mfusepy"


def _statistics(name: str, fields: str) -> type:
    """A structure of numbers, for programs that only name its type in annotations."""
    members = [(field, ctypes.c_longlong) for field in fields.split()]
    return type(name, (ctypes.Structure,), {"_fields_": members})


def _time_of_timespec(ts: Any, use_ns: bool = False) -> float:
    """Return a timespec as nanoseconds or seconds."""
    nanoseconds: int = ts.tv_sec * 10**9 + ts.tv_nsec
    return nanoseconds if use_ns else ts.tv_sec + ts.tv_nsec / 1e9


def _set_st_attrs(st: Any, attrs: Mapping[str, Any], use_ns: bool = False) -> None:
    """Copy a `st_*` dictionary into a structure that has such fields."""
    for key, value in attrs.items():
        spec = getattr(st, f"{key}spec", None)
        if spec is not None:
            spec.tv_sec, spec.tv_nsec = divmod(int(value if use_ns else value * 1e9), 10**9)
        elif hasattr(st, key):
            setattr(st, key, value)


_COMMON: dict[str, Any] = {
    "ENOTSUP": errno.ENOTSUP,
    "FuseOSError": operations.FuseOSError,
    "c_stat": _statistics("c_stat", "st_dev st_ino st_nlink st_mode st_uid st_gid st_rdev st_size "
                          "st_blksize st_blocks"),
    "c_statvfs": _statistics("c_statvfs", "f_bsize f_frsize f_blocks f_bfree f_bavail f_files "
                             "f_ffree f_favail f_fsid f_flag f_namemax"),
    "c_timespec": _statistics("c_timespec", "tv_sec tv_nsec"),
    "fuse_exit": fuse_exit,
    "fuse_file_info": fuse_structs.FileInfo,
    "fuse_get_context": fuse_get_context,
    "log": logging.getLogger("fuse"),
    "set_st_attrs": _set_st_attrs,
    "time_of_timespec": _time_of_timespec,
    "_machine": platform.machine(),
    "_system": platform.system(),
}  # fmt: skip

_FUSEPY: dict[str, Any] = {
    "FUSE": FUSE,
    "LoggingMixIn": operations.LoggingMixIn,
    "Operations": operations.Operations,
    "__version__": "3.0.1",
}

_MFUSEPY: dict[str, Any] = {
    "ENOATTR": errno.ENODATA,
    "FUSE": _MethodFUSE,
    "LoggingMixIn": moperations.LoggingMixIn,
    "Operations": moperations.Operations,
    "ReadDirResult": Iterable,
    "callback_logger": logging.getLogger("fuse.log-mixin"),
    "fuse_config": fuse_structs.Config,
    "fuse_conn_info": fuse_structs.ConnInfo,
    "fuse_version_major": 3,
    "fuse_version_minor": 16,
    "log_callback": moperations.log_callback,
    "overrides": moperations.overrides,
    "__version__": "3.1.1",
}
_MethodFUSE.__name__ = _MethodFUSE.__qualname__ = "FUSE"


def contents(name: str) -> dict[str, Any]:
    """What the module called `name` contains."""
    return {**_COMMON, **(_MFUSEPY if name == "mfusepy" else _FUSEPY)}


def module(name: str) -> ModuleType:
    """Make the module called `name`, one of MODULES."""
    made = ModuleType(name, f"umvm's stand-in for {name}: see umvm.standin.")
    vars(made).update(contents(name))
    return made
