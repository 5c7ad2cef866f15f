"""What `mfusepy` offers to subclass and to decorate with.

The behaviour is mfusepy's; the words are our own. Importable on Python 3.8 and later.
"""

from __future__ import annotations

import errno
import functools
import inspect
import logging
import os
from collections.abc import Callable
from typing import Any, TypeVar

from .operations import Operations as _Operations
from .operations import rename_module

_log = logging.getLogger("fuse.log-mixin")
Method = TypeVar("Method", bound=Callable[..., Any])


def _not_there(method: Method) -> Method:
    """Mark a method that is only there to be overridden."""
    method.libfuse_ignore = True  # type: ignore[attr-defined]
    return method


def _refuse(number: int) -> Callable[..., Any]:
    def operation(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return operation


def _operations() -> type:
    """Build the class: fusepy's defaults, marked; not callable; some more operations."""
    members: dict[str, Any] = {
        "__doc__": "The base of file systems. Only overridden methods count."
    }
    for name, value in vars(_Operations).items():
        if not name.startswith("_"):
            copy = _copy(value) if callable(value) else _refuse(errno.ENOSYS)
            members[name] = copy if name == "getattr" else _not_there(copy)
    for name in ("poll", "write_buf", "read_buf", "flock", "fallocate"):
        members[name] = _not_there(_refuse(errno.ENOSYS))
    members["readdir_with_offset"] = _not_there(lambda self, path, offset, fh: [".", ".."])
    members["init_with_config"] = _not_there(lambda self, conn_info, config_3: None)
    for name, value in members.items():
        if callable(value):
            value.__name__, value.__qualname__ = name, f"Operations.{name}"
    return rename_module(type("Operations", (), members), "mfusepy")


def _copy(function: Any) -> Any:
    """A function of its own with the same code and signature."""
    code = function.__code__, function.__globals__, function.__name__, function.__defaults__
    return functools.update_wrapper(type(function)(*code), function, updated=())


Operations: Any = _operations()


def _logged(method: Callable[..., Any], *args: Any) -> Any:
    name = getattr(method, "__name__", repr(method))
    _log.debug("-> %s %r", name, args)
    shown: Any = "[Unhandled Exception]"
    try:
        shown = result = method(*args)
        return result
    except OSError as error:
        shown = str(error)
        raise
    finally:
        _log.debug("<- %s %r", name, shown)


class LoggingMixIn:
    """Logs every operation that the class overrides; goes before Operations among the bases."""

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        known = not name.startswith("_") and hasattr(Operations, name)
        if known and callable(value) and not getattr(value, "libfuse_ignore", False):
            return functools.partial(_logged, value)
        return value


def log_callback(method: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a method: log its calls and results."""

    def wrapper(*args: Any) -> Any:
        return _logged(method, *args)

    return wrapper


def overrides(parent: type) -> Callable[[Method], Method]:
    """Decorate a method: assert that `parent` has one of that name."""

    def check(method: Method) -> Method:
        assert callable(inspect.getattr_static(parent, method.__name__, None)), method.__name__
        return method

    return check


rename_module(LoggingMixIn, "mfusepy")
